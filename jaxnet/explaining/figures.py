"""Pictures for a paper or slides: the network as units and edges, the steps of the walk, the moments of a run.

One picture is SVG, PNG or PDF; several are its panels, or an animated GIF.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxnet.explaining.cells import montage
from jaxnet.explaining.derive import chain_of
from jaxnet.explaining.drawing import Drawing, drawing
from jaxnet.explaining.expressions import latex, written
from jaxnet.explaining.guided_walk import WalkStep
from jaxnet.explaining.history import History, at_moments, thinned
from jaxnet.explaining.lines import Chain
from jaxnet.explaining.notation import ExplainError, Notation
from jaxnet.explaining.numbers import one
from jaxnet.explaining.observe import Observed

KINDS = (".svg", ".png", ".pdf", ".gif")
DPI, SLIDE = 100, (6.4, 4.8)  # of an animation: dots per inch, inches
MOST_MOMENTS = 24  # of a run
ONE_PATH, ONE_STEP, ONE_MOMENT = 900, 4500, 400  # milliseconds


@dataclass(frozen=True)
class Picture:
    """The network, the text below it, and the lit parts; `lasts` milliseconds. width: of edges, 1 for the largest."""

    chain: Chain
    said: str = ""
    units: tuple[tuple[int, int], ...] = ()
    edges: dict[tuple[int, int], str] = field(default_factory=dict)
    lasts: int = ONE_STEP
    width: float = 1.0


def pictures_of_walk(chain: Chain, steps: Sequence[WalkStep], *, moving: bool) -> list[Picture]:
    """A picture for each step. moving: one for each product too, as the paths are counted."""
    found = []
    for i, step in enumerate(steps, 1):
        text = "\n".join(textwrap.fill(line, 88, subsequent_indent="  " * line.startswith(" ")) for line in step.lines)
        whole = Picture(chain, f"{i} of {len(steps)}   {step.title}\n{text}", step.units, step.edges)
        items = list(step.edges.items())
        if moving and any(step.edges.values()):
            found += [replace(whole, edges=dict(items[:n]), lasts=ONE_PATH) for n in range(1, len(items))]
        found.append(whole)
    return found


def pictures_of_run(observed: Observed, run: History, symbols: Notation) -> list[Picture]:
    """The network at each moment of a run, edges of one scale throughout."""
    moments = thinned(run.moments, MOST_MOMENTS)
    chains = [chain_of(each, symbols) for each in at_moments(observed, replace(run, moments=tuple(moments)))]
    sizes = [max((float(np.abs(place.item.params["W"]).max(initial=0)) for place in chain.places
                  if place.kind == "dense"), default=1.0) for chain in chains]  # fmt: skip
    cost = written(symbols.cost)
    found = [
        Picture(chain, f"step {each.step:,}, epoch {each.epoch}   {cost} = {one(chain.observed.cost)}",
                lasts=ONE_MOMENT, width=size / (max(sizes) or 1.0))
        for each, chain, size in zip(moments, chains, sizes, strict=True)
    ]  # fmt: skip
    return [*found[:-1], replace(found[-1], lasts=ONE_STEP)]


def write_figure(path: Path, pictures: Sequence[Picture]) -> None:
    """Writes one picture, or several as panels; of a GIF one after the other.

    Raises `ExplainError` for another kind of file.
    """
    from matplotlib.figure import Figure

    if path.suffix not in KINDS:
        raise ExplainError(f"--figure writes {', '.join(KINDS)}, got {path.name}: give the file one of these endings")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gif":
        animate(path, pictures)
        return
    columns = min(2, len(pictures))
    rows = -(-len(pictures) // columns)
    figure: Any = Figure()
    parts = [figure] if len(pictures) == 1 else np.ravel(figure.subfigures(rows, columns))
    sizes = [draw(part, each) for part, each in zip(parts, pictures, strict=False)]
    figure.set_size_inches(columns * sizes[-1][0], rows * sizes[-1][1])
    figure.savefig(path, dpi=200)


def animate(path: Path, pictures: Sequence[Picture]) -> None:
    """Writes pictures one after the other as an animated GIF."""
    from matplotlib.figure import Figure
    from PIL import Image

    frames = []
    for each in pictures:
        figure = Figure(figsize=SLIDE)
        draw(figure, each)
        held = io.BytesIO()
        figure.savefig(held, format="png", dpi=DPI)
        frames.append(Image.open(held).convert("P", palette=Image.Palette.ADAPTIVE, colors=64))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=[each.lasts for each in pictures], loop=0)


def draw(figure: Any, picture: Picture) -> tuple[float, float]:
    """A picture on a figure; gives its size in inches."""
    drawn = drawing(picture.chain.places)
    if not drawn.columns:
        return heat_maps(figure, picture)
    if not picture.said:
        units_and_edges(figure.add_axes((0, 0, 1, 1)), drawn, picture)
        return drawn.width / 72, drawn.height / 72
    units_and_edges(figure.add_axes((0.02, 0.33, 0.96, 0.65)), drawn, picture)
    title, _, text = picture.said.partition("\n")
    figure.text(0.04, 0.31, title, va="top", size=11, weight="bold")
    figure.text(0.04, 0.255, text, va="top", size=8, linespacing=1.5)
    return SLIDE


def units_and_edges(axes: Any, drawn: Drawing, picture: Picture) -> None:
    """Edges as wide as their weights, red above zero and blue below; each unit with its value and its error.

    Where something is lit all else is pale.
    """
    from matplotlib.patches import Circle

    chosen = bool(picture.units or picture.edges)
    axes.set(xlim=(0, drawn.width), ylim=(drawn.height, 0), aspect="equal")
    axes.axis("off")
    for column in drawn.columns:
        for edge in column.edges:
            product = picture.edges.get((column.item, edge.index))
            axes.plot((edge.x1, edge.x2), (edge.y1, edge.y2), linewidth=0.5 + 3 * abs(edge.weights) * picture.width,
                      color=color(edge.weights), alpha=0.15 if chosen and product is None else 1, zorder=1)  # fmt: skip
            if product:
                far = 0.5 if "×" in product else 0.78
                x, y = ((1 - far) * a + far * b for a, b in ((edge.x1, edge.x2), (edge.y1, edge.y2)))
                axes.text(x, y, product, ha="center", va="center", size=7, weight="bold", zorder=4,
                          bbox={"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.85})  # fmt: skip
        for unit in column.units:
            pale = 0.3 if chosen and (column.item, unit.index) not in picture.units else 1
            at = (unit.x, unit.y)
            axes.add_patch(Circle(at, drawn.radius, facecolor="white", edgecolor="0.3", zorder=2))
            axes.annotate(f"${latex(unit.symbol)}$\n{one(unit.a, 2)}", at, ha="center", va="center", size=8, alpha=pale)
            said = f"{'δ' if column.item >= 0 else '∂C/∂x'} {one(unit.delta, 3)}"
            axes.annotate(said, (unit.x, unit.y + drawn.radius + 9), ha="center", va="center", size=7, color="0.35",
                          alpha=pale)  # fmt: skip


def heat_maps(figure: Any, picture: Picture) -> tuple[float, float]:
    """A row for each layer: its output, and the error there."""
    chain = picture.chain
    if hasattr(figure, "set_layout_engine"):
        figure.set_layout_engine("constrained")
    figure.suptitle(picture.said.partition("\n")[0], size=9)
    for row, place in zip(figure.subplots(len(chain.places), 2, squeeze=False), chain.places, strict=True):
        error = chain.notation.delta(place.number) if place.is_z else chain.notation.partial(place.gives)
        for axes, values, symbol in zip(row, (place.item.out, place.item.d_out), (place.gives, error), strict=True):
            pixels = montage(np.nan_to_num(np.asarray(values, np.float64)))
            top = float(np.abs(pixels).max(initial=0)) or 1.0
            axes.imshow(pixels, cmap="RdBu_r", vmin=-top, vmax=top, aspect="auto", interpolation="nearest")
            axes.set(xticks=(), yticks=())
            axes.set_title(f"{place.item.layer.name}: ${latex(symbol)}$, largest {one(top, 3)}", size=8, loc="left")
    return 7, 1.1 * len(chain.places) + 0.4


def color(share: float) -> str:
    """Red above zero, blue below."""
    return "#ce4632" if share > 0 else "#256ebe"
