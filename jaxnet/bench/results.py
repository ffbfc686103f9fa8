"""The output of a benchmark: a table for the terminal, one for Markdown, rows for JSON."""

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rich.console import Console
from rich.table import Table

from jaxnet.bench import cases, checkers, core, example_gradients, growth, launches
from jaxnet.bench.measure import Row, machine
from jaxnet.bench.summary import summary
from jaxnet.training.run_listing import console


class Shown(Protocol):
    """A row of any benchmark."""

    def headings(self) -> tuple[str, ...]: ...
    def cells(self) -> tuple[str, ...]: ...
    def _asdict(self) -> dict[str, Any]: ...


class Benchmark(NamedTuple):
    """A benchmark's headings, and the function that gives its rows: of one subject, where one is named."""

    title: str
    rows: Callable[..., Sequence[Shown]]
    subjects: Collection[str] = ()


OVER = "our time and temporary memory over theirs"
BENCHMARKS = {
    "core": Benchmark(f"core: {OVER}, in float32", core.rows),
    "layers": Benchmark(f"layers: {OVER}, forward and backward", cases.rows_of(cases.LAYERS), cases.LAYERS),
    "models": Benchmark(f"models: {OVER}, a step's cost and gradients", cases.rows_of(cases.MODELS), cases.MODELS),
    "quantities": Benchmark(f"quantities of each example: {OVER}", example_gradients.rows),
    "growth": Benchmark("growth: a step's time over its operations", growth.rows),
    "devices": Benchmark("devices: a step's kernels on an H100, compiled without one", launches.rows, launches.STEPS),
    "checkers": Benchmark("checkers: mistakes and correct code through each", checkers.rows),
}


class BenchError(ValueError):
    """An unknown benchmark, or an unknown subject of one."""


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
    verdicts = [{"verdict": row.verdict()} if isinstance(row, Row) else {} for row in rows]
    content = {"machine": machine(), "rows": [row._asdict() | of for row, of in zip(rows, verdicts, strict=True)]}
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def run(name: str, json_file: Path | None, markdown_file: Path | None, only: str | None = None) -> None:
    """Measure the benchmark of a name, or one subject of it, print its table, and write it where asked.

    Raises BenchError for an unknown name.
    """
    if name not in BENCHMARKS:
        raise BenchError(f"a benchmark is one of {', '.join(BENCHMARKS)}, got {name!r}")
    title, measured, subjects = BENCHMARKS[name]
    if only is not None and only not in subjects:
        parts = f"has the subjects {', '.join(subjects)}" if subjects else "is measured whole"
        raise BenchError(f"the benchmark {name} {parts}, got --only {only!r}")
    rows = measured(only) if subjects else measured()
    show(title, rows, console())
    if json_file:
        write_json(json_file, rows)
    if markdown_file:
        of_cases = [row for row in rows if isinstance(row, Row)]
        markdown_file.write_text("\n\n".join([*([summary(of_cases)] if of_cases else []), markdown(rows)]) + "\n")


def show(title: str, rows: Sequence[Shown], console: Console) -> None:
    """Print the table and the machine."""
    console.print(table(title, rows))
    console.print(headline(), highlight=False)
