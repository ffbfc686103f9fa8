"""The network as a picture for a paper or slides, SVG or PNG: units and edges, or heat maps of a larger one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxnet.explaining.cells import montage
from jaxnet.explaining.drawing import Drawing, drawing
from jaxnet.explaining.expressions import latex
from jaxnet.explaining.lines import Chain
from jaxnet.explaining.notation import ExplainError
from jaxnet.explaining.numbers import one

KINDS = (".svg", ".png", ".pdf")


def write_figure(path: Path, chain: Chain) -> None:
    """Writes the drawing of a network, or, where it is too large to be drawn, its values and errors as heat maps.

    Raises `ExplainError` for another kind of file.
    """
    from matplotlib.figure import Figure

    if path.suffix not in KINDS:
        raise ExplainError(f"--figure writes {', '.join(KINDS)}, got {path.name}: give the file one of these endings")
    drawn = drawing(chain.places)
    figure = Figure(layout=None if drawn.columns else "constrained")
    if drawn.columns:
        figure.set_size_inches(drawn.width / 72, drawn.height / 72)
        units_and_edges(figure.add_axes((0, 0, 1, 1)), drawn)
    else:
        heat_maps(figure, chain)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)


def units_and_edges(axes: Any, drawn: Drawing) -> None:
    """Edges as wide as their weights, red above zero and blue below; each unit with its value and its error."""
    axes.set(xlim=(0, drawn.width), ylim=(drawn.height, 0), aspect="equal")
    axes.axis("off")
    for column in drawn.columns:
        for edge in column.edges:
            axes.plot((edge.x1, edge.x2), (edge.y1, edge.y2), linewidth=0.5 + 3 * abs(edge.weights),
                      color=color(edge.weights), zorder=1)  # fmt: skip
        for unit in column.units:
            axes.scatter(unit.x, unit.y, s=(2 * drawn.radius) ** 2 * 0.9, facecolor="white", edgecolor="0.3", zorder=2)
            axes.annotate(
                f"${latex(unit.symbol)}$\n{one(unit.a, 2)}", (unit.x, unit.y), ha="center", va="center", size=8
            )
            said = f"{'δ' if column.item >= 0 else '∂C/∂x'} {one(unit.delta, 3)}"
            axes.annotate(said, (unit.x, unit.y + drawn.radius + 9), ha="center", va="center", size=7, color="0.35")


def heat_maps(figure: Any, chain: Chain) -> None:
    """A row for each layer: what it gives, and the error there."""
    places = chain.places
    figure.set_size_inches(7, 1.1 * len(places) + 0.4)
    for row, place in zip(figure.subplots(len(places), 2, squeeze=False), places, strict=True):
        error = chain.notation.delta(place.number) if place.is_z else chain.notation.partial(place.gives)
        for axes, values, symbol in zip(row, (place.item.out, place.item.d_out), (place.gives, error), strict=True):
            pixels = montage(np.nan_to_num(np.asarray(values, np.float64)))
            top = float(np.abs(pixels).max(initial=0)) or 1.0
            axes.imshow(pixels, cmap="RdBu_r", vmin=-top, vmax=top, aspect="auto", interpolation="nearest")
            axes.set(xticks=(), yticks=())
            axes.set_title(f"{place.item.layer.name}: ${latex(symbol)}$, largest {one(top, 3)}", size=8, loc="left")


def color(share: float) -> str:
    """Red above zero, blue below."""
    return "#ce4632" if share > 0 else "#256ebe"
