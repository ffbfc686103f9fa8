"""Over a run, on the page: curves of C, ‖δ‖, ‖W‖ and accuracy over its moments, and what the slider shows at each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxnet.explaining.cells import heat
from jaxnet.explaining.history import ACCURACIES, LOSSES, History, Movement, at_moments, movements, thinned
from jaxnet.explaining.live import plain
from jaxnet.explaining.notation import Notation
from jaxnet.explaining.numbering import number_layers
from jaxnet.explaining.numbers import one
from jaxnet.explaining.observe import Observed

MOST_MOMENTS = 16  # on the slider; of more, as many as are evenly apart
MOST_PIXELS = 250_000  # of all heat maps over the moments
WIDTH, HEIGHT, LEFT = 300, 110, 8


@dataclass(frozen=True)
class Chart:
    """Curves over the moments on one scale, each with its name and the points of its path."""

    title: str
    low: str
    high: str
    curves: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class RunCharts:
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
    return RunCharts(
        rows, charts(rows, kept), moments_at(rows), tuple(heat_maps(seen[-1], notation).values()),
        frames(seen, kept, rows, notation), kept.notes, len(history.moments) - len(moments),
    )  # fmt: skip


def along(shares: Sequence[float]) -> tuple[float, ...]:
    """Where on a chart something stands that happened after this share of the run."""
    return tuple(LEFT + (WIDTH - 2 * LEFT) * float(share) for share in shares)


def charts(rows: Sequence[Movement], history: History) -> tuple[Chart, ...]:
    """At the moments C, ‖δ‖, ‖W‖ and how far W has moved, of each dense layer; epoch by epoch loss and accuracy."""
    found = [chart("C at this example", {"C": [row.cost for row in rows]}, moments_at(rows))]
    layers = rows[0].layers
    for title, name in (
        ("‖δ‖ at this example", "deltas"),
        ("‖W‖", "weights"),
        ("W moved from its first value", "moved"),
    ):
        lines = {f"layer {n}": [getattr(row, name)[i] for row in rows] for i, n in enumerate(layers)}
        if lines:
            found.append(chart(title, lines, moments_at(rows)))
    epochs = [line for line in history.metrics if isinstance(line.get("epoch"), int)]
    last = max((line["epoch"] for line in epochs), default=0) or 1
    xs = along([line["epoch"] / last for line in epochs])
    for names in (LOSSES, ACCURACIES):
        name = next((name for name in names if any(name in line for line in epochs)), None)
        if name is not None:
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


def heat_maps(seen: Observed, notation: Notation) -> dict[str, tuple[str, Any]]:
    """W and δ of each dense layer as a title and a heat map, by the script's name."""
    found = {}
    for place in number_layers(seen, notation):
        if place.kind == "dense":
            for symbol, name, values in (("W", "run.W", place.item.params["W"]), ("δ", "run.err", place.item.d_out)):
                key = f"{name}.{place.index}"
                found[key] = f"{symbol}, layer {notation.number(place.number)}", heat(key, values)
    return found


def frames(
    seen: Sequence[Observed], history: History, rows: Sequence[Movement], notation: Notation
) -> list[dict[str, Any]]:
    """For each moment what the script puts in: words, heat maps as far as there is room, and small networks' params."""
    found = []
    pixels = 0
    for each, moment, row in zip(seen, history.moments, rows, strict=True):
        dense = [place for place in number_layers(each, notation) if place.kind == "dense"]
        pixels += sum(place.item.params["W"].size + place.item.d_out.size for place in dense)
        images = heat_maps(each, notation) if pixels <= MOST_PIXELS else {}
        maps = {name: str(image).split('src="')[1].split('"')[0] for name, (_, image) in images.items()}
        small = sum(place.item.params["W"].size for place in dense) <= 64
        params = {str(place.index): {name: plain(p) for name, p in place.item.params.items()} for place in dense}
        accuracy = "" if row.accuracy is None else f", accuracy {100 * row.accuracy:.1f} %"
        said = f"step {moment.step:,}, epoch {moment.epoch}: C {one(row.cost)}{accuracy}"
        found.append({"said": said, "maps": maps, "params": params if small else {}})
    return found
