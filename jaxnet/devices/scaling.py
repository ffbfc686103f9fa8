"""Weak scaling on paper: a step on more and more devices, each with as many examples.

A step on n devices is repeated on c copies of them, which exchange their gradients, G bytes on each device, in rings.
Of n devices r have the same gradients, and share the traffic to other domains:

    inside a domain of d copies, at `link`       2 G (d − 1)/d / link
    between k domains, at `network`              2 G/(d r) (k − 1)/k / network

Left out are latency, uneven steps and a shared network, which make a step slower; and overlap, which makes it faster:
the exchange may run beside the backward pass, two thirds of the step.
"""

from collections.abc import Iterator
from typing import NamedTuple

from jaxnet.devices.chips import Chip

UP_TO = 4096
BACKWARD = 2 / 3  # of a step without exchange


class ScaledStep(NamedTuple):
    """A step on some number of devices: seconds without its new exchange, and of that exchange."""

    devices: int
    alone: float
    exchange: float

    @property
    def efficiency(self) -> tuple[float, float]:
        """The time without the exchange over the time with it: nothing overlaps, all that can does."""
        hidden = max(0.0, self.exchange - BACKWARD * self.alone)
        return self.alone / (self.alone + self.exchange), self.alone / (self.alone + hidden)


def scaled(seconds: float, gradients: float, devices: int, chip: Chip, replicas: int = 1) -> list[ScaledStep]:
    """Steps on `devices` · 1, 2, 4 … devices, up to `UP_TO`.

    seconds: of the step on `devices`. gradients: their bytes on each device. replicas: how many of `devices` have the
    same.
    """
    rows, copies = [], 1
    while devices * copies <= UP_TO:
        inside = min(copies, max(1, chip.domain // devices))
        domains = copies // inside
        exchange = 2 * gradients * (inside - 1) / inside / chip.link
        exchange += 2 * gradients / (inside * replicas) * (domains - 1) / domains / (chip.network or chip.link)
        rows.append(ScaledStep(devices * copies, seconds, exchange))
        copies *= 2
    return rows


def lines(rows: list[ScaledStep], chip: Chip) -> Iterator[str]:
    """The rows as text, with their assumptions."""
    yield "  devices   exchange   efficiency, nothing overlaps   exchange beside backward"
    for row in rows:
        both = "".join(f"{each:>27.1%}" for each in row.efficiency)
        yield f"  {row.devices:>7,} {1e3 * row.exchange:>7.3g} ms{both}"
    between = f", {chip.network / 1e9:.3g} GB/s between domains of {chip.domain:,}" if chip.network else ""
    yield f"  gradients in rings, {chip.link / 1e9:.3g} GB/s{between}; no latency, no uneven steps"
