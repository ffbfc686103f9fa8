"""Numbers and arrays as text: ( .40  −.30  1.30), as narrow as they can be read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jaxnet.explaining.expressions import lowered, raised

MINUS = "−"
LEAST = 2  # decimals that stay where the others are zeros
LONGEST = 8  # entries of a vector, beyond which it is shortened
DOTS = "…"
ENDS = (4, 2)  # how many of its entries are then shown at either end


def decimals_of(values: np.ndarray, digits: int, least: int = LEAST) -> int:
    """How many decimals show these numbers: at most `digits`, fewer where all others are zeros or numbers are large."""
    finite = np.abs(values[np.isfinite(values)].astype(np.float64))
    if finite.size == 0:
        return 0
    largest = float(finite.max())
    most = max(0, digits - max(0, math.floor(math.log10(largest)) if largest >= 10 else 0))
    for decimals in range(min(least, most), most):
        rounded = np.round(finite, decimals)
        if np.allclose(rounded, np.round(finite, most), rtol=0, atol=10.0 ** -(most + 2)):
            return decimals
    return most


def number(value: float, decimals: int) -> str:
    """One number: without the zero before the point, a true minus, exact zero as 0."""
    if not math.isfinite(value):
        return str(value).replace("-", MINUS).replace("inf", "∞")
    if value == 0:
        return "0"
    text = f"{abs(value):.{decimals}f}"
    if text.startswith("0.") and len(text) > 2:
        text = text[1:]
    return f"{MINUS if value < 0 else ''}{text}"


def one(value: float, digits: int = 4) -> str:
    """A number by itself, with so many decimals; a small one with two significant digits more than its zeros."""
    size = abs(value)
    if math.isfinite(value) and 0 < size < 10.0 ** (1 - digits):
        return number(value, min(12, 2 - math.floor(math.log10(size))))
    if size >= 10:
        return number(value, max(0, digits - math.floor(math.log10(size)) - 1))
    return number(value, digits)


def exponent(values: np.ndarray, digits: int) -> int:
    """The power of ten to be set apart: 0 unless the largest entry would lose its digits."""
    finite = np.abs(values[np.isfinite(values)].astype(np.float64))
    largest = float(finite.max()) if finite.size else 0.0
    if largest == 0:
        return 0
    left = 2 if digits > 2 else 1  # digits of the largest entry without which a power of ten is set apart
    if largest < 10.0 ** (left - digits) or largest >= 1e5:
        return math.floor(math.log10(largest))
    return 0


def entries(values: np.ndarray, digits: int = 4, least: int = LEAST) -> tuple[list[str], str]:
    """The entries of an array in order, in one format, and the power of ten before them ("" or "10⁻⁶ × ")."""
    values = np.asarray(values)
    flat = values.reshape(-1)
    if flat.dtype == bool or np.issubdtype(flat.dtype, np.integer):
        return [str(int(value)).replace("-", MINUS) for value in flat], ""
    power = exponent(flat, digits)
    scaled = flat.astype(np.float64) / 10.0**power
    decimals = decimals_of(scaled, min(digits, 3) if power else digits, least)
    texts = [number(float(value), decimals) for value in scaled]
    return texts, f"10{raised(str(power))} × " if power else ""


def shortened(count: int, longest: int = LONGEST, ends: tuple[int, int] = ENDS) -> list[int | None]:
    """The indices of entries to be shown, None for the entries left out."""
    if count <= longest:
        return list(range(count))
    return [*range(ends[0]), None, *range(count - ends[1], count)]


def some_of(values: np.ndarray, shown: Sequence[int | None], digits: int, least: int) -> tuple[list[str], str]:
    """The entries at these places of a vector, dots for the others, and the power of ten before them."""
    texts, power = entries(values[[i for i in shown if i is not None]], digits, least)
    left = iter(texts)
    return [DOTS if i is None else next(left) for i in shown], power


def vector(values: np.ndarray, digits: int = 4, least: int = LEAST, longest: int = LONGEST) -> str:
    """`(.40 −.30 1.30)`; a long one shortened."""
    flat = np.asarray(values).reshape(-1)
    texts, power = some_of(flat, shortened(len(flat), longest), digits, least)
    return f"{power}({' '.join(texts)})"


def shape(sizes: tuple[int, ...]) -> str:
    """2×3; a vector its length, a number 1."""
    return "×".join(map(str, sizes)) if sizes else "1"


def lowered_index(*indices: int) -> str:
    """Subscripts: ₁₂; with a comma where one has two digits."""
    return ("," if any(index > 9 for index in indices) else "").join(lowered(str(index)) for index in indices)


# ------------------------------------------------------------------------------------------------ lines of arrays

ROWS = 5  # of a matrix, beyond which it is shortened
CORNER = (2, 1)  # its rows that are then shown at either end
FEWER = ((LONGEST, ENDS), *((sum(ends), ends) for ends in (ENDS, (3, 2), (2, 1), (1, 1))))


def cells(texts: Sequence[str], width: int = 0) -> str:
    """(a b c), each entry as wide as the widest, or as `width`; dots stand for themselves."""
    width = max([width, *(len(text) for text in texts if text != DOTS)], default=0)
    return f"({' '.join(text if text == DOTS else text.rjust(width) for text in texts)})"


def aligned(values: np.ndarray, digits: int, width: int, room: int, few: bool = False) -> str:
    """A vector whose entries are equally wide; a long one, one wider than there is room or, if `few`, any shortened."""
    flat, text = np.asarray(values).reshape(-1), ""
    for which in FEWER[2:] if few else FEWER:
        shown = shortened(len(flat), *which)
        texts, power = some_of(flat, shown, digits, LEAST)
        text = power + cells(texts, width if None not in shown else 0)
        if len(text) <= room:
            break
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


def matrix_lines(matrix: np.ndarray, digits: int, room: int) -> list[str]:
    """A matrix as lines, a large one by its corners."""
    rows, found = shortened(matrix.shape[0], ROWS, CORNER), list[str]()
    for which in FEWER:
        columns = shortened(matrix.shape[1], *which)
        kept = [[i for i in each if i is not None] for each in (rows, columns)]
        texts, power = entries(matrix[np.ix_(*kept)], digits)
        width, table = max(map(len, texts), default=0), iter(texts)
        lines = ["⋮" if i is None else cells([DOTS if j is None else next(table) for j in columns], width)
                 for i in rows]  # fmt: skip
        found = [(" " * len(power) if n else power) + line for n, line in enumerate(lines)]
        if max(map(len, found), default=0) <= room:
            break
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
        size = f"   ‖·‖ {one(length(values), digits)}"
        return [f"{aligned(values, digits, 0, room - len(size), few=True)}{size}"]
    return [aligned(values, digits, cell, room)]


def length(values: np.ndarray) -> float:
    """‖values‖, of the finite ones."""
    wide = np.asarray(values, np.float64)
    return float(np.linalg.norm(wide[np.isfinite(wide)]))
