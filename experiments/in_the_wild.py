"""Are other people's hand-written derivatives right?

    python -m experiments.in_the_wild [NAME …] [--markdown FILE]

Finds every `jax.custom_vjp` and `jax.custom_jvp` in the installed packages, runs `check` over those that
`in_the_wild_points` gives inputs for, and prints rule, file, verdict and cause; the others are listed as not run.
"""

import contextlib
import importlib
import inspect
import io
import pkgutil
import sys
import warnings
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import typer
from rich.console import Console
from rich.table import Table

from experiments import in_the_wild_peers as peers
from experiments.in_the_wild_points import POINTS as OF_JAX
from experiments.in_the_wild_points import Point
from jaxnet.checking import CannotCheckError, check

PACKAGES = ("jax", "optax", "chex", "equinox", "flax", "diffrax", "lineax", "optimistix")
POINTS: dict[str, Point] = OF_JAX | peers.POINTS | peers.USES
HEADINGS = ("rule", "kind", "file", "verdict", "cause")


class Found(NamedTuple):
    """A custom rule: the name under which it is reached, the object, and file:line of its function."""

    name: str
    rule: Any
    file: str


class Row(NamedTuple):
    """What came out for one rule."""

    name: str
    kind: str
    file: str
    verdict: str
    cause: str


# ---------------------------------------------------------------------------------------------------------- to find


def imported(packages: Iterable[str]) -> tuple[list[str], list[str]]:
    """Imports all that is in these packages but their tests; the names, and those that do not import, with why."""
    failed = []
    for package in packages:
        if find_spec(package) is None:
            continue
        path = getattr(importlib.import_module(package), "__path__", ())
        for module in pkgutil.walk_packages(path, f"{package}.", onerror=lambda _: None):
            if "test" in module.name or ".mlir" in module.name or module.name.endswith("__main__"):
                continue
            try:
                importlib.import_module(module.name)
            except (Exception, SystemExit) as error:
                failed.append(f"{module.name} does not import: {type(error).__name__}: {error}".splitlines()[0])
    # Folders without an `__init__` are not walked into, but what is in them is imported by the others.
    return [name for name in sorted(sys.modules) if any(f"{name}.".startswith(f"{each}.") for each in packages)], failed


def custom_rule(thing: Any) -> Any:
    """The custom rule that a public object is or wraps; None for other objects."""
    for _ in range(6):
        if isinstance(thing, jax.custom_jvp | jax.custom_vjp):
            return thing
        try:
            thing = inspect.getattr_static(thing, "__wrapped__", None)
        except Exception:  # somebody else's rule may raise anything
            return None
        if thing is None:
            return None
    return None


def find(packages: Sequence[str] = PACKAGES) -> tuple[list[Found], list[str]]:
    """Every custom rule in the packages, under the shortest of its public names, and what could not be imported."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        names, failed = imported(packages)
    known: dict[int, tuple[Any, list[str]]] = {}
    for module in names:
        for attribute, value in list(vars(sys.modules[module]).items()):
            if (rule := custom_rule(value)) is not None:
                known.setdefault(id(rule), (rule, []))[1].append(f"{module}.{attribute}")
    found = [
        Found(min(all_names, key=lambda n: ("._" in n, len(n), n)), rule, place(rule))
        for rule, all_names in known.values()
    ]
    found += [Found(name, point.through, name.split(".")[0]) for name, point in peers.used().items()]
    return sorted(found, key=lambda each: each.name), failed


def place(rule: Any) -> str:
    """file:line of a rule's function, from its package on."""
    function = inspect.unwrap(rule.__wrapped__)
    code = getattr(function, "__code__", None)
    if code is None:
        return ""
    return f"{code.co_filename.rpartition('site-packages/')[2]}:{code.co_firstlineno}"


# --------------------------------------------------------------------------------------------------------- to check


def judged(found: Found, point: Point) -> tuple[str, str]:
    """Verdict and cause of a rule at its point."""
    if point.args is None:
        return "not run", point.note
    rule = point.through or found.rule
    try:
        report = check(
            rule,
            *point.args(),
            reference=point.reference,
            intended=point.intended,
            tolerance=point.tolerance,
            precise=point.tolerance is None,
            inside=point.through is None,
            name=found.name,
        )
    except CannotCheckError as error:
        return "could not be checked", str(error).splitlines()[0]
    if not report.ok:
        wrong = ", ".join(leaf.path for leaf in report.wrong)
        return "WRONG", f"{wrong}: {report.cause}" if wrong else report.cause
    remarks = [f"{leaf.path} {leaf.verdict}" for leaf in report.leaves if leaf.verdict != "ok"]
    return "as declared" if point.intended else "right", "; ".join([*remarks, *filter(None, [point.note])])


def rows(found: Iterable[Found], points: dict[str, Point] = POINTS) -> list[Row]:
    """One row for each rule, in order: those that were checked, then the others."""
    checked, others = [], []
    for each in found:
        kind = type(each.rule).__name__ if custom_rule(each.rule) is not None else "made as it runs"
        point = points.get(each.name)
        if point is None:
            others.append(Row(each.name, kind, each.file, "not run", "no inputs"))
        else:
            (checked if point.args else others).append(Row(each.name, kind, each.file, *judged(each, point)))
    return checked + others


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [HEADINGS, ("---",) * len(HEADINGS), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Rules to check; else all.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write the table there.")] = None,
) -> None:
    """Check every custom rule in the installed packages."""
    found, failed = find()
    if names and (unknown := set(names) - {each.name for each in found}):
        raise SystemExit(f"there is no rule {', '.join(sorted(unknown))}; without a name all are listed")
    chosen = rows([each for each in found if not names or each.name in names])
    shown = Table(*HEADINGS)
    for row in chosen:
        shown.add_row(*row)
    Console().print(shown)
    for line in failed:
        print(line)
    if markdown_file:
        markdown_file.write_text(markdown(chosen) + "\n")


if __name__ == "__main__":
    typer.run(main)
