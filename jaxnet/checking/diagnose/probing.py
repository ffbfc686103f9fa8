"""A matrix that is not in the program: the error is carried back by a fixed matrix that is not Wᵀ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from jaxnet.checking.diagnose import points
from jaxnet.checking.diagnose.candidate import Candidate
from jaxnet.checking.diagnose.scene import on_operand
from jaxnet.checking.diagnose.tape import Op, Site

if TYPE_CHECKING:
    from jaxnet.checking.diagnose.search import Search

LARGEST = 600
"""Entries of a matrix that is still solved for: each costs a replay at each point."""


def matrices(search: Search) -> Iterator[Candidate]:
    """For each matrix that carries the error back: is there another, with which the rule's gradients come out?

    A leaf is linear in the matrix at one site, so the matrix is solved for, the site nearest to the output first; what
    is found there is kept for the sites below it.
    """
    tape, fixed = search.point.tape, {}
    probes = [search.point]
    words: list[tuple[Op, int]] = []
    for site, op in reversed(list(search.scene.linear())):
        sides = search.scene.split(op)
        if op.name != "dot_general" or sides is None:
            continue
        j = sides[1]
        value = tape.values[op.inputs[j]]
        if np.ndim(value) != 2 or not tape.depends[op.inputs[j]] or value.size > LARGEST or search.late:
            continue
        solved = _solve(search, probes, fixed, site, op, j)
        if solved is None:
            continue
        fixed[site] = on_operand(j, lambda op, x, look, B=solved: B)
        words.append((op, j))
        changes = dict(fixed)

        def say(namer, words=tuple(words)):
            which = ", ".join(namer.expr(op.inputs[j], 4) for op, j in words)
            right = "; ".join(namer.operation(op, op.inputs, 4)[0] for op, _ in words)
            return f"the error is carried back by a fixed matrix B that is not {which}: random feedback", right

        yield Candidate(
            ("matrix", tuple(changes)), 2.0 + 0.1 * len(words), lambda p, c=changes: p.tape.replay(c), say, op.line
        )


def _solve(search: Search, probes: list, fixed: dict, site: Site, op: Op, j: int):
    """The matrix at this operand for which some wrong leaf is what the rule gave, at all probes; None where none is."""
    from jaxnet.checking.diagnose.search import NO_VALUE, fresh_cotangent

    tape, measure, problem = search.point.tape, search.measure, search.problem
    shape = np.shape(tape.values[op.inputs[j]])
    n = int(np.prod(shape))
    affected = {
        path
        for path in measure.wrong
        if tape.leaves[path] in {o for k in tape.affected(site) for o in tape.ops[k].outputs}
    }
    settled = set()
    if fixed:
        explained, _, _ = measure.against(tape.replay(fixed))
        settled = set(explained)
    for path in sorted(affected - settled, key=lambda p: len(tape.affected(site))):
        per_probe = search.point.ref[path].size
        needed = min(12, -(-3 * n // (2 * per_probe)) + 1)
        while len(probes) < needed:
            cotangent = fresh_cotangent(search.point.cotangent, 500 + len(probes))
            probes.append(points.at(problem, search.program, search.point.args, cotangent))
        rows, targets = [], []
        try:
            for probe in probes[:needed]:
                zero = probe.tape.replay({**fixed, site: on_operand(j, lambda op, x, look: np.zeros_like(x))})
                base = np.ravel(zero.get(path, probe.ref[path]))
                columns = np.empty((per_probe, n))
                for k in range(n):
                    unit = np.zeros(n, probe.ref[path].dtype)
                    unit[k] = 1
                    out = probe.tape.replay(
                        {**fixed, site: on_operand(j, lambda op, x, look, u=unit: u.reshape(shape))}
                    )
                    columns[:, k] = np.ravel(out.get(path, probe.ref[path])) - base
                    if search.late:
                        return None
                rows.append(columns)
                targets.append(np.ravel(probe.got[path]) - base)
        except NO_VALUE:
            continue
        A, t = np.concatenate(rows), np.concatenate(targets)
        if A.shape[0] < 1.2 * n:
            continue
        B, _, rank, _ = np.linalg.lstsq(A, t, rcond=1e-6)
        if rank >= 0.9 * n and np.max(np.abs(A @ B - t)) <= 20 * measure.allowed[path] * measure.scale[path]:
            return B.reshape(shape).astype(tape.values[op.inputs[j]].dtype)
    return None
