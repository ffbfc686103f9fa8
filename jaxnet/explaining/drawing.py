"""A drawing of a small network: units, and edges as wide as their weights or errors; or heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxnet.explaining.expressions import Expression, Frozen, Name, entry
from jaxnet.explaining.numbering import NumberedLayer
from jaxnet.explaining.ulp import largest

MOST_UNITS = 12  # of a layer that is drawn
MOST_EDGES = 320
MOST_COLUMNS = 9
ACROSS, DOWN, MARGIN, RADIUS = 130, 84, 42, 23
TO_COST, TO_TARGET = 100, 76  # from the output to the cost, from there to the target


class Unit(Frozen):
    """One circle: where, the entry that it shows, and the shares of its activation and its δ."""

    x: float
    y: float
    index: int
    symbol: Expression
    a: float
    delta: float
    a_share: float
    delta_share: float


class Edge(Frozen):
    """One weight: from where to where, its entry in W, and the shares of weight, δ_j W_ji and blame."""

    x1: float
    y1: float
    x2: float
    y2: float
    index: int
    weights: float
    error: float
    blame: float


class Column(Frozen):
    """A layer: `item` the dense layer that makes its z (−1: the input), `shown` the last item of its activations."""

    item: int
    shown: int
    title: str
    x: float
    units: tuple[Unit, ...]
    edges: tuple[Edge, ...] = ()


class CostNode(Frozen):
    """Where the cost stands to the right of the output, where the target's entries do, and how wide all is then."""

    x: float
    y: float
    targets: tuple[tuple[float, float], ...]
    width: float


class Drawing(Frozen):
    """The network as drawn; `why_not`: why it is not, with the columns empty."""

    width: float = 0
    height: float = 0
    columns: tuple[Column, ...] = ()
    why_not: str = ""
    radius: float = RADIUS
    cost: CostNode | None = None


class DenseGroup(NamedTuple):
    """A dense layer with the activations that follow it; the input alone. blame: ∇W. sent: δ_j W_ji."""

    item: int
    shown: int
    symbol: Name
    out: np.ndarray
    delta: np.ndarray
    name: str
    W: np.ndarray
    blame: np.ndarray

    @property
    def sent(self) -> np.ndarray:
        """δ_j W_ji of each weight."""
        return self.delta[: len(self.W), None] * self.W


def drawing(places: Sequence[NumberedLayer]) -> Drawing:
    """The network as units and edges, or why it is too large or of another kind."""
    layers = grouped(places)
    if layers is None:
        return Drawing(why_not="Only dense layers and activations of vectors are drawn as units and edges.")
    edges = sum(layer.W.size for layer in layers)
    widest = max(len(layer.out) for layer in layers)
    if widest > MOST_UNITS or edges > MOST_EDGES or len(layers) > MOST_COLUMNS:
        return Drawing(
            why_not=f"{edges:,} weights between layers of up to {widest:,} units are too many to be drawn as edges: "
            f"that goes up to {MOST_UNITS} units, {MOST_EDGES} weights and {MOST_COLUMNS} layers."
        )
    return drawn(layers)


def grouped(places: Sequence[NumberedLayer]) -> list[DenseGroup] | None:
    """Dense layers with their activations, the input first; None where something else is among them."""
    first, none = places[0].item, np.zeros((0, 0))
    if any(place.kind == "other" for place in places) or first.x.ndim != 1:
        return None
    error = first.dx
    if error is None:  # at a moment of a run
        error = first.params["W"].T @ first.d_out if places[0].kind == "dense" else np.zeros(first.x.shape)
    found = [DenseGroup(-1, -1, places[0].takes, first.x, error, "input", none, none)]
    for place in places:
        item = place.item
        if place.kind == "dense":
            found.append(DenseGroup(place.index, place.index, place.gives, item.out, item.d_out,
                                    f"layer {place.number}", item.params["W"],
                                    np.outer(item.d_out, found[-1].out)))  # fmt: skip
        else:
            delta = found[-1].delta if found[-1].item >= 0 else item.d_out
            found[-1] = found[-1]._replace(shown=place.index, symbol=place.gives, out=item.out, delta=delta,
                                           name=item.layer.name)  # fmt: skip
    return found


def drawn(layers: Sequence[DenseGroup]) -> Drawing:
    """Columns of units from the left to the right, edges between them."""
    height = 2 * MARGIN + (max(len(layer.out) for layer in layers) - 1) * DOWN + 26
    top_a, top_d, *tops = (largest(getattr(layer, name) for layer in layers) or 1.0
                           for name in ("out", "delta", "W", "sent", "blame"))  # fmt: skip
    columns: list[Column] = []
    for n, layer in enumerate(layers):
        x = MARGIN + n * ACROSS
        ys = [height / 2 - 2 + (i - (len(layer.out) - 1) / 2) * DOWN for i in range(len(layer.out))]
        units = tuple(
            Unit(x, y, i, entry(layer.symbol, i + 1), float(a), float(d), float(a) / top_a, float(d) / top_d)
            for i, (y, a, d) in enumerate(zip(ys, layer.out, layer.delta, strict=True))
        )
        shares = [of / top for of, top in zip((layer.W, layer.sent, layer.blame), tops, strict=True)]
        edges = tuple(
            Edge(columns[-1].units[i].x + RADIUS, columns[-1].units[i].y, x - RADIUS, ys[j],
                 j * layer.W.shape[1] + i, *(float(share[j, i]) for share in shares))
            for j, i in np.ndindex(*layer.W.shape)
        )  # fmt: skip
        columns.append(Column(layer.item, layer.shown, layer.name, x, units, edges))
    x, width = columns[-1].x + TO_COST, 2 * MARGIN + (len(layers) - 1) * ACROSS
    targets = tuple((x + TO_TARGET, unit.y) for unit in columns[-1].units)
    cost = CostNode(x, height / 2 - 2, targets, width + TO_COST + TO_TARGET - 12)
    return Drawing(width, height, tuple(columns), cost=cost)
