"""Numbers as text: `( .40  −.30  1.30)`, as narrow as they can be read."""

from __future__ import annotations

import math

import numpy as np

MINUS = "−"
LEAST = 2  # decimals that stay where the others are zeros
LONGEST = 8  # entries of a vector, beyond which it is shortened
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


SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


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
    return texts, f"10{str(power).translate(SUPERSCRIPT)} × " if power else ""


def shortened(count: int, longest: int = LONGEST, ends: tuple[int, int] = ENDS) -> list[int | None]:
    """The indices of entries to be shown, None for what is left out."""
    if count <= longest:
        return list(range(count))
    return [*range(ends[0]), None, *range(count - ends[1], count)]


def vector(values: np.ndarray, digits: int = 4, least: int = LEAST, longest: int = LONGEST) -> str:
    """`(.40 −.30 1.30)`; a long one shortened."""
    flat = np.asarray(values).reshape(-1)
    shown = shortened(len(flat), longest)
    texts, power = entries(flat[[i for i in shown if i is not None]], digits, least)
    left = iter(texts)
    return f"{power}({' '.join('…' if i is None else next(left) for i in shown)})"


def shape(sizes: tuple[int, ...]) -> str:
    """2×3; a vector its length, a number 1."""
    return "×".join(map(str, sizes)) if sizes else "1"


SUBSCRIPT = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def lowered_index(*indices: int) -> str:
    """Subscripts: ₁₂; with a comma where one has two digits."""
    between = "," if any(index > 9 for index in indices) else ""
    return between.join(str(index).translate(SUBSCRIPT) for index in indices)
