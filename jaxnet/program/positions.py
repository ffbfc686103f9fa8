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

    @property
    def text(self) -> str:
        """The line as it is written, without its indentation."""
        return linecache.getline(self.file, self.line).strip() if self.file else ""

    @property
    def segment(self) -> str:
        """The span as it is written; of one over several lines, its first line."""
        line = linecache.getline(self.file, self.line) if self.file else ""
        return line.encode()[self.column : self.end_column].decode() if self.line == self.end_line else line.strip()

    @property
    def names(self) -> tuple[str, ...]:
        """The names that a statement assigns, where the position spans the whole value that it gives them."""
        return assignments(self.file).get(self[1:5], ()) if self.file else ()

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
        return Position(file, line, column, end_line, end_column)
    return NOWHERE


@lru_cache(maxsize=256)
def assignments(file: str) -> dict[tuple[int, ...], tuple[str, ...]]:
    """The names that each statement of a file assigns, by the span of the value that it gives them."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:  # a notebook's magic command, a template: no names are known there
        return {}
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
            target, value = node.target, node.value
        elif isinstance(node, ast.AugAssign):  # Python gives the operation the whole statement's span
            target, value = node.target, node
        else:
            continue
        parts = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
        if all(isinstance(part, ast.Name) for part in parts):
            span = (value.lineno, value.col_offset, value.end_lineno or 0, value.end_col_offset or 0)
            found[span] = tuple(part.id for part in parts if isinstance(part, ast.Name))
    return found
