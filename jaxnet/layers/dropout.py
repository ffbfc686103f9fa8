"""Dropout: while training, each entry is zero with probability p, and the others are divided by 1 − p.

    out = x ⊙ m / (1 − p)        m: 0 or 1, drawn anew for each example and step
    dx  = d_out ⊙ m / (1 − p)    the same m

Source: Srivastava et al., Dropout, JMLR 2014, §4, in the inverted form of §10 (scaled while training).
"""

import jax
import jax.numpy as jnp

from jaxnet.layer import Layer, leaf, no_params
from jaxnet.registry import maker


@maker(examples={"dropout(0.4)": "float32[40]"})
def dropout(drop_rate: float) -> Layer:
    """out = x ⊙ m / (1 − p) while training, x in evaluation; x of any shape. `drop_rate`: p, in [0, 1).

    Raises `ValueError` for a rate outside, and while training without a key.

    >>> net = dropout(0.5)
    >>> out, _ = net.forward((), jnp.ones(1000), jax.random.key(0), train=True)
    >>> print(jnp.unique(out))
    [0. 2.]
    """
    if not 0 <= drop_rate < 1:
        raise ValueError(f"a drop rate is at least 0 and below 1, got {drop_rate}")

    def masked(x, m):
        return jnp.where(m, x / (1 - drop_rate), jnp.zeros_like(x))

    def forward(params, x, key=None, train=False):
        if not train or drop_rate == 0:
            return x, None
        if key is None:
            raise ValueError("dropout draws its mask from a key while training, got none: pass key=jax.random.key(…)")
        m = jax.random.bernoulli(key, jnp.float32(1 - drop_rate), x.shape)  # the same mask whether x64 is on or not
        return masked(x, m), m

    def backward(params, m, d_out):
        return d_out if m is None else masked(d_out, m), ()

    return leaf(f"dropout {drop_rate:g}", no_params, forward, backward)
