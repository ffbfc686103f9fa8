"""Mistakes in the norms as jaxnet has them: GroupNorm, BatchNorm in training, LayerNorm, RMSNorm."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxnet.checking.corpus.case import Case, completed, entering, normal
from jaxnet.layer import EXAMPLES
from jaxnet.layers import batch_norm, group_norm
from jaxnet.layers import layer_norm as layer_norm_of
from jaxnet.layers import rms_norm as rms_norm_of
from jaxnet.layers.normalization import along_last, standardized, standardized_back

CASES: list[Case] = []
wrong = entering(CASES)
GROUPS = 2


def groups(gamma, beta, x):
    """GroupNorm of one image: (height, width, channels)."""
    return group_norm(GROUPS).forward({"gamma": gamma, "beta": beta}, x)[0]


def batch(gamma, beta, x):
    """BatchNorm in training: (examples, positions, channels)."""
    params = {"gamma": gamma, "beta": beta, "population": None}
    return jax.vmap(lambda x: batch_norm().forward(params, x, train=True)[0], axis_name=EXAMPLES)(x)


def layers(gamma, beta, x):
    """LayerNorm of a sequence: (time, width)."""
    return layer_norm_of().forward({"gamma": gamma, "beta": beta}, x)[0]


def root_mean_square(gamma, x):
    """RMSNorm of a sequence: (time, width)."""
    return rms_norm_of().forward({"gamma": gamma}, x)[0]


# (positions, others, channels)
IMAGES = ((3, 5, 4), (4, 3, 6), (6, 7, 10))
args = normal(lambda p, q, c: (c,), lambda p, q, c: (c,), lambda p, q, c: (p, q, c), sizes=IMAGES)
rows = normal(lambda p, q, c: (c,), lambda p, q, c: (c,), lambda p, q, c: (p, c), sizes=IMAGES)
rms_rows = normal(lambda p, q, c: (c,), lambda p, q, c: (p, c), sizes=IMAGES)


def grouped(x):
    """The channels of a group in an axis of their own."""
    return x.reshape(-1, GROUPS, x.shape[-1] // GROUPS)


def sums(t):
    """Over all positions."""
    return t.sum(tuple(range(t.ndim - 1)))


def _group_rule(name, words, leaves, mistaken):
    """Enter a wrong GroupNorm: `mistaken(g, x_hat, sigma, delta)` gives dx or dγ, not as it should be."""

    def backward(args, delta):
        gamma, _beta, x = args
        x_hat, sigma = standardized(grouped(x), (0, 2), 1e-5)
        g = grouped(along_last(gamma, delta) * delta)
        right = {
            "gamma": lambda: sums(delta * x_hat.reshape(x.shape)),
            "beta": lambda: sums(delta),
            "x": lambda: standardized_back(g, x_hat, sigma, (0, 2)).reshape(x.shape),
        }
        found = completed(mistaken(g, x_hat, sigma, delta), right)
        return found["gamma"], found["beta"], found["x"].reshape(x.shape)

    wrong(groups, args, words, leaves, name)(backward)


_group_rule(
    "66 GroupNorm: means of each channel alone", "axis|axes", ("[2]",),
    lambda g, x_hat, sigma, delta: {"x": standardized_back(g, x_hat, sigma, 0)},
)  # fmt: skip
_group_rule(
    "67 GroupNorm: means over the groups too", "axis|axes", ("[2]",),
    lambda g, x_hat, sigma, delta: {"x": standardized_back(g, x_hat, sigma, (0, 1, 2))},
)  # fmt: skip
_group_rule(
    "68 GroupNorm without its projection", ("missing|stop_gradient",), ("[2]",),
    lambda g, x_hat, sigma, delta: {"x": (g - jnp.mean(g, (0, 2), keepdims=True)) / sigma},
)  # fmt: skip
_group_rule(
    "69 GroupNorm: dγ of the first row alone", ("first", "missing|only"), ("[0]",),
    lambda g, x_hat, sigma, delta: {"gamma": sums((delta * x_hat.reshape(delta.shape))[:1])},
)  # fmt: skip


def _batch_rule(name, words, leaves, mistaken):
    """Enter a wrong BatchNorm: `mistaken(d, gamma, x_hat, inverse_sigma)` gives dx or dγ, not as it should be."""

    def backward(args, d):
        gamma, _beta, x = args
        mu = x.mean((0, 1), keepdims=True)
        inverse_sigma = jax.lax.rsqrt(jnp.mean((x - mu) ** 2, (0, 1), keepdims=True) + 1e-5)
        x_hat, g = (x - mu) * inverse_sigma, along_last(gamma, d) * d
        right = {
            "gamma": lambda: sums(d * x_hat),
            "beta": lambda: sums(d),
            "x": lambda: (g - mean(g) - x_hat * mean(g * x_hat)) * inverse_sigma,
        }
        found = completed(mistaken(d, along_last(gamma, d), x_hat, inverse_sigma), right)
        return found["gamma"], found["beta"], found["x"]

    wrong(batch, args, words, leaves, name)(backward)


def mean(t, axes=(0, 1)):
    """E over the examples and the positions of each."""
    return t.mean(axes, keepdims=True)


_batch_rule(
    "70 BatchNorm: each example's own means", "axis|axes", ("[2]",),
    lambda d, w, xh, r: {"x": (w * d - mean(w * d, 1) - xh * mean(w * d * xh, 1)) * r},
)  # fmt: skip
_batch_rule(
    "71 BatchNorm: γ missing in the terms of the batch", "gamma", ("[2]",),
    lambda d, w, xh, r: {"x": (w * d - mean(d) - xh * mean(d * xh)) * r},
)  # fmt: skip
_batch_rule(
    "72 BatchNorm: projection over n − 1", r"n − 1|n-1", ("[2]",),
    lambda d, w, xh, r: {"x": (w * d - mean(w * d) - xh * mean(w * d * xh) * (n := xh[..., 0].size) / (n - 1)) * r},
)  # fmt: skip
_batch_rule(
    "73 BatchNorm: the batch's mean held constant", "missing|stop_gradient", ("[2]",),
    lambda d, w, xh, r: {"x": (w * d - xh * mean(w * d * xh)) * r},
)  # fmt: skip
_batch_rule(
    "74 BatchNorm: dγ averaged", "1/", ("[0]",),
    lambda d, w, xh, r: {"gamma": sums(d * xh) / math.prod(xh.shape[:2])},
)  # fmt: skip


def _layer_rule(name, words, leaves, mistaken):
    """Enter a wrong LayerNorm."""

    def backward(args, delta):
        gamma, beta, x = args
        x_hat, sigma = standardized(x, -1, 1e-5)
        g = along_last(gamma, delta) * delta
        right = {
            "gamma": lambda: sums(delta * x_hat),
            "beta": lambda: sums(delta),
            "x": lambda: standardized_back(g, x_hat, sigma, -1),
        }
        out = along_last(gamma, x) * x_hat + along_last(beta, x)
        found = completed(mistaken(g, x_hat, sigma, delta, out), right)
        return found["gamma"], found["beta"], found["x"]

    wrong(layers, rows, words, leaves, name)(backward)


_layer_rule(
    "75 LayerNorm: σ² for σ", "twice|squared|sigma", ("[2]",),
    lambda g, xh, sigma, delta, out: {"x": standardized_back(g, xh, sigma * sigma, -1)},
)  # fmt: skip
_layer_rule(
    "76 LayerNorm: out for x̂ in dγ", "stands in the place|added", ("[0]",),
    lambda g, xh, sigma, delta, out: {"gamma": sums(delta * out)},
)  # fmt: skip


@wrong(root_mean_square, rms_rows, "gamma", ("[1]",), "77 RMSNorm: γ missing in the projection")
def _(args, delta):
    gamma, x = args
    x_hat, sigma = standardized(x, -1, 1e-6, centred=False)
    g = along_last(gamma, delta) * delta
    return sums(delta * x_hat), (g - x_hat * jnp.mean(delta * x_hat, -1, keepdims=True)) / sigma
