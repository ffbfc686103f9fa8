"""A program in float64. A trace fixes its dtypes, so the program is evaluated anew with every float widened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxnet.program.calls import OPERANDS, as_closed, bind
from jaxnet.program.evaluate import Evaluation
from jaxnet.program.graph import Graph, Operation, graph_of

DTYPES = ("preferred_element_type", "out_dtype")  # parameters that name the dtype of a result


def is_float(value: Any) -> bool:
    """Whether a value is a float or complex array."""
    return jnp.issubdtype(jnp.result_type(value), jnp.inexact)


def wider(value: Any) -> Any:
    """A float value in float64, a complex one in complex128, any other as it is."""
    if isinstance(value, int | float | complex):  # a literal, which may have a dtype
        value = np.asarray(value, getattr(value, "dtype", None))
    if not hasattr(value, "dtype") or jnp.issubdtype(value.dtype, jax.dtypes.extended) or not is_float(value):
        return value
    return jnp.asarray(value).astype(wide_dtype(value.dtype))


def wide_dtype(dtype: Any) -> Any:
    """The widest dtype of the same kind."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        return dtype
    return jnp.complex128 if jnp.issubdtype(dtype, jnp.complexfloating) else jnp.float64


class Widening(Evaluation):
    """Computes in float64 throughout. A kernel or a callback runs in its own dtype, and raises where it takes no other.

    A reducer is an operand of its operation, so its own program is widened too.
    """

    def value(self, value: Any) -> Any:
        """Every value in float64."""
        return wider(value)

    def operation(self, operation: Operation, values: Sequence) -> Sequence:
        """An operation in float64, where its parameters name a dtype too."""
        eqn, name = operation.eqn, operation.eqn.primitive.name
        if name == "convert_element_type":
            return [values[0].astype(wide_dtype(eqn.params["new_dtype"]))]
        if name == "reduce_precision":
            return values
        if name == "bitcast_convert_type":  # its bits are those of the dtype that it was traced in
            return bind(eqn, [values[0].astype(eqn.invars[0].aval.dtype)])
        changed = {
            key: jnp.dtype(wide_dtype(eqn.params[key])) for key in DTYPES if eqn.params.get(key) is not None
        }  # fmt: skip
        if name in OPERANDS:
            changed |= widened_operands(eqn)
        return bind(eqn.replace(params={**eqn.params, **changed}) if changed else eqn, values)


def widened_operands(eqn: Any) -> dict[str, Any]:
    """The parameters of an equation that hold a reducer, with the reducer in float64."""
    changed: dict[str, Any] = {}
    for key, program in eqn.params.items():
        if isinstance(program, ClosedJaxpr | Jaxpr):
            consts = eqn.params.get(key.replace("jaxpr", "consts"), ())
            whole = program if isinstance(program, ClosedJaxpr) else ClosedJaxpr(program, consts)
            run = widened_program(whole)
            shapes = (jax.ShapeDtypeStruct(v.aval.shape, wide_dtype(v.aval.dtype)) for v in whole.jaxpr.invars)
            traced = as_closed(jax.make_jaxpr(lambda *xs, run=run: tuple(run(*xs)))(*shapes))
            changed[key] = traced if isinstance(program, ClosedJaxpr) else traced.jaxpr
            if key.replace("jaxpr", "consts") in eqn.params:
                changed[key.replace("jaxpr", "consts")] = tuple(traced.consts)
            if "computation" in eqn.params:
                changed["computation"] = lambda *xs, run=run: tuple(run(*jax.tree.leaves(xs)))
    return changed


def widened(graph: Graph) -> Callable:
    """A graph as a function of its flat inputs that computes in float64; it can be differentiated."""
    return lambda *args: Widening().run(graph, args)


def widened_program(program: ClosedJaxpr) -> Callable:
    """`program` as a function of its flat inputs that computes in float64 throughout; it can be differentiated.

    Rules, calls and loops in it are opened. Call it where float64 is on.
    Raises `UnknownPrimitiveError` for a primitive with programs inside that is not known.

    >>> import jax, jax.numpy as jnp
    >>> program = jax.make_jaxpr(lambda x: x.astype(jnp.float32) / 3)(jnp.ones(2))
    >>> with jax.enable_x64(True):
    ...     print(widened_program(program)(jnp.ones(2))[0].dtype)
    float64
    """
    return widened(graph_of(program))
