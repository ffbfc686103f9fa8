"""Matrix products: the dtype that sums are taken in, and operands as a CPU's own units take them."""

from typing import Any

import jax
import jax.numpy as jnp

LANES = 16  # columns that are laid out at a time


def accumulated(dtype) -> Any:
    """The dtype that sums of `dtype` are taken in: at least float32."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def transposed_operand(t: jax.Array) -> jax.Array:
    """tᵀ of a matrix (m, n), as an operand of a product.

    In bfloat16 on a CPU it is laid out before: XLA's product with the CPU's own units takes operands as they lie, and
    for a transposed one falls back to another, five times slower. Written as a transpose alone, it would be folded
    into the product again.
    """
    m, n = t.shape
    if t.dtype != jnp.bfloat16 or n % LANES:
        return t.T

    def laid_out(t):
        return t.reshape(m, n // LANES, LANES).transpose(1, 2, 0).reshape(n, m)

    return jax.lax.platform_dependent(t, cpu=laid_out, default=jnp.transpose)
