"""Which mistakes could a test point not have seen? The mutants that give there what the reference gives."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.checking.diagnose import numeric, operators, points, relatives, strangers
from jaxnet.checking.diagnose.points import Point
from jaxnet.checking.diagnose.problem import Problem
from jaxnet.checking.diagnose.program import Program, cotangent_leaves, trace
from jaxnet.checking.diagnose.scene import Scene
from jaxnet.checking.diagnose.search import NO_VALUE
from jaxnet.checking.diagnose.words import Namer
from jaxnet.checking.subject import on_device

SEEN = 1e-3
"""Relative difference in a leaf from which on a mistake would be seen beyond doubt."""
HIDDEN = 1e-5
"""Relative difference in every leaf up to which it would not be seen in float32."""


@dataclass(frozen=True)
class Blind:
    """A mistake that the test point cannot tell from the reference, its line, and what would let it be seen."""

    mistake: str
    where: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.mistake} ({self.remedy})"


def adequacy(primal: Callable[..., Any], args: tuple, cotangent: Any, *, budget: float = 5.0) -> list[Blind]:
    """The small mistakes in the backward pass of `primal` that this very point could not have shown.

    Args:
        primal: the function, differentiable by `jax.vjp`.
        args, cotangent: the test point.
        budget: seconds; what is not tried by then is not reported.

    Raises:
        ValueError: where no argument is a floating-point array.
    """
    deadline = time.perf_counter() + budget
    problem = Problem(primal, lambda a, ct: (), args, cotangent, None, None, (), 1e-6)
    program = trace(primal, args)
    here = _point(program, args, cotangent)
    elsewhere = {remedy: _point(program, *moved) for remedy, moved in _generic(program, args, cotangent)}
    found: dict[str, Blind] = {}
    for blind in _single(args, program):
        found.setdefault(blind.mistake, blind)
    namer = Namer(here.tape)
    for predict, say, line in _mistakes(problem, program, here):
        if time.perf_counter() > deadline:
            break
        if _changes(predict, here, HIDDEN) is not False:
            continue
        for remedy, point in elsewhere.items():
            if _changes(predict, point, SEEN):
                mistake = say(namer)[0]
                found.setdefault(mistake, Blind(mistake, str(line), remedy))
                break
    return list(found.values())


def grouped(blind: Sequence[Blind], shown: int = 3) -> tuple[str, ...]:
    """The mistakes that one remedy would show together, the first few of them by name."""
    by_remedy: dict[str, list[str]] = {}
    for each in blind:
        by_remedy.setdefault(each.remedy, []).append(each.mistake)

    def said(mistakes: list[str]) -> str:
        more = f" and {len(mistakes) - shown} more" if len(mistakes) > shown else ""
        return "; ".join(mistakes[:shown]) + more

    return tuple(f"{said(mistakes)} ({remedy})" for remedy, mistakes in by_remedy.items())


def _point(program: Program, args: tuple, cotangent: Any) -> Point:
    tape = program.at(args, cotangent)
    ref = {path: np.asarray(tape.values[n]) for path, n in tape.leaves.items()}
    return Point(args, cotangent, tape, ref, ref)


def _mistakes(problem: Problem, program: Program, here: Point) -> Iterator[tuple[Callable, Callable, Any]]:
    scene = Scene(here.tape)
    for mutant in chain(operators.structural(scene), strangers.passed(scene)):
        line = here.tape.ops[scene.first[mutant.site]].line
        yield (lambda p, m=mutant: m.gives(p.tape)), (lambda namer, m=mutant: m.say(namer, 0.0)), line
    ones = {n: np.ones_like(here.tape.values[n]) for n in here.tape.cotangents}
    yield (
        (lambda p: p.tape.replay({}, dict(zip(p.tape.cotangents, ones.values(), strict=True)))),
        (lambda namer: ("the cotangent is ignored: as if it were 1", "")),
        "",
    )
    for candidate in relatives.relatives(problem, here, program):
        yield candidate.predict, candidate.say, candidate.line


def _changes(predict: Callable[[Point], Mapping[str, Any]], point: Point, limit: float) -> bool | None:
    """Whether a mistake moves some leaf by more than the limit; None where it cannot be made there."""
    try:
        out = predict(point)
    except NO_VALUE:
        return None
    for path, value in out.items():
        ref = point.ref[path]
        scale = float(np.max(np.abs(ref[np.isfinite(ref)]), initial=0.0)) or 1.0
        if points.distance(value, ref, scale) > limit:
            return True
    return False


def _generic(program: Program, args: tuple, cotangent: Any) -> Iterator[tuple[str, tuple[tuple, Any]]]:
    """The point with one leaf after another made generic, then all, then all made small; and the advice."""
    rng = np.random.default_rng(1)

    def stirred(x, scale=1.0):
        x = np.asarray(x.astype(np.float32) if jnp.dtype(x.dtype).itemsize < 4 else x)
        noise = rng.standard_normal(x.shape)
        return on_device((x * np.exp(0.4 * noise) if np.any(x) else 0.4 * noise) * scale, x.dtype)

    leaves, tree = jax.tree.flatten(args)
    _, ct_tree = jax.tree.flatten(cotangent, is_leaf=lambda v: v is None)
    random_cts = [stirred(ct) if numeric.is_float(ct) else ct for ct in cotangent_leaves(cotangent)]
    yield "take a random cotangent", (args, jax.tree.unflatten(ct_tree, random_cts))
    mixed = [stirred(leaf) if numeric.is_float(leaf) else leaf for leaf in leaves]
    for k, leaf in enumerate(leaves):
        if numeric.is_float(leaf):
            what = program.labels[k]
            state = (
                "zero everywhere"
                if not np.any(leaf)
                else "the same everywhere"
                if np.ptp(np.abs(leaf)) == 0
                else "special"
            )
            yield (
                f"draw {what} at random: it is {state} here",
                (jax.tree.unflatten(tree, [*leaves[:k], mixed[k], *leaves[k + 1 :]]), cotangent),
            )
    yield (
        "draw all inputs and the cotangent at random",
        (jax.tree.unflatten(tree, mixed), jax.tree.unflatten(ct_tree, random_cts)),
    )
    small = [stirred(leaf, 1e-2) if numeric.is_float(leaf) else leaf for leaf in leaves]
    yield (
        "raise ε or take smaller inputs: what it is added to is large here",
        (jax.tree.unflatten(tree, small), jax.tree.unflatten(ct_tree, random_cts)),
    )


def _single(args: tuple, program: Program) -> Iterator[Blind]:
    """Axes of one entry: whatever goes wrong in a sum over them cannot be seen."""
    for label, leaf in zip(program.labels, jax.tree.leaves(args), strict=True):
        for axis, n in enumerate(np.shape(leaf)):
            if n == 1 and np.ndim(leaf) > 1:
                yield Blind(
                    f"sum for mean, first or last entry only, over axis {axis} of {label}",
                    "",
                    f"take more than 1 along axis {axis} of {label}",
                )
