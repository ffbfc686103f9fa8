"""The whole of a diagnosis: take apart, shrink, search, confirm, say."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from jaxnet.checking.diagnose import points, shrink
from jaxnet.checking.diagnose.confirm import Confirm
from jaxnet.checking.diagnose.parts import pattern
from jaxnet.checking.diagnose.points import Measure
from jaxnet.checking.diagnose.problem import Diagnosis, Problem
from jaxnet.checking.diagnose.program import trace
from jaxnet.checking.diagnose.recorder import TooLongError
from jaxnet.checking.diagnose.search import Search
from jaxnet.checking.diagnose.words import Namer


def diagnose(problem: Problem, *, budget: float = 10.0) -> Diagnosis:
    """Find what small mistake in the reference's backward pass gives what the rule gave.

    Args:
        problem: the primal, the rule, the point at which it was found wrong, and how to draw others.
        budget: seconds to spend.

    Raises:
        ValueError: where the primal cannot be differentiated at this point.
    """
    with np.errstate(all="ignore"):  # a mutant that divides by zero explains nothing, and says nothing
        return _diagnosed(problem, budget)


def _diagnosed(problem: Problem, budget: float) -> Diagnosis:
    start = time.perf_counter()
    deadline = start + 0.8 * budget
    try:
        program = trace(problem.primal, problem.args)
        whole = points.at(problem, program, problem.args, problem.cotangent)
    except TooLongError as error:
        return Diagnosis(None, (), 0, time.perf_counter() - start, str(error))
    small = shrink.shrink(problem, program, whole, start + 0.3 * budget)
    search = (
        Search(problem, small.program, small.point, deadline) if small else Search(problem, program, whole, deadline)
    )
    search.run()
    namer = Namer(search.point.tape)
    confirm = Confirm(problem, program, search, small, start + budget)
    explanations = confirm.explanations(namer)
    best = explanations[0] if explanations else None
    described = (
        ""
        if best is not None and best.exact and set(best.leaves) == set(search.measure.wrong)
        else known(search.measure, namer)
    )
    return Diagnosis(best, tuple(explanations[1:6]), search.tried, time.perf_counter() - start, described)


def known(measure: Measure, namer: Namer) -> str:
    """What can be said where nothing explains it: angle, ratio, worst entry with both values, pattern."""
    lines = []
    for path in measure.wrong:
        ref, got = measure.point.ref[path], measure.point.got[path]
        name = f"∂{namer.leaf(path)}"
        bad = ~np.isfinite(got)
        if bad.any():
            where = pattern_words(bad)
            lines.append(
                f"{name}: {where} not finite" + (" (nor in the reference)" if not np.isfinite(ref).all() else "")
            )
            continue
        a, b = np.ravel(ref), np.ravel(got)
        norms = float(np.linalg.norm(a) * np.linalg.norm(b))
        cosine = float(np.vdot(a, b).real) / norms if norms else 0.0
        ratio = float(np.linalg.norm(b) / np.linalg.norm(a)) if np.any(a) else float("inf")
        off = np.abs(got - ref)
        index = np.unravel_index(int(np.argmax(off)), off.shape) if off.ndim else ()
        words = pattern_words(off > measure.allowed[path] * measure.scale[path])
        lines.append(
            f"{name}: cosine {cosine:.4f}, length {ratio:.4g} times the right one; worst at {[int(i) for i in index]}: "
            f"got {got[index]:.6g}, expected {ref[index]:.6g}; {words} off"
        )
    return "\n".join(lines)


def pattern_words(off: Any) -> str:
    """Where entries are wrong."""
    return "every entry is" if np.all(off) else pattern(off)[0] if np.any(off) else "none is"
