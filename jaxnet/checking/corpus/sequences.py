"""Mistakes in attention, shared weights and sequences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnet.checking.corpus.case import Rules, dot, gaussian, integers, normal
from jaxnet.checking.corpus.dense_layers import OBLONG
from jaxnet.checking.subject import on_device

RULES = Rules()


def causal(S):
    """Scores with −∞ where a key lies after its query."""
    return jnp.where(jnp.tril(jnp.ones(S.shape, bool)), S, -jnp.inf)


def attention(Q, K, V):
    """One head of causal attention: Q, K, V of (time, width)."""
    S = Q @ K.T / jnp.sqrt(jnp.asarray(Q.shape[-1], Q.dtype))
    A = jax.nn.softmax(causal(S), axis=-1)
    return A @ V


# (time, head)
HEADS = ((5, 3), (9, 4), (32, 16))


@RULES.back_of(attention, normal(*[lambda t, d: (t, d)] * 3, sizes=HEADS))
def attention_back(args, g):
    Q, K, V = args
    c = 1 / jnp.sqrt(jnp.asarray(Q.shape[-1], Q.dtype))
    S = Q @ K.T * c
    A = jax.nn.softmax(causal(S), axis=-1)
    dA = g @ V.T
    inner = A * (dA - dot(dA, A))
    dS = inner * c
    return dS @ K, dS.T @ Q, A.T @ g


def tied(E, x):
    """Two layers that share E: tanh(x E) Eᵀ."""
    h = jnp.tanh(x @ E)
    return h @ E.T


@RULES.back_of(tied, normal(lambda n, o, i: (o, i), lambda n, o, i: (n, o), sizes=OBLONG))
def tied_back(args, g):
    E, x = args
    h = jnp.tanh(x @ E)
    delta = (g @ E) * (1 - h**2)
    return g.T @ h + x.T @ delta, delta @ E.T


def embedding(E, tokens):
    """Rows of E."""
    return E[tokens]


def embedding_args(size, seed, dtype):
    """A table, and tokens of which some come again."""
    n, o, d = ((9, 4, 3), (20, 6, 5), (64, 11, 8))[size]
    rng = np.random.default_rng(seed)
    return gaussian(rng, (o, d), dtype), integers(rng, (n,), o)


@RULES.back_of(embedding, embedding_args)
def embedding_back(args, g):
    E, tokens = args
    return jnp.zeros_like(E).at[tokens].add(g), None


def skip(W, x):
    """x + tanh(x Wᵀ)."""
    return x + jnp.tanh(x @ W.T)


@RULES.back_of(skip, normal(lambda n, o, i: (o, o), lambda n, o, i: (n, o), sizes=OBLONG))
def skip_back(args, g):
    W, x = args
    delta = g * (1 - jnp.tanh(x @ W.T) ** 2)
    return delta.T @ x, g + delta @ W


# (time, hidden, in)
SEQUENCES = ((4, 3, 2), (7, 5, 4), (128, 8, 6))


def _tamed(make):
    """Weights small enough that tanh and σ are not saturated, where a gradient is all rounding."""

    def tamed(size, seed, dtype):
        first, second, *others = make(size, seed, dtype)
        return *(on_device(0.4 * np.asarray(a), dtype) for a in (first, second)), *others

    return tamed


def rnn(W, U, x):
    """The last state of a tanh recurrence."""

    def step(h, x):
        h = jnp.tanh(W @ h + U @ x)
        return h, None

    return lax.scan(step, jnp.zeros(W.shape[0], W.dtype), x)[0]


@RULES.back_of(rnn, _tamed(normal(lambda t, h, i: (h, h), lambda t, h, i: (h, i), lambda t, h, i: (t, i),
                                  sizes=SEQUENCES)))  # fmt: skip
def rnn_back(args, g):
    W, U, x = args
    before = lax.scan(lambda h, x: (jnp.tanh(W @ h + U @ x), h), jnp.zeros(W.shape[0], W.dtype), x)[1]
    slope = 1 - jnp.tanh(before @ W.T + x @ U.T) ** 2
    delta = lax.scan(lambda dh, slope: (W.T @ (dh * slope), dh * slope), g, slope, reverse=True)[1]
    return delta.T @ before, delta.T @ x, delta @ U


def lstm(W, b, x):
    """All states of an LSTM whose gates are i, f, o, u, from one matrix over (x, h)."""
    n = b.shape[0] // 4

    def step(carry, x):
        h, c = carry
        z = W @ jnp.concatenate([x, h]) + b
        i, f, o, u = jnp.split(z, 4)
        f = jax.nn.sigmoid(f)
        c = f * c + jax.nn.sigmoid(i) * jnp.tanh(u)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    return lax.scan(step, (jnp.zeros(n, x.dtype), jnp.zeros(n, x.dtype)), x)[1]


@RULES.back_of(lstm, _tamed(normal(lambda t, h, i: (4 * h, i + h), lambda t, h, i: (4 * h,), lambda t, h, i: (t, i),
                                   sizes=SEQUENCES)))  # fmt: skip
def lstm_back(args, g):
    W, b, x = args
    n = b.shape[0] // 4

    def forward(carry, x):
        h, c = carry
        a = jnp.concatenate([x, h])
        i, f, o, u = jnp.split(W @ a + b, 4)
        i, f, o, u = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jax.nn.sigmoid(o), jnp.tanh(u)
        new = f * c + i * u
        return (o * jnp.tanh(new), new), (a, i, f, o, u, c, new)

    def back(carry, step):
        dh, dc, dW, db = carry
        (a, i, f, o, u, c, new), g = step
        dh = dh + g
        t = jnp.tanh(new)
        dc = dc + dh * o * (1 - t**2)
        dz = jnp.concatenate([dc * u * i * (1 - i), dc * c * f * (1 - f), dh * t * o * (1 - o), dc * i * (1 - u**2)])
        da = W.T @ dz
        m = x.shape[1]
        return (da[m:], dc * f, dW + jnp.outer(dz, a), db + dz), da[:m]

    zero = jnp.zeros(n, x.dtype)
    _, saved = lax.scan(forward, (zero, zero), x)
    (_, _, dW, db), dx = lax.scan(back, (zero, zero, jnp.zeros_like(W), jnp.zeros_like(b)), (saved, g), reverse=True)
    return dW, db, dx


MISTAKES: tuple[tuple[str, ...], ...] = (
    ("attention", "35 dV without the transpose", "A.T @ g", "A @ g", "[2]", "transpos"),
    ("attention", "36 dK without the transpose", "dS.T @ Q", "dS @ Q", "[1]", "transpos"),
    ("attention", "37 1/sqrt(d) missing", "inner * c", "inner", "[0] [1]", r"√|sqrt|1\.732|missing"),
    ("attention", "38 softmax's row sum left out", "A * (dA - dot(dA, A))", "A * (1 - A) * dA", "[0] [1]",
     "diagonal only"),
    ("attention", "39 causal mask not applied", "causal(S)", "S", "[0] [1] [2]", "mask"),
    ("tied", "40 tied weights overwritten", "g.T @ h + x.T @ delta", "g.T @ h", "[0]", "missing|overwritten"),
    ("embedding", "41 embedding set, not added", ".add(g)", ".set(g)", "[0]", "overwrite|set"),
    ("skip", "42 skip connection lost", "g + delta @ W", "delta @ W", "[1]", "missing"),
    ("rnn", "43 RNN's last step only",
     "lax.scan(lambda dh, slope: (W.T @ (dh * slope), dh * slope), g, slope, reverse=True)[1]",
     "jnp.zeros_like(slope).at[-1].set(g * slope[-1])", "[0] [1] [2]", "step"),
    ("lstm", "44 LSTM: dc lacks f", "dc * f, dW", "dc, dW", "[0] [1] [2]", r"\bf\b|sigmoid", "missing"),
)  # fmt: skip
