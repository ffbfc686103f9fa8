"""Mistakes in normalisation: terms, axes and arrays of LayerNorm, BatchNorm and RMSNorm."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from jaxnet.checking.corpus.case import Case, entering, mean, normal

CASES: list[Case] = []
wrong = entering(CASES)


def layer_norm(x, gamma, beta):
    """γ (x − m)/√(v + ε) + β, over the last axis."""
    m = jnp.mean(x, -1, keepdims=True)
    v = jnp.mean((x - m) ** 2, -1, keepdims=True)
    r = lax.rsqrt(v + 1e-5)
    return (x - m) * r * gamma[None, :] + beta[None, :]


def batch_norm(x, gamma, beta):
    """The same over the first axis."""
    m = jnp.mean(x, 0, keepdims=True)
    v = jnp.mean((x - m) ** 2, 0, keepdims=True)
    r = lax.rsqrt(v + 1e-5)
    return (x - m) * r * gamma[None, :] + beta[None, :]


def rms_norm(x, gamma):
    """γ x/√(mean x² + ε), over the last axis."""
    s = jnp.mean(x**2, -1, keepdims=True)
    r = lax.rsqrt(s + 1e-5)
    return x * r * gamma[None, :]


# (batch, features)
NORMS = ((5, 6), (8, 24), (8, 129))
norm_args = normal(lambda n, d: (n, d), lambda n, d: (d,), lambda n, d: (d,), sizes=NORMS)
rms_args = normal(lambda n, d: (n, d), lambda n, d: (d,), sizes=NORMS)


def normed(x, axis=-1, ddof=0):
    """x̂ and 1/σ over an axis, the variance over n − `ddof`."""
    m = mean(x, axis)
    v = jnp.sum((x - m) ** 2, axis, keepdims=True) / (x.shape[axis] - ddof)
    r = lax.rsqrt(v + 1e-5)
    return (x - m) * r, r


def _norm_rule(
    name, words, leaves, dx, primal=layer_norm, axis=-1, d_gamma=lambda g, x, xh: jnp.sum(g * xh, 0), ddof=0
):
    """Enter a wrong norm: `dx(x, g, gamma, x_hat, one_over_sigma)`, `d_gamma(g, x, x_hat)`."""

    def backward(args, g):
        x, gamma, _beta = args
        xh, r = normed(x, axis, ddof)
        return dx(x, g, gamma[None, :], xh, r), d_gamma(g, x, normed(x, axis)[0]), g.sum(0)

    wrong(primal, norm_args, words, leaves, name)(backward)


def right_dx(x, g, gamma, xh, r):
    """∂C/∂x of a LayerNorm."""
    d = g * gamma
    return r * (d - mean(d) - xh * mean(d * xh))


_norm_rule(
    "26 LayerNorm without its mean",
    (r"\bm\b", "missing|stop_gradient"),
    ("[0]",),
    lambda x, g, w, xh, r: r * (g * w - xh * mean(g * w * xh)),
)
_norm_rule(
    "27 LayerNorm without its projection",
    (r"\b[vr]\b", "missing|stop_gradient"),
    ("[0]",),
    lambda x, g, w, xh, r: r * (g * w - mean(g * w)),
)
_norm_rule(
    "28 LayerNorm without both",
    ("two at once|both|and", "missing|stop_gradient"),
    ("[0]",),
    lambda x, g, w, xh, r: r * g * w,
)
_norm_rule(
    "29 gamma left out", ("gamma", "missing"), ("[0]",), lambda x, g, w, xh, r: right_dx(x, g, jnp.ones_like(w), xh, r)
)
_norm_rule(
    "30 wrong axis", "axis", ("[0]",), lambda x, g, w, xh, r: r * (g * w - mean(g * w, 0) - xh * mean(g * w * xh, 0))
)
_norm_rule("31 variance over n - 1", "n − 1|n-1", ("[0]",), right_dx, ddof=1)
_norm_rule(
    "32 d_gamma from x", r"\bx stands in the place", ("[1]",), right_dx, d_gamma=lambda g, x, xh: jnp.sum(g * x, 0)
)
_norm_rule(
    "33 BatchNorm as in evaluation",
    ("missing|stop_gradient", r"\bm\b|\bv\b"),
    ("[0]",),
    lambda x, g, w, xh, r: r * g * w,
    batch_norm,
    0,
)


@wrong(rms_norm, rms_args, "mean", ("[0]",), "34 RMSNorm with LayerNorm's mean")
def _(args, g):
    x, gamma = args
    r = lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5)
    xh = x * r
    d = g * gamma[None, :]
    return r * (d - mean(d) - xh * mean(d * xh)), jnp.sum(g * xh, 0)
