"""A drawing of a small network in SVG: units, edges as wide as their weights, and what flows along them.

Sizes and signs are handed to the style sheet as shares of the largest (`--weights`, `--error`, `--blame` of an edge,
`--a`, `--d` of a unit, from −1 to 1), which makes width and colour of them: so the script has the same to set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from jaxnet.explaining.expressions import Expression, entry
from jaxnet.explaining.numbering import NumberedLayer

MOST_UNITS = 12  # of a layer that is drawn
MOST_EDGES = 320
MOST_COLUMNS = 9
ACROSS, DOWN, MARGIN, RADIUS = 130, 84, 42, 23


@dataclass(frozen=True)
class Unit:
    """One circle: where, the entry that it shows, and the shares of its activation and its δ."""

    x: float
    y: float
    index: int
    symbol: Expression
    a: float
    delta: float
    a_share: float
    delta_share: float


@dataclass(frozen=True)
class Edge:
    """One weight: from where to where, its entry in W, and the shares of weight, δ_j W_ji and blame."""

    x1: float
    y1: float
    x2: float
    y2: float
    index: int
    weights: float
    error: float
    blame: float


@dataclass(frozen=True)
class Column:
    """A layer: `item` the dense layer that makes its z (−1: the input), `shown` the last item of its activations."""

    item: int
    shown: int
    title: str
    x: float
    units: tuple[Unit, ...]
    edges: tuple[Edge, ...] = ()


@dataclass(frozen=True)
class Drawing:
    """The network as drawn; `why_not`: why it is not, with the columns empty."""

    width: float = 0
    height: float = 0
    columns: tuple[Column, ...] = ()
    why_not: str = ""
    radius: float = field(default=RADIUS)


@dataclass(frozen=True, eq=False)
class DenseGroup:
    """A dense layer with the activations that follow it."""

    dense: NumberedLayer | None
    last: NumberedLayer | None
    out: np.ndarray
    delta: np.ndarray
    name: str

    @property
    def W(self) -> np.ndarray:
        """Its weights, (out, in)."""
        return np.zeros((0, 0)) if self.dense is None else self.dense.item.params["W"]


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
    first = places[0].item
    if any(place.kind == "other" for place in places) or first.x.ndim != 1:
        return None
    error = first.dx
    if error is None:  # at a moment of a run
        error = first.params["W"].T @ first.d_out if places[0].kind == "dense" else np.zeros(first.x.shape)
    found = [DenseGroup(None, None, first.x, error, "input")]
    for place in places:
        if place.kind == "dense":
            found.append(DenseGroup(place, place, place.item.out, place.item.d_out, f"layer {place.number}"))
            continue
        last = found[-1]
        delta = last.delta if last.dense is not None else place.item.d_out
        found[-1] = DenseGroup(last.dense, place, place.item.out, delta, place.item.layer.name)
    return found


def largest(arrays: Sequence[np.ndarray]) -> float:
    """The largest size of all entries, 1 where all are 0."""
    return max((float(np.abs(each).max(initial=0)) for each in arrays), default=0.0) or 1.0


def drawn(layers: Sequence[DenseGroup]) -> Drawing:
    """Columns of units from the left to the right, edges between them."""
    tallest = max(len(layer.out) for layer in layers)
    height = 2 * MARGIN + (tallest - 1) * DOWN + 26
    top_a, top_d = largest([layer.out for layer in layers]), largest([layer.delta for layer in layers])
    dense = [layer for layer in layers if layer.dense is not None]
    sent = {id(layer): layer.delta[:, None] * layer.W for layer in dense}
    blame = {id(layer): np.outer(layer.delta, below.out) for below, layer in pairwise(layers)}
    tops = (largest([layer.W for layer in dense]), largest([*sent.values()]), largest([*blame.values()]))
    columns: list[Column] = []
    for n, layer in enumerate(layers):
        x = MARGIN + n * ACROSS
        ys = [height / 2 - 2 + (i - (len(layer.out) - 1) / 2) * DOWN for i in range(len(layer.out))]
        symbol = layer.last.gives if layer.last is not None else layers_input(layers)
        units = tuple(
            Unit(x, y, i, entry(symbol, i + 1), float(a), float(d), float(a) / top_a, float(d) / top_d)
            for i, (y, a, d) in enumerate(zip(ys, layer.out, layer.delta, strict=True))
        )
        edges: list[Edge] = []
        if layer.dense is not None:
            for j, to in enumerate(units):
                for i, source in enumerate(columns[-1].units):
                    shares = (
                        layer.W[j, i] / tops[0],
                        sent[id(layer)][j, i] / tops[1],
                        blame[id(layer)][j, i] / tops[2],
                    )
                    edges.append(
                        Edge(
                            source.x + RADIUS, source.y, to.x - RADIUS, to.y, j * layer.W.shape[1] + i,
                            *(float(share) for share in shares),
                        )
                    )  # fmt: skip
        item = -1 if layer.dense is None else layer.dense.index
        columns.append(Column(item, -1 if layer.last is None else layer.last.index, layer.name, x, units, tuple(edges)))
    return Drawing(2 * MARGIN + (len(layers) - 1) * ACROSS, height, tuple(columns))


def layers_input(layers: Sequence[DenseGroup]) -> Expression:
    """The input's symbol: what the first layer takes."""
    first = next(layer for layer in layers if layer.dense is not None or layer.last is not None)
    place = first.dense if first.dense is not None else first.last
    assert place is not None
    return place.takes
