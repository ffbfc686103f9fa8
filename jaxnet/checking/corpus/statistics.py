"""Mistakes in the norms as jaxnet has them: GroupNorm, BatchNorm in training, LayerNorm, RMSNorm."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from jaxnet.checking.corpus.case import Rules, normal
from jaxnet.checking.corpus.case import mean as mean_over
from jaxnet.layer import EXAMPLES
from jaxnet.layers import batch_norm, group_norm
from jaxnet.layers import layer_norm as layer_norm_of
from jaxnet.layers import rms_norm as rms_norm_of
from jaxnet.layers.normalization import along_last, standardized, standardized_back

RULES = Rules()
GROUPS = 2

# (positions, others, channels)
IMAGES = ((3, 5, 4), (4, 3, 6), (6, 7, 10))
args = normal(lambda p, q, c: (c,), lambda p, q, c: (c,), lambda p, q, c: (p, q, c), sizes=IMAGES)
rows = normal(lambda p, q, c: (c,), lambda p, q, c: (c,), lambda p, q, c: (p, c), sizes=IMAGES)


def sums(t):
    """Over all positions."""
    return t.sum(tuple(range(t.ndim - 1)))


mean = partial(mean_over, axis=(0, 1))
"""E over the examples and the positions of each."""


def groups(gamma, beta, x):
    """GroupNorm of one image: (height, width, channels)."""
    return group_norm(GROUPS).forward({"gamma": gamma, "beta": beta}, x)[0]


def grouped(x):
    """The channels of a group in an axis of their own."""
    return x.reshape(-1, GROUPS, x.shape[-1] // GROUPS)


@RULES.back_of(groups, args)
def groups_back(args, delta):
    gamma, _beta, x = args
    x_hat, sigma = standardized(grouped(x), (0, 2), 1e-5)
    g = grouped(along_last(gamma, delta) * delta)
    dx = standardized_back(g, x_hat, sigma, (0, 2)).reshape(x.shape)
    return sums(delta * x_hat.reshape(x.shape)), sums(delta), dx


def batch(gamma, beta, x):
    """BatchNorm in training: (examples, positions, channels)."""
    params = {"gamma": gamma, "beta": beta, "population": None}
    return jax.vmap(lambda x: batch_norm().forward(params, x, train=True)[0], axis_name=EXAMPLES)(x)


@RULES.back_of(batch, args)
def batch_back(args, d):
    gamma, _beta, x = args
    mu = x.mean((0, 1), keepdims=True)
    inverse_sigma = jax.lax.rsqrt(jnp.mean((x - mu) ** 2, (0, 1), keepdims=True) + 1e-5)
    x_hat, g = (x - mu) * inverse_sigma, along_last(gamma, d) * d
    dx = (g - mean(g) - x_hat * mean(g * x_hat)) * inverse_sigma
    return sums(d * x_hat), sums(d), dx


def layers(gamma, beta, x):
    """LayerNorm of a sequence: (time, width)."""
    return layer_norm_of().forward({"gamma": gamma, "beta": beta}, x)[0]


@RULES.back_of(layers, rows)
def layers_back(args, delta):
    gamma, _beta, x = args
    x_hat, sigma = standardized(x, -1, 1e-5)
    g = along_last(gamma, delta) * delta
    return sums(delta * x_hat), sums(delta), standardized_back(g, x_hat, sigma, -1)


def root_mean_square(gamma, x):
    """RMSNorm of a sequence: (time, width)."""
    return rms_norm_of().forward({"gamma": gamma}, x)[0]


@RULES.back_of(root_mean_square, normal(lambda p, q, c: (c,), lambda p, q, c: (p, c), sizes=IMAGES))
def root_mean_square_back(args, delta):
    gamma, x = args
    x_hat, sigma = standardized(x, -1, 1e-6, centred=False)
    g = along_last(gamma, delta) * delta
    return sums(delta * x_hat), (g - x_hat * jnp.mean(g * x_hat, -1, keepdims=True)) / sigma


MISTAKES: tuple[tuple[str, ...], ...] = (
    ("groups", "66 GroupNorm: means of each channel alone", "x_hat, sigma, (0, 2))", "x_hat, sigma, 0)", "[2]",
     "axis|axes"),
    ("groups", "67 GroupNorm: means over the groups too", "x_hat, sigma, (0, 2))", "x_hat, sigma, (0, 1, 2))", "[2]",
     "axis|axes"),
    ("groups", "68 GroupNorm without its projection", "standardized_back(g, x_hat, sigma, (0, 2))",
     "((g - jnp.mean(g, (0, 2), keepdims=True)) / sigma)", "[2]", "missing|stop_gradient"),
    ("groups", "69 GroupNorm: dγ of the first row alone", "sums(delta * x_hat.reshape(x.shape))",
     "sums((delta * x_hat.reshape(delta.shape))[:1])", "[0]", "first", "missing|only"),
    ("batch", "70 BatchNorm: each example's own means", "mean(g) - x_hat * mean(g * x_hat)",
     "mean(g, axis=1) - x_hat * mean(g * x_hat, axis=1)", "[2]", "axis|axes"),
    ("batch", "71 BatchNorm: γ missing in the terms of the batch", "mean(g) - x_hat * mean(g * x_hat)",
     "mean(d) - x_hat * mean(d * x_hat)", "[2]", "gamma"),
    ("batch", "72 BatchNorm: projection over n − 1", "x_hat * mean(g * x_hat)",
     "x_hat * mean(g * x_hat) * (n := x_hat[..., 0].size) / (n - 1)", "[2]", r"n − 1|n-1"),
    ("batch", "73 BatchNorm: the batch's mean held constant", " - mean(g) -", " -", "[2]", "missing|stop_gradient"),
    ("batch", "74 BatchNorm: dγ averaged", "sums(d * x_hat)", "sums(d * x_hat) / (x_hat.size / x_hat.shape[-1])", "[0]",
     "1/"),
    ("layers", "75 LayerNorm: σ² for σ", "x_hat, sigma, -1", "x_hat, sigma * sigma, -1", "[2]", "twice|squared|sigma"),
    ("layers", "76 LayerNorm: out for x̂ in dγ", "return sums(delta * x_hat)",
     "out = along_last(gamma, x) * x_hat + along_last(args[1], x)\n    return sums(delta * out)", "[0]",
     "stands in the place|added"),
    ("root_mean_square", "77 RMSNorm: γ missing in the projection", "jnp.mean(g * x_hat", "jnp.mean(delta * x_hat",
     "[1]", "gamma"),
)  # fmt: skip
