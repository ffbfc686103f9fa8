"""Lines of a layer's own source: the equations of its module's docstring, its forward and its backward."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxnet
from jaxnet.explaining.model import Quoted
from jaxnet.layer import Layer

PACKAGE = Path(jaxnet.__file__).parent.parent


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
    forward, backward = inner(layer)
    module = inspect.getmodule(backward)
    return Quoted(
        equations=equations(backward, inspect.getdoc(module) or ""),
        forward=lines_of(forward),
        backward=lines_of(backward),
        where=place_of(backward),
    )


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


def equations(function: Callable, module_text: str) -> str:
    """The indented lines of the docstring of the function that makes the layer, else of its module."""
    maker = getattr(inspect.getmodule(function), function.__qualname__.split(".")[0], None)
    own = inspect.getdoc(maker) if inspect.isfunction(maker) else ""
    for text in (own or "", module_text):
        found = indented(text)
        if found:
            return found
    return first_paragraph(own or module_text)


def indented(text: str) -> str:
    """The lines of a docstring that stand four blanks in: its equations."""
    kept = [line for line in text.splitlines() if line.startswith("    ")]
    return textwrap.dedent("\n".join(kept)).rstrip()


def first_paragraph(text: str) -> str:
    """A docstring's first lines."""
    return text.split("\n\n")[0]
