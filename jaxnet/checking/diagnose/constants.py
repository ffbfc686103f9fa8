"""Arrays that depend on no argument (positions, angles, masks, counts), wrong wherever the backward pass reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from jaxnet.checking.diagnose.scene import Change, Mutant, Scene, Where, shifted, square, swapped
from jaxnet.checking.diagnose.tape import Op, Site, Tape

MOST = 60
"""Arrays that are tried."""
Form = tuple[str, Callable[[Any], Any], float]


def constants(scene: Scene) -> Iterator[Mutant]:
    """Each such array shifted, turned round, negated, or one number for all; forward the right one is used."""
    tape = scene.tape
    tried = 0
    for where, number in _arrays(scene):
        if tried == MOST:
            return
        readers = _readers(scene, where, number)
        if not readers:
            continue
        tried += 1
        for words, function, cost in _forms(tape.values[number]):
            changes: dict[Site, Change] = {site: partial(_reading, where=where, function=function) for site in readers}
            key = (readers[0], "constant", where, words)
            yield Mutant(key, changes, cost, _say(number, words), readers[0], behind=True)


def _arrays(scene: Scene) -> Iterator[tuple[Where, int]]:
    """The arrays that depend on no argument, by the operation that makes them; where none does, by their number."""
    tape = scene.tape
    made = {n: (op.site, j) for op in tape.ops for j, n in enumerate(op.outputs)}
    firsts = {tape.ops[k].site: set(tape.ops[k].outputs) for k in scene.first.values()}
    for n, value in enumerate(tape.values):
        kind = getattr(getattr(value, "dtype", None), "kind", "")
        if tape.depends[n] or np.ndim(value) == 0 or kind not in "fib" or np.all(value == np.ravel(value)[:1]):
            continue
        where = made.get(n, (None, n))
        if where[0] is None or n in firsts[where[0]]:
            yield where, n


def _readers(scene: Scene, where: Where, number: int) -> list[Site]:
    """The sites of the backward pass that read the array, or what is made of it."""
    tape = scene.tape
    below = set(_below(tape, where))
    found = []
    for site, op in scene.sites:
        if tape.forward.isdisjoint(op.outputs) and not below.isdisjoint(op.inputs) and op.name != "scatter-add":
            found.append(site)
    return found


def _below(tape: Tape, where: Where) -> list[int]:
    """The numbers of the array, in every step, and of all that is made of it and of no argument."""
    key = ("below", where)
    if key not in tape.memo:
        found = (
            [where[1]]
            if where[0] is None
            else [tape.ops[k].outputs[where[1]] for k in tape.instances[where[0]].values()]
        )
        known = set(found)
        for op in tape.ops:
            if not any(tape.depends[n] for n in op.outputs) and not known.isdisjoint(op.inputs):
                known.update(op.outputs)
                found += op.outputs
        tape.memo[key] = found
    return tape.memo[key]


def altered(tape: Tape, where: Where, function: Callable[[Any], Any]) -> dict[int, Any]:
    """Values by number with the array changed, and all made anew that is made of it and of no argument."""
    key = ("altered", where, function)
    if key not in tape.memo:
        below = _below(tape, where)
        roots = 1 if where[0] is None else len(tape.instances[where[0]])
        new = {n: function(tape.values[n]) for n in below[:roots]}
        left = set(below) - set(new)
        for op in tape.ops:
            if not left.isdisjoint(op.outputs):
                new.update(zip(op.outputs, op.run([new.get(i, tape.values[i]) for i in op.inputs]), strict=True))
        tape.memo[key] = new
    return tape.memo[key]


def _reading(op: Op, ins, look, where: Where, function: Callable[[Any], Any]) -> list[Any]:
    new = altered(look.tape, where, function)
    return op.run([new.get(i, x) for i, x in zip(op.inputs, ins, strict=True)])


def _forms(value: Any) -> Iterator[Form]:
    """What may have become of an array."""
    boolean = value.dtype == np.bool_
    if boolean:
        yield "the mask {0} is inverted", np.logical_not, 1.6
        yield "the mask {0} is not applied", np.ones_like, 1.5
    else:
        yield "{0} has the wrong sign", np.negative, 1.4
        yield "{0} is one number everywhere, its largest", lambda x: np.full_like(x, np.max(x)), 1.5
        yield "{0} is one number everywhere, its smallest", lambda x: np.full_like(x, np.min(x)), 1.6
        yield "{0} is 1 where it is largest and 0 elsewhere (not smoothed)", _sharpened, 1.5
        steps = [np.diff(value, axis=a) for a in range(value.ndim) if value.shape[a] > 1]
        if any(np.all(s == 1) for s in steps):
            yield "{0} counts from 1: shifted by one step", lambda x: x + np.asarray(1, x.dtype), 1.4
            yield "{0} counts from −1: shifted by one step", lambda x: x - np.asarray(1, x.dtype), 1.4
    if square(value):
        yield "{0} is transposed", swapped, 1.4
    for axis in range(value.ndim):
        if value.shape[axis] > 1:
            for by in (1, -1):
                move = partial(shifted, axis=axis, by=by, circular=False)
                yield f"{{0}} is shifted by one ({by:+d}) along axis {axis} (off by one)", move, 1.5
            yield f"{{0}} is flipped along axis {axis}", partial(np.flip, axis=axis), 1.6


def _sharpened(x: Any) -> Any:
    """1 at the largest entries of x, else 0."""
    return (x == np.max(x)).astype(x.dtype)


def _say(number: int, words: str):
    def say(namer, c):
        return words.format(namer.expr(number, 5)), ""

    return say
