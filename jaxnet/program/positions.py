"""The position of an equation in the user's source: file, line and columns."""

from __future__ import annotations

import linecache
import os
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
    def segment(self) -> str:
        """The span as it is written; of one over several lines, its first line."""
        line = linecache.getline(self.file, self.line) if self.file else ""
        return line.encode()[self.column : self.end_column].decode() if self.line == self.end_line else line.strip()

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
