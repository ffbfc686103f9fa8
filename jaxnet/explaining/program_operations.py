"""The operations of a function without source: those of its program, by the names that an author calls them by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxnet.program.calls import bind
from jaxnet.program.evaluate import Evaluation
from jaxnet.program.graph import Operation, graph_of

NAMES = {
    "add": "add", "add_any": "add", "sub": "subtract", "mul": "multiply", "div": "divide", "neg": "negative",
    "max": "maximum", "min": "minimum", "gt": "greater", "lt": "less", "ge": "greater_equal", "le": "less_equal",
    "eq": "equal", "ne": "not_equal", "logistic": "sigmoid", "reduce_sum": "sum", "reduce_max": "max",
    "reduce_min": "min", "broadcast_in_dim": "broadcast_to", "copy_p": "copy",
}  # fmt: skip
"""Functions of `jax.numpy` by the primitive; a primitive that is not here has its own name."""

Kept = Callable[[str, Any, tuple, dict[str, Any]], Any]


class HandedOn(Evaluation):
    """Runs a program, and hands each operation on: its name, result, operands and options."""

    def __init__(self, kept: Kept, functions: Sequence[str]):
        self.kept, self.functions = kept, functions

    def opens(self, operation: Operation) -> bool:
        """Whether a rule is opened: one of a known function is that function, relu."""
        return operation.kind == "rule" and operation.name.strip("_") not in self.functions

    def operation(self, operation: Operation, values: Sequence) -> Sequence:
        outs = bind(operation.eqn, values)
        plain = [
            each.item() if isinstance(each, np.ndarray | np.generic) and not each.ndim else each for each in values
        ]
        name, params = operation.name.strip("_"), operation.eqn.params
        args, options = tuple(plain), {"axis": params["axes"]} if name.startswith("reduce_") else {}
        if name == "integer_pow":
            name, args = "power", (*args, params["y"])
        elif name == "select_n" and len(args) == 3:
            name, args = "where", (args[0], args[2], args[1])
        elif name == "dot_general":
            name, args = self.product(values, params["dimension_numbers"])
        self.kept(NAMES.get(name, name), outs[0] if len(outs) == 1 else outs, args, options)
        return outs

    def product(self, values: Sequence, dimensions: Any) -> tuple[str, tuple]:
        """A product of matrices and vectors as such, an operand transposed where it is; any other by its name."""
        (contracted, batch), sides = dimensions, list(values)
        if any(batch) or [len(each) for each in contracted] != [1, 1] or any(each.ndim > 2 for each in values):
            return "dot_general", tuple(values)
        for i, inner in enumerate((values[0].ndim - 1, 0)):
            if contracted[i][0] != inner:
                sides[i] = self.kept("transpose", values[i].T, (values[i],), {})
        return "matmul", tuple(sides)


def from_program(f: Callable, kept: Kept, functions: Sequence[str]) -> Callable:
    """A function that runs the program of another, and hands its operations on. functions: those not opened."""

    def run(*args: Any, **options: Any) -> Any:
        leaves, structure = jax.tree.flatten((args, options))
        arrays = [i for i, each in enumerate(leaves) if isinstance(each, jax.Array | np.ndarray)]

        def of_arrays(*values):
            filled = dict(zip(arrays, values, strict=True))
            args, options = structure.unflatten([filled.get(i, each) for i, each in enumerate(leaves)])
            return f(*args, **options)

        given = [leaves[i] for i in arrays]
        program, shapes = jax.make_jaxpr(of_arrays, return_shape=True)(*given)
        outs = HandedOn(kept, functions).run(graph_of(program), given)
        return jax.tree.unflatten(jax.tree.structure(shapes), outs)

    return run
