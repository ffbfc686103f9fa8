"""Convolutions: kernels flipped, channels exchanged, strides and dilations forgotten, padding at the wrong end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnet.checking.diagnose.scene import Mutant, Scene, operand, planted, says, shifted
from jaxnet.checking.diagnose.tape import Looking, Op, Site

Sides = tuple[int, int]
Pads = tuple[tuple[int, int], ...]


def convolutions(scene: Scene) -> Iterator[Mutant]:
    """Every convolution that the error passes, changed in its operands, its steps and its padding."""
    for site, op in scene.linear():
        if op.name == "conv_general_dilated" and (sides := scene.split(op)) is not None:
            yield from _operands(scene, site, op, sides)
            yield from _steps(site, op)
            yield from _padding(site, op)


def _operands(scene: Scene, site: Site, op: Op, sides: Sides) -> Iterator[Mutant]:
    """Kernels flipped, channels exchanged, shifted by a pixel; each at its place in the convolution's numbers."""
    moving, fixed = sides
    numbers = op.params["dimension_numbers"]
    specs = (numbers.lhs_spec, numbers.rhs_spec)
    for j, word in ((fixed, "{0}"), (moving, "the error")):
        (a, b), space = specs[j][:2], specs[j][2:]
        words = f"{word} spatially flipped (kernel not flipped, or flipped twice)"
        yield operand(site, op, j, f"flip space{j}", lambda x, s=space: np.flip(x, s), words, 1.2)
        words = f"the channels of {word} exchanged (not transposed)"
        yield operand(site, op, j, f"channels{j}", lambda x, a=a, b=b: np.swapaxes(x, a, b), words, 1.5)
        groups = op.params["feature_group_count"]
        shape = np.shape(scene.tape.values[op.inputs[j]])
        if j == 1 and groups > 1 and shape[a] == groups * shape[b]:
            words = f"the channels of {word} exchanged in each group (not transposed)"
            swap = partial(_exchanged_in_groups, out=a, into=b, groups=groups)
            yield operand(site, op, j, f"group channels{j}", swap, words, 1.5)
        if len(space) == 2:
            words = f"{word} with rows and columns exchanged"
            yield operand(site, op, j, f"space.T{j}", lambda x, s=space: np.swapaxes(x, *s), words, 1.5)
        for axis, by in product(space, (1, -1)):
            words = f"{word} shifted by one pixel along axis {axis}"
            move = partial(shifted, axis=axis, by=by, circular=False)
            yield operand(site, op, j, f"shift{j}{axis}{by}", move, words, 1.7)


def _exchanged_in_groups(x: Any, out: int, into: int, groups: int) -> Any:
    """The kernel with output and input channels of each group exchanged."""
    moved = np.moveaxis(x, (out, into), (0, 1))
    parts = np.split(moved, groups)
    return np.moveaxis(np.concatenate([np.swapaxes(part, 0, 1) for part in parts]), (0, 1), (out, into))


_STEPS = (
    ("lhs_dilation", "the stride is not dilated: no zeros between the errors in {1}"),
    ("rhs_dilation", "the dilation, or the stride of the forward pass, is left out: neighbours are taken in {1}"),
    ("window_strides", "the stride is left out: every place is taken in {1}"),
)


def _steps(site: Site, op: Op) -> Iterator[Mutant]:
    """A stride or a dilation left out; the padding takes up what is then missing, at the end or at the beginning."""
    for key, words in _STEPS:
        if any(n > 1 for n in op.params[key]):
            for end in (1, 0):
                change = partial(_with, change=lambda params, k=key: {k: (1,) * len(params[k])}, end=end)
                yield planted(site, ("step", key, end), change, 1.3 + 0.05 * (1 - end), says(op, words))


def _padding(site: Site, op: Op) -> Iterator[Mutant]:
    """The padding's ends exchanged, or moved by one place."""
    pads: Pads = tuple(op.params["padding"])
    if any(low != high for low, high in pads):
        words = "the padding stands at the other end, shifted by the difference, in {1}"
        change = partial(_with, change=lambda params: {"padding": tuple((h, l) for l, h in params["padding"])})
        yield planted(site, ("padding",), change, 1.3, says(op, words))
    for by, axes in product((1, -1), [*((a,) for a in range(len(pads))), tuple(range(len(pads)))]):

        def moved(params, by=by, axes=axes):
            ends = enumerate(params["padding"])
            return {"padding": tuple((l + by, h - by) if a in axes else (l, h) for a, (l, h) in ends)}

        words = f"{{1}} is shifted by one place ({by:+d}) along axis {', '.join(map(str, axes))} of space (padding)"
        yield planted(site, ("padding", by, axes), partial(_with, change=moved), 1.5, says(op, words))


def _with(
    op: Op,
    ins: Sequence[Any],
    look: Looking,
    change: Callable[[dict[str, Any]], dict[str, Any]],
    end: int | None = None,
) -> list[Any]:
    """The convolution with other parameters; with `end`, padded there so that its result has the shape it had."""
    params = {**op.eqn.params, **change(op.eqn.params)}
    if end is not None:
        params["padding"] = _fitting(params, np.shape(ins[0]), np.shape(ins[1]), op, look, end)
    return [np.asarray(op.eqn.primitive.bind(*(jnp.asarray(v) for v in ins), **params))]


def _fitting(params: dict[str, Any], lhs: tuple, rhs: tuple, op: Op, look: Looking, end: int) -> Pads:
    """The padding with which the result has the shape it had: changed at one end of each axis, cut where negative."""
    numbers, pads = params["dimension_numbers"], []
    wanted = np.shape(look.tape.values[op.outputs[0]])
    for axis, pair in enumerate(params["padding"]):
        n, k = lhs[numbers.lhs_spec[2 + axis]], rhs[numbers.rhs_spec[2 + axis]]
        spread = (n - 1) * params["lhs_dilation"][axis] + 1
        reach = (k - 1) * params["rhs_dilation"][axis] + 1
        whole = (wanted[numbers.out_spec[2 + axis]] - 1) * params["window_strides"][axis] + reach
        pads.append((pair[0], whole - spread - pair[0]) if end else (whole - spread - pair[1], pair[1]))
    return tuple(pads)
