"""A sum over other axes in a formula that was rearranged by hand, where no one change of the program is that.

The rule's gradient, less what of the reference's comes through no sum, is one term or two of the form

    c · y ⊙ Σ_B (l ⊙ v)

l an error that passes, v and y what it is multiplied with before and after the sum, B other axes than the right ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, combinations_with_replacement, product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxnet.checking.diagnose import numeric
from jaxnet.checking.diagnose.candidate import Candidate
from jaxnet.checking.diagnose.points import Point
from jaxnet.checking.diagnose.scene import Where, on_output
from jaxnet.checking.diagnose.sizes import names
from jaxnet.checking.diagnose.tape import Site, Tape
from jaxnet.checking.diagnose.words import Namer

if TYPE_CHECKING:
    from jaxnet.checking.diagnose.search import Search

ERRORS, FACTORS, FIRST, SAMPLE = 8, 6, 200, 200
EXACT = 1e-9
"""Of the squared length, what may be left unexplained."""


class Term(NamedTuple):
    """y ⊙ Σ_axes (l ⊙ v), each of l, v and y by where it is made."""

    error: Where
    inside: Where | None
    axes: tuple[int, ...]
    outside: tuple[Where, ...]

    def at(self, tape: Tape) -> Any:
        """Its value on a tape."""
        u = _value(tape, self.error)
        u = np.sum(u if self.inside is None else u * _value(tape, self.inside), self.axes, keepdims=True)
        for where in self.outside:
            u = u * _value(tape, where)
        return u


def sums_elsewhere(search: Search) -> Iterator[Candidate]:
    """One term or two with which a wrong leaf comes out, the sums of the reference left out."""
    tape, measure = search.point.tape, search.measure
    for path in measure.wrong:
        ref = np.reshape(search.point.ref[path], _shape(tape, tape.leaves[path]))
        if not 2 <= ref.ndim <= 3 or ref.size < 8:
            continue
        sums = tuple(
            site for site, op in search.scene.linear() if op.name in ("reduce_keep", "reduce_sum") and not op.frame
        )
        if not sums:
            continue
        base = _without(tape, sums, path, ref)
        pick = np.random.default_rng(0).permutation(ref.size)[:SAMPLE]
        terms, columns = _library(search, ref, pick)
        if len(terms) < 2:
            continue
        target = (np.ravel(search.point.got[path]) - np.ravel(base))[pick].astype(float)
        for chosen in _fitting(columns, target):
            used = [terms[k] for k in chosen]
            candidate = _candidate(search, path, sums, used)
            if candidate is not None:
                yield candidate
                break


def _shape(tape: Tape, number: int) -> tuple[int, ...]:
    """The shape in which a value was made, before it was only laid out otherwise."""
    while number in tape.maker and tape.ops[tape.maker[number]].name in ("reshape", "squeeze", "expand_dims"):
        number = tape.ops[tape.maker[number]].inputs[0]
    return np.shape(tape.values[number])


def _value(tape: Tape, where: Where) -> Any:
    site, out = where
    return tape.values[out] if site is None else tape.values[tape.ops[tape.instances[site][()]].outputs[out]]


def _without(tape: Tape, sums: tuple[Site, ...], path: str, ref: Any) -> Any:
    """What of a leaf comes through no sum."""
    zero = on_output(lambda op, x, look: np.zeros_like(x))
    out = tape.replay(dict.fromkeys(sums, zero)).get(path, ref)
    return np.reshape(out, _shape(tape, tape.leaves[path]))


def _library(search: Search, ref: Any, pick: Any) -> tuple[list[Term], Any]:
    """All terms, and their values at some entries, each of length 1."""
    shape = ref.shape
    errors, factors = _kinds(search, shape)
    outsides: list[tuple[Where, ...]] = [()]
    for n in (1, 2, 3):
        outsides += [tuple(w for w, _ in some) for some in combinations_with_replacement(factors, n)]
    values = dict(factors)
    after = [(ws, np.prod([np.broadcast_to(values[w], shape) for w in ws], axis=0) if ws else 1.0) for ws in outsides]
    axes = [some for n in range(1, ref.ndim + 1) for some in combinations(range(ref.ndim), n)]
    terms, columns = [], []
    for (error, l), (inside, v) in ((e, f) for e in errors for f in [(None, 1.0), *factors]):
        for some in axes:
            total = np.broadcast_to(np.sum(l * v, some, keepdims=True), shape)
            for ws, y in after:
                terms.append(Term(error, inside, some, ws))
                columns.append(np.ravel(total * y)[pick])
    if not columns:
        return [], np.zeros((0, 0))
    found = np.asarray(columns, float)
    length = np.linalg.norm(found, axis=1)
    good = np.flatnonzero(np.isfinite(length) & (length > 0))
    found = found[good] / length[good, None]
    # one of those that are the same, the first: what is shortest
    _, first = np.unique(np.round(found * np.sign(found[:, :1] + 1e-30), 6), axis=0, return_index=True)
    first = np.sort(first)
    return [terms[good[k]] for k in first], found[first]


def _kinds(search: Search, shape: tuple[int, ...]) -> tuple[list, list]:
    """Errors of a leaf's shape, and the factors that errors are multiplied with and that broadcast to it; each once."""
    tape, scene = search.point.tape, search.scene
    errors: list[tuple[Where, Any]] = []
    factors: list[tuple[Where, Any]] = []

    def offer(kind: list, most: int, number: int, wide: bool) -> None:
        value = tape.values[number]
        made = tape.ops[tape.maker[number]] if number in tape.maker else None
        if not numeric.is_float(value) or np.iscomplexobj(value) or np.ndim(value) != len(shape) or len(kind) >= most:
            return
        fits = all(n == m or (n == 1 and not wide) for n, m in zip(np.shape(value), shape, strict=True))
        if fits and np.all(np.isfinite(value)) and not any(_parallel(value, v) for _, v in kind):
            kind.append(((None, number) if made is None else (made.site, made.outputs.index(number)), value))

    for number in tape.cotangents:
        offer(errors, ERRORS, number, True)
    for _site, op in reversed(list(scene.linear())):
        if op.frame:
            continue
        sides = scene.split(op)
        if sides is not None and op.name in ("mul", "div") and tape.depends[op.inputs[sides[1]]]:
            offer(factors, FACTORS, op.inputs[sides[1]], False)
        offer(errors, ERRORS, op.outputs[0], True)
    return errors, factors


def _parallel(a: Any, b: Any) -> bool:
    """Whether two arrays differ by a number alone."""
    if np.shape(a) != np.shape(b):
        return False
    along = float(np.vdot(a, b))
    return along**2 >= (1 - 1e-9) * float(np.vdot(a, a)) * float(np.vdot(b, b))


def _fitting(columns: Any, target: Any) -> Iterator[tuple[int, ...]]:
    """The single columns, then the pairs, of which some multiples are the target."""
    whole = float(target @ target)
    if not whole:
        return
    along = columns @ target
    singles = np.flatnonzero(whole - along**2 <= EXACT * whole)
    yield from ((int(k),) for k in singles[:3])
    if len(singles):
        return
    for i in np.argsort(-np.abs(along))[:FIRST]:
        cross = columns @ columns[i]
        free = 1 - cross**2
        rest = along - cross * along[i]
        with np.errstate(all="ignore"):
            left = whole - along[i] ** 2 - rest**2 / free
        left[free < 1e-6] = np.inf
        j = int(np.argmin(left))
        if left[j] <= EXACT * whole:
            yield int(i), j


def _candidate(search: Search, path: str, sums: tuple[Site, ...], used: list[Term]) -> Candidate | None:
    """The candidate with these terms, their numbers fitted at this point; None where one equals no size (a mean's)."""
    point = search.point

    def parts(p: Point) -> tuple[Any, list[Any]]:
        base = _without(p.tape, sums, path, p.ref[path])
        return base, [np.broadcast_to(term.at(p.tape), base.shape) for term in used]

    base, values = parts(point)
    A = np.stack([np.ravel(v) for v in values], 1).astype(float)
    off = (np.ravel(point.got[path]) - np.ravel(base)).astype(float)
    numbers = [float(c) for c in np.linalg.lstsq(A, off, rcond=None)[0]]
    args = point.args, point.cotangent, search.program.labels, search.constants
    known = [names(c, *args, 1e-3) for c in numbers]
    if not all(known):
        return None

    def best(p: Point) -> list[float]:
        """Each number at another point: of those with its names the one that comes nearest."""
        base, values = parts(p)
        near = [sorted({name.value(p.args, p.cotangent) for name in found}) for found in known]

        def off(chosen: tuple[float, ...]) -> float:
            out = base + sum(c * v for c, v in zip(chosen, values, strict=True))
            return float(np.max(np.abs(np.reshape(out, p.got[path].shape) - p.got[path])))

        return list(min(product(*near), key=off))

    def predict(p: Point):
        base, values = parts(p)
        out = base + sum(np.asarray(c, base.dtype) * v for c, v in zip(best(p), values, strict=True))
        return {path: np.asarray(out, base.dtype).reshape(p.ref[path].shape)}

    def say(namer):
        said = [_words(namer, point.tape, c, t) for c, t in zip(numbers, used, strict=True)]
        axes = " and ".join(dict.fromkeys(", ".join(map(str, t.axes)) for t in used))
        where = f"the sums in ∂{namer.leaf(path)} run over axis {axes}, the wrong axis"
        return f"{where}: {' + '.join(said)} stands in their place", ""

    return Candidate(("formula", path, *used), 2.4 + 0.2 * len(used), predict, say)


def _words(namer: Namer, tape: Tape, number: float, term: Term) -> str:
    """A term as an expression; a number that is one over a whole one as that."""

    def called(where: Where) -> str:
        return namer.expr(where[1] if where[0] is None else tape.ops[tape.instances[where[0]][()]].outputs[where[1]], 4)

    over = round(1 / number)
    c = f"{'−' if number < 0 else ''}1/{abs(over)}" if abs(over * number - 1) < 1e-4 else f"{number:.4g}"
    inside = called(term.error) + ("" if term.inside is None else f" · {called(term.inside)}")
    outside = "".join(f" · ({called(where)})" for where in term.outside)
    return f"{c} · sum({inside}, axis {', '.join(map(str, term.axes))}){outside}"
