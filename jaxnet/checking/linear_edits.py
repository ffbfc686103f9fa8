"""Edits of a place whose right values solve a linear system: all are tried at once.

Where the gradients are linear in a place's value v, they are right for the values x with A (x − v) = b. The image A x
of an expression is compared by a random sum of its entries, that of four factors by a few sums. An expression that
fits is compared in all entries.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np

from jaxnet.checking.alignment import Atom, Effect
from jaxnet.checking.edits import EXACT, HERE, Edit, Scope, Term, joined, tokens

MOST_TERMS, MOST_SUMS, FEW_SUMS = 400, 32, 3
SHORT_TERM, MOST_PARTS, MOST_PAIRS = 9, 11, 6
ADDED = ("{} + {}", "{} - {}")


class LinearEdits:
    """The edits of a place that make the outputs right at the first point.

    `right`: A and b; or the graft of the right values, of which random sums tell one array from another.
    """

    def __init__(self, scope: Scope, effect: Effect, right: tuple[np.ndarray, np.ndarray] | dict[int, Callable]):
        self.scope, self.effect = scope, effect
        graft = right if isinstance(right, dict) else {}  # with it the loop's carry is right, and may be used
        every = (*scope.atoms, *scope.borrowed, *scope.constants)
        self.usable = [atom for atom in every if graft or not scope.depends(atom)]
        self.index = {id(atom): k for k, atom in enumerate(self.usable)}
        self.calls = effect.calls(self.usable, graft)
        v, new = (np.concatenate([call[k].ravel() for call in self.calls]) for k in range(2))
        rng = np.random.default_rng(0)
        if isinstance(right, dict):
            A = rng.standard_normal((min(v.size, MOST_SUMS), v.size))
            self.A, self.b = A, A @ (new - v)
        else:
            self.A, self.b = right
        self.v, self.Av = v, self.A @ v
        self.allowed = EXACT * max(float(np.linalg.norm(self.b)), 1.0)
        self.W = rng.standard_normal((FEW_SUMS, len(self.b))) / max(1, len(self.b))
        self.few = self.W @ self.A

    def row(self, term: Term) -> np.ndarray | None:
        """An expression's values, one for each time that the place runs; a zero by chance mends too much."""
        if not all(id(atom) in self.index for atom in term.atoms):
            return None
        parts = []
        for v, _, *others in self.calls:
            try:
                part = np.asarray(term.value(v, *(others[self.index[id(atom)]] for atom in term.atoms)), float)
                parts.append(np.broadcast_to(part, v.shape).ravel())
            except (ValueError, IndexError, TypeError, np.linalg.LinAlgError):
                return None
        row = np.concatenate(parts)
        return row if np.any(row) else None

    def image(self, term: Term) -> np.ndarray:
        """A x of an expression x; NaN where it has no value."""
        row = self.row(term)
        return np.full(self.b.shape, np.nan) if row is None else self.A @ row

    def as_wanted(self, image: np.ndarray, wanted: np.ndarray) -> bool:
        """Whether an image is as wanted."""
        return bool(np.max(np.abs(image - wanted), initial=0.0) <= self.allowed)

    @cached_property
    def joins(self) -> tuple[tuple[str, np.ndarray], ...]:
        """Templates of v and an expression, with the image that the expression must have."""
        return (*zip(ADDED, (self.b, -self.b), strict=True), ("{}", self.b + self.Av), ("-{}", -self.b - self.Av))

    def singles(self) -> Iterator[Edit]:
        """Those with at most one term."""
        wanted, v = self.b + self.Av, self.v
        terms, R = self.rows_of(self.scope.terms)
        with np.errstate(all="ignore"):
            forms = np.stack([v * R, v / R, v + R, v - R, R])
            near = np.abs(forms @ self.few.T - self.W @ wanted) <= 4 * self.allowed
        hits = [terms[k] for k in np.flatnonzero(near.all(2).any(0))]
        drafts = itertools.chain(self.scope.apart, *map(self.scope.drafts_of, hits))
        yield from self.scope.written(d for d in drafts if self.as_wanted(self.image(d.term), wanted))

    def rows_of(self, terms: Sequence[Term]) -> tuple[list[Term], np.ndarray]:
        """Those of some expressions that have finite values, and these."""
        rows = [(term, self.row(term)) for term in terms]
        known = [(term, row) for term, row in rows if row is not None and np.all(np.isfinite(row))]
        return [term for term, _ in known], np.array([row for _, row in known]).reshape(len(known), self.v.size)

    def several(self, late: Callable[[], bool]) -> Iterator[Edit]:
        """Those with two terms, or with two products, until it is late."""
        scope = self.scope
        terms = sorted([*scope.terms, *scope.sums], key=lambda term: len(tokens(term.text(scope.text))))
        known, rows = self.rows_of(terms[:MOST_TERMS])
        if known:
            yield from self.products(known, rows, late)
        yield from self.matrices()

    # ------------------------------------------------------------------------------------------------------ products

    def products(self, terms: list[Term], R: np.ndarray, late: Callable[[], bool]) -> Iterator[Edit]:
        """v ± t u, v ± t / u, t u, t / u, t ± u for two terms; v or a part of it with two terms more."""
        n = len(terms)
        short = np.array([[len(tokens(term.text(self.scope.text))) <= SHORT_TERM] for term in terms])
        once = short & (np.triu(np.ones((n, n), bool)) | ~short.T)
        inverse = 1 / np.where(R == 0, 1e-300, R)
        single = self.few @ R.T  # of each term alone
        product = np.stack([(R * few) @ R.T for few in self.few])
        quotient = (R * self.few[0]) @ inverse.T
        added, taken = (single[0][:, None] + sign * single[0] for sign in (1, -1))
        alone = (("{}", self.b + self.Av),)
        for op, images, chosen, joins in (("*", product[0], once, self.joins), ("/", quotient, short, self.joins),
                                          ("+", added, short, alone), ("-", taken, short, alone)):  # fmt: skip
            for template, wanted in joins:
                for i, j in np.argwhere((np.abs(images - self.W[0] @ wanted) <= self.allowed) & chosen):
                    pair = joined(f"{{}} {op} {{}}", terms[i], terms[j])
                    if self.as_wanted(self.image(pair), wanted):
                        yield self.join(template, pair)
        first, second = np.nonzero(once)

        def factors(k: int) -> tuple[Term, ...]:
            return (terms[k],) if k < n else (terms[first[k - n]], terms[second[k - n]])

        lengths = np.array([len(term.text(self.scope.text)) for term in terms])
        sums = Sums(
            np.concatenate([single, product[:, first, second]], 1),
            np.concatenate([lengths, lengths[first] + lengths[second]]),
        )
        yield from self.two_more(factors, sums, self.b, HERE)
        yield from self.two_more(factors, sums, self.b + self.Av, None)
        parts = [k for k, term in enumerate(terms) if term.text(self.scope.text) in self.scope.text]
        for k in parts[:MOST_PARTS]:
            if late():
                return
            yield from self.two_more(factors, sums, self.b + self.Av - self.A @ R[k], terms[k])

    def join(self, template: str, term: Term) -> Edit:
        """An expression added to the place's, taken from it, or in its place."""
        if template in ADDED:
            return self.scope.edit(joined(template, HERE, term), "term", term)
        return self.scope.edit(joined(template, term))

    def two_more(
        self, factors: Callable[[int], tuple[Term, ...]], sums: Sums, wanted: np.ndarray, base: Term | None
    ) -> Iterator[Edit]:
        """Two products added to a base or taken away, or by themselves; the shortest ones."""
        nearest = EXACT * (float(np.max(np.abs(wanted), initial=0.0)) + 1e-12)
        for some in sums.of_two(self.W @ wanted):
            parts = [factors(k) for k, _ in some]
            one, other = map(product_of, parts)
            (_, a), (_, b) = some
            if not np.max(np.abs(a * self.image(one) + b * self.image(other) - wanted), initial=0.0) <= nearest:
                continue
            signs = ["-" if sign < 0 else "+" for sign in (a, b)]
            if base is None:
                yield self.edit_of_two(parts, signs)
            else:
                missing = joined("{} and {}", one, other) if base is HERE else None
                yield self.scope.edit(joined(f"{{}} {signs[0]} {{}} {signs[1]} {{}}", base, one, other),
                                      "term" if base is HERE else "replaced", missing)  # fmt: skip

    def edit_of_two(self, parts: list[tuple[Term, ...]], signs: list[str]) -> Edit:
        """The sum of two products, a common factor in front."""
        if signs == ["-", "+"]:
            parts, signs = parts[::-1], signs[::-1]
        one, other = parts
        first = signs[0].removeprefix("+")
        common = next((term for term in one if term in other), None)
        if common is None or len(one) == len(other) == 1:
            return self.scope.edit(joined(f"{first}{{}} {signs[1]} {{}}", product_of(one), product_of(other)))
        rest = [next((t for t in part if t is not common), Term("1")) for part in parts]
        return self.scope.edit(joined("{} * {}", common, joined(f"{first}{{}} {signs[1]} {{}}", *rest)))

    def matrices(self) -> Iterator[Edit]:
        """Products of two matrices, and outer products of two vectors, alone or added."""
        scope = self.scope
        small = [atom for atom in self.usable if 1 <= len(atom.shape) <= 2 and len(tokens(atom.text)) <= 7]
        sides: list[tuple[str, Atom, tuple]] = [
            (template, atom, shape) for atom in small for template, shape in
            (("{1}", atom.shape), ("{1}.T", atom.shape[::-1]))[: len(atom.shape)]]  # fmt: skip
        for (one, a, rows), (other, c, columns) in itertools.product(sides, sides):
            products = []
            if rows[-1] == columns[0] and (*rows[:-1], *columns[1:]) == scope.shape:
                products.append("{} @ {}")
            if len(rows) == len(columns) == 1 and (*rows, *columns) == scope.shape and scope.jnp:
                products.append(f"{scope.jnp}.outer({{}}, {{}})")
            for template in products:
                product = joined(template, Term(one, (a,)), Term(other, (c,)))
                image = self.image(product)
                for template, wanted in self.joins[:3]:
                    if self.as_wanted(image, wanted):
                        yield self.join(template, product)


def product_of(factors: tuple[Term, ...]) -> Term:
    """One factor, or the product of two."""
    return joined(" * ".join(["{}"] * len(factors)), *factors)


class Sums:
    """Signed sums of two of many images, found by the order of their first entries."""

    def __init__(self, images: np.ndarray, lengths: np.ndarray):
        size = np.max(np.abs(images), 0, initial=0.0)
        usable = np.flatnonzero((size > 0) & np.isfinite(size))
        signed = np.concatenate([images[:, usable], -images[:, usable]], 1)
        order = np.argsort(signed[0])
        self.signed, self.lengths = signed[:, order], lengths
        self.number = np.concatenate([usable, usable])[order]
        self.sign = np.repeat([1, -1], len(usable))[order]

    def of_two(self, wanted: np.ndarray) -> list[list[tuple[int, int]]]:
        """The pairs, number and sign of each, whose sum is wanted: a few with the shortest texts."""
        first = self.signed[0]
        size = float(np.max(np.abs(wanted), initial=0.0)) + 1e-18
        tolerance = 1e-8 * size
        one = np.flatnonzero(np.abs(first) <= 1e6 * size)
        low, high = (np.searchsorted(first, wanted[0] - first[one] + d) for d in (-tolerance, tolerance))
        low = np.maximum(low, one + 1)
        counts = np.maximum(high - low, 0)
        total = int(counts.sum())
        one = np.repeat(one, counts)
        other = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(low, counts)
        near = np.all(np.abs(self.signed[:, one] + self.signed[:, other] - wanted[:, None]) <= tolerance, 0)
        one, other = one[near], other[near]
        shortest = np.argsort(self.lengths[self.number[one]] + self.lengths[self.number[other]], kind="stable")
        some = shortest[:MOST_PAIRS]
        return [
            [(int(self.number[k]), int(self.sign[k])) for k in pair]
            for pair in zip(one[some], other[some], strict=True)
        ]
