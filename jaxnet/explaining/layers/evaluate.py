"""The equations of a layer computed in float64, held against what the layer gives and against `jax.grad`.

Forward steps run in NumPy, and once more in `jax.numpy` with a zero added to each: by these zeros `jax.grad` gives the
derivative of every quantity in between, which the backward steps must equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.explaining.layers.opening import Record
from jaxnet.explaining.layers.steps import Equations, Step, Values
from jaxnet.explaining.ulp import ulps
from jaxnet.layer import Untrained, is_untrained

LARGEST = 1 << 24  # numbers of a layer's quantities, beyond which they are not computed once more


@dataclass(frozen=True)
class Found:
    """The value of a step as it is shown, how far it is from autodiff's, and the lines below it."""

    value: np.ndarray
    ulp: float | None
    notes: tuple[str, ...] = ()


def wide(value: Any) -> Any:
    """A float in float64; what is whole stays."""
    value = np.asarray(value)
    return value.astype(np.float64) if jnp.issubdtype(value.dtype, jnp.inexact) else value


def named_params(tree: Any) -> dict[str, Any]:
    """A layer's parameters by name; those of what is not trained by their own."""
    found: dict[str, Any] = {}
    for name, value in dict(tree or {}).items():
        if isinstance(value, Untrained):
            found |= dict(value.value)
        elif not is_untrained(value):
            found[name] = value
    return found


def inputs_of(record: Record) -> dict[str, Any]:
    """What a record takes: x, or of several x0, x1, …"""
    if len(record.xs) == 1:
        return {"x": record.x}
    return {f"x{i}": each for i, each in enumerate(record.xs)}


def own_values(record: Record) -> dict[str, tuple[Any, Any]]:
    """What the layer itself gives, by the names of `Step.gives`, each with autodiff's value where there is one."""
    found: dict[str, tuple[Any, Any]] = {"out": (record.out, None)}
    expected = named_params(record.reference[0])
    for name, value in named_params(record.grads).items():
        found[name] = (value, expected.get(name))
    if len(record.dxs) == 1 and record.dxs[0] is not None:
        found["dx"] = (record.dxs[0], record.reference[1])
    else:
        found |= {f"dx{i}": (each, None) for i, each in enumerate(record.dxs)}
    return found


def evaluated(record: Record, equations: Equations) -> dict[str, Found]:
    """Each step's value, ulp and notes, by key. Too large a layer: of the steps that the layer itself gives."""
    own = own_values(record)
    size = equations.numbers + sum(np.size(each) for each in (*record.xs, *(value for value, _ in own.values())))
    if size > LARGEST:
        return {
            step.key: Found(step.shown(np.asarray(own[step.gives][0])), against(own[step.gives]))
            for step in (*equations.forward, *equations.backward)
            if step.gives
        }
    known = {name: wide(value) for name, value in (inputs_of(record) | named_params(record.params)).items()}
    v = Values(np, known | equations.options | {"d_out": wide(record.d_out)})
    with np.errstate(invalid="ignore", divide="ignore"), jax.enable_x64(True):
        for step in (*equations.forward, *equations.backward):
            v.known[step.key] = step.of(v)
        slopes = slopes_of(known, equations, v)
        made = {step.key: found(step, v, own, slopes, record) for step in (*equations.forward, *equations.backward)}
    # A wrong equation forward is seen at the first error that follows from it.
    first, last = equations.backward[0].key, made[equations.forward[-1].key].ulp or 0.0
    made[first] = replace(made[first], ulp=max(made[first].ulp or 0.0, last))
    return made


def against(pair: tuple[Any, Any]) -> float | None:
    """How far the layer's value is from autodiff's."""
    return None if pair[1] is None else ulps(*pair)


def found(step: Step, v: Values, own: dict[str, tuple[Any, Any]], slopes: dict[str, Any], record: Record) -> Found:
    """One step's value and how far it is from whatever must be the same."""
    value = np.asarray(v.known[step.key])
    by = step.by or (step.key[1:] if step.key.startswith("d") else "")
    dtype = np.asarray(record.out).dtype
    apart: list[float] = []
    given = own.get(step.gives)
    beside = largest([record.d_out, *named_params(record.grads).values()]) if step.gives not in ("", "out") else 0.0
    if given is not None:
        mine = np.asarray(given[0])
        apart.append(ulps(value.reshape(mine.shape).astype(mine.dtype), mine, beside))
        if given[1] is not None:
            apart.append(ulps(mine, given[1], beside))
        value = mine
    elif value.dtype == np.float64:
        value = value.astype(dtype)
    if by in slopes:
        slope = np.asarray(slopes[by])
        apart.append(ulps(np.asarray(value).reshape(slope.shape), slope.astype(value.dtype), beside))
    return Found(step.shown(value), max(apart, default=None, key=nan_last), tuple(step.notes(v)))


def largest(arrays: Sequence[Any]) -> float:
    """The largest entry of all."""
    return max((float(np.abs(wide(each)).max(initial=0)) for each in arrays), default=0.0)


def nan_last(value: float) -> float:
    """NaN counts as the farthest."""
    return float("inf") if np.isnan(value) else value


def slopes_of(known: dict[str, Any], equations: Equations, v: Values) -> dict[str, Any]:
    """∂C/∂ of every forward step, parameter and input, by jax.grad of the forward steps."""
    floats = {name: value for name, value in known.items() if value.dtype == np.float64}
    whole = {name: value for name, value in known.items() if name not in floats}
    probes = {step.key: np.zeros(np.shape(v.known[step.key])) for step in equations.forward}

    def cost(floats, zeros, d_out):
        """⟨d_out, out⟩, whose gradient by out is d_out."""
        w = Values(jnp, {**floats, **whole, **equations.options}, zeros)
        value = None
        for step in equations.forward:
            value = step.of(w)
            w.known[step.key] = value = value + zeros[step.key] if step.probed else value
        return jnp.sum(jnp.asarray(value).reshape(d_out.shape) * d_out)

    by_input, by_probe = jax.jit(jax.grad(cost, argnums=(0, 1)))(floats, probes, v.known["d_out"])
    return jax.tree.map(np.asarray, by_probe | by_input)
