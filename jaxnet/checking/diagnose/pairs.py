"""Two mistakes at once: first those whose effects add up, found by their inner products; then those in one chain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from jaxnet.checking.diagnose.candidate import Candidate
from jaxnet.checking.diagnose.scene import Mutant

if TYPE_CHECKING:
    from jaxnet.checking.diagnose.search import Search


def added(search: Search, *, simple: bool = False) -> Iterator[Candidate]:
    """Pairs of mutants whose differences to the reference add up to the rule's, some times a fitted number.

    With `simple`, only of terms and variables left out.
    """
    kept = _distinct([k for k in search.kept if k[0].cost <= 1.1] if simple else search.kept)
    target = search.sample(search.point.got)
    if target is None or len(kept) < 2 or len(target) < 4:
        return
    V, t = np.stack([_real(v) for _, v in kept]), _real(target)
    free = np.array([m.fit == "scale" for m, _ in kept])
    G, b, whole = V @ V.T, V @ t, float(t @ t)
    d = np.diag(G)
    with np.errstate(all="ignore"):
        det = np.outer(d, d) - G * G
        ci = (b[:, None] * d[None, :] - b[None, :] * G) / det
        cj = (b[None, :] * d[:, None] - b[:, None] * G) / det
        ci = np.where(free[:, None], ci, 1.0)
        cj = np.where(free[None, :], cj, 1.0)
        left = (
            whole - 2 * (ci * b[:, None] + cj * b[None, :]) + ci**2 * d[:, None] + cj**2 * d[None, :] + 2 * ci * cj * G
        )
    left[np.tril_indices(len(kept))] = np.inf
    left[~np.isfinite(left) | (det <= 1e-9 * np.outer(d, d))] = np.inf
    near = np.argwhere(left <= 1e-6 * whole)
    near = sorted(near, key=lambda ij: _price(search, kept[ij[0]][0], kept[ij[1]][0]))
    for i, j in near[:60]:
        one, other = kept[i][0], kept[j][0]
        if set(one.changes) & set(other.changes):
            continue
        yield _both(
            search, one, other, 1 - float(ci[i, j]) if free[i] else 0.0, 1 - float(cj[i, j]) if free[j] else 0.0
        )


def chained(search: Search) -> Iterator[Candidate]:
    """Pairs of simple mutants one after another, those of one source line first."""
    simple = sorted(_distinct(search.kept), key=lambda k: k[0].cost)[:90]
    couples = [
        (a, b) for n, (a, _) in enumerate(simple) for b, _ in simple[n + 1 :] if not set(a.changes) & set(b.changes)
    ]
    couples.sort(key=lambda ab: _price(search, *ab))
    for one, other in couples:
        yield _both(search, one, other, 0.0, 0.0)


def _real(v: np.ndarray) -> np.ndarray:
    return np.concatenate([np.real(v), np.imag(v)]).astype(float) if np.iscomplexobj(v) else v.astype(float)


def _price(search: Search, one: Mutant, other: Mutant) -> float:
    return one.cost + other.cost + (0.0 if search.line(one) == search.line(other) else 0.7)


def _distinct(kept: list[tuple[Mutant, np.ndarray]]) -> list[tuple[Mutant, np.ndarray]]:
    """One mutant for each effect, the simplest."""
    found: dict[bytes, tuple[Mutant, np.ndarray]] = {}
    for mutant, vector in sorted(kept, key=lambda k: k[0].cost):
        scale = float(np.max(np.abs(vector)))
        found.setdefault(np.round(vector / scale, 4).tobytes() + f"{scale:.3g}".encode(), (mutant, vector))
    return list(found.values())[:1500]


def _both(search: Search, one: Mutant, other: Mutant, c: float, e: float) -> Candidate:
    def changes(mutant: Mutant, factor: float):
        for plain in (0.0, -1.0, 2.0, 0.5):
            if abs(factor - plain) < 2e-3:
                factor = plain
        return (mutant.graded(factor) if factor and mutant.graded is not None else mutant.changes), factor

    (first, c), (second, e) = changes(one, c), changes(other, e)

    def say(namer):
        a, right_a = one.say(namer, c)
        b, right_b = other.say(namer, e)
        return f"two at once: {a}; and {b}", "; ".join(r for r in (right_a, right_b) if r)

    cost = 1.0 + _price(search, one, other) + (c not in (0.0, -1.0, 2.0)) + (e not in (0.0, -1.0, 2.0))
    return Candidate(
        ("pair", one.key, other.key, c, e),
        cost,
        lambda p: p.tape.replay({**first, **second}, behind=one.behind or other.behind),
        say,
        search.line(one),
    )
