"""Why Wᵀ? Seven answers in the order of asking, each by the network's own numbers."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.backprop import own_weight
from jaxnet.explaining.lines import Chain
from jaxnet.explaining.model import Adjoint, Nudge, Orthogonal, Paths, SentBack, WholeRows, WhyTranspose
from jaxnet.explaining.numbering import NumberedLayer
from jaxnet.explaining.observe import Observed
from jaxnet.readings import product

NUDGE = 0.001
STEP = 0.1
SINGULAR = 1e7  # condition number beyond which an inverse says nothing in float32


def wide(tree: Any) -> Any:
    """Floats in float64, precise enough for a nudge of a thousandth."""
    return jax.tree.map(
        lambda t: jnp.asarray(t, jnp.float64) if jnp.issubdtype(jnp.asarray(t).dtype, jnp.floating) else t, tree
    )


def cost_from(observed: Observed, index: int, values: list[np.ndarray]) -> tuple[list[float], list[np.ndarray]]:
    """C, and what layer `index` gives, for other inputs of that layer: the network run on from there, in float64."""
    with jax.enable_x64(True):
        loss_params = () if observed.loss.init is None else wide(observed.params[1])
        rest = [(item.layer, wide(item.params)) for item in observed.items[index:]]
        y = wide(jnp.asarray(observed.y))
        weight = own_weight(observed.loss, y)

        def run(value, y):
            firsts = []
            for layer, params in rest:
                value, _ = layer.forward(params, value)
                firsts.append(value)
            return observed.loss.turn(loss_params, value, y, weight, product)[0], firsts[0]

        costs, outs = jax.jit(jax.vmap(run, (0, None)))(
            jnp.stack([jnp.asarray(value, jnp.float64) for value in values]), y
        )
        return [float(cost) for cost in costs], [np.asarray(out) for out in outs]


def why_transpose(chain: Chain, place: NumberedLayer) -> WhyTranspose:
    """Why the error goes back from a dense layer as Wᵀδ."""
    notation = chain.notation
    return WhyTranspose(
        item=place.index,
        layer=notation.number(place.number),
        W=notation.param("W", place.number),
        delta=notation.delta(place.number),
        a=place.takes,
        gives=place.gives,
        units=(("δ", "cost/z"), ("W", "z/a"), ("Wᵀδ", "cost/a"), ("W⁻¹δ", "cost·a/z²")),
        **numbers(chain.observed, place.index),
    )


@lru_cache(maxsize=64)
def numbers(observed: Observed, index: int) -> dict[str, Any]:
    """The numbers of `WhyTranspose`. They are the same in every notation."""
    item = observed.items[index]
    W, delta, a = (np.asarray(each, np.float64) for each in (item.params["W"], item.d_out, item.x))
    back = W.T @ delta
    unit = chosen_unit(a)
    inverse, other = other_way(W, delta)
    raised = a + NUDGE * np.eye(len(a))[unit]
    costs, outs = cost_from(observed, index, [a, raised, a - STEP * unit_vector(back), a - STEP * unit_vector(other)])
    return {
        "shape": W.shape,
        "back": back,
        "nudge": Nudge(unit, NUDGE, outs[1] - outs[0], W[:, unit], costs[1] - costs[0], NUDGE * float(back[unit])),
        "paths": Paths(
            unit, delta * W[:, unit], float(back[unit]), (0, unit), float(delta[0] * a[unit]), float(delta[0]),
            float(a[unit]),
        ),
        "rows": WholeRows(delta, W, delta[:, None] * W, back),
        "sent_back": SentBack(inverse, other, angle(back, other), STEP, costs[0] - costs[2], costs[0] - costs[3]),
        "orthogonal": orthogonal(W, delta),
        "adjoint": adjoint(W, delta),
    }  # fmt: skip


def chosen_unit(a: np.ndarray) -> int:
    """The first unit that is on, or the first."""
    on = np.flatnonzero(a)
    return int(on[0]) if len(on) else 0


def unit_vector(v: np.ndarray) -> np.ndarray:
    """v at length 1; 0 stays."""
    length = np.linalg.norm(v)
    return v / length if length else v


def other_way(W: np.ndarray, delta: np.ndarray) -> tuple[Literal["none", "singular", "inverse"], np.ndarray]:
    """The error sent back by the inverse, or by the pseudo-inverse if there is none."""
    if W.shape[0] != W.shape[1]:
        return "none", np.linalg.pinv(W) @ delta
    if np.linalg.cond(W) > SINGULAR:
        return "singular", np.linalg.pinv(W) @ delta
    return "inverse", np.linalg.solve(W, delta)


def angle(u: np.ndarray, v: np.ndarray) -> float:
    """Degrees between two vectors; NaN where one is 0."""
    lengths = float(np.linalg.norm(u) * np.linalg.norm(v))
    return float(np.degrees(np.arccos(np.clip(u @ v / lengths, -1, 1)))) if lengths else float("nan")


def orthogonal(W: np.ndarray, delta: np.ndarray) -> Orthogonal:
    """The orthogonal matrix nearest to W, by its polar decomposition. Its inverse is its transpose."""
    left, _, right = np.linalg.svd(W, full_matrices=False)
    Q = left @ right
    transposed, inverted = Q.T @ delta, np.linalg.pinv(Q) @ delta
    return Orthogonal(Q, transposed, inverted, float(np.abs(transposed - inverted).max()))


def adjoint(W: np.ndarray, delta: np.ndarray) -> Adjoint:
    """⟨δ, W v⟩ and ⟨Wᵀδ, v⟩."""
    v = np.round(np.random.RandomState(0).standard_normal(W.shape[1]), 2)
    return Adjoint(v, float(delta @ (W @ v)), float((W.T @ delta) @ v))
