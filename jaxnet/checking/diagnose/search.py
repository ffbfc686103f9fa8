"""Plant, compare, confirm: the search for what makes the reference's backward pass give what the rule gave."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxnet.checking.diagnose import fits, operators, pairs, points, probing, relatives, shrink, strangers
from jaxnet.checking.diagnose.fits import Candidate
from jaxnet.checking.diagnose.points import Measure, Point
from jaxnet.checking.diagnose.problem import Diagnosis, Explanation, Problem
from jaxnet.checking.diagnose.program import Program, TooLong, trace
from jaxnet.checking.diagnose.scene import Mutant, Scene, on_operand
from jaxnet.checking.diagnose.sizes import Name, names
from jaxnet.checking.diagnose.words import Namer

# what a mutant raises that has no value here (shapes that no longer fit, a step that is not there, no inverse):
# such a mutant explains nothing, and is counted as tried
NO_VALUE = (ValueError, TypeError, IndexError, KeyError, ZeroDivisionError, np.linalg.LinAlgError, OverflowError, StopIteration, NotImplementedError)


@dataclass(frozen=True)
class Hit:
    """A candidate that gives some wrong leaves as the rule gave them."""

    candidate: Candidate
    explained: tuple[str, ...]
    residual: float
    harmed: tuple[str, ...]


class Search:
    """One problem at one point, with all that has been tried on it."""

    def __init__(self, problem: Problem, program: Program, point: Point, deadline: float):
        self.problem, self.program, self.point, self.deadline = problem, program, point, deadline
        self.measure = Measure(point, problem.wrong, problem.tolerance)
        self.scene = Scene(point.tape)
        self.constants = literals(point)
        self.tried = 0
        self.hits: list[Hit] = []
        self.kept: list[tuple[Mutant, np.ndarray]] = []
        self.zeroed: dict[tuple, Mapping[str, Any]] = {}
        self.sample = sampler(self.measure)

    @property
    def late(self) -> bool:
        return time.perf_counter() > self.deadline

    def clean(self) -> bool:
        """Whether something explains every wrong leaf and harms no right one."""
        return any(set(h.explained) == set(self.measure.wrong) and not h.harmed for h in self.hits)

    def whole(self) -> bool:
        """Whether something explains every wrong leaf, right ones harmed or not."""
        return any(set(h.explained) == set(self.measure.wrong) for h in self.hits)

    def covered(self) -> bool:
        """Whether the wrong leaves are explained between several, none of which harms a right one."""
        return set(self.measure.wrong) <= {path for h in self.hits if not h.harmed for path in h.explained}

    def consider(self, candidates: Iterable[Candidate], until: float) -> None:
        """Try candidates until the time is up."""
        for candidate in candidates:
            self.tried += 1
            self.judge(candidate)
            if time.perf_counter() > until:
                return

    def judge(self, candidate: Candidate) -> bool:
        """Whether a candidate explains a wrong leaf; if so it is kept."""
        try:
            out = candidate.predict(self.point)
        except NO_VALUE:
            return False
        explained, residual, harmed = self.measure.against(out)
        if explained:
            self.hits.append(Hit(candidate, explained, residual, harmed))
        return bool(explained)

    def plant(self, mutants: Iterable[Mutant], until: float) -> None:
        """Try mutants until the time is up."""
        for mutant in mutants:
            self.tried += 1
            self.one(mutant)
            if time.perf_counter() > until:
                return

    def one(self, mutant: Mutant) -> None:
        try:
            out = self.point.tape.replay(mutant.changes)
            explained, residual, harmed = self.measure.against(out)
        except NO_VALUE:
            return
        if explained:
            self.hits.append(Hit(self.candidate(mutant), explained, residual, harmed))
        if not any(path in out for path in self.measure.wrong):
            return
        if mutant.fit == "scale":
            self.graded(mutant, self.measure.coefficient(out))
        elif mutant.fit == "add" and not explained:
            without = self.without(mutant)
            if without is not None:
                self.graded(mutant, self.measure.coefficient(without, out))
        vector = self.sample(out)
        if vector is not None and len(self.kept) < 2500:
            self.kept.append((mutant, vector))

    def without(self, mutant: Mutant) -> Mapping[str, Any] | None:
        """The leaves with nothing in the operand's place."""
        site, _, j, _ = mutant.key
        if (site, j) not in self.zeroed:
            try:
                self.zeroed[(site, j)] = self.point.tape.replay({site: on_operand(j, lambda op, x, look: np.zeros_like(x))})
            except NO_VALUE:
                return None
        return self.zeroed[(site, j)]

    def graded(self, mutant: Mutant, c: float | None) -> None:
        """A mutant whose number was fitted: held to what it then gives."""
        if c is None or abs(c) < 1e-6 or mutant.graded is None:
            return
        known = names(c, self.point.args, self.point.cotangent, self.program.labels, self.constants, 1e-3) if mutant.fit == "scale" else []
        candidate = self.candidate(mutant, c, known)
        try:
            explained, residual, harmed = self.measure.against(candidate.predict(self.point))
        except NO_VALUE:
            return
        if explained:
            self.hits.append(Hit(candidate, explained, residual, harmed))

    def candidate(self, mutant: Mutant, c: float = 0.0, known: Sequence[Name] = ()) -> Candidate:
        """The mutant as a candidate, with its number where it has one."""
        if not c or mutant.graded is None:
            say = lambda namer: mutant.say(namer, 0.0)  # noqa: E731
            return Candidate(mutant.key, mutant.cost, lambda p: p.tape.replay(mutant.changes), say, self.line(mutant))
        graded = mutant.graded
        exact = known[0].value(self.point.args, self.point.cotangent) if known else c

        def off(p: Point, value: float) -> float:
            return sum(points.distance(v, p.got[path], 1.0) for path, v in p.tape.replay(graded(value)).items())

        def best(p: Point) -> float:
            values = {k.value(p.args, p.cotangent) for k in known} or {c}
            return min(values, key=lambda v: off(p, v)) if len(values) > 1 else values.pop()

        def predict(p: Point):
            return p.tape.replay(graded(best(p)))

        def say(namer):
            cause, equation = mutant.say(namer, exact)
            plain = exact in (-1.0, 2.0) or not known
            return cause if plain else f"{cause}: {' or '.join(k.words for k in known[:3])}", equation

        cost = mutant.cost + (0.2 if known or mutant.fit == "add" else 1.5)
        named = fits.Named(tuple(known), best, lambda fewer: self.candidate(mutant, c, fewer)) if known else None
        return Candidate((*mutant.key, "×"), cost, predict, say, self.line(mutant), named)

    def line(self, mutant: Mutant):
        return self.point.tape.ops[self.scene.first[mutant.site]].line

    def run(self) -> None:
        """The tables one after another, until one of them explains all."""
        start = time.perf_counter()

        def by(share: float) -> float:
            return start + share * (self.deadline - start)

        self.consider(fits.fits(self.measure, self.program.labels, self.constants), by(0.3))
        self.plant(chain(operators.structural(self.scene), strangers.passed(self.scene)), by(0.6))
        if self.clean():
            return
        self.consider(pairs.added(self, simple=True), by(0.62))
        if self.clean():
            return
        self.plant(chain(strangers.updated(self.scene), strangers.donors(self.scene)), by(0.7))
        self.consider(fits.moved(self.measure), by(0.72))
        if self.clean() or self.covered():
            return
        self.consider(relatives.relatives(self.problem, self.point, self.program), by(0.8))
        if self.clean() or self.whole():
            return
        self.consider(pairs.added(self), by(0.85))
        if self.clean():
            return
        self.plant(strangers.slopes(self.scene), by(0.9))
        if self.clean():
            return
        self.plant(strangers.extra(self.scene), by(0.94))
        if self.clean():
            return
        self.consider(probing.matrices(self), by(0.97))
        if self.clean():
            return
        self.consider(pairs.added(self), by(0.99))
        if not self.clean():
            self.consider(pairs.chained(self), self.deadline)


def sampler(measure: Measure):
    """What takes some entries of the wrong leaves, as the difference to the reference, each leaf in its scale."""
    picks, rng = {}, np.random.default_rng(0)
    for path in measure.wrong:
        size = measure.point.ref[path].size
        picks[path] = np.arange(size) if size <= 400 else rng.choice(size, 400, replace=False)

    def sample(out: Mapping[str, Any]) -> np.ndarray | None:
        rows = []
        for path, pick in picks.items():
            ref = measure.point.ref[path]
            value = out.get(path, ref)
            if np.shape(value) != np.shape(ref):
                return None
            rows.append((np.ravel(value)[pick] - np.ravel(ref)[pick]) / measure.scale[path])
        vector = np.concatenate(rows) if rows else np.zeros(0)
        return vector if np.all(np.isfinite(vector)) and np.any(vector) else None

    return sample


def literals(point: Point) -> tuple[float, ...]:
    """The numbers that the program itself mentions, and scalar arguments."""
    found = []
    for n, value in enumerate(point.tape.values):
        if np.ndim(value) == 0 and n not in point.tape.maker and not point.tape.linear[n] and getattr(getattr(value, "dtype", None), "kind", "") in ("f", "i"):
            c = float(value)
            if c not in (0.0, 1.0, -1.0, 2.0) and np.isfinite(c) and c not in found:
                found.append(c)
    return tuple(found[:24])


def diagnose(problem: Problem, *, budget: float = 10.0) -> Diagnosis:
    """Find what small mistake in the reference's backward pass gives what the rule gave.

    Args:
        problem: the primal, the rule, the point at which it was found wrong, and how to draw others.
        budget: seconds to spend.

    Raises:
        ValueError: where the primal cannot be differentiated at this point.
    """
    start = time.perf_counter()
    deadline = start + 0.8 * budget
    try:
        program = trace(problem.primal, problem.args)
        whole = points.at(problem, program, problem.args, problem.cotangent)
    except TooLong as error:
        return Diagnosis(None, (), 0, time.perf_counter() - start, str(error))
    small = shrink.shrink(problem, program, whole, start + 0.3 * budget)
    search = Search(problem, small.program, small.point, deadline) if small else Search(problem, program, whole, deadline)
    search.run()
    namer = Namer(search.point.tape)
    confirm = Confirm(problem, program, search, whole if small else None, start + budget)
    explanations = confirm.explanations(namer)
    best = explanations[0] if explanations else None
    described = "" if best is not None and best.exact and set(best.leaves) == set(search.measure.wrong) else known(search.measure, namer)
    return Diagnosis(best, tuple(explanations[1:6]), search.tried, time.perf_counter() - start, described)


class Confirm:
    """Holds hits against fresh draws and another shape, joins those that explain different leaves, and ranks them."""

    def __init__(self, problem: Problem, program: Program, search: Search, whole: Point | None, deadline: float):
        self.problem, self.program, self.search, self.deadline = problem, program, search, deadline
        self.fresh: list[Point] = [whole] if whole is not None else []
        self.other: list[Point] = []
        wanted = 3
        for seed in range(101, 101 + wanted):
            if len(self.fresh) and time.perf_counter() > deadline - 0.3:
                break
            args, cotangent = problem.draw(seed) if problem.draw else (problem.args, fresh_cotangent(problem.cotangent, seed))
            self.fresh.append(points.at(problem, program, args, cotangent))
        if problem.redraw is not None and time.perf_counter() < deadline:
            args, cotangent = problem.redraw(104)
            self.other.append(points.at(problem, trace(problem.primal, args), args, cotangent))

    def holds(self, hit: Hit, point: Point) -> bool | None:
        """Whether a hit gives at this point too what the rule gives; None where it cannot be planted there."""
        try:
            out = hit.candidate.predict(point)
        except NO_VALUE:
            return None
        measure = Measure(point, hit.explained, self.problem.tolerance)
        for path in hit.explained:
            value = out.get(path, point.ref[path])
            limit = max(10 * self.problem.tolerance, 5e-5 if point.ref[path].dtype.itemsize < 8 else 1e-9, 2 * measure.allowed[path])
            if not points.distance(value, point.got[path], measure.scale[path]) <= limit:
                return False
        return True

    def price(self, hit: Hit) -> float:
        """How far from simple a hit is; what fits no better than roughly comes after what fits."""
        return hit.candidate.cost + (1.0 if hit.residual > 2 * self.search.measure.strict else 0.0)

    def explanations(self, namer: Namer) -> list[Explanation]:
        wrong = set(self.search.measure.wrong)
        ordered = sorted(self.search.hits, key=lambda h: (-len(h.explained), len(h.harmed), self.price(h), h.residual))
        graded = []
        for hit in unlike(ordered, self.search.point)[:40]:
            held = [self.holds(hit, p) for p in self.fresh]
            at_other = [self.holds(hit, p) for p in self.other]
            exact = all(h is True for h in held) and False not in at_other
            graded.append((hit, exact, sum(h is True for h in held), at_other))
            if time.perf_counter() > self.deadline + 1 and graded:
                break
        graded.sort(key=lambda g: (not g[1], -len(g[0].explained), len(g[0].harmed) > 0, self.price(g[0]), g[0].residual))
        said = [self.say(namer, *g) for g in graded]
        if said and set(said[0].leaves) != wrong:
            joined = self.join([(s, g[0]) for s, g in zip(said, graded, strict=True)], wrong)
            said = [joined, *said] if joined else said
        return said

    def say(self, namer: Namer, hit: Hit, exact: bool, held: int, at_other: list[bool | None]) -> Explanation:
        held_at = [p for p in [*self.fresh, *self.other] if exact]
        cause, equation = hit.candidate.confirmed(held_at).say(namer)
        if hit.harmed:
            cause += f" (in {', '.join('∂' + namer.leaf(p) for p in hit.explained)} only)"
        what = ", ".join("∂" + namer.leaf(p) for p in hit.explained)
        evidence = f"explains {what} to {hit.residual:.0e}"
        if held:
            kind = "draws" if self.problem.draw else "cotangents"
            evidence += f"; holds on {held} fresh {kind if held > 1 else kind[:-1]}"
        if True in at_other:
            evidence += " and at another shape"
        elif False in at_other:
            evidence += ", not at another shape"
        if not exact:
            evidence = "consistent with it here only: " + evidence
        return Explanation(cause, equation, str(hit.candidate.line), hit.explained, hit.residual, exact, evidence)

    def join(self, said: list[tuple[Explanation, Hit]], wrong: set[str]) -> Explanation | None:
        """Several causes for several leaves."""
        left, parts = set(wrong), []
        while left:
            best = max(said, key=lambda s: (s[0].exact, len(left & set(s[0].leaves)) > 0, len(left & set(s[0].leaves)), -len(s[1].harmed), -s[1].candidate.cost))
            if not left & set(best[0].leaves):
                return None
            parts.append(best[0])
            left -= set(best[0].leaves)
        first = parts[0]
        if len(parts) == 1:
            return None
        return Explanation(
            "; and ".join(p.cause for p in parts), "; ".join(p.equation for p in parts if p.equation), first.where,
            tuple(sorted(wrong)), max(p.residual for p in parts), all(p.exact for p in parts), "; ".join(p.evidence for p in parts),
        )  # fmt: skip


def unlike(hits: list[Hit], point: Point) -> list[Hit]:
    """The hits without those that say the same thing of the same place twice."""
    seen, out = set(), []
    for hit in hits:
        if hit.candidate.key not in seen:
            seen.add(hit.candidate.key)
            out.append(hit)
    return out


def fresh_cotangent(cotangent: Any, seed: int) -> Any:
    """A random cotangent of the shape of this one."""
    rng = np.random.default_rng(seed)
    leaves, tree = jax.tree.flatten(cotangent, is_leaf=lambda v: v is None)
    drawn = [
        jax.numpy.asarray(rng.standard_normal(np.shape(v)), v.dtype) if v is not None and jax.numpy.issubdtype(v.dtype, np.inexact) else v
        for v in leaves
    ]
    return jax.tree.unflatten(tree, drawn)


def known(measure: Measure, namer: Namer) -> str:
    """What can be said where nothing explains it: angle, ratio, worst entry with both values, pattern."""
    lines = []
    for path in measure.wrong:
        ref, got = measure.point.ref[path], measure.point.got[path]
        name = f"∂{namer.leaf(path)}"
        bad = ~np.isfinite(got)
        if bad.any():
            where = pattern_words(bad)
            lines.append(f"{name}: {where} not finite" + (" (nor in the reference)" if not np.isfinite(ref).all() else ""))
            continue
        a, b = np.ravel(ref), np.ravel(got)
        norms = float(np.linalg.norm(a) * np.linalg.norm(b))
        cosine = float(np.vdot(a, b).real) / norms if norms else 0.0
        ratio = float(np.linalg.norm(b) / np.linalg.norm(a)) if np.any(a) else float("inf")
        off = np.abs(got - ref)
        index = np.unravel_index(int(np.argmax(off)), off.shape) if off.ndim else ()
        words = pattern_words(off > measure.allowed[path] * measure.scale[path])
        lines.append(
            f"{name}: cosine {cosine:.4f}, length {ratio:.4g} times the right one; worst at {[int(i) for i in index]}: "
            f"got {got[index]:.6g}, expected {ref[index]:.6g}; {words} off"
        )
    return "\n".join(lines)


def pattern_words(off: Any) -> str:
    """Where entries are wrong."""
    return "every entry is" if np.all(off) else fits.pattern(off)[0] if np.any(off) else "none is"


