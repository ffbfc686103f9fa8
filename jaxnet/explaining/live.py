"""The data from which the page's script computes a small network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxnet.explaining.kinds import own_maker
from jaxnet.explaining.losses import made_by
from jaxnet.explaining.model import WhyTranspose
from jaxnet.explaining.numbering import NumberedLayer
from jaxnet.explaining.observe import Observed

ACTIVATIONS = {"identity", "sigmoid", "tanh", "relu", "softplus", "silu", "gelu", "gelu_tanh", "leaky_relu", "elu"}
LOSSES = {
    "quadratic", "mean_squared_error", "mean_absolute_error", "binary_cross_entropy", "binary_cross_entropy_on_logits",
    "softmax_cross_entropy",
}  # fmt: skip
"""Those that network.js knows."""
MOST_WEIGHTS = 64
WIDEST = 8


def specification(
    observed: Observed, places: Sequence[NumberedLayer], why: Sequence[WhyTranspose]
) -> dict[str, Any] | None:
    """The network as the script takes it; None where it is too large, or has a layer or loss unknown to the script."""
    layers = [(made := layer_of(place)) and {**made, "number": place.number} for place in places]
    weights = sum(place.item.params["W"].size for place in places if place.kind == "dense")
    if None in layers or made_by(observed.loss) not in LOSSES or not 0 < weights <= MOST_WEIGHTS:
        return None
    if observed.x.ndim != 1 or max(len(observed.x), *(len(place.item.out) for place in places)) > WIDEST:
        return None
    return {
        "loss": made_by(observed.loss),
        "x": plain(observed.x),
        "y": plain(observed.target),
        "layers": layers,
        "asked": [
            {"item": each.item, "unit": each.nudge.unit, "by": each.nudge.by, "step": each.sent_back.step,
             "v": plain(each.adjoint.v)}
            for each in why
        ],
    }  # fmt: skip


def layer_of(place: NumberedLayer) -> dict[str, Any] | None:
    """One layer, None where the script cannot compute it."""
    item = place.item
    if place.kind == "dense" and sends_transposed(place):
        params: dict[str, Any] = dict(item.params)
        return {"kind": "dense", "W": plain(params["W"]), "b": plain(params["b"]) if "b" in params else None}
    if place.kind == "softmax":
        return {"kind": "softmax"}
    name, made = own_maker(item.layer), item.layer.made
    if made is not None and place.kind == "activation" and name in ACTIVATIONS and item.x.ndim == 1:
        option = next((float(each) for each in made.options.values() if isinstance(each, int | float)), 0.0)
        return {"kind": "activation", "name": name, "option": option}
    return None


def sends_transposed(place: NumberedLayer) -> bool:
    """Whether a dense layer sends Wᵀδ back, and not by another feedback."""
    item = place.item
    if item.dx is None:
        return True
    W, delta = np.asarray(item.params["W"], np.float64), np.asarray(item.d_out, np.float64)
    expected = W.T @ delta
    return bool(np.allclose(expected, item.dx, rtol=1e-2, atol=1e-2 * float(np.abs(expected).max(initial=0))))


def plain(values: np.ndarray) -> Any:
    """An array as nested lists of the shortest decimals that its dtype tells apart: −.2, not −.20000000298."""
    values = np.asarray(values)
    texts = [float(str(value)) for value in values.reshape(-1)]
    return np.reshape(texts, values.shape).tolist()
