"""Autodiff's own values, written in the author's names, to stand in the place of an expression.

Autodiff's program runs on the same numbers as the rule's. Each of its values is looked up among those that a place has
names for; one that has no name is written as the operation that made it, of what that operation was given.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.checking.alignment import Atom, Execution
from jaxnet.checking.edits import Scope, bracketed, transposed
from jaxnet.program import Graph

LONGEST = 1200  # letters
DEEPEST = 60  # operations inside one another
SAME = 1e-9
INFIX = {
    "add": "+", "add_any": "+", "sub": "-", "mul": "*", "div": "/", "eq": "==", "ne": "!=", "lt": "<", "le": "<=",
    "gt": ">", "ge": ">=", "and": "&", "or": "|", "rem": "%", "pow": "**",
}  # fmt: skip
CALLS = {
    **{name: f"%.{name}" for name in ("exp", "log", "tanh", "sin", "cos", "sqrt", "sign", "abs", "log1p", "expm1",
                                      "tan", "square", "floor", "ceil", "round", "conj", "real", "imag", "sinh",
                                      "cosh")},
    **{name: f"@.{name}" for name in ("erf", "erf_inv", "erfc", "lgamma", "digamma", "cbrt", "exp2", "logistic")},
    "max": "%.maximum", "min": "%.minimum", "atan2": "%.arctan2", "not": "%.logical_not", "is_finite": "%.isfinite",
    "rsqrt": "1 / %.sqrt",
}  # fmt: skip
"""Functions of arrays of one shape; `%` stands for the name of `jax.numpy`, `@` for that of `jax.lax`."""
REDUCTIONS = {"reduce_sum": "sum", "reduce_max": "max", "reduce_min": "min", "reduce_prod": "prod", "psum": "sum"}
UNCHANGED = (
    "copy",
    "copy_p",
    "stop_gradient",
    "name",
    "convert_element_type",
    "reduce_precision",
    "optimization_barrier",
)


class CannotWriteError(ValueError):
    """A value that has no name, and that no expression of the grammar gives."""


@dataclass(frozen=True)
class Written:
    """An expression whose value, broadcast, is the one that is meant; `shape` is the expression's own.

    `base`: what it is when axes of length 1 are taken away or added; `kept`: the same with the axes kept, for a sum.
    `value`: that of a number; `count`: how many entries a sum has.
    """

    text: str
    shape: tuple[int, ...] = ()
    base: Written | None = None
    kept: Written | None = None
    value: float | None = None
    count: float = 0.0

    def laid_out(self, wanted: tuple[int, ...]) -> Written | None:
        """The same with axes of length 1 added or dropped; None where that does not give the shape."""
        if self.shape == wanted:
            return self
        if self.kept is not None and self.kept.shape == wanted:
            return self.kept
        base = self.base or self
        text = indexed(base.text, base.shape, wanted)
        return None if text is None else Written(text, wanted, base, count=self.count)

    def as_mean(self) -> Written:
        """A sum divided by how many entries it has."""
        text = ".mean(".join(self.text.rsplit(".sum(", 1))
        return replace(
            self,
            text=text,
            count=0.0,
            base=None if self.base is None else self.base.as_mean(),
            kept=None if self.kept is None else self.kept.as_mean(),
        )


@dataclass(frozen=True)
class OtherShape:
    """Both programs at another shape: the shapes of the author's values, and autodiff's constants, by number."""

    shapes: dict[int, tuple[int, ...]]
    constants: dict[int, Any]

    @classmethod
    def of(cls, author: Graph, reference: Graph) -> OtherShape:
        """Two traced programs."""
        shapes = {
            number: tuple(getattr(variable.aval, "shape", ()))
            for operation in author.everything()
            for number, variable in zip(operation.outputs, operation.eqn.outvars, strict=True)
        }
        graphs = [reference, *(body for operation in reference.everything() for body in operation.bodies)]
        return cls(shapes, {number: v for graph in graphs for number, v in graph.constants.items() if not np.ndim(v)})


def indexed(text: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> str | None:
    """An array with axes of length 1 added or dropped; None where that does not give the shape."""
    if shape == wanted:
        return text
    i, parts = 0, []
    for n in wanted:
        while i < len(shape) and shape[i] == 1 != n:
            parts.append("0")
            i += 1
        if i < len(shape) and shape[i] == n:
            parts.append(":")
            i += 1
        elif n == 1:
            parts.append("None")
        else:
            return None
    if any(n != 1 for n in shape[i:]):
        return None
    parts += ["0"] * (len(shape) - i)
    while parts and parts[-1] == ":":
        parts.pop()
    leading = len(list(itertools.takewhile(lambda part: part == ":", parts)))
    if leading > 1:
        parts = ["...", *parts[leading:]]
    return f"{bracketed(text)}[{', '.join(parts)}]" if parts else text


def plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the axes of length 1."""
    return tuple(n for n in shape if n != 1)


@dataclass(eq=False)
class Writer:
    """Writes autodiff's values in the names that there are.

    - `names`: text, shape and the values at the points, over the `steps` of a loop where there is one.
    - `numbers`: numbers that have a name; `sizes`: text of a size, the size, and what it is at another shape.
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
        self.memo: dict[int, Written | CannotWriteError] = {}
        self.depth = 0
        self.names = sorted(self.names, key=lambda each: (not each[0].isidentifier(), len(each[0])))
        self.sums = np.array([total(each[2][0]) for each in self.names])

    def value(self, number: int, point: int) -> np.ndarray:
        """Autodiff's value, over the steps of the place's loop."""
        number = self.reference.known(number)
        values = self.reference.values[point]
        value = values[number] if number in values else self.reference.constants[number]
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

    # ---------------------------------------------------------------------------------------------------- expressions

    def write(self, number: int) -> Written:
        """A value as an expression. Raises `CannotWriteError`."""
        number = self.reference.known(number)
        if number not in self.memo:
            self.depth += 1
            try:
                if self.depth > DEEPEST:
                    raise CannotWriteError("too deep")
                self.memo[number] = self.found(number) or self.made(number)
            except CannotWriteError as error:
                self.memo[number] = error
            finally:
                self.depth -= 1
        written = self.memo[number]
        if isinstance(written, CannotWriteError):
            raise written
        if len(written.text) > self.longest:
            raise CannotWriteError("too long")
        return written

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
            maker = self.reference.made.get(number)
            if maker is not None and maker[0].name in ("broadcast_in_dim", "reshape", *UNCHANGED):
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
        """A number by the size or the constant that it is, or in digits; `elsewhere`: what it is at another shape."""
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

    def made(self, number: int) -> Written:
        """A value as the operation that made it, with its operands written."""
        if number not in self.reference.made:
            raise CannotWriteError(f"a value that was given: {number}")
        operation, k = self.reference.made[number]
        if operation.kind != "operation" or (k and operation.name != "split"):
            raise CannotWriteError(operation.name)
        inputs = operation.inputs
        params, name = operation.eqn.params, operation.name
        shapes = [self.shape(each) for each in inputs]
        shape = self.shape(number)
        if name in UNCHANGED:
            written = self.write(inputs[0])
            boolean = self.value(inputs[0], 0).dtype.kind == "b" and self.value(number, 0).dtype.kind != "b"
            return Written(f"1.0 * {bracketed(written.text)}", written.shape) if boolean else written
        writer: Callable | None = getattr(self, f"write_{name.replace('-', '_')}", None)
        if name in INFIX and len(inputs) == 2:
            return self.infix(INFIX[name], *map(self.write, inputs))
        if name in CALLS:
            parts = [self.write(each) for each in inputs]
            function = CALLS[name].replace("%", self.library) if "%" in CALLS[name] else self.of_lax + CALLS[name][1:]
            text = f"{function}({', '.join(part.text for part in parts)})"
            return Written(text, np.broadcast_shapes(*(part.shape for part in parts)))
        if name in REDUCTIONS and all(isinstance(axis, int) for axis in params["axes"]):
            return self.reduced(REDUCTIONS[name], self.write(inputs[0]), shapes[0], params["axes"])
        if writer is None:
            raise CannotWriteError(name)
        if name == "split":
            return self.write_split(params, inputs, shapes, shape, k)
        return writer(params, inputs, shapes, shape)

    def infix(self, sign: str, one: Written, other: Written) -> Written:
        """Two expressions joined; + 0 and * 1 are left out."""
        shape = np.broadcast_shapes(one.shape, other.shape)
        a, b = one.text, other.text
        if sign == "*" and "1" in (a, b):
            return one if b == "1" else other
        if sign == "*" and "0" in (a, b):
            return Written("0")
        if sign in "+-" and b == "0":
            return one
        if sign == "+" and a == "0":
            return other
        if sign == "-" and a == "0":
            return Written(f"-{bracketed(b)}", shape)
        if sign == "/" and b == "1":
            return one
        if sign == "/" and one.count and other.value == one.count:
            return one.as_mean()
        if sign == "+" and b.startswith("-") and bracketed(b) == f"({b})":
            return self.infix("-", one, Written(negated(b), other.shape))
        if sign == "*":
            for x, y in ((a, b), (b, a)):
                if x.startswith("1 / "):
                    return Written(f"{bracketed(y)} / {x.removeprefix('1 / ')}", shape)
        left = a if sign in "+-" else factor(a) if sign in "*/" else bracketed(a)
        right = term(b) if sign in "+-" else factor(b) if sign == "*" else bracketed(b)
        return Written(f"{left} {sign} {right}", shape)

    def reduced(self, how: str, written: Written, shape: tuple[int, ...], axes: Sequence[int]) -> Written:
        """A sum, or another reduction, over some axes."""
        missing = len(shape) - len(written.shape)
        own = (1,) * missing + written.shape
        lost = [k for k in axes if own[k] == 1 and shape[k] > 1]
        there = [k - missing for k in axes if k >= missing]
        text, left = written.text, tuple(n for k, n in enumerate(own) if k not in axes)
        which = ""
        if there:
            which = "" if len(there) == len(written.shape) else str(there[0]) if len(there) == 1 else str(tuple(there))
            if any(written.shape[k] > 1 for k in there):
                text = f"{bracketed(text)}.{how}({which})"
            else:
                text = (
                    indexed(text, written.shape, tuple(n for k, n in enumerate(written.shape) if k not in there))
                    or text
                )
        n = float(np.prod([shape[k] for k in lost]))
        kept = None
        base = None if text == written.text or any(written.shape[k] > 1 for k in there) else written
        if text.endswith(")") and there and any(written.shape[k] > 1 for k in there):
            whole = text[:-1] + (", " if which else "") + "keepdims=True)"
            count = float(np.prod([written.shape[k] for k in there])) if how == "sum" else 0.0
            kept = Written(whole, tuple(1 if k in there else n for k, n in enumerate(written.shape)), count=count)
        result = Written(text, left[max(0, missing - len([k for k in axes if k < missing])) :], base, kept=kept,
                         count=kept.count if kept is not None else 0.0)  # fmt: skip
        return self.infix("*", Written(self.number(n), (), value=n), result) if how == "sum" and n != 1 else result

    # ----------------------------------------------------------------------------------------- operations of their own

    def write_neg(self, params, inputs, shapes, shape) -> Written:
        """−x"""
        written = self.write(inputs[0])
        return Written(negated(written.text), written.shape)

    def write_integer_pow(self, params, inputs, shapes, shape) -> Written:
        """xⁿ"""
        written, y = self.write(inputs[0]), params["y"]
        text = bracketed(written.text)
        power = text if abs(y) == 1 else f"{text}**{abs(y)}"
        return Written(power if y > 0 else f"1 / {power}", written.shape)

    def write_one_minus_square(self, params, inputs, shapes, shape) -> Written:
        """1 − x²"""
        written = self.write(inputs[0])
        return Written(f"1 - {bracketed(written.text)}**2", written.shape)

    def write_select_n(self, params, inputs, shapes, shape) -> Written:
        """One of two, by a mask."""
        if len(inputs) != 3 or self.value(inputs[0], 0).dtype.kind != "b":
            raise CannotWriteError("a choice of several")
        which, no, yes = (self.write(each) for each in inputs)
        shape = np.broadcast_shapes(which.shape, no.shape, yes.shape)
        if no.text == "0" and yes.text == "1":
            return Written(f"1.0 * {bracketed(which.text)}", shape)
        if no.text == "0":
            return Written(f"{factor(yes.text)} * {bracketed(which.text)}", shape)
        return Written(f"{self.library}.where({which.text}, {yes.text}, {no.text})", shape)

    def write_broadcast_in_dim(self, params, inputs, shapes, shape) -> Written:
        """Axes added; a value that is only repeated stays as it is."""
        written = self.write(inputs[0])
        own = (1,) * (len(shapes[0]) - len(written.shape)) + written.shape
        new = [1] * len(shape)
        for axis, n in zip(params["broadcast_dimensions"], own, strict=True):
            new[axis] = n
        first = next((k for k, n in enumerate(new) if n != 1), len(new))
        kept = written.kept is not None and written.kept.shape == tuple(new)
        laid = written.laid_out(tuple(new if kept else new[first:]))
        if laid is None:
            raise CannotWriteError("axes in another order")
        return laid

    def write_reshape(self, params, inputs, shapes, shape) -> Written:
        """The same entries in another shape."""
        written = self.write(inputs[0])
        if not written.shape:
            return written
        text = self.broadcast(written, shapes[0])
        if written.shape != shapes[0]:
            written = Written(text, shapes[0])
        laid = written.laid_out(shape)
        if laid is not None:
            return laid
        return Written(
            f"{bracketed(text)}.reshape({self.shape_text(shape).removeprefix('(').removesuffix(')')})", shape
        )

    write_squeeze = write_expand_dims = write_reshape

    def write_transpose(self, params, inputs, shapes, shape) -> Written:
        """Axes in another order."""
        written = self.write(inputs[0])
        if not written.shape:
            return written
        text = self.broadcast(written, shapes[0])
        order = tuple(params["permutation"])
        return Written(transposed(text) if len(shape) == 2 else f"{bracketed(text)}.transpose{order}", shape)

    def write_dot_general(self, params, inputs, shapes, shape) -> Written:
        """A product of matrices, or a sum of products over named axes."""
        (left, right), (left_batch, right_batch) = params["dimension_numbers"]
        a, b = (self.broadcast(self.write(each), s) for each, s in zip(inputs, shapes, strict=True))
        if not left_batch and len(left) == 1 and max(map(len, shapes)) <= 2:
            a = a if left[0] == len(shapes[0]) - 1 else transposed(a)
            b = b if right[0] == 0 else transposed(b)
            return Written(f"{bracketed(a)} @ {bracketed(b)}", shape)
        letters = iter("abcdefghijklmnopqrstuvwxyz")
        one, other = [next(letters) for _ in shapes[0]], [next(letters) for _ in shapes[1]]
        for i, j in [*zip(left_batch, right_batch, strict=True), *zip(left, right, strict=True)]:
            other[j] = one[i]
        out = [one[i] for i in left_batch] + [n for i, n in enumerate(one) if i not in (*left_batch, *left)]
        out += [n for j, n in enumerate(other) if j not in (*right_batch, *right)]
        equation = f'"{"".join(one)},{"".join(other)}->{"".join(out)}"'
        return Written(f"{self.library}.einsum({equation}, {a}, {b})", shape)

    def write_slice(self, params, inputs, shapes, shape) -> Written:
        """A part of an array; an end that is the array's is left open."""
        text = self.broadcast(self.write(inputs[0]), shapes[0])
        parts = []
        for start, end, step, n in zip(
            params["start_indices"], params["limit_indices"], params["strides"] or (1,) * len(shape), shapes[0],
            strict=True,
        ):  # fmt: skip
            last = "" if end == n else str(end - n) if n - end < end else str(end)
            parts.append(f"{start or ''}:{last}" + (f":{step}" if step > 1 else ""))
        while parts and parts[-1] == ":":
            parts.pop()
        return Written(f"{bracketed(text)}[{', '.join(parts)}]" if parts else text, shape)

    def write_pad(self, params, inputs, shapes, shape) -> Written:
        """An array with more around it."""
        text, fill = self.broadcast(self.write(inputs[0]), shapes[0]), self.write(inputs[1]).text
        widths = params["padding_config"]
        if any(inner for *_, inner in widths) or fill != "0":
            raise CannotWriteError("pad")
        if any(low < 0 or high < 0 for low, high, _ in widths):
            cut = [f"{max(-low, 0) or ''}:{min(high, 0) or ''}" for low, high, _ in widths]
            text = f"{bracketed(text)}[{', '.join(cut)}]"
        grown = tuple((max(low, 0), max(high, 0)) for low, high, _ in widths)
        return Written(f"{self.library}.pad({text}, {grown})" if any(map(any, grown)) else text, shape)

    def write_concatenate(self, params, inputs, shapes, shape) -> Written:
        """Arrays behind one another."""
        parts = [self.broadcast(self.write(each), s) for each, s in zip(inputs, shapes, strict=True)]
        axis = params["dimension"]
        return Written(f"{self.library}.concatenate([{', '.join(parts)}]{f', {axis}' if axis else ''})", shape)

    def write_rev(self, params, inputs, shapes, shape) -> Written:
        """An array backwards along some axes."""
        axes = params["dimensions"]
        index = ", ".join("::-1" if k in axes else ":" for k in range(max(axes) + 1))
        return Written(f"{bracketed(self.broadcast(self.write(inputs[0]), shapes[0]))}[{index}]", shape)

    def write_cumsum(self, params, inputs, shapes, shape) -> Written:
        """Running sums, from either end."""
        text, axis = self.broadcast(self.write(inputs[0]), shapes[0]), params["axis"]
        if not params["reverse"]:
            return Written(f"{self.library}.cumsum({text}, {axis})", shape)
        flip = f"[{', '.join([':'] * axis + ['::-1'])}]"
        return Written(f"{self.library}.cumsum({bracketed(text)}{flip}, {axis}){flip}", shape)

    def write_split(self, params, inputs, shapes, shape, k=0) -> Written:
        """One of the parts that an array is divided into."""
        start, axis = sum(params["sizes"][:k]), params["axis"]
        index = ", ".join([":"] * axis + [f"{start or ''}:{start + params['sizes'][k]}"])
        return Written(f"{bracketed(self.broadcast(self.write(inputs[0]), shapes[0]))}[{index}]", shape)

    def write_clamp(self, params, inputs, shapes, shape) -> Written:
        """An array between two bounds."""
        low, x, high = map(self.write, inputs)
        return Written(f"{self.library}.clip({x.text}, {low.text}, {high.text})", x.shape)

    def write_gather(self, params, inputs, shapes, shape) -> Written:
        """Rows by their numbers."""
        numbers = params["dimension_numbers"]
        rows = tuple(range(len(shapes[1]) - 1, len(shape)))
        if not (
            numbers.collapsed_slice_dims == (0,) == numbers.start_index_map
            and numbers.offset_dims == rows
            and params["slice_sizes"] == (1, *shapes[0][1:])
        ):
            raise CannotWriteError("gather")
        which = self.write(inputs[1]).laid_out(shapes[1][:-1])
        if which is None:
            raise CannotWriteError("gather")
        return Written(f"{bracketed(self.broadcast(self.write(inputs[0]), shapes[0]))}[{which.text}]", shape)

    def write_scatter_add(self, params, inputs, shapes, shape) -> Written:
        """Rows added to by their numbers."""
        numbers = params["dimension_numbers"]
        which = self.write(inputs[1]).laid_out(shapes[1][:-1])
        if (
            which is None
            or not numbers.inserted_window_dims == (0,) == numbers.scatter_dims_to_operand_dims
            or numbers.update_window_dims != tuple(range(len(shapes[1]) - 1, len(shapes[2])))
        ):
            raise CannotWriteError("scatter-add")
        base = self.write(inputs[0])
        first = (
            self.broadcast(base, shapes[0]) if base.text != "0" else f"{self.library}.zeros({self.shape_text(shape)})"
        )
        return Written(f"{bracketed(first)}.at[{which.text}].add({self.write(inputs[2]).text})", shape)

    def write_conv_general_dilated(self, params, inputs, shapes, shape) -> Written:
        """A convolution, with every option that is not the default."""
        x, kernel = (self.broadcast(self.write(each), s) for each, s in zip(inputs, shapes, strict=True))
        specs = []
        for spec, letters in zip(params["dimension_numbers"], ("NC", "OI", "NC"), strict=True):
            names = dict(
                zip(spec, letters + "DHW"[-len(spec) + 2 :] if len(spec) < 5 else letters + "DHW", strict=True)
            )
            specs.append("".join(names[k] for k in range(len(spec))))
        options = [str(tuple(params["window_strides"])), str(tuple(map(tuple, params["padding"])))]
        for name in ("lhs_dilation", "rhs_dilation"):
            options += [f"{name}={tuple(params[name])}"] if any(n != 1 for n in params[name]) else []
        options.append(f"dimension_numbers={tuple(specs)}")
        for name in ("feature_group_count", "batch_group_count"):
            options += [f"{name}={params[name]}"] if params[name] != 1 else []
        return Written(f"{self.of_lax}.conv_general_dilated({x}, {kernel}, {', '.join(options)})", shape)

    def write_iota(self, params, inputs, shapes, shape) -> Written:
        """0, 1, 2, …"""
        axis, n = params["dimension"], len(shape)
        behind = n - axis - 1
        return Written(f"{self.library}.arange({shape[axis]}){'[:' + ', None' * behind + ']' if behind else ''}",
                       (shape[axis],) + (1,) * behind)  # fmt: skip


@lru_cache(maxsize=10_000)
def factor(text: str) -> str:
    """An expression as a factor."""
    node = ast.parse(text, mode="eval").body
    plain = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div | ast.Pow)
    return text if plain else bracketed(text)


@lru_cache(maxsize=10_000)
def term(text: str) -> str:
    """An expression after a minus."""
    node = ast.parse(text, mode="eval").body
    return text if isinstance(node, ast.BinOp) and not isinstance(node.op, ast.Add | ast.Sub) else bracketed(text)


def negated(text: str) -> str:
    """An expression with the other sign."""
    bare = text.removeprefix("-")
    return bare if text.startswith("-") and factor(bare) == bare else f"-{factor(text)}"


def total(value: Any) -> float:
    """A number that tells a value from others, whatever its layout and sign."""
    value = np.asarray(value)
    return float(np.sum(np.abs(value), where=np.isfinite(value))) if value.dtype.kind in "fbiu" else np.nan


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays are one value; NaN is none."""
    scale = float(np.max(np.abs(other), initial=0.0)) if other.dtype.kind != "b" else 1.0
    return bool(np.all(np.abs(1.0 * one - 1.0 * other) <= SAME * scale)) if np.isfinite(scale) else False


def writer_at(scope: Scope, values: Sequence[dict[int, Any]], other: OtherShape | None) -> Writer:
    """The writer for a place of the author's source; `values` are the author's, with the place's own mended."""
    aligned, place = scope.aligned, scope.place
    steps = aligned.steps(place.number)

    def value(atom: Atom, point: int) -> np.ndarray | None:
        number = aligned.number(atom, place.operations[0])
        if number is None:
            found, inside = np.asarray(atom.fixed[point]), False
        elif number not in values[point]:
            return None
        else:
            found, inside = np.asarray(values[point][number]), bool(aligned.loops(number))
        if steps and not inside:
            return np.broadcast_to(found, (steps, *found.shape))
        return found if bool(steps) == inside else None

    names = []
    for atom in [*scope.atoms, *scope.borrowed, *scope.integers]:
        found = [value(atom, point) for point in range(len(values))]
        if all(each is not None for each in found):
            names.append((atom.text, tuple(atom.shape), found))
    modules = place.mark.source.modules
    lax = next((text if m is jax.lax else f"{text}.lax" for text, m in modules.items() if m in (jax, jax.lax)), "")
    sizes = sizes_in(scope, other) if other is not None else []
    return Writer(aligned.reference, names, scope.numbers, sizes, other, steps, scope.jnp, lax)


def sizes_in(scope: Scope, other: OtherShape) -> list[tuple[str, float, float]]:
    """Sizes of the variables and products of them: text, size here, size at the other shape."""
    found: dict[tuple[float, float], str] = {}
    for text, atom, axis in scope.sizes:
        there = None if atom.place is None else other.shapes.get(atom.place.number)
        if there is not None and len(there) == len(atom.shape):
            found.setdefault((atom.shape[axis], there[axis]), text)
    for count in (2, 3):
        for some in itertools.combinations(list(found.items())[:8], count):
            n, m = (float(np.prod(each)) for each in zip(*(pair for pair, _ in some), strict=True))
            found.setdefault((n, m), " * ".join(text for _, text in some))
    return [(text, *pair) for pair, text in found.items()]
