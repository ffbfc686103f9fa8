"""Names for autodiff's values: numbers, sizes, and arrays with their axes laid out otherwise."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.checking.edits import bracketed, transposed
from jaxnet.checking.execution import Execution
from jaxnet.checking.written import (
    CannotWriteError,
    OtherShape,
    Written,
    indexed,
    plain,
    same,
    total,
)

LONGEST = 1200  # letters
UNCHANGED = (
    "copy",
    "copy_p",
    "stop_gradient",
    "name",
    "convert_element_type",
    "reduce_precision",
    "optimization_barrier",
)


@dataclass(eq=False)
class Naming:
    """The names for autodiff's values.

    - `names`: text, shape and the values at the points, over the `steps` of a loop where there is one.
    - `numbers`: numbers that have a name; `sizes`: text of a size, the size, and the size at another shape.
    - `jnp`, `lax`: the names of `jax.numpy` and `jax.lax`, empty where there is none.
    """

    reference: Execution
    names: list[tuple[str, tuple[int, ...], list[np.ndarray]]]
    numbers: Sequence[tuple[str, float]] = ()
    sizes: Sequence[tuple[str, float, float]] = ()
    other: OtherShape | None = None
    steps: int = 0
    jnp: str = "jnp"
    lax: str = "lax"
    longest: int = LONGEST

    def __post_init__(self) -> None:
        self.names = sorted(self.names, key=lambda each: (not each[0].isidentifier(), len(each[0])))
        self.sums = np.array([total(each[2][0]) for each in self.names])

    def value(self, number: int, point: int) -> np.ndarray:
        """Autodiff's value, over the steps of the place's loop."""
        number = self.reference.known(number)
        values = self.reference.values[point]
        value = values[number] if number in values else self.reference.graph.all_constants[number]
        if jnp.issubdtype(value.dtype, jax.dtypes.extended):
            raise CannotWriteError("a random key")
        value = np.asarray(value)
        steps = self.reference.steps(number)
        if not steps:
            return np.broadcast_to(value, (self.steps, *value.shape)) if self.steps else value
        if self.steps != steps:
            raise CannotWriteError("a value of another loop")
        return value

    def shape(self, number: int) -> tuple[int, ...]:
        """A value's shape, at one step."""
        return self.value(number, 0).shape[1 if self.steps else 0 :]

    def found(self, number: int) -> Written | None:
        """A value that is a number, or that has a name: as it is, transposed, or with the other sign."""
        arrays = [self.value(number, point) for point in range(len(self.reference.values))]
        first = arrays[0]
        if first.dtype.kind not in "fbiu" or not first.size:
            return None
        one = first.ravel()[0]
        if first.dtype.kind == "f" and not np.isfinite(one) and all(np.all(array == one) for array in arrays):
            return Written(f"{'-' if one < 0 else ''}{self.library}.inf")
        if first.dtype.kind != "b" and np.isfinite(one) and all(np.all(array == one) for array in arrays):
            maker = self.reference.graph.made_by.get(number)
            if maker is not None and maker.name in ("broadcast_in_dim", "reshape", *UNCHANGED):
                return None
            elsewhere = self.other and self.other.constants.get(number)
            return Written(self.number(float(one), None if elsewhere is None else float(np.ravel(elsewhere)[0])), (),
                           value=float(one))  # fmt: skip
        near = np.flatnonzero(np.abs(self.sums - total(first)) <= 1e-6 * abs(total(first)) + 1e-30)
        for k in near:
            text, shape, values = self.names[k]
            if (first.dtype.kind == "b") != (values[0].dtype.kind == "b"):
                continue
            written = self.layout(text, shape, values, arrays)
            if written is not None:
                return written
        return None

    def layout(self, text: str, shape: tuple[int, ...], values: list, arrays: list) -> Written | None:
        """The expression of arrays as a named value with its axes laid out otherwise; None where they differ."""
        lead = 1 if self.steps else 0
        wanted = arrays[0].shape[lead:]
        if sorted(plain(shape)) != sorted(plain(wanted)):
            return None
        for order in itertools.permutations(range(len(shape))) if len(shape) <= 4 else [tuple(range(len(shape)))]:
            moved = tuple(shape[k] for k in order)
            if plain(moved) != plain(wanted):
                continue
            axes = (*range(lead), *(k + lead for k in order))
            for sign in (1, -1):
                if all(
                    same(sign * value.transpose(axes).reshape(array.shape), array)
                    if sign < 0 and value.dtype.kind != "b"
                    else sign > 0 and same(value.transpose(axes).reshape(array.shape), array)
                    for value, array in zip(values, arrays, strict=True)
                ):
                    if order != tuple(range(len(shape))):
                        text = transposed(text) if len(shape) == 2 else f"{bracketed(text)}.transpose{order}"
                    new = indexed(text, moved, wanted)
                    if new is None:
                        return None
                    return Written(f"-{bracketed(new)}" if sign < 0 else new, wanted)
        return None

    def number(self, value: float, elsewhere: float | None = None) -> str:
        """A number by the size or the constant that it is, or in digits; `elsewhere`: its value at another shape."""
        named = {v: (v, text) for text, v in reversed(self.numbers) if v not in (2.0, 3.0, 0.5)}
        if elsewhere is None:
            known = named
        else:
            sizes = {text: (n, m) for text, n, m in self.sizes}
            named = {text: (v, v) for v, text in named.values()}
            for text, (n, m) in (named | sizes if value != elsewhere else named).items():
                if (n, m) == (value, elsewhere):
                    return text
                if n and m and abs(value * n - 1) + abs(elsewhere * m - 1) < 1e-12:
                    return f"1 / {bracketed(text)}"
            known = {}
        if value in known:
            return known[value][1]
        return repr(int(value)) if value == int(value) and abs(value) < 1e9 else repr(value)

    def broadcast(self, written: Written, shape: tuple[int, ...]) -> str:
        """The text of an expression that has the whole shape."""
        if written.shape == shape:
            return written.text
        return f"{self.library}.broadcast_to({written.text}, {self.shape_text(shape)})"

    def shape_text(self, shape: tuple[int, ...]) -> str:
        """A shape, by an array that has it."""
        return next((f"{bracketed(text)}.shape" for text, other, _ in self.names if other == shape), str(shape))

    @property
    def library(self) -> str:
        """The name of `jax.numpy`."""
        if not self.jnp:
            raise CannotWriteError("jax.numpy has no name here")
        return self.jnp

    @property
    def of_lax(self) -> str:
        """The name of `jax.lax`."""
        if not self.lax:
            raise CannotWriteError("jax.lax has no name here")
        return self.lax
