"""Mistakes in convolution, pooling and dropout."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnet.checking.corpus.case import Case, entering, gaussian, normal
from jaxnet.checking.corpus.dense_layers import OBLONG
from jaxnet.checking.subject import on_device

CASES: list[Case] = []
wrong = entering(CASES)


def convolved(K, x, stride):
    """The convolution of a batch of images, (batch, height, width, channels), without padding."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, K, (stride, stride), "VALID", dimension_numbers=numbers)


def convolution(K, x):
    """At every place."""
    return convolved(K, x, 1)


def strided_convolution(K, x):
    """At every second place."""
    return convolved(K, x, 2)


# (batch, side, channels)
IMAGES = ((2, 7, 2), (3, 9, 3), (2, 17, 4))
conv_args = normal(lambda n, s, c: (3, 3, c, c + 1), lambda n, s, c: (n, s, s, c), sizes=IMAGES)


def back_through(K, g, flip=True, dilate=1, extra=0):
    """∂C/∂x of a convolution, by a convolution of g: the kernel flipped, `dilate` − 1 zeros between the errors."""
    flipped = K[::-1, ::-1] if flip else K
    pad = ((2, 2 + extra),) * 2
    return lax.conv_general_dilated(
        g,
        jnp.swapaxes(flipped, 2, 3),
        (1, 1),
        pad,
        lhs_dilation=(dilate, dilate),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@wrong(convolution, conv_args, "flip", ("[1]",), "50 kernel not flipped")
def _(args, g):
    K, x = args
    return jax.vjp(lambda K: convolution(K, x), K)[1](g)[0], back_through(K, g, flip=False)


@wrong(strided_convolution, conv_args, "dilated", ("[1]",), "51 stride not dilated")
def _(args, g):
    K, x = args
    return jax.vjp(lambda K: strided_convolution(K, x), K)[1](g)[0], back_through(K, g, extra=g.shape[1] - 1)


def max_pool(x):
    """The maximum of 2 × 2 places."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def average_pool(x):
    """The mean of 2 × 2 places."""
    return lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4


# (batch, side, channels)
POOLED = ((2, 4, 2), (3, 6, 3), (2, 16, 4))


def tied_image_args(size, seed, dtype):
    """Images of few numbers, so that maxima are tied."""
    n, s, c = POOLED[size]
    return (on_device(np.random.default_rng(seed).integers(0, 4, (n, s, s, c)), dtype),)


image_args = normal(lambda n, s, c: (n, s, s, c), sizes=POOLED)


def spread(g):
    """Each error at the 2 × 2 places of its window."""
    return jnp.repeat(jnp.repeat(g, 2, 1), 2, 2)


@wrong(max_pool, tied_image_args, "tie", ("[0]",), "52 max pool to every tie")
def _(args, g):
    (x,) = args
    return (jnp.where(x == spread(max_pool(x)), spread(g), 0),)


@wrong(average_pool, image_args, "4", ("[0]",), "53 average pool not divided")
def _(args, g):
    return (spread(g),)


def dropout(key, x):
    """Each entry kept with probability 0.7, and then divided by it."""
    kept = jax.random.bernoulli(key, 0.7, x.shape)
    return jnp.where(kept, x / 0.7, 0)


def dropout_args(size, seed, dtype):
    """A key and a matrix."""
    n, o, _ = OBLONG[size]
    return jax.random.key(seed), gaussian(np.random.default_rng(seed), (n, o), dtype)


@wrong(dropout, dropout_args, ("0\\.7", "missing|times"), ("[1]",), "54 dropout's scale missing")
def _(args, g):
    key, x = args
    return None, jnp.where(jax.random.bernoulli(key, 0.7, x.shape), g, 0)


@wrong(dropout, dropout_args, "fresh mask|another mask", ("[1]",), "55 dropout's mask afresh")
def _(args, g):
    key, x = args
    return None, jnp.where(jax.random.bernoulli(jax.random.fold_in(key, 1), 0.7, x.shape), g / 0.7, 0)
