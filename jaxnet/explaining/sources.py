"""Lines of a layer's own source: the equations of its module's docstring, its forward and its backward."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxnet.explaining.model import Quoted
from jaxnet.layer import Layer
from jaxnet.layers.recurrent.over_time import Cell
from jaxnet.registry import makers

PACKAGE = Path(__file__).parent.parent.parent


def inner(layer: Layer) -> tuple[Callable, Callable]:
    """The forward and the backward as written, without what `leaf` puts around them."""
    return unwrapped(layer.forward, "forward"), unwrapped(layer.backward, "backward")


def unwrapped(function: Any, name: str) -> Callable:
    """The function `name` that `leaf` closed over, or the function itself."""
    plain = inspect.unwrap(function)
    if getattr(plain, "__module__", "") == "jaxnet.layer":
        held = inspect.getclosurevars(plain).nonlocals.get(name)
        if callable(held):
            return inspect.unwrap(held)
    return plain


def quoted(layer: Layer) -> Quoted:
    """What the source of a layer says; empty where Python has no source of it."""
    forward, backward = of_step(*inner(layer))
    return Quoted(
        equations=equations(layer, backward),
        forward=lines_of(forward),
        backward=lines_of(backward),
        where=place_of(backward),
    )


def of_step(forward: Callable, backward: Callable) -> tuple[Callable, Callable]:
    """Of a recurrence one step and its way back, of another layer its own functions."""
    cell = inspect.getclosurevars(forward).nonlocals.get("cell")
    if not isinstance(cell, Cell):
        return forward, backward
    step, back = (getattr(each, "func", each) for each in (cell.step, cell.back))
    return step, back


def lines_of(function: Callable) -> str:
    """A function's source, its indent taken off."""
    try:
        return textwrap.dedent(inspect.getsource(function)).rstrip()
    except (OSError, TypeError):
        return ""


def place_of(function: Callable) -> str:
    """file:line of a function, from the package's folder where it lies in there."""
    try:
        file, line = inspect.getsourcefile(function), inspect.getsourcelines(function)[1]
    except (OSError, TypeError):
        return ""
    path = Path(file or "")
    return f"{path.relative_to(PACKAGE) if path.is_relative_to(PACKAGE) else path}:{line}"


def equations(layer: Layer, function: Callable) -> str:
    """The layer's equations: those of its maker's docstring, or of its module's where that makes no other layer."""
    module, made = inspect.getmodule(function), layer.made
    whole = (inspect.getdoc(module) if module is not None else None) or ""
    own = (inspect.getdoc(function) or "") if made is None else made.by.doc
    if made is not None and own and sum(each.module == made.by.module for each in makers("layer").values()) > 1:
        return indented(own) or first_paragraph(own)
    return indented(own) or indented(whole) or first_paragraph(own or whole)


def indented(text: str) -> str:
    """The lines of a docstring that stand four blanks in: its equations."""
    kept = [line for line in text.splitlines() if line.startswith("    ")]
    return textwrap.dedent("\n".join(kept)).rstrip()


def first_paragraph(text: str) -> str:
    """A docstring's first lines."""
    return text.split("\n\n")[0]
