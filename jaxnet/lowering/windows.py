"""Windows that move over the places of an image or a sequence: convolution and pooling look through them.

At position p a window of stride s, dilation d and padding l before the first place sees, as its tap k, the place
s p + d k − l, along every axis; the rest is padding. Arrays are (…, *places, channels).
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Window(NamedTuple):
    """A window over places of a known number: one number, or one pair of padding before and after, for each axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]

    def reach(self) -> tuple[int, ...]:
        """The places that the window spans along each axis."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    def positions(self, places: Sequence[int]) -> tuple[int, ...]:
        """How many positions there are along each axis of so many places; below 1 where the window does not fit."""
        spans = zip(places, self.padding, self.reach(), self.stride, strict=True)
        return tuple((n + low + high - reach) // stride + 1 for n, (low, high), reach, stride in spans)

    def along_and_across(self) -> tuple["Window", "Window"]:
        """The window along the last axis alone, and along the others, over places that have their padding."""
        one, none = (1,) * (len(self.kernel) - 1), ((0, 0),) * len(self.kernel)
        kernel, stride, dilation, _ = self
        along = Window((*one, kernel[-1]), (*one, stride[-1]), (*one, dilation[-1]), none)
        return along, Window((*kernel[:-1], 1), (*stride[:-1], 1), (*dilation[:-1], 1), none)

    def taps(self) -> list[tuple[int, ...]]:
        """The taps in row-major order."""
        return list(itertools.product(*map(range, self.kernel)))


def padded(x: jax.Array, window: Window, fill: float = 0.0) -> jax.Array:
    """x: (…, *places, channels) with its padding, as `fill`."""
    if not any(any(pair) for pair in window.padding):
        return x
    leading = x.ndim - len(window.padding) - 1
    ends = [(0, 0, 0)] * leading + [(low, high, 0) for low, high in window.padding] + [(0, 0, 0)]
    return jax.lax.pad(x, jnp.asarray(fill, x.dtype), ends)


def pieces(x: jax.Array, window: Window, fill: float = 0.0) -> list[jax.Array]:
    """The input of each tap at every position, the padding as `fill`: arrays (…, *positions, channels)."""
    rank = len(window.kernel)
    leading = x.ndim - rank - 1
    positions = window.positions(x.shape[leading:-1])
    x = padded(x, window, fill)
    found = []
    for tap in window.taps():
        starts = [k * d for k, d in zip(tap, window.dilation, strict=True)]
        limits = [b + (p - 1) * s + 1 for b, p, s in zip(starts, positions, window.stride, strict=True)]
        found.append(
            jax.lax.slice(
                x,
                (0,) * leading + (*starts, 0),
                (*x.shape[:leading], *limits, x.shape[-1]),
                (1,) * leading + (*window.stride, 1),
            )
        )
    return found


def put_back(piece: jax.Array, tap: Sequence[int], window: Window, places: Sequence[int]) -> jax.Array:
    """The transpose of a tap's piece: each number at the place that it was taken from, zeros elsewhere."""
    rank = len(places)
    leading = piece.ndim - rank - 1
    ends = []
    for k, d, (low, _), s, n, p in zip(
        tap, window.dilation, window.padding, window.stride, places, piece.shape[leading:-1], strict=True
    ):
        start = k * d - low
        ends.append((start, n - start - (p - 1) * s - 1, s - 1))
    return jax.lax.pad(piece, jnp.zeros((), piece.dtype), [(0, 0, 0)] * leading + ends + [(0, 0, 0)])


def tiles(window: Window) -> bool:
    """Whether the windows lie side by side, neither overlapping nor padded: every place is seen once at most."""
    return (
        window.kernel == window.stride
        and math.prod(window.dilation) == 1
        and not any(any(pair) for pair in window.padding)
    )
