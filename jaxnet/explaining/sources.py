"""Lines of a layer's own source: the equations of its module's docstring, its forward and its backward."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import jaxnet.layers
from jaxnet.explaining.model import Quoted
from jaxnet.layer import Layer
from jaxnet.layers.recurrent.over_time import Cell

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
    """The layer's equations: those of its own docstring, or of its module's where that makes no other layer."""
    name = layer.name.split(" ")[0]
    public = getattr(jaxnet.layers, name, None)
    module = inspect.getmodule(public if inspect.isfunction(public) else function)
    documented = {maker: said for maker, said in makers(module).items() if not maker.startswith("_")}
    own = documented.get(name) or documented.get(function.__qualname__.split(".")[0], "")
    whole = inspect.getdoc(module) or ""
    if len(documented) > 1 and own:
        return indented(own) or first_paragraph(own)
    return indented(own) or indented(whole) or first_paragraph(own or whole)


@cache
def makers(module: ModuleType | None) -> dict[str, str]:
    """What makes layers in a module, each with its docstring: functions that return one, and layers by themselves."""
    try:
        body = ast.parse(inspect.getsource(module)).body if module is not None else []
    except (OSError, TypeError):
        return {}
    found = {}
    for node, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef) and node.returns is not None and ast.unparse(node.returns) == "Layer":
            found[node.name] = ast.get_docstring(node) or ""
        elif (
            isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and isinstance(node.targets[0], ast.Name)
        ):
            said = below.value if isinstance(below, ast.Expr) else None
            if isinstance(said, ast.Constant) and isinstance(said.value, str):
                found[node.targets[0].id] = inspect.cleandoc(said.value)
    return found


def indented(text: str) -> str:
    """The lines of a docstring that stand four blanks in: its equations."""
    kept = [line for line in text.splitlines() if line.startswith("    ")]
    return textwrap.dedent("\n".join(kept)).rstrip()


def first_paragraph(text: str) -> str:
    """A docstring's first lines."""
    return text.split("\n\n")[0]
