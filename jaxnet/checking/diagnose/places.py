"""Masks, scatters, slices and steps: dropped, inverted, overwritten, shifted, in another order."""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnet.checking.diagnose import numeric
from jaxnet.checking.diagnose.scene import (
    Mutant,
    Scene,
    on_output,
    replaced,
    says,
    shifted,
)
from jaxnet.checking.diagnose.tape import Op


def masks(scene: Scene) -> Iterator[Mutant]:
    """Masks and cut-offs dropped, inverted, or taken from the cotangent; scatters that overwrite."""
    tape = scene.tape
    for site, op in [*scene.linear(), *scene.residual()]:
        if op.name == "select_n" and len(op.inputs) == 3 and tape.values[op.inputs[0]].dtype == np.bool_:
            for take, word in ((1, "false"), (2, "true")):
                if tape.depends[op.inputs[take]]:
                    change = replaced(lambda op, ins, look, t=take: ins[t])
                    yield Mutant(
                        (site, "branch", take),
                        {site: change},
                        1.2,
                        _say_mask(op, f"the mask {{0}} is not applied (dropped), as if it were {word} everywhere"),
                        site,
                    )
            yield Mutant(
                (site, "inverted"),
                {site: replaced(lambda op, ins, look: op.run([~ins[0], *ins[1:]])[0])},
                1.7,
                _say_mask(op, "the mask {0} is inverted"),
                site,
            )
            for j in (1, 2):
                if tape.linear[op.inputs[j]]:
                    change = replaced(
                        lambda op, ins, look, j=j: op.run([(ins[j] > 0) if j == 2 else (ins[j] <= 0), *ins[1:]])[0]
                    )
                    yield Mutant(
                        (site, "by cotangent", j),
                        {site: change},
                        1.3,
                        _say_mask(
                            op, "the mask is taken from the sign of the cotangent (gated by d_out > 0), not from {0}"
                        ),
                        site,
                    )
        if op.name in ("gt", "ge", "lt", "le"):
            yield Mutant(
                (site, "not"),
                {site: on_output(lambda op, x, look: ~x)},
                1.5,
                _say_mask_value(op, "the comparison {0} is the wrong way round"),
                site,
            )
        if op.name in ("max", "min") and not tape.linear[op.outputs[0]]:
            for j in (0, 1):
                if tape.depends[op.inputs[j]]:
                    yield Mutant(
                        (site, "uncut", j),
                        {site: replaced(lambda op, ins, look, j=j: ins[j])},
                        1.4,
                        says(op, "the cut-off {1} is dropped"),
                        site,
                    )
        if op.name == "scatter-add" and tape.linear[op.inputs[-1]]:
            yield Mutant(
                (site, "set"),
                {site: _overwriting},
                1.1,
                _say_mask_value(
                    op,
                    "repeated indices overwrite each other: .set where .add is meant, only the last one of each counts",
                ),
                site,
            )
        if op.name == "select_and_scatter_add":
            yield Mutant(
                (site, "ties"),
                {site: _to_all_ties},
                1.1,
                _say_mask_value(op, "every tied maximum of a window gets the error, and not one of them"),
                site,
            )


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


def places(scene: Scene) -> Iterator[Mutant]:
    """Transposes and flips forgotten, slices and pads shifted by one."""
    tape = scene.tape
    for site, op in [*scene.linear(), *scene.residual()]:
        value = tape.values[op.outputs[0]]
        if not numeric.is_float(value):
            continue
        if op.name in ("transpose", "rev") and np.shape(value) == np.shape(tape.values[op.inputs[0]]):
            what = "transpose" if op.name == "transpose" else "kernel is not flipped: flip"
            yield Mutant(
                (site, "undone"),
                {site: replaced(lambda op, ins, look: ins[0])},
                1.1,
                says(op, f"the {what} is left out: {{0}} stands where {{1}} should"),
                site,
            )
        if op.name in (
            "slice",
            "dynamic_slice",
            "pad",
            "concatenate",
            "gather",
            "dynamic_update_slice",
            "stack",
            "scatter-add",
            "reduce_window_sum",
        ):
            for axis in range(np.ndim(value)):
                if value.shape[axis] < 2:
                    continue
                for by in (1, -1):
                    change = on_output(lambda op, x, look, a=axis, b=by: shifted(x, a, b, circular=False))
                    yield Mutant(
                        (site, "shift", axis, by),
                        {site: change},
                        1.7,
                        says(op, f"{{1}} is shifted by one ({by:+d}) along axis {axis}"),
                        site,
                    )
                yield Mutant(
                    (site, "flip", axis),
                    {site: on_output(lambda op, x, look, a=axis: np.flip(x, a))},
                    1.8,
                    says(op, f"{{1}} is flipped along axis {axis}"),
                    site,
                )
        if op.name == "concatenate" and len({np.shape(tape.values[i]) for i in op.inputs}) == 1:
            for a in range(len(op.inputs) - 1):
                for b in range(a + 1, len(op.inputs)):
                    yield Mutant(
                        (site, "exchanged", a, b),
                        {site: _exchanged(a, b)},
                        1.5,
                        says(op, f"parts {a} and {b} of {{1}} are exchanged"),
                        site,
                    )
        if op.name == "reshape" and tape.linear[op.inputs[0]] and np.ndim(value) > 1:
            yield Mutant(
                (site, "order"),
                {
                    site: replaced(
                        lambda op, ins, look: np.reshape(ins[0], np.shape(look.tape.values[op.outputs[0]]), order="F")
                    )
                },
                1.8,
                says(op, "the entries of {1} are laid out in another order"),
                site,
            )


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


def steps(scene: Scene) -> Iterator[Mutant]:
    """A scan that reads another step's value: the one before, the one after, the one from the other end."""
    tape = scene.tape
    for site, op in scene.sites:
        if op.name != "step" or not numeric.is_float(tape.values[op.inputs[0]]):
            continue

        def say(words, op=op):
            return lambda namer, c: (words.format(namer.expr(op.inputs[0], 4)), "")

        yield Mutant(
            (site, "before"),
            {site: _at(lambda t, n: t - 1)},
            1.4,
            say("the {0} of the step before is used in the place of this step's"),
            site,
        )
        yield Mutant(
            (site, "after"),
            {site: _at(lambda t, n: t + 1)},
            1.4,
            say("the {0} of the next step is used in the place of this step's"),
            site,
        )
        yield Mutant(
            (site, "first"),
            {site: _at(lambda t, n: 0)},
            1.5,
            say("the {0} of the first step is used at every step"),
            site,
        )
        yield Mutant(
            (site, "last"),
            {site: _at(lambda t, n: n - 1)},
            1.5,
            say("the {0} of the last step is used at every step"),
            site,
        )
        yield Mutant(
            (site, "reversed"),
            {site: _at(lambda t, n: n - 1 - t)},
            1.4,
            say("{0} is read in the reverse order of the steps"),
            site,
        )
