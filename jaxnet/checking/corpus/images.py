"""Mistakes in convolution, pooling and dropout."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnet.checking.corpus.case import Rules, gaussian, normal
from jaxnet.checking.corpus.dense_layers import OBLONG
from jaxnet.checking.subject import on_device

RULES = Rules()
NUMBERS = ("NHWC", "HWIO", "NHWC")

# (batch, side, channels)
IMAGES = ((2, 7, 2), (3, 9, 3), (2, 17, 4))
POOLED = ((2, 4, 2), (3, 6, 3), (2, 16, 4))
conv_args = normal(lambda n, s, c: (3, 3, c, c + 1), lambda n, s, c: (n, s, s, c), sizes=IMAGES)


def tied_image_args(size, seed, dtype):
    """Images of few numbers, so that maxima are tied."""
    n, s, c = POOLED[size]
    return (on_device(np.random.default_rng(seed).integers(0, 4, (n, s, s, c)), dtype),)


def dropout_args(size, seed, dtype):
    """A key and a matrix."""
    n, o, _ = OBLONG[size]
    return jax.random.key(seed), gaussian(np.random.default_rng(seed), (n, o), dtype)


def convolution(K, x):
    """The convolution of a batch of images, (batch, height, width, channels), without padding."""
    return lax.conv_general_dilated(x, K, (1, 1), "VALID", dimension_numbers=NUMBERS)


def strided_convolution(K, x):
    """At every second place."""
    return lax.conv_general_dilated(x, K, (2, 2), "VALID", dimension_numbers=NUMBERS)


def back_through(K, g, flip=True, dilate=1, extra=0):
    """∂C/∂x of a convolution, by a convolution of g: the kernel flipped, `dilate` − 1 zeros between the errors."""
    K = jnp.swapaxes(K[::-1, ::-1] if flip else K, 2, 3)
    pad, dilation = ((2, 2 + extra),) * 2, (dilate, dilate)
    return lax.conv_general_dilated(g, K, (1, 1), pad, lhs_dilation=dilation, dimension_numbers=NUMBERS)


@RULES.back_of(convolution, conv_args)
def convolution_back(args, g):
    K, x = args
    return jax.vjp(lambda K: convolution(K, x), K)[1](g)[0], back_through(K, g)


@RULES.back_of(strided_convolution, conv_args)
def strided_convolution_back(args, g):
    K, x = args
    return jax.vjp(lambda K: strided_convolution(K, x), K)[1](g)[0], back_through(K, g, dilate=2)


def max_pool(x):
    """The maximum of 2 × 2 places."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def spread(g):
    """Each error at the 2 × 2 places of its window."""
    return jnp.repeat(jnp.repeat(g, 2, 1), 2, 2)


@RULES.back_of(max_pool, tied_image_args)
def max_pool_back(args, g):
    (x,) = args
    return jax.vjp(max_pool, x)[1](g)


def average_pool(x):
    """The mean of 2 × 2 places."""
    return lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4


@RULES.back_of(average_pool, normal(lambda n, s, c: (n, s, s, c), sizes=POOLED))
def average_pool_back(args, g):
    return (spread(g) / 4,)


def dropout(key, x):
    """Each entry kept with probability 0.7, and then divided by it."""
    kept = jax.random.bernoulli(key, 0.7, x.shape)
    return jnp.where(kept, x / 0.7, 0)


@RULES.back_of(dropout, dropout_args)
def dropout_back(args, g):
    key, x = args
    return None, jnp.where(jax.random.bernoulli(key, 0.7, x.shape), g / 0.7, 0)


MISTAKES: tuple[tuple[str, ...], ...] = (
    ("convolution", "50 kernel not flipped", "back_through(K, g)", "back_through(K, g, flip=False)", "[1]", "flip"),
    ("strided_convolution", "51 stride not dilated", "dilate=2", "extra=g.shape[1] - 1", "[1]", "dilated"),
    ("max_pool", "52 max pool to every tie", "jax.vjp(max_pool, x)[1](g)",
     "(jnp.where(x == spread(max_pool(x)), spread(g), 0),)", "[0]", "tie"),
    ("average_pool", "53 average pool not divided", "spread(g) / 4", "spread(g)", "[0]", "4"),
    ("dropout", "54 dropout's scale missing", "g / 0.7", "g", "[1]", r"0\.7", "missing|times"),
    ("dropout", "55 dropout's mask afresh", "bernoulli(key,", "bernoulli(jax.random.fold_in(key, 1),", "[1]",
     "fresh mask|another mask"),
)  # fmt: skip
