"""Causes that need no look into the program: a constant ratio, an added multiple, a cotangent ignored, a leaf exchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxnet.checking.diagnose.points import Measure, Point
from jaxnet.checking.diagnose.scene import shifted, square, swapped
from jaxnet.checking.diagnose.sizes import Name, names
from jaxnet.checking.diagnose.source import Line
from jaxnet.checking.diagnose.words import Namer


@dataclass(frozen=True)
class Candidate:
    """A possible cause: what it would give at any point, how simple it is, and how it is said."""

    key: tuple
    cost: float
    predict: Callable[[Point], Mapping[str, Any]]
    say: Callable[[Namer], tuple[str, str]]
    line: Line = Line()
    named: Named | None = None

    def confirmed(self, points: Sequence[Point]) -> Candidate:
        """The candidate with those names of its constant that hold at these points too."""
        return self if self.named is None else self.named.narrowed(self.named.holding(points))


@dataclass(frozen=True)
class Named:
    """A constant with its possible names: `best` is what it is at a point, `narrowed` the candidate with fewer names."""

    names: tuple[Name, ...]
    best: Callable[[Point], float]
    narrowed: Callable[[tuple[Name, ...]], Candidate]

    def holding(self, points: Sequence[Point]) -> tuple[Name, ...]:
        """The names that are worth the constant at all these points; all of them where none is."""

        def holds(name: Name, point: Point) -> bool:
            return abs(name.value(point.args, point.cotangent) - self.best(point)) <= 1e-6 * abs(self.best(point))

        return tuple(n for n in self.names if all(holds(n, p) for p in points)) or self.names


def fits(measure: Measure, labels: tuple[str, ...], constants: tuple[float, ...]) -> Iterator[Candidate]:
    """All the fits, leaf by leaf and for all the wrong leaves together."""
    point = measure.point
    yield from cotangents(point)
    ratios: dict[str, tuple[float, Candidate]] = {}
    for path in measure.wrong:
        for candidate in leafwise(measure, path, labels):
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
    if not np.isfinite(weight) or weight == 0 or not np.all(np.isfinite(got)) or np.size(ref) < 2 and not np.any(got):
        return None
    c = float(np.vdot(ref, got).real / weight)
    return c if np.max(np.abs(got - c * ref)) / measure.scale[path] <= measure.allowed[path] * max(1.0, abs(c)) else None


def scaled(paths: tuple[str, ...], c: float, point: Point, labels: tuple[str, ...], constants: tuple[float, ...]) -> Candidate:
    """These leaves are c times what they should be."""
    known = tuple(names(c, point.args, point.cotangent, labels, constants, 2e-4))
    return _scaled(paths, c, known if abs(c) >= 1e-12 else (Name("0", lambda a, ct: 0.0),))


def _scaled(paths: tuple[str, ...], c: float, known: tuple[Name, ...]) -> Candidate:
    def best(other: Point) -> float:
        values = [k.value(other.args, other.cotangent) for k in known] or [c]
        return min(values, key=lambda v: sum(float(np.max(np.abs(other.got[p] - v * other.ref[p]), initial=0.0)) for p in paths))

    def predict(other: Point):
        return {p: best(other) * other.ref[p] for p in paths}

    def say(namer):
        what = ", ".join(f"∂{namer.leaf(p)}" for p in paths)
        if not c:
            return f"{what} is zero: the gradient is missing (detached, or never written)", ""
        if not known:
            per_cent = f" ({(c - 1) * 100:+.3g} %: everything {'too large' if c > 1 else 'too small'})" if 0.5 < c < 2 else ""
            return f"{what} is {c:.6g} times what it should be in every entry{per_cent}", f"{what} divided by {c:.6g}"
        if c == -1 or known[0].words == "−1":
            return f"{what} has the wrong sign", f"{what} = -(yours)"
        return f"{what} is {c:.6g} times what it should be: {' or '.join(k.words for k in known[:3])}", f"{what} divided by {known[0].words}"

    named = Named(known, best, lambda fewer: _scaled(paths, c, fewer)) if known else None
    return Candidate(("ratio", paths), 0.5 if not c else 0.9 if known else 3.0, predict, say, named=named)


def leafwise(measure: Measure, path: str, labels: tuple[str, ...]) -> Iterator[Candidate]:
    """A leaf transposed, flipped, shifted, exchanged with another; with a multiple of an argument; wrong in part only."""
    point = measure.point
    ref, got = point.ref[path], point.got[path]
    simple: list[tuple[str, Callable[[Any], Any], float]] = [("conj", np.conj, 0.9)] if np.iscomplexobj(ref) else []
    if square(ref):
        simple.append(("transposed", swapped, 0.8))
    simple += [("given as its absolute value", np.abs, 1.5), ("given by its sign only", np.sign, 1.5),
               ("averaged over all its entries", lambda x: np.full_like(x, np.mean(x)), 1.5), ("rounded to half precision", lambda x: x.astype(np.float16).astype(x.dtype), 1.9)]  # fmt: skip
    for limit in (1.0, 5.0):
        simple.append((f"clipped to ±{limit:g}", lambda x, c=limit: np.clip(x.real, -c, c).astype(x.dtype), 1.4))
    simple.append(("divided by its norm (normalised)", lambda x: x / np.linalg.norm(x), 1.4))
    for axis in range(ref.ndim):
        simple.append((f"flipped along axis {axis}", lambda x, a=axis: np.flip(x, a), 1.2))
        for by in (1, -1):
            simple.append((f"shifted by one ({by:+d}) along axis {axis}", lambda x, a=axis, b=by: shifted(x, a, b, circular=False), 1.2))
            simple.append((f"shifted by one ({by:+d}) along axis {axis}, the end coming in again,", lambda x, a=axis, b=by: np.roll(x, b, a), 1.25))
        simple.append((f"averaged over axis {axis}", lambda x, a=axis: np.broadcast_to(np.mean(x, a, keepdims=True), x.shape), 1.4))
        simple.append((f"summed over axis {axis} and spread again", lambda x, a=axis: np.broadcast_to(np.sum(x, a, keepdims=True), x.shape), 1.4))
        simple.append((f"summed up cumulatively along axis {axis}", lambda x, a=axis: np.cumsum(x, a), 1.5))
        for index, word in ((0, "first"), (-1, "last")):
            simple.append((f"that of the {word} everywhere along axis {axis}", lambda x, a=axis, i=index: np.broadcast_to(np.take(x, [i], a), x.shape), 1.4))
    for words, function, cost in simple:
        yield _of_leaf(path, words, function, cost)
    for other in point.ref:
        if other != path and np.shape(point.ref[other]) == np.shape(ref):
            yield Candidate(("exchanged", path, other), 1.0, lambda p, o=other: {path: p.ref[o]},
                            lambda n, o=other: (f"∂{n.leaf(path)} holds the gradient of {n.leaf(o)}: exchanged", f"∂{n.leaf(path)} and ∂{n.leaf(o)} the other way round"))  # fmt: skip
    yield from _added(measure, path)
    part = _part(measure, path)
    if part is not None:
        yield part
    if np.shape(point.cotangent) == np.shape(ref):
        yield from _other_mask(point, path)


def _of_leaf(path: str, words: str, function: Callable[[Any], Any], cost: float) -> Candidate:
    def say(namer):
        if words == "conj":
            return f"∂{namer.leaf(path)} is the complex conjugate of what it should be: conjugation", f"conj(∂{namer.leaf(path)})"
        return f"∂{namer.leaf(path)} is {words} of what it should be" if words.startswith("that") else f"∂{namer.leaf(path)} is {words}", ""

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
                    return {path: p.ref[path] * base + np.asarray(c * f(p.tape.values[p.tape.args[o]])).astype(p.ref[path].dtype)}

                def say(namer, o=other, c=c, words=words, base=base):
                    term = f"{c:.4g}·{words.format(namer.leaf(o))}"
                    if not base:
                        return f"∂{namer.leaf(path)} is {term}", ""
                    kind = "a regulariser's gradient without the regulariser" if o == path else "an argument is added"
                    return f"{term} is added to ∂{namer.leaf(path)}: {kind}", f"∂{namer.leaf(path)} without {term}"

                yield Candidate(("added", path, other, words, base), cost, predict, say)


def _part(measure: Measure, path: str) -> Candidate | None:
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
        if not np.isfinite(factor) or np.max(np.abs(got[off] - factor * ref[off])) > measure.allowed[path] * measure.scale[path]:
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
            return f"{'row' if axis == 0 else 'column' if axis == 1 else f'slice of axis {axis}'} {indices[0]} (off by one?) is", (axis, int(indices[0]))
        if len(indices) < off.shape[axis] and len(places) == len(indices) * (off.size // off.shape[axis]):
            tail = indices[-1] == off.shape[axis] - 1 and len(indices) == indices[-1] - indices[0] + 1
            span = f"from {indices[0]} on" if tail else f"{indices[0]} to {indices[-1]} ({len(indices)} of them)"
            return f"indices {span} of axis {axis} are", None
    return f"{len(places)} of {off.size} entries are", None


def _other_mask(point: Point, path: str) -> Iterator[Candidate]:
    """The gradient is the cotangent times a mask of the right values in other places: drawn afresh."""
    ct, ref, got = np.asarray(point.cotangent), point.ref[path], point.got[path]
    with np.errstate(all="ignore"):
        right, given = ref / ct, got / ct
    if not (np.all(np.isfinite(right)) and np.all(np.isfinite(given))):
        return
    level = float(np.max(np.abs(right), initial=0.0))
    both = [np.minimum(np.abs(v), np.abs(v - level)) for v in (right, given)]
    if level and right.min() == 0 and max(np.max(v) for v in both) <= 1e-3 * level and not np.allclose(right, given, atol=1e-3):

        def predict(p):
            with np.errstate(all="ignore"):
                share = np.asarray(p.got[path]) / np.asarray(p.cotangent)
            return {path: np.where(np.abs(share) > level / 2, level, 0).astype(p.ref[path].dtype) * np.asarray(p.cotangent)}

        yield Candidate(("fresh mask", path), 2.0, predict,
                        lambda n: (f"∂{n.leaf(path)} is masked by another mask than the forward pass drew: a fresh mask in backward (both 0 or {level:.4g})", "use the mask saved by the forward pass"))  # fmt: skip


def cotangents(point: Point) -> Iterator[Candidate]:
    """The cotangent ignored, collapsed, or changed before it is used."""
    ct = [np.asarray(point.tape.values[n]) for n in point.tape.cotangents]
    ones = np.ones_like
    table: list[tuple[str, Callable[[Any], Any], float]] = [
        ("the cotangent is ignored: as if it were 1", ones, 0.8),
        ("the cotangent is collapsed to its sum", lambda x: np.full_like(x, np.sum(x)), 1.0),
        ("the cotangent is collapsed to its mean", lambda x: np.full_like(x, np.mean(x)), 1.0),
        ("the cotangent is collapsed to its first entry", lambda x: np.full_like(x, x.flat[0]), 1.1),
        ("only the sign of the cotangent is used", np.sign, 1.0),
        ("the absolute value of the cotangent is used", np.abs, 1.0),
        ("the cotangent is squared", lambda x: x * x, 1.0),
        ("the cotangent is cut off below zero (gated by d_out > 0)", lambda x: np.where(x > 0, x, 0), 1.0),
        ("the cotangent is clipped to ±1", lambda x: np.clip(x, -1, 1), 1.1),
        ("the cotangent is divided by its norm", lambda x: x / np.linalg.norm(x), 1.1),
        ("the cotangent has lost its mean", lambda x: x - np.mean(x), 1.2),
        ("the cotangent is conjugated: conjugation", np.conj, 0.9),
        ("the cotangent is transposed", lambda x: swapped(x) if square(x) else x, 1.0),
    ]
    for axis in range(max((x.ndim for x in ct), default=0)):
        by_axis = (
            ("the cotangent is collapsed to its mean over axis {0}", lambda x, a: np.broadcast_to(np.mean(x, a, keepdims=True), x.shape), 1.1),
            ("the cotangent is collapsed to its sum over axis {0}", lambda x, a: np.broadcast_to(np.sum(x, a, keepdims=True), x.shape), 1.1),
            ("only the first example counts: the cotangent's others along axis {0} are missing", lambda x, a: _only(x, a, 0), 1.0),
            ("only the last example or step counts: the cotangent's others along axis {0} are missing", lambda x, a: _only(x, a, -1), 1.0),
            ("the cotangent is flipped along axis {0}", lambda x, a: np.flip(x, a), 1.2),
            ("the first of the cotangent along axis {0} stands for all", lambda x, a: np.broadcast_to(np.take(x, [0], a), x.shape), 1.2),
            ("the cotangent is shifted by one along axis {0}", lambda x, a: shifted(x, a, 1, circular=False), 1.2),
            ("the cotangent is shifted back by one along axis {0}", lambda x, a: shifted(x, a, -1, circular=False), 1.2),
            ("the last of the cotangent along axis {0} is missing (off by one)", lambda x, a: x - _only(x, a, -1), 1.2),
            ("the first of the cotangent along axis {0} is missing (off by one)", lambda x, a: x - _only(x, a, 0), 1.2),
        )  # fmt: skip
        table += [(w.format(axis), lambda x, f=f, a=axis: f(x, a) if x.ndim > a else x, cost) for w, f, cost in by_axis]
    for words, function, cost in table:
        if all(np.array_equal(function(x), x) for x in ct):
            continue

        def predict(p, f=function):
            changed = {n: np.asarray(f(np.asarray(p.tape.values[n]))).astype(p.tape.values[n].dtype) for n in p.tape.cotangents}
            return p.tape.replay({}, changed)

        yield Candidate(("cotangent", words), cost, predict, lambda n, w=words: (w, ""))
    for k, n in enumerate(point.tape.cotangents if len(ct) > 1 else ()):
        yield Candidate(("cotangent dropped", k), 0.9, lambda p, n=p_number(k): p.tape.replay({}, {n(p): np.zeros_like(p.tape.values[n(p)])}),
                        lambda _, k=k: (f"the cotangent of output {k} is ignored", f"add the share of d_out[{k}]"))  # fmt: skip


def p_number(k: int) -> Callable[[Point], int]:
    """The number of the k-th cotangent at a point."""
    return lambda p: p.tape.cotangents[k]


def _only(x, axis, index):
    out = np.zeros_like(x)
    place = (slice(None),) * axis + (index,)
    out[place] = x[place]
    return out


def moved(measure: Measure) -> Iterator[Candidate]:
    """The gradient at another point: an argument moved by a step along its own gradient, or exchanged for another."""
    point = measure.point
    tape = point.tape
    for path, number in tape.args.items():
        if path not in point.ref:
            continue
        value = tape.values[number]
        for source in ("got", "ref"):
            along = getattr(point, source)[path]
            size = float(np.max(np.abs(along), initial=0.0))
            if not size or not np.isfinite(size):
                continue
            c = _step(measure, number, value, along)
            if c is not None:

                def predict(p, path=path, source=source, c=c):
                    n = p.tape.args[path]
                    return p.tape.replay({}, {n: (p.tape.values[n] + c * getattr(p, source)[path]).astype(p.tape.values[n].dtype)})

                yield Candidate(("moved", path, source), 1.6, predict,
                                lambda n, path=path, c=c: (f"the gradient is taken at {n.leaf(path)} {c:+.4g}·∂{n.leaf(path)}: stale or already updated {n.leaf(path)}", f"use the {n.leaf(path)} of the forward pass"))  # fmt: skip
                break
        for other, n2 in tape.args.items():
            if other != path and np.shape(tape.values[n2]) == np.shape(value) and getattr(tape.values[n2], "dtype", None) == value.dtype:
                yield Candidate(("at", path, other), 1.5, lambda p, a=path, b=other: p.tape.replay({}, {p.tape.args[a]: p.tape.values[p.tape.args[b]]}),
                                lambda n, a=path, b=other: (f"{n.leaf(b)} stands in the place of {n.leaf(a)}", ""))  # fmt: skip


def _step(measure: Measure, number: int, value: Any, along: Any) -> float | None:
    """The c for which the gradient at value + c · along is what the rule gave, by Newton's method on the nearest wrong leaf."""
    point = measure.point

    def gap(c):
        out = point.tape.replay({}, {number: (value + c * along).astype(value.dtype)})
        paths = [p for p in measure.wrong if p in out]
        if not paths:
            return None
        return np.concatenate([np.ravel(out[p] - point.got[p]) / measure.scale[p] for p in paths])

    c, h = 0.0, 1e-2 * max(float(np.max(np.abs(value), initial=0.0)), 1e-3) / float(np.max(np.abs(along)))
    for _ in range(6):
        here, there = gap(c), gap(c + h)
        if here is None or there is None:
            return None
        slope = (there - here) / h
        weight = float(np.vdot(slope, slope).real)
        if not np.isfinite(weight) or weight == 0:
            return None
        step = -float(np.vdot(slope, here).real) / weight
        c, h = c + step, max(abs(step) * 0.1, abs(h) * 0.05)
        if abs(step) <= 1e-6 * abs(c):
            break
    here = gap(c)
    return c if here is not None and np.isfinite(c) and abs(c) > 0 and np.max(np.abs(here)) <= 20 * min(measure.allowed[p] for p in measure.wrong) else None


