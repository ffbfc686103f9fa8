"""How far a correct rule may be from the exact gradient at a point: measured there, never guessed.

Three measures of rounding, each for the largest entry of a leaf:
- own: |reference in this dtype − reference in float64|, the reference's own error;
- spread: |reference in float64 at inputs moved by one rounding of this dtype − at the inputs|. A backward-stable rule
  is the exact one for inputs so moved, whatever order it computes in; this sees where the problem is badly conditioned;
- a floor of 4 + √N/8 units in the last place of the leaf's largest entry, N the size of the largest array: a sum of N
  terms rounds like a random walk of N steps (Higham, "Accuracy and Stability of Numerical Algorithms", 4.2), most of
  them against partial sums below the total, and a reference may round to zero error by luck. In half precision, where
  sums are taken in float32, the floor stays at 4.

Allowed is twice the larger of own and spread, plus the floor. Where a while loop of the primal stops at a tolerance,
the derivative is that of an iteration cut short: how far it moves when the loop goes on for as many turns again belongs
to the reference's own error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxnet.checking.differentiation import short
from jaxnet.checking.points import generator
from jaxnet.checking.reference import Runs, in_float64, widened
from jaxnet.checking.subject import CannotCheckError, on_device

DRAWS = 3
SMALLEST_STEP = 1e-10  # below, the rounding of float64 itself is seen
CONVERGED = 1e-4  # relative: an output that moves further is not that of an iteration that has converged
SOME = 16  # units of rounding that a backward pass may lose whose primal autodiff cannot follow
SUSPECT = 64  # times a step: an entry that moves further is searched for ties


def unit_of(dtype) -> float:
    """The unit in the last place of 1 in a float or complex dtype."""
    return float(jnp.finfo(dtype).eps)


def coarsest(arrays: Sequence) -> float:
    """The largest unit among arrays."""
    return max((unit_of(a.dtype) for a in arrays), default=unit_of(jnp.float32))


@dataclass(frozen=True)
class Exact:
    """The reference at one point: outputs and gradients in float64, and the absolute error allowed in each leaf."""

    out: list[np.ndarray]
    grads: list[np.ndarray]
    out_allowed: list[float]
    grads_allowed: list[float]


def moved(values: Sequence, unit: float, seed: int) -> tuple:
    """The values with every entry moved by up to one unit in the last place."""
    fresh = []
    for i, value in enumerate(values):
        host = widened(value)
        fresh.append(on_device(host * (1 + unit * generator(seed, 303, i).uniform(-1, 1, host.shape))))
    return tuple(fresh)


def exact_at(runs: Runs, values: Sequence, seed: Sequence, unit: float, still: bool = False) -> Exact:
    """The reference in float64 at a point, and the error that rounding at `unit` allows.

    `values` and `seed` may be in a finer dtype than `unit` says (a rule that is run in float64 but casts inside).
    With `still` the inputs are not moved: at ties that would break them.
    Raises `CannotCheckError` where the reference does not run in float64.
    """
    try:
        out, grads = in_float64(lambda v, s: runs.run("expected", v, s), tuple(values), tuple(seed))
    except CannotCheckError:
        raise
    except Exception as error:  # somebody else's function may raise anything
        raise CannotCheckError(f"the reference must run in float64 too, where it raises {short(error)}") from error
    own_out, own = [0.0] * len(out), [0.0] * len(grads)
    spread_out, spread = [0.0] * len(out), [0.0] * len(grads)
    by_differences = runs.subject.mode == "differences" and runs.subject.declared is None
    if coarsest([*values, *seed]) > unit_of(jnp.float64):
        near_out, near = runs.run("outputs" if by_differences else "expected", values, seed)
        own_out = largest(near_out, out)
        # Differences in the user's own dtype tell nothing of a backward pass's rounding there.
        own = [SOME * unit * scale_of(grad) for grad in grads] if by_differences else largest(near, grads)
    if runs.iterates:
        cut = cut_short(runs, tuple(values), tuple(seed), Near(out, grads))
        own_out, own = (
            [max(a, b) for a, b in zip(*pair, strict=True)] for pair in zip((own_out, own), cut, strict=True)
        )
    if by_differences:
        spread = [max(1e-9, 4 * min(change for _, change in runs.curve))] * len(grads)
    elif not still:
        spread_out, spread = spreads(runs, tuple(values), tuple(seed), unit, Near(out, grads))
    size = max(array.size for array in [*out, *grads])
    floor = unit * (4 + (np.sqrt(size) / 8 if unit < 1e-4 else 0))
    whole = max((scale_of(g) for g in grads), default=0.0)
    whole = max(whole, *(scale_of(widened(s)) for s in seed))
    allowed = [bound(exact, a, b, floor, whole) for exact, a, b in zip(grads, own, spread, strict=True)]
    whole_out = max(scale_of(o) for o in out)
    out_allowed = [bound(exact, a, b, floor, whole_out) for exact, a, b in zip(out, own_out, spread_out, strict=True)]
    return Exact(out, grads, out_allowed, allowed)


class Near(NamedTuple):
    """Outputs and gradients of the reference in float64."""

    out: list[np.ndarray]
    grads: list[np.ndarray]


def cut_short(runs: Runs, values: tuple, seed: tuple, at: Near) -> tuple[list[float], list[float]]:
    """How far outputs and gradients move when the primal's loops run on; nothing where they have not converged."""
    nothing = [0.0] * len(at.out), [0.0] * len(at.grads)
    try:
        further = Near(*in_float64(lambda v, s: runs.run("continued", v, s), values, seed))
    except Exception:  # a loop that counts may leave its arrays, a rule inside may not be differentiated
        return nothing
    outs, grads = largest(further.out, at.out), largest(further.grads, at.grads)
    converged = all(d <= CONVERGED * scale_of(o) for d, o in zip(outs, at.out, strict=True))
    return (outs, grads) if converged else nothing


def spreads(runs: Runs, values: tuple, seed: tuple, unit: float, at: Near) -> tuple[np.ndarray, np.ndarray]:
    """The largest difference in each output and gradient when the inputs are moved by a rounding.

    The median of some draws: at a kink a draw may fall on the other side of it, which is no measure of rounding. At
    exact ties every draw does: entries that move as far for a thousandth of the step are left out.
    """
    step = max(unit, SMALLEST_STEP)

    def moved_by(size: float, draw: int) -> Near:
        return Near(*in_float64(partial(moved_reference, runs, size, draw), values, seed))

    rows = []
    for draw in range(DRAWS):
        far = moved_by(step, draw)
        if any(d > SUSPECT * step * scale_of(e) for d, e in zip(largest(far.grads, at.grads), at.grads, strict=True)):
            near = moved_by(step / 1000, draw)
            far = Near(*(list(map(smooth, *arrays)) for arrays in zip(far, near, at, strict=True)))
        rows.append((largest(far.out, at.out), largest(far.grads, at.grads)))
    out, grads = (np.median([row[i] for row in rows], axis=0) * (unit / step) for i in (0, 1))
    return out, grads


def smooth(far: np.ndarray, near: np.ndarray, at: np.ndarray) -> np.ndarray:
    """`far`, with the value of `at` in entries that move as far for a thousandth of the step."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where(np.abs(near - at) > 0.1 * np.abs(far - at), at, far)


def moved_reference(runs: Runs, unit: float, draw: int, values: Sequence, seed: Sequence):
    """The reference with inputs and cotangent moved by a rounding."""
    return runs.run("expected", moved(values, unit, draw), moved(seed, unit, draw + 1000))


def bound(exact: np.ndarray, own: float, spread: float, floor: float, whole: float) -> float:
    """The error allowed in one leaf. A leaf that is zero but for rounding may have the rounding of the largest leaf."""
    scale, measured = scale_of(exact), float(np.nan_to_num(max(own, spread)))
    if scale <= 64 * measured or scale < floor * whole:
        return 16 * measured + 2 * floor * whole
    return 2 * measured + floor * scale


def scale_of(array: np.ndarray) -> float:
    """The largest finite entry."""
    sizes = np.abs(array)
    return float(np.max(sizes, where=np.isfinite(sizes), initial=0.0))


def largest(arrays: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> list[float]:
    """The largest difference in each leaf; entries that are finite in neither count for nothing."""
    found = []
    for a, b in zip(arrays, others, strict=True):
        with np.errstate(invalid="ignore", over="ignore"):
            difference = np.abs(a - b)
        found.append(float(np.max(difference, where=np.isfinite(difference), initial=0.0)))
    return found
