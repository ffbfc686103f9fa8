"""Backward passes that are right, by hand: whoever raises an alarm at one of them is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnet.backprop import as_custom_vjp, vjp
from jaxnet.checking.corpus import activations as act
from jaxnet.checking.corpus import (
    cells,
    convolutions,
    dense_layers,
    heads,
    images,
    losses,
    normalisation,
    sequences,
    statistics,
    windows,
)
from jaxnet.checking.corpus.case import dot, mean, saving_arguments
from jaxnet.layers import average_pool, dot_product_attention, group_norm, gru, lstm, max_pool, rotary
from jaxnet.models import mlp


class Right(NamedTuple):
    """One right rule: its name, the function, and inputs by size (0, 1, 2), seed and dtype."""

    name: str
    rule: Callable[..., Any]
    make_args: Callable[[int, int, Any], tuple]


RIGHT: list[Right] = []


def right(primal, args):
    """Enter a right backward pass of `primal`: (args, cotangent) -> gradients."""

    def enter(backward):
        rule = jax.custom_vjp(primal)
        rule.defvjp(*saving_arguments(primal, backward))
        RIGHT.append(Right(primal.__name__, rule, args))
        return backward

    return enter


@right(dense_layers.dense, dense_layers.dense_args)
def _(args, g):
    W, _b, a = args
    return g.T @ a, g.sum(0), g @ W


@right(dense_layers.sigmoid_layer, dense_layers.dense_args)
def _(args, g):
    W, b, a = args
    s = jax.nn.sigmoid(a @ W.T + b[None, :])
    delta = g * s * (1 - s)
    return delta.T @ a, delta.sum(0), delta @ W


@right(dense_layers.tanh_layer, dense_layers.square_args)
def _(args, g):
    W, b, a = args
    delta = g * (1 - jnp.tanh(a @ W.T + b[None, :]) ** 2)
    return delta.T @ a, delta.sum(0), delta @ W


@right(dense_layers.two_layers, dense_layers.two_args)
def _(args, g):
    W1, W2, x = args
    a = jax.nn.sigmoid(x @ W1.T)
    delta = (g @ W2) * a * (1 - a)
    return delta.T @ x, g.T @ a, delta @ W1


@right(dense_layers.half_square, dense_layers.loss_args)
def _(args, g):
    W, b, a, y = args
    delta = g * (a @ W.T + b[None, :] - y) / len(a)
    return delta.T @ a, delta.sum(0), delta @ W, -delta


@right(losses.cross_entropy, losses.one_hot_args)
def _(args, g):
    z, y = args
    return g * (jax.nn.softmax(z, axis=-1) * jnp.sum(y, -1, keepdims=True) - y), -g * jax.nn.log_softmax(z, axis=-1)


@right(losses.binary_cross_entropy, losses.binary_args)
def _(args, g):
    z, y = args
    return g * (jax.nn.sigmoid(z) - y), -g * z


@right(losses.softmax, losses.matrix_args)
def _(args, g):
    p = jax.nn.softmax(args[0], axis=-1)
    return (p * (g - dot(g, p)),)


@right(losses.token_loss, losses.token_args)
def _(args, g):
    z, tokens, valid = args
    delta = jax.nn.softmax(z, axis=-1) - jax.nn.one_hot(tokens, z.shape[-1], dtype=z.dtype)
    return jnp.where(valid[:, None], g * delta, 0) / jnp.sum(valid.astype(z.dtype)), None, None


@right(normalisation.layer_norm, normalisation.norm_args)
def _(args, g):
    x, gamma, _beta = args
    xh, r = normalisation.normed(x)
    return normalisation.right_dx(x, g, gamma[None, :], xh, r), jnp.sum(g * xh, 0), g.sum(0)


@right(normalisation.batch_norm, normalisation.norm_args)
def _(args, g):
    x, gamma, _beta = args
    xh, r = normalisation.normed(x, 0)
    d = g * gamma[None, :]
    return r * (d - mean(d, 0) - xh * mean(d * xh, 0)), jnp.sum(g * xh, 0), g.sum(0)


@right(normalisation.rms_norm, normalisation.rms_args)
def _(args, g):
    x, gamma = args
    r = lax.rsqrt(mean(x**2) + 1e-5)
    d = g * gamma[None, :]
    return r * (d - x * r * mean(d * x * r)), jnp.sum(g * x * r, 0)


@right(sequences.attention, sequences.attention_args)
def _(args, g):
    Q, K, V = args
    c = 1 / jnp.sqrt(jnp.asarray(Q.shape[-1], Q.dtype))
    A = jax.nn.softmax(sequences.causal(Q @ K.T * c), axis=-1)
    dA = g @ V.T
    dS = A * (dA - dot(dA, A)) * c
    return dS @ K, dS.T @ Q, A.T @ g


@right(sequences.tied, sequences.tied_args)
def _(args, g):
    E, x = args
    h = jnp.tanh(x @ E)
    delta = (g @ E) * (1 - h**2)
    return g.T @ h + x.T @ delta, delta @ E.T


@right(sequences.embedding, sequences.embedding_args)
def _(args, g):
    E, tokens = args
    return jnp.zeros_like(E).at[tokens].add(g), None


@right(sequences.skip, sequences.skip_args)
def _(args, g):
    W, x = args
    delta = g * (1 - jnp.tanh(x @ W.T) ** 2)
    return delta.T @ x, g + delta @ W


@right(sequences.lstm, sequences.lstm_args)
def _(args, g):
    return sequences.lstm_backward(args, g)


def _elementwise(primal, slope):
    """Enter the right slope of an elementwise function."""
    right(primal, losses.matrix_args)(lambda args, g: (g * slope(args[0]).astype(g.dtype),))


_elementwise(act.tanh, lambda x: 1 - jnp.tanh(x) ** 2)
_elementwise(act.gelu, lambda x: jax.scipy.stats.norm.cdf(x) + x * jax.scipy.stats.norm.pdf(x))
_elementwise(act.relu, lambda x: x > 0)
_elementwise(act.leaky_relu, lambda x: jnp.where(x > 0, 1, 0.1))
_elementwise(act.swish, lambda x: jax.nn.sigmoid(x) * (1 + x * (1 - jax.nn.sigmoid(x))))


@right(images.convolution, images.conv_args)
def _(args, g):
    K, x = args
    rows, columns = g.shape[1:3]
    dK = [
        [jnp.einsum("nhwc,nhwo->co", x[:, i : i + rows, j : j + columns], g) for j in range(K.shape[1])]
        for i in range(K.shape[0])
    ]
    return jnp.stack([jnp.stack(row) for row in dK]), images.back_through(K, g)


@right(images.average_pool, images.image_args)
def _(args, g):
    return (images.spread(g) / 4,)


@right(images.dropout, images.dropout_args)
def _(args, g):
    key, x = args
    return None, jnp.where(jax.random.bernoulli(key, 0.7, x.shape), g / 0.7, 0)


# ------------------------------------------------------------------------------------------- layers as jaxnet has them


def _layer(primal, make_args, layer, names):
    """Enter a layer's own backward pass: `layer(*params)` makes it, `names` are those of its parameters."""

    def backward(args, g):
        *params, x = args
        grads, dx = vjp(layer(*params))(dict(zip(names, params, strict=True)) if names else (), x)[1](g)
        return *(grads[name] for name in names), dx

    right(primal, make_args)(backward)


for _name, _sizes, _groups in (
    ("dilated", convolutions.OBLONG, 1),
    ("strided", convolutions.OBLONG, 1),
    ("even", convolutions.EVEN, 1),
    ("grouped", convolutions.FOURS, 2),
    ("depthwise", convolutions.FOURS, 0),
    ("upward", convolutions.OBLONG, 1),
):
    _make = convolutions.LAYERS[_name]
    _layer(getattr(convolutions, _name), convolutions.images(_sizes, _groups), lambda W, b, f=_make: f(W), ("W", "b"))
_layer(statistics.groups, statistics.args, lambda *_: group_norm(statistics.GROUPS), ("gamma", "beta"))
_layer(windows.greatest, windows.image, lambda: max_pool(3, stride=2), ())
_layer(windows.edged, windows.image, lambda: average_pool(3, stride=2, padding="SAME"), ())
_layer(windows.turning, windows.heads, lambda: rotary(), ())
_layer(cells.lstm_over, cells.LSTM.args, lambda W, U, b: lstm(U.shape[1]), ("W", "U", "b"))
_layer(cells.gru_over, cells.GRU.args, lambda W, U, b, c: gru(U.shape[1]), ("W", "U", "b", "c"))


@right(heads.grouped_attention, heads.qkv)
def _(args, g):
    return vjp(dot_product_attention())((), args)[1](g)[1]


# (in, hidden, out, batch)
NETWORKS = ((12, 16, 5, 8), (64, 30, 10, 32), (784, 256, 10, 128))


def network_args(size, seed, dtype):
    """Parameters of a network, and a batch."""
    n, hidden, out, batch = NETWORKS[size]
    keys = jax.random.split(jax.random.key(seed), 2)
    x = jax.random.normal(keys[1], (batch, n), dtype)
    return mlp((hidden, hidden, out)).init(keys[0], x[0]), x


def network(params, x):
    """A relu network of jaxnet's, of the sizes of its parameters."""
    hidden, _, out = (len(p["b"]) for p in params if p)
    return as_custom_vjp(mlp((hidden, hidden, out)), batched=True)(params, x)


RIGHT.append(Right("relu network", network, network_args))
