"""Epochs of compiled calls, with metrics, checkpoints and an orderly end whatever comes."""

import os
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxnet.devices.processes import largest, of_first, writes
from jaxnet.training import devices
from jaxnet.training.checkpoint import CheckpointWriter, Progress, leaves_sha256, plain
from jaxnet.training.config import Config
from jaxnet.training.display import Display, row
from jaxnet.training.divergence import first_trouble
from jaxnet.training.fine_tuning import Start
from jaxnet.training.run_folder import Run, lines_of, quoted
from jaxnet.training.run_summary import best_line, epochs_without_gain, result_lines, summarize, unchanged_loss
from jaxnet.training.session import Session
from jaxnet.training.signals import StillRunningError, Stop, Stopped
from jaxnet.training.step import State
from jaxnet.training.trackers import Events


class DivergedError(ValueError):
    """Loss or gradient became NaN or infinite; the message names the first place and the last good checkpoint."""


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
        if lines and "test_accuracy" in lines[-1]:
            parts.append(f"test {lines[-1]['test_accuracy']:.2%}")
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
        lines = result_lines(single.config, summary, single.run.folder)
        for line in (*unchanged_loss(single.progress.metrics), *lines):
            self.display_of(single).say(line)
        single.ended = True


def draw_curves(runs: Iterable[Run]) -> None:
    """Draws the curves of some runs."""
    folders = [run.folder for run in runs if writes()]
    if folders:
        from jaxnet.training.reports import write_curves  # late: matplotlib takes as long to import as jax

        for folder in folders:
            write_curves(folder)
