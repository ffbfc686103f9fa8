"""Lines of a layer's own source: the equations of its docstring, its forward and its backward."""

from __future__ import annotations

import ast
import inspect
import linecache
import sys
import textwrap
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from jaxnet.explaining.marked_source import parsed
from jaxnet.explaining.model import Quoted
from jaxnet.layer import Layer
from jaxnet.registry import makers

PACKAGE = Path(__file__).parent.parent.parent
WAYS = {"forward": ("forward", "step"), "backward": ("backward", "back")}
"""The names of the functions of a layer, or of a recurrence's cell."""


def quoted(layer: Layer, lines: Collection[tuple]) -> Quoted:
    """The code and the text quoted from a layer's source; empty where Python has no source of it.

    lines: (file, line, …) of its assignments, to find the source of a layer that no maker made.
    """
    made = None if layer.made is None else layer.made.root.by
    file, at = next(iter(lines), ("", 0))[:2]
    if made is not None:
        file, at = getattr(sys.modules.get(made.module), "__file__", None) or "", made.title
    text = "".join(linecache.getlines(file))
    tree = parsed(text) or ast.Module([], [])
    found = {way: next(functions(tree, at, names), None) for way, names in WAYS.items()}
    code = {way: "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno]) if node is not None else ""
            for way, node in found.items()}  # fmt: skip
    back = found["backward"]
    path = Path(file)
    where = f"{path.relative_to(PACKAGE) if path.is_relative_to(PACKAGE) else path}:{back.lineno}" if back else ""
    of = equations(layer, ast.get_docstring(tree) or "", back)
    return Quoted(of, **{way: textwrap.dedent(each) for way, each in code.items()}, where=where)


def functions(tree: ast.Module, at: str | int, names: tuple[str, ...]) -> Iterator[Any]:
    """The functions of these names in the statement that defines `at` (or has that line), then in those it names."""
    waiting = [each for each in tree.body if defines(each, at)]
    for statement in waiting:
        yield from (node for node in ast.walk(statement) if isinstance(node, ast.FunctionDef)
                    and any(node.name == name or node.name.endswith(f"_{name}") for name in names))  # fmt: skip
        named = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
        waiting += [each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name in named
                    and each not in waiting]  # fmt: skip


def defines(statement: ast.stmt, at: str | int) -> bool:
    """Whether a statement defines a name, or has a line."""
    if isinstance(at, int):
        return statement.lineno <= at <= (statement.end_lineno or 0)
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    names = [getattr(each, "id", "") for each in targets]
    return at in (getattr(statement, "name", ""), *names)


def equations(layer: Layer, whole: str, backward: ast.FunctionDef | None) -> str:
    """The layer's equations: those of its maker's docstring, or of its module's where that makes no other layer."""
    made = layer.made
    own = made.by.doc if made is not None else ast.get_docstring(backward) if backward else ""
    own = inspect.cleandoc(own or "")
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
