"""Plant and compare: the tables of mistakes, one after another, at one point."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import jax
import numpy as np

from jaxnet.checking.diagnose import (
    alike,
    constants,
    cotangents,
    fits,
    formulas,
    loops,
    operators,
    pairs,
    points,
    probing,
    relatives,
    strangers,
    uses,
)
from jaxnet.checking.diagnose.candidate import Candidate
from jaxnet.checking.diagnose.points import Measure, Point
from jaxnet.checking.diagnose.problem import Problem
from jaxnet.checking.diagnose.program import Program
from jaxnet.checking.diagnose.scene import Mutant, Scene, on_operand
from jaxnet.checking.diagnose.sizes import Name, names

# what a mutant raises that has no value here (shapes that no longer fit, a step that is not there, no inverse):
# such a mutant explains nothing, and is counted as tried
NO_VALUE = (
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    ZeroDivisionError,
    np.linalg.LinAlgError,
    OverflowError,
    StopIteration,
    NotImplementedError,
)


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
        self.other: Measure | None = None
        self.stood: dict[int, bool] = {}
        self.sample = sampler(self.measure)

    @property
    def late(self) -> bool:
        return time.perf_counter() > self.deadline

    def clean(self) -> bool:
        """Whether something explains every wrong leaf and harms no right one, at another cotangent too."""
        return any(set(h.explained) == set(self.measure.wrong) and not h.harmed and self.stands(h) for h in self.hits)

    def stands(self, hit: Hit) -> bool:
        """Whether a hit gives what the rule gives at another cotangent too: where few entries are wrong, many fit."""
        if id(hit) not in self.stood:
            if self.other is None:
                cotangent = fresh_cotangent(self.point.cotangent, 400)
                self.other = Measure(
                    points.at(self.problem, self.program, self.point.args, cotangent),
                    self.problem.wrong,
                    self.problem.tolerance,
                )
            try:
                out = hit.candidate.predict(self.other.point)
                explained = self.other.against({path: self.other.point.ref[path] for path in hit.explained} | dict(out))
                self.stood[id(hit)] = set(hit.explained) <= set(explained[0])
            except NO_VALUE:
                self.stood[id(hit)] = False
        return self.stood[id(hit)]

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
            out = mutant.gives(self.point.tape)
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
                self.zeroed[(site, j)] = self.point.tape.replay(
                    {site: on_operand(j, lambda op, x, look: np.zeros_like(x))}
                )
            except NO_VALUE:
                return None
        return self.zeroed[(site, j)]

    def graded(self, mutant: Mutant, c: float | None) -> None:
        """A mutant whose number was fitted: held to what it then gives."""
        if c is None or abs(c) < 1e-6 or mutant.graded is None:
            return
        known = (
            names(c, self.point.args, self.point.cotangent, self.program.labels, self.constants, 1e-3)
            if mutant.fit == "scale"
            else []
        )
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
            return Candidate(
                mutant.key, mutant.cost, lambda p: mutant.gives(p.tape), lambda namer: mutant.say(namer, 0.0),
                self.line(mutant),
            )  # fmt: skip
        exact = known[0].value(self.point.args, self.point.cotangent) if known else c

        def off(p: Point, value: float) -> float:
            return sum(points.distance(v, p.got[path], 1.0) for path, v in mutant.gives(p.tape, value).items())

        def best(p: Point) -> float:
            values = {k.value(p.args, p.cotangent) for k in known} or {c}
            return min(values, key=lambda v: off(p, v)) if len(values) > 1 else values.pop()

        def predict(p: Point):
            return mutant.gives(p.tape, best(p))

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
        self.plant(self.further(), by(0.66))
        if self.clean():
            return
        self.plant(chain(strangers.updated(self.scene), strangers.donors(self.scene)), by(0.7))
        if not self.clean():
            states = loops.earlier(self.scene)
            self.plant(chain(states, strangers.behind(self.scene, strangers.donors(self.scene))), by(0.71))
        self.consider(cotangents.moved(self.measure), by(0.72))
        if self.clean() or self.covered():
            return
        self.consider(relatives.relatives(self.problem, self.point, self.program), by(0.8))
        if self.clean() or self.whole():
            return
        self.consider(pairs.added(self), by(0.85))
        if self.clean():
            return
        self.consider(formulas.sums_elsewhere(self), by(0.88))
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

    def further(self) -> Iterator[Mutant]:
        """Mistakes in one use alone, in what depends on no argument, in all places of a kind, in what is saved."""
        scene = self.scene
        yield from uses.uses(scene)
        yield from strangers.skipped(scene)
        yield from constants.constants(scene)
        yield from alike.everywhere(scene)
        yield from strangers.behind(scene, operators.structural(scene))


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
        if (
            np.ndim(value) == 0
            and n not in point.tape.maker
            and not point.tape.linear[n]
            and getattr(getattr(value, "dtype", None), "kind", "") in ("f", "i")
        ):
            c = float(value)
            if c not in (0.0, 1.0, -1.0, 2.0) and np.isfinite(c) and c not in found:
                found.append(c)
    return tuple(found[:24])


def fresh_cotangent(cotangent: Any, seed: int) -> Any:
    """A random cotangent of the shape of this one."""
    rng = np.random.default_rng(seed)
    leaves, tree = jax.tree.flatten(cotangent, is_leaf=lambda v: v is None)
    drawn = [
        (
            jax.numpy.asarray(rng.standard_normal(np.shape(v)), v.dtype)
            if v is not None and jax.numpy.issubdtype(v.dtype, np.inexact)
            else v
        )
        for v in leaves
    ]
    return jax.tree.unflatten(tree, drawn)
