"""Over a run: how δ, weights and accuracy moved, as tables for the terminal, and as curves for the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxnet.explaining.cells import heat
from jaxnet.explaining.expressions import Frozen
from jaxnet.explaining.live import plain
from jaxnet.explaining.notation import NIELSEN, Notation
from jaxnet.explaining.numbering import NumberedLayer, number_layers
from jaxnet.explaining.numbers import number, one
from jaxnet.explaining.observe import Item, Observed, chain
from jaxnet.layer import Tree, leaves, own_params
from jaxnet.traces import trace

ROWS = 12  # of a table, beyond which rows are left out evenly
ACCURACIES = ("validation_accuracy", "test_accuracy", "train_accuracy")
LOSSES = ("validation_loss", "train_loss", "test_loss")


@dataclass(frozen=True, eq=False)
class Moment:
    """The parameters at one step of a run; step 0 is before the first."""

    step: int
    epoch: int
    params: Tree


@dataclass(frozen=True, eq=False)
class History:
    """The moments whose parameters are known, oldest first, and the metrics of every epoch."""

    moments: tuple[Moment, ...]
    metrics: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = ()


class Movement(Frozen):
    """One moment at one example: C, and of each dense layer ‖δ‖, ‖W‖ and how far W is from its first value."""

    step: int
    epoch: int
    cost: float
    layers: tuple[str, ...]
    deltas: tuple[float, ...]
    weights: tuple[float, ...]
    moved: tuple[float, ...]
    accuracy: float | None


def at_moments(observed: Observed, history: History) -> list[Observed]:
    """The example at each moment, by one compiled pass: each layer's output and δ, no gradients."""
    run = jax.jit(trace(observed.net, observed.loss))
    found = []
    for moment in history.moments:
        traced = run(moment.params, observed.x, observed.y)
        net_params, _ = own_params(observed.loss, moment.params)
        steps = iter(traced.steps)
        items: list[Item] = []
        for before, (_, params) in zip(observed.items, chain(observed.net, net_params), strict=True):
            mine = [next(steps) for _ in leaves(before.layer)]
            items.append(
                replace(
                    before, params=jax.tree.map(np.asarray, params), out=np.asarray(mine[-1].out),
                    d_out=np.asarray(mine[-1].delta), dx=None, grads=(),
                )
            )  # fmt: skip
        found.append(replace(observed, params=moment.params, cost=float(traced.cost), items=tuple(items)))
    return found


def movements(observed: Sequence[Observed], history: History, notation: Notation = NIELSEN) -> tuple[Movement, ...]:
    """How the example's δ and the weights moved. observed: the same example at each moment."""
    found, first = [], None
    for moment, seen in zip(history.moments, observed, strict=True):
        dense = dense_layers(seen, notation)
        weights = [place.item.params["W"] for place in dense]
        first = first or weights
        moved = [W - W0 for W, W0 in zip(weights, first, strict=True)]
        deltas, sizes, far = (tuple(float(np.linalg.norm(each)) for each in of)
                              for of in ([place.item.d_out for place in dense], weights, moved))  # fmt: skip
        line = next((line for line in history.metrics if line.get("epoch") == moment.epoch), {})
        accuracy = next((float(line[name]) for name in ACCURACIES if isinstance(line.get(name), int | float)), None)
        numbers = tuple(notation.number(place.number) for place in dense)
        found.append(Movement(moment.step, moment.epoch, seen.cost, numbers, deltas, sizes, far, accuracy))
    return tuple(found)


def history_lines(moved: Sequence[Movement], history: History, digits: int) -> list[str]:
    """The table of the moments, and that of the epochs."""
    found: list[str] = []
    if moved:
        layers = moved[0].layers
        heads = ["step", "epoch", "C", *(f"‖δ{n}‖" for n in layers), *(f"‖W{n}‖" for n in layers),
                 *(f"W{n} moved" for n in layers), "accuracy"]  # fmt: skip
        rows = [
            [f"{each.step:,}", str(each.epoch), *(one(value, digits) for value in
             (each.cost, *each.deltas, *each.weights, *each.moved)), percent(each.accuracy)]
            for each in moved
        ]  # fmt: skip
        found += ["OVER THE RUN, at this example", *table(heads, rows)]
    epochs = [line for line in history.metrics if "epoch" in line]
    if epochs:
        found += ["EPOCHS", *epoch_table(epochs, digits)]
    return [*found, *history.notes]


def dense_layers(observed: Observed, notation: Notation) -> list[NumberedLayer]:
    """The dense layers of a network."""
    return [place for place in number_layers(observed, notation) if place.kind == "dense"]


def first_of(names: Sequence[str], epochs: Sequence[dict[str, Any]]) -> str:
    """The first of these metrics that an epoch has; "" where none has one."""
    return next((name for name in names if any(name in line for line in epochs)), "")


def epoch_table(epochs: Sequence[dict[str, Any]], digits: int) -> list[str]:
    """Loss, accuracy and the norms of δ epoch by epoch, evenly thinned out."""
    loss, accuracy = first_of(LOSSES, epochs), first_of(ACCURACIES, epochs)
    width = max((len(line.get("delta_norms") or ()) for line in epochs), default=0)
    heads = ["epoch", *(name.replace("_", " ") for name in (loss, accuracy) if name),
             *(f"mean ‖δ‖ {i + 1}" for i in range(width))]  # fmt: skip
    rows = []
    for line in thinned(epochs, ROWS):
        norms = [*(line.get("delta_norms") or ()), *[None] * width][:width]
        cells = [told(line.get(loss), digits)] * bool(loss) + [percent(line.get(accuracy))] * bool(accuracy)
        rows.append([str(line["epoch"]), *cells, *(told(each, digits) for each in norms)])
    return table(heads, rows)


def thinned(rows: Sequence[Any], most: int) -> list[Any]:
    """At most `most` rows at even distances, with the first and the last."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]


def told(value: Any, digits: int) -> str:
    """A number, or a dash."""
    return one(float(value), digits) if isinstance(value, int | float) else "—"


def percent(value: Any) -> str:
    """A share in percent, or a dash."""
    return f"{number(100 * float(value), 2)} %" if isinstance(value, int | float) else "—"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns aligned to the right."""
    widths = [max(len(head), *(len(row[i]) for row in rows)) for i, head in enumerate(heads)]
    return [
        "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (heads, *rows)
    ]


MOST_MOMENTS = 16  # on the slider; of more, as many as are evenly apart
MOST_PIXELS = 250_000  # of all heat maps over the moments
WIDTH, HEIGHT, LEFT = 300, 110, 8


class Chart(Frozen):
    """Curves over the moments on one scale, each with its name and the points of its path."""

    title: str
    low: str
    high: str
    curves: tuple[tuple[str, str], ...]


class RunCharts(Frozen):
    """The charts, heat maps and slider of a run."""

    rows: tuple[Movement, ...]
    charts: tuple[Chart, ...]
    cursors: tuple[float, ...]
    maps: tuple[tuple[str, Any], ...]
    frames: list[dict[str, Any]]
    notes: tuple[str, ...]
    left_out: int


def run_charts(observed: Observed, history: History, notation: Notation) -> RunCharts | None:
    """The moments of a run at the example that was observed; None where no moment is kept."""
    moments = tuple(thinned(history.moments, MOST_MOMENTS))
    if not moments:
        return None
    kept = replace(history, moments=moments)
    seen = at_moments(observed, kept)
    rows = movements(seen, kept, notation)
    maps = tuple(heat_maps(dense_layers(seen[-1], notation), notation).values())
    return RunCharts(
        rows, charts(rows, kept), moments_at(rows), maps,
        frames(seen, kept, rows, notation), kept.notes, len(history.moments) - len(moments),
    )  # fmt: skip


def along(shares: Sequence[float]) -> tuple[float, ...]:
    """Where on a chart something stands that happened after this share of the run."""
    return tuple(LEFT + (WIDTH - 2 * LEFT) * float(share) for share in shares)


def charts(rows: Sequence[Movement], history: History) -> tuple[Chart, ...]:
    """At the moments C, ‖δ‖, ‖W‖ and how far W has moved, of each dense layer; epoch by epoch loss and accuracy."""
    at = moments_at(rows)
    found = [chart("C at this example", {"C": [row.cost for row in rows]}, at)]
    titles = {"deltas": "‖δ‖ at this example", "weights": "‖W‖", "moved": "W moved from its first value"}
    for name, title in titles.items() if rows[0].layers else ():
        lines = {f"layer {n}": [getattr(row, name)[i] for row in rows] for i, n in enumerate(rows[0].layers)}
        found.append(chart(title, lines, at))
    epochs = [line for line in history.metrics if isinstance(line.get("epoch"), int)]
    last = max((line["epoch"] for line in epochs), default=0) or 1
    xs = along([line["epoch"] / last for line in epochs])
    for name in filter(None, (first_of(LOSSES, epochs), first_of(ACCURACIES, epochs))):
        values = [float(line.get(name, "nan")) for line in epochs]
        found.append(chart(f"{name.replace('_', ' ')}, epoch by epoch", {name: values}, xs))
    norms = [list(line.get("delta_norms") or ()) for line in epochs]
    if any(norms):
        width = max(map(len, norms))
        lines = {f"dense {i + 1}": [row[i] if i < len(row) else float("nan") for row in norms] for i in range(width)}
        found.append(chart("mean ‖δ‖ over the examples, epoch by epoch", lines, xs))
    return tuple(found)


def moments_at(rows: Sequence[Movement]) -> tuple[float, ...]:
    """Where the moments stand on a chart."""
    last = max(row.step for row in rows) or 1
    return along([row.step / last for row in rows])


def chart(title: str, lines: dict[str, list[float]], xs: Sequence[float]) -> Chart:
    """Curves as paths between the least and the largest value."""
    finite = [value for values in lines.values() for value in values if np.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    room = (high - low) or 1.0
    curves = []
    for name, values in lines.items():
        points = [
            f"{x:.1f},{HEIGHT - 8 - (HEIGHT - 16) * (value - low) / room:.1f}"
            for x, value in zip(xs, values, strict=True)
            if np.isfinite(value)
        ]
        curves.append((name, " ".join(points)))
    return Chart(title, one(low), one(high), tuple(curves))


def heat_maps(dense: Sequence[NumberedLayer], notation: Notation) -> dict[str, tuple[str, Any]]:
    """W and δ of each dense layer as a title and a heat map, by the script's name."""
    return {
        f"{name}.{place.index}": (f"{symbol}, layer {notation.number(place.number)}", heat(f"{name}.{place.index}", of))
        for place in dense
        for symbol, name, of in (("W", "run.W", place.item.params["W"]), ("δ", "run.err", place.item.d_out))
    }


def frames(
    seen: Sequence[Observed], history: History, rows: Sequence[Movement], notation: Notation
) -> list[dict[str, Any]]:
    """For each moment the script's data: words, heat maps as far as there is room, and small networks' params."""
    found = []
    pixels = 0
    for each, moment, row in zip(seen, history.moments, rows, strict=True):
        dense = dense_layers(each, notation)
        weights = sum(place.item.params["W"].size for place in dense)
        pixels += weights + sum(place.item.d_out.size for place in dense)
        images = heat_maps(dense, notation) if pixels <= MOST_PIXELS else {}
        maps = {name: str(image).split('src="')[1].split('"')[0] for name, (_, image) in images.items()}
        params = {str(place.index): {name: plain(p) for name, p in place.item.params.items()} for place in dense}
        accuracy = "" if row.accuracy is None else f", accuracy {100 * row.accuracy:.1f} %"
        said = f"step {moment.step:,}, epoch {moment.epoch}: C {one(row.cost)}{accuracy}"
        found.append({"said": said, "maps": maps, "params": params if weights <= 64 else {}})
    return found
