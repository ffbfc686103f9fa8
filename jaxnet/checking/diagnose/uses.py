"""A mistake in one use of a value, its other uses being right: a factor or a term lost on one of the error's ways."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxnet.checking.diagnose.scene import MERGES, Mutant, Scene, on_operand
from jaxnet.checking.diagnose.tape import Looking, Op, Site, Tape

DEEP = 3
"""Operations before the use that are looked at."""
_PASSED = {"neg", "reshape", "squeeze", "expand_dims", "broadcast_in_dim", "convert_element_type", "concatenate",
           "transpose", "expand", "mul", "div", "copy", *MERGES}  # fmt: skip


class Lost(NamedTuple):
    """What is lost on the way to a value: the operands walked back from it, and the operand that stands alone.

    `kept` is the operand of the last operation that is passed on as it is; `lost` the number of the other one.
    """

    way: tuple[int, ...]
    kept: int
    lost: int
    name: str


def uses(scene: Scene) -> Iterator[Mutant]:
    """Each use of a value that the error reaches and that is used more than once, with a factor or a term lost."""
    tape = scene.tape
    for site, op in scene.linear():
        for j, i in enumerate(op.inputs):
            if tape.linear[i] and sum(tape.live[k] for k in tape.uses[i]) > 1:
                for lost in _lost(tape, i, DEEP):
                    yield _mutant(site, op, j, lost)


def _lost(tape: Tape, number: int, depth: int, way: tuple[int, ...] = ()) -> Iterator[Lost]:
    """What may be lost in a value, or in what it is made of."""
    if number not in tape.maker or depth == 0:
        return
    op = tape.ops[tape.maker[number]]
    if op.name not in _PASSED or len(op.outputs) != 1:
        return
    moving = [j for j, i in enumerate(op.inputs) if tape.linear[i]]
    if op.name in ("mul", "div") and len(moving) == 1 and len(op.inputs) == 2 and not (op.name == "div" and moving[0]):
        yield Lost(way, moving[0], op.inputs[1 - moving[0]], op.name)
    if op.name in ("add", "add_any") and len(moving) == 2:
        for j in (0, 1):
            yield Lost(way, j, op.inputs[1 - j], op.name)
    for j in moving:
        yield from _lost(tape, op.inputs[j], depth - 1, (*way, j))


def _mutant(site: Site, op: Op, j: int, lost: Lost) -> Mutant:
    def change(op: Op, x: Any, look: Looking) -> Any:
        return rebuilt(look, op.inputs[j], lost.way, lost.kept)

    def say(namer, c):
        right = namer.operation(op, op.inputs, 6)[0]
        what = namer.expr(lost.lost, 5)
        what = f"1/({what})" if lost.name == "div" else what
        kind = "the factor" if lost.name in ("mul", "div") else "the term"
        return (
            f"{kind} {what} is missing here, though not elsewhere, in {namer.expr(op.inputs[j], 5)} in {right}",
            right,
        )

    cost = 1.35 + 0.1 * len(lost.way)
    return Mutant((site, "use", j, lost.way, lost.kept), {site: on_operand(j, change)}, cost, say, site)


def rebuilt(look: Looking, number: int, way: Sequence[int], kept: int) -> Any:
    """The value made again from what it is made of, with one operand passed on alone at the end of the way."""
    tape = look.tape
    op = tape.ops[tape.maker[number]]
    ins = [look.dirty.get(i, tape.values[i]) for i in op.inputs]
    if not way:
        return np.broadcast_to(ins[kept], np.shape(tape.values[number]))
    ins[way[0]] = rebuilt(look, op.inputs[way[0]], way[1:], kept)
    return op.run(ins)[0]
