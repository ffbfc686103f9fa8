"""Matrices, gates, recurrences, attention, positions, pooling."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnet.checking.corpus.case import dot, gaussian, normal
from tests.checking.unseen.entering import SIZES, both, one, vectors, wrong

# -- matrices ---------------------------------------------------------------------------------------------------------


def quadratic(x, A, y):
    return x @ A @ x + y @ x


@wrong("20 quadratic form taken as symmetric", quadratic, vectors, "transpos|A", ("[0]",))
def _(args, g):
    x, A, y = args
    return g * (2 * A @ x + y), g * jnp.outer(x, x), g * x


def bilinear(x, A, y):
    return x @ A @ y


@wrong("21 bilinear: dA transposed", bilinear, vectors, "transpos", ("[1]",))
def _(args, g):
    x, A, y = args
    return g * A @ y, g * jnp.outer(y, x), g * A.T @ x


def inverse_of(A):
    return jnp.linalg.inv(A)


def regular(size, seed, dtype):
    d = SIZES[size][1]
    return (jnp.asarray(np.random.default_rng(seed).standard_normal((d, d)) + 3 * np.eye(d), dtype),)


@wrong("22 inverse without transposes", inverse_of, regular, "transpos", ("[0]",))
def _(args, g):
    B = jnp.linalg.inv(args[0])
    return (-B @ g @ B,)


def two_matmuls(A, B, C):
    M = A @ B
    return M @ C


@wrong(
    "23 A for M in dC",
    two_matmuls,
    normal(*[lambda n, d: (d, d)] * 3, sizes=SIZES),
    ("a stands in the place of m|stands in the place", "M|a @ b"),
    ("[2]",),
)
def _(args, g):
    A, B, C = args
    return g @ C.T @ B.T, A.T @ (g @ C.T), A.T @ g


# -- gates, recurrences -----------------------------------------------------------------------------------------------


def glu(x):
    a, b = jnp.split(x, 2, axis=-1)
    return a * jax.nn.sigmoid(b)


wide = normal(lambda n, d: (n, 2 * d), sizes=SIZES)


@wrong("24 GLU: halves exchanged", glu, wide, "exchanged", ("[0]",))
def _(args, g):
    a, b = jnp.split(args[0], 2, axis=-1)
    s = jax.nn.sigmoid(b)
    return (jnp.concatenate([g * a * s * (1 - s), g * s], -1),)


@wrong("25 GLU: gate's own derivative forgotten", glu, wide, "missing|left out", ("[0]",))
def _(args, g):
    a, b = jnp.split(args[0], 2, axis=-1)
    return (jnp.concatenate([g * jax.nn.sigmoid(b), g * a], -1),)


def recurrence(a, x):
    def step(h, x):
        h = a * h + x
        return h, h

    return lax.scan(step, jnp.zeros_like(a), x)[1]


decay = normal(lambda n, d: (d,), lambda n, d: (n, d), sizes=SIZES)


def _recurrence(args, g, of, through=lambda d, a: a * d):
    a, x = args
    h = recurrence(a, x)
    before = jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]])

    def back(d, g):
        d = through(d, a) + g
        return d, d

    deltas = lax.scan(back, jnp.zeros_like(a), g, reverse=True)[1]
    return jnp.sum(deltas * of(h, before), 0), deltas


wrong("26 recurrence: h of this step for the one before", recurrence, decay, "step", ("[0]",))(
    lambda args, g: _recurrence(args, g, lambda h, before: h)
)
wrong("27 recurrence: no error through time", recurrence, decay, "step", both)(
    lambda args, g: _recurrence(args, g, lambda h, b: b, lambda d, a: 0 * d)
)
wrong("28 recurrence: decay forgotten", recurrence, decay, (r"\ba\b", "missing"), both)(
    lambda args, g: _recurrence(args, g, lambda h, b: b, lambda d, a: d)
)


def running(x):
    return jnp.cumsum(x, 0)


@wrong("29 cumulative sum not reversed", running, one, "direction|reverse", ("[0]",))
def _(args, g):
    return (jnp.cumsum(g, 0),)


# -- attention, positions, pooling ------------------------------------------------------------------------------------


def heads(Q, K, V):
    S = jnp.einsum("htd,hsd->hts", Q, K) * 0.5
    A = jax.nn.softmax(S, -1)
    return jnp.einsum("hts,hsd->htd", A, V)


head_args = normal(*[lambda n, d: (2, n, 3)] * 3, sizes=SIZES)


def _heads(args, g, dV=None, dQ_scale=0.5, dA=None):
    Q, K, V = args
    S = jnp.einsum("htd,hsd->hts", Q, K) * 0.5
    A = jax.nn.softmax(S, -1)
    d = jnp.einsum("htd,hsd->hts", g, V)
    dS = A * (d - dot(d, A)) if dA is None else dA(A, d)
    dV = jnp.einsum("hts,htd->hsd", A, g) if dV is None else dV(S, A, g)
    return dQ_scale * jnp.einsum("hts,hsd->htd", dS, K), 0.5 * jnp.einsum("hts,htd->hsd", dS, Q), dV


wrong("30 heads: scores for weights in dV", heads, head_args, "s stands in the place", ("[2]",))(
    lambda a, g: _heads(a, g, lambda S, A, g: jnp.einsum("hts,htd->hsd", S, g))
)
wrong("31 heads: scale missing in dQ alone", heads, head_args, ("2", "times"), ("[0]",))(
    lambda a, g: _heads(a, g, dQ_scale=1.0)
)
wrong("32 heads: softmax Jacobian forgotten", heads, head_args, "missing|left out|passed on", both)(
    lambda a, g: _heads(a, g, dA=lambda A, d: d)
)
wrong("33 heads: softmax's subtraction forgotten", heads, head_args, "missing|stop_gradient", both)(
    lambda a, g: _heads(a, g, dA=lambda A, d: A * d)
)


def rotated(x):
    t = jnp.arange(x.shape[0], dtype=x.dtype)[:, None]
    a, b = x[:, ::2], x[:, 1::2]
    return jnp.concatenate([a * jnp.cos(t) - b * jnp.sin(t), a * jnp.sin(t) + b * jnp.cos(t)], -1)


@wrong("34 rotary: rotated on, not back", rotated, wide, "sign|sin|two at once", ("[0]",))
def _(args, g):
    t = jnp.arange(g.shape[0], dtype=g.dtype)[:, None]
    ga, gb = jnp.split(g, 2, axis=-1)
    a, b = ga * jnp.cos(t) - gb * jnp.sin(t), ga * jnp.sin(t) + gb * jnp.cos(t)
    return (jnp.stack([a, b], -1).reshape(g.shape),)


def global_pool(x):
    return jnp.mean(x, 0)


@wrong("35 global pooling not averaged", global_pool, one, ("times", "axis 0"), ("[0]",))
def _(args, g):
    return (jnp.broadcast_to(g[None, :], args[0].shape),)


def largest(x):
    return jnp.max(x, -1)


@wrong("36 maximum to all entries", largest, one, "mask|max|left out|passed|missing", ("[0]",))
def _(args, g):
    return (jnp.broadcast_to(g[:, None], args[0].shape),)


def layer_scale(gamma, W, x):
    f = jnp.tanh(x @ W.T)
    return x + gamma[None, :] * f


@wrong(
    "37 layer scale: out for f",
    layer_scale,
    normal(lambda n, d: (d,), lambda n, d: (d, d), lambda n, d: (n, d), sizes=SIZES),
    "stands in the place|added",
    ("[0]",),
)
def _(args, g):
    gamma, W, x = args
    f = jnp.tanh(x @ W.T)
    delta = g * gamma[None, :] * (1 - f**2)
    return jnp.sum(g * (x + gamma[None, :] * f), 0), delta.T @ x, g + delta @ W


def product(a, b):
    return a * b


def complex_args(size, seed, dtype):
    n, d = SIZES[size]
    rng = np.random.default_rng(seed)
    parts = [gaussian(rng, (n, d), dtype) for _ in range(4)]
    return lax.complex(parts[0], parts[1]), lax.complex(parts[2], parts[3])


@wrong("38 complex product: conjugates of the factors", product, complex_args, "conj", both)
def _(args, g):
    a, b = args
    return g * jnp.conj(b), g * jnp.conj(a)  # jax's transpose takes no conjugate


def padded_embedding(E, tokens):
    return jnp.where((tokens > 0)[:, None], E[tokens], 0)


def padded_args(size, seed, dtype):
    n, d = SIZES[size]
    rng = np.random.default_rng(seed)
    tokens = np.concatenate([[0], rng.integers(0, 5, 2 * n - 1)])
    return gaussian(rng, (5, d), dtype), jnp.asarray(tokens, jnp.int32)


@wrong("39 padding row gets a gradient", padded_embedding, padded_args, "mask", ("[0]",))
def _(args, g):
    E, tokens = args
    return jnp.zeros_like(E).at[tokens].add(g), None


def conv1d(k, x):
    return jnp.convolve(x, k, mode="valid")


@wrong(
    "40 convolution: error carried without full padding",
    conv1d,
    normal(lambda n, d: (3,), lambda n, d: (3 * n,), sizes=SIZES),
    "shift|flip|pad",
    ("[1]",),
)
def _(args, g):
    k, x = args
    dk = jax.vjp(lambda k: conv1d(k, x), k)[1](g)[0]
    return dk, jnp.concatenate([jnp.convolve(g, k[::-1])[1:], jnp.zeros(1, g.dtype)])
