"""Mistakes in losses and their first errors: softmax, cotangents, rows and entries, ignored tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.checking.corpus.case import Case, entering, gaussian, integers, normal
from jaxnet.checking.corpus.dense_layers import OBLONG, dense, dense_args
from jaxnet.checking.subject import on_device

CASES: list[Case] = []
wrong = entering(CASES)


def cross_entropy(z, y):
    """−Σ y ln softmax(z), y one-hot."""
    p = jax.nn.softmax(z, axis=-1)
    return -jnp.sum(y * jnp.log(p))


def binary_cross_entropy(z, y):
    """−Σ (y ln a + (1 − y) ln(1 − a)), a = σ(z)."""
    a = jax.nn.sigmoid(z)
    return -jnp.sum(y * jnp.log(a) + (1 - y) * jnp.log(1 - a))


def one_hot_args(size, seed, dtype):
    """Scores, and a one-hot row for each."""
    n, o, _ = OBLONG[size]
    rng = np.random.default_rng(seed)
    return gaussian(rng, (n, o), dtype), on_device(np.eye(o)[rng.integers(0, o, n)], dtype)


def binary_args(size, seed, dtype):
    """Scores, and 0 or 1 for each."""
    n, o, _ = OBLONG[size]
    rng = np.random.default_rng(seed)
    return gaussian(rng, (n, o), dtype), on_device(rng.random((n, o)) < 0.5, dtype)


def _dy(z, g):
    """∂C/∂y of the cross-entropy."""
    return -g * jax.nn.log_softmax(z, axis=-1)


@wrong(cross_entropy, one_hot_args, (r"\by\b", "missing|added"), ("[0]",), "14 cross-entropy without the one-hot")
def _(args, g):
    z, _y = args
    return g * jax.nn.softmax(z, axis=-1), _dy(z, g)


@wrong(cross_entropy, one_hot_args, "wrong sign", ("[0]",), "15 sign")
def _(args, g):
    z, y = args
    return g * (y - jax.nn.softmax(z, axis=-1)), _dy(z, g)


@wrong(
    binary_cross_entropy,
    binary_args,
    r"a\(1 - a\)|sigmoid\S*\(1 -|σ′|1 - a",
    ("[0]",),
    "16 extra g' with cross-entropy",
)
def _(args, g):
    z, y = args
    a = jax.nn.sigmoid(z)
    return g * (a - y) * a * (1 - a), -g * (jnp.log(a) - jnp.log(1 - a))


def softmax(z):
    """softmax of each row."""
    return jax.nn.softmax(z, axis=-1)


matrix_args = normal(lambda n, o, i: (n, o), sizes=OBLONG)


@wrong(softmax, matrix_args, "diagonal only", ("[0]",), "17 softmax's diagonal only")
def _(args, g):
    p = jax.nn.softmax(args[0], axis=-1)
    return (g * p * (1 - p),)


def squared_error(a, y):
    """‖a − y‖²."""
    return jnp.sum((a - y) ** 2)


pair_args = normal(lambda n, o, i: (n, o), lambda n, o, i: (n, o), sizes=OBLONG)


@wrong(squared_error, pair_args, "cotangent is ignored", ("[0]", "[1]"), "18 cotangent ignored")
def _(args, g):
    a, y = args
    return 2 * (a - y), 2 * (y - a)


@wrong(dense, dense_args, ("added", "regulariser"), ("[0]",), "19 regulariser added")
def _(args, g):
    W, _b, a = args
    return g.T @ a + 0.1 * W, g.sum(0), g @ W


@wrong(squared_error, pair_args, "½|0.5", ("[0]", "[1]"), "20 a - y for twice that")
def _(args, g):
    a, y = args
    return g * (a - y), g * (y - a)


@wrong(dense, dense_args, ("row", "zero"), ("[0]",), "21 one row zero")
def _(args, g):
    W, _b, a = args
    return (g.T @ a).at[-1].set(0), g.sum(0), g @ W


@wrong(dense, dense_args, ("entry", "zero"), ("[0]",), "22 one entry zero")
def _(args, g):
    W, _b, a = args
    return (g.T @ a).at[1, 2].set(0), g.sum(0), g @ W


@wrong(dense, dense_args, "1 %|1.01", ("[0]", "[1]", "[2]"), "23 all one per cent too large")
def _(args, g):
    W, _b, a = args
    g = g * jnp.asarray(1.01, g.dtype)
    return g.T @ a, g.sum(0), g @ W


@wrong(dense, dense_args, "zero|missing", ("[2]",), "24 dx zero")
def _(args, g):
    _W, _b, a = args
    return g.T @ a, g.sum(0), jnp.zeros_like(a)


def token_loss(z, tokens, valid):
    """The mean cross-entropy of the tokens that are valid."""
    logp = jax.nn.log_softmax(z, axis=-1)
    picked = jnp.take_along_axis(logp, tokens[:, None], axis=-1)[:, 0]
    return -jnp.sum(jnp.where(valid, picked, 0)) / jnp.sum(valid.astype(z.dtype))


def token_args(size, seed, dtype):
    """Scores, tokens, and which of these are valid: not all, and at least one."""
    n, o, _ = OBLONG[size]
    rng = np.random.default_rng(seed)
    valid = rng.random(n) < 0.6
    valid[:2] = True, False
    return gaussian(rng, (n, o), dtype), integers(rng, (n,), o), on_device(valid)


@wrong(token_loss, token_args, r"\d \(valid entries", ("[0]",), "25 ignored tokens counted")
def _(args, g):
    z, tokens, valid = args
    delta = jax.nn.softmax(z, axis=-1) - jax.nn.one_hot(tokens, z.shape[-1], dtype=z.dtype)
    return jnp.where(valid[:, None], g * delta, 0) / len(tokens), None, None
