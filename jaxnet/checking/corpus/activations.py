"""Mistakes in the slopes of activations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jaxnet.checking.corpus.case import Case, entering, normal
from jaxnet.checking.corpus.dense_layers import OBLONG

CASES: list[Case] = []
wrong = entering(CASES)


def _elementwise(name, primal, slope, words, sizes=OBLONG):
    """Enter a wrong slope of an elementwise function: `slope(x, g)` gives the gradient."""
    wrong(primal, normal(lambda n, o, i: (n, o), sizes=sizes), words, ("[0]",), name)(
        lambda args, g: (slope(args[0], g).astype(g.dtype),)
    )


def tanh(x):
    """tanh x."""
    return jnp.tanh(x)


def gelu(x):
    """The exact GELU, x Φ(x)."""
    return x * 0.5 * (1 + lax.erf(x / jnp.sqrt(jnp.asarray(2, x.dtype))))


def relu(x):
    """max(x, 0)."""
    return jnp.maximum(x, 0)


def leaky_relu(x):
    """x, and 0.1 x below zero."""
    return jnp.where(x > 0, x, 0.1 * x)


def swish(x):
    """x σ(x)."""
    return x * jax.nn.sigmoid(x)


_elementwise("45 tanh' = 1 - h", tanh, lambda x, g: g * (1 - jnp.tanh(x)), r"1 - tanh|1 - h|\(1 - ")
_elementwise("46 GELU: Phi alone", gelu, lambda x, g: g * jax.scipy.stats.norm.cdf(x), "missing|φ|Φ")
_elementwise("47 ReLU gated by the cotangent", relu, lambda x, g: jnp.where(g > 0, g, 0), "d_out > 0|cotangent")
_elementwise("48 leaky ReLU's slope lost", leaky_relu, lambda x, g: jnp.where(x > 0, g, 0), ("0\\.1", "missing"))
_elementwise("49 swish: sigma alone", swish, lambda x, g: g * jax.nn.sigmoid(x), "missing|σ")
