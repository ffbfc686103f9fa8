"""Arrays as lines of text: vectors in brackets, small matrices row by row, large ones shortened."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxnet.explaining.numbers import LEAST, entries, one, shape, shortened, vector

ROWS = 6  # of a matrix, beyond which it is shortened


def cells(texts: Sequence[str], width: int = 0) -> str:
    """(a b c), each entry as wide as the widest, or as `width`."""
    width = max([width, *map(len, texts)], default=0)
    return f"({' '.join(text.rjust(width) for text in texts)})"


def aligned(values: np.ndarray, digits: int, width: int = 0, least: int = LEAST) -> str:
    """A vector whose entries are equally wide; a long one shortened."""
    flat = np.asarray(values).reshape(-1)
    shown = shortened(len(flat))
    texts, power = entries(flat[[i for i in shown if i is not None]], digits, least)
    left = iter(texts)
    return power + cells(["…" if i is None else next(left) for i in shown], width)


def widest(values: np.ndarray, digits: int) -> int:
    """How wide the entries of a vector are that is not shortened; 0 of one that is."""
    flat = np.asarray(values).reshape(-1)
    texts, power = entries(flat, digits) if len(flat) and len(shortened(len(flat))) == len(flat) else ([], "")
    return 0 if power else max(map(len, texts), default=0)


def inline(matrix: np.ndarray, digits: int) -> str:
    """(a b │ c d): a matrix in one line."""
    texts, power = entries(matrix, digits)
    columns = matrix.shape[1]
    rows = [" ".join(texts[i : i + columns]) for i in range(0, len(texts), columns)]
    return f"{power}({' │ '.join(rows)})"


def matrix_lines(matrix: np.ndarray, digits: int, least: int = LEAST) -> list[str]:
    """A matrix as lines, large ones by their corners."""
    rows, columns = (shortened(n, longest) for n, longest in zip(matrix.shape, (ROWS, 8), strict=True))
    kept = [[i for i in each if i is not None] for each in (rows, columns)]
    corner = matrix[np.ix_(*kept)]
    texts, power = entries(corner, digits, least)
    width = max(map(len, texts), default=0)
    table = iter(texts)
    found = []
    for i in rows:
        if i is None:
            found.append("⋮")
            continue
        found.append(cells(["…" if j is None else next(table) for j in columns], width))
    return [power + found[0], *(" " * len(power) + line for line in found[1:])] if found else ["()"]


def array_lines(values: np.ndarray, digits: int, width: int, cell: int = 0) -> list[str]:
    """Any array in lines no wider than `width` where that can be; of one with more axes the ends and its length."""
    values = np.asarray(values)
    if values.ndim == 2 and values.shape[0] <= ROWS and values.shape[1] <= 8:
        text = inline(values, digits)
        return [text] if len(text) <= width else matrix_lines(values, digits)
    if values.ndim == 2:
        return matrix_lines(values, digits)
    if values.ndim > 2:
        return [f"{vector(values, digits, longest=4)} of {shape(values.shape)}, ‖·‖ {one(length(values), digits)}"]
    return [aligned(values, digits, cell)]


def length(values: np.ndarray) -> float:
    """‖values‖."""
    return float(np.linalg.norm(np.asarray(values, np.float64)))
