"""Do the networks of Nielsen's book come out as published?

    python -m experiments.nielsen [RECIPE …] [--seeds 5] [--runs-dir runs/nielsen] [--markdown FILE] [--figure FILE]

Trains the recipes of chapters 1 to 5, `configs/nielsen_ch*.toml`, with several seeds (those of one recipe as one
vmapped program; finished runs are skipped) and prints published beside reproduced. The figure is of
`configs/nielsen_ch5_speeds.toml`: how the error shrinks from layer to layer on its way back.

Source: Michael Nielsen, Neural Networks and Deep Learning, 2015; each figure is of the epoch that did best.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.table import Table

from jaxnet.training.plots import log_axis
from jaxnet.training.run_listing import RunRecord, console
from jaxnet.training.sweep import Outcome, run_sweep
from jaxnet.training.sweep_file import Sweep, make_setting

CONFIGS = Path(__file__).parent.parent / "configs"
HEADINGS = ("recipe", "network", "figure", "published", "best epoch", "last epoch", "off", "seconds a seed")


class Recipe(NamedTuple):
    """A config and its published accuracy, on the split that the book takes it on."""

    config: str
    network: str
    split: str
    published: float


RECIPES = (
    Recipe("nielsen_ch1_30", "784-30-10, quadratic", "test", 0.9542),
    Recipe("nielsen_ch1_100", "784-100-10, quadratic", "test", 0.9659),
    Recipe("nielsen_ch3_30", "784-30-10, cross-entropy, L2", "test", 0.9649),
    Recipe("nielsen_ch3_100", "784-100-10, cross-entropy, L2", "validation", 0.9792),
    Recipe("nielsen_ch3_98", "784-100-10, cross-entropy, L2, 60 epochs", "validation", 0.9804),
    Recipe("nielsen_ch5_1", "one hidden layer of 30", "validation", 0.9648),
    Recipe("nielsen_ch5_2", "two", "validation", 0.9690),
    Recipe("nielsen_ch5_3", "three", "validation", 0.9657),
    Recipe("nielsen_ch5_4", "four", "validation", 0.9653),
)


def row(recipe: Recipe, outcome: Outcome) -> tuple[str, ...]:
    """A recipe's line: published beside reproduced, mean ± standard deviation over the seeds, in percent."""
    best = outcome.values(f"best_{recipe.split}_accuracy")
    last = outcome.values(f"{recipe.split}_accuracy")
    seconds = statistics.fmean(outcome.values("seconds")) / len(best)  # each run of a vmapped program says that of all
    off = 100 * (statistics.fmean(best) - recipe.published)
    return (
        recipe.config,
        recipe.network,
        recipe.split,
        f"{100 * recipe.published:.2f}",
        percent(best),
        percent(last),
        f"{off:+.2f}",
        f"{seconds:.0f}",
    )


def percent(accuracies: Sequence[float]) -> str:
    """Mean ± standard deviation over the seeds, in percent."""
    return f"{100 * statistics.fmean(accuracies):.2f} ± {100 * statistics.stdev(accuracies):.2f}"


def draw(record: RunRecord, file: Path) -> None:
    """Each example's ‖δ‖ at every layer over the epochs, as a picture."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    epochs = [line["epoch"] for line in record.metrics]
    *hidden, last = zip(*(line["delta_norms"] for line in record.metrics), strict=True)
    names = [f"hidden layer {i}" for i in range(1, len(hidden) + 1)]
    for name, norms in zip(["output layer", *reversed(names)], [last, *reversed(hidden)], strict=True):
        above.plot(epochs, norms, label=name)
    log_axis(above)
    above.set(ylabel="‖δ‖ of an example")
    above.set_title("Three hidden layers of 30 sigmoids: the error on its way back", loc="left", fontsize=11)
    figure.legend(loc="outside right upper", frameon=False)
    below.plot(epochs, [line["validation_accuracy"] for line in record.metrics], color="0.35")
    below.set(xlabel="epoch of gradient descent on 1,000 images", ylabel="validation", ylim=(0, 1))
    below.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=150)


def main(
    recipes: Annotated[list[str] | None, typer.Argument(metavar="RECIPE…", help="Some of them; else all.")] = None,
    seeds: Annotated[int, typer.Option(min=2)] = 5,
    epochs: Annotated[int | None, typer.Option(min=1, help="Other than the recipe's, for a trial.")] = None,
    runs_dir: Path = Path("runs/nielsen"),
    markdown: Annotated[Path | None, typer.Option(help="Write the table there, too.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw chapter 5's δ by layer there.")] = None,
) -> None:
    """Train the networks of Nielsen's book over several seeds; published beside reproduced."""
    chosen = [recipe for recipe in RECIPES if not recipes or recipe.config in recipes]
    unknown = set(recipes or ()) - {recipe.config for recipe in RECIPES}
    if unknown:
        names = ", ".join(recipe.config for recipe in RECIPES)
        raise typer.BadParameter(f"a recipe is one of {names}, got {', '.join(sorted(unknown))}")
    fixed = [f"train.epochs={epochs}"] if epochs else []
    settings = [make_setting(CONFIGS / f"{recipe.config}.toml", fixed, {}) for recipe in chosen]
    to = console()
    outcomes = run_sweep(Sweep(settings, seeds, together=True), runs_dir=runs_dir, say=print)
    rows = [row(recipe, outcome) for recipe, outcome in zip(chosen, outcomes, strict=True)]
    table = Table(*HEADINGS, title=f"accuracy in %, mean ± standard deviation over {seeds} seeds", title_justify="left")
    for line in rows:
        table.add_row(*line)
    to.print(table)
    if markdown:
        lines = [HEADINGS, ("---",) * len(HEADINGS), *rows]
        markdown.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))
    if figure:
        speeds = Sweep([make_setting(CONFIGS / "nielsen_ch5_speeds.toml", fixed, {})], 1, together=False)
        [outcome] = run_sweep(speeds, runs_dir=runs_dir, say=print)
        draw(outcome.records[0], figure)


if __name__ == "__main__":
    typer.run(main)
