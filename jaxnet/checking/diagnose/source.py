"""Where in the user's file an equation comes from: the one place that knows how jax keeps this.

`eqn.source_info.traceback` is not promised by jax; whatever of it is missing, the line is merely unknown.
"""

from __future__ import annotations

import ast
import linecache
import os
import re
from functools import lru_cache
from typing import Any, NamedTuple

import jax

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_CORPUS = os.path.join(_OURS, "corpus")
_JAX = os.path.dirname(os.path.abspath(jax.__file__))


class Line(NamedTuple):
    """A line of a source file; `file` is empty where it is not known."""

    file: str = ""
    number: int = 0

    @property
    def text(self) -> str:
        """The line as it is written."""
        return linecache.getline(self.file, self.number).strip() if self.file else ""

    @property
    def assigns(self) -> str:
        """The one name that the line assigns to, else nothing."""
        return _assigned(self.text)

    def __str__(self) -> str:
        return f"{os.path.basename(self.file)}:{self.number}   {self.text}" if self.file else ""


NOWHERE = Line()
"""The line of what has none."""


@lru_cache(maxsize=4096)
def _assigned(text: str) -> str:
    try:
        statement = ast.parse(text).body[0]
    except (SyntaxError, IndexError):  # a piece of a longer statement: its beginning may still say the name
        begun = re.match(r"([^\W\d]\w*)\s*=[^=]", text)
        return begun.group(1) if begun else ""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id
    return ""


def line_of(eqn: Any) -> Line:
    """The innermost line outside jax and outside the checker that made the equation."""
    traceback = getattr(getattr(eqn, "source_info", None), "traceback", None)
    for frame in getattr(traceback, "frames", ()):
        file = frame.file_name
        ours = file.startswith(_OURS) and not file.startswith(_CORPUS)
        if ours or file.startswith(("<", _JAX)) or f"{os.sep}jaxlib{os.sep}" in file or f"{os.sep}jax{os.sep}" in file:
            continue
        return Line(file, frame.line_num)
    return Line()
