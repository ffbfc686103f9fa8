"""Mistakes in dense layers: the wrong matrix, the wrong slope, the wrong sum over the batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxnet.checking.corpus.case import Case, entering, normal

CASES: list[Case] = []
wrong = entering(CASES)


def dense(W, b, a):
    """z = a Wᵀ + b; a: (batch, in), W: (out, in)."""
    return a @ W.T + b[None, :]


def sigmoid_layer(W, b, a):
    """σ of a dense layer."""
    z = a @ W.T + b[None, :]
    return jax.nn.sigmoid(z)


def tanh_layer(W, b, a):
    """tanh of a dense layer."""
    z = a @ W.T + b[None, :]
    return jnp.tanh(z)


def two_layers(W1, W2, x):
    """Two dense layers with σ between, without biases."""
    z = x @ W1.T
    a = jax.nn.sigmoid(z)
    return a @ W2.T


# (batch, out, in)
OBLONG = ((7, 4, 5), (10, 6, 3), (33, 17, 9))
SQUARE = ((7, 5, 5), (10, 6, 6), (33, 12, 12))
dense_args = normal(lambda n, o, i: (o, i), lambda n, o, i: (o,), lambda n, o, i: (n, i), sizes=OBLONG)
square_args = normal(lambda n, o, i: (o, i), lambda n, o, i: (o,), lambda n, o, i: (n, i), sizes=SQUARE)
two_args = normal(lambda n, o, i: (i, o), lambda n, o, i: (o, i), lambda n, o, i: (n, o), sizes=OBLONG)


@wrong(dense, square_args, "transpos", ("[2]",), "01 W for its transpose")
def _(args, g):
    W, _b, a = args
    return g.T @ a, g.sum(0), g @ W.T


@wrong(dense, square_args, "inverse", ("[2]",), "02 the inverse")
def _(args, g):
    W, _b, a = args
    return g.T @ a, g.sum(0), g @ jnp.linalg.inv(W).T


@wrong(dense, dense_args, r"sign\(w\)", ("[2]",), "03 sign feedback")
def _(args, g):
    W, _b, a = args
    return g.T @ a, g.sum(0), g @ jnp.sign(W)


@wrong(dense, dense_args, "fixed matrix|random feedback", ("[2]",), "04 random feedback")
def _(args, g):
    W, _b, a = args
    return g.T @ a, g.sum(0), g @ jax.random.normal(jax.random.key(77), W.shape, W.dtype)


@wrong(sigmoid_layer, dense_args, r"σ′\(\(?(sigmoid|a)", ("[0]", "[1]", "[2]"), "05 g' at a")
def _(args, g):
    W, b, a = args
    s = jax.nn.sigmoid(jax.nn.sigmoid(a @ W.T + b[None, :]))
    delta = g * s * (1 - s)
    return delta.T @ a, delta.sum(0), delta @ W


@wrong(tanh_layer, dense_args, ("missing|left out", "tanh"), ("[0]", "[1]", "[2]"), "06 g' left out")
def _(args, g):
    W, _b, a = args
    return g.T @ a, g.sum(0), g @ W


@wrong(
    sigmoid_layer,
    dense_args,
    (r"1 - sigmoid|sigmoid\(", "missing|multiplied by|left out"),
    ("[0]", "[1]", "[2]"),
    "07 sigmoid half",
)
def _(args, g):
    W, b, a = args
    delta = g * jax.nn.sigmoid(a @ W.T + b[None, :])
    return delta.T @ a, delta.sum(0), delta @ W


@wrong(two_layers, two_args, "z stands in the place of", ("[1]",), "08 z saved for a")
def _(args, g):
    W1, W2, x = args
    z = x @ W1.T
    a = jax.nn.sigmoid(z)
    delta = (g @ W2) * a * (1 - a)
    return delta.T @ x, g.T @ z, delta @ W1


@wrong(dense, square_args, "transpos", ("[0]",), "09 dW transposed")
def _(args, g):
    W, _b, a = args
    return a.T @ g, g.sum(0), g @ W


def half_square(W, b, a, y):
    """The mean over the batch of ½‖z − y‖²."""
    z = a @ W.T + b[None, :]
    return jnp.mean(jnp.sum(0.5 * (z - y) ** 2, -1))


loss_args = normal(
    lambda n, o, i: (o, i), lambda n, o, i: (o,), lambda n, o, i: (n, i), lambda n, o, i: (n, o), sizes=OBLONG
)


@wrong(
    half_square,
    loss_args,
    ("times what it should be", "axis 0 of (a|y|x)"),
    ("[0]", "[1]", "[2]", "[3]"),
    "10 sum for mean",
)
def _(args, g):
    W, b, a, y = args
    delta = g * (a @ W.T + b[None, :] - y)
    return delta.T @ a, delta.sum(0), delta @ W, -delta


@wrong(dense, dense_args, ("1/", "axis 0 of"), ("[1]",), "11 bias averaged again")
def _(args, g):
    W, _b, a = args
    return g.T @ a, g.mean(0), g @ W


@wrong(dense, dense_args, "first", ("[1]",), "12 bias of the first example")
def _(args, g):
    W, _b, a = args
    return g.T @ a, g[0], g @ W


@wrong(dense, dense_args, "zero|missing", ("[1]",), "13 bias gradient zero")
def _(args, g):
    W, b, a = args
    return g.T @ a, jnp.zeros_like(b), g @ W
