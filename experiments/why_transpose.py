"""Why does the error go back by Wᵀ, and not by W⁻¹, or by any other matrix?

    python -m experiments.why_transpose [KEY=VALUE …] [--out FILE] [--runs-dir DIR] [--data-dir DIR]

Trains one network from one seed with every feedback path of `jaxnet.feedback` (experiments/why_transpose.toml;
KEY=VALUE changes it, such as data=digits), and once more with orthogonal matrices, where W⁻¹ is Wᵀ. The page shows
accuracies, the angle of each layer's gradient to the true one, and the angle of the feedback matrix to Wᵀ.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import numpy as np
import typer

from experiments.page import Plot, Section, Table, Words, page, plot, write_page
from jaxnet.training import devices, loop
from jaxnet.training.config import Config, load_config
from jaxnet.training.data import DataError, Dataset, load
from jaxnet.training.session import Session

CONFIG = Path(__file__).with_suffix(".toml")
SQUARE = '{ name = "inverse", layers = [1] }'
PATHS = {
    "transpose": ("Wᵀ", "transpose"),
    "inverse": ("W⁻¹, where W is square", SQUARE),
    "pinv": ("W⁺, the pseudo-inverse", "pinv"),
    "sign": ("sign(W)ᵀ", "sign"),
    "random": ("Bᵀ, random and fixed", "random"),
    "direct": ("B e, straight from the output", "direct"),
}
ORTHOGONAL = ("transpose", "inverse")


class Run(NamedTuple):
    """One feedback path: accuracies and angles by epoch, the first before training; "diverged" if it did."""

    path: str
    accuracies: list[float]
    update_angles: list[list[float]]
    feedback_angles: list[list[float]]
    conditions: list[float]
    trouble: str = ""


class Results(NamedTuple):
    """All runs of the network as it is, and of the one whose matrices begin orthogonal."""

    data: str
    network: str
    epochs: int
    optimizer: str
    runs: list[Run]
    orthogonal: list[Run]


def trained(config: Config, dataset: Dataset, path: str, folder: Path, data_dir: Path | None) -> Run:
    """One run, from the first parameters on."""
    with devices.precision(config.precision):
        session = Session(config, dataset)
        params = session.begin().whole
        before = {name: value[0].tolist() for name, value in session.watch(params).items()}
    lines, trouble = [before], ""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        loop.train(config, run_dir=folder, data_dir=data_dir, quiet=True)
    except loop.DivergedError as error:
        trouble = str(error).partition(":")[0]
    metrics = folder / "metrics.jsonl"
    lines += [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    return Run(
        path,
        [line["test_accuracy"] for line in lines],
        [line["update_angles"] for line in lines],
        [line["feedback_angles"] for line in lines],
        [float(np.linalg.cond(np.asarray(W, np.float64))) for W in jax.tree.leaves(params) if np.ndim(W) == 2],
        trouble,
    )


def measure(
    overrides: Sequence[str], runs_dir: Path, data_dir: Path | None, paths: Sequence[str] = tuple(PATHS)
) -> Results:
    """Trains with every feedback path."""
    config = load_config(CONFIG, overrides)
    dataset = load(config.data, data_dir=data_dir)

    def run(path: str, init: str) -> Run:
        changed = load_config(CONFIG, [f"init={init}", *overrides, f"feedback={PATHS[path][1]}"])
        print(f"{path}, {init}", flush=True)
        return trained(changed, dataset, path, runs_dir / f"{init}-{path}", data_dir)

    init = config.init or "he_normal"
    layers = [layer["dense"] for layer in config.model if isinstance(layer, dict) and "dense" in layer]
    return Results(
        dataset.summary(),
        "-".join(map(str, [dataset.train.x[0].size, *layers])),
        config.train.epochs,
        " ".join(f"{value}" for value in dict(config.train.optimizer).values()),
        [run(path, init) for path in paths],
        [run(path, "orthogonal") for path in paths if path in ORTHOGONAL],
    )


# ------------------------------------------------------------------------------------------------- the page


def accuracy_plot(results: Results) -> Plot:
    """Test accuracy over the epochs."""

    def draw(axes, theme):
        for run, color in zip(results.runs, theme.colors(len(results.runs)), strict=True):
            axes.plot(range(len(run.accuracies)), [100 * a for a in run.accuracies], "o-", color=color, label=run.path)
        lows = [100 * a for run in results.runs for a in run.accuracies[1:]]
        if lows and min(lows) > 50:
            axes.set_ylim(min(lows) - 3, 100)
        axes.set(xlabel="epoch", ylabel="test accuracy, %")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()

    return plot("Test accuracy", "one network, one seed, so half a point is no verdict",
                f"test accuracy of {len(results.runs)} paths by epoch; the last is in the table", draw)  # fmt: skip


def angle_plot(runs: Sequence[Run], name: str, title: str, words: str, layer: int) -> Plot:
    """Angles at one layer over the epochs."""

    def draw(axes, theme):
        for run, color in zip(runs, theme.colors(len(runs)), strict=True):
            angles = [row[layer] for row in getattr(run, name)]
            axes.plot(range(len(angles)), angles, "o-", color=color, label=run.path)
        axes.set(xlabel="epoch, 0 before training", ylabel="degrees", ylim=(-5, 125))
        axes.set_yticks([0, 30, 60, 90, 120])
        axes.axhline(90, color=theme.quiet, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(ncols=2)

    return plot(title, words, f"{title} of {len(runs)} feedback paths by epoch, in degrees; numbers in the table", draw)


def degrees(angle: float) -> str:
    """An angle as it stands on the page."""
    return f"{angle:.1f}°"


def percent(accuracy: float) -> str:
    """An accuracy as it stands on the page."""
    return f"{100 * accuracy:.2f}"


def table(title: str, runs: Sequence[Run], layer: int = 1) -> Table:
    """Final accuracy, and angles before and after training: gradient of the first layer, feedback of the middle one."""
    headings = ("feedback path", "what comes back", "test accuracy, %", "∇W¹ to the true one, before", "after",
                "feedback path to W²ᵀ, before", "after", "ended")  # fmt: skip
    rows = [
        (run.path, PATHS[run.path][0], percent(run.accuracies[-1]),
         *(degrees(run.update_angles[i][0]) for i in (0, -1)),
         *(degrees(run.feedback_angles[i][layer]) for i in (0, -1)), run.trouble or "after the last epoch")
        for run in runs
    ]  # fmt: skip
    return Table(title, headings, rows, labels=2)


def by_way(runs: Sequence[Run]) -> dict[str, Run]:
    return {run.path: run for run in runs}


def answer(results: Results) -> list[str]:
    """The results in words."""
    runs, orthogonal = by_way(results.runs), by_way(results.orthogonal)
    right, told = runs["transpose"], []
    told.append(
        f"Only Wᵀ brings back ∂C/∂a: with it each layer's gradient is the true one, at 0°. {results.network} then "
        f"reaches {percent(right.accuracies[-1])} % in {results.epochs} epochs."
    )
    if "inverse" in runs and "inverse" in orthogonal:
        inverse, alike = runs["inverse"], orthogonal["inverse"]
        told.append(
            f"The inverse is another matrix: it exists for the square W² alone, and undoes the layer instead of asking "
            f"how each input moves the cost. Its gradient for W¹ begins {degrees(inverse.update_angles[0][0])} off the "
            f"true one and ends {degrees(inverse.update_angles[-1][0])} off, at {percent(inverse.accuracies[-1])} %: "
            f"what it learns it learns as other wrong matrices do, by staying under 90°. Where W² begins orthogonal, "
            f"W⁻¹ is Wᵀ and the angle is {degrees(alike.update_angles[0][0])}; training bends it to "
            f"{degrees(alike.update_angles[-1][0])}."
        )
    told += [
        f"{PATHS[name][0]}: {percent(runs[name].accuracies[-1])} %, its gradient for W¹ "
        f"{degrees(runs[name].update_angles[0][0])} off at first, "
        f"{degrees(runs[name].update_angles[-1][0])} at the end."
        for name in ("pinv", "sign", "random", "direct")
        if name in runs
    ]
    return told


def sections(results: Results) -> list[Section]:
    """The page's sections."""
    words = (
        "The update of every layer is δ aᵀ with the layer's true input a; what differs is only by which matrix δ came. "
        "Less than 90° from the true gradient, a small enough step still lowers the cost: that is why a fixed random "
        "matrix learns. The last layer's δ comes from the loss itself and is right in every run."
    )
    bend = feedback_alignment(by_way(results.runs).get("random"))
    parts = [
        Section("Every feedback path, one network", [
            accuracy_plot(results),
            angle_plot(results.runs, "update_angles", "∇W¹ to the true gradient", "on 1,000 training examples; under "
                       "90° a small step goes downhill", 0),
            angle_plot(results.runs, "feedback_angles", "The feedback path to W²ᵀ", "as vectors of all entries; "
                       "direct: B e to W²ᵀδ", 1),
            table("Every feedback path", results.runs), Words(words), *bend,
        ]),
    ]  # fmt: skip
    if results.orthogonal:
        square = (
            "Is it the inverse after all? W² is square. Drawn orthogonal, W²⁻¹ = W²ᵀ and both paths send the same "
            "error; as soon as steps bend W², they part. "
            f"Condition numbers of W¹, W², W³ at the start: {conditions(results.orthogonal[0])} orthogonal, "
            f"{conditions(results.runs[0])} drawn at random: W⁻¹ stretches by as much what W shrank."
        )
        parts.append(Section("Where inverse and transpose coincide", [
            angle_plot(results.orthogonal, "update_angles", "∇W¹ to the true gradient, W orthogonal at first",
                       "the inverse begins at 0°", 0),
            table("Orthogonal at first", results.orthogonal), Words(square),
        ]))  # fmt: skip
    return parts


def feedback_alignment(run: Run | None) -> list[Words]:
    """Whether forward weights turned towards the fixed B."""
    if run is None:
        return []
    before, after = ([row[layer] for layer in (1, 2)] for row in (run.feedback_angles[0], run.feedback_angles[-1]))
    moved = ", ".join(
        f"W{name} from {degrees(b)} to {degrees(a)}" for name, b, a in zip("²³", before, after, strict=True)
    )
    return [Words(f"Of the fixed random B's to the weights that they stand for: {moved}. Where the angle falls, "
                  "forward weights turn towards the matrix by which they are taught: feedback alignment.")]  # fmt: skip


def conditions(run: Run) -> str:
    """Condition numbers in words."""
    return ", ".join(f"{value:.3g}" for value in run.conditions)


def render(results: Results, command: str) -> str:
    """The page."""
    return page(
        "Why Wᵀ?",
        "The error goes back by the transpose of the weights. Would the inverse do, or any other matrix?",
        answer(results),
        sections(results),
        f"Made by {command} on {results.data}; {results.optimizer}, {results.epochs} epochs.",
    )


def main(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE…", help="Changes to the config.")] = None,
    out: Path = Path("runs/why_transpose/page.html"),
    runs_dir: Path = Path("runs/why_transpose"),
    data_dir: Path | None = None,
    paths: Annotated[str, typer.Option(help="Some of them, after transpose.")] = ",".join(PATHS),
) -> None:
    """Train one network with every feedback path; without MNIST at hand, on the handwritten digits of scikit-learn."""
    changes, chosen = list(overrides or ()), paths.split(",")
    if unknown := sorted(set(chosen) - set(PATHS)):
        raise typer.BadParameter(f"a feedback path is one of {', '.join(PATHS)}, got {', '.join(unknown)}")
    chosen = ["transpose", *(path for path in PATHS if path in chosen and path != "transpose")]
    try:
        results = measure(changes, runs_dir, data_dir, chosen)
    except DataError as error:
        print(f"{error}\nso on digits:")
        changes += ["data=digits", "train.epochs=20"]
        results = measure(changes, runs_dir, data_dir, chosen)
    command = " ".join(["python -m experiments.why_transpose", *changes])
    write_page(out, render(results, command))


if __name__ == "__main__":
    typer.run(main)
