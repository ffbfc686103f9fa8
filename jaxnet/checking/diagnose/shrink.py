"""The same problem made shorter: fewer steps where the program is a long scan, so that mutants are cheap."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnet.checking.diagnose import numeric, points
from jaxnet.checking.diagnose.points import Measure, Point
from jaxnet.checking.diagnose.problem import Problem
from jaxnet.checking.diagnose.program import Program, trace

STEPS = 5
LONG = 1500
"""Operations beyond which a program is made shorter where that can be done."""


class Smaller(NamedTuple):
    """The shorter problem's program and point."""

    program: Program
    point: Point


def shrink(problem: Problem, program: Program, whole: Point, deadline: float) -> Smaller | None:
    """The problem with its scanned axes cut to a few steps, where rule and primal take that and it stays wrong."""
    if sum(whole.tape.live) < LONG or time.perf_counter() > deadline:
        return None
    lengths = {op.params["length"] for op in whole.tape.ops if op.name == "step"}
    lengths = {n for n in lengths if n > STEPS}
    if not lengths:
        return None

    def cut(leaf: Any) -> Any:
        shape = np.shape(leaf)
        return leaf[tuple(slice(0, STEPS) if n in lengths else slice(None) for n in shape)] if shape else leaf

    args = jax.tree.map(cut, problem.args)
    try:
        shapes = jax.tree.leaves(jax.eval_shape(problem.primal, *args))
        leaves, tree = jax.tree.flatten(problem.cotangent, is_leaf=lambda v: v is None)
        cts = [cut(ct) if numeric.is_float(ct) else ct for ct in leaves]
        if any(numeric.is_float(ct) and np.shape(ct) != s.shape for ct, s in zip(cts, shapes, strict=True)):
            return None
        small = trace(problem.primal, args)
        point = points.at(problem, small, args, jax.tree.unflatten(tree, cts))
    except Exception:
        return None
    measure = Measure(point, problem.wrong, problem.tolerance)
    if any(measure.error[path] <= 10 * problem.tolerance for path in measure.wrong):
        return None
    return Smaller(small, point)
