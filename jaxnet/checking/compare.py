"""Compares one leaf with its reference: every entry, the worst one, the pattern of the wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from jaxnet.checking.rounding import scale_of


@dataclass(frozen=True)
class Leaf:
    """The verdict on one output or one gradient. Errors are relative to the leaf's largest expected entry.

    `verdict`: "ok", "WRONG", "imprecise" (right in float64, but here it loses more than rounding allows: a failure
    too), "kink" (the entries that differ stand at a branch that flips within rounding), "differences" (the rule agrees
    with finite differences, and autodiff of the primal does not).
    """

    path: str
    verdict: str
    error: float
    allowed: float
    cosine: float
    index: tuple[int, ...]
    got: complex
    expected: complex
    pattern: str = ""
    dtype: str = ""
    forward: bool = False
    ratio: float = 1.0
    arrays: tuple[np.ndarray, np.ndarray] | None = field(default=None, repr=False, compare=False)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong with it."""
        return self.verdict not in ("WRONG", "imprecise")


def compare(
    path: str, got: np.ndarray, expected: np.ndarray, allowed: float, tolerance: float | None = None, **about
) -> Leaf:
    """Every entry of `got` against `expected`; `allowed` is absolute, the user's `tolerance` relative."""
    scale = scale_of(expected)
    unit = scale if scale > 0 else 1.0
    if tolerance is not None:
        allowed = tolerance * unit
    finite = np.isfinite(got) & np.isfinite(expected)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(finite, np.abs(got - expected), np.inf)
    index = tuple(int(i) for i in np.unravel_index(np.argmax(difference), difference.shape)) if difference.size else ()
    error = float(difference[index]) if difference.size else 0.0
    wrong = np.asarray(difference > allowed)
    verdict, pattern = "ok", ""
    if wrong.any():
        verdict, pattern = "WRONG", pattern_of(wrong)
        if not finite.all():
            pattern = not_finite_words(got, expected)
    cosine, ratio = alignment(got, expected)
    value = (got[index], expected[index]) if difference.size else (0.0, 0.0)
    return Leaf(
        path, verdict, error / unit, allowed / unit, cosine, index, *(x.item() for x in map(np.asarray, value)),
        pattern=pattern, ratio=ratio, arrays=(got, expected), **about,
    )  # fmt: skip


def not_finite_words(got: np.ndarray, expected: np.ndarray) -> str:
    """Which side is not finite."""
    kind = "NaN" if np.isnan(got).any() or np.isnan(expected).any() else "infinity"
    if np.isfinite(expected).all():
        return f"{kind} in {int((~np.isfinite(got)).sum())} of {got.size} entries"
    if np.isfinite(got).all():
        return f"the reference itself gives {kind}, the rule does not"
    return f"{kind} on both sides"


def alignment(got: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """The cosine between two arrays, and how long the first is along the second."""
    a, b = (np.where(np.isfinite(array), array, 0).reshape(-1) for array in (got, expected))
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    dot = float(np.vdot(b, a).real)
    if lengths == 0:
        return (1.0 if not a.any() and not b.any() else 0.0), 1.0 if not b.any() else 0.0
    return dot / lengths, dot / float(np.vdot(b, b).real)


def drift(leaf: Leaf, own_ratio: float, unit: float) -> Leaf:
    """A leaf in half precision: each entry is within rounding, but the whole is too long or too short.

    By a unit, of which a single entry is allowed four, and more where an entry is: deep networks round in each layer.
    """
    if leaf.verdict != "ok" or not np.isfinite(leaf.ratio):
        return leaf
    limit = 2 * abs(own_ratio - 1) + max(unit, leaf.allowed / 4)
    if abs(leaf.ratio - 1) > limit and leaf.arrays is not None and leaf.arrays[1].size >= 32:
        return replace(leaf, verdict="WRONG", pattern=f"every entry {leaf.ratio:.3g} times what it should be")
    return leaf


AXES = {1: ("entries",), 2: ("rows", "columns")}


def pattern_of(wrong: np.ndarray) -> str:
    """Where the wrong entries stand: everywhere, in rows or columns, a block at the end, one entry, scattered."""
    count = int(wrong.sum())
    if wrong.size == 1:
        return "the only entry"
    if count == 1:
        return f"one entry of {wrong.size}"
    names = AXES.get(wrong.ndim) or tuple(f"axis {i}:" for i in range(wrong.ndim))
    words, box = [], np.ones_like(wrong)
    for axis, name in enumerate(names):
        others = tuple(i for i in range(wrong.ndim) if i != axis)
        profile = np.asarray(wrong.any(axis=others))
        shape = [1] * wrong.ndim
        shape[axis] = len(profile)
        box = box & profile.reshape(shape)
        # An entry of a wrong row may be right by chance, so a profile is read where most of its entries are wrong.
        if not profile.all() and (said := span(profile, name)):
            words.append(said)
    filled = count / max(int(box.sum()), 1)
    if words and filled > 0.5:
        return ", ".join(words)
    if not words and filled > 0.5:
        return "everywhere" if filled > 0.9 else f"{100 * count / wrong.size:.0f} % of the entries"
    return f"{count} of {wrong.size} entries, scattered"


def span(profile: np.ndarray, name: str) -> str:
    """A range of indices in words: "rows 128 on: the last block"."""
    where = np.flatnonzero(profile)
    first, last, size = int(where[0]), int(where[-1]), len(profile)
    single = {"entries": "entry", "rows": "row", "columns": "column"}.get(name, name)
    if len(where) == 1:
        place = " (the first)" if first == 0 else " (the last)" if first == size - 1 else ""
        return f"{single} {first}{place}"
    if len(where) == last - first + 1:
        if last == size - 1:
            block = ": the last block" if first % 8 == 0 and size - first <= first else ""
            return f"{name} {first} on{block}"
        if first == 0:
            block = ": the first block" if (last + 1) % 8 == 0 else ""
            return f"{name} up to {last}{block}"
        return f"{name} {first} to {last}"
    steps = np.diff(where)
    if (steps == steps[0]).all():
        return f"every {ordinal(int(steps[0]))} of {name.rstrip(':')} from {first}"
    return ""


def ordinal(n: int) -> str:
    """2nd, 3rd, 4th."""
    return f"{n}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(n if n < 20 else n % 10, 'th') }"


def worse(leaf: Leaf, other: Leaf) -> Leaf:
    """The verdict to show of two on one leaf: the first that failed, else the one nearest to its limit."""
    if not leaf.ok:
        return leaf
    order = {"ok": 0, "kink": 1, "differences": 2, "imprecise": 3, "WRONG": 4}

    def rank(each: Leaf):
        return order[each.verdict], each.error / each.allowed if each.allowed > 0 else each.error

    return max(leaf, other, key=rank)


def worst(leaves: Sequence[Leaf]) -> list[Leaf]:
    """One verdict for each path, in the order in which the paths first came."""
    found: dict[tuple[str, bool], Leaf] = {}
    for leaf in leaves:
        key = leaf.path, leaf.forward
        found[key] = worse(found[key], leaf) if key in found else leaf
    return list(found.values())
