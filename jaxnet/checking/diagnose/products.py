"""Matrix products and sums: transposed, inverted, over other axes, of one term only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np

from jaxnet.checking.diagnose.scene import (
    Mutant,
    Scene,
    on_output,
    operand,
    planted,
    replaced,
    says,
    square,
    swapped,
)
from jaxnet.checking.diagnose.tape import Looking, Op, Site

_UNSUMMED = "{1} is not summed: the sum over the row is missing, each entry only meets its own term {0} (diagonal only)"
_MATRIX: tuple[tuple[str, Callable[[Any], Any], str, float], ...] = (
    ("sign", np.sign, "sign({0}) in the place of {0}: sign feedback", 1.6),
    (
        "sign mean",
        lambda x: np.sign(x) * np.mean(np.abs(x)),
        "sign({0})·mean|{0}| in the place of {0}: sign feedback",
        1.7,
    ),
    ("abs", np.abs, "|{0}| in the place of {0}", 1.8),
)
_INVERSE = "the inverse of {0} in the place of its transpose"


def products(scene: Scene) -> Iterator[Mutant]:
    """Matrix products: operands transposed, inverted, by their sign; the result transposed; one index only."""
    for site, op in scene.linear():
        if op.name == "dot_general":
            for j in range(2):
                yield from _operands(scene, site, op, j)
            yield from _contractions(scene, site, op)
            if square(scene.tape.values[op.outputs[0]]):
                change = on_output(lambda op, x, look: swapped(x))
                yield planted(site, ("out.T",), change, 1.1, says(op, "the product {1} comes out transposed"))


def _operands(scene: Scene, site: Site, op: Op, j: int) -> Iterator[Mutant]:
    """One operand of a product as another matrix."""
    value, moving = scene.tape.values[op.inputs[j]], scene.tape.linear[op.inputs[j]]
    if square(value):
        words = "{0} transposed, or not transposed where it should be,"
        yield operand(site, op, j, "transposed", swapped, words, 1.1)
    if square(value) and not moving:
        yield operand(site, op, j, "inverse", np.linalg.inv, _INVERSE, 1.6)
        yield operand(site, op, j, "inverse.T", lambda x: swapped(np.linalg.inv(x)), _INVERSE, 1.61)
    for kind, function, words, cost in _MATRIX if not moving else ():
        yield operand(site, op, j, kind, function, words, cost)
    if square(value):
        words = "the diagonal of {0} is missing, as by a mask that is off by one,"
        yield operand(site, op, j, "diagonal", _without_diagonal, words, 1.6)
    if not moving and np.ndim(value) >= 2:
        words = "{0} divided by its norm in the place of {0}"
        yield operand(site, op, j, "normed", lambda x: x / np.linalg.norm(x), words, 1.9)
    for axis in range(np.ndim(value)):
        if value.shape[axis] > 1 and (moving or np.ndim(value) > 1):
            flipped = f"{{0}} flipped along axis {axis}"
            yield operand(site, op, j, f"flip{axis}", lambda x, a=axis: np.flip(x, a), flipped, 1.8)


def _without_diagonal(x: Any) -> Any:
    """x with zeros where its last two axes meet."""
    return np.where(np.eye(x.shape[-1], dtype=bool), np.zeros((), x.dtype), x)


def _contractions(scene: Scene, site: Site, op: Op) -> Iterator[Mutant]:
    (left, _), _ = op.params["dimension_numbers"]
    for nth, axis in enumerate(left):
        size = np.shape(scene.tape.values[op.inputs[0]])[axis]
        for index, word in ((0, "first"), (-1, "last")) if size > 1 else ():

            def one(op, ins, look, nth=nth, index=index):
                (left, right), _ = op.params["dimension_numbers"]
                a = np.take(ins[0], [index], left[nth])
                b = np.take(ins[1], [index], right[nth])
                return op.run([a, b])

            words = f"only the {word} of the {size} terms (axis {axis}) is summed in {{1}}, the others are missing"
            yield planted(site, (word, nth), one, 1.4, says(op, words))


def sums(scene: Scene) -> Iterator[Mutant]:
    """Sums over another axis, of one term only, or not taken at all; cumulative sums the other way round."""
    for site, op in [*scene.linear(), *scene.residual()]:
        if op.name in ("cumsum", "cumprod", "cummax", "cumlogsumexp"):
            yield planted(site, ("reverse",), replaced(_backwards), 1.2, says(op, "{1} runs in the wrong direction"))
        if op.name not in ("reduce_sum", "reduce_keep"):
            continue
        axes, shape, keep = op.params["axes"], np.shape(scene.tape.values[op.inputs[0]]), op.name == "reduce_keep"
        if keep:
            change = replaced(lambda op, ins, look: ins[0])
            yield planted(site, ("unsummed",), change, 1.3, says(op, _UNSUMMED))
        for (nth, axis), (index, word) in product(enumerate(axes), ((0, "first"), (-1, "last"))):
            if shape[axis] > 1:

                def one(op, ins, look, nth=nth, index=index):
                    return op.run([np.take(ins[0], [index], op.params["axes"][nth])])

                words = f"{{1}} has only the {word} of its {shape[axis]} terms (axis {axis}), the others are missing"
                yield planted(site, (word, nth), one, 1.4, says(op, words))
        for other in _other_axes(axes, len(shape)):
            left, right = ([n for a, n in enumerate(shape) if a not in some] for some in (other, axes))
            if keep or left == right:
                change = replaced(lambda op, ins, look, o=other, k=keep: np.sum(ins[0], o, keepdims=k))
                words = f"{{1}} is summed over axis {_axes(other)} and not {_axes(axes)}: the wrong axis"
                yield planted(site, ("axes", other), change, 1.5, says(op, words))
                ratio = np.prod([shape[a] for a in axes]) / np.prod([shape[a] for a in other])
                if keep and ratio not in (1, np.inf):
                    change = replaced(lambda op, ins, look, o=other: _as_mean(op, ins[0], o))
                    words = f"the mean in {{1}} is taken over axis {_axes(other)} and not {_axes(axes)}: the wrong axis"
                    yield planted(site, ("mean over", other), change, 1.5, says(op, words))


def _as_mean(op: Op, x: Any, other: tuple[int, ...]) -> Any:
    """The sum over other axes, for as many terms as the right one has: what is divided by their number is a mean."""
    return np.sum(x, other, keepdims=True) * np.asarray(
        np.prod([x.shape[a] for a in op.params["axes"]]) / np.prod([x.shape[a] for a in other]), x.dtype
    )


def _backwards(op: Op, ins: Sequence[Any], look: Looking) -> Any:
    """A cumulative sum from the other end."""
    return np.flip(op.run([np.flip(ins[0], op.params["axis"])])[0], op.params["axis"])


def _other_axes(axes, ndim: int) -> list[tuple[int, ...]]:
    if len(axes) == 1:
        return [(a,) for a in range(ndim) if a not in axes] + ([tuple(range(ndim))] if ndim > 1 else [])
    rest = tuple(a for a in range(ndim) if a not in axes)
    return [(a,) for a in axes] + ([rest] if rest else [])


def _axes(axes) -> str:
    return ", ".join(str(a) for a in axes)
