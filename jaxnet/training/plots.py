"""Curves of one run, or of several laid over each other, as matplotlib figures in a light and in a dark theme."""

import io
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from jaxnet.training.data.dataset import PARTS
from jaxnet.training.run_listing import RunRecord

DASHES: dict[str, Any] = {"train": "-", "validation": (0, (5, 1.5)), "test": (0, (1.2, 1.2))}
MARKED = 12  # so few epochs are shown as points too
NAMED = 8  # so many layers are named at their lines' ends at most
MOST_NAMES = 16  # of all runs together; more would not find room
COLUMN_INCHES = (5.2, 3.4)


class Theme(NamedTuple):
    """Colours: background, text, quiet text, grid, those of a few runs, and a colour map with its range for more."""

    paper: str
    ink: str
    quiet: str
    grid: str
    few: tuple[str, ...]
    many: str
    span: tuple[float, float]

    def colors(self, count: int) -> list[str]:
        """Distinct colours; many runs get an ordered colour map."""
        if count <= len(self.few):
            return list(self.few[:count])
        low, high = self.span
        chosen = matplotlib.colormaps[self.many]([low + (high - low) * i / (count - 1) for i in range(count)])
        return [to_hex(color) for color in chosen]


LIGHT = Theme(
    *("#ffffff", "#1c1c1c", "#5c5c5c", "#dddddd"),
    ("#0b62a4", "#c2410c", "#15803d", "#7e22ce", "#8a6100", "#be185d", "#0e7490", "#4d4d4d"),
    *("plasma", (0.0, 0.72)),
)
DARK = Theme(
    *("#16181c", "#ececec", "#a8a8a8", "#3a3d42"),
    ("#6cb6ff", "#ff9e64", "#7ee2a8", "#d2a8ff", "#f2cc60", "#ff9bce", "#6ee7f0", "#c9c9c9"),
    *("plasma", (0.35, 1.0)),
)


class Panel(NamedTuple):
    """One plot: name, title, description, the function that draws it, and whether its x axis is that of epochs."""

    name: str
    title: str
    words: str
    draw: Callable[[Axes, Sequence[RunRecord], Theme], None]
    epochs: bool = True


# ------------------------------------------------------------------------------------------- series


def series(record: RunRecord, name: str, layer: int | None = None) -> tuple[list[int], list[float]]:
    """Epochs and values of a metric, of one layer where it is a list; missing and infinite values leave gaps."""
    epochs, values = [], []
    for i, line in enumerate(record.metrics, 1):
        value = line.get(name)
        if layer is not None:
            value = value[layer] if isinstance(value, list) and layer < len(value) else None
        epochs.append(int(line.get("epoch", i)))
        values.append(float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan)
    return epochs, values


def has(record: RunRecord, name: str) -> bool:
    """Whether any epoch of a run has this metric."""
    return any(line.get(name) not in (None, []) for line in record.metrics)


def layers_of(record: RunRecord, name: str) -> int:
    """Over how many layers a metric goes."""
    return max((len(line[name]) for line in record.metrics if isinstance(line.get(name), list)), default=0)


def line(axes: Axes, xs: Sequence[int], ys: Sequence[float], **style: Any) -> None:
    """One curve; a short one with its points."""
    axes.plot(xs, ys, marker="o" if len(xs) <= MARKED else None, markersize=3.2, linewidth=1.6, **style)


# -------------------------------------------------------------------------------------------- panels


def by_split(measure: str, factor: float = 1.0) -> Callable[[Axes, Sequence[RunRecord], Theme], None]:
    """Draws train, validation and test: for one run each in its colour, for several a colour for each run."""

    def draw(axes: Axes, records: Sequence[RunRecord], theme: Theme) -> None:
        alone = len(records) == 1
        colors = theme.colors(3 if alone else len(records))
        shown = [split for split in PARTS if any(has(record, f"{split}_{measure}") for record in records)]
        for i, record in enumerate(records):
            for split in shown:
                xs, ys = series(record, f"{split}_{measure}")
                color = colors[PARTS.index(split) if alone else i]
                line(axes, xs, [factor * y for y in ys], color=color, linestyle=DASHES[split])
        handles = [
            Line2D([], [], color=colors[PARTS.index(s)] if alone else theme.ink, linestyle=DASHES[s], label=s)
            for s in shown
        ]
        axes.legend(handles=handles, labelcolor=theme.ink, frameon=False, fontsize=10, handlelength=2.4)
        if measure == "loss":
            log_where_wide(axes)

    return draw


def log_where_wide(axes: Axes) -> None:
    """A logarithmic axis where values span more than a factor of 30, all above zero."""
    values = [float(y) for curve in axes.get_lines() for y in np.ravel(curve.get_ydata()) if math.isfinite(y)]
    if values and min(values) > 0 and max(values) > 30 * min(values):
        log_axis(axes)


def log_axis(axes: Axes) -> None:
    """A logarithmic axis with plain numbers at its ticks, at 2 and 5 also where it spans few decades."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(NullFormatter())
    if high < 150 * low:
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5) if high > 6 * low else tuple(range(2, 10))))
        axes.yaxis.set_minor_formatter(plain)


def by_layer(name: str, log: bool = True, factor: float = 1.0) -> Callable[[Axes, Sequence[RunRecord], Theme], None]:
    """Draws one curve for each layer, its number at its end: for one run in colours by layer, for several by run."""

    def draw(axes: Axes, records: Sequence[RunRecord], theme: Theme) -> None:
        alone = len(records) == 1
        ends: list[tuple[float, float, str, str]] = []
        for i, record in enumerate(records):
            count = layers_of(record, name)
            colors = theme.colors(count) if alone else [theme.colors(len(records))[i]] * count
            for layer in range(count):
                xs, ys = series(record, name, layer)
                ys = [factor * y if y > 0 or not log else math.nan for y in ys]  # a log axis has no zero
                fade = 1.0 if alone or count == 1 else 1 - 0.45 * layer / (count - 1)
                line(axes, xs, ys, color=colors[layer], alpha=fade)
                seen = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
                if seen and (count <= NAMED or layer in (0, count - 1)):
                    ends.append((*seen[-1], str(layer + 1), colors[layer]))
        if ends and log:
            log_axis(axes)
        name_ends(axes, ends if len(ends) <= MOST_NAMES else [])

    return draw


def name_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Writes each curve's name beside its end, apart from the one below; names that would be far off are skipped."""
    log = axes.get_yscale() == "log"
    height_of, value_at = (math.log, math.exp) if log else (float, float)
    low, high = map(height_of, axes.get_ylim())
    gap = 0.065 * (high - low)
    written: dict[float, float] = {}  # by epoch, the height of the last name
    for x, y, name, color in sorted(ends, key=lambda end: end[1]):
        height = max(height_of(y), written.get(x, -math.inf) + gap)
        if height - height_of(y) < 2.5 * gap:
            written[x] = height
            style = {"va": "center", "color": color, "fontsize": 10, "weight": "bold"}
            axes.annotate(name, (x, value_at(height)), (5, 0), textcoords="offset points", **style)


def speed(axes: Axes, records: Sequence[RunRecord], theme: Theme) -> None:
    """Draws examples per second."""
    for record, color in zip(records, theme.colors(len(records)), strict=True):
        line(axes, *series(record, "examples_per_second"), color=color)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))


def thousands(value: float) -> str:
    """850, 12k, 1.5M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


NUMBERED = "numbered by layer, 1 nearest the input; of several runs the later layers are fainter"
PANELS = (
    Panel("loss", "loss", "mean cost, train as seen during the epoch", by_split("loss")),
    Panel("accuracy", "accuracy, %", "share of right answers after each epoch", by_split("accuracy", 100)),
    Panel(
        "test_class_accuracy",
        "test accuracy by class",
        "share of right answers; the number is the class, from 1",
        by_layer("test_class_accuracy", log=False),
    ),
    Panel("delta_norms", "‖δ‖ by layer", f"root mean square over the examples; {NUMBERED}", by_layer("delta_norms")),
    Panel(
        "mean_delta_norms",
        "‖mean δ‖ by layer",
        f"of the mean over chosen examples; {NUMBERED}",
        by_layer("mean_delta_norms"),
    ),
    Panel("gradient_norms", "‖gradient‖ by layer", NUMBERED, by_layer("gradient_norms")),
    Panel("update_ratios", "‖update‖ / ‖parameters‖ by layer", NUMBERED, by_layer("update_ratios")),
    Panel("update_angles", "gradient to the true gradient, °", NUMBERED, by_layer("update_angles", log=False)),
    Panel("feedback_angles", "feedback path to Wᵀ, °", NUMBERED, by_layer("feedback_angles", log=False)),
    Panel(
        "dead_units",
        "dead units, %",
        f"share of an activation's units that are 0 for all examples looked at; {NUMBERED}",
        by_layer("dead_units", log=False, factor=100),
    ),
    Panel("examples_per_second", "examples/s", "trained, without evaluation and compilation", speed),
)


def panels_of(records: Sequence[RunRecord]) -> list[Panel]:
    """The panels that have numbers in any of the runs."""

    def names(panel: Panel) -> list[str]:
        return [panel.name, *(f"{split}_{panel.name}" for split in PARTS)]

    return [panel for panel in PANELS if any(has(record, name) for record in records for name in names(panel))]


# ------------------------------------------------------------------------------------------- figures


def dress(axes: Axes, theme: Theme, epochs: bool = True) -> None:
    """Colours; for an axis of epochs its name, whole numbers and a grid."""
    axes.set_facecolor(theme.paper)
    axes.tick_params(which="both", colors=theme.quiet, labelsize=10 if epochs else 8)
    if epochs:
        axes.grid(True, color=theme.grid, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.set_xlabel("epoch", color=theme.quiet, fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.quiet)


def panel_svg(panel: Panel, records: Sequence[RunRecord], theme: Theme) -> str:
    """One panel as an SVG that needs no font."""
    figure = Figure(figsize=(4.3, 2.8), layout="constrained", facecolor=theme.paper)
    axes = figure.add_subplot()
    panel.draw(axes, records, theme)
    dress(axes, theme, panel.epochs)
    return svg(figure)


def svg(figure: Figure) -> str:
    """A figure as SVG, the same bytes for the same figure."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "jaxnet", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def overview(records: Sequence[RunRecord], names: Sequence[str], title: str) -> Figure:
    """All panels in one figure, with the runs' names below where there are several."""
    panels = panels_of(records)
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    legend = 0.0 if len(records) == 1 else 0.2 * len(records) + 0.2
    width, height = COLUMN_INCHES
    figure = Figure(
        figsize=(columns * width, rows * height + 0.4 + legend), layout="constrained", facecolor=LIGHT.paper
    )
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)  # type: ignore[union-attr]  # "constrained" has one
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        panel.draw(axes, records, LIGHT)
        dress(axes, LIGHT)
        axes.set_title(panel.title, loc="left", color=LIGHT.ink, fontsize=11)
    title = "\n".join(part for line in title.split("\n") for part in textwrap.wrap(line, 48 * columns))
    figure.suptitle(title, color=LIGHT.ink, fontsize=12, x=0.01, ha="left")
    if legend:
        colors = LIGHT.colors(len(records))
        handles = [
            Line2D([], [], color=color, linewidth=2, label=name) for color, name in zip(colors, names, strict=True)
        ]
        figure.legend(handles=handles, loc="outside lower left", labelcolor=LIGHT.ink, frameon=False, fontsize=10)
    return figure


def png(figure: Figure) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
