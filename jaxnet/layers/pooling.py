"""Pooling: windows over the places of an image or a sequence, each channel by itself.

    max      out_p = max_k x_{sp+k−l}                dx: d_out_p added at the place of the winner, the first on ties
    average  out_p = 1/n_p Σ_k x_{sp+k−l}            dx: d_out_p / n_p added at each of the n_p places that p sees

p a position, k a tap of the window, s the stride, l the padding before the first place, which no maximum and no average
counts. Of a maximum the winner's tap is saved, one byte for each output, and not x.

Source: Dumoulin and Visin, A Guide to Convolution Arithmetic for Deep Learning, 2016, §3.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.layer import Layer, ShapeError, Static, leaf, no_params
from jaxnet.layers.windows import Padding, by, checked_padding, fits, for_each_axis, window_over
from jaxnet.lowering import form, op
from jaxnet.lowering import pooling as tiled
from jaxnet.lowering.products import accumulated
from jaxnet.lowering.windows import Window, pieces, put_back, tiles
from jaxnet.registry import maker

# ------------------------------------------------------------------------------------------------- the equations


def to_places_plain(d_out: jax.Array, winner: jax.Array | None, *, window: Window, shape: tuple[int, ...]) -> jax.Array:
    """d_out_p added at each place that p sees, or at the winner's alone; x's shape is `shape`."""
    dx = jnp.zeros(shape, d_out.dtype)
    for number, tap in enumerate(window.taps()):
        won = d_out if winner is None else jnp.where(winner == number, d_out, jnp.zeros_like(d_out))
        dx = dx + put_back(won, tap, window, shape[:-1])
    return dx


to_places = op(
    to_places_plain,
    cpu=form(tiled.to_places, when=lambda d_out, winner, *, window, shape: tiles(window), manual=True),
)

# ---------------------------------------------------------------------------------------------------- the layers


@maker(examples={"max_pool(2)": "float32[4,5,2]", 'max_pool(3, stride=2, padding="SAME")': "float32[5,4,2]"})
def max_pool(
    window: int | Sequence[int], *, stride: int | Sequence[int] | None = None, padding: Padding = "VALID"
) -> Layer:
    """out_p = max_k x_{sp+k−l}, over an image (height, width, channels) or a sequence (time, channels).

    `window`: a length, or one for each axis. `stride`: likewise; the window's where there is none. `padding`: "VALID"
    for none, "SAME", a number, or a pair (before, after) for each axis; below the window's length.
    Raises `ShapeError` for an input without places or smaller than the window; `ValueError` for options that do not
    hold.

    >>> x = jnp.arange(4.0)[:, None]
    >>> out, back = vjp(max_pool(2))((), x)
    >>> print(out.ravel(), back(out)[1].ravel())
    [1. 3.] [0. 1. 0. 3.]
    """
    window_of, accepts, title = pooling("max_pool", window, stride, padding)

    def forward(params, x, key=None, train=False):
        at = window_of(x)
        kind = jnp.uint8 if len(at.taps()) <= 256 else jnp.int32
        first, *others = pieces(x, at, fill=-jnp.inf)
        out, winner = first, jnp.zeros(first.shape, kind)
        for tap, piece in enumerate(others, start=1):
            better = (piece > out) | (piece != piece)  # a NaN wins
            out, winner = jnp.where(better, piece, out), jnp.where(better, jnp.asarray(tap, kind), winner)
        return out, (winner, Static((x.shape, at)))

    def backward(params, saved, d_out):  # out = max_k x_k
        winner, static = saved
        shape, at = static.value
        return to_places(d_out, winner, window=at, shape=shape), ()

    return leaf(title, no_params, forward, backward, accepts)


@maker(examples={'average_pool(3, stride=2, padding="SAME")': "float32[5,4,2]"})
def average_pool(
    window: int | Sequence[int], *, stride: int | Sequence[int] | None = None, padding: Padding = "VALID"
) -> Layer:
    """out_p = 1/n_p Σ_k x_{sp+k−l}, over an image (height, width, channels) or a sequence (time, channels).

    Arguments as `max_pool`'s; n_p counts the places that the window sees at p, not the padding.
    Raises as `max_pool`.

    >>> x = jnp.arange(4.0)[:, None]
    >>> out, back = vjp(average_pool(2))((), x)
    >>> print(out.ravel(), back(out)[1].ravel())
    [0.5 2.5] [0.25 0.25 1.25 1.25]
    """
    window_of, accepts, title = pooling("average_pool", window, stride, padding)

    def forward(params, x, key=None, train=False):
        at, wide = window_of(x), accumulated(x.dtype)
        first, *others = (piece.astype(wide) for piece in pieces(x, at))
        out = sum(others, start=first)
        return (out / seen(at, x.shape, wide)).astype(x.dtype), Static((x.shape, at))

    def backward(params, saved, d_out):  # out = 1/n Σ_k x_k
        shape, at = saved.value
        return to_places(d_out / seen(at, shape, d_out.dtype), None, window=at, shape=shape), ()

    return leaf(title, no_params, forward, backward, accepts)


@maker(examples={"global_average_pool()": "float32[3,4,2]"})
def global_average_pool() -> Layer:
    """out = the mean of x over all its places, a number for each channel: (*places, channels) -> (channels,).

    Raises `ShapeError` for an input without places.

    >>> out, back = vjp(global_average_pool())((), jnp.arange(4.0)[:, None])
    >>> print(out, back(out)[1].ravel())
    [1.5] [0.375 0.375 0.375 0.375]
    """

    def forward(params, x, key=None, train=False):
        return x.mean(range(x.ndim - 1), dtype=accumulated(x.dtype)).astype(x.dtype), Static(x.shape)

    def backward(params, saved, d_out):  # out = 1/n Σ x
        shape = saved.value
        return jnp.broadcast_to(d_out / math.prod(shape[:-1]), shape), ()

    return leaf("global_average_pool", no_params, forward, backward, has_places("global_average_pool"))


@maker(examples={"global_max_pool()": "float32[3,4,2]"})
def global_max_pool() -> Layer:
    """out = the greatest number of x over all places of a channel: (*places, channels) -> (channels,).

    The first wins a tie. Raises `ShapeError` for an input without places.

    >>> out, back = vjp(global_max_pool())((), jnp.arange(4.0)[:, None])
    >>> print(out, back(out)[1].ravel())
    [3.] [0. 0. 0. 3.]
    """

    def forward(params, x, key=None, train=False):
        rows = x.reshape(-1, x.shape[-1])
        winner = jnp.argmax(rows, axis=0)
        return jnp.take_along_axis(rows, winner[None], axis=0)[0], (winner, Static(x.shape))

    def backward(params, saved, d_out):  # out = max x
        winner, static = saved
        *places, channels = static.value
        row = jnp.arange(math.prod(places), dtype=winner.dtype)[:, None]
        won = jnp.broadcast_to(row, (len(row), channels)) == winner[None]
        return jnp.where(won, d_out[None], jnp.zeros((), d_out.dtype)).reshape(static.value), ()

    return leaf("global_max_pool", no_params, forward, backward, has_places("global_max_pool"))


# --------------------------------------------------------------------------------------------------------------- parts


def pooling(name: str, window, stride, padding):
    """The window over an input's places, the layer's `accepts`, and its title."""
    given = [value for value in (window, stride, padding) if not isinstance(value, int | str | None)]
    rank = len(given[0]) if given else None  # any, where one number stands for all axes
    title = f"{name} {window if isinstance(window, int) else by(window)}"

    def over(places):
        kernel = for_each_axis(f"{name}: window", window, len(places))
        strides = kernel if stride is None else for_each_axis(f"{name}: stride", stride, len(places))
        pads = checked_padding(name, padding, len(places))
        if not isinstance(pads, str) and any(max(pair) >= k for pair, k in zip(pads, kernel, strict=True)):
            raise ValueError(f"{name}: padding must be below the window's length, {by(kernel)}, got {padding!r}")
        return window_over(places, kernel, strides, (1,) * len(places), pads)

    over((1,) * (rank or 1))  # bad options are refused before there is an input

    def accepts(x, params):
        if rank is not None and x.ndim != rank + 1:
            raise ShapeError(
                f"{title} takes {rank} axes of places and one of channels, got shape {x.shape}: "
                "put reshape(…) before it, or give one number for all axes"
            )
        has_places(title)(x, params)
        fits(title, over(x.shape[:-1]), x.shape[:-1])

    return lambda x: over(x.shape[:-1]), accepts, title


def has_places(title: str):
    """`accepts` that refuses an input without places."""

    def accepts(x, params):
        if x.ndim < 2:
            raise ShapeError(
                f"{title} takes (*places, channels), got shape {x.shape}: put it before flatten(), "
                "or reshape(height, width, channels) before it"
            )

    return accepts


def seen(window: Window, shape: tuple[int, ...], dtype) -> jax.Array:
    """How many places the window sees at each position, over all channels."""
    *places, channels = shape
    spans = zip(places, window.padding, window.kernel, window.stride, window.positions(places), strict=True)
    counts = np.ones(())
    for n, (low, _), k, s, positions in spans:
        starts = np.arange(positions) * s - low
        inside = np.minimum(starts + k, n) - np.maximum(starts, 0)
        counts = counts[..., None] * inside
    return jnp.broadcast_to(jnp.asarray(counts, dtype)[..., None], (*counts.shape, channels))
