"""Values of a backward program written as the user would write them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from jaxnet.checking.diagnose.tape import Op, Tape

LINE = 90
_INFIX = {"add": ("+", 1), "add_any": ("+", 1), "sub": ("-", 1), "mul": ("*", 2), "div": ("/", 2)}
_COMPARE = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!="}
_TRANSPARENT = {"reshape", "squeeze", "expand_dims", "expand", "broadcast_in_dim", "convert_element_type", "copy",
                "copy_p", "step", "carry", "stop_gradient"}  # fmt: skip
_CALLED = {"logistic": "sigmoid", "reduce_max": "max", "reduce_min": "min", "dynamic_slice": "slice", "rev": "flip",
           "scatter-add": "scatter_add", "conv_general_dilated": "conv", "reduce_window_sum": "window_sum"}  # fmt: skip


class Namer:
    """Names the values of one tape: arguments, what the user's lines assign, and short expressions of these."""

    def __init__(self, tape: Tape):
        self.tape = tape
        self.names = dict(tape.names)
        last: dict[tuple, int] = {}
        for k, op in enumerate(tape.ops):
            if op.line.assigns and tape.forward.issuperset(op.outputs) and op.name not in ("carry", "step", "stack"):
                last[(op.line.file, op.line.number, op.frame)] = k
        for k in last.values():
            op = tape.ops[k]
            if len(op.outputs) == 1:
                self.names.setdefault(op.outputs[0], op.line.assigns)

    def leaf(self, path: str) -> str:
        """How a leaf of the arguments is called."""
        return self.tape.names.get(self.tape.args.get(path, -1), path)

    def expr(self, number: int, depth: int = 6) -> str:
        """The value as an expression in what has a name, less deep where it would be long."""
        return shortest(lambda d: self._expr(number, d), depth)[0]

    def _expr(self, number: int, depth: int) -> tuple[str, int]:
        if number in self.names:
            return self.names[number], 9
        tape = self.tape
        if number not in tape.maker:
            return _constant(tape.values[number]), 9
        op = tape.ops[tape.maker[number]]
        if op.name in _TRANSPARENT or op.name == "stack":
            # the last of what is stacked: the first may be what the loop began with
            inner, strength = self._expr(op.inputs[-1] if op.name == "stack" else op.inputs[0], depth)
            if op.name == "carry" and (inner.isidentifier() or inner.endswith(")")):
                return f"{inner}[t{'+' if tape.linear[number] else '-'}1]", 9
            return inner, strength
        if depth <= 0:
            return ("δ" if tape.linear[number] else "…"), 9
        return self._operation(op, op.inputs, depth)

    def operation(self, op: Op, inputs: Sequence[int], depth: int) -> tuple[str, int]:
        """What an operation does to these values, with the strength of its outermost sign."""
        return shortest(lambda d: self._operation(op, inputs, d), depth)

    def _operation(self, op: Op, inputs: Sequence[int], depth: int) -> tuple[str, int]:
        name = op.name
        if name == "div" and (averaged := self.averaged(inputs)) is not None:
            return f"mean({self._expr(averaged, depth - 1)[0]})", 9
        if name in _INFIX and len(inputs) == 2:
            sign, strength = _INFIX[name]
            a, a_strength = self._expr(inputs[0], depth - 1)
            b, b_strength = self._expr(inputs[1], depth - 1)
            if sign == "+" and "0" in (a, b):
                return (b, b_strength) if a == "0" else (a, a_strength)
            a = f"({a})" if a_strength < strength else a
            b = f"({b})" if b_strength < strength + (name in ("sub", "div")) else b
            return f"{a} {sign} {b}", strength
        parts = [self._expr(i, depth - 1) for i in inputs]
        bare = [p for p, _ in parts]
        tight = [p if s >= 3 else f"({p})" for p, s in parts]
        if name == "max" and "-inf" in bare:
            return parts[1 - bare.index("-inf")]
        if name in _COMPARE:
            return f"({bare[0]} {_COMPARE[name]} {bare[1]})", 9
        if name == "neg":
            return f"-{tight[0]}", 1
        if name == "integer_pow":
            return f"{tight[0]}**{op.params['y']}", 3
        if name == "square":
            return f"{tight[0]}**2", 3
        if name == "transpose":
            return transposed(tight[0]), 9
        if name == "dot_general":
            return _product(op, tight, [np.ndim(self.tape.values[i]) for i in inputs]), 2
        if name in ("reduce_sum", "reduce_keep"):
            return f"sum({bare[0]})", 9
        if name == "select_n" and len(bare) == 3:
            return f"where({bare[0]}, {bare[2]}, {bare[1]})", 9
        called = op.params.get("name", name) if op.eqn is not None and name in ("jit", "pjit") else name
        return f"{_CALLED.get(called, called)}({', '.join(bare)})", 9

    def averaged(self, inputs: Sequence[int]) -> int | None:
        """What is averaged, where the operands are a sum and the number of its terms."""
        tape = self.tape
        over = tape.values[inputs[1]]
        if np.ndim(over) or (inputs[1] in tape.maker and tape.depends[inputs[1]]):
            return None
        number = inputs[0]
        while number in tape.maker and tape.ops[tape.maker[number]].name in _TRANSPARENT:
            number = tape.ops[tape.maker[number]].inputs[0]
        if number not in tape.maker or tape.ops[tape.maker[number]].name not in ("reduce_sum", "reduce_keep"):
            return None
        op = tape.ops[tape.maker[number]]
        shape = np.shape(tape.values[op.inputs[0]])
        return op.inputs[0] if np.prod([shape[a] for a in op.params["axes"]]) == over else None


def shortest(said: Callable[[int], tuple[str, int]], depth: int) -> tuple[str, int]:
    """The words at this depth, or at the greatest at which they are no longer than a line."""
    for less in range(depth, 2, -1):
        if len((words := said(less))[0]) <= LINE:
            return words
    return said(2)


def _constant(value) -> str:
    if np.ndim(value) == 0:
        return f"{np.asarray(value).item():.6g}" if np.asarray(value).dtype.kind in "fiu" else str(value)
    flat = np.ravel(value)
    if flat.size and np.asarray(value).dtype.kind in "fiu" and np.all(flat == flat[0]):
        return f"{flat[0].item():.6g}"
    return "constant"


def _product(op: Op, parts: Sequence[str], ndims: Sequence[int]) -> str:
    (left, right), (batch, _) = op.params["dimension_numbers"]
    if not left:
        return f"outer({parts[0]}, {parts[1]})"
    free = len(batch)
    if len(left) == 1 and all(n - free <= 2 for n in ndims):
        a = parts[0] if left[0] == ndims[0] - 1 or ndims[0] - free == 1 else transposed(parts[0])
        b = parts[1] if ndims[1] - free == 1 or right[0] != ndims[1] - 1 else transposed(parts[1])
        return f"{a} @ {b}"
    return f"tensordot({parts[0]}, {parts[1]})"


def transposed(term: str) -> str:
    """A term with its transpose taken, or given back."""
    return term.removesuffix(".T") if term.endswith(".T") else f"{term}.T"
