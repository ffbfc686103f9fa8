"""A trained network again: restored from its run, and evaluated on its own data or on other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from jaxnet.layer import Tree, own_params
from jaxnet.training import devices
from jaxnet.training.build import split_name
from jaxnet.training.checkpoint import CheckpointError, DamagedError, Progress
from jaxnet.training.config import Config, Mesh
from jaxnet.training.data import DataError, Dataset, Split, load
from jaxnet.training.data.dataset import PARTS
from jaxnet.training.data.sources import is_text, takes
from jaxnet.training.data.tables import ALL_FOR_TRAINING, in_columns
from jaxnet.training.data.text import in_vocabulary
from jaxnet.training.display import percent
from jaxnet.training.program_cache import keep_compiled
from jaxnet.training.run_folder import Run, RunError, data_sha256, quoted
from jaxnet.training.run_listing import inline, read_metrics, table_of
from jaxnet.training.run_summary import best_line
from jaxnet.training.session import Session


class Trained(NamedTuple):
    """A run's network as it was last saved. Use it inside `devices.precision(config.precision)`."""

    config: Config
    session: Session
    params: Tree
    step: int
    epoch: int

    @property
    def net_params(self) -> Tree:
        """The network's parameters, without the loss's."""
        return own_params(self.session.recipe.loss, self.params)[0]


@dataclass(frozen=True)
class CheckpointChoice:
    """The choice of a run's checkpoint. say: called with the one read and those passed over.

    step: that one; None reads the newest. fallback: an older one is read where newer ones are damaged.
    best: that of the best epoch, by the metric of the config's `checkpoint.best`.
    """

    step: int | None = None
    fallback: bool = False
    best: bool = False
    say: Callable[[str], None] = lambda line: None


NEWEST = CheckpointChoice()
MOST = 20
"""Of more classes than these the table shows those with the lowest accuracy."""

LIKE_OWN = ("task", "target", "drop", "header", "scale", "flat", "channels", "classes")
"""Options of a run's data by which other data are read too."""


def restore(
    folder: Path, *, data_dir: Path | None = None, dataset: Dataset | None = None, reading: CheckpointChoice = NEWEST
) -> Trained:
    """The network of a run at its newest checkpoint, or at the one that is asked for. Writes nothing.

    dataset: in place of the run's own.
    Raises RunError where the folder is no run, has no such checkpoint, or its config or data have changed;
    CheckpointError where the checkpoint is damaged or cannot be read; ConfigError and ShapeError where the data do not
    go with the network.
    """
    run = Run.open(folder)
    if not run.checkpoints.steps():
        raise RunError(f"{folder} has no checkpoint yet: wait for it, or jaxnet resume {quoted(folder)}")
    config = run.config()
    with devices.precision(config.precision):
        data = None
        if dataset is None:
            given = run.environment().get("data_dir")
            dataset = load(config.data, data_dir=data_dir or (Path(given) if given else None))
            data = data_sha256(dataset)
        run.unchanged(config, data)
        session = Session(for_evaluation(config), dataset)
        step, state, progress = saved(run, session.shapes(), reading)
        reading.say(f"{folder}: checkpoint of step {step:,}, epoch {progress.epoch:,} of {config.train.epochs:,}")
        return Trained(config, session, devices.placed(state.whole, None), step, progress.epoch)


def saved(run: Run, shapes: Tree, reading: CheckpointChoice) -> tuple[int, Any, Progress]:
    """Step, state and progress of the checkpoint that is asked for."""
    folder, checkpoints = run.folder, run.checkpoints
    steps, mend = checkpoints.steps(), f"jaxnet resume {quoted(folder)}"
    wanted = best_step(run) if reading.best else reading.step
    if wanted is not None:
        if wanted not in steps:
            raise RunError(f"{folder} has no checkpoint of step {wanted:,}: there are {', '.join(map(str, steps))}")
        return wanted, *checkpoints.read(wanted, shapes)

    def older(what: str, there: bool = True) -> str:
        if not there:
            return f"{what}, and there is no older one: put a good copy back, or {mend} trains from the beginning"
        return (
            f"{what}: {mend} trains from an older one; --fallback reads the newest whole one, --step N that of step N"
        )

    def passed_over(step: int, error: DamagedError, after: int | None) -> None:
        if not reading.fallback:
            raise DamagedError(older(str(error), after is not None)) from error
        reading.say(str(error))

    found = checkpoints.newest(shapes, passed_over=passed_over)
    if found is None:
        raise RunError(f"the checkpoints of {folder} were deleted while they were read: read it again")
    summary = run.summary() or {}
    last = summary.get("step", found[0])
    if summary.get("status") == "finished" and found[0] != last and not reading.fallback:
        raise CheckpointError(older(f"{folder} is finished, but its last checkpoint, of step {last:,}, is missing"))
    return found


def best_step(run: Run) -> int:
    """The step of a run's best epoch."""
    metric, metrics = run.config().checkpoint.best, read_metrics(run.folder / "metrics.jsonl")
    if metric is None or not metrics:
        why = "no epoch is done" if metric else 'train it with checkpoint.best = "validation_loss" or another metric'
        raise RunError(f"{run.folder} has no checkpoint of a best epoch: {why}")
    return best_line(metrics, metric)["step"]


def for_evaluation(config: Config) -> Config:
    """The config without its devices, its batch size and its monitors."""
    train = config.train.model_copy(update={"batch": 1, "chunks": 1})
    off = {"mean_delta": 0, "angles": 0, "dead_units": None, "train_accuracy": False}
    monitor = config.monitor.model_copy(update={**off, "class_accuracy": True})
    return config.model_copy(update={"mesh": Mesh(), "train": train, "monitor": monitor})


def evaluate(
    folder: Path,
    *,
    data: str | Mapping[str, Any] | None = None,
    data_dir: Path | None = None,
    reading: CheckpointChoice = NEWEST,
) -> dict[str, Any]:
    """A run's network evaluated on the validation and test sets of its data, or on all of other data.

    Of each split its loss and, of classes, accuracy, balanced_accuracy (the mean of the classes' own), class_accuracy
    and confusion (class, answer); and the names of the classes.
    data: as a config's `data`. Raises as `restore` does, and DataError.
    """
    keep_compiled()
    dataset = None if data is None else as_test(other(Run.open(folder), data, data_dir, reading.say))
    trained = restore(folder, data_dir=data_dir, dataset=dataset, reading=reading)
    with devices.precision(trained.config.precision):
        found = trained.session.watch(trained.params)
    names = trained.session.dataset.names
    return {name: value[0].tolist() for name, value in found.items()} | ({"classes": list(names)} if names else {})


def as_test(dataset: Dataset) -> Dataset:
    """The data set with all of its examples for testing where it has no split for that."""
    if len(dataset.test.y):
        return dataset
    if not len(dataset.train.y):
        raise DataError(f"{dataset.name} has no examples to evaluate on")
    empty = Split(dataset.test.x[:0], dataset.test.y[:0])
    return replace(dataset, validation=empty, test=dataset.train)


def other(run: Run, data: str | Mapping[str, Any], data_dir: Path | None, say: Callable[[str], None]) -> Dataset:
    """Other data than a run's, read as the run's own were: a text in its windows and vocabulary, a table with its
    options and classes. say: told of the options.
    """
    spec = {"name": data} if isinstance(data, str) else dict(data)
    kept = run.vocabulary()
    if kept is None or not is_text(str(spec.get("name"))):
        options = {key: value for key, value in split_name(run.config().data)[1].items() if key in LIKE_OWN}
        if options.get("task") != "regression" and (classes := run.classes()):
            options["classes"] = classes
        options = {key: value for key, value in options.items() if key not in spec and takes(str(spec["name"]), key)}
        if options:
            told = ", ".join(f"{key} = {inline(value)}" for key, value in options.items())
            say(f"{spec['name']} is read as the run's own data, with {told}")
        if takes(str(spec["name"]), "task"):
            options["split"] = ALL_FOR_TRAINING
        found = load(options | spec, data_dir=data_dir)
        columns = run.environment().get("columns")
        return in_columns(found, columns) if columns else found
    characters, window = kept
    return in_vocabulary(load({"window": window} | spec, data_dir=data_dir), characters)


def lines(found: Mapping[str, Any]) -> list[str]:
    """An evaluation in words, one line for each split."""
    said = []
    for split in PARTS:
        if f"{split}_loss" in found:
            shares = [
                f"{measure.replace('_', ' ')} {percent(found[f'{split}_{measure}'])}"
                for measure in ("accuracy", "balanced_accuracy")
                if f"{split}_{measure}" in found
            ]
            said.append("  ".join((f"{split:<10}", *shares, f"loss {found[f'{split}_loss']:.6g}")))
    return said


def confusion_tables(found: Mapping[str, Any]) -> list[Table]:
    """Of each split how often each class got each answer, and its accuracy; of many classes the worst ones alone."""
    tables = []
    for split in PARTS:
        if f"{split}_confusion" not in found:
            continue
        confusion, shares = np.array(found[f"{split}_confusion"]), found[f"{split}_class_accuracy"]
        names = found.get("classes") or [str(i) for i in range(len(confusion))]
        names = [*names, *(str(i) for i in range(len(names), len(confusion)))]
        there = [i for i in range(len(confusion)) if confusion[i].any() or confusion[:, i].any()]
        told = sorted(there, key=lambda i: (np.isnan(shares[i]), shares[i]))[:MOST] if len(there) > MOST else there
        headings = [f"{split}: class", *(f"as {names[i]}" for i in told), "accuracy"]
        rows = [
            [names[i], *(str(confusion[i, j]) for j in told), "" if np.isnan(shares[i]) else percent(shares[i])]
            for i in told
        ]
        tables.append(table_of(headings, 1, rows))
    return tables
