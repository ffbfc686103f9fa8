"""A traced program in float64: its dtypes are fixed by the trace, so it is evaluated anew, every float widened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from jaxnet.checking.program import as_branch, bind, inner, scan_counts, while_loop


def is_float(value: Any) -> bool:
    """Whether a value is a float or complex array."""
    return jnp.issubdtype(jnp.result_type(value), jnp.inexact)


def wider(value: Any) -> Any:
    """A float value in float64, a complex one in complex128, any other as it is."""
    if not hasattr(value, "dtype") or jnp.issubdtype(value.dtype, jax.dtypes.prng_key) or not is_float(value):
        return value
    return jnp.asarray(value).astype(wide_dtype(value.dtype))


def wide_dtype(dtype: Any) -> Any:
    """The widest dtype of the same kind."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        return dtype
    return jnp.complex128 if jnp.issubdtype(dtype, jnp.complexfloating) else jnp.float64


def widened_program(program: ClosedJaxpr) -> Callable:
    """`program` as a function of its flat inputs that computes in float64 throughout; it can be differentiated.

    Custom rules and jits in it are opened; a kernel that computes in a dtype of its own runs in that, and raises
    where it does not take another.
    """

    def run(*args):
        env: dict = {}
        env.update(zip(program.jaxpr.constvars, map(wider, program.consts), strict=True))
        env.update(zip(program.jaxpr.invars, map(wider, args), strict=True))

        def read(atom):
            return wider(np.asarray(atom.val)) if isinstance(atom, Literal) else env[atom]

        for eqn in program.jaxpr.eqns:
            outs = equation(eqn, [read(atom) for atom in eqn.invars])
            env.update(zip(eqn.outvars, map(wider, outs), strict=True))
        return [read(atom) for atom in program.jaxpr.outvars]

    return run


def equation(eqn: Any, values: Sequence) -> Sequence:
    """One equation's results in float64."""
    name, subs = eqn.primitive.name, inner(eqn)
    if name == "convert_element_type":
        return [values[0].astype(wide_dtype(eqn.params["new_dtype"]))]
    if name == "reduce_precision":
        return values
    if name in LOOPS:
        return LOOPS[name](eqn, values)
    if len(subs) == 1 and len(subs[0].jaxpr.invars) == len(values) and name != "pallas_call":
        return widened_program(subs[0])(*values)
    if eqn.params.get("preferred_element_type") is not None:
        preferred = wide_dtype(eqn.params["preferred_element_type"])
        return bind(eqn.replace(params={**eqn.params, "preferred_element_type": jnp.dtype(preferred)}), values)
    return bind(eqn, values)


def scan(eqn: Any, values: Sequence) -> Sequence:
    """A scan over the widened body."""
    consts, carries = scan_counts(eqn)
    body = widened_program(eqn.params["jaxpr"])

    def one(carry, xs):
        out = body(*values[:consts], *carry, *xs)
        return tuple(out[:carries]), tuple(out[carries:])

    first, xs = tuple(values[consts : consts + carries]), tuple(values[consts + carries :])
    length, reverse = eqn.params["length"], eqn.params["reverse"]
    carry, ys = jax.lax.scan(one, first, xs, length=length, reverse=reverse)
    return [*carry, *ys]


def loop(eqn: Any, values: Sequence) -> Sequence:
    """A while loop over the widened condition and body."""
    a, b = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    condition, body = widened_program(eqn.params["cond_jaxpr"]), widened_program(eqn.params["body_jaxpr"])
    asked, fixed, carry = values[:a], values[a : a + b], values[a + b :]
    return while_loop(lambda *c: condition(*asked, *c)[0], lambda *c: body(*fixed, *c), carry)


def cond(eqn: Any, values: Sequence) -> Sequence:
    """A switch over the widened branches."""
    branches = [as_branch(widened_program(branch)) for branch in eqn.params["branches"]]
    return jax.lax.switch(values[0], branches, *values[1:])


LOOPS: dict[str, Callable] = {"scan": scan, "while": loop, "cond": cond}
