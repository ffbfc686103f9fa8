"""Mistakes in normalisation: terms, axes and arrays of LayerNorm, BatchNorm and RMSNorm."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from jaxnet.checking.corpus.case import Rules, mean, normal

RULES = Rules()

# (batch, features)
NORMS = ((5, 6), (8, 24), (8, 129))
norm_args = normal(lambda n, d: (n, d), lambda n, d: (d,), lambda n, d: (d,), sizes=NORMS)
rms_args = normal(lambda n, d: (n, d), lambda n, d: (d,), sizes=NORMS)


def layer_norm(x, gamma, beta):
    """γ (x − m)/√(v + ε) + β, over the last axis."""
    m = jnp.mean(x, -1, keepdims=True)
    v = jnp.mean((x - m) ** 2, -1, keepdims=True)
    r = lax.rsqrt(v + 1e-5)
    return (x - m) * r * gamma[None, :] + beta[None, :]


def normed(x, axis=-1, ddof=0):
    """x̂ and 1/σ over an axis, the variance over n − `ddof`."""
    m = mean(x, axis)
    v = jnp.sum((x - m) ** 2, axis, keepdims=True) / (x.shape[axis] - ddof)
    r = lax.rsqrt(v + 1e-5)
    return (x - m) * r, r


@RULES.back_of(layer_norm, norm_args)
def layer_norm_back(args, g):
    x, gamma, _beta = args
    xh, r = normed(x)
    d = g * gamma[None, :]
    return r * (d - mean(d) - xh * mean(d * xh)), jnp.sum(g * xh, 0), g.sum(0)


def batch_norm(x, gamma, beta):
    """The same over the first axis."""
    m = jnp.mean(x, 0, keepdims=True)
    v = jnp.mean((x - m) ** 2, 0, keepdims=True)
    r = lax.rsqrt(v + 1e-5)
    return (x - m) * r * gamma[None, :] + beta[None, :]


@RULES.back_of(batch_norm, norm_args)
def batch_norm_back(args, g):
    x, gamma, _beta = args
    xh, r = normed(x, 0)
    d = g * gamma[None, :]
    return r * (d - mean(d, 0) - xh * mean(d * xh, 0)), jnp.sum(g * xh, 0), g.sum(0)


def rms_norm(x, gamma):
    """γ x/√(mean x² + ε), over the last axis."""
    s = jnp.mean(x**2, -1, keepdims=True)
    r = lax.rsqrt(s + 1e-5)
    return x * r * gamma[None, :]


@RULES.back_of(rms_norm, rms_args)
def rms_norm_back(args, g):
    x, gamma = args
    r = lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5)
    xh = x * r
    d = g * gamma[None, :]
    return r * (d - xh * mean(d * xh)), jnp.sum(g * xh, 0)


MISTAKES: tuple[tuple[str, ...], ...] = (
    ("layer_norm", "26 LayerNorm without its mean", "d - mean(d) - xh", "d - xh", "[0]",
     r"\bm\b", "missing|stop_gradient"),
    ("layer_norm", "27 LayerNorm without its projection", " - xh * mean(d * xh)", "", "[0]",
     r"\b[vr]\b", "missing|stop_gradient"),
    ("layer_norm", "28 LayerNorm without both", "(d - mean(d) - xh * mean(d * xh))", "d", "[0]",
     "two at once|both|and", "missing|stop_gradient"),
    ("layer_norm", "29 gamma left out", "g * gamma[None, :]", "g", "[0]", "gamma", "missing"),
    ("layer_norm", "30 wrong axis", "mean(d) - xh * mean(d * xh)", "mean(d, 0) - xh * mean(d * xh, 0)", "[0]", "axis"),
    ("layer_norm", "31 variance over n - 1", "return r * (d - mean(d) - xh * mean(d * xh))",
     "z, s = normed(x, ddof=1)\n    return s * (d - mean(d) - z * mean(d * z))", "[0]", "n − 1|n-1"),
    ("layer_norm", "32 d_gamma from x", "jnp.sum(g * xh, 0)", "jnp.sum(g * x, 0)", "[1]", r"\bx stands in the place"),
    ("batch_norm", "33 BatchNorm as in evaluation", "(d - mean(d, 0) - xh * mean(d * xh, 0))", "d", "[0]",
     "missing|stop_gradient", r"\bm\b|\bv\b"),
    ("rms_norm", "34 RMSNorm with LayerNorm's mean", "d - xh * mean", "d - mean(d) - xh * mean", "[0]", "mean"),
)  # fmt: skip
