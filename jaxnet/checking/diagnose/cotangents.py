"""The cotangent ignored, collapsed or changed; the gradient taken at another point."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxnet.checking.diagnose.candidate import Candidate
from jaxnet.checking.diagnose.points import Measure, Point
from jaxnet.checking.diagnose.scene import shifted, square, swapped

Changed = tuple[str, Callable[[Any], Any], float]

_WHOLE: tuple[Changed, ...] = (
    ("the cotangent is ignored: as if it were 1", np.ones_like, 0.8),
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
)


def _spread(collapse: Callable[..., Any]) -> Callable[[Any, int], Any]:
    """A sum or mean over an axis, in the place of each of its terms."""
    return lambda x, a: np.broadcast_to(collapse(x, a, keepdims=True), x.shape)


def _moved_by(by: int) -> Callable[[Any, int], Any]:
    return lambda x, a: shifted(x, a, by, circular=False)


_BY_AXIS: tuple[tuple[str, Callable[[Any, int], Any], float], ...] = (
    ("the cotangent is collapsed to its mean over axis {0}", _spread(np.mean), 1.1),
    ("the cotangent is collapsed to its sum over axis {0}", _spread(np.sum), 1.1),
    (
        "only the first example counts: the cotangent's others along axis {0} are missing",
        lambda x, a: _only(x, a, 0),
        1,
    ),
    (
        "only the last example or step counts: the cotangent's others along axis {0} are missing",
        lambda x, a: _only(x, a, -1),
        1.0,
    ),
    ("the cotangent is flipped along axis {0}", lambda x, a: np.flip(x, a), 1.2),
    (
        "the first of the cotangent along axis {0} stands for all",
        lambda x, a: np.broadcast_to(np.take(x, [0], a), x.shape),
        1.2,
    ),
    ("the cotangent is shifted by one along axis {0}", _moved_by(1), 1.2),
    ("the cotangent is shifted back by one along axis {0}", _moved_by(-1), 1.2),
    ("the last of the cotangent along axis {0} is missing (off by one)", lambda x, a: x - _only(x, a, -1), 1.2),
    ("the first of the cotangent along axis {0} is missing (off by one)", lambda x, a: x - _only(x, a, 0), 1.2),
)


def _table(ndim: int) -> Iterator[Changed]:
    """What may have been made of a cotangent with so many axes."""
    yield from _WHOLE
    for axis in range(ndim):
        for words, function, cost in _BY_AXIS:
            yield words.format(axis), lambda x, f=function, a=axis: f(x, a) if x.ndim > a else x, cost


def cotangents(point: Point) -> Iterator[Candidate]:
    """The cotangent ignored, collapsed, or changed before it is used."""
    ct = [np.asarray(point.tape.values[n]) for n in point.tape.cotangents]
    for words, function, cost in _table(max((x.ndim for x in ct), default=0)):
        if all(np.array_equal(function(x), x) for x in ct):
            continue

        def predict(p, f=function):
            changed = {
                n: np.asarray(f(np.asarray(p.tape.values[n]))).astype(p.tape.values[n].dtype) for n in p.tape.cotangents
            }
            return p.tape.replay({}, changed)

        yield Candidate(("cotangent", words), cost, predict, lambda n, w=words: (w, ""))
    for k, _n in enumerate(point.tape.cotangents if len(ct) > 1 else ()):

        def without(p, k=k):
            n = p.tape.cotangents[k]
            return p.tape.replay({}, {n: np.zeros_like(p.tape.values[n])})

        said = f"the cotangent of output {k} is ignored", f"add the share of d_out[{k}]"
        yield Candidate(("cotangent dropped", k), 0.9, without, lambda _, said=said: said)


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
                    return p.tape.replay(
                        {}, {n: (p.tape.values[n] + c * getattr(p, source)[path]).astype(p.tape.values[n].dtype)}
                    )

                yield Candidate(
                    ("moved", path, source),
                    1.6,
                    predict,
                    lambda n, path=path, c=c: (
                        (
                            f"the gradient is taken at {n.leaf(path)} {c:+.4g}·∂{n.leaf(path)}: stale or already"
                            f" updated {n.leaf(path)}"
                        ),
                        f"use the {n.leaf(path)} of the forward pass",
                    ),
                )
                break
        for other, n2 in tape.args.items():
            if (
                other != path
                and np.shape(tape.values[n2]) == np.shape(value)
                and getattr(tape.values[n2], "dtype", None) == value.dtype
            ):
                yield Candidate(
                    ("at", path, other),
                    1.5,
                    lambda p, a=path, b=other: p.tape.replay({}, {p.tape.args[a]: p.tape.values[p.tape.args[b]]}),
                    lambda n, a=path, b=other: (f"{n.leaf(b)} stands in the place of {n.leaf(a)}", ""),
                )


def _step(measure: Measure, number: int, value: Any, along: Any) -> float | None:
    """The c for which the gradient at value + c · along is what the rule gave, by Newton's method."""
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
    return (
        c
        if here is not None
        and np.isfinite(c)
        and abs(c) > 0
        and np.max(np.abs(here)) <= 20 * min(measure.allowed[p] for p in measure.wrong)
        else None
    )
