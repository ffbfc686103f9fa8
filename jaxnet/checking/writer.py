"""Writes autodiff's values as expressions: by a name, else as the operation that made them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from jaxnet.checking.edits import bracketed, transposed
from jaxnet.checking.naming import UNCHANGED, Naming
from jaxnet.checking.written import (
    CannotWriteError,
    Written,
    factor,
    indexed,
    negated,
    term,
)

DEEPEST = 60  # operations inside one another


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


class Writer(Naming):
    """Writes autodiff's values as expressions in the names that there are."""

    @cached_property
    def memo(self) -> dict[int, Written | CannotWriteError]:
        """Texts that were written, and values that could not be."""
        return {}

    depth = 0

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

    def made(self, number: int) -> Written:
        """A value as the operation that made it, with its operands written."""
        if number not in self.reference.graph.made_by:
            raise CannotWriteError(f"a value that was given: {number}")
        operation = self.reference.graph.made_by[number]
        k = operation.outputs.index(number)
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
        grown = tuple((int(max(low, 0)), int(max(high, 0))) for low, high, _ in widths)
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
