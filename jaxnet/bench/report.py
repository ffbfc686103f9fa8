"""What a benchmark prints and writes: a table for the terminal, one for Markdown, rows for JSON."""

import json
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jaxnet.bench import core
from jaxnet.bench.measure import Row, machine
from jaxnet.training.runs import console

BENCHMARKS = {"core": core.rows}


class BenchError(ValueError):
    """A benchmark that there is none of."""


HEADINGS = ("case", "against", "time", "quartiles", "memory", "aim", "", "ours", "theirs")


def cells(row: Row) -> tuple[str, ...]:
    """A row as text. Ratios below 1 are wins."""
    aims = [
        f"{what} ≤ {aim:.3g}" for what, aim in (("time", row.time_aim), ("memory", row.memory_aim)) if aim is not None
    ]
    return (
        row.case,
        row.against,
        f"{row.time_ratio:.3f}",
        f"{row.quartiles[0]:.3f}–{row.quartiles[1]:.3f}",
        "" if row.memory_ratio is None else f"{row.memory_ratio:.2f}",
        ", ".join(aims),
        row.verdict(),
        duration(row.seconds),
        duration(row.seconds_against),
    )


def duration(seconds: float) -> str:
    """Seconds as people read them: 1.6 s, 112 ms."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def table(title: str, rows: Iterable[Row]) -> Table:
    """The rows as a table for the terminal."""
    shown = Table(*HEADINGS, title=f"{title}: our time and temporary memory over theirs", title_justify="left")
    for row in rows:
        shown.add_row(*cells(row))
    return shown


def headline() -> str:
    """Date and machine, in a line."""
    on = machine()
    return f"{on['date']}, {on['device']}, {on['cores']} cores, jax {on['jax']}, {on['dtype']}"


def markdown(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [f"| {' | '.join(line)} |" for line in (HEADINGS, ("---",) * len(HEADINGS), *map(cells, rows))]
    return "\n".join([*lines, "", headline()])


def write_json(file: Path, rows: Iterable[Row]) -> None:
    """Machine and rows, with aims and verdicts."""
    content = {"machine": machine(), "rows": [row._asdict() | {"verdict": row.verdict()} for row in rows]}
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def run(name: str, json_file: Path | None, markdown_file: Path | None) -> None:
    """Measure the benchmark of a name, print its table, and write it where asked.

    Raises BenchError for a name that is none.
    """
    if name not in BENCHMARKS:
        raise BenchError(f"a benchmark is one of {', '.join(BENCHMARKS)}, got {name!r}")
    rows = BENCHMARKS[name]()
    show(name, rows, console())
    if json_file:
        write_json(json_file, rows)
    if markdown_file:
        markdown_file.write_text(markdown(rows) + "\n")


def show(title: str, rows: list[Row], console: Console) -> None:
    """Print the table and what it was measured on."""
    console.print(table(title, rows))
    console.print(headline(), highlight=False)
