"""What formulas may name: the quantities of a derivation, each as a column, a matrix or a number."""

from __future__ import annotations

import numpy as np

from jaxnet.explaining.derive import Derivation
from jaxnet.explaining.formulas.evaluate import Scope
from jaxnet.explaining.lines import Chain
from jaxnet.explaining.numbering import NumberedLayer


def oriented(values: np.ndarray, rows: bool) -> np.ndarray:
    """A vector as a column n×1 or a row 1×n; more axes than two as one long vector."""
    values = np.asarray(values, np.float64)
    if values.ndim in (0, 2):
        return values
    flat = values.reshape(-1)
    return flat[None, :] if rows else flat[:, None]


def scope_of(chain: Chain, derivation: Derivation) -> Scope:
    """x, y, C, every z, a, δ, parameter and gradient, under the names that the lines have."""
    rows = chain.notation.rows
    header = derivation.header
    values = {"x": oriented(header.x, rows), "y": oriented(header.y, rows), "C": np.asarray(header.value)}
    activations = {}
    for place in chain.places:
        values |= parameters(chain, place, rows)
        if place.kind == "activation" and place.takes.key:
            activations[place.takes.key] = place.item.layer
    for line in (*derivation.forward, *derivation.backward):
        values[line.key] = oriented(line.value, rows)
    last = chain.places[-1]
    values.setdefault(f"d{last.gives.key}", oriented(last.item.d_out, rows))
    return Scope(values, activations)


def parameters(chain: Chain, place: NumberedLayer, rows: bool) -> dict[str, np.ndarray]:
    """A layer's parameters by name, a dense W as the notation lays it."""
    params = place.item.params
    if not isinstance(params, dict):
        return {}
    found = {}
    for name, value in params.items():
        if isinstance(value, np.ndarray):
            laid = value.T if place.kind == "dense" and name == "W" and rows else value
            found[f"{name}{chain.notation.number(place.number)}"] = oriented(laid, rows)
    return found
