"""Matrix products: the dtype that sums are taken in, and a transposed operand as a CPU's own units take it.

In bfloat16 on a CPU, XLA's product with the CPU's own units takes operands as they lie, and for a transposed one falls
back to another, five times slower. So there the operand is laid out before. Written as a transpose alone, it would be
folded into the product again.
"""

from typing import Any

import jax
import jax.numpy as jnp

LANES = 16  # columns that are laid out at a time


def accumulated(dtype) -> Any:
    """The dtype that sums of `dtype` are taken in: at least float32."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def product(a: jax.Array, b: jax.Array, out_sharding=None) -> jax.Array:
    """a b, multiplied in the dtype of b, summed and given in float32 or better."""
    wide = accumulated(b.dtype)
    return jnp.matmul(a.astype(b.dtype), b, preferred_element_type=wide, out_sharding=out_sharding)


def can_be_laid_out(t: jax.Array) -> bool:
    """Whether a matrix is one that `laid_out` transposes faster than a product would."""
    return t.dtype == jnp.bfloat16 and t.shape[-1] % LANES == 0


def laid_out(t: jax.Array) -> jax.Array:
    """tᵀ of a matrix (m, n), written to memory where that makes its product faster."""
    if not can_be_laid_out(t):
        return t.T
    m, n = t.shape
    return t.reshape(m, n // LANES, LANES).transpose(1, 2, 0).reshape(n, m)


def times(W: jax.Array, a: jax.Array) -> jax.Array:
    """W a at each position, as the row a Wᵀ, Wᵀ laid out."""
    return product(a, laid_out(W)).astype(a.dtype)


def sum_of_outer(delta: jax.Array, a: jax.Array, *, out_sharding) -> jax.Array:
    """δᵀ a, δᵀ laid out."""
    return product(laid_out(delta), a, out_sharding)


def inner_products(a: jax.Array, b: jax.Array) -> jax.Array:
    """a bᵀ, bᵀ laid out."""
    return product(a, laid_out(b))
