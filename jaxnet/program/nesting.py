"""The loops around an operation, and at which of their steps it ran."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxnet.program.evaluate import RAN, Kept
from jaxnet.program.graph import Graph, Operation

STACKS = {"scan": "scan step", "while": "while step", "shard_map": "shard"}  # their bodies' values have one axis more


class Nested(NamedTuple):
    """An operation with the loops, branches and rules around it; of each, the number of the body."""

    operation: Operation
    around: tuple[tuple[Operation, int], ...]

    @property
    def stacks(self) -> list[Operation]:
        """Those around it that stack the values inside, from the outside."""
        return [outer for outer, _ in self.around if outer.kind in STACKS]

    def steps(self, kept: Kept, shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """The steps of the loops around it at which it ran; `shape` is that of a value kept of it."""
        ran = np.ones(shape[: len(self.stacks)], bool)
        for outer, body in self.around:
            mask = kept.get((outer.number, RAN) if outer.kind == "while" else (outer.number, RAN, body))
            if mask is not None:
                mask = np.asarray(mask)
                ran &= mask.reshape(mask.shape + (1,) * (ran.ndim - mask.ndim))
        return (tuple(map(int, index)) for index in np.argwhere(ran))

    def path(self, step: tuple[int, ...]) -> tuple[str, ...]:
        """The path from the outside with the steps in it: "f", "scan step 3"."""
        parts = list(self.operation.path)
        for outer, index in zip(self.stacks, step, strict=True):
            parts[len(outer.path)] = f"{STACKS[outer.kind]} {index}"
        return tuple(parts)


def nested(graph: Graph, around: tuple[tuple[Operation, int], ...] = ()) -> Iterator[Nested]:
    """Every operation of a graph with the loops around it; inner ones come after the one that runs them."""
    for operation in graph.operations:
        yield Nested(operation, around)
        for i, body in enumerate(operation.bodies):
            yield from nested(body, (*around, (operation, i)))
