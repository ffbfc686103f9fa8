"""A state that a loop carries, taken a step too early: what came into the step where what it makes is meant."""

from __future__ import annotations

from collections.abc import Iterator

from jaxnet.checking.diagnose.scene import Mutant, Scene, on_operand
from jaxnet.checking.diagnose.tape import Looking, Op, Site, Tape


def earlier(scene: Scene) -> Iterator[Mutant]:
    """Each state of a step, where the backward pass reads it or what is made of it, as it was before the step."""
    tape = scene.tape
    for site, op in scene.residual():
        for j, i in enumerate(op.inputs):
            made = tape.ops[tape.maker[i]] if i in tape.maker else None
            if made is None or not op.frame or made.frame != op.frame:
                continue
            for carried in _carriers(tape, i):
                yield _mutant(site, op, j, carried)


def _carriers(tape: Tape, number: int) -> list[Site]:
    """The carries by which a value reaches the next step."""
    users = (tape.ops[k] for k in tape.uses.get(number, ()))
    return [user.site for user in users if user.name == "carry"]


def _mutant(site: Site, op: Op, j: int, carried: Site) -> Mutant:
    def change(op: Op, x, look: Looking):
        number = before(look.tape, carried, op.frame)
        return look.dirty.get(number, look.tape.values[number])

    def say(namer, c):
        right = namer.operation(op, op.inputs, 5)[0]
        name = namer.expr(op.inputs[j], 4)
        return f"the {name} of the step before stands in the place of {name} in {right}", right

    return Mutant((site, "earlier", j, carried), {site: on_operand(j, change)}, 1.5, say, site, behind=True)


def before(tape: Tape, carried: Site, frame: tuple[int, ...]) -> int:
    """The number of a carried value as it comes into a step; into the first one, of what the loop begins with.

    What the loop begins with is read in the first step where the carried value is read in the others.
    Raises `KeyError` where nothing reads it.
    """
    at = tape.instances[carried]
    if frame in at:
        return tape.ops[at[frame]].outputs[0]
    key = ("first", carried)
    if key not in tape.memo:
        some = tape.ops[next(iter(at.values()))]
        for k in tape.uses.get(some.outputs[0], ()):
            user = tape.ops[k]
            first = tape.instances[user.site].get(frame)
            if first is not None:
                tape.memo[key] = tape.ops[first].inputs[user.inputs.index(some.outputs[0])]
                break
    return tape.memo[key]
