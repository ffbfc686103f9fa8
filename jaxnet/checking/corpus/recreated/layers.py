"""Attention, gates, recurrences and other layers of public reports."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnet.checking.corpus.recreated.entering import back_of, classes, positive


def attention(q, k, v, sink):
    """Causal attention of one head, aligned at the last key, with a sink in the denominator."""
    s = jnp.where(jnp.tril(jnp.ones((3, len(k)), bool), len(k) - 3), q @ k.T / 2, -jnp.inf)
    top = jnp.maximum(s.max(-1, keepdims=True), sink)
    e = jnp.exp(s - top)
    return e / (e.sum(-1, keepdims=True) + jnp.exp(sink - top)) @ v


@back_of(attention, (3, 4), ("n", 4), ("n", 4), ())
def attention_back(args, g):
    """Reported: cudnn-frontend 421, ffpa-attn 300, tilelang-ascend 1669."""
    q, k, v, sink = args
    seen = jnp.tril(jnp.ones((3, len(k)), bool), len(k) - 3)
    s = jnp.where(seen, q @ k.T / 2, -jnp.inf)
    lse = jnp.logaddexp(jax.nn.logsumexp(s, axis=-1, keepdims=True), sink)
    p = jnp.exp(s - lse)
    dp = g @ v.T
    D = jnp.sum(g * (p @ v), axis=-1, keepdims=True)
    ds = p * (dp - D)
    dsink = -jnp.sum(jnp.exp(sink - lse) * D)
    return ds @ k / 2, ds.T @ q / 2, p.T @ g, dsink


def grouped_scores(q, k):
    """Scores of attention with grouped heads: g groups of queries share each of h heads of keys."""
    return jnp.einsum("ghid,hjd->ghij", q, k)


@back_of(grouped_scores, (2, 3, "n", 4), (3, "n", 4))
def grouped_scores_back(args, g):
    """Reported: levanter 449, native-sparse-attention 27."""
    q, k = args
    dq = jnp.einsum("ghij,hjd->ghid", g, k)
    dk = jnp.einsum("ghij,ghid->hjd", g, q)
    return dq, dk


def rotary(x, angle):
    """Pairs of entries turned by an angle; the rest stays."""
    a, b, rest = x[:, :2], x[:, 2:4], x[:, 4:]
    c, s = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([a * c - b * s, a * s + b * c, rest], axis=-1)


@back_of(rotary, ("n", 6), ("n", 2))
def rotary_back(args, g):
    """The turn back, and the slope of the angle."""
    x, angle = args
    a, b = x[:, :2], x[:, 2:4]
    c, s = jnp.cos(angle), jnp.sin(angle)
    ga, gb, rest = g[:, :2], g[:, 2:4], g[:, 4:]
    dx = jnp.concatenate([ga * c + gb * s, gb * c - ga * s, rest], axis=-1)
    dangle = ga * (-a * s - b * c) + gb * (a * c - b * s)
    return dx, dangle


def gated(z, u):
    """z σ(z) u."""
    return z * jax.nn.sigmoid(z) * u


@back_of(gated, ("n", 4), ("n", 4))
def gated_back(args, g):
    """The product rule for z σ(z)."""
    z, u = args
    s = jax.nn.sigmoid(z)
    dz = g * u * (s + z * s * (1 - s))
    du = g * z * s
    return dz, du


def gelu(x):
    """GELU by tanh, with rounded constants."""
    return 0.5 * x * (1 + jnp.tanh(0.8 * (x + 0.045 * x**3)))


@back_of(gelu, ("n", 4))
def gelu_back(args, g):
    """The product rule, and the slope inside tanh."""
    (x,) = args
    t = jnp.tanh(0.8 * (x + 0.045 * x**3))
    slope = 0.8 * (1 + 3 * 0.045 * x**2)
    return (g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slope),)


def selective_scan(dt, A, B, C, x):
    """h_t = exp(dt A) h_{t−1} + dt B x, out_t = C·h_t."""

    def step(h, row):
        dt, B, C, x = row
        h = jnp.exp(dt * A) * h + dt * B * x
        return h, jnp.sum(C * h)

    return lax.scan(step, jnp.zeros_like(A), (dt, B, C, x))[1]


@back_of(selective_scan, positive("n", 3), (3,), ("n", 3), ("n", 3), ("n", 3))
def selective_scan_back(args, g):
    """Reported: mamba 368."""
    dt, A, B, C, x = args
    decay = jnp.exp(dt * A)
    h = lax.scan(lambda h, row: (row[0] * h + row[1],) * 2, jnp.zeros_like(A), (decay, dt * B * x))[1]
    before = jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]])
    after = jnp.concatenate([decay[1:], jnp.zeros_like(decay[:1])])
    dh = lax.scan(lambda d, row: (row[0] * d + row[1],) * 2, 0 * A, (after, g[:, None] * C), reverse=True)[1]
    ddecay = dh * before * decay
    ddt = ddecay * A + dh * B * x
    dA = jnp.sum(ddecay * dt, axis=0)
    return ddt, dA, dh * dt * x, g[:, None] * h, dh * dt * B


def lstm_step(i, f, o, z, c):
    """One step of an LSTM: its output from the four gates and the state."""
    new = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(z)
    return jax.nn.sigmoid(o) * jnp.tanh(new)


@back_of(lstm_step, (4,), (4,), (4,), (4,), (4,))
def lstm_step_back(args, g):
    """Each gate with the slope of its own activation."""
    i, f, o, z, c = args
    i, f, o, z = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jax.nn.sigmoid(o), jnp.tanh(z)
    new = f * c + i * z
    t = jnp.tanh(new)
    dc = g * o * (1 - t * t)
    do = g * t * o * (1 - o)
    df = dc * c * f * (1 - f)
    di = dc * z * i * (1 - i)
    dz = dc * i * (1 - z * z)
    return di, df, do, dz, dc * f


def embedding(E, tokens):
    """2 E[tokens]; token 0 is padding and gives 0."""
    return jnp.where((tokens == 0)[:, None], 0, E[tokens]) * 2


@back_of(embedding, (7, 4), classes(7, "n"))
def embedding_back(args, g):
    """Rows of repeated tokens add up."""
    E, tokens = args
    kept = jnp.where((tokens == 0)[:, None], 0, g)
    dE = jnp.zeros_like(E).at[tokens].add(2 * kept)
    return dE, np.zeros(tokens.shape, jax.dtypes.float0)


def convolution(x, k, b):
    """A convolution in one dimension, one channel in and two out, with a bias."""
    return sum(x[i : len(x) - 2 + i, :, None] * k[i] for i in range(3)) + b


@back_of(convolution, ("n", 4), (3, 2), (2,))
def convolution_back(args, g):
    """dx is a convolution with the kernel turned."""
    x, k, _ = args
    dx = sum(jnp.pad(g @ k[i], ((i, 2 - i), (0, 0))) for i in range(3))
    dk = jnp.stack([jnp.sum(x[i : len(x) - 2 + i, :, None] * g, axis=(0, 1)) for i in range(3)])
    db = jnp.sum(g, axis=(0, 1))
    return dx, dk, db


def cosine(a, b):
    """Cosine similarity of the rows of a and b."""
    return jnp.sum(a * b, -1) / jnp.sqrt(jnp.sum(a * a, -1) * jnp.sum(b * b, -1))


@back_of(cosine, ("n", 4), ("n", 4))
def cosine_back(args, g):
    """Each side over its own norm."""
    a, b = args
    A, B = jnp.sqrt(jnp.sum(a * a, -1, keepdims=True)), jnp.sqrt(jnp.sum(b * b, -1, keepdims=True))
    c = jnp.sum(a * b, -1, keepdims=True) / (A * B)
    da = b / (A * B) - c * a / A**2
    db = a / (A * B) - c * b / B**2
    return g[:, None] * da, g[:, None] * db


MISTAKES: tuple[tuple[str, ...], ...] = (
    ("attention", "cudnn-frontend 421: sink not in the denominator",
     "jnp.logaddexp(jax.nn.logsumexp(s, axis=-1, keepdims=True), sink)",
     "jax.nn.logsumexp(s, axis=-1, keepdims=True)", "[0] [1] [2] [3]"),
    ("attention", "cudnn-frontend 421: sink's gradient zero", "p.T @ g, dsink", "p.T @ g, 0 * sink", "[3]"),
    ("attention", "ffpa-attn 300: mask aligned at the other corner",
     "seen = jnp.tril(jnp.ones((3, len(k)), bool), len(k) - 3)",
     "seen = jnp.tril(jnp.ones((3, len(k)), bool))", "[0] [1] [2] [3]"),
    ("attention", "tilelang-ascend 1669: scale of the padded size",
     "return ds @ k / 2", "return ds @ k / jnp.sqrt(5.0)", "[0]"),
    ("attention", "scale left out for the keys", "ds.T @ q / 2", "ds.T @ q", "[1]"),
    ("attention", "softmax's mean left out", "p * (dp - D)", "p * dp", "[0] [1]"),
    ("attention", "sign of the sink", "dsink = -jnp.sum", "dsink = jnp.sum", "[3]"),
    ("grouped_scores", "levanter 449: heads of a group not summed",
     '"ghij,ghid->hjd", g, q)', '"hij,hid->hjd", g[0], q[0])', "[1]"),
    ("grouped_scores", "mean over the group",
     'jnp.einsum("ghij,ghid->hjd", g, q)', 'jnp.einsum("ghij,ghid->hjd", g, q) / 2', "[1]"),
    ("grouped_scores", "native-sparse-attention 27: another head", "g, k)\n", "g, k[::-1])\n", "[0]"),
    ("rotary", "turned forward again", "[ga * c + gb * s, gb * c - ga * s", "[ga * c - gb * s, gb * c + ga * s", "[0]"),
    ("rotary", "the rest is not passed on", "gb * c - ga * s, rest]", "gb * c - ga * s, 0 * rest]", "[0]"),
    ("rotary", "angle's gradient: one half", " + gb * (a * c - b * s)", "", "[1]"),
    ("gated", "product's first term left out", "(s + z * s * (1 - s))", "s * (1 - s)", "[0]"),
    ("gated", "gradients exchanged", "return dz, du", "return du, dz", "[0] [1]"),
    ("gated", "slope of the sigmoid alone", "z * s * (1 - s)", "z * (1 - s)", "[0]"),
    ("gelu", "power's factor left out", "3 * 0.045", "0.045", "[0]"),
    ("gelu", "inner slope left out", " * slope", "", "[0]"),
    ("selective_scan", "state after the step", "dh * before * decay", "dh * h * decay", "[0] [1]"),
    ("selective_scan", "step's decay left out", "ddecay * A + dh", "dh", "[0]"),
    ("selective_scan", "mamba 368: decay past the end",
     "decay[1:], jnp.zeros_like(decay[:1])", "decay", "[0] [1] [2] [4]"),
    ("selective_scan", "no sum over time", "jnp.sum(ddecay * dt, axis=0)", "ddecay[-1] * dt[-1]", "[1]"),
    ("lstm_step", "forget gate: new state for the old", "dc * c * f", "dc * new * f", "[1]"),
    ("lstm_step", "candidate's slope of a sigmoid", "(1 - z * z)", "z * (1 - z)", "[3]"),
    ("lstm_step", "state's slope left out", "g * o * (1 - t * t)", "g * o", "[0] [1] [3] [4]"),
    ("embedding", "set for add", ".add(2 * kept)", ".set(2 * kept)", "[0]"),
    ("embedding", "gradient of the padding", "jnp.where((tokens == 0)[:, None], 0, g)", "g", "[0]"),
    ("embedding", "scale left out", ".add(2 * kept)", ".add(kept)", "[0]"),
    ("convolution", "kernel not turned", "g @ k[i]", "g @ k[2 - i]", "[0]"),
    ("convolution", "bias: one axis not summed", "jnp.sum(g, axis=(0, 1))", "jnp.sum(g[:, 0], axis=0)", "[2]"),
    ("cosine", "projection left out", " - c * a / A**2", "", "[0]"),
    ("cosine", "norms exchanged", "c * b / B**2", "c * b / A**2", "[1]"),
)  # fmt: skip
