"""The equations of a chain, forward and backward, each with its factors, shapes and value."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from jaxnet.explaining import writing
from jaxnet.explaining.expressions import Call, Expression, Name, Product, Words
from jaxnet.explaining.losses import said_of, slope_of
from jaxnet.explaining.model import Factor, Line
from jaxnet.explaining.notation import Notation
from jaxnet.explaining.numbering import NumberedLayer
from jaxnet.explaining.numbers import one
from jaxnet.explaining.observe import Item, Observed, features, terms_of
from jaxnet.explaining.ulp import ulps
from jaxnet.layers import identity, relu, sigmoid, softmax
from jaxnet.losses import binary_cross_entropy
from jaxnet.program.evaluate import quickly
from jaxnet.readings import product

SHOWN_UNITS = 6


@dataclass(frozen=True, eq=False)
class Chain:
    """What all equations are made from."""

    observed: Observed
    places: tuple[NumberedLayer, ...]
    notation: Notation

    def above(self, place: NumberedLayer) -> NumberedLayer | None:
        """The next layer towards the loss."""
        return self.places[place.index + 1] if place.index + 1 < len(self.places) else None


def named_function(item: Item) -> Name:
    """An activation's symbol: σ, relu, softmax."""
    name = item.layer.name.replace(" ", "_")
    return Name("σ" if name == "sigmoid" else name, key=name)


def prime(item: Item) -> Name:
    """The symbol of its derivative."""
    name = named_function(item)
    return Name(f"{name.base}′", key=f"{name.key}'")


@lru_cache(maxsize=256)
def slope(item: Item) -> np.ndarray:
    """g′ at what an activation takes: what its own backward makes of ones."""

    def of(x, ones):
        return item.layer.backward(item.params, item.layer.forward(item.params, x)[1], ones, product)[0]

    return np.asarray(quickly(of, (item.x, np.ones_like(item.out))))


def oriented(W: np.ndarray, notation: Notation) -> np.ndarray:
    """W, or a gradient of it, as the notation lays it."""
    return W.T if notation.rows else W


def operand(expression: Expression, value: Any) -> Factor:
    """A factor with the shape of its value."""
    return Factor(expression, tuple(np.shape(value)), np.asarray(value))


# ------------------------------------------------------------------------------------------------ forward


def forward_lines(chain: Chain) -> tuple[Line, ...]:
    """z = W a + b, a = g(z), and so on, from the input."""
    return tuple(line for place in chain.places for line in forward_of(chain, place))


def forward_of(chain: Chain, place: NumberedLayer) -> list[Line]:
    """What one layer makes of what it takes."""
    if place.kind in ("dense", "activation", "softmax"):
        return [forward_line(chain, place)]
    return writing.forward_lines(inside(chain, place))


def inside(chain: Chain, place: NumberedLayer) -> writing.Inside:
    """What is inside a layer."""
    return writing.inside(place, chain.notation, below(chain, place), len(chain.places))


def below(chain: Chain, place: NumberedLayer) -> tuple[Expression, str]:
    """The error at what a layer takes, and its key."""
    return writing.error_at(chain.notation, chain.places[place.index - 1] if place.index else input_place(chain))


def forward_line(chain: Chain, place: NumberedLayer) -> Line:
    """What a dense layer or an activation makes of what it takes."""
    item, notation = place.item, chain.notation
    common: dict[str, Any] = {"item": place.index, "layer": notation.number(place.number), "left": place.gives,
                              "shape": item.out.shape, "value": item.out, "key": place.gives.key}  # fmt: skip
    kind = "z" if place.is_z else "a"
    if place.kind == "dense":
        W, b = notation.param("W", place.number), notation.param("b", place.number)
        right = notation.affine(W, place.takes, b if "b" in item.params else None)
        pair = (operand(W, oriented(item.params["W"], notation)), operand(place.takes, item.x))
        return Line(kind=kind, right=right, factors=pair[::-1] if notation.rows else pair, **common)
    right = place.takes if item.layer == identity else Call(named_function(item), place.takes)
    return Line(kind=kind, right=right, factors=(), remarks=remarks_of(item), **common)


def remarks_of(item: Item) -> tuple[str, ...]:
    """Units that are off: zero, with zero slope, so that no error passes."""
    if item.out.ndim != 1 or item.layer in (softmax, identity):
        return ()
    off = np.flatnonzero((item.out == 0) & (slope(item) == 0)) + 1
    if len(off) == 0:
        return ()
    if len(off) == len(item.out):
        return ("all units are off",)
    if len(off) > SHOWN_UNITS:
        return (f"{len(off)} of {len(item.out)} units are off",)
    one = len(off) == 1
    return (f"unit{'' if one else 's'} {', '.join(map(str, off))} {'is' if one else 'are'} off",)


# ----------------------------------------------------------------------------------------------- backward


def backward_lines(chain: Chain) -> tuple[Line, ...]:
    """δ of each layer and the gradients of its parameters, from the loss; ∂C/∂x last."""
    found: list[Line] = []
    for place in reversed(chain.places):
        found += error_at_output(chain, place)
        if place.kind == "dense":
            found += dense_gradients(chain, place, chain.notation.number(place.number))
        if place.kind in ("dense", "activation", "softmax"):
            found += error_sent_back(chain, place)
        else:
            found += writing.backward_lines(inside(chain, place))
    return tuple(found)


def loss_slope(chain: Chain) -> Expression:
    """∂C/∂out of the network as the loss's equation."""
    last, observed = chain.places[-1], chain.observed
    found = slope_of(
        observed.loss, last.gives, chain.notation.target, features(last.item.out), terms_of(observed),
        bool(np.allclose(np.sum(observed.target, axis=-1), 1)),
    )  # fmt: skip
    return chain.notation.partial(last.gives) if found is None else found


def arriving(chain: Chain, place: NumberedLayer) -> Expression:
    """∂C/∂out of a layer, as what the layer above sends back to it."""
    above = chain.above(place)
    if above is None:
        return loss_slope(chain)
    if above.kind == "dense":
        return chain.notation.sent_back(chain.notation.param("W", above.number), chain.notation.delta(above.number))
    return chain.notation.partial(place.gives)


def line_of_error(
    chain: Chain, place: NumberedLayer, right: Expression, value: np.ndarray, expected, **more: Any
) -> Line:
    """A line that gives the error at what a layer takes (`place` gives it): δ where that is z, else ∂C/∂a."""
    notation = chain.notation
    left = notation.delta(place.number) if place.is_z else notation.partial(place.gives)
    key = f"delta{notation.number(place.number)}" if place.is_z else f"d{place.gives.key}"
    return Line(
        key=key, kind="delta" if place.is_z else "da", item=place.index, layer=notation.number(place.number),
        left=left, right=right, shape=value.shape, value=value, ulp=ulps(value, expected), aside=key == "dx", **more,
    )  # fmt: skip


def error_at_output(chain: Chain, place: NumberedLayer) -> list[Line]:
    """Of the last layer, what the loss says; of the others it was said by the layer above."""
    item = place.item
    if chain.above(place) is not None or place.kind in ("activation", "softmax"):
        return []
    rule = "BP1" if place.is_z else ""
    return [
        line_of_error(
            chain, place, loss_slope(chain), item.d_out, item.reference[0], factors=(), rule=rule,
            remarks=loss_remarks(chain, place),
        )
    ]  # fmt: skip


def loss_remarks(chain: Chain, place: NumberedLayer) -> tuple[str, ...]:
    """What the loss does together with the last layer."""
    loss = chain.observed.loss
    if slope_of(loss, place.gives, chain.notation.target, 1) is None:
        return (f"from the loss, {loss.name}",)
    if loss == binary_cross_entropy and place.item.layer == sigmoid:
        return ("a(1−a) below cancels σ′: a−y",)
    return said_of(loss)


def dense_gradients(chain: Chain, place: NumberedLayer, layer: str) -> list[Line]:
    """∇W = δ aᵀ and ∇b = δ."""
    item, notation = place.item, chain.notation
    delta, W = notation.delta(place.number), notation.param("W", place.number)
    pair = (operand(delta, item.d_out), operand(place.takes, item.x))
    gradient = oriented(item.grads["W"], notation)
    found = [
        Line(
            key=f"d{W.key}", kind="dW", item=place.index, layer=layer, left=notation.gradient(W),
            right=notation.outer(delta, place.takes), factors=pair[::-1] if notation.rows else pair,
            shape=gradient.shape, value=gradient, ulp=ulps(item.grads["W"], item.reference[2]["W"]), rule="BP4",
        )
    ]  # fmt: skip
    if "b" in item.params:
        b = notation.param("b", place.number)
        found.append(
            Line(
                key=f"d{b.key}", kind="db", item=place.index, layer=layer, left=notation.gradient(b), right=delta,
                factors=(), shape=item.grads["b"].shape, value=item.grads["b"],
                ulp=ulps(item.grads["b"], item.reference[2]["b"]), rule="BP3",
            )
        )  # fmt: skip
    return found


def error_sent_back(chain: Chain, place: NumberedLayer) -> list[Line]:
    """The error at what a layer takes: Wᵀδ, ⊙ g′(z), or softmax's Jacobian."""
    item, notation = place.item, chain.notation
    if item.dx is None:
        return []
    below = chain.places[place.index - 1] if place.index else input_place(chain)
    common: dict[str, Any] = {"value": item.dx, "expected": item.reference[1]}
    if place.kind == "dense":
        W, delta = notation.param("W", place.number), notation.delta(place.number)
        right = notation.sent_back(W, delta)
        turned = item.params["W"] if notation.rows else item.params["W"].T
        pair = (operand(right.factors[0], turned), operand(delta, item.d_out))
        if notation.rows:
            pair = (operand(delta, item.d_out), operand(right.factors[1], turned))
        return [line_of_error(chain, below, right, factors=pair, **common)]
    arrived = arriving(chain, place)
    if place.kind == "activation":
        return [activation_line(chain, place, below, arrived, common)]
    jacobian = Words("(diag(p) − ppᵀ)")
    full = np.diag(item.out) - np.outer(item.out, item.out)
    factors = (operand(jacobian, full), operand(arrived, item.d_out))
    said = (f"p = {place.gives.base}: every p depends on every z",)
    return [line_of_error(chain, below, Product((jacobian, arrived)), factors=factors, remarks=said, **common)]


def activation_line(
    chain: Chain, place: NumberedLayer, below: NumberedLayer, arrived: Expression, common: dict[str, Any]
) -> Line:
    """δ = ∂C/∂a ⊙ g′(z)."""
    item = place.item
    right = Product((arrived, Call(prime(item), place.takes)), "⊙")
    last = chain.above(place) is None
    if item.layer == identity:
        right = arrived
    remarks = loss_remarks(chain, place) if last else ()
    factors = (operand(arrived, item.d_out), operand(Call(prime(item), place.takes), slope(item)))
    rule = ("BP1" if last else "BP2") if below.is_z else ""
    return line_of_error(chain, below, right, factors=factors, rule=rule, remarks=remarks + diagonal(item), **common)


def diagonal(item: Item) -> tuple[str, ...]:
    """The Jacobian of a relu of few units as the matrix it is."""
    if item.out.ndim != 1 or len(item.out) > SHOWN_UNITS or item.layer != relu:
        return ()
    return (f"relu′ = diag{diagonal_entries(item)}, not a column",)


def diagonal_entries(item: Item) -> str:
    """The slopes of an activation, (1,0,1); of many units the first three."""
    values = slope(item).reshape(-1)
    shown = [
        one(float(value), 4).removesuffix(".0000")
        for value in values[: len(values) if len(values) <= SHOWN_UNITS else 3]
    ]
    return f"({','.join(shown)}{',…' if len(shown) < len(values) else ''})"


def input_place(chain: Chain) -> NumberedLayer:
    """The input as what the layer below the first gives."""
    first = chain.places[0]
    return NumberedLayer(-1, first.item, "other", 0, chain.notation.a(0), chain.notation.a(0), False)
