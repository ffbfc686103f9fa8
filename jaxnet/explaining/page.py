"""The page of `jaxnet explain --html`: one file that needs nothing else, in every notation.

The body is rendered once for each notation by the same template. What differs between them, symbols and turned
matrices, is kept once more beside the page, and put in by its script when another notation is chosen.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from jaxnet.explaining.derive import Derivation, chain_of, derive
from jaxnet.explaining.exercise_tasks import by_hand, table, tasks_of
from jaxnet.explaining.expressions import written
from jaxnet.explaining.formulas import named_on_page, tables
from jaxnet.explaining.history import History, run_charts
from jaxnet.explaining.live import specification
from jaxnet.explaining.notation import FIRST, NOTATIONS, WEIGHTS, Notation, notation
from jaxnet.explaining.observe import Observed
from jaxnet.explaining.page_pictures import InputKind, pictures_of
from jaxnet.explaining.sheets import in_html
from jaxnet.explaining.template_files import template, text
from jaxnet.explaining.terminal import check_line
from jaxnet.explaining.view import FUNCTIONS, MOST_ITEMS, FunctionView, View, merged

NUMBERS = InputKind()
SCRIPTS = ("numbers", "network", "drawing", "paths", "reading", "trying", "exercise", "link", "page", "pictures")


def write_page(path: str | Path, observed: Observed, notation: Notation, **options: Any) -> Path:
    """Writes the page of a network at one example; gives its path. options: those of `page`."""
    return written_to(Path(path), page(observed, notation, **options))


def write_function_page(path: Path, derivation: Derivation, digits: int) -> Path:
    """Writes the page of a function: its lines forward and backward; gives its path."""
    body = template("function.html.j2").render(
        v=FunctionView(digits), d=derivation, check=check_line(derivation), **FUNCTIONS
    )
    return written_to(path, whole(derivation.header.title, merged({"": body}, "")[0], {}, {}, ()))


def written_to(path: Path, text: str) -> Path:
    """Writes a file, in a new folder where there is none; gives its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def page(
    observed: Observed, first: Notation, *, digits: int = 4, run: History | None = None, layer: int | None = None,
    batch: tuple[Any, Any] | None = None, examples: tuple[int, ...] = (), kind: InputKind = NUMBERS, **about: Any,
) -> str:  # fmt: skip
    """The page of a network at one example as text.

    Args:
        observed: by `observe`. first: the notation that the page opens with.
        run: the moments of a run, for its slider. layer: the number, as written, of the dense layer that it opens with.
        batch: (xs, ys), for the sum over a batch. examples: their indices in the data. kind: of the input.
        about: source, example and seed, for its head.

    Raises `ExplainError` for a layer that is none.
    """
    chosen = derive(observed, first, layer=layer, batch=batch, examples=examples, **about)
    place = None if layer is None else layer - first.first
    bodies: dict[str, str] = {}
    moved = None if run is None else run_charts(observed, run, first)
    spec = specification(observed, chain_of(observed, first).places, chosen.why)
    pictures = pictures_of(chain_of(observed, first), kind)
    exercise = tasks_of(observed, first, about.get("seed") or 0) if by_hand(chosen) else None
    names: dict[int, dict[str, Any]] = {}
    for each in notations(first, observed):
        if each == first:
            derivation = chosen
        else:
            number = None if place is None else place + each.first
            derivation = dataclasses.replace(derive(observed, each, layer=number, **about), batch=chosen.batch)
        if spec is not None and each.first not in names:
            names[each.first] = named_on_page(chain_of(observed, each), derivation)
        view = View(derivation, chain_of(observed, each), digits, spec, moved, pictures)
        bodies[name_of(each)] = template("body.html.j2").render(
            v=view, d=derivation, written=written, check=check_line(derivation), MOST_ITEMS=MOST_ITEMS,
            exercise=exercise, part=in_html, numbering=chosen.header.numbering, **FUNCTIONS,
        )  # fmt: skip
    body, variants = merged(bodies, name_of(first))
    data = {"spec": spec, "variants": variants, "first": name_of(first), "run": moved and moved.frames,
            "tasks": [table(each) for each in exercise.tasks] if exercise else [],
            "numbering": FIRST, "formulas": tables() | {"names": names} if spec else None}  # fmt: skip
    scripts = [name for name in SCRIPTS if name != "pictures" or pictures.figures]
    return whole(chosen.header.title, body, data, pictures.encoded(), scripts)


def whole(title: str, body: str, data: Any, pictures: Any, scripts: Sequence[str]) -> str:
    """A page of its body, with its style and its scripts, and their data."""
    return template("page.html.j2").render(
        title=title, body=Markup(body), style=text("style.css") + text("pictures.css"), data=in_script(data),
        pictures=in_script(pictures), scripts=[text(f"{name}.js") for name in scripts],
    )  # fmt: skip


def in_script(data: Any) -> Markup:
    """Data as JSON within a script element."""
    return Markup(json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))


def notations(first: Notation, observed: Observed) -> list[Notation]:
    """All notations, the one that the page opens with first; of a network of many layers that alone."""
    if len(observed.items) > MOST_ITEMS:
        return [first]
    others = [notation(name, number, weights) for name in NOTATIONS for number in (0, 1) for weights in WEIGHTS]
    return [first, *(each for each in others if each != first)]


def name_of(each: Notation) -> str:
    """The script's name of a notation: nielsen 1 out-in."""
    return f"{each.name} {each.first} {each.weights}"
