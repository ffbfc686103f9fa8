"""Mistakes in losses and their first errors: softmax, cotangents, ignored tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.checking.corpus.case import Rules, dot, gaussian, integers, normal
from jaxnet.checking.corpus.dense_layers import OBLONG, matrix_args
from jaxnet.checking.subject import on_device

RULES = Rules()


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


def token_args(size, seed, dtype):
    """Scores, tokens, and which of these are valid: not all, and at least one."""
    n, o, _ = OBLONG[size]
    rng = np.random.default_rng(seed)
    valid = rng.random(n) < 0.6
    valid[:2] = True, False
    return gaussian(rng, (n, o), dtype), integers(rng, (n,), o), on_device(valid)


def cross_entropy(z, y):
    """−Σ y ln softmax(z), y one-hot."""
    p = jax.nn.softmax(z, axis=-1)
    return -jnp.sum(y * jnp.log(p))


@RULES.back_of(cross_entropy, one_hot_args)
def cross_entropy_back(args, g):
    z, y = args
    return g * (jax.nn.softmax(z, axis=-1) * jnp.sum(y, -1, keepdims=True) - y), -g * jax.nn.log_softmax(z, axis=-1)


def binary_cross_entropy(z, y):
    """−Σ (y ln a + (1 − y) ln(1 − a)), a = σ(z)."""
    a = jax.nn.sigmoid(z)
    return -jnp.sum(y * jnp.log(a) + (1 - y) * jnp.log(1 - a))


@RULES.back_of(binary_cross_entropy, binary_args)
def binary_cross_entropy_back(args, g):
    z, y = args
    a = jax.nn.sigmoid(z)
    return g * (a - y), -g * (jnp.log(a) - jnp.log(1 - a))


def softmax(z):
    """softmax of each row."""
    return jax.nn.softmax(z, axis=-1)


@RULES.back_of(softmax, matrix_args)
def softmax_back(args, g):
    p = jax.nn.softmax(args[0], axis=-1)
    return (p * (g - dot(g, p)),)


def squared_error(a, y):
    """‖a − y‖²."""
    return jnp.sum((a - y) ** 2)


@RULES.back_of(squared_error, normal(lambda n, o, i: (n, o), lambda n, o, i: (n, o), sizes=OBLONG))
def squared_error_back(args, g):
    a, y = args
    return 2 * g * (a - y), 2 * g * (y - a)


def token_loss(z, tokens, valid):
    """The mean cross-entropy of the tokens that are valid."""
    logp = jax.nn.log_softmax(z, axis=-1)
    picked = jnp.take_along_axis(logp, tokens[:, None], axis=-1)[:, 0]
    return -jnp.sum(jnp.where(valid, picked, 0)) / jnp.sum(valid.astype(z.dtype))


@RULES.back_of(token_loss, token_args)
def token_loss_back(args, g):
    z, tokens, valid = args
    delta = jax.nn.softmax(z, axis=-1) - jax.nn.one_hot(tokens, z.shape[-1], dtype=z.dtype)
    return jnp.where(valid[:, None], g * delta, 0) / jnp.sum(valid.astype(z.dtype)), None, None


MISTAKES: tuple[tuple[str, ...], ...] = (
    ("cross_entropy", "14 cross-entropy without the one-hot",
     "(jax.nn.softmax(z, axis=-1) * jnp.sum(y, -1, keepdims=True) - y)", "jax.nn.softmax(z, axis=-1)", "[0]",
     r"\by\b", "missing|added"),
    ("cross_entropy", "15 sign", "jax.nn.softmax(z, axis=-1) * jnp.sum(y, -1, keepdims=True) - y",
     "y - jax.nn.softmax(z, axis=-1)", "[0]", "wrong sign"),
    ("binary_cross_entropy", "16 extra g' with cross-entropy", "g * (a - y)", "g * (a - y) * a * (1 - a)", "[0]",
     r"a\(1 - a\)|sigmoid\S*\(1 -|σ′|1 - a"),
    ("softmax", "17 softmax's diagonal only", "p * (g - dot(g, p))", "g * p * (1 - p)", "[0]", "diagonal only"),
    ("squared_error", "18 cotangent ignored", "2 * g * (a - y), 2 * g * (y - a)", "2 * (a - y), 2 * (y - a)",
     "[0] [1]", "cotangent is ignored"),
    ("squared_error", "20 a - y for twice that", "2 * g * (a - y), 2 * g * (y - a)", "g * (a - y), g * (y - a)",
     "[0] [1]", "½|0.5"),
    ("token_loss", "25 ignored tokens counted", "jnp.sum(valid.astype(z.dtype))", "len(tokens)", "[0]",
     r"\d \(valid entries"),
)  # fmt: skip
