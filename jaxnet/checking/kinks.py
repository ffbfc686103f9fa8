"""Kinks: entries that differ because a branch (relu, max, sort) flips within rounding of this very point."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxnet.checking.host_functions import OnHost
from jaxnet.checking.points import generator
from jaxnet.checking.reference import Runs, in_float64, widened
from jaxnet.checking.rounding import Exact
from jaxnet.checking.subject import on_device

DRAWS, FIRST = 48, 9  # after the first ones, most entries at a kink have moved
TINY = 1e-9


def shaken(values: Sequence, unit: float, seed: int) -> tuple:
    """The values moved by some units of rounding of their own and of their leaf's size: zeros move as well."""
    fresh = []
    for i, value in enumerate(values):
        host, rng = widened(value), generator(seed, 404, i)
        size = np.abs(host) + (np.sqrt(np.mean(np.abs(host) ** 2)) or 1.0)
        fresh.append(on_device(host + unit * size * rng.uniform(-1, 1, host.shape)))
    return tuple(fresh)


def between_sides(got: np.ndarray, exact: np.ndarray, allowed: float, left: np.ndarray, right: np.ndarray) -> bool:
    """Whether each wrong entry stands at a kink, between the slopes on its two sides."""
    low, high = np.minimum(left, right), np.maximum(left, right)
    # At a tie finite differences of several steps disagree, and `allowed` is large: the sides themselves are sure.
    slack = np.minimum(allowed, (high - low) / 8) + 1e-4 * max(float(np.abs(exact).max(initial=0.0)), 1e-300)
    off = ~(np.abs(got - exact) <= allowed)
    return bool(np.all(((high - low > 4 * slack) & (got >= low - slack) & (got <= high + slack))[off]))


def kinked(
    runs: Runs, values: Sequence, seed: Sequence, got: Sequence[np.ndarray], exact: Exact, wrong: Sequence[int],
    unit: float, ties: bool = False,
) -> set[int]:  # fmt: skip
    """Which of the `wrong` leaves differ only by branches that flip within rounding.

    The reference in float64 at shaken inputs must take values on both sides of the rule's, entry by entry; and
    the sum of a leaf, where no flip changes it (a maximum that goes to one of several), must be the reference's.
    At points with exact ties (`ties`), many branches are open at once and their combinations are not all met: there an
    entry that the reference itself moves at is granted.
    """
    if wrong and isinstance(runs.subject.primal, OnHost):
        sides = in_float64(runs.sides, tuple(values), tuple(seed))
        return {i for i in wrong if between_sides(got[i], exact.grads[i], exact.grads_allowed[i], *sides[i])}
    if not wrong or runs.subject.mode == "differences" or any(np.iscomplexobj(got[i]) for i in wrong):
        return set()
    low = {i: exact.grads[i].copy() for i in wrong}
    high = {i: exact.grads[i].copy() for i in wrong}
    tied = {i: np.zeros(exact.grads[i].shape, bool) for i in wrong}
    sums: dict[int, list[float]] = {i: [float(exact.grads[i].sum())] for i in wrong}
    limits = {i: max(exact.grads_allowed[i], 1e-300) for i in wrong}
    off = {i: ~(np.abs(got[i] - exact.grads[i]) <= limits[i]) for i in wrong}

    def moves(i: int) -> np.ndarray:
        """The entries that move further than smooth dependence on the inputs takes them.

        Smoothly, 8 units move an entry up to 16 times as far as one unit, at most half of the limit. A flip moves it
        as far as the branches differ.
        """
        return (high[i] - low[i] > 12 * limits[i]) | tied[i]

    for draw in range(DRAWS):
        if draw == FIRST and all(np.mean(moves(i)[off[i]]) < 0.5 for i in wrong):
            return set()
        exact_ties = draw % 3 == 2  # these flip however small the step, and nothing else does
        step = min(unit, TINY) if exact_ties else unit * 8 ** (draw % 3)
        moved = shaken(values, step, draw)
        _, grads = in_float64(lambda v, s: runs.run("expected", v, s), moved, tuple(seed))
        for i in wrong:
            low[i], high[i] = np.fmin(low[i], grads[i]), np.fmax(high[i], grads[i])
            sums[i].append(float(grads[i].sum()))
            if exact_ties:
                tied[i] |= np.abs(grads[i] - exact.grads[i]) > 2 * exact.grads_allowed[i]
    granted = set()
    for i in wrong:
        limit = limits[i]
        slack = limit + 0.02 * (high[i] - low[i])
        between = (got[i] >= low[i] - slack) & (got[i] <= high[i] + slack)
        fits = moves(i) & (between | ties)
        spread = max(sums[i]) - min(sums[i])
        whole = float(got[i].sum())
        inside = (
            min(sums[i]) - spread - limit * got[i].size ** 0.5
            <= whole
            <= max(sums[i]) + spread + limit * got[i].size ** 0.5
        )
        if fits[off[i]].all() and (inside or (ties and spread > limit * got[i].size)):
            granted.add(i)
    return granted
