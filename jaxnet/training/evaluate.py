"""A trained network again: restored from its run, and evaluated on its own data or on other."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from jaxnet.layer import Tree
from jaxnet.training import devices
from jaxnet.training.config import Config, Mesh
from jaxnet.training.data import DataError, Dataset, Split, load
from jaxnet.training.data.sources import is_text
from jaxnet.training.data.text import in_vocabulary
from jaxnet.training.run import Run, RunError
from jaxnet.training.session import Session
from jaxnet.training.terminal import percent


class Trained(NamedTuple):
    """A run's network as it was last saved. Use it inside `devices.precision(config.precision)`."""

    config: Config
    session: Session
    params: Tree
    step: int
    epoch: int


def restore(folder: Path, *, data_dir: Path | None = None, dataset: Dataset | None = None) -> Trained:
    """The network of a run at its newest good checkpoint.

    dataset: in place of the run's own. Raises RunError where the folder is no run or has no checkpoint,
    CheckpointError where all are damaged, ConfigError and ShapeError where the data do not go with the network.
    """
    run = Run.open(folder)
    config = run.config()
    with devices.precision(config.precision):
        if dataset is None:
            given = run.environment().get("data_dir")
            dataset = load(config.resolved()["data"], data_dir=data_dir or (Path(given) if given else None))
        session = Session(for_evaluation(config), dataset)
        checkpoints = run.checkpoints(config.checkpoint.keep, run.log)
        found = checkpoints.newest(session.shapes())
        checkpoints.close()
        if found is None:
            raise RunError(f"{folder} has no checkpoint yet: resume it first, jaxnet resume {folder}")
        step, state, progress = found
        return Trained(config, session, devices.placed(state.whole, None), step, progress.epoch)


def for_evaluation(config: Config) -> Config:
    """The config without what binds it to devices, to the size of its training set, or to monitors."""
    train = config.train.model_copy(update={"batch": 1, "chunks": 1})
    monitor = config.monitor.model_copy(update={"mean_delta": 0, "angles": 0, "train_accuracy": False})
    return config.model_copy(update={"mesh": Mesh(), "train": train, "monitor": monitor})


def evaluate(
    folder: Path, *, data: str | Mapping[str, Any] | None = None, data_dir: Path | None = None
) -> dict[str, float]:
    """Loss and accuracy of a run's network on the validation and test sets of its data, or on all of other data.

    data: as a config's `data`. Raises as `restore` does, and DataError.
    """
    devices.keep_compiled()
    dataset = None if data is None else as_test(other(Run.open(folder), data, data_dir))
    trained = restore(folder, data_dir=data_dir, dataset=dataset)
    with devices.precision(trained.config.precision):
        found = trained.session.watch(trained.params)
    return {name: float(value[0]) for name, value in found.items() if value.ndim == 1}


def as_test(dataset: Dataset) -> Dataset:
    """The data set with all of its examples for testing where it has no split for that."""
    if len(dataset.test.y):
        return dataset
    if not len(dataset.train.y):
        raise DataError(f"{dataset.name} has no examples to evaluate on")
    empty = Split(dataset.test.x[:0], dataset.test.y[:0])
    return replace(dataset, validation=empty, test=dataset.train)


def other(run: Run, data: str | Mapping[str, Any], data_dir: Path | None) -> Dataset:
    """Other data than a run's; a text in the run's windows and vocabulary.

    Raises DataError where it has a character that the run's text had not.
    """
    spec = {"name": data} if isinstance(data, str) else dict(data)
    kept = run.vocabulary()
    if kept is None or not is_text(str(spec.get("name"))):
        return load(spec, data_dir=data_dir)
    characters, window = kept
    return in_vocabulary(load({"window": window} | spec, data_dir=data_dir), characters)


def lines(found: Mapping[str, float]) -> list[str]:
    """An evaluation in words, one line for each split."""
    said = []
    for split in ("train", "validation", "test"):
        if f"{split}_loss" in found:
            accuracy = f"accuracy {percent(found[f'{split}_accuracy'])}  " if f"{split}_accuracy" in found else ""
            said.append(f"{split:<10}  {accuracy}loss {found[f'{split}_loss']:.6g}")
    return said
