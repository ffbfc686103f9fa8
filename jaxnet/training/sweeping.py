"""Going through a sweep: a run's folder for each setting and seed, finished ones skipped, a table over the seeds."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from jaxnet.training import devices, loop
from jaxnet.training.build import build
from jaxnet.training.data import load
from jaxnet.training.result import result_lines
from jaxnet.training.run import Run, config_sha256, data_sha256
from jaxnet.training.runs import Record, heading, read_run, results, run_folders, short_keys, table_of, told
from jaxnet.training.sweep import Setting, Sweep

Say = Callable[[str], None]
KNOWN = ("finished", "diverged", "interrupted")  # the earlier, the rather


@dataclass
class Outcome:
    """What came of a setting: its finished runs, and the seeds that did not come to an end."""

    setting: Setting
    records: list[Record] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)

    def values(self, name: str) -> list[float]:
        """A result of every run that has it."""
        return [value for record in self.records if (value := record.result(name)) is not None]


class Earlier(NamedTuple):
    """A run that is there already."""

    folder: Path
    status: str


def run_sweep(
    sweep: Sweep, *, runs_dir: Path = Path("runs"), data_dir: Path | None = None, say: Say = print
) -> list[Outcome]:
    """Trains what is not finished yet, a run's folder for each; an interrupted run is resumed.

    A run that diverges is told and left, the others go on. Raises ConfigError, DataError and ShapeError before
    anything is trained, and RunError and CheckpointError as `loop.train` does; Stopped on SIGTERM and Ctrl-C.
    """
    data = tried(sweep, data_dir)
    hashes = [
        {seed: config_sha256(setting.of_seed(seed), of) for seed in sweep.seeds_of(setting)}
        for setting, of in zip(sweep.settings, data, strict=True)
    ]
    before = earlier(runs_dir)
    total, number = len(sweep.settings) * sweep.seeds, 0
    for setting, seeds in zip(sweep.settings, hashes, strict=True):
        waiting: list[int] = []
        for seed, sha256 in seeds.items():
            there = before.get(sha256)
            if there is None:
                waiting.append(seed)
                continue
            number += 1
            go_on(there, f"[{number}/{total}] {title(setting, [seed])}", data_dir, say)
        for some in [waiting] if sweep.together and len(waiting) > 1 else [[seed] for seed in waiting]:
            number += len(some)
            if some:
                say(f"[{number}/{total}] {title(setting, some)}")
                train(setting, some, runs_dir, data_dir, say)
    after = earlier(runs_dir)
    return [outcome(setting, seeds, after) for setting, seeds in zip(sweep.settings, hashes, strict=True)]


def tried(sweep: Sweep, data_dir: Path | None) -> list[str]:
    """Each setting's data as their hash, after its network was built on them: so all that is wrong is told at once.

    Raises ConfigError, DataError and ShapeError.
    """
    loaded = {}
    for setting in sweep.settings:
        spec = setting.config.resolved()["data"]
        with devices.precision(setting.config.precision):
            if repr(spec) not in loaded:
                dataset = load(spec, data_dir=data_dir)
                loaded[repr(spec)] = dataset, data_sha256(dataset)
            build(setting.config, loaded[repr(spec)][0])
    return [loaded[repr(setting.config.resolved()["data"])][1] for setting in sweep.settings]


def earlier(runs_dir: Path) -> dict[str, Earlier]:
    """The runs in a folder that said how they ended, by the hash of config and data.

    One that says nothing may still be running elsewhere, and is left alone.
    """
    found: dict[str, Earlier] = {}
    for folder in run_folders(runs_dir) if runs_dir.is_dir() else ():
        run = Run.open(folder)
        summary, sha256 = run.summary() or {}, run.environment().get("config_sha256")
        status = str(summary.get("status"))
        if status not in KNOWN or not sha256:
            continue
        other = found.get(sha256)
        if other is None or KNOWN.index(status) < KNOWN.index(other.status):
            found[sha256] = Earlier(folder, status)
    return found


def title(setting: Setting, seeds: Sequence[int]) -> str:
    """A setting and its seeds in a line."""
    return " ".join((*setting.overrides, f"seed{'s' if len(seeds) > 1 else ''}={','.join(map(str, seeds))}"))


def go_on(there: Earlier, what: str, data_dir: Path | None, say: Say) -> None:
    """Skips a run that has ended, resumes one that was interrupted."""
    if there.status != "interrupted":
        say(f"{what}: {there.status} already, skipped: {there.folder}")
        return
    say(f"{what}: interrupted, resumed: {there.folder}")
    try:
        tell(loop.resume(there.folder, data_dir=data_dir, quiet=True), say)
    except loop.DivergedError as error:
        say(f"  {error}")


def train(setting: Setting, seeds: Sequence[int], runs_dir: Path, data_dir: Path | None, say: Say) -> None:
    """Trains one seed by itself, or several in one vmapped program."""
    try:
        if len(seeds) > 1:
            folders = loop.train_together(
                setting.config, seeds, runs_dir=runs_dir, data_dir=data_dir, overrides=setting.overrides, quiet=True
            )
        else:
            overrides = (*setting.overrides, f"seed={seeds[0]}")
            config = setting.of_seed(seeds[0])
            folders = [loop.train(config, runs_dir=runs_dir, data_dir=data_dir, overrides=overrides, quiet=True)]
    except loop.DivergedError as error:
        say(f"  {error}")
        return
    for folder in folders:
        tell(folder, say)


def tell(folder: Path, say: Say) -> None:
    """A run's results in a line."""
    run = Run.open(folder)
    summary = run.summary()
    if summary is None or summary.get("status") != "finished":
        say(f"  {(summary or {}).get('status', 'unfinished')}: {folder}")
        return
    say(f"  {next(result_lines(run.config(), summary, folder))}  → {folder}")


def outcome(setting: Setting, seeds: dict[int, str], runs: dict[str, Earlier]) -> Outcome:
    """What came of a setting, by the hashes of its seeds' runs."""
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
        return told(name, None)
    mean = told(name, statistics.fmean(values))
    return f"{mean} ± {told(name, statistics.stdev(values))}" if len(values) > 1 else mean


def sweep_table(outcomes: Sequence[Outcome]) -> Table:
    """A row for each setting: what was varied, how many runs, and their results, mean ± standard deviation."""
    keys = list(outcomes[0].setting.varied)
    names = results([record for each in outcomes for record in each.records])

    def row(each: Outcome) -> list[str]:
        runs, seeds = len(each.records), len(each.records) + len(each.failed)
        return [
            *each.setting.varied.values(),
            str(runs) if runs == seeds else f"{runs} of {seeds}",
            *(spread(name, each.values(name)) for name in (*names, "seconds")),
        ]

    return table_of([*short_keys(keys), "runs", *map(heading, names), "s"], len(keys), map(row, outcomes))
