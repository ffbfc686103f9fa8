"""Terms, branches and variables left out, or with another factor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxnet.checking.diagnose.scene import (
    MERGES,
    Mutant,
    Scene,
    on_operand,
    on_output,
)
from jaxnet.checking.diagnose.source import Line
from jaxnet.checking.diagnose.tape import Op, Site


def scaled(j: int, c: float) -> Callable:
    """A change: operand j times c."""
    return on_operand(j, lambda op, x, look: x * np.asarray(c, x.dtype))


def held(scene: Scene) -> Iterator[Mutant]:
    """Each variable of the user's held constant: no error enters the line that makes it."""
    tape = scene.tape
    lines: dict[Line, list[tuple[Site, Op]]] = {}
    for site, op in scene.linear():
        if op.line.assigns:
            lines.setdefault(op.line, []).append((site, op))
    for line, ops in lines.items():
        inside = {n for _, op in ops for n in op.outputs}
        changes: dict[Site, Any] = {}
        leaving: list[int] = []
        for site, op in ops:
            entering = tuple(
                j for j, i in enumerate(op.inputs) if tape.linear[i] and i not in inside and _line(tape, i) != line
            )
            # the sum in which a line's share meets that of others is not the line's own
            if entering and op.name not in MERGES:
                changes[site] = _without(entering)
            if entering and op.name in MERGES:
                leaving += [i for i in op.inputs if _line(tape, i) == line]
        if changes:
            yield Mutant(
                (line.number, "held"),
                changes,
                0.95,
                _say_held(line, max(leaving, key=lambda i: np.size(tape.values[i]), default=None)),
                next(iter(changes)),
            )


def _line(tape, number: int):
    return tape.ops[tape.maker[number]].line if number in tape.maker else None


def _without(entering: tuple[int, ...]):
    return lambda op, ins, look: op.run([np.zeros_like(x) if j in entering else x for j, x in enumerate(ins)])


def _say_held(line, leaving: int | None):
    def say(namer, c):
        term = (
            f"{namer.expr(leaving)} is missing"
            if leaving is not None
            else f"what passes through {line.assigns} is missing"
        )
        return (
            f"{term}: as if {line.assigns} were stop_gradient({line.assigns})",
            f"... + {namer.expr(leaving, 8)}" if leaving is not None else "",
        )

    return say


def terms(scene: Scene) -> Iterator[Mutant]:
    """Each term of each sum, each branch, each carry, with a factor to be fitted: missing, twice, negated."""
    tape = scene.tape
    for site, op in scene.linear():
        if op.name in MERGES or op.name in ("carry", "select_and_scatter_add"):
            for j, i in enumerate(op.inputs):
                if tape.linear[i] and not (op.name == "select_and_scatter_add" and j):
                    yield Mutant(
                        (site, "term", j),
                        {site: scaled(j, 0.0)},
                        1.0,
                        _say_term(op, j),
                        site,
                        "scale",
                        lambda c, site=site, j=j: {site: scaled(j, c)},
                    )
        if (
            op.name in ("dot_general", "reduce_sum", "reduce_keep", "mul", "stack")
            and len(tape.uses.get(op.outputs[0], ())) != 1
        ):

            def graded(c, site=site):
                return {site: on_output(lambda op, x, look: x * np.asarray(c, x.dtype))}

            yield Mutant((site, "all"), graded(0.0), 1.3, _say_out(op), site, "scale", graded)


_ONCE: tuple[tuple[str, Callable[[int, int], bool], float], ...] = (
    ("only the last step's {0} counts, those of the others are missing", lambda t, n: t == n - 1, 1.4),
    ("only the first step's {0} counts, those of the others are missing", lambda t, n: t == 0, 1.5),
    ("the last step's {0} is missing (off by one)", lambda t, n: t < n - 1, 1.45),
    ("the first step's {0} is missing (off by one)", lambda t, n: t > 0, 1.45),
)


def of_steps(scene: Scene) -> Iterator[Mutant]:
    """Each term that the steps of a loop add up: of the last step alone, of the first; without one of these."""
    tape = scene.tape
    for site, op in scene.linear():
        steps = len(tape.instances[site])
        if not op.frame or op.name not in ("add", "add_any") or steps < 2:
            continue
        for j, i in enumerate(op.inputs):
            for words, counts, cost in _ONCE if tape.linear[i] else ():

                def kept(op, x, look, counts=counts):
                    return x if counts(op.frame[-1], len(look.tape.instances[op.site])) else np.zeros_like(x)

                def say(namer, c, op=op, i=i, words=words):
                    return words.format(namer.expr(i, 5)), namer.operation(op, op.inputs, 6)[0]

                yield Mutant((site, "steps", j, words), {site: on_operand(j, kept)}, cost, say, site)


def _say_term(op: Op, j: int):
    def say(namer, c):
        term = namer.expr(op.inputs[j])
        sign = "-" if op.name == "sub" and j == 1 else ""
        if op.name == "carry":
            which = f"what one step hands on to the step before it ({term})"
            return factor_words(which, c), ""
        leaves = [path for path, n in namer.tape.leaves.items() if n in op.outputs]
        lost = (
            f" in ∂{namer.leaf(leaves[0])}: one of its uses is lost (overwritten or skipped)"
            if leaves and c == 0
            else ""
        )
        return factor_words(f"{sign}{term}", c) + lost, namer.operation(op, op.inputs, 8)[0]

    return say


def _say_out(op: Op):
    def say(namer, c):
        term = namer.operation(op, op.inputs, 6)[0]
        return factor_words(term, c), term

    return say


def factor_words(term: str, c: float) -> str:
    """What a term's factor c means."""
    if c == 0:
        return f"{term} is missing"
    if c == -1:
        return f"{term} has the wrong sign"
    if c == 2:
        return f"{term} counts twice"
    return f"{term} is {c:.4g} times what it should be"
