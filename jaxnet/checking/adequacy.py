"""Which mistakes could a test point not have shown? Planted ones that change no gradient there.

Small mistakes are planted into autodiff's backward program: a term or a factor left out, a matrix that is not
transposed, an ε left out, a cotangent of ones. A mistake that changes nothing at the point, but something at random
inputs, is told with the input to draw at random.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.checking.differentiation import differentiated
from jaxnet.checking.execution import Execution, Inputs
from jaxnet.checking.planting import MISSING, Names
from jaxnet.checking.subject import Leaves, Subject, leaves_of, on_device
from jaxnet.program.numpy_evaluation import NumpyEvaluation

SEEN = 1e-3
"""Relative difference in a leaf from which on a mistake would be seen beyond doubt."""
HIDDEN = 1e-5
"""Relative difference in every leaf up to which it would not be seen in float32."""


@dataclass(frozen=True)
class Blind:
    """A mistake that the test point cannot tell from the reference, and inputs that would show it."""

    mistake: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.mistake} ({self.remedy})"


def adequacy(subject: Subject, args: tuple, d_out: Any, *, budget: float = 5.0) -> list[Blind]:
    """The small mistakes in the backward pass of a primal that this very point could not have shown.

    Args:
        subject: its primal is differentiable by `jax.vjp`.
        args, d_out: the test point.
        budget: seconds; mistakes not tried by then are not reported.

    Raises:
        ValueError: where no argument is a floating-point array.
    """
    deadline = time.process_time() + budget
    subject = replace(subject, custom=None, declared=None)
    args, d_out = (jax.tree.map(widened, tree, is_leaf=is_none) for tree in (args, d_out))
    leaves = leaves_of(args, subject.fixed)
    if not leaves.where:
        raise ValueError("the primal takes no floating-point input: there is nothing to differentiate")
    labels = [subject.label(path) for path in leaves.paths]
    moved = list(generic(labels, leaves, d_out))
    points = [Inputs(subject, *point) for point in ((args, d_out), *(point for _, point in moved))]
    graph = points[0].trace(differentiated(subject.primal, subject.fixed))
    execution = Execution.of(graph, [point.flat for point in points])
    names = Names(execution, subject, points)
    found = {blind.mistake: blind for blind in single(labels, leaves)}
    with np.errstate(all="ignore"):
        for number, change, words in slips(execution, names):
            if time.process_time() > deadline:
                break
            if moves(execution, len(labels), 0, number, change) > HIDDEN:
                continue
            for k, (remedy, _) in enumerate(moved, 1):
                if moves(execution, len(labels), k, number, change) > SEEN:
                    mistake = names.said(words, number)
                    found.setdefault(mistake, Blind(mistake, remedy))
                    break
    return list(found.values())


def slips(execution: Execution, names: Names) -> Iterator[tuple[int, Callable, str]]:
    """The mistakes of a backward pass: number of the value that is another, function of all values, words."""
    for number in names.seeds:
        yield number, lambda values, n=number: np.ones_like(values[n]), "the cotangent is ignored: as if it were 1"
    for operation in execution.graph.everything:
        if operation.kind == "operation" and len(operation.outputs) == 1:
            number, is_term = operation.outputs[0], MISSING.get(operation.name) == "term"
            for lost, change, words in names.slips(operation):
                if "ε" in words or (number in names.flowing and (is_term or lost not in names.flowing)):
                    yield number, change, words


def moves(execution: Execution, count: int, point: int, number: int, change: Callable) -> float:
    """How far a mistake moves the gradients, relative to the largest entry of each; 0 where it has no value."""
    try:
        evaluation = NumpyEvaluation(execution.values[point], {number: change})
        outs = evaluation.run(execution.graph, execution.flat[point])
    except (ValueError, TypeError, ZeroDivisionError):
        return 0.0
    off = [
        np.abs(np.asarray(out) - right) / (float(np.max(np.abs(right), initial=0.0)) or 1.0)
        for out, right in zip(outs[-count:], execution.outputs[point][-count:], strict=True)
    ]
    return float(max(np.max(np.nan_to_num(each, nan=np.inf), initial=0.0) for each in off))


def grouped(blind: Sequence[Blind], shown: int = 3) -> tuple[str, ...]:
    """The mistakes that one remedy would show together, the first few of them by name."""
    by_remedy: dict[str, list[str]] = {}
    for each in blind:
        by_remedy.setdefault(each.remedy, []).append(each.mistake)

    def said(mistakes: list[str]) -> str:
        more = f" and {len(mistakes) - shown} more" if len(mistakes) > shown else ""
        return "; ".join(mistakes[:shown]) + more

    return tuple(f"{said(mistakes)} ({remedy})" for remedy, mistakes in by_remedy.items())


def is_none(leaf: Any) -> bool:
    """Whether a leaf is None."""
    return leaf is None


def is_float(leaf: Any) -> bool:
    """Whether a leaf is a float or complex array."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def widened(leaf: Any) -> Any:
    """A leaf in half precision as float32."""
    return leaf.astype(jnp.float32) if is_float(leaf) and jnp.dtype(leaf.dtype).itemsize < 4 else leaf


def generic(labels: Sequence[str], leaves: Leaves, d_out: Any) -> Iterator[tuple[str, tuple[tuple, Any]]]:
    """The point with one leaf after another made generic, then all, then all made small; and the advice."""
    rng = np.random.default_rng(1)

    def stirred(x: Any, scale: float = 1.0) -> Any:
        x = np.asarray(x)
        noise = rng.standard_normal(x.shape)
        return on_device(np.where(x == 0, 0.4 * noise, x * np.exp(0.4 * noise)) * scale, x.dtype)

    seeds = jax.tree.map(lambda ct: stirred(ct) if is_float(ct) else ct, d_out, is_leaf=is_none)
    values = list(leaves.values)
    yield "take a random cotangent", (leaves.tree(values), seeds)
    mixed = [stirred(value) for value in values]
    for k, (name, value) in enumerate(zip(labels, values, strict=True)):
        same = np.ptp(np.abs(value)) == 0
        state = "zero everywhere" if not np.any(value) else "the same everywhere" if same else "special"
        one = leaves.tree([*values[:k], mixed[k], *values[k + 1 :]])
        yield f"draw {name} at random: it is {state} here", (one, d_out)
    yield "draw all inputs and the cotangent at random", (leaves.tree(mixed), seeds)
    small = [stirred(value, 1e-2) for value in values]
    yield "raise ε or take smaller inputs: the term beside it is large here", (leaves.tree(small), seeds)


def single(labels: Sequence[str], leaves: Leaves) -> Iterator[Blind]:
    """Axes of one entry: whatever goes wrong in a sum over them cannot be seen."""
    for name, leaf in zip(labels, leaves.values, strict=True):
        for axis, n in enumerate(np.shape(leaf)):
            if n == 1 and np.ndim(leaf) > 1:
                mistake = f"sum for mean, first or last entry only, over axis {axis} of {name}"
                yield Blind(mistake, f"take more than 1 along axis {axis} of {name}")
