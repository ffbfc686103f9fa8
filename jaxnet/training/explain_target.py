"""Configs and runs as something to explain: their network, loss and parameters, at an example of their data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from jaxnet.backprop import initialize
from jaxnet.explaining.functions import FunctionSubject
from jaxnet.explaining.history import History, Moment
from jaxnet.explaining.notation import ExplainError
from jaxnet.explaining.page_pictures import InputKind
from jaxnet.explaining.subjects import ExplainedNetwork, named, out_of_range
from jaxnet.program.evaluate import quickly
from jaxnet.training import devices, step
from jaxnet.training.build import build
from jaxnet.training.checkpoint import CheckpointError
from jaxnet.training.config import load_config
from jaxnet.training.data import Dataset, load
from jaxnet.training.program_cache import keep_compiled
from jaxnet.training.run_folder import Run
from jaxnet.training.run_listing import read_metrics
from jaxnet.training.trained_network import Trained, restore


def subject_of(
    target: str,
    overrides: Sequence[str] = (),
    *,
    example: int = 0,
    batch: int | None = None,
    seed: int | None = None,
    inputs: str | None = None,
    data_dir: Path | None = None,
) -> ExplainedNetwork | FunctionSubject:
    """The subject that a target names: a config, a run's folder, one of jaxnet's names, or "package.module:object".

    batch: the number of examples. Raises ExplainError, and the errors of configs, runs and data.
    """
    count = 1 if batch is None else batch
    if target.endswith(".toml"):
        if inputs is not None:
            raise ExplainError("a config has the inputs of its data: leave --inputs out, or name a layer")
        return config_subject(Path(target), overrides, example=example, seed=seed, batch=count, data_dir=data_dir)
    if overrides:
        raise ExplainError(f"only a config takes KEY=VALUE, got {' '.join(overrides)} for {target}")
    if Path(target).is_dir():
        if seed is not None:
            raise ExplainError("a run has its own seed and trained parameters: leave --seed out, or name its config")
        return run_subject(Path(target), example=example, batch=count, data_dir=data_dir)
    found = named(target, inputs=inputs, seed=seed or 0)
    if isinstance(found, FunctionSubject):
        return found
    ys = chosen(found.ys, found.ys, example, count)[1]
    return replace(found, xs=jax.tree.map(lambda t: t[example : example + count], found.xs), ys=ys, example=example)


def config_subject(
    file: Path, overrides: Sequence[str] = (), *, example: int = 0, seed: int | None = None, batch: int = 1,
    data_dir: Path | None = None,
) -> ExplainedNetwork:  # fmt: skip
    """The network of a config as it begins to train, at `batch` training examples from `example` on.

    seed: instead of the config's own.
    """
    config = load_config(file, tuple(overrides))
    dataset = load(config.data, data_dir=data_dir)
    net, loss, _, shape = build(config, dataset)
    used = config.seed if seed is None else seed
    with devices.precision(config.precision):
        key = step.init_key(step.key_data(used))
        params = quickly(lambda key: initialize(net, loss, key, shape), (key,))
    xs, ys = chosen(dataset.train.x, dataset.train.y, example, batch)
    where, kind = (str(file), example, used, config.dtype.__name__), input_kind(dataset)
    return ExplainedNetwork(net, loss, params, config.typed(xs), config.typed(ys), *where, kind=kind)


def input_kind(dataset: Dataset) -> InputKind:
    """The kind of an example: a picture, or characters."""
    return InputKind(dataset.picture, None if dataset.text is None else dataset.text.characters)


def run_subject(folder: Path, *, example: int = 0, batch: int = 1, data_dir: Path | None = None) -> ExplainedNetwork:
    """The network of a run at its last checkpoint, with the checkpoints and metrics before it."""
    keep_compiled()
    trained = restore(folder, data_dir=data_dir)
    session, config = trained.session, trained.config
    with devices.precision(config.precision):
        past = history(folder, trained)
    split = session.dataset.train
    xs, ys = chosen(split.x, split.y, example, batch)
    notes = (f"parameters of step {trained.step:,}, after epoch {trained.epoch:,}",)
    net, loss = session.recipe.net, session.recipe.loss
    where, kind = (str(folder), example, config.seed, config.dtype.__name__), input_kind(session.dataset)
    typed = config.typed(xs), config.typed(ys)
    return ExplainedNetwork(net, loss, trained.params, *typed, *where, past, notes, kind)


def history(folder: Path, trained: Trained) -> History:
    """The first parameters, those of every checkpoint that is kept and whole, and the metrics of every epoch."""
    session = trained.session
    run = Run.open(folder)
    begun = initialize(
        session.recipe.net,
        session.recipe.loss,
        step.init_key(step.key_data(trained.config.seed)),
        session.recipe.example,
    )
    moments, notes = [Moment(0, 0, begun)], []
    checkpoints = run.checkpoints
    for saved in sorted(checkpoints.steps()):
        if saved == trained.step:
            moments.append(Moment(saved, trained.epoch, trained.params))
            continue
        try:
            state, progress = checkpoints.read(saved, session.shapes())
        except CheckpointError as error:
            notes.append(f"{error}; it is left out")
            continue
        moments.append(Moment(saved, progress.epoch, devices.placed(state.whole, None)))
    return History(tuple(moments), tuple(read_metrics(folder / "metrics.jsonl")), tuple(notes))


def chosen(x: np.ndarray, y: np.ndarray, example: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """So many training examples from one on."""
    if not 0 <= example < len(x):
        raise ExplainError(out_of_range(example, len(x)))
    if not 1 <= batch <= len(x) - example:
        raise ExplainError(
            f"--batch must be from 1 to {len(x) - example:,}, the examples from number {example:,} on, got {batch:,}"
        )
    return x[example : example + batch], y[example : example + batch]
