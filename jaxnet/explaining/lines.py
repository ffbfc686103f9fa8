"""The equations of a chain, forward and backward, each with its factors, shapes and value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxnet.explaining import writing
from jaxnet.explaining.expressions import Call, Expression, Product, Sum, Transposed, key_of
from jaxnet.explaining.kinds import own_maker
from jaxnet.explaining.losses import made_by, said_of, slope_of
from jaxnet.explaining.model import EquationFactor, Line
from jaxnet.explaining.notation import Notation
from jaxnet.explaining.notes import SHOWN_UNITS, prime, slope, softmax_jacobian
from jaxnet.explaining.numbering import NumberedLayer
from jaxnet.explaining.numbers import one
from jaxnet.explaining.observe import Item, Observed, features, terms_of
from jaxnet.explaining.records import opened
from jaxnet.explaining.ulp import ulps


@dataclass(frozen=True, eq=False)
class Chain:
    """The observed network, its layers and the notation, from which all equations are made."""

    observed: Observed
    places: tuple[NumberedLayer, ...]
    notation: Notation

    def above(self, place: NumberedLayer) -> NumberedLayer | None:
        """The next layer towards the loss."""
        return self.places[place.index + 1] if place.index + 1 < len(self.places) else None


def oriented(W: np.ndarray, notation: Notation) -> np.ndarray:
    """W, or a gradient of it, as the notation lays it."""
    return W.T if notation.rows else W


def forward_lines(chain: Chain) -> tuple[Line, ...]:
    """z = W a + b, a = g(z), and so on, from the input."""
    found: list[Line] = []
    for place in chain.places:
        lines, kind = writing.forward_lines(inside(chain, place)), "z" if place.is_z else "a"
        found += lines if place.kind == "other" else [bare(chain, place, line, kind) for line in lines]
    return tuple(found)


def backward_lines(chain: Chain) -> tuple[Line, ...]:
    """δ of each layer and the gradients of its parameters, from the loss; ∂C/∂x last."""
    found: list[Line] = []
    for place in reversed(chain.places):
        found += error_at_output(chain, place)
        lines = writing.backward_lines(inside(chain, place))
        found += lines if place.kind == "other" else [backward_line(chain, place, line) for line in lines]
    return tuple(found)


def inside(chain: Chain, place: NumberedLayer) -> writing.Inside:
    """The inside of a layer; the error at an activation stands as the layer above sends it, W³ᵀδ³."""
    below, records = writing.error_at(chain.notation, place_below(chain, place)), opened(place.item)
    arrives = arriving(chain, place) if place.kind in ("activation", "softmax") else None
    alone = len(chain.places) == len(records) == 1
    return writing.Inside(place, chain.notation, records, below, alone, arrives)


def place_below(chain: Chain, place: NumberedLayer) -> NumberedLayer:
    """The layer below one; below the first a stand-in for the input."""
    if place.index:
        return chain.places[place.index - 1]
    return NumberedLayer(-1, place.item, "other", 0, chain.notation.a(0), chain.notation.a(0), False)


def bare(chain: Chain, place: NumberedLayer, line: Line, kind: str, **more: Any) -> Line:
    """A line of a layer of one line, without a heading, with the factors of its product."""
    factors = factors_of(line.right, known(chain, place))
    return replace(
        line, kind=kind, factors=factors, of="", sizes="", notes=(), quoted=None, opaque=False, gives="", **more
    )


def backward_line(chain: Chain, place: NumberedLayer, line: Line) -> Line:
    """A backward line of such a layer, with the name that Nielsen gives to its equation."""
    if line.kind in ("dW", "db"):
        return bare(chain, place, line, line.kind, rule="BP4" if line.kind == "dW" else "BP3")
    below, last = place_below(chain, place), chain.above(place) is None
    more: dict[str, Any] = {"item": below.index, "layer": chain.notation.number(below.number)}
    if place.kind == "activation":
        rule = ("BP1" if last else "BP2") if below.is_z else ""
        more |= {"rule": rule, "remarks": (loss_remarks(chain, place) if last else ()) + diagonal(place.item)}
    elif place.kind == "softmax":
        more |= {"remarks": ("every a depends on every z",)}
    return bare(chain, place, line, "delta" if below.is_z else "da", **more)


def known(chain: Chain, place: NumberedLayer) -> dict[Expression, np.ndarray]:
    """The symbols of such a layer's products, and their values."""
    item, notation = place.item, chain.notation
    if place.kind == "dense":
        W = notation.param("W", place.number)
        return {W: oriented(item.params["W"], notation), place.takes: item.x, notation.delta(place.number): item.d_out}
    found: dict[Expression, np.ndarray] = {arriving(chain, place): item.d_out}
    if place.kind == "softmax":
        return found | {softmax_jacobian(place.gives, notation): np.diag(item.out) - np.outer(item.out, item.out)}
    return found | {Call(prime(item.layer), place.takes): slope(item)}


def factors_of(right: Expression, known: dict[Expression, np.ndarray]) -> tuple[EquationFactor, ...]:
    """The factors of a product, or of a sum's first term, with their values; a transposed vector as the vector."""
    product = right.terms[0] if isinstance(right, Sum) else right
    found = []
    for each in product.factors if isinstance(product, Product) else ():
        value = known.get(each)
        if value is None and isinstance(each, Transposed) and each.of in known:
            each, value = (each.of if known[each.of].ndim == 1 else each), known[each.of].T
        if value is None:
            return ()
        found.append(EquationFactor(each, tuple(np.shape(value)), np.asarray(value)))
    return tuple(found)


# ------------------------------------------------------------------------------------------------ the loss


def loss_slope(chain: Chain) -> Expression:
    """∂C/∂out of the network as the loss's equation."""
    last, observed = chain.places[-1], chain.observed
    found = slope_of(
        observed.loss, last.gives, chain.notation.target, features(last.item.out), terms_of(observed),
        bool(np.allclose(np.sum(observed.target, axis=-1), 1)),
    )  # fmt: skip
    return chain.notation.partial(last.gives) if found is None else found


def arriving(chain: Chain, place: NumberedLayer) -> Expression:
    """∂C/∂out of a layer, as the layer above sends it back."""
    above = chain.above(place)
    if above is None:
        return loss_slope(chain)
    if above.kind == "dense":
        return chain.notation.sent_back(chain.notation.param("W", above.number), chain.notation.delta(above.number))
    return chain.notation.partial(place.gives)


def error_at_output(chain: Chain, place: NumberedLayer) -> list[Line]:
    """The error at the last layer's output, from the loss; the other errors are lines of the layer above."""
    item, notation = place.item, chain.notation
    if chain.above(place) is not None or place.kind in ("activation", "softmax"):
        return []
    left = writing.error_at(notation, place)
    return [
        Line(
            key=key_of(left), kind="delta" if place.is_z else "da", item=place.index,
            layer=notation.number(place.number), left=left, right=loss_slope(chain), factors=(),
            shape=item.d_out.shape, value=item.d_out,
            ulp=ulps(item.d_out, item.reference[0]), rule="BP1" if place.is_z else "",
            remarks=loss_remarks(chain, place),
        )
    ]  # fmt: skip


def loss_remarks(chain: Chain, place: NumberedLayer) -> tuple[str, ...]:
    """The loss together with the last layer."""
    loss = chain.observed.loss
    if slope_of(loss, place.gives, chain.notation.target, 1) is None:
        return (f"from the loss, {loss.name}",)
    if made_by(loss) == "binary_cross_entropy" and own_maker(place.item.layer) == "sigmoid":
        return ("a(1−a) below cancels σ′: a−y",)
    return said_of(loss)


def diagonal(item: Item) -> tuple[str, ...]:
    """The Jacobian of a relu of few units as the matrix it is."""
    if item.out.ndim != 1 or len(item.out) > SHOWN_UNITS or own_maker(item.layer) != "relu":
        return ()
    return (f"as a matrix relu′ = diag{diagonal_entries(item)}",)


def diagonal_entries(item: Item) -> str:
    """The slopes of an activation, (1,0,1); of many units the first three."""
    values = slope(item).reshape(-1)
    shown = [
        one(float(value), 4).removesuffix(".0000")
        for value in values[: len(values) if len(values) <= SHOWN_UNITS else 3]
    ]
    return f"({','.join(shown)}{',…' if len(shown) < len(values) else ''})"
