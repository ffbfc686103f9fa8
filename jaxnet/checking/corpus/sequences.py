"""Mistakes in attention, shared weights and sequences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnet.checking.corpus.case import Case, dot, entering, gaussian, integers, normal
from jaxnet.checking.corpus.dense_layers import OBLONG
from jaxnet.checking.subject import on_device

CASES: list[Case] = []
wrong = entering(CASES)


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
attention_args = normal(*[lambda t, d: (t, d)] * 3, sizes=HEADS)


def _attention_rule(name, words, leaves, *, masked=True, scale=True, dS=None, dV=None, dK=None):
    """Enter a wrong attention: without mask or scale, or with other dS(A, dA), dV(A, g), dK(dS, Q)."""

    def backward(args, g):
        Q, K, V = args
        c = 1 / jnp.sqrt(jnp.asarray(Q.shape[-1], Q.dtype))
        S = Q @ K.T * c
        A = jax.nn.softmax(causal(S) if masked else S, axis=-1)
        dA = g @ V.T
        inner = A * (dA - dot(dA, A)) if dS is None else dS(A, dA)
        inner = inner * c if scale else inner
        return inner @ K, inner.T @ Q if dK is None else dK(inner, Q), A.T @ g if dV is None else dV(A, g)

    wrong(attention, attention_args, words, leaves, name)(backward)


_attention_rule("35 dV without the transpose", "transpos", ("[2]",), dV=lambda A, g: A @ g)
_attention_rule("36 dK without the transpose", "transpos", ("[1]",), dK=lambda dS, Q: dS @ Q)
_attention_rule("37 1/sqrt(d) missing", r"√|sqrt|1\.732|missing", ("[0]", "[1]"), scale=False)
_attention_rule(
    "38 softmax's row sum left out",
    "diagonal only",
    ("[0]", "[1]"),
    dS=lambda A, dA: A * (1 - A) * dA,
)
_attention_rule("39 causal mask not applied", "mask", ("[0]", "[1]", "[2]"), masked=False)


def tied(E, x):
    """Two layers that share E: tanh(x E) Eᵀ."""
    h = jnp.tanh(x @ E)
    return h @ E.T


tied_args = normal(lambda n, o, i: (o, i), lambda n, o, i: (n, o), sizes=OBLONG)


@wrong(tied, tied_args, "missing|overwritten", ("[0]",), "40 tied weights overwritten")
def _(args, g):
    E, x = args
    h = jnp.tanh(x @ E)
    delta = (g @ E) * (1 - h**2)
    return g.T @ h, delta @ E.T


def embedding(E, tokens):
    """Rows of E."""
    return E[tokens]


def embedding_args(size, seed, dtype):
    """A table, and tokens of which some come again."""
    n, o, d = ((9, 4, 3), (20, 6, 5), (64, 11, 8))[size]
    rng = np.random.default_rng(seed)
    return gaussian(rng, (o, d), dtype), integers(rng, (n,), o)


@wrong(embedding, embedding_args, "overwrite|set", ("[0]",), "41 embedding set, not added")
def _(args, g):
    E, tokens = args
    return jnp.zeros_like(E).at[tokens].set(g), None


def skip(W, x):
    """x + tanh(x Wᵀ)."""
    return x + jnp.tanh(x @ W.T)


skip_args = normal(lambda n, o, i: (o, o), lambda n, o, i: (n, o), sizes=OBLONG)


@wrong(skip, skip_args, "missing", ("[1]",), "42 skip connection lost")
def _(args, g):
    W, x = args
    delta = g * (1 - jnp.tanh(x @ W.T) ** 2)
    return delta.T @ x, delta @ W


def rnn(W, U, x):
    """The last state of a tanh recurrence."""

    def step(h, x):
        h = jnp.tanh(W @ h + U @ x)
        return h, None

    return lax.scan(step, jnp.zeros(W.shape[0], W.dtype), x)[0]


# (time, hidden, in)
SEQUENCES = ((4, 3, 2), (7, 5, 4), (128, 8, 6))


def _tamed(make):
    """Weights small enough that tanh and σ are not saturated, where a gradient is all rounding."""

    def tamed(size, seed, dtype):
        first, second, *others = make(size, seed, dtype)
        return *(on_device(0.4 * np.asarray(a), dtype) for a in (first, second)), *others

    return tamed


rnn_draws = normal(lambda t, h, i: (h, h), lambda t, h, i: (h, i), lambda t, h, i: (t, i), sizes=SEQUENCES)


rnn_args = _tamed(rnn_draws)


@wrong(rnn, rnn_args, "step", ("[0]", "[1]", "[2]"), "43 RNN's last step only")
def _(args, g):
    W, U, x = args
    h = jnp.zeros(W.shape[0], W.dtype)
    h = lax.fori_loop(0, len(x) - 1, lambda t, h: jnp.tanh(W @ h + U @ x[t]), h)
    delta = g * (1 - jnp.tanh(W @ h + U @ x[-1]) ** 2)
    return jnp.outer(delta, h), jnp.outer(delta, x[-1]), jnp.zeros_like(x).at[-1].set(U.T @ delta)


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


lstm_args = _tamed(
    normal(lambda t, h, i: (4 * h, i + h), lambda t, h, i: (4 * h,), lambda t, h, i: (t, i), sizes=SEQUENCES)
)


def lstm_backward(args, g, through=lambda dc, f: dc * f):
    """The right backward pass of `lstm`, but for what `through` makes of the cell's error a step before."""
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
        return (da[m:], through(dc, f), dW + jnp.outer(dz, a), db + dz), da[:m]

    zero = jnp.zeros(n, x.dtype)
    _, saved = lax.scan(forward, (zero, zero), x)
    (_, _, dW, db), dx = lax.scan(back, (zero, zero, jnp.zeros_like(W), jnp.zeros_like(b)), (saved, g), reverse=True)
    return dW, db, dx


@wrong(lstm, lstm_args, (r"\bf\b|sigmoid", "missing"), ("[0]", "[1]", "[2]"), "44 LSTM: dc lacks f")
def _(args, g):
    return lstm_backward(args, g, lambda dc, f: dc)
