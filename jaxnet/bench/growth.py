"""How a GPT's step grows: its time over its operations, by the length of the sequences and by the depth.

A deep stack is one scan, so compiling should take no longer for a deeper one (measured where JAX keeps no programs on
disk); and a step should take the time of its products, at two rates: of those with weights, and of attention's pairs,
which are smaller.
"""

from collections.abc import Sequence
from functools import partial
from time import perf_counter as clock
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxnet.bench.cases.gpt import Sizes, step
from jaxnet.bench.measure import duration, seconds

SIZES = Sizes(batch=32, time=128, vocab=256, width=128, heads=4, depth=4)
Which = Literal["time", "depth"]
GROWTHS: dict[Which, tuple[str, tuple[int, ...]]] = {
    "time": ("length of the sequences", (128, 256, 512, 1024, 2048, 4096)),
    "depth": ("depth", (2, 4, 12, 24, 48)),
}
RUNS = 3


class Grown(NamedTuple):
    """A step at one value of one size: seconds of the best run and to compile, and operations of its products.

    `flops`: those with weights, and those of attention's pairs. `over_fit`: its seconds over those of the two rates
    that fit the whole series.
    """

    which: Which
    size: int
    seconds: float
    compile_seconds: float
    flops: tuple[float, float]
    over_fit: float = 1.0

    def headings(self) -> tuple[str, ...]:
        """The headings."""
        return "a GPT's step by", "", "time", "operations", "time over that of the fit", "to compile"

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        operations = f"{sum(self.flops) / 1e9:.3g} GF"
        compiling = duration(self.compile_seconds)
        return (
            GROWTHS[self.which][0],
            str(self.size),
            duration(self.seconds),
            operations,
            f"{self.over_fit:.3f}",
            compiling,
        )


def rows() -> list[Grown]:
    """Both series, each fitted by itself."""
    return [row for which, (_, values) in GROWTHS.items() for row in fitted(grown(SIZES, which, values))]


def grown(sizes: Sizes, which: Which, values: Sequence[int]) -> list[Grown]:
    """The step at some values of one of the sizes; with a longer time goes a smaller batch, of as many tokens."""
    found = []
    for value in values:
        own = sizes._replace(**{which: value})
        if which == "time":
            own = own._replace(batch=max(1, sizes.batch * sizes.time // value))
        arguments = own.arguments()
        began = clock()
        program = jax.jit(step(own.net())).lower(*arguments).compile()
        compiling = clock() - began
        run = partial(finished, program, arguments)
        run()
        best = min(seconds(run) for _ in range(RUNS))
        found.append(Grown(which, value, best, compiling, (own.weight_flops(), own.flops() - own.weight_flops())))
    return found


def finished(program: Any, arguments: tuple) -> Any:
    """The result of a program, once it is there."""
    return jax.block_until_ready(program(*arguments))


def fitted(series: Sequence[Grown]) -> list[Grown]:
    """The same with their `over_fit`: of two rates that fit all of them best, as fractions of each one's time."""
    fractions = np.array([row.flops for row in series]) / np.array([row.seconds for row in series])[:, None]
    per_flop, *_ = np.linalg.lstsq(fractions, np.ones(len(series)))
    return [row._replace(over_fit=float(1 / of_fit)) for row, of_fit in zip(series, fractions @ per_flop, strict=True)]
