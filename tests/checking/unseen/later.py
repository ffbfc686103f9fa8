"""Sixteen more over convolution, norms, attention and recurrence, written after the first forty had been looked at."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jaxnet.checking.corpus.case import Case, dot, mean, normal
from tests.checking.unseen.entering import SIZES, named_first

CASES: list[Case] = []


wrong = named_first(CASES)


def right(primal, args, g):
    """Autodiff's gradients."""
    return jax.vjp(primal, *args)[1](g)


# ------------------------------------------------------------------------------------------------------- convolutions


def causal(K, x):
    """A dilated convolution over time that sees the past alone; x: (time, in), K: (3, in, out)."""
    padded = jnp.concatenate([jnp.zeros((4, x.shape[1]), x.dtype), x])
    return sum(padded[2 * k : 2 * k + len(x)] @ K[k] for k in range(3))


causal_args = normal(lambda n, d: (3, d, d + 1), lambda n, d: (2 * n, d), sizes=SIZES)


@wrong("c1 causal convolution: the error read a step late", causal, causal_args, "shift", ("[1]",))
def _(args, g):
    dK, dx = right(causal, args, g)
    return dK, jnp.concatenate([dx[:1] * 0, dx[:-1]])


@wrong("c2 causal convolution: the last tap's error lost", causal, causal_args, "missing", ("[1]",))
def _(args, g):
    K, x = args
    dK, _ = right(causal, args, g)
    return dK, right(lambda x: causal(K.at[2].set(0), x), (x,), g)[0]


def separable(D, P, x):
    """A filter for each channel, then a mixture of channels; x: (time, channels)."""
    middle = jnp.stack([jnp.convolve(x[:, c], D[c], mode="same") for c in range(x.shape[1])], 1)
    return middle @ P


separable_args = normal(lambda n, d: (d, 3), lambda n, d: (d, d), lambda n, d: (2 * n, d), sizes=SIZES)


@wrong("c3 separable convolution: x for the filtered x in dP", separable, separable_args, "x stands in", ("[1]",))
def _(args, g):
    _D, _P, x = args
    dD, _, dx = right(separable, args, g)
    return dD, x.T @ g, dx


def standardised(W, x):
    """A layer whose rows of W have mean 0 and variance 1."""
    m = jnp.mean(W, -1, keepdims=True)
    s = jnp.sqrt(jnp.mean((W - m) ** 2, -1, keepdims=True) + 1e-4)
    return x @ ((W - m) / s).T


weights = normal(lambda n, d: (n, d), lambda n, d: (n + 1, d), sizes=SIZES)


@wrong("c4 weight standardisation: s held constant", standardised, weights, (r"\bs\b", "stop_gradient|miss"), ("[0]",))
def _(args, g):
    W, x = args
    m = mean(W)
    s = jnp.sqrt(mean((W - m) ** 2) + 1e-4)
    d = g.T @ x / s
    return d - mean(d), g @ ((W - m) / s)


# -------------------------------------------------------------------------------------------------------------- norms


def instance(x):
    """Each channel of each example by itself; x: (examples, places, channels)."""
    m = jnp.mean(x, 1, keepdims=True)
    r = lax.rsqrt(jnp.mean((x - m) ** 2, 1, keepdims=True) + 1e-5)
    return (x - m) * r


pictures = normal(lambda n, d: (3, n, d), sizes=SIZES)


@wrong("n1 instance norm: means over the examples too", instance, pictures, "axis", ("[0]",))
def _(args, g):
    (x,) = args
    m = mean(x, 1)
    r = lax.rsqrt(mean((x - m) ** 2, 1) + 1e-5)
    xh = (x - m) * r
    return (r * (g - mean(g, (0, 1)) - xh * mean(g * xh, (0, 1))),)


@wrong("n2 instance norm: means over the channels", instance, pictures, "axis", ("[0]",))
def _(args, g):
    (x,) = args
    m = mean(x, 1)
    r = lax.rsqrt(mean((x - m) ** 2, 1) + 1e-5)
    xh = (x - m) * r
    return (r * (g - mean(g, 2) - xh * mean(g * xh, 2)),)


def gated_norm(x, gamma):
    """An RMSNorm gated by its own γ: x/σ ⊙ σ(γ)."""
    r = lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5)
    return x * r * jax.nn.sigmoid(gamma)[None]


gated_args = normal(lambda n, d: (n, d), lambda n, d: (d,), sizes=SIZES)


@wrong("n3 gated norm: the gate's slope lost", gated_norm, gated_args, ("missing|left out", "1 - |sigm"), ("[1]",))
def _(args, g):
    x, _ = args
    dx, _ = right(gated_norm, args, g)
    return dx, jnp.sum(g * x * lax.rsqrt(mean(x**2) + 1e-5), 0)


@wrong("n4 gated norm: projection with the ungated error", gated_norm, gated_args, "gamma|sigmoid", ("[0]",))
def _(args, g):
    x, gamma = args
    r = lax.rsqrt(mean(x**2) + 1e-5)
    xh, d = x * r, g * jax.nn.sigmoid(gamma)[None]
    return r * (d - xh * mean(g * xh)), right(gated_norm, args, g)[1]


# ---------------------------------------------------------------------------------------------------------- attention


def biased(Q, K, V, B):
    """Attention with a bias B added to its scores."""
    S = Q @ K.T / jnp.sqrt(jnp.asarray(Q.shape[1], Q.dtype)) + B
    A = jax.nn.softmax(S, -1)
    return A @ V


biased_args = normal(*[lambda n, d: (n, d)] * 3, lambda n, d: (n, n), sizes=SIZES)


def _biased(args, g, A=None, dB=lambda dS, c: dS):
    Q, K, V, B = args
    c = 1 / jnp.sqrt(jnp.asarray(Q.shape[1], Q.dtype))
    A = jax.nn.softmax(Q @ K.T * c + B, -1) if A is None else A(Q @ K.T * c)
    dA = g @ V.T
    dS = A * (dA - dot(dA, A))
    return dS @ K * c, dS.T @ Q * c, A.T @ g, dB(dS, c)


everything = ("[0]", "[1]", "[2]", "[3]")
wrong("a1 bias forgotten when the scores are made anew", biased, biased_args, r"\bb\b", everything)(
    lambda args, g: _biased(args, g, A=lambda S: jax.nn.softmax(S, -1))
)
wrong("a2 the bias scaled like the scores", biased, biased_args, r"times|√|sqrt|1/", ("[3]",))(
    lambda args, g: _biased(args, g, dB=lambda dS, c: dS * c)
)
wrong("a3 softmax over the queries going back", biased, biased_args, "axis|transpos", everything)(
    lambda args, g: _biased(args, g, A=lambda S: jax.nn.softmax(S, 0))
)


def pooled(w, X):
    """One vector of a sequence: its vectors weighted by their score."""
    a = jax.nn.softmax(X @ w)
    return a @ X


@wrong(
    "a4 attention pooling: X as values alone",
    pooled,
    normal(lambda n, d: (d,), lambda n, d: (n, d), sizes=SIZES),
    "missing|lost",
    ("[1]",),
)
def _(args, g):
    w, X = args
    return right(pooled, args, g)[0], jnp.outer(jax.nn.softmax(X @ w), g)


# -------------------------------------------------------------------------------------------------------- recurrences


def leaky(U, x):
    """h ← 0.8 h + 0.2 tanh(U h + x)."""

    def step(h, x):
        a = jnp.tanh(U @ h + x)
        h = 0.8 * h + 0.2 * a
        return h, h

    return lax.scan(step, jnp.zeros(len(U), x.dtype), x)[1]


leaky_args = normal(lambda n, d: (d, d), lambda n, d: (n, d), sizes=SIZES)


def _leaky(args, g, keep=0.8, slope=lambda a, h: 1 - a**2, state=lambda h, new: h):
    U, x = args

    def forward(h, x):
        a = jnp.tanh(U @ h + x)
        new = 0.8 * h + 0.2 * a
        return new, (h, a, new)

    def back(dh, at):
        g, (h, a, new) = at
        dh = dh + g
        delta = 0.2 * dh * slope(a, h)
        return keep * dh + U.T @ delta, (jnp.outer(delta, state(h, new)), delta)

    zero = jnp.zeros(len(U), x.dtype)
    _, saved = lax.scan(forward, zero, x)
    _, (dU, dx) = lax.scan(back, zero, (g, saved), reverse=True)
    return dU.sum(0), dx


both = ("[0]", "[1]")
wrong("r1 leaky recurrence: the leak forgotten", leaky, leaky_args, ("missing",), both)(
    lambda args, g: _leaky(args, g, keep=0.0)
)
wrong("r2 leaky recurrence: kept whole", leaky, leaky_args, (r"0\.8|1\.25", "missing|times|left out"), both)(
    lambda args, g: _leaky(args, g, keep=1.0)
)
wrong("r3 leaky recurrence: slope at h", leaky, leaky_args, r"\bh\b", both)(
    lambda args, g: _leaky(args, g, slope=lambda a, h: 1 - h**2)
)
wrong("r4 leaky recurrence: the new state in dU", leaky, leaky_args, r"\bh\b", ("[0]",))(
    lambda args, g: _leaky(args, g, state=lambda h, new: new)
)
