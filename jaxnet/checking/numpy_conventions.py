"""Tables for NumPy classes: the arguments of a backward pass, and the cost that one without a cotangent belongs to."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

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
}
RATE = ", learning_rate"


class Cost(NamedTuple):
    """The cost that a backward pass without a cotangent belongs to: (object, out, target) -> a number, in words."""

    words: str
    value: Callable[[Any, Any, Any], Any]
    factor: float = 1.0


def logarithms(p: Any, target: Any) -> Any:
    """Σ target log p; labels are one-hot."""
    of = np.eye(p.shape[-1])[target] if np.ndim(target) < np.ndim(p) else target
    return (of * np.log(p)).sum()


OUT = Cost("", lambda thing, out, target: out)
OF_EXAMPLES = [Cost("the mean of the losses", lambda thing, out, y: out.mean()),
               Cost("the sum of the losses", lambda thing, out, y: out.sum())]  # fmt: skip
OF_TARGETS = [
    Cost("Σ ½(out − target)²", lambda thing, out, y: ((out - y) ** 2).sum() / 2),
    Cost("−Σ target log out", lambda thing, out, y: -logarithms(out, y)),
    Cost("−Σ target log out + (1 − target) log(1 − out)",
         lambda thing, out, y: -logarithms(out, y) - logarithms(1 - out, 1 - y)),
]  # fmt: skip


def costs(thing: Any, out: Any, inputs: Sequence, takes: int) -> list[Cost]:
    """The costs that a backward pass without a cotangent may belong to; forward takes the first `takes` inputs."""
    if takes == len(inputs):
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
    return own + OF_TARGETS
