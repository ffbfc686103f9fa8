"""Runs a sweep: a folder for each setting and seed; finished runs are skipped; a table of mean and spread."""

import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from jaxnet.training import devices, loop
from jaxnet.training.build import build
from jaxnet.training.checkpoint import DamagedError
from jaxnet.training.data import load
from jaxnet.training.lock import LockedError
from jaxnet.training.overrides import ConfigError
from jaxnet.training.run_folder import Run, TakenError, config_sha256, data_sha256
from jaxnet.training.run_listing import (
    RunRecord,
    find_runs,
    formatted,
    heading,
    read_run,
    results,
    short_keys,
    table_of,
)
from jaxnet.training.run_summary import result_lines
from jaxnet.training.sweep_file import Setting, SettingSearch, Sweep

Say = Callable[[str], None]
ENDED = ("finished", "diverged")


@dataclass
class Outcome:
    """The results of a setting: finished runs, and the seeds that did not finish."""

    setting: Setting
    records: list[RunRecord] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        """How many epochs the setting has."""
        return self.setting.config.train.epochs

    def values(self, name: str) -> list[float]:
        """A result of every run that has it."""
        return [value for record in self.records if (value := record.result(name)) is not None]


class Earlier(NamedTuple):
    """A run that exists already."""

    folder: Path
    status: str
    together: list[int]
    """The seeds trained in one program with it; empty if it was trained alone."""


def run_sweep(
    sweep: Sweep,
    *,
    runs_dir: Path = Path("runs"),
    data_dir: Path | None = None,
    say: Say = print,
    wait: Callable[[], None] = lambda: None,
    fail_fast: bool = False,
    resume: bool = False,
) -> list[Outcome]:
    """Trains the runs that are not finished, each in a folder; interrupted and killed runs are resumed.

    Runs that another process trains are left to it, so two sweeps at once share the work. A run that diverges or
    cannot be resumed is named and left, and the others go on; with fail_fast its error ends the sweep.
    wait: called before the results are gathered, so that other processes of the sweep may end.
    resume: one of its runs must be there already, else ConfigError.
    Raises ConfigError, DataError and ShapeError before anything is trained, also for a search without optuna;
    RunError, CheckpointError and Stopped as `loop.train` does.
    """
    if sweep.search is not None:
        options = {"runs_dir": runs_dir, "data_dir": data_dir, "say": say, "fail_fast": fail_fast}
        return run_search(sweep, sweep.search, resume=resume, **options)
    data = tried(sweep, data_dir)
    hashes = [
        {seed: config_sha256(setting.of_seed(seed), of) for seed in sweep.seeds_of(setting)}
        for setting, of in zip(sweep.settings, data, strict=True)
    ]
    if resume and earlier(runs_dir).keys().isdisjoint(sha256 for seeds in hashes for sha256 in seeds.values()):
        raise ConfigError(
            f"--resume goes on with a sweep that was begun; {runs_dir} has none of its {sum(map(len, hashes))} runs: "
            "name its folder by --runs-dir, or begin it without --resume"
        )
    total, number = len(sweep.settings) * sweep.seeds, 0
    for setting, seeds in zip(sweep.settings, hashes, strict=True):
        before = earlier(runs_dir)  # anew for each setting: another sweep may have come to it meanwhile
        there = {seed: before[sha256] for seed, sha256 in seeds.items() if sha256 in before}
        waiting = [seed for seed in seeds if seed not in there]
        for some in groups(there):
            number += len(some)
            with going_on(say, fail_fast):
                go_on([there[seed] for seed in some], f"[{number}/{total}] {title(setting, some)}", data_dir, say)
        for some in [waiting] if sweep.together and len(waiting) > 1 else [[seed] for seed in waiting]:
            number += len(some)
            if some:
                say(f"[{number}/{total}] {title(setting, some)}")
                with going_on(say, fail_fast):
                    train(setting, some, runs_dir, data_dir, say)
    wait()
    after = earlier(runs_dir)
    return [outcome(setting, seeds, after) for setting, seeds in zip(sweep.settings, hashes, strict=True)]


def run_search(
    sweep: Sweep,
    trials: SettingSearch,
    *,
    runs_dir: Path,
    data_dir: Path | None,
    say: Say,
    fail_fast: bool,
    resume: bool = False,
) -> list[Outcome]:
    """Trains each setting as it is suggested, the runs of one that goes on for longer; else as `run_sweep`."""
    found: list[Outcome] = []

    def result(setting: Setting) -> float | None:
        lines = [record.metrics[: setting.config.train.epochs][-1] for record in found[-1].records]
        values = [line[trials.search.metric] for line in lines if trials.search.metric in line]
        return statistics.fmean(values) if values else None

    number = 0
    for setting in trials.suggested(result):
        epochs = setting.config.train.epochs
        if found and found[-1].setting.overrides == setting.overrides and found[-1].epochs < epochs:
            say(f"trial {number} goes on to {epochs} epochs")
            for record in found.pop().records:
                if record.config["train"]["epochs"] < epochs:
                    with (run := Run.open(record.folder)).locked():
                        run.extend([f"train.epochs={epochs}"])
        else:
            number += 1
            say(f"trial {number} of {trials.search.trials}")
        one = replace(sweep, settings=[setting], search=None)
        first = resume and not found
        found += run_sweep(one, runs_dir=runs_dir, data_dir=data_dir, say=say, fail_fast=fail_fast, resume=first)
    return found


@contextmanager
def more_processes(arguments: Sequence[str], count: int) -> Iterator[Callable[[], None]]:
    """Runs the same sweep in `count` more processes. They share the runs by their locks.

    arguments: of the command. Gives a function that waits for them. At the end those that still run get SIGTERM.
    """
    started = [subprocess.Popen([sys.executable, "-m", "jaxnet", *arguments]) for _ in range(count)]

    def wait() -> None:
        for process in started:
            process.wait()

    try:
        yield wait
    finally:
        for process in started:
            process.terminate()
        wait()


def groups(there: dict[int, Earlier]) -> list[list[int]]:
    """The seeds of earlier runs, those in one list that are resumed in one program.

    These began together, one is not at its end, and they have a step in common or no checkpoint yet.
    """
    found: list[list[int]] = []
    for seed, run in there.items():
        group = run.together
        if any(seed in some for some in found):
            continue
        members = [there[each] for each in group if each in there and there[each].together == group]
        steps = [set(Run.open(each.folder).checkpoints.steps()) for each in members if each.status not in ENDED]
        begun = len(members) == len(group) > 1 and any(each.status not in ENDED for each in members)
        found.append(group if begun and (set.intersection(*steps) or not all(steps)) else [seed])
    return found


def tried(sweep: Sweep, data_dir: Path | None) -> list[str]:
    """The hash of each setting's data. Builds every network first, so that errors come before any training."""
    loaded = {}
    for setting in sweep.settings:
        spec = setting.config.data
        with devices.precision(setting.config.precision):
            if repr(spec) not in loaded:
                dataset = load(spec, data_dir=data_dir)
                loaded[repr(spec)] = dataset, data_sha256(dataset)
            build(setting.config, loaded[repr(spec)][0])
    return [loaded[repr(setting.config.data)][1] for setting in sweep.settings]


def earlier(runs_dir: Path) -> dict[str, Earlier]:
    """The runs in a folder by the hash of config and data; of several with one hash the most advanced.

    An extended run is also listed under its earlier hashes, as finished.
    """
    found: dict[str, Earlier] = {}
    for record in find_runs(runs_dir)[0] if runs_dir.is_dir() else ():
        together = record.environment.get("together") or []
        shorter = {str(each): "finished" for each in record.environment.get("extended_from", [])}
        for sha256, status in {**shorter, str(record.environment.get("config_sha256")): record.status}.items():
            if sha256 not in found or rank(status) < rank(found[sha256].status):
                found[sha256] = Earlier(record.folder, status, together)
    return found


def rank(status: str) -> int:
    """0 for a finished run, 1 for one that diverged, 2 for any other."""
    return ENDED.index(status) if status in ENDED else len(ENDED)


def title(setting: Setting, seeds: Sequence[int]) -> str:
    """A setting and its seeds in a line."""
    return " ".join((*setting.overrides, f"seed{'s' if len(seeds) > 1 else ''}={','.join(map(str, seeds))}"))


def go_on(runs: Sequence[Earlier], what: str, data_dir: Path | None, say: Say) -> None:
    """Skips runs that have ended and resumes others; runs that began together are resumed in one program."""
    first = runs[0]
    if len(runs) == 1 and first.status in ENDED:
        say(f"{what}: {first.status} already, skipped: {first.folder}")
        return
    say(f"{what}: {first.status}, resumed: {', '.join(str(run.folder) for run in runs)}")
    if len(runs) == 1:
        folders = [loop.resume(first.folder, data_dir=data_dir, quiet=True)]
    else:
        folders = loop.resume_together([run.folder for run in runs], data_dir=data_dir, quiet=True)
    for folder in folders:
        tell(folder, say)


def train(setting: Setting, seeds: Sequence[int], runs_dir: Path, data_dir: Path | None, say: Say) -> None:
    """Trains one seed by itself, or several in one vmapped program."""
    options: dict[str, Any] = {"runs_dir": runs_dir, "data_dir": data_dir, "numbered": False, "quiet": True}
    if len(seeds) > 1:
        folders = loop.train_together(setting.config, seeds, overrides=setting.overrides, **options)
    else:
        overrides = (*setting.overrides, f"seed={seeds[0]}")
        folders = [loop.train(setting.of_seed(seeds[0]), overrides=overrides, **options)]
    for folder in folders:
        tell(folder, say)


@contextmanager
def going_on(say: Say, fail_fast: bool) -> Iterator[None]:
    """Reports a run that another process holds; also one that diverges or is damaged, unless fail_fast."""
    try:
        yield
    except (LockedError, TakenError) as error:
        say(f"  {error}")
    except (loop.DivergedError, DamagedError) as error:
        if fail_fast:
            raise
        say(f"  {error}")


def tell(folder: Path, say: Say) -> None:
    """Reports a run's results in one line."""
    run = Run.open(folder)
    summary = run.summary()
    if summary is None or summary.get("status") != "finished":
        say(f"  {(summary or {}).get('status', 'unfinished')}: {folder}")
        return
    say(f"  {next(result_lines(run.config(), summary, folder))}  → {folder}")


def outcome(setting: Setting, seeds: dict[int, str], runs: dict[str, Earlier]) -> Outcome:
    """The results of a setting, by the hashes of its seeds' runs."""
    found = Outcome(setting)
    for seed, sha256 in seeds.items():
        there = runs.get(sha256)
        if there is not None and there.status == "finished":
            found.records.append(read_run(there.folder))
        else:
            found.failed.append(seed)
    return found


# ----------------------------------------------------------------------------------------- the table


def spread(name: str, values: Sequence[float]) -> str:
    """Mean ± standard deviation over the seeds (of the sample, n − 1); of one run its number alone."""
    if not values:
        return formatted(name, None)
    mean = formatted(name, statistics.fmean(values))
    return f"{mean} ± {formatted(name, statistics.stdev(values))}" if len(values) > 1 else mean


def sweep_table(outcomes: Sequence[Outcome]) -> Table:
    """A row for each setting: its values, the number of runs, and their results, mean ± standard deviation."""
    keys = list(outcomes[0].setting.varied)
    halved = "train.epochs" not in keys and len({each.epochs for each in outcomes}) > 1
    names = results([record for each in outcomes for record in each.records])

    def row(each: Outcome) -> list[str]:
        runs, seeds = len(each.records), len(each.records) + len(each.failed)
        return [
            *each.setting.varied.values(),
            *([str(each.epochs)] if halved else []),
            str(runs) if runs == seeds else f"{runs} of {seeds}",
            *(spread(name, each.values(name)) for name in (*names, "seconds")),
        ]

    headings = [*short_keys(keys), *(["epochs"] if halved else []), "runs", *map(heading, names), "s"]
    return table_of(headings, len(keys), map(row, outcomes))
