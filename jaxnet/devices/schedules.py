"""Schedules of a pipeline: each stage's tasks, and their times.

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

import math
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from jaxnet.registry import did_you_mean


class Task(IntEnum):
    """The work of a stage in one tick."""

    IDLE = 0
    F = 1
    B = 2
    W = 3
    BW = 4  # B and W at once, so that no factors are kept


class ScheduleError(ValueError):
    """An unknown schedule, or impossible sizes or times."""


Entry = tuple[Task, int]
"""A kind of work, and its microbatch."""


class Times(NamedTuple):
    """How long F, B and W of one microbatch take in one stage, and a transfer between two stages; in any unit."""

    F: float = 1.0
    B: float = 1.0
    W: float = 1.0
    transfer: float = 0.0

    def of(self, task: Task) -> float:
        """How long an operation takes."""
        return {Task.IDLE: 0.0, Task.F: self.F, Task.B: self.B, Task.W: self.W, Task.BW: self.B + self.W}[task]


EQUAL = Times()
"""F = B = W = 1, and transfers that take no time."""


class ScheduleRule(NamedTuple):
    """How a schedule chooses, and its published bubble.

    - `split`: whether W is apart from B.
    - `ahead(stages, stage, microbatches)`: by how many microbatches F may be ahead of B in a stage.
    - `kept(stages, microbatches)`: by how many F may be ahead of W: the most that any stage keeps.
    - `wait`: how often F, B and W stand in a stage's waiting time, for each stage but one.
    """

    split: bool
    ahead: Callable[[int, int, int], int]
    kept: Callable[[int, int], int]
    wait: tuple[int, int, int]

    def published_bubble(self, stages: int, microbatches: int, times: Times) -> float:
        """A stage's waiting over working time: (p − 1)(F + B + cW) / (m(F + B + W)), c = 1, −1, −2; at least 0."""
        wait = sum(c * t for c, t in zip(self.wait, times, strict=False))
        return max(0.0, (stages - 1) * wait / (microbatches * sum(times[:3])))


SCHEDULES = {
    "gpipe": ScheduleRule(False, lambda p, s, m: m, lambda p, m: m, (1, 1, 1)),
    "1f1b": ScheduleRule(False, lambda p, s, m: p - s, lambda p, m: min(p, m), (1, 1, 1)),
    "zb-h1": ScheduleRule(True, lambda p, s, m: p - s, lambda p, m: min(p, m), (1, 1, -1)),
    "zb-h2": ScheduleRule(True, lambda p, s, m: 2 * (p - s) - 1, lambda p, m: min(2 * p - 1, m), (1, 1, -2)),
}
"""The schedules, by their published names.

- `gpipe`: all F, then all B and W; every microbatch is kept.
- `1f1b`: F, then B and W, in turn; p microbatches are kept.
- `zb-h1`: W fills the bubbles; p microbatches are kept.
- `zb-h2`: more F at first, so that no bubble remains; 2p − 1 microbatches are kept.
"""


class Timeline(NamedTuple):
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
    orders: tuple[tuple[Entry, ...], ...]

    @property
    def stages(self) -> int:
        """The number of stages."""
        return len(self.orders)

    def played(self, times: Times = EQUAL) -> Timeline:
        """Play the schedule: a task starts once its stage is free and its inputs have come.

        >>> round(schedule("1f1b", 4, 8).played().bubble, 3), round(schedule("zb-h1", 4, 8).played().bubble, 3)
        (0.375, 0.125)
        """
        ended: dict[tuple[Task, int, int], float] = {}
        starts: list[list[float]] = [[] for _ in self.orders]
        ends: list[list[float]] = [[] for _ in self.orders]
        while sum(map(len, ends)) < sum(map(len, self.orders)):
            for stage, order in enumerate(self.orders):
                while len(ends[stage]) < len(order):
                    task, i = order[len(ends[stage])]
                    needs = needed(task, stage, self.stages, i)
                    if any(need not in ended for need in needs):
                        break
                    came = [ended[need] + (times.transfer if need[1] != stage else 0.0) for need in needs]
                    start = max([ends[stage][-1] if ends[stage] else 0.0, *came])
                    starts[stage].append(start)
                    ends[stage].append(start + times.of(task))
                    ended[Task.B if task is Task.BW else task, stage, i] = ends[stage][-1]
        bubbles = [
            (end[-1] - start[0]) / sum(times.of(task) for task, _ in order) - 1
            for start, end, order in zip(starts, ends, self.orders, strict=True)
        ]
        return Timeline(
            tuple(map(tuple, starts)), tuple(map(tuple, ends)), max(0.0, *bubbles), tuple(map(most_kept, self.orders))
        )

    def table(self) -> np.ndarray:
        """The schedule in ticks, in which every stage does one task: (ticks, stages, 2), operation and microbatch."""
        ticks = self.played(Times() if SCHEDULES[self.name].split else Times(W=0.0))
        rows = np.zeros((round(ticks.duration), self.stages, 2), np.int32)
        for stage, (starts, order) in enumerate(zip(ticks.starts, self.orders, strict=True)):
            for start, (task, i) in zip(starts, order, strict=True):
                rows[round(start), stage] = task, i
        return rows

    def text(self) -> str:
        """The schedule as a picture for F = B = W = 1: a row for each stage, `F3` for the F of microbatch 3.

        >>> print(schedule("zb-h1", 2, 3).text())
        F0 F1 .. B0 W0 F2 B1 W1 B2 W2
        .. F0 B0 F1 B1 W0 F2 B2 W1 W2
        """
        width = len(str(self.microbatches - 1))
        played = self.played()
        rows = []
        for starts, order in zip(played.starts, self.orders, strict=True):
            cells = ["." * (1 + width)] * round(played.duration)
            for start, (task, i) in zip(starts, order, strict=True):
                for after, letter in enumerate(task.name):
                    cells[round(start) + after] = f"{letter}{i:0{width}}"
            rows.append(" ".join(cells))
        return "\n".join(rows)


def needed(task: Task, stage: int, stages: int, i: int) -> list[tuple[Task, int, int]]:
    """The tasks, each with its stage, that must have ended before a task may start."""
    if task is Task.F:
        return [(Task.F, stage - 1, i)] if stage else []
    if task is Task.W:
        return [(Task.B, stage, i)]
    return [(Task.B, stage + 1, i)] if stage + 1 < stages else [(Task.F, stage, i)]


def most_kept(order: Sequence[Entry]) -> int:
    """The most microbatches at once whose F is done and whose W is not."""
    kept = np.cumsum([{Task.F: 1, Task.W: -1, Task.BW: -1}.get(task, 0) for task, _ in order])
    return int(kept.max())


def schedule(name: str, stages: int, microbatches: int) -> Schedule:
    """The schedule of a name in `SCHEDULES`, for `stages` stages and `microbatches` microbatches.

    In each tick a stage does F while it may keep one more microbatch, else B where δ has come, else W. Where the
    schedule does not split, B and W are one task.
    Raises `ScheduleError` for an unknown name, or less than one stage or microbatch.
    """
    if name not in SCHEDULES:
        raise ScheduleError(f"no schedule {name!r}: {did_you_mean(name, SCHEDULES)}")
    if stages < 1 or microbatches < 1:
        raise ScheduleError(f"a pipeline takes at least one stage and one microbatch, got {stages} and {microbatches}")
    rule = SCHEDULES[name]
    back, last = (Task.B, Task.W) if rule.split else (Task.BW, Task.BW)
    counts: list[dict[Task, int]] = [dict.fromkeys((Task.F, back, last), 0) for _ in range(stages)]
    orders: list[list[Entry]] = [[] for _ in range(stages)]
    ended: dict[tuple[Task, int, int], int] = {}
    tick = 0

    def ready(task: Task, stage: int) -> bool:
        i = counts[stage][task]
        if task is Task.F:
            count = counts[stage]
            ahead, kept = i - count[back], i - count[last]
            if ahead >= rule.ahead(stages, stage, microbatches) or kept >= rule.kept(stages, microbatches):
                return False
        return i < microbatches and all(ended.get(need, tick) < tick for need in needed(task, stage, stages, i))

    while any(count[last] < microbatches for count in counts):
        for stage, count in enumerate(counts):
            task = next((task for task in (Task.F, back, last) if ready(task, stage)), Task.IDLE)
            if task is not Task.IDLE:
                ended[Task.B if task is Task.BW else task, stage, count[task]] = tick
                orders[stage].append((task, count[task]))
                count[task] += 1
        tick += 1
    return Schedule(name, microbatches, tuple(map(tuple, orders)))


def lines(names: Sequence[str] = (), stages: int = 4, microbatches: int = 8, times: Times = EQUAL) -> list[str]:
    """Schedules as text: the cost of each beside the published one, then their pictures. All without a name.

    >>> print(*lines(["1f1b", "zb-h1"], 2, 2), sep="\\n")
    schedule   bubble  published  kept  time
    1f1b        0.500      0.500     2     9
    zb-h1       0.167      0.167     2     7
    <BLANKLINE>
    1f1b
    F0 F1 .. B0 W0 .. B1 W1 ..
    """
    chosen = {name: schedule(name, stages, microbatches) for name in names or SCHEDULES}
    table = ["schedule   bubble  published  kept  time"]
    pictures = []
    for name, plan in chosen.items():
        played = plan.played(times)
        published = SCHEDULES[name].published_bubble(stages, microbatches, times)
        table.append(f"{name:8} {played.bubble:8.3f} {published:10.3f} {max(played.kept):5d} {played.duration:5.4g}")
        pictures += ["", name, plan.text()]
    return [*table, *pictures]


def read_times(text: str) -> Times:
    """The times in a text, "1,1.2,0.8": of F, B and W, and perhaps of a transfer.

    Raises `ScheduleError` for other than three or four numbers, or a time that is negative, or 0 for F, B or W.

    >>> read_times("1, 1.2, 0.8")
    Times(F=1.0, B=1.2, W=0.8, transfer=0.0)
    """
    try:
        times = [float(each) for each in text.split(",")]
    except ValueError:
        times = []
    if len(times) not in (3, 4) or not all(map(math.isfinite, times)) or min(times[:3]) <= 0 or min(times) < 0:
        raise ScheduleError(
            f"times must be three or four numbers above 0, F,B,W or F,B,W,transfer, as 1,1,1; got {text!r}"
        )
    return Times(*times)
