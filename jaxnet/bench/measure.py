"""How variants of one computation are timed against each other: interleaved, as ratios with quartiles.

A shared machine drifts by more than the differences that matter, so every round runs each variant once, and a ratio is
taken within its round. The order is drawn anew for each: in one that only rotates each variant always runs after the
same other, in the caches and the memory that this one leaves.
"""

import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.lowering import plain_forms


class Variant(NamedTuple):
    """One way to compute a case.

    `run()` computes it to the end; `memory`: temporary bytes of its compiled program, None where it has none;
    `aim`: the most that our time may be of its time, and our memory of its memory; None for no aim. `source`: the JAX
    function and its arguments, None where it is none.
    """

    name: str
    run: Callable[[], Any]
    memory: int | None = None
    time_aim: float | None = None
    memory_aim: float | None = None
    source: tuple[Callable, tuple] | None = None


class TimedCase(NamedTuple):
    """A computation, our way to do it and others.

    `rounds`: how often each is timed. `flops`: operations of its matrix products, each multiplication and addition.
    """

    name: str
    ours: Variant
    others: Sequence[Variant]
    rounds: int = 15
    flops: float | None = None


def duration(seconds: float) -> str:
    """Seconds as people read them: 1.6 s, 112 ms."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


class Row(NamedTuple):
    """Our time and memory over another's. Below 1 is a win; times in seconds.

    `memory`: our temporary bytes. `fraction`: of the machine's rate of matrix products that ours reaches.
    """

    case: str
    against: str
    time_ratio: float
    quartiles: tuple[float, float]
    memory_ratio: float | None
    time_aim: float | None
    memory_aim: float | None
    seconds: float
    seconds_against: float
    memory: int | None = None
    fraction: float | None = None

    def verdict(self) -> str:
        """Whether the aims are met; an aim is met where it lies within the quartiles, too."""
        missed = []
        if self.time_aim is not None and self.quartiles[0] > self.time_aim:
            missed.append("time")
        if self.memory_aim is not None and self.memory_ratio is not None and self.memory_ratio > self.memory_aim:
            missed.append("memory")
        if self.time_aim is None and self.memory_aim is None:
            return ""
        return f"missed: {', '.join(missed)}" if missed else "met"

    def headings(self) -> tuple[str, ...]:
        """The headings."""
        return "case", "against", "time", "quartiles", "memory", "aim", "", "ours", "theirs", "temporary", "of the rate"

    def cells(self) -> tuple[str, ...]:
        """The row as text. Ratios below 1 are wins."""
        aims = (("time", self.time_aim), ("memory", self.memory_aim))
        return (
            self.case,
            self.against,
            f"{self.time_ratio:.3f}",
            f"{self.quartiles[0]:.3f}–{self.quartiles[1]:.3f}",
            "" if self.memory_ratio is None else f"{self.memory_ratio:.2f}",
            ", ".join(f"{what} ≤ {aim:.3g}" for what, aim in aims if aim is not None),
            self.verdict(),
            duration(self.seconds),
            duration(self.seconds_against),
            "" if self.memory is None else f"{self.memory / 2**20:.3g} MiB",
            "" if self.fraction is None else f"{self.fraction:.0%}",
        )


def compiled(name: str, f: Callable, *args, time_aim: float | None = None, memory_aim: float | None = None) -> Variant:
    """A variant that is a JAX function, compiled for these arguments."""
    program = jax.jit(f).lower(*args).compile()
    analysis = program.memory_analysis()  # None on a device that does not tell
    memory = analysis.temp_size_in_bytes if analysis else None
    return Variant(name, lambda: jax.block_until_ready(program(*args)), memory, time_aim, memory_aim, (f, args))


def by_plain_equations(ours: Variant) -> list[Variant]:
    """Our function without the forms of `jaxnet.lowering`, where its program has some: the gain of the forms."""
    if ours.source is None:
        return []
    f, arguments = ours.source
    text = jax.jit(f).lower(*arguments).as_text()
    with plain_forms():
        if jax.jit(f).lower(*arguments).as_text() == text:
            return []
        return [compiled("hand, plain equations", f, *arguments)]


def seconds(run: Callable[[], Any]) -> float:
    """How long one run takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(case: TimedCase) -> list[Row]:
    """Time a case's variants against ours, round by round; one row for each of the others."""
    case.ours.run()
    others = [other for other in (*case.others, *by_plain_equations(case.ours)) if runs(other)]
    variants = [case.ours, *others]
    times = np.empty((case.rounds, len(variants)))
    random = np.random.default_rng(0)
    for i in range(case.rounds):
        for j in random.permutation(len(variants)):
            times[i, j] = seconds(variants[j].run)
    return [row(case, times[:, 0], other, times[:, j]) for j, other in enumerate(others, start=1)]


def runs(other: Variant) -> bool:
    """Whether a variant runs; one that does not (`torch.compile` without a C++ compiler) is named, with the reason."""
    try:
        other.run()
    except Exception as error:
        print(f"{other.name} is left out, since it failed: {str(error).strip().splitlines()[0]}", file=sys.stderr)
        return False
    return True


def row(case: TimedCase, ours: np.ndarray, other: Variant, theirs: np.ndarray) -> Row:
    """The row of the times of ours and another, a time for each round."""
    low, median, high = np.quantile(ours / theirs, (0.25, 0.5, 0.75))
    memory = case.ours.memory / other.memory if case.ours.memory is not None and other.memory else None
    return Row(
        case.name,
        other.name,
        float(median),
        (float(low), float(high)),
        memory,
        other.time_aim,
        other.memory_aim,
        float(np.median(ours)),
        float(np.median(theirs)),
        case.ours.memory,
        case.flops / float(np.median(ours)) / matrix_rate() if case.flops else None,
    )


@lru_cache
def matrix_rate(size: int = 2048) -> float:
    """Operations a second of a product of two float32 matrices, the best of a few."""
    a = jnp.ones((size, size))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    return 2 * size**3 / min(seconds(lambda: jax.block_until_ready(product(a, a))) for _ in range(7))


def machine() -> dict[str, str | int]:
    """The machine and the versions of the measurement."""
    device = jax.devices()[0]
    return {
        "date": date.today().isoformat(),
        "device": device.device_kind if device.platform != "cpu" else processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
