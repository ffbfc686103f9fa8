"""Schedules of a pipeline: what each stage computes, and when.

A network is cut into p stages, each on a device of its own, and a batch into m microbatches. A stage has three things
to do for each microbatch:

    F   forward: its activations go to the next stage
    B   backward for the activations: δ goes to the stage before
    W   backward for the weights: the factors (δ, a) that B kept are multiplied out; nobody waits for it

While a stage waits it computes nothing: the bubble. With m microbatches and equal times the published bubbles are, of a
stage's work, (p − 1)/m for `gpipe` and `1f1b`, (p − 1)/(3m) for `zb-h1`, and 0 for `zb-h2`, which keeps about twice as
many microbatches.

Sources: Huang et al., GPipe, 2019; Narayanan et al., PipeDream, 2019 (1F1B); Qi et al., Zero Bubble Pipeline
Parallelism, 2024, arXiv 2401.10241, §2 and table 1.
"""

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from jaxnet.registry import did_you_mean


class Op(IntEnum):
    """What a stage does in one tick."""

    IDLE = 0
    F = 1
    B = 2
    W = 3
    BW = 4  # B and W at once, so that no factors are kept


Task = tuple[Op, int]
"""What to do, and for which microbatch."""


class Rule(NamedTuple):
    """How a schedule chooses.

    - `split`: whether W is apart from B.
    - `ahead(stages, stage, microbatches)`: by how many microbatches F may be ahead of B in a stage.
    - `kept(stages, microbatches)`: by how many F may be ahead of W: the most that any stage keeps.
    """

    split: bool
    ahead: Callable[[int, int, int], int]
    kept: Callable[[int, int], int]
    about: str


SCHEDULES = {
    "gpipe": Rule(False, lambda p, s, m: m, lambda p, m: m, "all F, then all B and W: keeps every microbatch"),
    "1f1b": Rule(False, lambda p, s, m: p - s, lambda p, m: p, "F, then B and W, in turn: keeps p microbatches"),
    "zb-h1": Rule(True, lambda p, s, m: p - s, lambda p, m: p, "W in the bubbles: a third of the bubble, p kept"),
    "zb-h2": Rule(
        True, lambda p, s, m: 2 * (p - s) - 1, lambda p, m: 2 * p - 1, "more F at first: no bubble, 2p − 1 kept"
    ),
}
"""The schedules, by their published names."""


class Times(NamedTuple):
    """How long F, B and W of one microbatch take in one stage, and a transfer between two stages; in any unit."""

    F: float = 1.0
    B: float = 1.0
    W: float = 1.0
    transfer: float = 0.0

    def of(self, op: Op) -> float:
        """How long an operation takes."""
        return {Op.IDLE: 0.0, Op.F: self.F, Op.B: self.B, Op.W: self.W, Op.BW: self.B + self.W}[op]


class Run(NamedTuple):
    """A schedule played with times.

    - `starts`, `ends`: for each stage, when each of its tasks starts and ends.
    - `bubble`: the longest time that a stage waits between its first task and its last, over the time it works.
    - `kept`: for each stage, the most microbatches that it keeps at once, for B or for W.
    """

    starts: tuple[tuple[float, ...], ...]
    ends: tuple[tuple[float, ...], ...]
    bubble: float
    kept: tuple[int, ...]

    @property
    def duration(self) -> float:
        """From the first task's start to the last one's end."""
        return max(ends[-1] for ends in self.ends)


class Schedule(NamedTuple):
    """The tasks of each stage, in order."""

    name: str
    microbatches: int
    orders: tuple[tuple[Task, ...], ...]

    @property
    def stages(self) -> int:
        """The number of stages."""
        return len(self.orders)

    def run(self, times: Times = Times()) -> Run:
        """Play the schedule: a task starts once its stage is free and what it needs has come.

        >>> round(schedule("1f1b", 4, 8).run().bubble, 3), round(schedule("zb-h1", 4, 8).run().bubble, 3)
        (0.375, 0.125)
        """
        ended: dict[tuple[Op, int, int], float] = {}
        starts: list[list[float]] = [[] for _ in self.orders]
        ends: list[list[float]] = [[] for _ in self.orders]
        while sum(map(len, ends)) < sum(map(len, self.orders)):
            for stage, order in enumerate(self.orders):
                while len(ends[stage]) < len(order):
                    op, i = order[len(ends[stage])]
                    needs = needed(op, stage, self.stages, i)
                    if any(need not in ended for need in needs):
                        break
                    came = [ended[need] + (times.transfer if need[1] != stage else 0.0) for need in needs]
                    start = max([ends[stage][-1] if ends[stage] else 0.0, *came])
                    starts[stage].append(start)
                    ends[stage].append(start + times.of(op))
                    ended[Op.B if op is Op.BW else op, stage, i] = ends[stage][-1]
        bubbles = [
            (end[-1] - start[0]) / sum(times.of(op) for op, _ in order) - 1
            for start, end, order in zip(starts, ends, self.orders, strict=True)
        ]
        return Run(
            tuple(map(tuple, starts)), tuple(map(tuple, ends)), max(0.0, *bubbles), tuple(map(most_kept, self.orders))
        )

    def table(self) -> np.ndarray:
        """The schedule in ticks, in which every stage does one task: (ticks, stages, 2), operation and microbatch."""
        ticks = self.run(Times(1.0, 1.0, 1.0))
        unit = self.run(Times(1.0, 1.0, 0.0)) if not any(op is Op.W for op, _ in self.orders[0]) else ticks
        rows = np.zeros((round(unit.duration), self.stages, 2), np.int32)
        for stage, (starts, order) in enumerate(zip(unit.starts, self.orders, strict=True)):
            for start, (op, i) in zip(starts, order, strict=True):
                rows[round(start), stage] = op, i
        return rows

    def text(self) -> str:
        """The ticks as a picture: a row for each stage, `F3` for the forward pass of microbatch 3.

        >>> print(schedule("zb-h1", 2, 3).text())
        F0 F1 B0 F2 B1 W0 B2 W1 W2
        .. F0 B0 F1 B1 F2 B2 W0 W1 W2
        """
        width = len(str(self.microbatches - 1))
        empty = "." * (1 + width)
        rows = [
            " ".join(f"{Op(op).name[0]}{i:0{width}}" if op else empty for op, i in self.table()[:, stage])
            for stage in range(self.stages)
        ]
        while all(row.endswith(f" {empty}") for row in rows):
            rows = [row.removesuffix(f" {empty}") for row in rows]
        return "\n".join(rows)


def needed(op: Op, stage: int, stages: int, i: int) -> list[tuple[Op, int, int]]:
    """What must have ended, on which stage, before a task may start."""
    if op is Op.F:
        return [(Op.F, stage - 1, i)] if stage else []
    if op is Op.W:
        return [(Op.B, stage, i)]
    return [(Op.B, stage + 1, i)] if stage + 1 < stages else [(Op.F, stage, i)]


def most_kept(order: Sequence[Task]) -> int:
    """The most microbatches at once whose F is done and whose W is not."""
    kept = np.cumsum([{Op.F: 1, Op.W: -1, Op.BW: -1}.get(op, 0) for op, _ in order])
    return int(kept.max())


def schedule(name: str, stages: int, microbatches: int) -> Schedule:
    """The schedule of a name in `SCHEDULES`, for `stages` stages and `microbatches` microbatches.

    Tick by tick each stage does what others wait for first: B where δ has come, else F while it may keep one more
    microbatch, else W. Without a split, B and W are one task.
    Raises `ValueError` for a name that there is none of, or less than one stage or microbatch.
    """
    if name not in SCHEDULES:
        raise ValueError(f"no schedule {name!r}: {did_you_mean(name, SCHEDULES)}")
    if stages < 1 or microbatches < 1:
        raise ValueError(f"a pipeline takes at least one stage and one microbatch, got {stages} and {microbatches}")
    rule = SCHEDULES[name]
    back = Op.B if rule.split else Op.BW
    done: dict[tuple[Op, int, int], int] = {}  # the tick in which it was
    counts = [{Op.F: 0, back: 0, Op.W: 0} for _ in range(stages)]
    last = Op.W if rule.split else back
    orders: list[list[Task]] = [[] for _ in range(stages)]
    tick = 0
    while min(count[last] for count in counts) < microbatches:
        for stage, count in enumerate(counts):

            def ready(op: Op, stage=stage, count=count) -> bool:
                needs = needed(op, stage, stages, count[op])
                return count[op] < microbatches and all(done.get(need, tick) < tick for need in needs)

            ahead, kept = count[Op.F] - count[back], count[Op.F] - count[last]
            may_keep = ahead < rule.ahead(stages, stage, microbatches) and kept < rule.kept(stages, microbatches)
            if may_keep and ready(Op.F):
                op = Op.F
            elif ready(back):
                op = back
            elif rule.split and ready(Op.W):
                op = Op.W
            else:
                continue
            done[Op.B if op is Op.BW else op, stage, count[op]] = tick
            orders[stage].append((op, count[op]))
            count[op] += 1
        tick += 1
    return Schedule(name, microbatches, tuple(map(tuple, orders)))
