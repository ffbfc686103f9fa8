"""Hold what was found against fresh draws and another shape, and say it."""

from __future__ import annotations

import time
from typing import Any

from jaxnet.checking.diagnose import points
from jaxnet.checking.diagnose.points import Measure, Point
from jaxnet.checking.diagnose.problem import Explanation, Problem
from jaxnet.checking.diagnose.program import Program, trace
from jaxnet.checking.diagnose.search import NO_VALUE, Hit, Search, fresh_cotangent
from jaxnet.checking.diagnose.shrink import Smaller
from jaxnet.checking.diagnose.words import Namer


class Confirm:
    """Holds hits against fresh draws and another shape, joins those that explain different leaves, and ranks them."""

    def __init__(self, problem: Problem, program: Program, search: Search, small: Smaller | None, deadline: float):
        self.problem, self.search, self.deadline = problem, search, deadline
        self.fresh: list[Point] = []
        self.whole: list[Point] = []
        self.other: list[Point] = []
        for seed in range(101, 104):
            if self.fresh and time.perf_counter() > deadline - 0.3:
                break
            args, cotangent = problem.draw(seed) if problem.draw else self.again(seed)
            if small is not None:
                args, cotangent = small.cut(args, cotangent)
            self.fresh.append(points.at(problem, small.program if small else program, args, cotangent))
        if small is not None:
            self.whole.append(points.at(problem, program, problem.args, problem.cotangent))
        if problem.redraw is not None and time.perf_counter() < deadline:
            args, cotangent = problem.redraw(104)
            self.other.append(points.at(problem, trace(problem.primal, args), args, cotangent))

    def again(self, seed: int) -> tuple[tuple, Any]:
        """The same inputs with another cotangent."""
        return self.problem.args, fresh_cotangent(self.problem.cotangent, seed)

    def holds(self, hit: Hit, point: Point) -> bool | None:
        """Whether a hit gives at this point too what the rule gives; None where it cannot be planted there."""
        try:
            out = hit.candidate.predict(point)
        except NO_VALUE:
            return None
        measure = Measure(point, hit.explained, self.problem.tolerance)
        for path in hit.explained:
            value = out.get(path, point.ref[path])
            limit = max(
                10 * self.problem.tolerance,
                5e-5 if point.ref[path].dtype.itemsize < 8 else 1e-9,
                2 * measure.allowed[path],
            )
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
            at_whole = [self.holds(hit, p) for p in self.whole]
            exact = all(h is True for h in held + at_whole) and False not in at_other
            graded.append((hit, exact, sum(h is True for h in held), at_other))
            if time.perf_counter() > self.deadline + 1 and graded:
                break
        graded.sort(
            key=lambda g: (not g[1], -len(g[0].explained), len(g[0].harmed) > 0, self.price(g[0]), g[0].residual)
        )
        said = [self.say(namer, *g) for g in graded]
        if said and set(said[0].leaves) != wrong:
            joined = self.join([(s, g[0]) for s, g in zip(said, graded, strict=True)], wrong)
            said = [joined, *said] if joined else said
        return said

    def say(self, namer: Namer, hit: Hit, exact: bool, held: int, at_other: list[bool | None]) -> Explanation:
        held_at = [p for p in [*self.fresh, *self.whole, *self.other] if exact]
        cause, equation = hit.candidate.confirmed(held_at).say(namer)
        if hit.harmed:
            cause += f" (in {', '.join('∂' + namer.leaf(p) for p in hit.explained)} only)"
        what = ", ".join("∂" + namer.leaf(p) for p in hit.explained)
        evidence = f"explains {what} to {hit.residual:.0e}"
        if held:
            kind = "draws" if self.problem.draw else "cotangents"
            evidence += f"; holds on {held} fresh {kind if held > 1 else kind[:-1]}"
        if self.whole and exact:
            evidence += ", at the whole length"
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
            best = max(
                said,
                key=lambda s: (
                    s[0].exact,
                    len(left & set(s[0].leaves)) > 0,
                    len(left & set(s[0].leaves)),
                    -len(s[1].harmed),
                    -s[1].candidate.cost,
                ),
            )
            if not left & set(best[0].leaves):
                return None
            parts.append(best[0])
            left -= set(best[0].leaves)
        first = parts[0]
        if len(parts) == 1:
            return None
        return Explanation(
            "; and ".join(p.cause for p in parts),
            "; ".join(p.equation for p in parts if p.equation),
            first.where,
            tuple(sorted(wrong)),
            max(p.residual for p in parts),
            all(p.exact for p in parts),
            "; ".join(p.evidence for p in parts),
        )


def unlike(hits: list[Hit], point: Point) -> list[Hit]:
    """The hits without those that say the same thing of the same place twice."""
    seen, out = set(), []
    for hit in hits:
        if hit.candidate.key not in seen:
            seen.add(hit.candidate.key)
            out.append(hit)
    return out
