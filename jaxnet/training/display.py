"""Shows a run on the terminal: a row for each epoch above a progress bar."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxnet import ascii_spelling


def percent(fraction: float) -> str:
    """`95.42 %`."""
    return f"{100 * fraction:.2f} %"


def numbers(values: list[float], most: int = 8) -> str:
    """Norms of several layers, first layer first; of many, the first and the last few."""
    short = [f"{value:.2g}" for value in values]
    return " ".join(short if len(short) <= most else [*short[: most // 2], "…", *short[-most // 2 :]])


def row(line: dict[str, Any], epochs: int) -> str:
    """An epoch in one row, from its line of metrics."""
    parts = [f"{line['epoch']:>{len(str(epochs))}}/{epochs}", f"loss {line['train_loss']:.4g}"]
    for name in ("train", "validation", "test"):
        if f"{name}_accuracy" in line:
            parts.append(f"{name} {percent(line[f'{name}_accuracy'])}")
        elif f"{name}_loss" in line and name != "train":
            parts.append(f"{name} loss {line[f'{name}_loss']:.4g}")
    if line.get("delta_norms"):
        parts.append(f"‖δ‖ {numbers(line['delta_norms'])}")
    for name, sign in (("epsilon", "ε"), ("noise_scale", "noise scale")):
        if name in line:
            parts.append(f"{sign} {line[name]:.3g}")
    return "  ".join([*parts, f"{line['examples_per_second']:,.0f} examples/s"])


class Display:
    """Prints lines and shows progress.

    log: receives every line too. lost: called once when stdout cannot be written; nothing is shown after that.
    quiet: shows nothing.
    """

    def __init__(self, log: Callable[[str], None], lost: Callable[[OSError], None], *, quiet: bool = False):
        self.log, self.lost, self.quiet = log, lost, quiet
        self.bar: Any = None
        self.task: Any = None

    def say(self, line: str) -> None:
        """One line, logged."""
        self.log(line)
        if self.quiet:
            return
        with self.showing():
            if self.bar is not None:
                self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
                return
            print(ascii_spelling.writable(line, sys.stdout), flush=True)

    def start(self, steps: int, done: int) -> None:
        """The progress bar, where there is a terminal, over all steps of the run."""
        if self.quiet or not sys.stdout.isatty():
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[beside]}"), TimeRemainingColumn()
        )
        with self.showing():
            self.bar.start()
            self.task = self.bar.add_task("", total=steps, completed=done, beside="")

    def show(self, step: int, what: str, beside: str) -> None:
        """How far the run is."""
        if self.bar is not None:
            with self.showing():
                self.bar.update(self.task, completed=step, description=what, beside=beside)

    def end(self) -> None:
        """Takes the bar away."""
        if self.bar is not None:
            with self.showing():
                self.bar.stop()
            self.bar = None

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Shows nothing more once stdout fails inside."""
        try:
            yield
        except OSError as error:
            self.quiet, self.bar = True, None
            self.lost(error)
