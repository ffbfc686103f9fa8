"""Runs on disk: read, compared, and listed in a table. Nothing here writes.

Functions raise RunError where a folder is no run, or cannot be read.
"""

import json
import operator
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxnet.registry import did_you_mean
from jaxnet.training.config import ConfigError, read_toml
from jaxnet.training.overrides import UNREADABLE, MissingKeyError, parse_value, value_at
from jaxnet.training.run_folder import Run, RunError
from jaxnet.training.run_summary import ACCURACIES

LOSSES = ("test_loss", "validation_loss", "train_loss")

LONGEST_NAME = 72
LONGEST_CELL = 24
ABSENT = "—"
BARE_KEY = re.compile(r"[\w-]+", re.ASCII)
CONDITION = re.compile(r"([^=<>!]+)(!=|<=|>=|=|<|>)(.+)", re.DOTALL)
SIGNS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
SURROUNDINGS = ("versions", "device", "devices", "platform", "threads", "data_sha256", "git_revision")
TIMES = ("seconds", "seconds_to_first_call", "examples_per_second")
SAYS_NOTHING = ("name", "promise")  # keys of a config that change nothing about the training


@dataclass(frozen=True)
class RunRecord:
    """A run read from its folder. summary: empty until the run has ended."""

    folder: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    summary: dict[str, Any]
    environment: dict[str, Any]
    notes: list[str]
    tags: list[str]

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def status(self) -> str:
        """finished, interrupted, diverged, or unfinished: it was killed, still trains, or was extended."""
        status = str(self.summary.get("status", "unfinished"))
        extended = self.epochs() < self.config.get("train", {}).get("epochs", 0)
        return "unfinished" if status == "finished" and extended and not self.summary.get("stopped_early") else status

    def result(self, name: str) -> float | None:
        """A number of the summary, else of the last line of metrics."""
        for found in (self.summary, self.metrics[-1] if self.metrics else {}):
            if isinstance(found.get(name), int | float):
                return float(found[name])
        return None

    def epochs(self) -> int:
        """Whole epochs done."""
        last = self.metrics[-1].get("epoch", 0) if self.metrics else 0
        return int(self.summary.get("epochs", last))


def read_run(folder: Path) -> RunRecord:
    """The run in a folder."""
    run = Run.open(folder)
    try:
        config = read_toml(folder / "config.toml")
    except ConfigError as error:
        raise RunError(str(error)) from error
    metrics = read_metrics(folder / "metrics.jsonl")
    return RunRecord(folder, config, metrics, run.summary() or {}, run.environment(), **run.notes())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, one for each epoch; a last line that was cut off is left out."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"{path} must be a file that can be read: {error.strerror or error}") from error
    found = []
    for number, line in enumerate(lines[:-1], 1):  # the text after the last newline is being written
        try:
            metrics = json.loads(line)
        except UNREADABLE as error:
            raise RunError(
                f"{path}, line {number} must be JSON, got {line[:40]!r}: "
                f"`jaxnet resume {path.parent}` writes the file anew from its checkpoint"
            ) from error
        if not isinstance(metrics, dict):
            raise RunError(f"{path}, line {number} must be a table of an epoch's metrics, got {line[:40]!r}")
        found.append(metrics)
    return found


def find_runs(folder: Path) -> tuple[list[RunRecord], list[str]]:
    """The runs in a folder and in the folders within it, by name, and the errors of those that cannot be read."""
    if not folder.is_dir():
        what = "it is a file" if folder.exists() else "there is nothing there"
        raise RunError(
            f"{folder} must be a folder with runs in it: {what}; give the folder of `jaxnet train --runs-dir`"
        )
    records, damaged = [], []
    for place in run_folders(folder):
        try:
            records.append(read_run(place))
        except RunError as error:
            damaged.append(str(error))
    return records, damaged


def run_folders(folder: Path) -> Iterator[Path]:
    """The folder if it is a run, else those inside that are, at any depth; hidden ones are being made."""
    if (folder / "config.toml").is_file() and (folder / "environment.json").is_file():
        yield folder
        return
    for inside in sorted(folder.iterdir(), key=by_number):
        if inside.is_dir() and not inside.is_symlink() and not inside.name.startswith("."):
            yield from run_folders(inside)


def by_number(path: Path) -> list[int | str]:
    """A sort key for names with numbers: seed=2 before seed=10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", path.name))]


# --------------------------------------------------------------------------------- beside each other


def differing(records: Sequence[RunRecord]) -> dict[str, list[str]]:
    """The config keys that differ between the runs, each with the runs' values."""
    configs = [{key: value for key, value in each.config.items() if key not in SAYS_NOTHING} for each in records]
    return dict(differences(configs, "")) if len(records) > 1 else {}


MISSING = object()  # in the place of a key that a config does not have


def differences(values: Sequence[Any], path: str) -> Iterator[tuple[str, list[str]]]:
    """The places where values differ: tables by key, lists of equal length by position, others as a whole."""
    first = values[0]
    if all(isinstance(value, dict) for value in values):
        for key in dict.fromkeys(key for value in values for key in value):
            yield from differences([value.get(key, MISSING) for value in values], f"{path}.{key}" if path else key)
    elif all(isinstance(value, list) and len(value) == len(first) for value in values):
        for i in range(len(first)):
            yield from differences([value[i] for value in values], f"{path}.{i}")
    elif any(value != first for value in values):
        yield path, [ABSENT if value is MISSING else inline(value) for value in values]


def inline(value: Any) -> str:
    """A value as TOML, in one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(map(inline, value))}]"
    if isinstance(value, dict):
        pairs = [f"{key if BARE_KEY.fullmatch(key) else inline(key)} = {inline(each)}" for key, each in value.items()]
        return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
    return repr(value)


def dotted(config: Any, above: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """The values of a config by dotted keys."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from dotted(value, (*above, key))
        else:
            yield ".".join((*above, key)), value


def value_of(record: RunRecord, key: str) -> Any:
    """A result, the status, the tags, or a config value by dotted key; None if the run has none."""
    if key in ("status", "tag"):
        return record.status if key == "status" else record.tags
    if (found := record.result(key)) is not None:
        return found
    try:
        return value_at(record.config, key, key)
    except MissingKeyError:
        return None


def sortable(value: Any) -> tuple[int, float, str]:
    """A sort key: absent values come first, then numbers, then text."""
    if value is None:
        return 0, 0.0, ""
    return (1, float(value), "") if isinstance(value, int | float) else (2, 0.0, inline(value))


def has_key(records: Sequence[RunRecord], key: str) -> None:
    """Checks that one of the runs has the key."""
    if records and all(value_of(record, key) is None for record in records):
        known = {name for each in records for name in (*each.summary, *dict(dotted(each.config)))}
        raise RunError(f'no run has a result or a config key "{key}": {did_you_mean(key, sorted(known))}')


def condition(text: str) -> tuple[str, Callable[[RunRecord], bool]]:
    """The key and the test of `KEY=VALUE`, or with `!=`, `<`, `<=`, `>` or `>=`. A run without the key fails.

    A list equals each of its values: `tag=good`.
    """
    parts = CONDITION.fullmatch(text)
    if parts is None:
        raise RunError(f"a condition must be like test_accuracy>0.9 or train.batch=10, got {text!r}")
    key, sign, written = (part.strip() for part in parts.groups())
    wanted = parse_value(written, text)

    def holds(record: RunRecord) -> bool:
        value = value_of(record, key)
        if value is None:
            return False
        if sign in ("=", "!="):
            return (value == wanted or (isinstance(value, list) and wanted in value)) == (sign == "=")
        ours, theirs = sortable(value), sortable(wanted)
        return ours[0] == theirs[0] and SIGNS[sign](ours, theirs)

    return key, holds


def difference_lines(records: Sequence[RunRecord]) -> list[str]:
    """The differences of two runs: config, versions, devices, data, results, and the first epoch with other metrics.

    A line has a name and both values. Times and rates are left out.
    """
    lines = [f"config.{key}: {' → '.join(values)}" for key, values in differing(records).items()]
    kept = [{key: each.environment[key] for key in SURROUNDINGS if key in each.environment} for each in records]
    lines += [f"environment.{key}: {' → '.join(values)}" for key, values in differences(kept, "")]
    summaries = [{key: value for key, value in each.summary.items() if key not in TIMES} for each in records]
    lines += [f"summary.{key}: {' → '.join(values)}" for key, values in differences(summaries, "")]
    for pair in zip(*(each.metrics for each in records), strict=False):
        rows = [{key: value for key, value in line.items() if key not in TIMES} for line in pair]
        found = [f"  {key}: {' → '.join(values)}" for key, values in differences(rows, "")]
        if found:
            return [*lines, f"metrics differ first after epoch {pair[0].get('epoch')}:", *found]
    return lines


def short_names(records: Sequence[RunRecord]) -> list[str]:
    """Names for a legend: the config values that differ, or the folders if none do."""
    keys = differing(records)
    if keys:
        rows = zip(*keys.values(), strict=True)
        names = [", ".join(f"{key} {value}" for key, value in zip(short_keys(keys), row, strict=True)) for row in rows]
        if len(set(names)) == len(names) and max(map(len, names)) <= LONGEST_NAME:
            return names
    names = [record.name for record in records]
    return names if len(set(names)) == len(names) else [str(record.folder) for record in records]


# ------------------------------------------------------------------------------------------ the table


def results(records: Sequence[RunRecord]) -> list[str]:
    """The results to show: accuracies, or losses if there are none."""
    for names in (ACCURACIES, LOSSES):
        found = [name for name in names if any(record.result(name) is not None for record in records)]
        if found:
            return found
    return []


def heading(name: str) -> str:
    """A result's name and unit: `best valid. %`, `test loss`."""
    return name.replace("accuracy", "%").replace("validation", "valid.").replace("_", " ")


def formatted(name: str, value: float | None) -> str:
    """A result as text, in the unit of its heading."""
    if value is None:
        return ABSENT
    if name == "seconds":
        return f"{value:.1f}"
    return f"{100 * value:.2f}" if name.endswith("accuracy") else f"{value:.4g}"


def short_keys(keys: Iterable[str]) -> list[str]:
    """Each key's last part, two for a name, or the whole key where two end alike."""
    keys = list(keys)
    last = [".".join(key.split(".")[-2 if key.endswith(".name") else -1 :]) for key in keys]
    return [
        short if last.count(short) == 1 and not short.isdecimal() else key
        for key, short in zip(keys, last, strict=True)
    ]


def table_of(headings: Sequence[str], words: int, rows: Iterable[Sequence[str]]) -> Table:
    """A table for the terminal: the first `words` columns hold words, the others numbers, never folded."""
    rows = list(rows)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for i, name in enumerate(headings):
        least = max(map(len, name.split()), default=0)
        if i < words:
            table.add_column(Text(name), overflow="fold", min_width=least)
        else:
            widest = max((len(row[i]) for row in rows), default=0)
            table.add_column(Text(name), justify="right", min_width=max(least, widest))
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def runs_table(records: Sequence[RunRecord], labels: Sequence[str], keys: dict[str, list[str]], fold: bool) -> Table:
    """A table of the runs' results, a line for each. labels: their names. keys: of the config, with the runs' values.

    fold: whether headings take several lines.
    """
    names = results(records)

    def row(i: int, record: RunRecord) -> list[str]:
        settings = [cell(values[i]) for values in keys.values()]
        numbers = [formatted(name, record.result(name)) for name in names]
        return [labels[i], *settings, epochs_done(record), *numbers, formatted("seconds", record.result("seconds"))]

    headings = ["run", *short_keys(keys), "done", *map(heading, names), "s"]
    table = table_of(headings, 1 + len(keys), (row(i, record) for i, record in enumerate(records)))
    for column in table.columns if fold else ():
        if column.justify == "right":
            column.max_width = column.min_width
    return table


def cell(value: str) -> str:
    """A value of a config in a table: text without quotes, cut where it is long."""
    value = json.loads(value) if value.startswith('"') else value
    return value if len(value) <= LONGEST_CELL else f"{value[: LONGEST_CELL - 1]}…"


def epochs_done(record: RunRecord) -> str:
    """The number of epochs done; for an unfinished run its status and the number wanted too."""
    epochs = record.epochs()
    if record.status == "finished":
        return str(epochs)
    wanted = record.config.get("train", {}).get("epochs")
    return f"{record.status} {epochs}" + (f"/{wanted}" if wanted is not None else "")


def console() -> Console:
    """Standard output; wide if it is no terminal and $COLUMNS is not set, so that lines in a file are not folded."""
    return Console() if sys.stdout.isatty() or "COLUMNS" in os.environ else Console(width=240)


def print_runs(records: Sequence[RunRecord], to: Console) -> None:
    """Prints the table of runs.

    Where it is too wide, the folders' names stand below it by number and headings are folded; then the widest settings
    are left out and named.
    """
    folders, numbers = [str(record.folder) for record in records], [str(i) for i in range(1, len(records) + 1)]
    keys, left_out = differing(records), []
    if any(record.tags for record in records):
        keys["tags"] = [" ".join(record.tags) for record in records]

    def fits(table: Table) -> bool:
        return to.measure(table, options=to.options.update(max_width=10_000)).maximum <= to.width

    forms = [(folders, False), (numbers, False), (numbers, True)]
    tables = [runs_table(records, labels, keys, fold) for labels, fold in forms]
    table = next(filter(fits, tables), tables[-1])
    while (settings := keys.keys() - {"tags"}) and not fits(table):
        left_out.append(max(sorted(settings), key=lambda key: max(len(cell(value)) for value in keys[key])))
        del keys[left_out[-1]]
        table = runs_table(records, numbers, keys, True)
    to.print(table)
    if table is not tables[0]:
        for number, folder in zip(numbers, folders, strict=True):
            to.print(f"{number:>3}  {folder}", markup=False, highlight=False, soft_wrap=True)
    if left_out:
        told = f"left out for width: {', '.join(left_out)}; jaxnet diff RUN RUN shows them"
        to.print(told, markup=False, highlight=False, soft_wrap=True)


def show_runs(folder: Path, *, where: Sequence[str] = (), sort: str | None = None) -> None:
    """Prints the table of a folder's runs, and the errors of those that cannot be read.

    where: conditions that a run must meet, such as `test_accuracy>0.9` or `train.batch=10`. sort: the figure or key by
    which the runs are sorted, the largest last; those without it come first.
    """
    records, damaged = find_runs(folder)
    if not records and not damaged:
        raise RunError(f"{folder} has no runs in it: make one with jaxnet train CONFIG --runs-dir {folder}")
    tests = [condition(each) for each in where]
    for key in (*(key for key, _ in tests), *([sort] if sort is not None else [])):
        has_key(records, key)
    records = [record for record in records if all(holds(record) for _, holds in tests)]
    if sort is not None:
        records.sort(key=lambda record: sortable(value_of(record, sort)))
    if tests and not records:
        print("no run meets the conditions")
    if records:
        print_runs(records, console())
    for line in damaged:
        print(f"left out: {line}")
