"""Causes that need no look into the program: a constant ratio, an added multiple, a leaf transposed or exchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import numpy as np

from jaxnet.checking.diagnose.candidate import Candidate, Named
from jaxnet.checking.diagnose.cotangents import cotangents
from jaxnet.checking.diagnose.parts import other_mask, part
from jaxnet.checking.diagnose.points import Measure, Point
from jaxnet.checking.diagnose.scene import shifted
from jaxnet.checking.diagnose.sizes import Name, names


def fits(measure: Measure, labels: tuple[str, ...], constants: tuple[float, ...]) -> Iterator[Candidate]:
    """All the fits, leaf by leaf and for all the wrong leaves together."""
    point = measure.point
    yield from cotangents(point)
    ratios: dict[str, tuple[float, Candidate]] = {}
    for path in measure.wrong:
        for candidate in leafwise(measure, path):
            yield candidate
        ratio = _ratio(measure, path)
        if ratio is not None:
            candidate = scaled((path,), ratio, point, labels, constants)
            ratios[path] = (ratio, candidate)
            yield candidate
    together = [c for c, _ in ratios.values()]
    if len(together) > 1 and max(together) - min(together) <= 1e-4 * max(abs(c) for c in together):
        yield scaled(tuple(ratios), together[0], point, labels, constants)


def _ratio(measure: Measure, path: str) -> float | None:
    ref, got = measure.point.ref[path], measure.point.got[path]
    weight = np.vdot(ref, ref).real
    if not np.isfinite(weight) or weight == 0 or not np.all(np.isfinite(got)) or (np.size(ref) < 2 and not np.any(got)):
        return None
    c = float(np.vdot(ref, got).real / weight)
    return (
        c if np.max(np.abs(got - c * ref)) / measure.scale[path] <= measure.allowed[path] * max(1.0, abs(c)) else None
    )


def scaled(
    paths: tuple[str, ...], c: float, point: Point, labels: tuple[str, ...], constants: tuple[float, ...]
) -> Candidate:
    """These leaves are c times what they should be."""
    known = tuple(names(c, point.args, point.cotangent, labels, constants, 2e-4))
    return _scaled(paths, c, known if abs(c) >= 1e-12 else (Name("0", lambda a, ct: 0.0),))


def _scaled(paths: tuple[str, ...], c: float, known: tuple[Name, ...]) -> Candidate:
    def best(other: Point) -> float:
        values = [k.value(other.args, other.cotangent) for k in known] or [c]
        return min(
            values,
            key=lambda v: sum(float(np.max(np.abs(other.got[p] - v * other.ref[p]), initial=0.0)) for p in paths),
        )

    def predict(other: Point):
        return {p: best(other) * other.ref[p] for p in paths}

    def say(namer):
        what = ", ".join(f"∂{namer.leaf(p)}" for p in paths)
        if not c:
            return f"{what} is zero: the gradient is missing (detached, or never written)", ""
        if not known:
            per_cent = (
                f" ({(c - 1) * 100:+.3g} %: everything {'too large' if c > 1 else 'too small'})" if 0.5 < c < 2 else ""
            )
            return f"{what} is {c:.6g} times what it should be in every entry{per_cent}", f"{what} divided by {c:.6g}"
        if c == -1 or known[0].words == "−1":
            return f"{what} has the wrong sign", f"{what} = -(yours)"
        return (
            f"{what} is {c:.6g} times what it should be: {' or '.join(k.words for k in known[:3])}",
            f"{what} divided by {known[0].words}",
        )

    named = Named(known, best, lambda fewer: _scaled(paths, c, fewer)) if known else None
    return Candidate(("ratio", paths), 0.5 if not c else 0.9 if known else 3.0, predict, say, named=named)


Reshaped = tuple[str, Callable[[Any], Any], float]

_OF_LEAF: tuple[Reshaped, ...] = (
    ("given as its absolute value", np.abs, 1.5),
    ("given by its sign only", np.sign, 1.5),
    ("averaged over all its entries", lambda x: np.full_like(x, np.mean(x)), 1.5),
    ("rounded to half precision", lambda x: x.real.astype(np.float16).astype(x.dtype), 1.9),
    ("clipped to ±1", lambda x: np.clip(x.real, -1, 1).astype(x.dtype), 1.4),
    ("clipped to ±5", lambda x: np.clip(x.real, -5, 5).astype(x.dtype), 1.4),
    ("divided by its norm (normalised)", lambda x: x / np.linalg.norm(x), 1.4),
)


def _along(axis: int) -> Iterator[Reshaped]:
    """What may have happened to a leaf along one axis."""
    at = f"along axis {axis}"
    yield f"flipped {at}", lambda x: np.flip(x, axis), 1.2
    for by in (1, -1):
        moved = f"shifted by one ({by:+d}) {at}"
        yield moved, lambda x, b=by: shifted(x, axis, b, circular=False), 1.2
        yield f"{moved}, the end coming in again,", lambda x, b=by: np.roll(x, b, axis), 1.25
    for words, collapse in (
        (f"averaged over axis {axis}", np.mean),
        (f"summed over axis {axis} and spread again", np.sum),
    ):
        yield words, lambda x, f=collapse: np.broadcast_to(f(x, axis, keepdims=True), x.shape), 1.4
    yield f"summed up cumulatively {at}", lambda x: np.cumsum(x, axis), 1.5
    for index, word in ((0, "first"), (-1, "last")):
        everywhere = f"that of the {word} everywhere {at}"
        yield everywhere, lambda x, i=index: np.broadcast_to(np.take(x, [i], axis), x.shape), 1.4


def leafwise(measure: Measure, path: str) -> Iterator[Candidate]:
    """A leaf transposed, flipped, shifted, exchanged; with a multiple of an argument; wrong in part."""
    point = measure.point
    ref = point.ref[path]
    simple: list[Reshaped] = [("conj", np.conj, 0.9)] if np.iscomplexobj(ref) else []
    for a, b in combinations(range(ref.ndim), 2):
        simple.append((f"flipped along axes {a} and {b}", lambda x, a=a, b=b: np.flip(x, (a, b)), 1.25))
        if ref.shape[a] == ref.shape[b] > 1:
            last = (a, b) == (ref.ndim - 2, ref.ndim - 1)
            words = "transposed" if last else f"transposed: axes {a} and {b} exchanged,"
            simple.append((words, lambda x, a=a, b=b: np.swapaxes(x, a, b), 0.8 if last else 0.9))
    for words, function, cost in (*simple, *_OF_LEAF, *(each for axis in range(ref.ndim) for each in _along(axis))):
        yield _of_leaf(path, words, function, cost)
    for other in point.ref:
        if other != path and np.shape(point.ref[other]) == np.shape(ref):
            yield Candidate(
                ("exchanged", path, other),
                1.0,
                lambda p, o=other: {path: p.ref[o]},
                lambda n, o=other: (
                    f"∂{n.leaf(path)} holds the gradient of {n.leaf(o)}: exchanged",
                    f"∂{n.leaf(path)} and ∂{n.leaf(o)} the other way round",
                ),
            )
    yield from _added(measure, path)
    some = part(measure, path)
    if some is not None:
        yield some
    if np.shape(point.cotangent) == np.shape(ref):
        yield from other_mask(point, path)


def _of_leaf(path: str, words: str, function: Callable[[Any], Any], cost: float) -> Candidate:
    def say(namer):
        if words == "conj":
            return (
                f"∂{namer.leaf(path)} is the complex conjugate of what it should be: conjugation",
                f"conj(∂{namer.leaf(path)})",
            )
        return (
            f"∂{namer.leaf(path)} is {words} of what it should be"
            if words.startswith("that")
            else f"∂{namer.leaf(path)} is {words}"
        ), ""

    return Candidate(("leaf", path, words), cost, lambda p: {path: function(p.ref[path])}, say)


def _added(measure: Measure, path: str) -> Iterator[Candidate]:
    """got = reference + λ · argument, or + λ · its sign."""
    point = measure.point
    ref, got = point.ref[path], point.got[path]
    for other, number in point.tape.args.items():
        value = point.tape.values[number]
        if np.shape(value) != np.shape(ref) or np.asarray(value).dtype.kind not in "fc" or np.size(value) < 2:
            continue
        for words, function in (("{0}", lambda v: v), ("sign({0})", np.sign)):
            along = function(value)
            weight = np.vdot(along, along).real
            if weight == 0 or not np.all(np.isfinite(got)):
                continue
            for base, cost in ((True, 1.0), (False, 1.6)):
                c = float(np.vdot(along, got - ref * base).real / weight)
                if not c or np.max(np.abs(got - ref * base - c * along)) / measure.scale[path] > measure.allowed[path]:
                    continue

                def predict(p, o=other, c=c, f=function, base=base):
                    return {
                        path: (
                            p.ref[path] * base
                            + np.asarray(c * f(p.tape.values[p.tape.args[o]])).astype(p.ref[path].dtype)
                        )
                    }

                def say(namer, o=other, c=c, words=words, base=base):
                    term = f"{c:.4g}·{words.format(namer.leaf(o))}"
                    if not base:
                        return f"∂{namer.leaf(path)} is {term}", ""
                    kind = "a regulariser's gradient without the regulariser" if o == path else "an argument is added"
                    return f"{term} is added to ∂{namer.leaf(path)}: {kind}", f"∂{namer.leaf(path)} without {term}"

                yield Candidate(("added", path, other, words, base), cost, predict, say)
