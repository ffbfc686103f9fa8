"""Training: epochs of compiled calls, with metrics, checkpoints and an orderly end whatever comes."""

import os
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxnet.devices.processes import largest, of_first, writes
from jaxnet.training import devices
from jaxnet.training.checkpoint import CheckpointWriter, Progress, leaves_sha256, plain
from jaxnet.training.config import Config, ConfigError
from jaxnet.training.data import load
from jaxnet.training.display import Display, row
from jaxnet.training.divergence import first_trouble
from jaxnet.training.fine_tuning import Start, trained_start
from jaxnet.training.program_cache import keep_compiled
from jaxnet.training.run_folder import (
    CURVES,
    Run,
    RunError,
    about_data,
    config_sha256,
    data_sha256,
    lines_of,
    quoted,
    versions,
)
from jaxnet.training.run_summary import best_line, epochs_without_gain, result_lines, summarize
from jaxnet.training.session import Session
from jaxnet.training.signals import StillRunningError, Stop, Stopped, stopping
from jaxnet.training.step import State
from jaxnet.training.trackers import Events

MAY_DIFFER = {"versions", "platform", "device", "devices", "threads"}


class DivergedError(ValueError):
    """Loss or gradient became NaN or infinite; the message names the first place and the last good checkpoint."""


# ----------------------------------------------------------------------------------------- entrances


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
    [folder] = _train(config, None, run_dir, runs_dir, data_dir, overrides, numbered, quiet)
    return folder


def train_together(
    config: Config,
    seeds: Sequence[int],
    *,
    runs_dir: Path = Path("runs"),
    data_dir: Path | None = None,
    overrides: Sequence[str] = (),
    numbered: bool = True,
    quiet: bool = False,
) -> list[Path]:
    """Trains one network for each seed, all in one vmapped program; a run's folder for each, as `train` makes them.

    The runs equal those of `train` to floating-point noise. One that diverges ends by itself, the others go on.
    """
    return _train(config, list(seeds), None, runs_dir, data_dir, overrides, numbered, quiet)


def _train(config, seeds, run_dir, runs_dir, data_dir, overrides, numbered, quiet) -> list[Path]:
    quiet = quiet or not writes()
    keep_compiled()
    began = time.perf_counter()
    dataset = load(config.resolved()["data"], data_dir=data_dir)
    with stopping() as stop, devices.precision(config.precision), ExitStack() as locks:
        session = Session(config, dataset, seeds, stop.patiently)
        has_its_metrics(session)
        start, data = trained_start(session, data_dir), data_sha256(dataset)
        beside = {"data_dir": str(data_dir) if data_dir else None, "together": seeds}
        beside |= {"started_from": start.source} if start is not None else {}
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
    return _resume([folder], None, data_dir, overrides, quiet)[0]


def resume_together(folders: Sequence[Path], *, data_dir: Path | None = None, quiet: bool = False) -> list[Path]:
    """Resumes runs of `train_together`, in one vmapped program again, to the bits of uninterrupted ones.

    folders: of all runs that began together, in the order of their seeds. They go on from the newest step that all
    have a checkpoint of; diverged runs stay as they are.
    """
    return _resume(folders, [Run.open(folder).config().seed for folder in folders], data_dir, (), quiet)


def _resume(folders, seeds, data_dir, overrides, quiet) -> list[Path]:
    quiet = quiet or not writes()
    keep_compiled()
    runs = [Run.open(folder) for folder in folders]
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
        dataset = load(config.resolved()["data"], data_dir=data_dir)
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


def restored(session: Session, singles: "Sequence[Single]") -> list[Any] | None:
    """Each run's state at the newest step that all have a checkpoint of; None if there is no such step.

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


def draw_curves(runs: Iterable[Run]) -> None:
    """Draws the curves of some runs."""
    folders = [run.folder for run in runs if writes()]
    if folders:
        from jaxnet.training.reports import write_curves  # late: matplotlib takes as long to import as jax

        for folder in folders:
            write_curves(folder)


# ------------------------------------------------------------------------------------------ the loop


class Single:
    """The run of one seed: folder, checkpoints, progress, whether it has ended, and its error."""

    def __init__(self, run: Run, config: Config, config_sha256: str, stop: Stop, quiet: bool):
        self.run, self.config, self.config_sha256 = run, config, config_sha256
        self.display = Display(run.log, stop.output_lost, quiet=quiet)
        self.progress = Progress(config=config_sha256)
        self.ended = False
        self.trouble: DivergedError | None = None
        self._events: Events | None = None

    @cached_property
    def checkpoints(self) -> CheckpointWriter:
        """Opened when first needed: small networks take their first steps before."""
        return CheckpointWriter(self.run.checkpoints.folder, self.config.checkpoint.keep, self.display.say)

    def prune(self) -> None:
        """Deletes older checkpoints but that of the best epoch, if the config asks for it."""
        metric, lines = self.config.checkpoint.best, self.progress.metrics
        self.checkpoints.prune(best_line(lines, metric)["step"] if metric is not None and lines else None)

    def record(self, line: dict[str, Any]) -> None:
        """Adds an epoch's line of metrics."""
        self.run.append("metrics.jsonl", lines_of([line]))
        if self.config.tensorboard:
            self._events = self._events or Events(self.run.folder / "tensorboard", line["step"])
            self._events.add(line)

    def summary(self, status: str, params: Any, step: int, first: float = 0.0) -> dict[str, Any]:
        """Writes summary.json and gives it. first: seconds from the command to the end of the first compiled call."""
        summary = summarize(self.config, self.progress, status, leaves_sha256(params), step)
        summary |= {"seconds_to_first_call": first} if first else {}
        self.run.replace("summary.json", summary)
        return summary


class Loop:
    """Goes through the epochs of a session, for all its seeds at once."""

    def __init__(self, session: Session, runs: list[Single], stop: Stop, began: float, quiet: bool):
        self.session, self.runs, self.stop = session, runs, stop
        self.began = began
        self.before = runs[0].progress.seconds
        self.saved_at = time.monotonic()
        self.display = Display(self.log, stop.output_lost, quiet=quiet)
        self.compute = 0.0
        self.first = 0.0
        self.latest: State | None = None

    def log(self, line: str) -> None:
        """A line into every run's log."""
        for single in self.runs:
            single.run.log(line)

    def go(self, states: list[Any] | None, start: Start | None) -> list[Path]:
        """Trains to the end from the runs' states, or from the beginning with a trained start; gives the folders."""
        session, folders = self.session, [single.run.folder for single in self.runs]
        for line in (session.title(), *session.dataset.notes):
            self.display.say(line)
        for folder in folders:
            self.display.say(f"→ {folder}")
        if start is not None:
            self.display.say(start.line())
        epochs, progress = session.config.train.epochs, self.runs[0].progress
        self.display.start(epochs * session.steps_per_epoch, self.step_at(progress.epoch, progress.call))
        try:
            begin = None if start is None else start.given
            state = self.latest = session.begin(begin) if states is None else session.restored(states)
            self.end_early(state)
            for epoch in range(progress.epoch, epochs):
                if self.alive():
                    state = self.epoch(epoch, progress.call if epoch == progress.epoch else 0, state)
            self.finish(state)
        except StillRunningError:
            if self.latest is not None:
                self.save(self.latest)
            self.stopped(hard=True)
        finally:
            self.display.end()
        return folders

    def epoch(self, epoch: int, first: int, state: State) -> State:
        """One epoch, from its call `first` on."""
        session = self.session
        order = session.order(epoch)
        state = session.fresh_sums(state) if first == 0 else state
        self.compute, done = 0.0, 0
        for i, call in enumerate(session.calls[first:], first):
            self.move(epoch, i)
            self.latest = state
            after, good, seconds = session.steps(call, state, order)
            self.compute += seconds
            self.first = self.first or devices.seconds_of_process()
            done += call.count * call.batch
            if not good.all():
                self.diverged(good, state, i, order)
                if not self.alive():
                    return state
            state = after
            self.show(epoch, i + 1, state, done)
            if i + 1 < len(session.calls):
                self.move(epoch, i + 1)
                self.pause(state)
        self.move(epoch, len(session.calls))
        self.latest = state
        self.measure(epoch, state, done)
        self.move(epoch + 1, 0)
        self.end_early(state)
        self.pause(state, [single for _, single in self.alive() if self.is_best(single)])
        return state

    def is_best(self, single: Single) -> bool:
        """Whether the last epoch is the best so far by the metric `checkpoint.best`."""
        metric, lines = single.config.checkpoint.best, single.progress.metrics
        return metric is not None and best_line(lines, metric) is lines[-1]

    def end_early(self, state: State) -> None:
        """Ends the runs whose metric has not improved for `patience` epochs."""
        stop = self.session.config.train.stop_early
        if stop is None:
            return
        for seed, single in self.alive():
            lines = single.progress.metrics
            if lines and not single.progress.call and epochs_without_gain(lines, stop) >= stop.patience:
                self.save_one(seed, single, state)
                self.finish_one(seed, single, state)

    def step_at(self, epoch: int, call: int) -> int:
        """Number of steps in `epoch` whole epochs and `call` calls of the next one."""
        return epoch * self.session.steps_per_epoch + sum(each.count for each in self.session.calls[:call])

    def step_of(self, single: Single) -> int:
        """Steps done by a run."""
        return self.step_at(single.progress.epoch, single.progress.call)

    def move(self, epoch: int, call: int) -> None:
        """Updates the progress of the runs."""
        seconds = self.before + time.perf_counter() - self.began
        for _, single in self.alive():
            single.progress = single.progress._replace(epoch=epoch, call=call, seconds=seconds)

    def alive(self) -> list[tuple[int, Single]]:
        """The runs that have not ended, each with the place of its seed."""
        return [(seed, single) for seed, single in enumerate(self.runs) if not single.ended]

    def measure(self, epoch: int, state: State, done: int) -> None:
        """An epoch's metrics, into every run."""
        session = self.session
        found = session.averages(state, session.examples, session.steps_per_epoch) | session.watch(state.whole)
        step = self.step_at(epoch + 1, 0)
        for seed, single in self.alive():
            line = {
                **{name: value[seed].tolist() for name, value in found.items() if not name.endswith("_confusion")},
                "epoch": epoch + 1,
                "step": step,
                "examples_per_second": done / self.compute if self.compute else 0.0,
                "seconds": self.before + time.perf_counter() - self.began,
            }
            single.record(line)
            single.progress = single.progress._replace(metrics=(*single.progress.metrics, line))
            prefix = f"seed {session.seeds[seed]}  " if session.together else ""
            self.display_of(single).say(prefix + row(line, session.config.train.epochs))

    def display_of(self, single: Single) -> Display:
        """The loop's own where there is one run alone; that of several logs to all."""
        return single.display if self.session.together else self.display

    def show(self, epoch: int, call: int, state: State, done: int) -> None:
        """Updates the progress bar from the sums of the last call."""
        if self.display.bar is None:
            return
        lines = self.runs[0].progress.metrics
        seen = sum(each.count * each.batch for each in self.session.calls[:call])
        loss = float(self.session.rows(state.sums["loss"]).mean()) / seen
        parts = [f"loss {loss:.4g}"]
        if lines:
            parts += [f"{k} {lines[-1][f'{k}_accuracy']:.2%}" for k in ("test",) if f"{k}_accuracy" in lines[-1]]
        parts.append(f"{done / self.compute:,.0f} examples/s")
        what = f"epoch {epoch + 1}/{self.session.config.train.epochs}"
        self.display.show(self.step_at(epoch, call), what, "  ".join(parts))

    # -------------------------------------------------------------------------- checkpoints and ends

    def pause(self, state: State, best: Sequence[Single] = ()) -> None:
        """Between calls: stops where that was asked for, and writes a checkpoint where it is time.

        best: runs that get one in any case.
        """
        self.latest = state
        self.stop.status = largest(self.stop.status or 0) or None
        due = time.monotonic() - self.saved_at >= self.session.config.checkpoint.every_seconds
        if self.stop.status is not None:
            self.save(state)
            self.stopped()
        elif of_first(due) or best:
            self.save(state)

    def save(self, state: State) -> None:
        """A checkpoint of every run that is alive. Older ones go after all are written, so that all share a step."""
        for seed, single in self.alive():
            self.save_one(seed, single, state)
        for _, single in self.alive():
            single.prune()
        self.saved_at = time.monotonic()

    def save_one(self, seed: int, single: Single, state: State) -> None:
        """A checkpoint of one run."""
        single.checkpoints.save(self.step_of(single), self.session.one(plain(state), seed), single.progress)

    def stopped(self, hard: bool = False) -> None:
        """Ends the process with the status of the stop. hard: while a call still runs in its thread."""
        assert self.stop.status is not None
        self.display.end()
        for seed, single in enumerate(self.runs):
            folder = quoted(single.run.folder)
            if self.latest is None:
                self.display_of(single).say(f"stopped before the first step; jaxnet resume {folder}")
            elif not single.ended:
                params = self.session.one(plain(self.latest.whole), seed)
                single.summary("interrupted", params, self.step_of(single))
                said = f"stopped; checkpoint of step {self.step_of(single):,} written"
                self.display_of(single).say(f"{said}; go on with: jaxnet resume {folder}")
        if hard:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError):  # the terminal may be gone
                    stream.flush()
            os._exit(self.stop.status)
        raise Stopped(self.stop.status)

    def diverged(self, good: np.ndarray, before: State, i: int, order: Any) -> None:
        """Ends the runs whose state has NaN or infinity, and saves their last good state."""
        for seed, single in self.alive():
            if good[seed]:
                continue
            call, one = self.session.calls[i], self.session.one
            self.save_one(seed, single, before)
            trouble = first_trouble(self.session, seed, one(before, seed), call, one(order, seed))
            single.trouble = DivergedError(
                f"NaN or infinity at step {trouble.step:,} (epoch {single.progress.epoch + 1}), "
                f"first in {trouble.where}: lower the learning rate, or clip by train.clip_norm; "
                f"the last good checkpoint is of step {self.step_of(single):,} in {single.run.folder}"
            )
            single.ended = True
            single.run.log(str(single.trouble))
            single.summary("diverged", self.session.one(plain(before.whole), seed), self.step_of(single))
        if all(single.trouble is not None for single in self.runs):
            raise next(single.trouble for single in self.runs if single.trouble is not None)

    def finish(self, state: State) -> None:
        """Writes the last checkpoint and the summary, and shows the result."""
        self.latest = state
        epochs = self.session.config.train.epochs
        self.move(epochs, 0)
        self.save(state)
        if epochs == 0:  # no epoch has measured it
            for seed, single in enumerate(self.runs):
                found = {name: value[seed].tolist() for name, value in self.session.watch(state.whole).items()}
                single.progress = single.progress._replace(metrics=({"epoch": 0, **found},))
        self.display.end()
        for seed, single in self.alive():
            self.finish_one(seed, single, state)
        draw_curves(single.run for single in self.runs if single.trouble is None)

    def finish_one(self, seed: int, single: Single, state: State) -> None:
        """Writes a run's summary and shows the result."""
        params = self.session.one(plain(state.whole), seed)
        summary = single.summary("finished", params, self.step_of(single), self.first)
        for line in result_lines(single.config, summary, single.run.folder):
            self.display_of(single).say(line)
        single.ended = True
