"""The position of an equation in the user's source: file, line and columns, and the name that its statement assigns."""

from __future__ import annotations

import ast
import linecache
import os
from functools import lru_cache
from typing import Any, NamedTuple

import jax

OWN = os.path.dirname(os.path.abspath(__file__)) + os.sep
LIBRARIES = (
    os.path.dirname(os.path.abspath(jax.__file__)) + os.sep,
    OWN,
    os.path.join(os.path.dirname(os.path.dirname(OWN)), "lowering", "op.py"),
    "<",
)


class Position(NamedTuple):
    """A span of a source file: lines from 1, columns from 0; `file` is empty where it is not known."""

    file: str = ""
    line: int = 0
    column: int = 0
    end_line: int = 0
    end_column: int = 0
    function: str = ""

    @property
    def text(self) -> str:
        """The line as it is written, without its indentation."""
        return linecache.getline(self.file, self.line).strip() if self.file else ""

    @property
    def names(self) -> tuple[str, ...]:
        """The names that the statement around the position assigns; none where it assigns no plain names."""
        return assigned_names(self.file, self.line) if self.file else ()

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.file else ""


NOWHERE = Position()


def position_of(eqn: Any) -> Position:
    """The position of the innermost line outside JAX that made an equation; `NOWHERE` where none is known."""
    traceback = getattr(getattr(eqn, "source_info", None), "traceback", None)
    if traceback is None:
        return NOWHERE
    codes, offsets = traceback.raw_frames()
    for code, offset in zip(codes, offsets, strict=True):
        file = code.co_filename
        if file.startswith(LIBRARIES) or f"{os.sep}jaxlib{os.sep}" in file:
            continue
        line, column, end_line, end_column = type(traceback).code_addr2location(code, offset)
        return Position(file, line, column, end_line, end_column, code.co_name)
    return NOWHERE


@lru_cache(maxsize=256)
def assignments(file: str) -> tuple[tuple[int, int, tuple[str, ...]], ...]:
    """First line, last line and names of each assignment to plain names in a file."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:  # a notebook's magic command, a template: no names are known there
        return ()
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
        elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr):
            target = node.target
        else:
            continue
        parts = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
        if all(isinstance(part, ast.Name) for part in parts):
            names = tuple(part.id for part in parts if isinstance(part, ast.Name))
            found.append((node.lineno, node.end_lineno or node.lineno, names))
    return tuple(found)


def assigned_names(file: str, line: int) -> tuple[str, ...]:
    """The names that the smallest assignment around a line assigns."""
    around = [each for each in assignments(file) if each[0] <= line <= each[1]]
    return min(around, key=lambda each: each[1] - each[0])[2] if around else ()
