"""A point at which the rule and the reference are compared, and how near two gradients are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxnet.checking.diagnose import numeric
from jaxnet.checking.diagnose.problem import Problem
from jaxnet.checking.diagnose.program import Program, widened
from jaxnet.checking.diagnose.tape import Tape


@dataclass
class Point:
    """One input and cotangent: the reference's tape there, its leaves, and what the rule gave."""

    args: tuple
    cotangent: Any
    tape: Tape
    ref: dict[str, Any]
    got: dict[str, Any]


def gradients(problem: Problem, args: tuple, cotangent: Any, like: Mapping[str, Any]) -> dict[str, Any]:
    """What the rule gives, by the path of each leaf; a missing leaf is a zero one."""
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(problem.backward(args, cotangent))[0]:
        if numeric.is_float(leaf):
            found[jax.tree_util.keystr(path)] = numeric.as_numpy(widened(leaf))
    return {path: found.get(path, np.zeros_like(ref)) for path, ref in like.items()}


def at(problem: Problem, program: Program, args: tuple, cotangent: Any) -> Point:
    """The point at these inputs."""
    tape = program.at(args, cotangent)
    ref = {path: np.asarray(tape.values[n]) for path, n in tape.leaves.items()}
    return Point(args, cotangent, tape, ref, gradients(problem, args, cotangent, ref))


def distance(a: Any, b: Any, scale: float) -> float:
    """The largest difference over `scale`; infinite where shapes or places of NaN differ."""
    if np.shape(a) != np.shape(b):
        return float("inf")
    if not np.size(a):
        return 0.0
    with np.errstate(all="ignore"):
        worst = np.max(np.abs(a - b))
    if np.isfinite(worst):
        return float(worst) / scale
    bad_a, bad_b = ~np.isfinite(a), ~np.isfinite(b)
    if not np.array_equal(bad_a, bad_b):
        return float("inf")
    both = ~bad_a
    return float(np.max(np.abs(a[both] - b[both]), initial=0.0)) / scale


class Measure:
    """How near a candidate comes to what the rule gave, leaf by leaf, at one point."""

    def __init__(self, point: Point, wrong: tuple[str, ...], tolerance: float):
        self.point, self.wrong = point, tuple(w for w in wrong if w in point.ref)
        self.scale, self.allowed, self.error, self.strict = {}, {}, {}, 0.0
        for path, ref in point.ref.items():
            finite = ref[np.isfinite(ref)]
            got = point.got[path]
            scale = float(np.max(np.abs(finite), initial=0.0)) or float(np.max(np.abs(got), initial=0.0)) or 1.0
            self.scale[path] = scale
            self.error[path] = min(distance(got, ref, scale), 1e3)
            fine = 1e-10 if ref.dtype.itemsize >= 8 + 8 * (ref.dtype.kind == "c") else 1e-5
            narrow = _narrow(point.args, path)
            self.strict = max(4 * tolerance, narrow or fine)
            # what explains an error has to come much nearer than the error itself; where the point is ill-conditioned
            # (a saturated tanh), nearer than the noise that the tolerance knows of cannot be asked
            near = min(max(self.strict, 1e-3 * self.error[path]), 0.1 * self.error[path])
            self.allowed[path] = near if path in self.wrong else self.strict

    def against(self, out: Mapping[str, Any]) -> tuple[tuple[str, ...], float, tuple[str, ...]]:
        """The wrong leaves that a candidate explains, its residual on these, and the right leaves that it harms."""
        explained, residual, harmed = [], 0.0, []
        for path, value in out.items():
            near = distance(value, self.point.got[path], self.scale[path])
            if path not in self.wrong:
                if near > self.allowed[path] + self.error[path]:
                    harmed.append(path)
            elif near <= self.allowed[path]:
                explained.append(path)
                residual = max(residual, near)
        return tuple(explained), residual, tuple(harmed)

    def coefficient(self, without: Mapping[str, Any], by: Mapping[str, Any] | None = None) -> float | None:
        """The c for which without + c (reference − without) is nearest, where the leaves agree on one.

        With `by`, the c for which reference + c (by − without) is.
        """
        found = []
        for path in self.wrong:
            if path not in without or np.shape(without[path]) != np.shape(self.point.ref[path]):
                continue
            base = without[path] if by is None else self.point.ref[path]
            along = (
                self.point.ref[path] - without[path]
                if by is None
                else by.get(path, self.point.ref[path]) - without[path]
            )
            off = self.point.got[path] - base
            weight = np.vdot(along, along).real
            if not np.isfinite(weight) or weight <= 0 or np.size(along) < 2:
                continue
            c = (np.vdot(along, off) / weight).real
            left = np.max(np.abs(off - c * along)) / self.scale[path]
            if left <= self.allowed[path]:
                found.append(float(c))
        return found[0] if found and max(found) - min(found) <= 1e-2 * max(1.0, abs(found[0])) else None


def _narrow(args: tuple, path: str) -> float:
    for found, leaf in jax.tree_util.tree_flatten_with_path(args)[0]:
        if jax.tree_util.keystr(found) == path and leaf.dtype.itemsize < 4:
            return 2e-2 if leaf.dtype.name == "bfloat16" else 3e-3
    return 0.0
