"""Tables for NumPy classes: the arguments of a backward pass, and the cost that one without a cotangent belongs to."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.checking.held_arrays import arrays_in

NEAR, ZERO = 1e-3, 1e-7  # relative errors of a slope; slopes below the second tell nothing
OUTPUT = "output"  # where a forward pass that returns nothing leaves its output
Arguments = Callable[[Any, Sequence, Sequence, Sequence, Sequence], Sequence]

WITH_COTANGENT: dict[str, Arguments] = {
    "d_out": lambda thing, x, y, outs, d: d,
    "d_out, *inputs": lambda thing, x, y, outs, d: [*d, *x],
    "*inputs, d_out": lambda thing, x, y, outs, d: [*x, *d],
}
OF_A_COST: dict[str, Arguments] = {  # there a derivative is given, and no cotangent taken
    "": lambda thing, x, y, outs, d: [],
    "*inputs": lambda thing, x, y, outs, d: x,
    "out": lambda thing, x, y, outs, d: outs[:1],
    "self.output, target": lambda thing, x, y, outs, d: [getattr(thing, OUTPUT), *x[1:]],
}
OF_A_NETWORK: dict[str, Arguments] = {
    "*inputs, target, out": lambda thing, x, y, outs, d: [*x, *y, *outs[:1]],
    "*inputs, target": lambda thing, x, y, outs, d: [*x, *y],
    "target, out": lambda thing, x, y, outs, d: [*y, *outs[:1]],
    "out, target": lambda thing, x, y, outs, d: [*outs[:1], *y],
    "target": lambda thing, x, y, outs, d: y,
    "[(*inputs, target)]": lambda thing, x, y, outs, d: [[(*x, *y)]],
    "": lambda thing, x, y, outs, d: [],
}
WITHOUT_INPUTS: dict[str, Arguments] = {each: OF_A_COST[each] for each in ("", "out")}
AND_RATE = ", learning_rate"


class Cost(NamedTuple):
    """The cost that a backward pass without a cotangent belongs to: (object, out, target) -> a number, in words."""

    words: str
    value: Callable[[Any, Any, Any], Any]
    factor: float = 1.0
    out: int = 0  # which of the outputs
    target: tuple[str, ...] = ()  # the array of the object that is the target, where it is no input


def logarithms(p: Any, target: Any) -> Any:
    """Σ target log p; labels are one-hot, of rows or of columns."""
    log = (jnp.log if isinstance(p, jax.Array) else np.log)(p)
    if np.ndim(target) == np.ndim(p):
        return (target * log).sum()
    rows = np.shape(p)[:-1] == np.shape(target)
    of = np.eye(p.shape[-1 if rows else 0])[target]
    return ((of if rows else np.moveaxis(of, -1, 0)) * log).sum()


def fits(out: Any, target: Any) -> bool:
    """Whether an array may be the target of an output: of its shape, or labels of its rows or columns."""
    shape, labels = np.shape(target), np.result_type(target).kind in "iu" and np.ndim(out) == 2
    return shape == np.shape(out) or (labels and shape in (np.shape(out)[:-1], np.shape(out)[1:]))


OUT = Cost("", lambda thing, out, target: out)
OF_EXAMPLES = [Cost("the mean of the losses", lambda thing, out, y: out.mean()),
               Cost("the sum of the losses", lambda thing, out, y: out.sum())]  # fmt: skip
OF_TARGETS = [
    Cost("Σ ½(out − target)²", lambda thing, out, y: ((out - y) ** 2).sum() / 2),
    Cost("−Σ target log out", lambda thing, out, y: -logarithms(out, y)),
    Cost("−Σ target log out + (1 − target) log(1 − out)",
         lambda thing, out, y: -logarithms(out, y) - logarithms(1 - out, 1 - y)),
]  # fmt: skip


def costs(layer: Any, outs: Sequence, inputs: Sequence) -> list[Cost]:
    """The costs that a backward pass without a cotangent may belong to.

    The target is an input that the forward pass does not take; where there are no inputs, an array of the object.
    """
    out, thing = outs[0], layer.thing
    if layer.takes == len(inputs) and (inputs or layer.is_cost):
        entries = np.ndim(out) == 0 or np.shape(out) in map(np.shape, inputs)  # a cost, or a function of each entry
        losses = np.size(out) == len(out) if np.ndim(out) else False  # one for each example
        return [OUT] * entries + OF_EXAMPLES * losses
    methods = [name for name in dir(thing) if re.search("loss|cost", name.lower())]
    own = [
        Cost(f"{name}({words})", value)
        for name in methods if callable(getattr(thing, name))
        for words, value in (("target, out", lambda thing, out, y, name=name: getattr(thing, name)(y, out)),
                             ("out, target", lambda thing, out, y, name=name: getattr(thing, name)(out, y)))
    ]  # fmt: skip
    if inputs:
        return own + OF_TARGETS
    held = {path: value for path, value in arrays_in(thing, "biuf").items() if path not in layer.params}
    return [
        cost._replace(out=k, target=(path,))
        for k, each in reversed(list(enumerate(outs)))
        for path, value in held.items() if np.ndim(each) and fits(each, value)
        for cost in own + OF_TARGETS
    ]  # fmt: skip


Slopes = Sequence[tuple[np.ndarray, np.ndarray]]
"""Of each gradient the slopes along some directions: its own, and those of the cost."""


def best_factor(slopes: Slopes, factors: Sequence[float], *, measured: bool) -> tuple[int, float]:
    """How many gradients are right at most with one factor of the cost, and this factor, the first of several.

    `measured`: the ratios of the slopes are tried too.
    """

    def right(factor: float) -> int:
        sizes = [(np.abs(g - factor * e).max(), np.abs([g, factor * e]).max(), np.abs(g).max()) for g, e in slopes]
        return sum(off <= NEAR * size for off, size, own in sizes if own > ZERO)

    tried = [*factors, *(tidy(g[0] / e[0]) for g, e in slopes if measured and g[0] * e[0] > 0)]
    best = max(tried, key=right)
    return right(best), best


def tidy(factor: float) -> float:
    """A factor that was measured, as the simple fraction or decimal that it is.

    >>> tidy(0.0333333341), tidy(0.0199999998)
    (0.03333333333333333, 0.02)
    """
    power = 10.0 ** np.floor(np.log10(factor))
    simple = Fraction(factor / power).limit_denominator(200)
    near = float(f"{float(simple) * power:.16g}")
    return near if abs(near - factor) <= 1e-6 * factor else factor
