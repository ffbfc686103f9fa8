"""A trained network again: restored from its run, and evaluated on its own data or on other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from jaxnet.layer import Tree
from jaxnet.training import devices
from jaxnet.training.checkpoint import CheckpointError, DamagedError, Progress
from jaxnet.training.config import Config, Mesh
from jaxnet.training.data import DataError, Dataset, Split, load
from jaxnet.training.data.sources import is_text
from jaxnet.training.data.text import in_vocabulary
from jaxnet.training.display import percent
from jaxnet.training.run_folder import Run, RunError, data_sha256, quoted
from jaxnet.training.session import Session


class Trained(NamedTuple):
    """A run's network as it was last saved. Use it inside `devices.precision(config.precision)`."""

    config: Config
    session: Session
    params: Tree
    step: int
    epoch: int


@dataclass(frozen=True)
class Reading:
    """Which checkpoint of a run is read. say: told which one it is, and what is passed over.

    step: that one; None reads the newest. fallback: an older one is read where newer ones are damaged.
    """

    step: int | None = None
    fallback: bool = False
    say: Callable[[str], None] = lambda line: None


NEWEST = Reading()


def restore(
    folder: Path, *, data_dir: Path | None = None, dataset: Dataset | None = None, reading: Reading = NEWEST
) -> Trained:
    """The network of a run at its newest checkpoint, or at the one that is asked for. Writes nothing.

    dataset: in place of the run's own.
    Raises RunError where the folder is no run, has no such checkpoint, or its config or data have changed;
    CheckpointError where the checkpoint is damaged or cannot be read; ConfigError and ShapeError where the data do not
    go with the network.
    """
    run = Run.open(folder)
    config = run.config()
    with devices.precision(config.precision):
        data = None
        if dataset is None:
            given = run.environment().get("data_dir")
            dataset = load(config.resolved()["data"], data_dir=data_dir or (Path(given) if given else None))
            data = data_sha256(dataset)
        run.unchanged(config, data)
        session = Session(for_evaluation(config), dataset)
        step, state, progress = saved(run, session.shapes(), reading)
        reading.say(f"{folder}: checkpoint of step {step:,}, epoch {progress.epoch:,} of {config.train.epochs:,}")
        return Trained(config, session, devices.placed(state.whole, None), step, progress.epoch)


def saved(run: Run, shapes: Tree, reading: Reading) -> tuple[int, Any, Progress]:
    """Step, state and progress of the checkpoint that is asked for.

    Raises RunError where there is none, CheckpointError where it is damaged or cannot be read.
    """
    folder, checkpoints = run.folder, run.checkpoints
    steps = checkpoints.steps()
    mend = f"jaxnet resume {quoted(folder)}"
    if not steps:
        raise RunError(f"{folder} has no checkpoint yet: resume it first, {mend}")
    if reading.step is not None:
        if reading.step not in steps:
            raise RunError(
                f"{folder} has no checkpoint of step {reading.step:,}: there are {', '.join(map(str, steps))}"
            )
        return reading.step, *checkpoints.read(reading.step, shapes)

    def older(what: str) -> str:
        return (
            f"{what}: {mend} trains from an older one; --fallback reads the newest whole one, --step N that of step N"
        )

    def passed_over(step: int, error: DamagedError, after: int | None) -> None:
        if not reading.fallback:
            raise DamagedError(older(str(error))) from error
        reading.say(str(error))

    found = checkpoints.newest(shapes, passed_over=passed_over)
    if found is None:
        raise RunError(f"the checkpoints of {folder} were deleted while they were read: read it again")
    summary = run.summary() or {}
    last = summary.get("step", found[0])
    if summary.get("status") == "finished" and found[0] != last and not reading.fallback:
        raise CheckpointError(older(f"{folder} is finished, but its last checkpoint, of step {last:,}, is missing"))
    return found


def for_evaluation(config: Config) -> Config:
    """The config without what binds it to devices, to the size of its training set, or to monitors."""
    train = config.train.model_copy(update={"batch": 1, "chunks": 1})
    monitor = config.monitor.model_copy(update={"mean_delta": 0, "angles": 0, "train_accuracy": False})
    return config.model_copy(update={"mesh": Mesh(), "train": train, "monitor": monitor})


def evaluate(
    folder: Path,
    *,
    data: str | Mapping[str, Any] | None = None,
    data_dir: Path | None = None,
    reading: Reading = NEWEST,
) -> dict[str, float]:
    """Loss and accuracy of a run's network on the validation and test sets of its data, or on all of other data.

    data: as a config's `data`. Raises as `restore` does, and DataError.
    """
    devices.keep_compiled()
    dataset = None if data is None else as_test(other(Run.open(folder), data, data_dir))
    trained = restore(folder, data_dir=data_dir, dataset=dataset, reading=reading)
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
