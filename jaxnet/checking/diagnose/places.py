"""Masks, scatters, slices and steps: dropped, inverted, overwritten, shifted, in another order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnet.checking.diagnose import numeric
from jaxnet.checking.diagnose.scene import (
    Mutant,
    Scene,
    on_output,
    planted,
    replaced,
    says,
    shifted,
)
from jaxnet.checking.diagnose.tape import Op, Site, Tape


def masks(scene: Scene) -> Iterator[Mutant]:
    """Masks and cut-offs dropped, inverted, or taken from the cotangent; scatters that overwrite."""
    tape = scene.tape
    for site, op in [*scene.linear(), *scene.residual()]:
        if op.name == "select_n" and len(op.inputs) == 3 and tape.values[op.inputs[0]].dtype == np.bool_:
            yield from _selections(scene, site, op)
        if op.name in ("gt", "ge", "lt", "le"):
            words = "the comparison {0} is the wrong way round"
            yield planted(site, ("not",), on_output(lambda op, x, look: ~x), 1.5, _say_mask_value(op, words))
            for fill, word in ((np.ones_like, "true"), (np.zeros_like, "false")):
                words = f"the mask {{0}} is not applied (dropped), as if it were {word} everywhere"
                change = on_output(lambda op, x, look, fill=fill: fill(x))
                mutant = planted(site, ("all", word), change, 1.25, _say_mask_value(op, words))
                yield replace(mutant, behind=True)
        if op.name in ("max", "min") and not tape.linear[op.outputs[0]]:
            for j in (0, 1):
                if tape.depends[op.inputs[j]]:
                    change = replaced(lambda op, ins, look, j=j: ins[j])
                    yield planted(site, ("uncut", j), change, 1.4, says(op, "the cut-off {1} is dropped"))
        if op.name == "scatter-add" and tape.linear[op.inputs[-1]]:
            words = "repeated indices overwrite each other: .set where .add is meant, only the last one of each counts"
            yield planted(site, ("set",), _overwriting, 1.1, _say_mask_value(op, words))
            words = "what repeated indices add is averaged: divided by the number of times that each occurs"
            yield planted(site, ("mean",), _averaging, 1.2, _say_mask_value(op, words))
        if op.name == "select_and_scatter_add":
            words = "every tied maximum of a window gets the error, and not one of them"
            yield planted(site, ("ties",), _to_all_ties, 1.1, _say_mask_value(op, words))


def _selections(scene: Scene, site: Site, op: Op) -> Iterator[Mutant]:
    """A mask left out, the wrong way round, or that of the cotangent's sign."""
    tape = scene.tape
    for take, word in ((1, "false"), (2, "true")):
        if tape.depends[op.inputs[take]]:
            change = replaced(lambda op, ins, look, t=take: ins[t])
            words = f"the mask {{0}} is not applied (dropped), as if it were {word} everywhere"
            yield planted(site, ("branch", take), change, 1.2, _say_mask(op, words))
    change = replaced(lambda op, ins, look: op.run([~ins[0], *ins[1:]])[0])
    yield planted(site, ("inverted",), change, 1.7, _say_mask(op, "the mask {0} is inverted"))
    for j in (1, 2):
        if tape.linear[op.inputs[j]]:

            def gated(op, ins, look, j=j):
                return op.run([(ins[j] > 0) if j == 2 else (ins[j] <= 0), *ins[1:]])[0]

            words = "the mask is taken from the sign of the cotangent (gated by d_out > 0), not from {0}"
            yield planted(site, ("by cotangent", j), replaced(gated), 1.3, _say_mask(op, words))


def _say_mask(op: Op, words: str):
    def say(namer, c):
        right = namer.operation(op, op.inputs, 5)[0]
        return words.format(namer.expr(op.inputs[0], 4)) + f" in {right}", right

    return say


def _say_mask_value(op: Op, words: str):
    return lambda namer, c: (words.format(namer.operation(op, op.inputs, 4)[0]), namer.operation(op, op.inputs, 4)[0])


def _overwriting(op, ins, look):
    """The scatter that sets, for the scatter that adds."""
    numbers, mode = op.params["dimension_numbers"], op.params["mode"]
    operand, indices, updates = (jnp.asarray(v) for v in ins)
    out = lax.scatter(operand, indices, updates, numbers, mode=mode)
    return [np.asarray(out)]


def _averaging(op, ins, look):
    """The scatter that adds, over the number of what it adds to each entry."""
    operand, indices, updates = ins
    counts = op.run([np.zeros_like(operand), indices, np.ones_like(updates)])[0]
    sums = op.run([np.zeros_like(operand), indices, updates])[0]
    return [operand + sums / np.maximum(counts, 1)]


def overwritten(scene: Scene) -> Iterator[Mutant]:
    """What is put at places of its own (by pads, slices, scatters) replaces what is there, and is not added to it."""
    tape = scene.tape
    for site, op in scene.linear():
        if op.name not in ("add", "add_any"):
            continue
        for j in (0, 1):
            if any(_meet(tape, tape.ops[k], j) for k in tape.instances[site].values()):
                change = replaced(lambda op, ins, look, j=j: np.where(ins[j] != 0, ins[j], ins[1 - j]))
                words = "where two meet, one overwrites the other (set, and not add) in {1}"
                yield planted(site, ("overwrites", j), change, 1.4, says(op, words))


def _meet(tape: Tape, op: Op, winner: int) -> bool:
    """Whether one of two terms stands at some places of its own, and the other has something there to be lost."""
    if not all(tape.linear[i] for i in op.inputs):
        return False
    own, other = (np.asarray(tape.values[op.inputs[j]]) != 0 for j in (winner, 1 - winner))
    return bool(np.any(own & other) and not np.all(own))


def _to_all_ties(op, ins, look):
    """g at every entry equal to its window's maximum."""
    source, operand = ins
    window, strides, padding = (op.params[k] for k in ("window_dimensions", "window_strides", "padding"))
    low = -np.inf if op.params["select_prim"].name == "ge" else np.inf
    padded = np.pad(operand, padding, constant_values=low)
    out = np.zeros_like(padded)
    best = np.maximum if low < 0 else np.minimum
    peaks = np.full(source.shape, low, operand.dtype)
    places = [
        tuple(slice(o, o + (n - 1) * s + 1, s) for o, n, s in zip(offset, source.shape, strides, strict=True))
        for offset in np.ndindex(*window)
    ]
    for place in places:
        peaks = best(peaks, padded[place])
    for place in places:
        out[place] += source * (padded[place] == peaks)
    inner = tuple(slice(lo, lo + n) for (lo, _), n in zip(padding, operand.shape, strict=True))
    return [out[inner]]


_MOVED = ("slice", "dynamic_slice", "pad", "concatenate", "gather", "dynamic_update_slice", "stack", "scatter-add",
          "reduce_window_sum")  # fmt: skip


def places(scene: Scene) -> Iterator[Mutant]:
    """Transposes and flips forgotten, slices and pads shifted by one."""
    tape = scene.tape
    for site, op in [*scene.linear(), *scene.residual()]:
        value = tape.values[op.outputs[0]]
        if not numeric.is_float(value):
            continue
        if op.name in ("transpose", "rev") and np.shape(value) == np.shape(tape.values[op.inputs[0]]):
            what = "transpose" if op.name == "transpose" else "kernel is not flipped: flip"
            words = f"the {what} is left out: {{0}} stands where {{1}} should"
            yield planted(site, ("undone",), replaced(lambda op, ins, look: ins[0]), 1.1, says(op, words))
        for axis in range(np.ndim(value)) if op.name in _MOVED else ():
            if value.shape[axis] > 1:
                yield from _along(site, op, axis)
        if op.name == "concatenate" and len({np.shape(tape.values[i]) for i in op.inputs}) == 1:
            for a, b in itertools.combinations(range(len(op.inputs)), 2):
                words = f"parts {a} and {b} of {{1}} are exchanged"
                yield planted(site, ("exchanged", a, b), _exchanged(a, b), 1.5, says(op, words))
        if op.name == "reshape" and tape.linear[op.inputs[0]] and np.ndim(value) > 1:
            words = "the entries of {1} are laid out in another order"
            yield planted(site, ("order",), replaced(_other_order), 1.8, says(op, words))
        if op.name == "reshape" and np.ndim(value) != np.ndim(tape.values[op.inputs[0]]):
            large = max(np.shape(value), np.shape(tape.values[op.inputs[0]]), key=len)
            for axis in range(len(large) - 1):
                if min(large[axis], large[axis + 1]) > 1:
                    words = f"axes {axis} and {axis + 1} of what is laid together in {{1}} stand in another order"
                    change = replaced(partial(_axes_exchanged, axis=axis))
                    yield planted(site, ("axes", axis), change, 1.6, says(op, words))


def _along(site: Site, op: Op, axis: int) -> Iterator[Mutant]:
    """A result shifted by one along an axis, or flipped."""
    for by in (1, -1):
        change = on_output(lambda op, x, look, b=by: shifted(x, axis, b, circular=False))
        words = f"{{1}} is shifted by one ({by:+d}) along axis {axis}"
        yield planted(site, ("shift", axis, by), change, 1.7, says(op, words))
    change = on_output(lambda op, x, look: np.flip(x, axis))
    yield planted(site, ("flip", axis), change, 1.8, says(op, f"{{1}} is flipped along axis {axis}"))


def _other_order(op, ins, look):
    return np.reshape(ins[0], np.shape(look.tape.values[op.outputs[0]]), order="F")


def _axes_exchanged(op, ins, look, axis: int):
    """A reshape whose larger side has two neighbouring axes exchanged."""
    x, shape = ins[0], np.shape(look.tape.values[op.outputs[0]])
    if x.ndim > len(shape):
        return np.swapaxes(x, axis, axis + 1).reshape(shape)
    other = list(shape)
    other[axis], other[axis + 1] = other[axis + 1], other[axis]
    return np.swapaxes(x.reshape(other), axis, axis + 1)


def _exchanged(a: int, b: int):
    def change(op, ins, look):
        ins = list(ins)
        ins[a], ins[b] = ins[b], ins[a]
        return op.run(ins)

    return change


def _at(which):
    def change(op, ins, look):
        t = which(op.frame[-1], op.params["length"])
        return [ins[0][t] if 0 <= t < op.params["length"] else np.zeros_like(ins[0][0])]

    return change


_STEPS: tuple[tuple[str, Callable[[int, int], int], str, float], ...] = (
    ("before", lambda t, n: t - 1, "the {0} of the step before is used in the place of this step's", 1.4),
    ("after", lambda t, n: t + 1, "the {0} of the next step is used in the place of this step's", 1.4),
    ("first", lambda t, n: 0, "the {0} of the first step is used at every step", 1.5),
    ("last", lambda t, n: n - 1, "the {0} of the last step is used at every step", 1.5),
    ("reversed", lambda t, n: n - 1 - t, "{0} is read in the reverse order of the steps", 1.4),
)


def steps(scene: Scene) -> Iterator[Mutant]:
    """A scan that reads another step's value: the one before, the one after, the one from the other end."""
    tape = scene.tape
    for site, op in scene.sites:
        if op.name == "step" and numeric.is_float(tape.values[op.inputs[0]]):
            for kind, which, words, cost in _STEPS:

                def say(namer, c, op=op, words=words):
                    return words.format(namer.expr(op.inputs[0], 4)), ""

                yield planted(site, (kind,), _at(which), cost, say)
