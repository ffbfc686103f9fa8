"""The operations of a layer's forward and backward, with their values, and which values are one another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxnet.factors import Factor

CLOSE = 1e-9  # of the largest entry: rounding of sums in another order, in float64
OWN = 1  # how many calls deep a layer's own forward and backward are: `leaf` calls them
SAME = {"astype", "asarray", "array", "reshape", "ravel", "squeeze", "expand_dims", "broadcast_to", "stop_gradient",
        "convert_element_type", "block_until_ready", "float32", "float64", "copy"}  # fmt: skip
"""Functions that change no number, only its dtype or the shape."""
FUNCTIONS = {"exp": "exp", "log": "ln", "sqrt": "√", "tanh": "tanh", "sigmoid": "σ", "logistic": "σ", "abs": "abs",
             "absolute": "abs", "sign": "sign", "relu": "relu", "softplus": "softplus", "silu": "silu", "gelu": "gelu",
             "erf": "erf", "sin": "sin", "cos": "cos", "log1p": "log1p", "expm1": "expm1",
             "softmax": "softmax", "log_softmax": "log_softmax"}  # fmt: skip
"""What a library's function of one array is called in an equation."""


@dataclass(frozen=True)
class Array:
    """An array among the operands of an operation: its number, and its shape at one position or step."""

    ref: int
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class RecordedOperation:
    """An operator or a library's function, by name, with its operands: an `Array` in the place of each array.

    ref: the number of its value. part: whether it gives several values, of which this is one.
    """

    ref: int
    name: str
    args: tuple
    options: dict[str, Any]
    forward: bool
    part: bool = False


@dataclass
class Recording:
    """The operations of a layer's forward and backward with their values; each array has a number.

    - `operations`: by the number of what they give, in their order.
    - `values`: of each number; `others`: at other parameters and another d_out, since numbers may be equal by chance.
    - `given`: what the layer was given: ("param", path), "x", "d_out". `out`, `dx`: their numbers.
    - `names`: the names that values are assigned to; `depths`: how many calls deep; `lines`: by which line.
    - `stacked`: how many axes `vmap` or `scan` added in front. `early`: the numbers of the forward pass.
    - `same`: of a value in another shape or dtype, the number of the one that it was made of.
    - `moved`: of a value that is carried from step to step, the one that it was, and how many steps later.
    - `factors`: of each parameter, by its path; `grads`: what they give.
    - `slopes`: ∂C/∂ of the forward values that a line names, by jax.grad; `other_slopes`: at the other parameters.
    - `roots`: of the square root of a number of Python's that number.
    - `outside`: name, depth and line of what `vmap` gives, until its inner value is found.
    - `calls`: of what an author's function gives, its name and what it takes.
    """

    operations: dict[int, RecordedOperation] = field(default_factory=dict)
    values: dict[int, Any] = field(default_factory=dict)
    given: dict[int, tuple[str, tuple]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    depths: dict[int, int] = field(default_factory=dict)
    lines: dict[int, tuple] = field(default_factory=dict)
    stacked: dict[int, int] = field(default_factory=dict)
    factors: dict[tuple, Factor] = field(default_factory=dict)
    grads: dict[tuple, Any] = field(default_factory=dict)
    refs: dict[int, int] = field(default_factory=dict)
    early: set[int] = field(default_factory=set)
    same: dict[int, int] = field(default_factory=dict)
    moved: dict[int, tuple[int, int]] = field(default_factory=dict)
    slopes: dict[int, Any] = field(default_factory=dict)
    others: dict[int, Any] = field(default_factory=dict)
    other_slopes: dict[int, Any] = field(default_factory=dict)
    roots: dict[float, float] = field(default_factory=dict)
    outside: dict[int, tuple[str, int, tuple]] = field(default_factory=dict)
    calls: dict[int, tuple[str, tuple]] = field(default_factory=dict)
    out: int = -1
    dx: int = -1

    def number(self, value: Any) -> int | None:
        """The number of an array; None for one that was not kept."""
        found = self.refs.get(id(value))
        return None if found is None else self.root(found)

    def alike(self, ref: int, other: int, steps: int = 0) -> bool:
        """Whether two values hold the same numbers, or those of so many steps later."""
        for values in (self.values, self.others):
            one, two = values[ref], values[other]
            if steps and one.shape != two.shape:
                return False
            one, two = (one[1:], two[:-1]) if steps < 0 else (one[:-1], two[1:]) if steps > 0 else (one, two)
            if not alike(one, two):
                return False
        return True

    def root(self, ref: int) -> int:
        """The number of the value whose dtype or shape was changed to make this one; its own if it is no such."""
        while ref in self.same:
            ref = self.same[ref]
        return ref

    def operands(self, ref: int) -> Iterator[int]:
        """The numbers of the arrays that an operation takes."""
        made = self.operations[ref]
        yield from (self.root(each.ref) for each in arrays_in((made.args, made.options)))

    def varies(self, ref: int) -> bool:
        """Whether a value depends on what the layer was given."""
        found = [self.root(ref)]
        for each in found:  # which grows: a value that is linked to an earlier one may be among its own operands
            found += (of for of in self.operands(each) if of not in found) if each in self.operations else ()
        return not self.given.keys().isdisjoint(found)

    def made_of(self, ref: int) -> Iterator[int]:
        """The numbers of the values in one's expression: those that it takes, and theirs where they have no name."""
        for each in self.operands(ref):
            yield each
            if each in self.operations and each not in self.names:
                yield from self.made_of(each)


def arrays_in(operands: Any) -> Iterator[Array]:
    """The arrays among operands, at any depth."""
    if isinstance(operands, Array):
        yield operands
    elif isinstance(operands, tuple | list | dict):
        for each in operands.values() if isinstance(operands, dict) else operands:
            yield from arrays_in(each)


def is_array(value: Any) -> bool:
    """Whether a value is an array."""
    return isinstance(value, jax.Array | np.ndarray)


def is_float(value: Any) -> bool:
    """Whether an array is of floats, so that there is a derivative by it."""
    return jax.numpy.issubdtype(value.dtype, jax.numpy.inexact)


def link(recording: Recording) -> None:
    """Finds the line of each value that came another way than by a line.

    A value is that of a line where it has the same numbers: inputs and outputs of a scan, forward values in backward.
    It is that of the step before, or after, where it has them one step later, or earlier: the carry of a scan.
    """
    operations = recording.operations
    sized: dict[int, list[int]] = {}
    for ref in [*recording.given, *sorted(operations, key=lambda each: each not in recording.names)]:
        sized.setdefault(recording.values[ref].size, []).append(ref)
    for ref, value in recording.values.items():
        if ref in recording.given or recording.root(ref) != ref or not is_float(value):
            continue
        made = operations.get(ref)
        made = None if made is None or made.part or made.name == "getitem" else made
        known = [
            each
            for each in sized.get(value.size, ())
            if each != ref
            and recording.root(each) != ref
            and (each in recording.given or not operations[each].part or operations[each].forward)
        ]
        if ref in recording.early:
            known = [each for each in known if each in recording.early]
        if made is not None:
            known = [each for each in known if each in recording.names and each in recording.early and not made.forward]
        same = next((each for each in known if recording.alike(ref, each)), None)
        if same is not None:
            recording.same[ref] = recording.root(same)
        elif value.ndim > 1 and len(value) > 1 and (made is None or made.name == "concatenate"):
            moved = ((each, steps) for each in known for steps in (-1, 1) if recording.alike(ref, each, steps))
            if (found := next(moved, None)) is not None:
                recording.moved[ref] = found
    for ref, (name, depth, line) in recording.outside.items():
        root = recording.root(ref)
        if root in operations and root not in recording.names:
            recording.names[root], recording.depths[root], recording.lines[root] = name, depth, line
        if root != ref and ref in recording.slopes and root not in recording.slopes:
            recording.slopes[root] = recording.slopes.pop(ref)
            recording.other_slopes[root] = recording.other_slopes.pop(ref)
    recording.out, recording.dx = recording.root(recording.out), recording.root(recording.dx)


def alike(value: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays hold the same numbers, not all of them 0, but for rounding."""
    if value.shape != other.shape:
        value, other = value.squeeze(), other.squeeze()
    return value.shape == other.shape and bool(np.any(value)) and close(value, other)


def close(got: np.ndarray, expected: np.ndarray, beside: float = 0.0) -> bool:
    """Whether two arrays are the same but for rounding. beside: the size of the terms of a sum."""
    scale = max(float(np.abs(expected[np.isfinite(expected)]).max(initial=0)), beside)
    return bool(np.allclose(got, expected, rtol=CLOSE, atol=CLOSE * (scale or 1), equal_nan=True))
