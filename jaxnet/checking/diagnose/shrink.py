"""The same problem made shorter: fewer steps where the program is a long scan, so that mutants are cheap."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnet.checking.diagnose import numeric, points
from jaxnet.checking.diagnose.points import Measure, Point
from jaxnet.checking.diagnose.problem import Problem
from jaxnet.checking.diagnose.program import Program, cotangent_leaves, trace

STEPS = 5
LONG = 1500
"""Operations beyond which a program is made shorter where that can be done."""


class Smaller(NamedTuple):
    """The shorter problem's program and point, and how inputs of the whole one are cut to it."""

    program: Program
    point: Point
    cut: Callable[[tuple, Any], tuple[tuple, Any]]


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

    def cut_both(args: tuple, cotangent: Any) -> tuple[tuple, Any]:
        shorter = jax.tree.map(lambda ct: cut(ct) if numeric.is_float(ct) else ct, cotangent)
        return jax.tree.map(cut, args), shorter

    args, cotangent = cut_both(problem.args, problem.cotangent)
    try:
        shapes = jax.tree.leaves(jax.eval_shape(problem.primal, *args))
        cts = cotangent_leaves(cotangent)
        if any(numeric.is_float(ct) and np.shape(ct) != s.shape for ct, s in zip(cts, shapes, strict=True)):
            return None
        small = trace(problem.primal, args)
        point = points.at(problem, small, args, cotangent)
    except Exception:  # a primal may refuse the smaller shape in any way: then it is not shrunk
        return None
    measure = Measure(point, problem.wrong, problem.tolerance)
    if any(measure.error[path] <= 10 * problem.tolerance for path in measure.wrong):
        return None
    return Smaller(small, point, cut_both)
