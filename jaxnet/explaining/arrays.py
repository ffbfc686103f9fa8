"""Arrays as lines of text: vectors in brackets, small matrices row by row, large ones shortened."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxnet.explaining.numbers import ENDS, LEAST, LONGEST, entries, one, shortened

ROWS = 5  # of a matrix, beyond which it is shortened
CORNER = (2, 1)  # its rows that are then shown at either end
FEWER = (LONGEST, *((0, ends) for ends in (ENDS, (3, 2), (2, 1), (1, 1))))
DOTS = "…"


def cells(texts: Sequence[str], width: int = 0) -> str:
    """(a b c), each entry as wide as the widest, or as `width`; dots stand for themselves."""
    width = max([width, *(len(text) for text in texts if text != DOTS)], default=0)
    return f"({' '.join(text if text == DOTS else text.rjust(width) for text in texts)})"


def picked(count: int, which: tuple[int, tuple[int, int]] | int) -> list[int | None]:
    """The places of so many entries that are shown, None for those left out."""
    longest, ends = (which, ENDS) if isinstance(which, int) else which
    return shortened(count, max(longest, sum(ends)), ends)


def aligned(
    values: np.ndarray, digits: int, width: int = 0, room: int = 1000, least: int = LEAST, few: bool = False
) -> str:
    """A vector whose entries are equally wide; a long one, one wider than there is room or, if `few`, any shortened."""
    flat = np.asarray(values).reshape(-1)
    text = ""
    for which in FEWER[2:] if few else FEWER:
        shown = picked(len(flat), which)
        texts, power = entries(flat[[i for i in shown if i is not None]], digits, least)
        left = iter(texts)
        text = power + cells([DOTS if i is None else next(left) for i in shown], width if None not in shown else 0)
        if len(text) <= room:
            return text
    return text


def widest(values: np.ndarray, digits: int) -> int:
    """How wide the entries of a vector are that is not shortened; 0 of one that is."""
    flat = np.asarray(values).reshape(-1)
    texts, power = entries(flat, digits) if 0 < len(flat) <= LONGEST else ([], "")
    return 0 if power else max(map(len, texts), default=0)


def inline(matrix: np.ndarray, digits: int) -> str:
    """(a b │ c d): a matrix in one line."""
    texts, power = entries(matrix, digits)
    columns = matrix.shape[1]
    rows = [" ".join(texts[i : i + columns]) for i in range(0, len(texts), columns)]
    return f"{power}({' │ '.join(rows)})"


def matrix_lines(matrix: np.ndarray, digits: int, room: int, least: int = LEAST) -> list[str]:
    """A matrix as lines, a large one by its corners."""
    rows = shortened(matrix.shape[0], ROWS, CORNER)
    found: list[str] = []
    for which in FEWER:
        columns = picked(matrix.shape[1], which)
        kept = [[i for i in each if i is not None] for each in (rows, columns)]
        texts, power = entries(matrix[np.ix_(*kept)], digits, least)
        width = max(map(len, texts), default=0)
        table = iter(texts)
        found = []
        for i in rows:
            row = "⋮" if i is None else cells([DOTS if j is None else next(table) for j in columns], width)
            found.append((" " * len(power) if found else power) + row)
        if max(map(len, found), default=0) <= room:
            return found
    return found


def array_lines(values: np.ndarray, digits: int, room: int, cell: int = 0, brief: bool = False) -> list[str]:
    """Any array in lines no wider than `room` where that can be; of one with more axes the ends and its length.

    brief: so of a large matrix too.
    """
    values = np.asarray(values)
    if values.size == 0:
        return ["()"]
    if values.ndim == 2 and values.shape[0] <= ROWS and values.shape[1] <= LONGEST:
        text = inline(values, digits)
        return [text] if len(text) <= room else matrix_lines(values, digits, room)
    if values.ndim == 2 and not brief:
        return matrix_lines(values, digits, room)
    if values.ndim >= 2:
        ends = aligned(values, digits, room=room - len(f"   ‖·‖ {one(length(values), digits)}"), few=True)
        return [f"{ends}   ‖·‖ {one(length(values), digits)}"]
    return [aligned(values, digits, cell, room)]


def length(values: np.ndarray) -> float:
    """‖values‖, of the finite ones."""
    wide = np.asarray(values, np.float64)
    return float(np.linalg.norm(wide[np.isfinite(wide)]))
