"""Mistakes in dense layers and activations: the wrong matrix, the wrong slope, the wrong sum over the batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jaxnet.checking.corpus.case import Rules, normal

RULES = Rules()


# (batch, out, in)
OBLONG = ((7, 4, 5), (10, 6, 3), (33, 17, 9))
SQUARE = ((7, 5, 5), (10, 6, 6), (33, 12, 12))
dense_args = normal(lambda n, o, i: (o, i), lambda n, o, i: (o,), lambda n, o, i: (n, i), sizes=OBLONG)
square_args = normal(lambda n, o, i: (o, i), lambda n, o, i: (o,), lambda n, o, i: (n, i), sizes=SQUARE)
two_args = normal(lambda n, o, i: (i, o), lambda n, o, i: (o, i), lambda n, o, i: (n, o), sizes=OBLONG)
loss_args = normal(
    lambda n, o, i: (o, i), lambda n, o, i: (o,), lambda n, o, i: (n, i), lambda n, o, i: (n, o), sizes=OBLONG
)
matrix_args = normal(lambda n, o, i: (n, o), sizes=OBLONG)


def dense(W, b, a):
    """z = a Wᵀ + b; a: (batch, in), W: (out, in)."""
    return a @ W.T + b[None, :]


def square_dense(W, b, a):
    """The same with a square W."""
    return a @ W.T + b[None, :]


@RULES.back_of(square_dense, square_args)
@RULES.back_of(dense, dense_args)
def dense_back(args, g):
    W, _b, a = args
    return g.T @ a, g.sum(0), g @ W


def sigmoid_layer(W, b, a):
    """σ of a dense layer."""
    z = a @ W.T + b[None, :]
    return jax.nn.sigmoid(z)


@RULES.back_of(sigmoid_layer, dense_args)
def sigmoid_layer_back(args, g):
    W, b, a = args
    s = jax.nn.sigmoid(a @ W.T + b[None, :])
    delta = g * s * (1 - s)
    return delta.T @ a, delta.sum(0), delta @ W


def tanh_layer(W, b, a):
    """tanh of a dense layer."""
    z = a @ W.T + b[None, :]
    return jnp.tanh(z)


@RULES.back_of(tanh_layer, dense_args)
def tanh_layer_back(args, g):
    W, b, a = args
    delta = g * (1 - jnp.tanh(a @ W.T + b[None, :]) ** 2)
    return delta.T @ a, delta.sum(0), delta @ W


def two_layers(W1, W2, x):
    """Two dense layers with σ between, without biases."""
    z = x @ W1.T
    a = jax.nn.sigmoid(z)
    return a @ W2.T


@RULES.back_of(two_layers, two_args)
def two_layers_back(args, g):
    W1, W2, x = args
    z = x @ W1.T
    a = jax.nn.sigmoid(z)
    delta = (g @ W2) * a * (1 - a)
    return delta.T @ x, g.T @ a, delta @ W1


def half_square(W, b, a, y):
    """The mean over the batch of ½‖z − y‖²."""
    z = a @ W.T + b[None, :]
    return jnp.mean(jnp.sum(0.5 * (z - y) ** 2, -1))


@RULES.back_of(half_square, loss_args)
def half_square_back(args, g):
    W, b, a, y = args
    delta = g * (a @ W.T + b[None, :] - y) / len(a)
    return delta.T @ a, delta.sum(0), delta @ W, -delta


def tanh(x):
    """tanh x."""
    return jnp.tanh(x)


@RULES.back_of(tanh, matrix_args)
def tanh_back(args, g):
    (x,) = args
    return (g * (1 - jnp.tanh(x) ** 2),)


def gelu(x):
    """The exact GELU, x Φ(x)."""
    return x * 0.5 * (1 + lax.erf(x / jnp.sqrt(jnp.asarray(2, x.dtype))))


@RULES.back_of(gelu, matrix_args)
def gelu_back(args, g):
    (x,) = args
    return (g * (jax.scipy.stats.norm.cdf(x) + x * jax.scipy.stats.norm.pdf(x)),)


def relu(x):
    """max(x, 0)."""
    return jnp.maximum(x, 0)


@RULES.back_of(relu, matrix_args)
def relu_back(args, g):
    (x,) = args
    return (jnp.where(x > 0, g, 0),)


def leaky_relu(x):
    """x, and 0.1 x below zero."""
    return jnp.where(x > 0, x, 0.1 * x)


@RULES.back_of(leaky_relu, matrix_args)
def leaky_relu_back(args, g):
    (x,) = args
    return (jnp.where(x > 0, g, 0.1 * g),)


def swish(x):
    """x σ(x)."""
    return x * jax.nn.sigmoid(x)


@RULES.back_of(swish, matrix_args)
def swish_back(args, g):
    (x,) = args
    s = jax.nn.sigmoid(x)
    return (g * s * (1 + x * (1 - s)),)


every = "[0] [1] [2]"
MISTAKES: tuple[tuple[str, ...], ...] = (
    ("square_dense", "01 W for its transpose", "g @ W", "g @ W.T", "[2]", "transpos"),
    ("square_dense", "02 the inverse", "g @ W", "g @ jnp.linalg.inv(W).T", "[2]", "inverse"),
    ("dense", "03 sign feedback", "g @ W", "g @ jnp.sign(W)", "[2]", r"sign\(w\)"),
    ("dense", "04 random feedback", "g @ W", "g @ jax.random.normal(jax.random.key(77), W.shape, W.dtype)", "[2]",
     "fixed matrix|random feedback"),
    ("sigmoid_layer", "05 g' at a", "jax.nn.sigmoid(a @ W.T + b[None, :])",
     "jax.nn.sigmoid(jax.nn.sigmoid(a @ W.T + b[None, :]))", every, r"σ′\(\(?(sigmoid|a)"),
    ("tanh_layer", "06 g' left out", "g * (1 - jnp.tanh(a @ W.T + b[None, :]) ** 2)", "g", every,
     "missing|left out", "tanh"),
    ("sigmoid_layer", "07 sigmoid half", "g * s * (1 - s)", "g * s", every,
     r"1 - sigmoid|sigmoid\(", "missing|multiplied by|left out"),
    ("two_layers", "08 z saved for a", "g.T @ a", "g.T @ z", "[1]", "z stands in the place of"),
    ("square_dense", "09 dW transposed", "g.T @ a", "a.T @ g", "[0]", "transpos"),
    ("half_square", "10 sum for mean", " / len(a)", "", "[0] [1] [2] [3]",
     "times what it should be", "axis 0 of (a|y|x)"),
    ("dense", "11 bias averaged again", "g.sum(0)", "g.mean(0)", "[1]", "1/", "axis 0 of"),
    ("dense", "12 bias of the first example", "g.sum(0)", "g[0]", "[1]", "first"),
    ("dense", "13 bias gradient zero", "_b, a = args\n    return g.T @ a, g.sum(0)",
     "b, a = args\n    return g.T @ a, jnp.zeros_like(b)", "[1]", "zero|missing"),
    ("dense", "19 regulariser added", "g.T @ a", "g.T @ a + 0.1 * W", "[0]", "added", "regulariser"),
    ("dense", "21 one row zero", "g.T @ a", "(g.T @ a).at[-1].set(0)", "[0]", "row", "zero"),
    ("dense", "22 one entry zero", "g.T @ a", "(g.T @ a).at[1, 2].set(0)", "[0]", "entry", "zero"),
    ("dense", "23 all one per cent too large", "= args", "= args\n    g = g * jnp.asarray(1.01, g.dtype)", every,
     r"1 %|1.01"),
    ("dense", "24 dx zero", "g @ W", "jnp.zeros_like(a)", "[2]", "zero|missing"),
    ("tanh", "45 tanh' = 1 - h", "jnp.tanh(x) ** 2", "jnp.tanh(x)", "[0]", r"1 - tanh|1 - h|\(1 - "),
    ("gelu", "46 GELU: Phi alone", "(jax.scipy.stats.norm.cdf(x) + x * jax.scipy.stats.norm.pdf(x))",
     "jax.scipy.stats.norm.cdf(x)", "[0]", "missing|φ|Φ"),
    ("relu", "47 ReLU gated by the cotangent", "x > 0", "g > 0", "[0]", "d_out > 0|cotangent"),
    ("leaky_relu", "48 leaky ReLU's slope lost", "0.1 * g", "0", "[0]", r"0\.1", "missing"),
    ("swish", "49 swish: sigma alone", " * (1 + x * (1 - s))", "", "[0]", "missing|σ"),
)  # fmt: skip
