"""Distances in units of the last place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

ROUNDING = 1e-5  # of its neighbours, below which an array is nothing but their rounding


def ulps(got: ArrayLike, expected: ArrayLike, beside: float = 0.0) -> float:
    """The largest distance between entries, in units of the last place of the array's largest entry.

    An entry that is a sum of others' sizes cannot be nearer than these are: so the largest sets the unit. beside: the
    largest entry of the values computed along with it: the unit of an array that is 0 but for its rounding.
    NaN where only one side is finite.
    """
    got, expected = np.asarray(got), np.asarray(expected)
    if got.size == 0:
        return 0.0
    kind = expected.dtype if np.issubdtype(expected.dtype, np.floating) else np.dtype(np.float32)
    wide, right = got.astype(np.float64), expected.astype(np.float64)
    if not (np.isfinite(wide).all() and np.isfinite(right).all()):
        return 0.0 if np.array_equal(wide, right, equal_nan=True) else float("nan")
    largest = max(float(np.abs(wide).max()), float(np.abs(right).max()))
    largest = beside if largest < ROUNDING * beside else largest
    unit = last_place(largest, kind)
    return float(np.abs(wide - right).max() / unit)


def last_place(size: float, kind: np.dtype) -> float:
    """The distance from a number to the next larger one in a dtype, bfloat16 among them."""
    bits = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}[str(kind)]
    return 2.0 ** (int(np.floor(np.log2(size))) - bits + 1) if size else 2.0**-149


def largest(arrays: Iterable[Any]) -> float:
    """The largest size of all entries; 0 where there is none."""
    return max((float(np.abs(np.asarray(each, np.float64)).max(initial=0)) for each in arrays), default=0.0)
