"""Uses of readings, on MNIST: optimisers with curvature, private training, noise scale, feedback, influence.

    python -m experiments.readings [TABLE …] [KEY=VALUE …] [--runs-dir runs/readings] [--data-dir DIR] [--markdown FILE]

`experiments/readings.toml` has a table for each: a config, its settings, the metrics that are shown epoch by epoch.
KEY=VALUE changes every config, such as data=digits train.epochs=1.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

from jaxnet import per_example
from jaxnet.quantities.influence import self_influence
from jaxnet.readings import nothing
from jaxnet.training import loop
from jaxnet.training.config import load_config
from jaxnet.training.data import load
from jaxnet.training.influence import curvature, in_batches
from jaxnet.training.trained_network import restore

ROOT = Path(__file__).parent.parent
TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
WRONG, EXAMPLES = 0.1, 5000  # the share of wrong labels, and the examples that training has


def with_wrong_labels(y: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of which a tenth, drawn by one seed, are another class; and where."""
    random = np.random.RandomState(0)
    wrong = random.rand(len(y)) < WRONG
    return np.where(wrong, (y + random.randint(1, classes, len(y))) % classes, y).astype(np.int32), wrong


def mislabelled() -> dict[str, np.ndarray]:
    """The first 5,000 examples of MNIST to train on, a tenth of them with a wrong label."""
    data = load("mnist")
    y, _ = with_wrong_labels(data.train.y[:EXAMPLES], 10)
    held = {f"{axis}_{part}": getattr(getattr(data, part), axis) for part in ("validation", "test") for axis in "xy"}
    return {"x_train": data.train.x[:EXAMPLES], "y_train": y} | held


def trained(config: str, overrides: Sequence[str], folder: Path, data_dir: Path | None) -> list[dict[str, Any]]:
    """The metrics of each epoch of a run, which is taken up again where its folder is there."""
    if not (folder / "summary.json").is_file():
        loop.train(load_config(ROOT / config, overrides), run_dir=folder, data_dir=data_dir, quiet=True)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def table(of: Mapping[str, Any], changes: Sequence[str], folder: Path, data_dir: Path | None) -> list[list[str]]:
    """A row for each setting and metric, a column for each epoch."""
    rows = []
    for setting, overrides in of["settings"].items():
        lines = trained(of["config"], [*overrides, *changes], folder / setting.replace(" ", "-"), data_dir)
        for metric in of["metrics"]:
            published = f" (published error {of['published'][setting]} %)" if setting in of.get("published", {}) else ""
            rows.append([setting, metric + published, *(f"{line[metric]:.4g}" for line in lines)])
    epochs = max(len(row) for row in rows) - 2
    return [["setting", "metric", *(f"epoch {i + 1}" for i in range(epochs))], *rows]


def area(values: np.ndarray, wrong: np.ndarray) -> float:
    """The share of the pairs of a wrong and a right label in which the wrong one has the larger value."""
    order = np.argsort(np.argsort(values)) + 1
    return float((order[wrong].sum() - wrong.sum() * (wrong.sum() + 1) / 2) / (wrong.sum() * (~wrong).sum()))


def influence_table(of: Mapping[str, Any], changes: Sequence[str], folder: Path, data_dir: Path | None) -> list[list]:
    """How well the examples' influence on themselves tells wrong labels apart, beside how well their cost does."""
    trained(of["config"], [*of["overrides"], *changes], folder / "mislabelled", data_dir)
    run = restore(folder / "mislabelled", data_dir=data_dir)
    net, loss = run.session.recipe.net, run.session.recipe.loss
    xs, ys = run.session.arrays["train"]
    wrong = np.asarray(ys) != load("mnist", data_dir=data_dir).train.y[: len(ys)]
    axes = curvature(net, loss, run.params, xs, ys)
    own, costs = jax.jit(self_influence(net, loss)), jax.jit(per_example(net, loss, nothing))
    measures = {
        "influence on itself": in_batches(lambda x, y: own(run.params, axes, x, y), xs, ys),
        "cost": in_batches(lambda x, y: costs(run.params, x, y)[0], xs, ys),
    }
    return [["ranking", "area under the curve"], *([name, f"{area(v, wrong):.3f}"] for name, v in measures.items())]


def main(
    tables: Annotated[
        list[str] | None, typer.Argument(metavar="TABLE… KEY=VALUE…", help="Some tables; changes.")
    ] = None,
    runs_dir: Path = Path("runs/readings"),
    data_dir: Annotated[Path | None, typer.Option(envvar="JAXNET_DATA")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables there, too.")] = None,
) -> None:
    """Train with each use of readings, and print a table for each."""
    names = [name for name in tables or [] if "=" not in name] or list(TABLES)
    changes = [change for change in tables or [] if "=" in change]
    if unknown := set(names) - set(TABLES):
        raise typer.BadParameter(f"a table is one of {', '.join(TABLES)}, got {', '.join(sorted(unknown))}")
    text = ""
    for name in names:
        make = influence_table if name == "influence" else table
        heading, *rows = make(TABLES[name], changes, runs_dir / name, data_dir)
        lines = [f"| {' | '.join(line)} |" for line in (heading, ["---"] * len(heading), *rows)]
        print(f"\n{name}\n", *lines, sep="\n", flush=True)
        text += f"\n{name}\n\n" + "\n".join(lines) + "\n"
    if markdown:
        markdown.write_text(text)


if __name__ == "__main__":
    typer.run(main)
