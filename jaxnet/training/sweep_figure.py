"""Pictures of a sweep: the importance of keys, and the settings as parallel coordinates."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxnet.training.overrides import ConfigError, parse_value
from jaxnet.training.plots import LIGHT, dress, png
from jaxnet.training.run_folder import replace_file
from jaxnet.training.run_listing import heading, results, short_keys
from jaxnet.training.sweep import Outcome
from jaxnet.training.trackers import of_extra


def write_figure(outcomes: Sequence[Outcome], path: Path, metric: str | None = None) -> Path:
    """The importance of each key that varies, and a line for each setting across the keys, coloured by the metric.

    metric: by default the first result of the runs; its mean over the seeds is taken. Importance is the share of the
    metric's variance that a key explains. Source: Hutter, Hoos and Leyton-Brown, An Efficient Approach for Assessing
    Hyperparameter Importance, 2014.
    """
    metric = metric or next(iter(results([record for each in outcomes for record in each.records])), "")
    done = [(each, statistics.fmean(values)) for each in outcomes if (values := each.values(metric))]
    keys = [key for key in outcomes[0].setting.varied if len({each.setting.varied[key] for each, _ in done}) > 1]
    if not keys:
        raise ConfigError(f"a picture takes at least two finished settings that differ, got {len(done)}: train more")
    columns = [[parse_value(each.setting.varied[key], key) for each, _ in done] for key in keys]
    values = [value for _, value in done]
    figure = Figure(figsize=(3.6 + 1.7 * (len(keys) + 1), 3.8), layout="constrained", facecolor=LIGHT.paper)
    left, right = figure.subplots(1, 2, width_ratios=[1, 0.9 + 0.45 * len(keys)])
    shares, names = importances(columns, values), short_keys(keys)
    order = np.argsort(shares)
    left.barh([names[i] for i in order], [shares[i] for i in order], color=LIGHT.few[0])
    left.set_title("share of the variance explained", loc="left", color=LIGHT.ink, fontsize=11)
    parallel(right, [*columns, values], [*names, heading(metric)])
    right.set_title("settings, light: better", loc="left", color=LIGHT.ink, fontsize=11)
    for axes in (left, right):
        dress(axes, LIGHT, epochs=False)
    right.spines[:].set_visible(False)
    return replace_file(path, png(figure))


def importances(columns: Sequence[list[Any]], values: Sequence[float]) -> list[float]:
    """The share of the values' variance that each column explains, by optuna's functional ANOVA."""
    optuna: Any = of_extra("optuna", "search")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if len(set(values)) == 1:
        return [0.0] * len(columns)
    study = optuna.create_study()
    heights = [np.unique(places(column), return_inverse=True)[1] for column in columns]  # ranks: no key has a scale
    whole = optuna.distributions.IntDistribution
    of: dict[str, Any] = {str(i): whole(0, int(max(ranks))) for i, ranks in enumerate(heights)}
    for *ranks, value in zip(*heights, values, strict=True):
        params = {str(i): int(rank) for i, rank in enumerate(ranks)}
        study.add_trial(optuna.create_trial(params=params, distributions=of, value=value))
    found = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
    )
    return [float(found.get(str(i), 0.0)) for i in range(len(columns))]


def places(column: Sequence[Any]) -> np.ndarray:
    """The height of each value on its axis, 0 to 1: text evenly, numbers by their logarithm where they span decades."""
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in column)
    found = list(column) if numbers else [sorted(set(map(str, column))).index(str(each)) for each in column]
    if numbers and min(found) > 0 and max(found) > 30 * min(found):
        found = list(map(math.log, found))
    low, high = min(found), max(found)
    return (np.array(found, float) - low) / ((high - low) or 1)


def parallel(axes: Axes, columns: Sequence[list[Any]], names: Sequence[str]) -> None:
    """Draws a vertical axis for each column and a line for each row, coloured by the last column."""
    heights = np.array([places(column) for column in columns])
    better = 1 - heights[-1] if names[-1].endswith("loss") else heights[-1]
    for row, goodness in sorted(zip(heights.T, better, strict=True), key=lambda each: each[1]):
        axes.plot(row, color=matplotlib.colormaps["plasma"](0.85 * goodness), linewidth=1.6, alpha=0.85)
    for i, column in enumerate(columns):
        axes.axvline(i, color=LIGHT.grid, linewidth=0.8, zorder=0)
        labels = {round(float(height), 2): value for height, value in zip(heights[i], column, strict=True)}
        shown = sorted(labels) if len(labels) <= 5 else (min(labels), max(labels))
        for height in shown:
            value = labels[height]
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            style = {"fontsize": 8, "color": LIGHT.ink, "bbox": {"facecolor": LIGHT.paper, "pad": 0.5, "lw": 0}}
            axes.annotate(text[:16], (i, height), (4, 2), textcoords="offset points", **style)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks([])
