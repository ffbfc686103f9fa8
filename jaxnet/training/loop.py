"""Training a config from the beginning, or from its newest checkpoint."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jaxnet.devices.processes import of_first, writes
from jaxnet.training import devices
from jaxnet.training.config import Config, ConfigError
from jaxnet.training.data import load
from jaxnet.training.display import Display
from jaxnet.training.epochs import DivergedError, Loop, Single, draw_curves
from jaxnet.training.fine_tuning import trained_start
from jaxnet.training.program_cache import keep_compiled
from jaxnet.training.run_folder import (
    CURVES,
    Run,
    RunError,
    about_data,
    config_sha256,
    data_sha256,
    lines_of,
    versions,
)
from jaxnet.training.session import Session
from jaxnet.training.signals import stopping

__all__ = ["DivergedError", "resume", "resume_together", "train", "train_together"]

MAY_DIFFER = {"versions", "platform", "device", "devices", "threads"}


def train(
    config: Config,
    *,
    run_dir: Path | None = None,
    runs_dir: Path = Path("runs"),
    data_dir: Path | None = None,
    overrides: Sequence[str] = (),
    numbered: bool = True,
    quiet: bool = False,
) -> Path:
    """Trains the network of a config from the beginning; gives the run's folder.

    overrides: those already in the config, for the folder's name. numbered: a name that is taken gets -2, -3 …; else
    RunError is raised. quiet: shows nothing; all is in log.txt.
    Raises ConfigError, ShapeError, DataError, RunError, CheckpointError, DivergedError; Stopped on Ctrl-C, SIGTERM and
    SIGHUP, and where stdout can no longer be written.
    """
    given: Any = {
        "runs_dir": runs_dir,
        "data_dir": data_dir,
        "overrides": overrides,
        "numbered": numbered,
        "quiet": quiet,
    }
    [folder] = train_together(config, None, run_dir=run_dir, **given)
    return folder


def train_together(
    config: Config,
    seeds: Sequence[int] | None,
    *,
    run_dir: Path | None = None,
    runs_dir: Path = Path("runs"),
    data_dir: Path | None = None,
    overrides: Sequence[str] = (),
    numbered: bool = True,
    quiet: bool = False,
) -> list[Path]:
    """Trains one network for each seed, all in one vmapped program; a run's folder for each, as `train` makes them.

    The runs equal those of `train` to floating-point noise. One that diverges ends by itself, the others go on.
    seeds: None for the config's own, without vmap.
    """
    quiet = quiet or not writes()
    keep_compiled()
    began = time.perf_counter()
    dataset = load(config.data, data_dir=data_dir)
    with stopping() as stop, devices.precision(config.precision), ExitStack() as locks:
        session = Session(config, dataset, seeds, stop.patiently)
        has_its_metrics(session)
        start, data = trained_start(session, data_dir), data_sha256(dataset)
        beside = {"data_dir": str(data_dir) if data_dir else None, "together": seeds and list(seeds)}
        beside |= {"started_from": start.source} if start is not None else {}
        beside |= {"columns": list(dataset.columns)} if dataset.columns else {}
        runs = []
        for seed in session.seeds:
            own = config.model_copy(update={"seed": seed})
            changes = [*overrides, f"seed={seed}"] if seeds is not None else overrides
            run = Run.create(
                own,
                data,
                devices.described(session.mesh),
                runs_dir=runs_dir,
                run_dir=run_dir,
                overrides=changes,
                numbered=numbered,
                beside=beside,
                more=about_data(dataset),
            )
            locks.enter_context(run.locked())
            runs.append(Single(run, own, config_sha256(own, data), stop, quiet or seeds is not None))
        return Loop(session, runs, stop, began, quiet).go(None, start)


def resume(folder: Path, *, data_dir: Path | None = None, overrides: Sequence[str] = (), quiet: bool = False) -> Path:
    """Resumes a run from its newest whole checkpoint, to the bits of an uninterrupted one.

    A finished run whose last checkpoint is damaged or missing is trained to its end again. overrides: train.epochs may
    be set, to train longer.
    Raises RunError where the folder is no run, or its config or data have changed; LockedError where another process
    trains it; else as `train` does.
    """
    return resume_together([folder], data_dir=data_dir, overrides=overrides, quiet=quiet)[0]


def resume_together(
    folders: Sequence[Path], *, data_dir: Path | None = None, overrides: Sequence[str] = (), quiet: bool = False
) -> list[Path]:
    """Resumes runs of `train_together`, in one vmapped program again, to the bits of uninterrupted ones.

    folders: of all runs that began together, in the order of their seeds. They go on from the newest step that all
    have a checkpoint of; diverged runs stay as they are.
    """
    quiet = quiet or not writes()
    keep_compiled()
    runs = [Run.open(folder) for folder in folders]
    seeds = [run.config().seed for run in runs] if len(runs) > 1 else None
    with stopping() as stop, ExitStack() as locks:
        for run in runs:
            locks.enter_context(run.locked())
            run.extend(overrides)
        of_first(0)  # the first process writes before the others read
        for run in runs:
            run.unchanged(run.config())
        config, environment = runs[0].config(), runs[0].environment()
        if all(run.ended_well() for run in runs):
            for run in runs:
                Display(run.log, stop.output_lost, quiet=quiet).say(f"{run.folder} is finished: nothing to do")
            draw_curves(run for run in runs if not (run.folder / CURVES).exists())
            return list(folders)
        began = time.perf_counter()
        data_dir = data_dir or (Path(environment["data_dir"]) if environment.get("data_dir") else None)
        dataset = load(config.data, data_dir=data_dir)
        data = data_sha256(dataset)
        for run in runs:
            run.unchanged(run.config(), data)
        with devices.precision(config.precision):
            session = Session(config, dataset, seeds, stop.patiently)
            now = {"versions": versions(), "together": seeds, **devices.described(session.mesh)}
            singles = [Single(run, run.config(), run.configs()[0], stop, quiet) for run in runs]
            for single in singles:
                for line in differences(environment, now):
                    single.display.say(line)
            has_its_metrics(session)
            states = restored(session, singles)
            start = trained_start(session, data_dir) if states is None else None
            if start is not None and start.source != environment.get("started_from"):
                raise RunError(f"{start.source['run']}, from which {folders[0]} starts, has changed: train a new run")
            return Loop(session, singles, stop, began, quiet).go(states, start)


def has_its_metrics(session: Session) -> None:
    """Checks that the metrics for early stopping and for the best checkpoint are measured."""
    stop, measured = session.config.train.stop_early, session.measures()
    for key, metric in (
        ("train.stop_early.metric", stop.metric if stop is not None else None),
        ("checkpoint.best", session.config.checkpoint.best),
    ):
        if metric is not None and metric not in measured:
            raise ConfigError(f"{key} must be measured in this run, one of {', '.join(measured)}, got {metric}")


def restored(session: Session, singles: Sequence[Single]) -> list[Any] | None:
    """Each run's state at the newest step that all have a checkpoint of; None if there is none.

    Sets the runs' progress and metrics to that step. A run that has ended lends its place to another's state.
    """
    for single in singles if len(singles) > 1 else ():
        single.ended = single.run.ended_well() or (single.run.summary() or {}).get("status") == "diverged"
    alive = [single for single in singles if not single.ended]
    found = {single: single.checkpoints.resumable(session.shapes(), single.run.configs()) for single in alive}
    steps = [each[0] for each in found.values() if each is not None]
    begun = len(steps) == len(alive)
    states = {}
    for single, newest in found.items():
        if newest is None or not begun:
            single.display.say(f"{single.run.folder} has no checkpoint yet: beginning anew")
        else:
            step, state, progress = newest
            if step != min(steps):
                state, progress = single.checkpoints.read(min(steps), session.shapes(), single.run.configs())
            single.display.say(f"going on from step {min(steps):,}")
            states[single], single.progress = state, progress._replace(config=single.config_sha256)
        single.run.replace("metrics.jsonl", lines_of(single.progress.metrics))
    if not begun:
        return None
    for single in singles:
        single.progress = single.progress if single in found else alive[0].progress
    return [states.get(single, states[alive[0]]) for single in singles]


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Messages about changes since the run began that can alter its last bits."""
    changed = [
        f"{name} {before.get(name)} → {now.get(name)}"
        for name in sorted(MAY_DIFFER - {"versions"})
        if before.get(name) != now.get(name)
    ]
    old, new = before.get("versions", {}), now["versions"]
    changed += [f"{name} {old.get(name)} → {new[name]}" for name in sorted(new) if old.get(name) != new[name]]
    if before.get("together") != now.get("together"):
        changed.append("trained beside other seeds → alone")
    if not changed:
        return []
    return [f"this run began elsewhere ({'; '.join(changed)}): it will not be bit for bit that of an uninterrupted one"]
