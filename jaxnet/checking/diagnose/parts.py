"""A leaf that is wrong in part: which entries, and what stands there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxnet.checking.diagnose.candidate import Candidate
from jaxnet.checking.diagnose.points import Measure, Point


def part(measure: Measure, path: str) -> Candidate | None:
    """Only some entries are wrong: which, and are they zero or a multiple of what they should be?"""
    point = measure.point
    ref, got = point.ref[path], point.got[path]
    off = ~(np.abs(got - ref) <= max(measure.allowed[path], 1e-6) * measure.scale[path])
    if not ref.size or not off.any() or off.sum() > 0.75 * off.size:
        return None
    where, box = pattern(off)
    if not np.any(got[off]):
        what, factor = "zero: not written", 0.0
    else:
        weight = float(np.vdot(ref[off], ref[off]).real)
        factor = float(np.vdot(ref[off], got[off]).real) / weight if weight else float("nan")
        if (
            not np.isfinite(factor)
            or np.max(np.abs(got[off] - factor * ref[off])) > measure.allowed[path] * measure.scale[path]
        ):
            return None
        what = f"{factor:.4g} times what they should be"

    def predict(p):
        out = np.array(p.ref[path])
        if box is not None:
            axis, index = box
            place = (slice(None),) * axis + (index - ref.shape[axis] if index > ref.shape[axis] // 2 else index,)
            out[place] = factor * out[place]
        elif out.shape == off.shape:
            out[off] = factor * out[off]
        return {path: out}

    return Candidate(("part", path), 1.5, predict, lambda n: (f"∂{n.leaf(path)}: {where} {what}", ""))


def pattern(off: Any) -> tuple[str, tuple[int, int] | None]:
    """Where entries are wrong, in words, and the axis and index where they fill exactly one slice."""
    if off.ndim == 0:
        return "the only entry is", None
    places = np.argwhere(off)
    if len(places) == 1:
        inside = tuple(int(i) for i in places[0])
        return f"entry {list(inside)} is", (0, inside[0]) if off.ndim == 1 else None
    for axis in range(off.ndim):
        indices = np.unique(places[:, axis])
        if len(indices) == 1 and len(places) == off.size // off.shape[axis]:
            return (
                (
                    f"{'row' if axis == 0 else 'column' if axis == 1 else f'slice of axis {axis}'} {indices[0]} (off by"
                    " one?) is"
                ),
                (axis, int(indices[0])),
            )
        if len(indices) < off.shape[axis] and len(places) == len(indices) * (off.size // off.shape[axis]):
            tail = indices[-1] == off.shape[axis] - 1 and len(indices) == indices[-1] - indices[0] + 1
            span = f"from {indices[0]} on" if tail else f"{indices[0]} to {indices[-1]} ({len(indices)} of them)"
            return f"indices {span} of axis {axis} are", None
    return f"{len(places)} of {off.size} entries are", None


def other_mask(point: Point, path: str) -> Iterator[Candidate]:
    """The gradient is the cotangent times a mask of the right values in other places: drawn afresh."""
    ct, ref, got = np.asarray(point.cotangent), point.ref[path], point.got[path]
    with np.errstate(all="ignore"):
        right, given = ref / ct, got / ct
    if not (np.all(np.isfinite(right)) and np.all(np.isfinite(given))):
        return
    level = float(np.max(np.abs(right), initial=0.0))
    both = [np.minimum(np.abs(v), np.abs(v - level)) for v in (right, given)]
    if (
        level
        and right.min() == 0
        and max(np.max(v) for v in both) <= 1e-3 * level
        and not np.allclose(right, given, atol=1e-3)
    ):

        def predict(p):
            with np.errstate(all="ignore"):
                share = np.asarray(p.got[path]) / np.asarray(p.cotangent)
            return {
                path: np.where(np.abs(share) > level / 2, level, 0).astype(p.ref[path].dtype) * np.asarray(p.cotangent)
            }

        yield Candidate(
            ("fresh mask", path),
            2.0,
            predict,
            lambda n: (
                (
                    f"∂{n.leaf(path)} is masked by another mask than the forward pass drew: a fresh mask in backward"
                    f" (both 0 or {level:.4g})"
                ),
                "use the mask saved by the forward pass",
            ),
        )
