"""Properties of a right backward pass: linear, adjoint to the derivative, equal under jit and vmap, repeatable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.checking.differentiation import short
from jaxnet.checking.points import random_like
from jaxnet.checking.reference import Runs, in_float64, widened
from jaxnet.checking.rounding import Exact, largest, scale_of
from jaxnet.checking.subject import on_device
from jaxnet.program.evaluate import UNOPTIMISED

STRUCTURE = "structure and dtypes"


@dataclass(frozen=True)
class Property:
    """One property of a backward pass. `ok` is None where it could not be tested; `words` give the measurement."""

    name: str
    ok: bool | None
    words: str = ""


def properties_of(
    runs: Runs, values: Sequence, seed: Sequence, got: Sequence[np.ndarray], exact: Exact, smooth: bool = True
) -> list[Property]:
    """Tests every property at one point. `got` are the rule's gradients there.

    Where the point is not `smooth` for autodiff, forward mode may give another derivative: it is not asked.
    """
    asked: list[tuple[str, Callable[[], Property | None]]] = [
        ("2 runs", lambda: two_runs(runs, values, seed, got)),
        ("jit = eager", lambda: jit_is_eager(runs, values, seed, got, exact)),
        ("linear in the cotangent", lambda: linear(runs, values, seed, got, exact)),
        ("adjoint of the derivative", lambda: adjoint(runs, values, seed, got, exact) if smooth else None),
        ("vmap", lambda: mapped(runs, values, seed, exact)),
        ("each output by itself", lambda: outputs_apart(runs, values, seed, got, exact)),
    ]
    found = []
    for name, ask in asked:
        try:
            answer = ask()
        except Exception as error:
            answer = Property(name, False if name == "jit = eager" else None, f"raises {short(error)}")
        if answer is not None:
            found.append(answer)
    return found


def within(name: str, labels, got, other, allowed, words: str = "") -> Property:
    """Whether two lists of leaves agree within `allowed`; NaN agrees with nothing."""
    for label, a, b, limit in zip(labels, got, other, allowed, strict=True):
        bad = ~(np.abs(a - b) <= limit)
        if bad.any():
            if (strange := ~np.isfinite(a) & np.isfinite(b)).any():
                return Property(name, False, f"{label} is NaN or infinite in {int(strange.sum())} of {a.size} entries")
            with np.errstate(invalid="ignore"):
                size = float(np.nanmax(np.abs(a - b))) / (scale_of(b) or 1.0)
            return Property(name, False, f"{label} differs by {size:.1e}{words}")
    return Property(name, True)


def two_runs(runs: Runs, values, seed, got) -> Property:
    """The same inputs give the same bits twice; noise between two runs is reported, and is no error."""
    _, again = runs.run("rule", values, seed)
    noise = max(largest(again, got), default=0.0)
    if noise == 0:
        return Property("2 runs bitwise equal", True)
    return Property("2 runs differ", True, f"by up to {noise:.1e}: noise of the rule itself, not counted as an error")


def jit_is_eager(runs: Runs, values, seed, got, exact: Exact) -> Property | None:
    """The compiled and the eager rule give the same gradients."""
    if not runs.subject.transforms:
        return None
    _, eager = runs.rule(list(values), list(seed))
    return within("jit = eager", runs.labels(), [widened(g) for g in eager], got, [2 * a for a in exact.grads_allowed])


def linear(runs: Runs, values, seed, got, exact: Exact) -> Property | None:
    """backward(2 d − 3 d′) = 2 backward(d) − 3 backward(d′)."""
    if runs.subject.seed_one or runs.subject.declared is not None:
        return None
    other = random_like(seed, 77)
    both = [on_device(2 * np.asarray(a) - 3 * np.asarray(b), a.dtype) for a, b in zip(seed, other, strict=True)]
    _, second = runs.run("rule", values, other)
    _, together = runs.run("rule", values, both)
    sums = [2 * a - 3 * b for a, b in zip(got, second, strict=True)]
    unit = max(float(jnp.finfo(s.dtype).eps) for s in seed)
    allowed = [
        8 * a + 8 * unit * max(scale_of(s), scale_of(b))
        for a, s, b in zip(exact.grads_allowed, got, second, strict=True)
    ]
    return within("linear in the cotangent", runs.labels(), together, sums, allowed, " from the sum of its parts")


def adjoint(runs: Runs, values, seed, got, exact: Exact) -> Property | None:
    """⟨d_out, J v⟩ = ⟨backward(d_out), v⟩ for a random v, J v by forward mode in float64."""
    subject = runs.subject
    if subject.tangents or subject.mode == "differences" or subject.declared is not None:
        return None
    direction = random_like(values, 78)
    try:
        _, tangents = in_float64(lambda v, d: runs.run("pushed", v, d), tuple(values), direction)
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        return Property("adjoint of the derivative", None, "a custom_vjp inside has no forward mode")
    # Between real and complex numbers the two products are equal in their real parts.
    left = sum((widened(s) * t).sum().real for s, t in zip(seed, tangents, strict=True))
    right = sum((g * widened(v)).sum().real for g, v in zip(got, direction, strict=True))
    allowed = sum(a * np.sqrt(g.size) * 4 for a, g in zip(exact.grads_allowed, got, strict=True))
    if abs(left - right) <= allowed:
        return Property("⟨d_out, J v⟩ = ⟨backward(d_out), v⟩", True)
    return Property("⟨d_out, J v⟩ = ⟨backward(d_out), v⟩", False, f"{left:.6g} against {right:.6g}")


def mapped(runs: Runs, values, seed, exact: Exact) -> Property | None:
    """vmap over two sets of inputs gives the same as each set by itself."""
    if not runs.subject.transforms:
        return None

    def double(leaves, other):
        return [on_device(np.stack([a, b])) for a, b in zip(leaves, other, strict=True)]

    second = random_like(seed, 79) if not runs.subject.seed_one else seed
    both = jax.jit(jax.vmap(lambda v, s: runs.rule(v, s)), compiler_options=UNOPTIMISED)
    _, two = both(double(values, values), double(seed, second))
    for i, s in enumerate((seed, second)):
        _, one = runs.run("rule", values, s)
        allowed = [4 * a + 1e-300 for a in exact.grads_allowed]
        answer = within("vmap", runs.labels(), [widened(t)[i] for t in two], one, allowed, " from the unmapped rule")
        if not answer.ok:
            return answer
    return Property("vmap", True)


def outputs_apart(runs: Runs, values, seed, got, exact: Exact) -> Property | None:
    """The gradients of single outputs (the others have symbolic zeros) add up to the gradient of all outputs."""
    subject = runs.subject
    if subject.custom is None or subject.tangents or subject.declared is not None or len(runs.outs.where) < 2:
        return None
    total = [np.zeros_like(g) for g in got]
    for i, s in enumerate(seed):

        def call(v, i=i):
            return runs.flat_out(subject.plain(*runs.args(v)))[i]  # type: ignore[misc]  # a custom rule has it

        part = jax.vjp(call, list(values))[1](s)[0]
        total = [t + widened(p) for t, p in zip(total, part, strict=True)]
    allowed = [4 * a for a in exact.grads_allowed]
    return within("each output by itself", runs.labels(), total, got, allowed, " when the other outputs are not used")
