"""`jaxnet explain`: makes the derivation, prints it, writes pages and JSON."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import jax

from jaxnet.explaining import terminal
from jaxnet.explaining.derive import chain_of, derive
from jaxnet.explaining.exercise import asked_lines, exercise
from jaxnet.explaining.exercise_tasks import asked_tasks, by_hand, tasks_of
from jaxnet.explaining.expressions import latex
from jaxnet.explaining.figures import Picture, pictures_of_run, pictures_of_walk, write_figure
from jaxnet.explaining.formulas import FormulaError, Tried, trial_lines, tried_on, try_formula
from jaxnet.explaining.functions import FunctionSubject, derivation_of_function
from jaxnet.explaining.guided_walk import walk_blocks, walk_steps
from jaxnet.explaining.history import at_moments, history_lines, movements
from jaxnet.explaining.model import Derivation, Line, to_dict
from jaxnet.explaining.notation import ExplainError, Notation
from jaxnet.explaining.observe import Observed, observe
from jaxnet.explaining.subjects import ExplainedNetwork, at

NARROWEST = 60
MOST_DIGITS = 12


@dataclass(frozen=True)
class Options:
    """The command's options. batch: whether the subject's examples are one batch."""

    notation: Notation
    digits: int = terminal.DIGITS
    layer: int | None = None
    step: bool = False
    walk: bool = False
    exercise: bool = False
    questions: bool = False
    more: bool = False
    shapes: bool = False
    table: bool = False
    batch: bool = False
    formula: str | None = None
    latex: bool = False
    json_file: Path | None = None
    html_file: Path | None = None
    figure: Path | None = None
    sheet: int | None = None
    width: int | None = None


def run(subject: ExplainedNetwork | FunctionSubject, options: Options) -> None:
    """Prints the explanation of a subject, and writes the JSON, the page and the figure that the options name.

    Raises `ExplainError` for a subject that cannot be explained, `FormulaError` for a formula that cannot be read.
    """
    if not 1 <= options.digits <= MOST_DIGITS:
        raise ExplainError(f"--digits must be from 1 to {MOST_DIGITS}, got {options.digits}")
    if options.walk or options.exercise or options.sheet:  # whoever learns takes no layer's number for a power
        options = replace(options, notation=replace(options.notation, bracketed=True))
    width = options.width or max(NARROWEST, shutil.get_terminal_size((100, 24)).columns)
    if isinstance(subject, FunctionSubject):
        show_function(derivation_of_function(subject, options.notation), options, width)
        return
    with jax.enable_x64(subject.precision == "float64"):
        observed = observe(subject.net, subject.loss, subject.params, at(subject.xs, 0), subject.ys[0])
        if options.sheet is not None:
            show_sheets(observed, subject.seed or 0, options)
            return
        first = subject.example or 0
        about: dict[str, Any] = {
            "layer": options.layer, "batch": (subject.xs, subject.ys) if options.batch else None,
            "examples": tuple(range(first, first + len(subject.ys))), "source": subject.source,
            "example": subject.example, "seed": subject.seed,
        }  # fmt: skip
        formula = options.formula
        silent = options.table or options.shapes or (formula not in (None, "-") and "inv" not in formula)
        whole = options.step or options.more or options.json_file is not None
        asked = None if whole else 0 if silent else 1  # more layers are not shown, and each takes a while
        derivation = derive(observed, options.notation, asked=asked, **about)
        if options.html_file is not None:
            from jaxnet.explaining.page import write_page

            write_page(options.html_file, observed, options.notation, digits=options.digits, run=subject.history,
                       kind=subject.kind, **about)  # fmt: skip
        if options.figure is not None:
            write_figure(options.figure, pictures(subject, observed, derivation, options))
        if options.json_file is not None:
            write_json(options.json_file, derivation)
        if str(options.json_file) == "-":
            return
        show(subject, observed, derivation, options, width)
    for file in filter(None, (options.html_file, options.figure)):
        print(file)


def pictures(subject: ExplainedNetwork, observed: Observed, derivation: Derivation, options: Options) -> list[Picture]:
    """The pictures of --figure: with --walk, or as a GIF without a run, the walk; of a run as a GIF its moments."""
    moving, chain = options.figure is not None and options.figure.suffix == ".gif", chain_of(observed, options.notation)
    if moving and subject.history is not None and subject.history.moments and not options.walk:
        return pictures_of_run(observed, subject.history, options.notation)
    if moving or options.walk:
        return pictures_of_walk(chain, walk_steps(observed, derivation, options.notation), moving=moving)
    return [Picture(chain)]


def show_sheets(observed: Observed, seed: int, options: Options) -> None:
    """Writes exercise sheets as a page, or prints them as LaTeX."""
    from jaxnet.explaining import sheets
    from jaxnet.explaining.template_files import template

    if (options.html_file is None) == (not options.latex):
        raise ExplainError("--sheet is written as a page, --html FILE, or printed as LaTeX, --latex: give one of them")
    made = sheets.sheets(observed, options.notation, options.sheet or 1, seed)
    if options.html_file is None:
        print(template("sheet.tex.j2").render(sheets=made, form=sheets.in_latex))
        return
    page = template("sheet.html.j2").render(sheets=made, form=sheets.in_html)
    write_text(options.html_file, page, "--html")
    print(options.html_file)


def show_function(derivation: Derivation, options: Options, width: int) -> None:
    """Prints the lines of a function, or writes them as a page, JSON or LaTeX.

    Raises `ExplainError` for an option that takes a network.
    """
    shown = {"notation", "digits", "json_file", "html_file", "latex", "shapes", "width"}
    for each in fields(Options):
        if each.name not in shown and getattr(options, each.name) != each.default:
            option = {"formula": "try"}.get(each.name, each.name)
            raise ExplainError(f"--{option} is for networks: leave it out for a function")
    if options.json_file is not None:
        write_json(options.json_file, derivation)
    if options.html_file is not None:
        from jaxnet.explaining.page import write_function_page

        print(write_function_page(options.html_file, derivation, options.digits))
        return
    if options.latex:
        print(latex_of(derivation))
    elif options.shapes:
        write(terminal.shape_lines(derivation, width), width)
    elif str(options.json_file) != "-":
        write(terminal.overview(derivation, digits=options.digits, width=width).splitlines(), width)


def latex_of(derivation: Derivation) -> str:
    """All equations, forward and backward, as LaTeX's `align*`."""
    lines = (*derivation.forward, *derivation.backward)
    rows = " \\\\\n".join(f"  {latex(line.left)} &= {latex(line.right)}" for line in lines)
    return f"\\begin{{align*}}\n{rows}\n\\end{{align*}}"


def show(subject: ExplainedNetwork, observed: Observed, derivation: Derivation, options: Options, width: int) -> None:
    """Prints the parts that the options name."""
    digits, layer = options.digits, options.layer
    if options.exercise or options.formula is not None:
        batch = (subject.xs, subject.ys) if options.batch else None
        tried = tried_on(observed, derivation, options.notation, batch)
        if options.formula is not None:
            lines = tried_lines(options.formula, tried, digits, width)
        else:
            tasks = tasks_of(observed, options.notation, subject.seed or 0) if by_hand(derivation) else None
            lines = exercise(*([asked_tasks(tasks)] if tasks else []), asked_lines(tried))
        for line in lines:
            print(line, flush=True)
    elif options.walk:
        walk(walk_blocks(walk_steps(observed, derivation, options.notation), width))
    elif options.step:
        walk(terminal.steps(derivation, digits=digits, width=width, layer=None if layer is None else str(layer)))
    elif options.latex:
        print(latex_of(derivation))
    elif options.shapes:
        write(terminal.shape_lines(only(derivation, layer), width), width)
    elif options.questions:
        write(terminal.question_lines(derivation, width), width)
    elif options.table:
        write(terminal.notation_lines(derivation), width, fold=False)
    else:
        asked = only(derivation, layer)
        found = [*terminal.overview(asked, digits=digits, width=width).splitlines(), *subject.notes]
        found += sources(asked) if asked is not derivation else []
        for each in derivation.batch:
            found += terminal.batch_lines(each, derivation.header, digits, width)
        if options.more:
            found += terminal.chain_lines(derivation.layouts)
            for tensor in derivation.tensors:
                found += terminal.tensor_lines(tensor, digits)
        if (past := subject.history) is not None:
            found += history_lines(movements(at_moments(observed, past), past, options.notation), past, digits)
        write(found, width)


def tried_lines(formula: str, subject: Tried, digits: int, width: int) -> Iterator[str]:
    """The verdict on a formula. "-" reads formulas from standard input until an empty line or the end."""
    if formula != "-":
        yield from trial_lines(try_formula(formula, subject), digits, width)
        return
    prompt = "formula: " if sys.stdin.isatty() else ""
    with suppress(EOFError):
        while text := input(prompt).strip():
            try:
                yield from trial_lines(try_formula(text, subject), digits, width)
            except FormulaError as error:
                yield str(error)


def only(derivation: Derivation, layer: int | None) -> Derivation:
    """The steps of the layer with this number; the whole derivation if the layer has one step."""

    def own(lines: tuple[Line, ...]) -> tuple[Line, ...]:
        return tuple(replace(line, aside=False) for line in lines if line.layer.split(".")[0] == str(layer))

    if not any(line.of for line in own(derivation.forward)):
        return derivation
    return replace(derivation, forward=own(derivation.forward), backward=own(derivation.backward), why=(), layouts=(),
                   order=None)  # fmt: skip


def sources(derivation: Derivation) -> list[str]:
    """The source code of the layers, once for each kind."""
    found: dict[str, list[str]] = {}
    for line in derivation.forward:
        if line.quoted is not None:
            found.setdefault(
                line.quoted.where, [f"SOURCE  {line.of or line.layer}", *terminal.quoted_lines(line.quoted)]
            )
    return [line for lines in found.values() for line in lines]


def write(lines: list[str], width: int, *, fold: bool = True) -> None:
    """Prints lines, headings bold on a terminal."""
    for line in terminal.folded(lines, width) if fold else lines:
        print(bold(line.rstrip()) if sys.stdout.isatty() else line.rstrip())


def bold(line: str) -> str:
    """A line whose first word is a heading, in capital letters, with that in bold."""
    head, _, rest = line.partition(" ")
    return f"\033[1m{head}\033[0m {rest}" if head.isalpha() and head.isupper() and len(head) > 1 else line


def walk(blocks: list[str], ask: Callable[[str], str] = input) -> None:
    """Prints one step after the other; on a terminal Enter goes on and q ends."""
    asking = sys.stdin.isatty() and sys.stdout.isatty()
    for i, block in enumerate(blocks, 1):
        print(block)
        if i < len(blocks) and not asking:
            print()
        elif i < len(blocks):
            try:
                if ask("— Enter: next, q: end — ").strip().lower().startswith("q"):
                    return
            except EOFError:
                print()
                return


def write_json(path: Path, derivation: Derivation) -> None:
    """The derivation as JSON; "-" prints it.

    Raises `ExplainError` where the file cannot be written.
    """
    text = json.dumps(to_dict(derivation), ensure_ascii=False, indent=2)
    if str(path) == "-":
        print(text)
    else:
        write_text(path, text + "\n", "--json")


def write_text(path: Path, text: str, option: str) -> None:
    """Writes a file that an option names."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        said = error.strerror or error
        raise ExplainError(f"{path} cannot be written: {said}: give another file to {option}") from None
