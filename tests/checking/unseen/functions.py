"""Activations, norms and losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jaxnet.checking.corpus.case import dot, mean, normal
from tests.checking.unseen.entering import SIZES, both, one, two, wrong, wrong_slope

# -- activations ------------------------------------------------------------------------------------------------------


def softplus(x):
    return jnp.logaddexp(x, 0)


def elu(x):
    return jnp.where(x > 0, x, jnp.exp(jnp.minimum(x, 0)) - 1)


def selu(x):
    return 1.0507 * jnp.where(x > 0, x, 1.6733 * (jnp.exp(jnp.minimum(x, 0)) - 1))


def mish(x):
    return x * jnp.tanh(jnp.logaddexp(x, 0))


def softsign(x):
    return x / (1 + jnp.abs(x))


def hard_clip(x):
    return jnp.clip(x, -0.5, 0.5)


def gaussian(x):
    return jnp.exp(-(x**2) / 2)


wrong_slope("01 softplus: sigma of -x", softplus, lambda x: jax.nn.sigmoid(-x), r"σ|sigmoid|logistic|exp|sign|1 - ")
wrong_slope(
    "02 elu: its value for its slope", elu, lambda x: jnp.where(x > 0, 1, jnp.exp(jnp.minimum(x, 0)) - 1), "exp|elu|- 1"
)
wrong_slope(
    "03 selu: scale lost on one side",
    selu,
    lambda x: jnp.where(x > 0, 1.0507, 1.6733 * jnp.exp(jnp.minimum(x, 0))),
    r"1\.0507",
)
wrong_slope(
    "04 mish: product's second term lost", mish, lambda x: jnp.tanh(jnp.logaddexp(x, 0)), "missing|stop_gradient"
)
wrong_slope("05 softsign: square forgotten", softsign, lambda x: 1 / (1 + jnp.abs(x)), r"missing|1/|abs")
wrong_slope(
    "06 clip: passed outside", hard_clip, lambda x: jnp.ones_like(x), "derivative is left out|mask|cut|clip|clamp"
)
wrong_slope("07 gaussian: sign", gaussian, lambda x: x * jnp.exp(-(x**2) / 2), "wrong sign")
wrong_slope(
    "08 gaussian: x forgotten",
    gaussian,
    lambda x: -jnp.exp(-(x**2) / 2),
    r"\bx\b.*missing|missing.*\bx\b|2 \* x|left out",
)


# -- norms and projections --------------------------------------------------------------------------------------------


def unit(x):
    s = jnp.sqrt(jnp.sum(x**2, -1, keepdims=True))
    return x / s


@wrong("09 unit vector without projection", unit, one, (r"\bs\b|sum", "missing|stop_gradient"), ("[0]",))
def _(args, g):
    (x,) = args
    return (g / jnp.sqrt(dot(x, x)),)


@wrong("10 unit vector: norm not squared in the projection", unit, one, r"\bs\b|norm|sqrt|square", ("[0]",))
def _(args, g):
    (x,) = args
    s = jnp.sqrt(dot(x, x))
    return (g / s - x * dot(x, g) / s**2,)


def group_norm(x):
    y = x.reshape(x.shape[0], 2, -1)
    m = jnp.mean(y, -1, keepdims=True)
    v = jnp.mean((y - m) ** 2, -1, keepdims=True)
    return ((y - m) * lax.rsqrt(v + 1e-5)).reshape(x.shape)


@wrong(
    "11 GroupNorm without its mean",
    group_norm,
    normal(lambda n, d: (n, 2 * d), sizes=SIZES),
    (r"\bm\b", "missing|stop_gradient"),
    ("[0]",),
)
def _(args, g):
    (x,) = args
    y, g = (a.reshape(x.shape[0], 2, -1) for a in (x, g))
    r = lax.rsqrt(jnp.var(y, -1, keepdims=True) + 1e-5)
    xh = (y - mean(y)) * r
    return ((r * (g - xh * mean(g * xh))).reshape(x.shape),)


def weight_norm(scale, V, x):
    n = jnp.sqrt(jnp.sum(V**2, -1, keepdims=True))
    W = scale[:, None] * V / n
    return x @ W.T


@wrong(
    "12 weight norm: dV not projected",
    weight_norm,
    normal(lambda n, d: (d,), lambda n, d: (d, n), lambda n, d: (n + 1, n), sizes=SIZES),
    (r"\bn\b|sum", "missing|stop_gradient"),
    ("[1]",),
)
def _(args, g):
    scale, V, x = args
    n = jnp.sqrt(dot(V, V))
    dW = g.T @ x
    return dot(dW, V / n)[:, 0], dW * scale[:, None] / n, g @ (scale[:, None] * V / n)


# -- losses -----------------------------------------------------------------------------------------------------------


def log_softmax(x):
    return x - jax.scipy.special.logsumexp(x, -1, keepdims=True)


@wrong("13 log-softmax: row sum of g forgotten", log_softmax, one, "sum|row|diagonal", ("[0]",))
def _(args, g):
    return (g - jax.nn.softmax(args[0], -1) * g,)


def huber(a, y):
    e = a - y
    return jnp.sum(jnp.where(jnp.abs(e) < 1, 0.5 * e**2, jnp.abs(e) - 0.5))


@wrong("14 Huber not cut off", huber, two, "mask|branch|cut", both)
def _(args, g):
    a, y = args
    return g * (a - y), g * (y - a)


def hinge(a, y):
    return jnp.sum(jnp.maximum(0, 1 - y * a))


@wrong("15 hinge: margin forgotten", hinge, two, r"mask|branch|cut|\[|derivative is left out|max", both)
def _(args, g):
    a, y = args
    return -g * y, -g * a


def gaussian_kl(mu, logvar):
    return 0.5 * jnp.sum(mu**2 + jnp.exp(logvar) - 1 - logvar)


@wrong("16 KL: the constant's gradient lost", gaussian_kl, two, "missing", ("[1]",))
def _(args, g):
    mu, logvar = args
    return g * mu, g * 0.5 * jnp.exp(logvar)


def sampled(mu, logvar, noise):
    return mu + jnp.exp(0.5 * logvar) * noise


@wrong(
    "17 reparametrisation: half lost",
    sampled,
    normal(*[lambda n, d: (n, d)] * 3, sizes=SIZES),
    ("2|0.5", "times|missing|twice"),
    ("[1]",),
)
def _(args, g):
    _mu, logvar, noise = args
    s = jnp.exp(0.5 * logvar)
    return g, g * s * noise, g * s


def smoothed(z):
    target = (
        jnp.asarray(0.9, z.dtype) * jax.nn.one_hot(jnp.arange(z.shape[0]) % z.shape[1], z.shape[1], dtype=z.dtype)
        + 0.1 / z.shape[1]
    )
    return -jnp.sum(target * jax.nn.log_softmax(z, -1))


@wrong("18 label smoothing forgotten", smoothed, one, "smooth|target|0\\.9|0\\.02|0\\.1", ("[0]",))
def _(args, g):
    (z,) = args
    return (
        g * (jax.nn.softmax(z, -1) - jax.nn.one_hot(jnp.arange(z.shape[0]) % z.shape[1], z.shape[1], dtype=z.dtype)),
    )


def tempered(z):
    return jax.nn.softmax(z / 3.0, axis=-1)


@wrong("19 temperature applied twice", tempered, one, ("3", "times|twice|1/"), ("[0]",))
def _(args, g):
    p = tempered(args[0])
    return (p * (g - dot(g, p)) / 9,)
