"""Which mistakes could a test point not have shown? Planted ones that change no gradient there.

Small mistakes are planted into autodiff's backward program: a term or a factor left out, a matrix that is not
transposed, an ε left out, a cotangent of ones. One that changes nothing at the point, and something where an input is
drawn at random, is told with what to draw.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.checking.subject import argument_names, leaves_of, on_device
from jaxnet.program import Graph, Operation, Tape, graph_of
from jaxnet.program.numpy_evaluation import NumpyEvaluation, Values, host

SEEN = 1e-3
"""Relative difference in a leaf from which on a mistake would be seen beyond doubt."""
HIDDEN = 1e-5
"""Relative difference in every leaf up to which it would not be seen in float32."""
SMALL = 1e-2  # constants below it are taken for an ε
LAYOUT = ("broadcast_in_dim", "reshape", "convert_element_type", "squeeze", "transpose", "copy", "mul")


@dataclass(frozen=True)
class Blind:
    """A mistake that the test point cannot tell from the reference, its line, and what would let it be seen."""

    mistake: str
    where: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.mistake} ({self.remedy})"


@dataclass(frozen=True)
class Planted:
    """A mistake in the backward program: the value that is another, and what it is."""

    mistake: str
    where: str
    number: int
    change: Callable[[Values], Any]


def adequacy(primal: Callable[..., Any], args: tuple, cotangent: Any, *, budget: float = 5.0) -> list[Blind]:
    """The small mistakes in the backward pass of `primal` that this very point could not have shown.

    Args:
        primal: the function, differentiable by `jax.vjp`.
        args, cotangent: the test point.
        budget: seconds; what is not tried by then is not reported.

    Raises:
        ValueError: where no argument is a floating-point array.
    """
    deadline = time.process_time() + budget
    program = Backward(primal, args, cotangent)
    elsewhere = {remedy: program.at(*moved) for remedy, moved in generic(program, args, cotangent)}
    here = program.at(args, cotangent)
    found = {blind.mistake: blind for blind in single(program)}
    with np.errstate(all="ignore"):
        for planted in program.planted():
            if time.process_time() > deadline:
                break
            if planted.mistake in found or program.moves(planted, here) > HIDDEN:
                continue
            remedy = next((remedy for remedy, point in elsewhere.items() if program.moves(planted, point) > SEEN), None)
            if remedy is not None:
                found[planted.mistake] = Blind(planted.mistake, planted.where, remedy)
    return list(found.values())


def grouped(blind: Sequence[Blind], shown: int = 3) -> tuple[str, ...]:
    """The mistakes that one remedy would show together, the first few of them by name."""
    by_remedy: dict[str, list[str]] = {}
    for each in blind:
        by_remedy.setdefault(each.remedy, []).append(each.mistake)

    def said(mistakes: list[str]) -> str:
        more = f" and {len(mistakes) - shown} more" if len(mistakes) > shown else ""
        return "; ".join(mistakes[:shown]) + more

    return tuple(f"{said(mistakes)} ({remedy})" for remedy, mistakes in by_remedy.items())


@dataclass(frozen=True)
class BackwardRun:
    """The backward program at some inputs: all its values, and the gradients."""

    flat: list
    values: Values
    right: list[np.ndarray]


class Backward:
    """Autodiff's backward program of a function at the shapes of its arguments."""

    def __init__(self, primal: Callable[..., Any], args: tuple, cotangent: Any):
        leaves = leaves_of(args)
        if not leaves.where:
            raise ValueError("the primal takes no floating-point input: there is nothing to differentiate")
        self.leaves = leaves
        names = argument_names(primal, len(args))
        self.labels = [label(path, names) for path in leaves.paths]
        self.count = len(leaves.values)
        _, tree = jax.tree.flatten(cotangent, is_leaf=is_none)

        def backward(*flat):
            values, seeds = flat[: self.count], iter(flat[self.count :])
            given = [next(seeds) if is_float(ct) else ct for ct in jax.tree.leaves(cotangent, is_leaf=is_none)]
            pull = jax.vjp(lambda values: primal(*leaves.tree(values)), values)[1]
            return pull(jax.tree.unflatten(tree, given))[0]

        self.graph: Graph = graph_of(jax.make_jaxpr(backward)(*self.flat(args, cotangent)))
        self.tape = Tape(self.graph, (), None, {})
        seeds = self.graph.inputs[self.count :]
        self.linear = frozenset().union(*(self.tape.dependents(number) for number in seeds))

    def flat(self, args: tuple, cotangent: Any) -> list:
        """Arguments and cotangent as arrays, halves in float32."""
        seeds = [ct for ct in jax.tree.leaves(cotangent, is_leaf=is_none) if is_float(ct)]
        return [host(v.astype(jnp.float32) if jnp.dtype(v.dtype).itemsize < 4 else v)
                for v in (*leaves_of(args).values, *seeds)]  # fmt: skip

    def at(self, args: tuple, cotangent: Any) -> BackwardRun:
        """The program at other inputs."""
        evaluation, flat = NumpyEvaluation(), self.flat(args, cotangent)
        right = [np.asarray(out) for out in evaluation.run(self.graph, flat)]
        return BackwardRun(flat, evaluation.values, right)

    def moves(self, planted: Planted, point: BackwardRun) -> float:
        """How far a mistake moves the gradients, relative to the largest entry of each; 0 where it has no value."""
        changes = {planted.number: planted.change}
        try:
            outs = NumpyEvaluation(point.values, changes).run(self.graph, point.flat)
        except (ValueError, TypeError, ZeroDivisionError):
            return 0.0
        sizes = [float(np.max(np.abs(right), initial=0.0)) or 1.0 for right in point.right]
        off = [
            np.abs(np.asarray(out) - right) / size for out, right, size in zip(outs, point.right, sizes, strict=True)
        ]
        return float(max(np.max(np.nan_to_num(each, nan=np.inf), initial=0.0) for each in off))

    def name(self, number: int) -> str:
        """A value's name: the argument's, the variable's, or the line that computes it."""
        while number not in self.graph.inputs:
            operation = self.tape.made_by.get(number)
            if operation is None:
                outer = self.tape.same.get(number)
                if outer is None:
                    return "a constant"
                number = outer
                continue
            if number in self.tape.names:
                return self.tape.names[number]
            if operation.name not in LAYOUT[:-1]:
                return operation.position.text[:60] or operation.name
            number = operation.inputs[0]
        k = self.graph.inputs.index(number)
        return self.labels[k] if k < self.count else "the cotangent"

    def planted(self) -> Iterator[Planted]:
        """The mistakes, one after another."""
        seeds = self.graph.inputs[self.count :]
        for number in seeds:
            yield Planted("the cotangent is ignored: as if it were 1", "", number,
                          lambda values, n=number: np.ones_like(values[n]))  # fmt: skip
        for operation in self.tape.operations:
            if operation.kind != "operation" or len(operation.outputs) != 1:
                continue
            yield from self.planted_at(operation)

    def planted_at(self, operation: Operation) -> Iterator[Planted]:
        """The mistakes at one operation."""
        (out,), where = operation.outputs, str(operation.position)
        linear = [number in self.linear for number in operation.inputs]
        if operation.name in ("mul", "div") and any(linear) and not all(linear):
            kept, lost = (operation.inputs[k] for k in ((0, 1) if linear[0] else (1, 0)))
            yield Planted(f"{self.name(lost)} is missing", where, out, lambda values: values[kept])
        elif operation.name in ("add_any", "add", "sub") and all(linear):
            for number in operation.inputs:
                yield Planted(f"a term is missing at {operation.position.text[:60]}", where, number,
                              lambda values, n=number: np.zeros_like(values[n]))  # fmt: skip
        elif operation.name == "dot_general" and any(linear) and not all(linear):
            j = linear.index(False)
            matrix = operation.inputs[j]
            shape = operation.eqn.invars[j].aval.shape
            if len(shape) == 2 and shape[0] == shape[1]:

                def transposed(values: Values) -> Any:
                    given = [values[n].T if n == matrix else values[n] for n in operation.inputs]
                    return NumpyEvaluation().operation(operation, given)[0]

                yield Planted(f"{self.name(matrix)} is transposed", where, out, transposed)
        elif operation.name == "add" and not any(linear):
            for k, atom in enumerate(operation.eqn.invars):
                value = getattr(atom, "val", None)
                if value is not None and np.ndim(value) == 0 and 0 < abs(float(value)) < SMALL:
                    other = operation.inputs[1 - k]
                    yield Planted(f"ε = {float(value):g} is missing", where, out, lambda values, n=other: values[n])


def label(path: str, names: tuple[str, ...]) -> str:
    """A leaf's short name: the parameter's, or the last key of its path."""
    position, _, rest = path.removeprefix("[").partition("]")
    base = names[int(position)] if int(position) < len(names) else f"arg{position}"
    return rest.strip("[]'") if rest.endswith("']") else base + rest


def is_none(leaf: Any) -> bool:
    """Whether a leaf is None."""
    return leaf is None


def is_float(leaf: Any) -> bool:
    """Whether a leaf is a float or complex array."""
    return leaf is not None and jnp.issubdtype(leaf.dtype, jnp.inexact)


def generic(program: Backward, args: tuple, cotangent: Any) -> Iterator[tuple[str, tuple[tuple, Any]]]:
    """The point with one leaf after another made generic, then all, then all made small; and the advice."""
    rng, leaves = np.random.default_rng(1), program.leaves

    def stirred(x: Any, scale: float = 1.0) -> Any:
        x = np.asarray(x.astype(np.float32) if jnp.dtype(x.dtype).itemsize < 4 else x)
        noise = rng.standard_normal(x.shape)
        return on_device(np.where(x == 0, 0.4 * noise, x * np.exp(0.4 * noise)) * scale, x.dtype)

    seeds = jax.tree.map(lambda ct: stirred(ct) if is_float(ct) else ct, cotangent, is_leaf=is_none)
    yield "take a random cotangent", (args, seeds)
    values = list(leaves.values)
    mixed = [stirred(value) for value in values]
    for k, (name, value) in enumerate(zip(program.labels, values, strict=True)):
        same = np.ptp(np.abs(value)) == 0
        state = "zero everywhere" if not np.any(value) else "the same everywhere" if same else "special"
        yield (
            f"draw {name} at random: it is {state} here",
            (
                leaves.tree([*values[:k], mixed[k], *values[k + 1 :]]),
                cotangent,
            ),
        )
    yield "draw all inputs and the cotangent at random", (leaves.tree(mixed), seeds)
    small = [stirred(value, 1e-2) for value in values]
    yield "raise ε or take smaller inputs: what it is added to is large here", (leaves.tree(small), seeds)


def single(program: Backward) -> Iterator[Blind]:
    """Axes of one entry: whatever goes wrong in a sum over them cannot be seen."""
    for name, leaf in zip(program.labels, program.leaves.values, strict=True):
        for axis, n in enumerate(np.shape(leaf)):
            if n == 1 and np.ndim(leaf) > 1:
                mistake = f"sum for mean, first or last entry only, over axis {axis} of {name}"
                yield Blind(mistake, "", f"take more than 1 along axis {axis} of {name}")
