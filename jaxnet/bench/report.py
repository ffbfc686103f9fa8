"""What a benchmark prints and writes: a table for the terminal, one for Markdown, rows for JSON."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rich.console import Console
from rich.table import Table

from jaxnet.bench import checkers, core
from jaxnet.bench.measure import machine
from jaxnet.training.runs import console


class Shown(Protocol):
    """A row of any benchmark."""

    def headings(self) -> tuple[str, ...]: ...
    def cells(self) -> tuple[str, ...]: ...
    def to_dict(self) -> dict[str, Any]: ...


class Benchmark(NamedTuple):
    """What a benchmark shows, and how its rows are got."""

    title: str
    rows: Callable[[], Sequence[Shown]]


BENCHMARKS = {
    "core": Benchmark("core: our time and temporary memory over theirs, in float32", core.rows),
    "checkers": Benchmark("checkers: mistakes and correct code through each", checkers.rows),
}


class BenchError(ValueError):
    """A benchmark that there is none of."""


def table(title: str, rows: Sequence[Shown]) -> Table:
    """The rows as a table for the terminal."""
    shown = Table(*rows[0].headings(), title=title, title_justify="left")
    for row in rows:
        shown.add_row(*row.cells())
    return shown


def headline() -> str:
    """Date and machine, in a line."""
    on = machine()
    return f"{on['date']}, {on['device']}, {on['cores']} cores, jax {on['jax']}"


def markdown(rows: Sequence[Shown]) -> str:
    """The rows as a Markdown table."""
    head = rows[0].headings()
    lines = [f"| {' | '.join(line)} |" for line in (head, ("---",) * len(head), *(row.cells() for row in rows))]
    return "\n".join([*lines, "", headline()])


def write_json(file: Path, rows: Sequence[Shown]) -> None:
    """Machine and rows, with all that is known of each."""
    content = {"machine": machine(), "rows": [row.to_dict() for row in rows]}
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def run(name: str, json_file: Path | None, markdown_file: Path | None) -> None:
    """Measure the benchmark of a name, print its table, and write it where asked.

    Raises BenchError for a name that is none.
    """
    if name not in BENCHMARKS:
        raise BenchError(f"a benchmark is one of {', '.join(BENCHMARKS)}, got {name!r}")
    title, measured = BENCHMARKS[name]
    rows = measured()
    show(title, rows, console())
    if json_file:
        write_json(json_file, rows)
    if markdown_file:
        markdown_file.write_text(markdown(rows) + "\n")


def show(title: str, rows: Sequence[Shown], console: Console) -> None:
    """Print the table and what it was measured on."""
    console.print(table(title, rows))
    console.print(headline(), highlight=False)
