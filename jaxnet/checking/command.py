"""The command `jaxnet check`: checks targets, prints tables, writes JSON and HTML, returns the exit status."""

from __future__ import annotations

import difflib
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Any

from jaxnet.checking.checks import check
from jaxnet.checking.differentiation import raised
from jaxnet.checking.report import Report, clipped, page, sized, summary
from jaxnet.checking.subject import CannotCheckError
from jaxnet.checking.targets import Target, evaluated, find, in_dtype, load, shipped

WAIT = 8.0  # seconds after which a check says that it is at work
ADEQUACY_SECONDS = 1.5  # for each of all targets


def run(
    targets: Sequence[str | Target] = (),
    *,
    inputs: str | None = None,
    reference: str | None = None,
    intended: str | None = None,
    json_file: Path | str | None = None,
    html_file: Path | str | None = None,
    fix: Path | str | None = None,
    all: bool = False,
    adequacy: bool = False,
    seed: int = 0,
    seeds: int = 3,
    tolerance: float | None = None,
    dtype: str | None = None,
) -> int:
    """Checks `targets`, or with `all` everything in jaxnet, and prints the reports.

    Args:
        targets: names that jaxnet ships, "package.module:object", "file.py:object", or a `Target` made elsewhere.
        inputs: shapes of their arguments, "float32[8,256], float32[256]".
        reference, intended: "module:object" or "file.py:object" of the reference, or of the declared deviation.
        json_file, html_file: where to write the reports; "-" prints the JSON instead of the tables.
        fix: where to write a copy of the source with the patch, which is then checked; the file itself stays as it is.
        adequacy: list the mistakes that these points could not have seen; with `all` always, as far as time allows.
        seed, seeds, tolerance: as `check`'s. dtype: instead of float32, in shapes.

    Returns 0 where all is right, 1 where something is wrong, 2 where something could not be checked.
    """
    options: dict[str, Any] = {"seed": seed, "seeds": seeds, "tolerance": tolerance, "adequacy": adequacy or all}
    if all:
        options["budget"] = ADEQUACY_SECONDS
    quiet, start = str(json_file) == "-", time.perf_counter()
    typed = {"inputs": inputs, "reference": reference, "intended": intended, "dtype": dtype, "tolerance": tolerance}
    aside = partial(redirect_stdout, sys.stderr) if quiet else nullcontext  # stdout is for the JSON alone
    try:
        with aside(), stopped():
            found = gathered(targets, inputs, dtype, all)
        for key, place in (("reference", reference), ("intended", intended)):
            if place is not None:
                options[key] = function_at(place)
    except CannotCheckError as error:
        return could_not(str(error))
    if all and not quiet:
        print(f"{'':39}{'verdict':9}{'leaves':>7}{'error':>10}{'allowed':>10}{'seconds':>9}")
    with aside():
        reports, failures = reported(found, typed, options, all, quiet)
    if all and not quiet:
        closing(reports, time.perf_counter() - start)
    try:
        written(reports, failures, json_file, html_file)
    except OSError as error:
        return could_not(f"the report cannot be written: {error}")
    for name, why in failures if not all else []:
        could_not(f"{name}: {why}")
    if fix is not None:
        try:
            print(fixed(found, reports, Path(fix), inputs, dtype, options), end="")
        except (CannotCheckError, OSError) as error:
            return could_not(f"no mended copy: {error}")
    if any(not report.ok for report in reports):
        return 1
    return 2 if failures else 0


def reported(
    found: Sequence[Target], typed: dict[str, Any], options: dict[str, Any], all: bool, quiet: bool
) -> tuple[list[Report], list[tuple[str, str]]]:
    """Checks targets and prints each report at once. Returns the reports, and (name, reason) for each failure."""
    reports, failures = [], []
    for target in found:
        begun = time.perf_counter()
        chosen = {"again": again(target, typed, options["seed"]), **options, **target.options}
        try:
            with stopped(), told(target.name):
                report = check(target.rule, *target.args, name=target.name, **chosen)
        except CannotCheckError as error:
            left_out = "".join(f"\n  left out: {each}" for each in target.left_out[:3])
            failures.append((target.name, f"{error}{left_out}"))
            if all and not quiet:
                print(f"{target.name:34}could not be checked: {error}")
            continue
        reports.append(report)
        if not quiet:
            print(line(report, time.perf_counter() - begun) if all else in_flags(str(report)))
    return reports, failures


def fixed(
    found: Sequence[Target], reports: Sequence[Report], path: Path, inputs: str | None, dtype: str | None, options: dict
) -> str:
    """Writes a mended copy of a wrong rule's source, checks it, and returns the difference and the verdict.

    Raises `CannotCheckError` where there is no one patch, or a file at `path` already.
    """
    if len(found) != 1 or ":" not in found[0].typed:
        raise CannotCheckError(f"--fix takes one target, file.py:object or package.module:object, got {len(found)}")
    place, _, name = found[0].typed.rpartition(":")
    repair = reports[0].repair if reports else None
    if repair is None or not repair.patch:
        why = "its backward pass is right" if reports and reports[0].ok else "no patch of its source is known"
        raise CannotCheckError(f"{found[0].name}: {why}")
    if not Path(load(place).__file__).samefile(repair.file):
        raise CannotCheckError(f"the patch is for {repair.file}, which is not the target's own file")
    if path.exists():
        raise CannotCheckError(f"{path} is there already: give --fix a path that does not exist yet")
    path.write_text(repair.mended, encoding="utf-8")
    before = Path(repair.file).read_text(encoding="utf-8").splitlines(keepends=True)
    after = repair.mended.splitlines(keepends=True)
    difference = "".join(difflib.unified_diff(before, after, repair.file, str(path)))
    target = find(f"{path}:{name}", inputs, dtype)[0]
    report = check(target.rule, *target.args, name=target.name, **{**options, **target.options})
    return f"{difference}\n{summary(report) if report.ok else report}\n"


@contextmanager
def stopped() -> Iterator[None]:
    """Raises `CannotCheckError` where the user's code ends the program, or asks for more memory than there is."""
    try:
        yield
    except SystemExit as error:
        raise CannotCheckError(f"a function must return, but it raises {raised(error)}: take the exit out") from error
    except MemoryError as error:
        raise CannotCheckError(f"arrays must fit into memory, but {error}: give smaller inputs") from error


@contextmanager
def told(name: str, seconds: float = WAIT) -> Iterator[None]:
    """Says once on a terminal's stderr that a check is still at work, after some seconds."""
    words = f"{name}: still at work after {seconds:g} s; --seeds 1 takes less time"
    timer = Timer(seconds, lambda: print(words, file=sys.stderr))
    if sys.stderr.isatty():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def could_not(why: str) -> int:
    """Says on stderr why something could not be checked; the status for it."""
    print(f"could not be checked: {in_flags(why)}", file=sys.stderr)
    return 2


def in_flags(words: str) -> str:
    """A message of `check` with the options of the command: `reference=` is --reference."""
    return re.sub(r"`(reference|intended|tolerance)=`", r"--\1", words)


def gathered(targets: Sequence[str | Target], inputs: str | None, dtype: str | None, all: bool) -> list[Target]:
    """Everything to be checked."""
    if all:
        return [replace(each, args=in_dtype(each.args, dtype)) for each in shipped()]
    if not targets:
        raise CannotCheckError("name what to check: a layer, a loss, a model, module:object, or --all")
    return [
        each for target in targets for each in ([target] if isinstance(target, Target) else find(target, inputs, dtype))
    ]


def function_at(place: str) -> Any:
    """The function at "module:object" or "file.py:object"."""
    module, _, name = place.rpartition(":")
    thing = evaluated(name, load(module), module) if module else None
    if not callable(thing):
        raise CannotCheckError(f"a reference is given as module:function or file.py:function, got {place!r}")
    return thing


def again(target: Target, typed: dict[str, Any], seed: int) -> str:
    """The command that runs one check again; `typed` are the options of the command that change it."""
    flags = "".join(f' --{name} "{value}"' for name, value in typed.items() if value is not None)
    return f'jaxnet check "{target.typed or target.name}"{flags} --seed {seed}'


def line(report: Report, seconds: float) -> str:
    """One report as a line of a table."""
    gradients = [leaf for leaf in report.leaves if not leaf.forward and leaf.verdict != "kink"]
    leaf = max(gradients, key=lambda each: each.error, default=None)
    error, allowed = (sized(leaf.error), sized(leaf.allowed)) if leaf else ("", "")
    words = "ok" if report.ok else f"{report.verdict}   {report.layer + ': ' if report.layer else ''}{report.cause}"
    verdict, _, why = words.partition(" ")
    blind = f"   cannot tell: {clipped(report.blind, 2)}" if report.blind else ""
    sizes = f"{len(report.leaves):>7}{error:>10}{allowed:>10}{seconds:>9.1f}"
    return f"{report.name:39}{verdict:9}{sizes}{why and '  ' + why}{blind}"


def closing(reports: Sequence[Report], seconds: float) -> None:
    """The last lines of the table, and the full report of each wrong rule."""
    wrong = [report for report in reports if not report.ok]
    print(f"\n{len(reports)} backward passes, {len(wrong)} wrong, in {seconds:.0f} s")
    for report in wrong:
        print(f"\n{report}")


def written(reports: Sequence[Report], failures: Sequence[tuple[str, str]], json_file, html_file) -> None:
    """JSON and HTML, where asked for."""
    if json_file is not None:
        made = {
            "ok": all(report.ok for report in reports) and not failures,
            "reports": [report.to_dict() for report in reports],
            "not_checked": [{"name": name, "why": why} for name, why in failures],
        }
        text = json.dumps(made, indent=2, ensure_ascii=False)
        print(text) if str(json_file) == "-" else Path(json_file).write_text(text + "\n", encoding="utf-8")
    if html_file is not None:
        Path(html_file).write_text(page(reports), encoding="utf-8")
