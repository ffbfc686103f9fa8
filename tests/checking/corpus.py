"""The mistakes that people make in backward passes, each planted into a rule beside its primal.

A rule is a pair `(forward, backward)` as for `jax.custom_vjp`: `forward(*args) -> (out, saved)`, and
`backward(saved, cotangent) -> gradients`, one for each argument. Everything else in it is right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Case(NamedTuple):
    """One mistake: the right function, the wrong rule, inputs by size (0, 1, 2), and what a diagnosis has to say.

    Each of `cause_words` is a regular expression that the cause or the mended equation must hold, small letters.
    """

    name: str
    primal: Callable[..., Any]
    wrong_rule: tuple[Callable[..., Any], Callable[..., Any]]
    make_args: Callable[[int, int, Any], tuple]
    cause_words: tuple[str, ...]
    wrong_leaves: tuple[str, ...]


def saving_arguments(primal: Callable, backward: Callable) -> tuple[Callable, Callable]:
    """The rule that saves its arguments and goes back by `backward(args, cotangent)`."""
    return lambda *args: (primal(*args), args), backward


CASES: list[Case] = []


def wrong(primal, args, words, leaves, name=None):
    """Enter a wrong backward pass of `primal` into the corpus, under its function's name."""

    def enter(backward):
        said = (words,) if isinstance(words, str) else tuple(words)
        CASES.append(Case(name or backward.__name__, primal, saving_arguments(primal, backward), args, said, leaves))
        return backward

    return enter


def normal(*shapes, sizes):
    """Random inputs: `shapes` are functions of one entry of `sizes`."""

    def make(size, seed, dtype):
        keys = jax.random.split(jax.random.key(seed), len(shapes))
        return tuple(jax.random.normal(k, s(*sizes[size]), dtype) for k, s in zip(keys, shapes, strict=True))

    return make


def mean(x, axis=-1):
    return jnp.mean(x, axis, keepdims=True)


def dot(x, y, axis=-1):
    return jnp.sum(x * y, axis, keepdims=True)


# -- dense ------------------------------------------------------------------------------------------------------------


def dense(W, b, a):
    return a @ W.T + b[None, :]


def sigmoid_layer(W, b, a):
    z = a @ W.T + b[None, :]
    return jax.nn.sigmoid(z)


def tanh_layer(W, b, a):
    z = a @ W.T + b[None, :]
    return jnp.tanh(z)


def two_layers(W1, W2, x):
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


# -- losses -----------------------------------------------------------------------------------------------------------


def cross_entropy(z, y):
    p = jax.nn.softmax(z, axis=-1)
    return -jnp.sum(y * jnp.log(p))


def binary_cross_entropy(z, y):
    a = jax.nn.sigmoid(z)
    return -jnp.sum(y * jnp.log(a) + (1 - y) * jnp.log(1 - a))


def one_hot_args(size, seed, dtype):
    n, o, _ = OBLONG[size]
    keys = jax.random.split(jax.random.key(seed), 2)
    return jax.random.normal(keys[0], (n, o), dtype), jax.nn.one_hot(
        jax.random.randint(keys[1], (n,), 0, o), o, dtype=dtype
    )


def binary_args(size, seed, dtype):
    n, o, _ = OBLONG[size]
    keys = jax.random.split(jax.random.key(seed), 2)
    return jax.random.normal(keys[0], (n, o), dtype), jax.random.bernoulli(keys[1], 0.5, (n, o)).astype(dtype)


def _dy(z, g):
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
    return jax.nn.softmax(z, axis=-1)


matrix_args = normal(lambda n, o, i: (n, o), sizes=OBLONG)


@wrong(softmax, matrix_args, "diagonal only", ("[0]",), "17 softmax's diagonal only")
def _(args, g):
    p = jax.nn.softmax(args[0], axis=-1)
    return (g * p * (1 - p),)


def squared_error(a, y):
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
    logp = jax.nn.log_softmax(z, axis=-1)
    picked = jnp.take_along_axis(logp, tokens[:, None], axis=-1)[:, 0]
    return -jnp.sum(jnp.where(valid, picked, 0)) / jnp.sum(valid.astype(z.dtype))


def token_args(size, seed, dtype):
    n, o, _ = OBLONG[size]
    keys = jax.random.split(jax.random.key(seed), 3)
    valid = jax.random.bernoulli(keys[2], 0.6, (n,)).at[0].set(True).at[1].set(False)
    return jax.random.normal(keys[0], (n, o), dtype), jax.random.randint(keys[1], (n,), 0, o), valid


@wrong(token_loss, token_args, r"\d \(valid entries", ("[0]",), "25 ignored tokens counted")
def _(args, g):
    z, tokens, valid = args
    delta = jax.nn.softmax(z, axis=-1) - jax.nn.one_hot(tokens, z.shape[-1], dtype=z.dtype)
    return jnp.where(valid[:, None], g * delta, 0) / len(tokens), None, None


# -- normalisation ----------------------------------------------------------------------------------------------------


def layer_norm(x, gamma, beta):
    m = jnp.mean(x, -1, keepdims=True)
    v = jnp.mean((x - m) ** 2, -1, keepdims=True)
    r = lax.rsqrt(v + 1e-5)
    return (x - m) * r * gamma[None, :] + beta[None, :]


def batch_norm(x, gamma, beta):
    m = jnp.mean(x, 0, keepdims=True)
    v = jnp.mean((x - m) ** 2, 0, keepdims=True)
    r = lax.rsqrt(v + 1e-5)
    return (x - m) * r * gamma[None, :] + beta[None, :]


def rms_norm(x, gamma):
    s = jnp.mean(x**2, -1, keepdims=True)
    r = lax.rsqrt(s + 1e-5)
    return x * r * gamma[None, :]


# (batch, features)
NORMS = ((5, 6), (8, 24), (8, 129))
norm_args = normal(lambda n, d: (n, d), lambda n, d: (d,), lambda n, d: (d,), sizes=NORMS)
rms_args = normal(lambda n, d: (n, d), lambda n, d: (d,), sizes=NORMS)


def _normed(x, axis=-1, ddof=0):
    m = mean(x, axis)
    v = jnp.sum((x - m) ** 2, axis, keepdims=True) / (x.shape[axis] - ddof)
    r = lax.rsqrt(v + 1e-5)
    return (x - m) * r, r


def _norm_rule(
    name, words, leaves, dx, primal=layer_norm, axis=-1, d_gamma=lambda g, x, xh: jnp.sum(g * xh, 0), ddof=0
):
    def backward(args, g):
        x, gamma, _beta = args
        xh, r = _normed(x, axis, ddof)
        return dx(x, g, gamma[None, :], xh, r), d_gamma(g, x, _normed(x, axis)[0]), g.sum(0)

    wrong(primal, norm_args, words, leaves, name)(backward)


def _right_dx(x, g, gamma, xh, r):
    d = g * gamma
    return r * (d - mean(d) - xh * mean(d * xh))


_norm_rule(
    "26 LayerNorm without its mean",
    (r"\bm\b", "missing|stop_gradient"),
    ("[0]",),
    lambda x, g, w, xh, r: r * (g * w - xh * mean(g * w * xh)),
)
_norm_rule(
    "27 LayerNorm without its projection",
    (r"\b[vr]\b", "missing|stop_gradient"),
    ("[0]",),
    lambda x, g, w, xh, r: r * (g * w - mean(g * w)),
)
_norm_rule(
    "28 LayerNorm without both",
    ("two at once|both|and", "missing|stop_gradient"),
    ("[0]",),
    lambda x, g, w, xh, r: r * g * w,
)
_norm_rule(
    "29 gamma left out", ("gamma", "missing"), ("[0]",), lambda x, g, w, xh, r: _right_dx(x, g, jnp.ones_like(w), xh, r)
)
_norm_rule(
    "30 wrong axis", "axis", ("[0]",), lambda x, g, w, xh, r: r * (g * w - mean(g * w, 0) - xh * mean(g * w * xh, 0))
)
_norm_rule("31 variance over n - 1", "n − 1|n-1", ("[0]",), _right_dx, ddof=1)
_norm_rule(
    "32 d_gamma from x", r"\bx stands in the place", ("[1]",), _right_dx, d_gamma=lambda g, x, xh: jnp.sum(g * x, 0)
)
_norm_rule(
    "33 BatchNorm as in evaluation",
    ("missing|stop_gradient", r"\bm\b|\bv\b"),
    ("[0]",),
    lambda x, g, w, xh, r: r * g * w,
    batch_norm,
    0,
)


@wrong(rms_norm, rms_args, "mean", ("[0]",), "34 RMSNorm with LayerNorm's mean")
def _(args, g):
    x, gamma = args
    r = lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5)
    xh = x * r
    d = g * gamma[None, :]
    return r * (d - mean(d) - xh * mean(d * xh)), jnp.sum(g * xh, 0)


# -- attention, sharing, sequences ------------------------------------------------------------------------------------


def _masked(S):
    return jnp.where(jnp.tril(jnp.ones(S.shape, bool)), S, -jnp.inf)


def attention(Q, K, V):
    S = Q @ K.T / jnp.sqrt(jnp.asarray(Q.shape[-1], Q.dtype))
    A = jax.nn.softmax(_masked(S), axis=-1)
    return A @ V


# (time, head)
HEADS = ((5, 3), (9, 4), (32, 16))
attention_args = normal(*[lambda t, d: (t, d)] * 3, sizes=HEADS)


def _attention_rule(name, words, leaves, *, masked=True, scale=True, dS=None, dV=None, dK=None):
    def backward(args, g):
        Q, K, V = args
        c = 1 / jnp.sqrt(jnp.asarray(Q.shape[-1], Q.dtype))
        S = Q @ K.T * c
        A = jax.nn.softmax(_masked(S) if masked else S, axis=-1)
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
    return E[tokens]


def embedding_args(size, seed, dtype):
    n, o, d = ((9, 4, 3), (20, 6, 5), (64, 11, 8))[size]
    keys = jax.random.split(jax.random.key(seed), 2)
    return jax.random.normal(keys[0], (o, d), dtype), jax.random.randint(keys[1], (n,), 0, o)


@wrong(embedding, embedding_args, "overwrite|set", ("[0]",), "41 embedding set, not added")
def _(args, g):
    E, tokens = args
    return jnp.zeros_like(E).at[tokens].set(g), None


def skip(W, x):
    return x + jnp.tanh(x @ W.T)


skip_args = normal(lambda n, o, i: (o, o), lambda n, o, i: (n, o), sizes=OBLONG)


@wrong(skip, skip_args, "missing", ("[1]",), "42 skip connection lost")
def _(args, g):
    W, x = args
    delta = g * (1 - jnp.tanh(x @ W.T) ** 2)
    return delta.T @ x, delta @ W


def rnn(W, U, x):
    def step(h, x):
        h = jnp.tanh(W @ h + U @ x)
        return h, None

    return lax.scan(step, jnp.zeros(W.shape[0], W.dtype), x)[0]


# (time, hidden, in)
SEQUENCES = ((4, 3, 2), (7, 5, 4), (128, 8, 6))


def _tamed(make):
    """Weights small enough that tanh and σ are not saturated, where a gradient is all rounding."""
    return lambda size, seed, dtype: tuple(0.4 * a if k < 2 else a for k, a in enumerate(make(size, seed, dtype)))


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


# -- activations, convolution, the rest -------------------------------------------------------------------------------


def _elementwise(name, primal, slope, words, sizes=OBLONG):
    wrong(primal, normal(lambda n, o, i: (n, o), sizes=sizes), words, ("[0]",), name)(
        lambda args, g: (slope(args[0], g).astype(g.dtype),)
    )


def tanh(x):
    return jnp.tanh(x)


def gelu(x):
    return x * 0.5 * (1 + lax.erf(x / jnp.sqrt(jnp.asarray(2, x.dtype))))


def relu(x):
    return jnp.maximum(x, 0)


def leaky_relu(x):
    return jnp.where(x > 0, x, 0.1 * x)


def swish(x):
    return x * jax.nn.sigmoid(x)


_elementwise("45 tanh' = 1 - h", tanh, lambda x, g: g * (1 - jnp.tanh(x)), r"1 - tanh|1 - h|\(1 - ")
_elementwise("46 GELU: Phi alone", gelu, lambda x, g: g * jax.scipy.stats.norm.cdf(x), "missing|φ|Φ")
_elementwise("47 ReLU gated by the cotangent", relu, lambda x, g: jnp.where(g > 0, g, 0), "d_out > 0|cotangent")
_elementwise("48 leaky ReLU's slope lost", leaky_relu, lambda x, g: jnp.where(x > 0, g, 0), ("0\\.1", "missing"))
_elementwise("49 swish: sigma alone", swish, lambda x, g: g * jax.nn.sigmoid(x), "missing|σ")


def convolution(K, x, stride=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, K, (stride, stride), "VALID", dimension_numbers=numbers)


def strided_convolution(K, x):
    return convolution(K, x, 2)


# (batch, side, channels)
IMAGES = ((2, 7, 2), (3, 9, 3), (2, 17, 4))
conv_args = normal(lambda n, s, c: (3, 3, c, c + 1), lambda n, s, c: (n, s, s, c), sizes=IMAGES)


def _back_through(K, g, flip=True, dilate=1, extra=0):
    flipped = K[::-1, ::-1] if flip else K
    pad = ((2, 2 + extra),) * 2
    return lax.conv_general_dilated(
        g,
        jnp.swapaxes(flipped, 2, 3),
        (1, 1),
        pad,
        lhs_dilation=(dilate, dilate),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@wrong(convolution, conv_args, "flip", ("[1]",), "50 kernel not flipped")
def _(args, g):
    K, x = args
    return jax.vjp(lambda K: convolution(K, x), K)[1](g)[0], _back_through(K, g, flip=False)


@wrong(strided_convolution, conv_args, "dilated", ("[1]",), "51 stride not dilated")
def _(args, g):
    K, x = args
    return jax.vjp(lambda K: strided_convolution(K, x), K)[1](g)[0], _back_through(K, g, extra=g.shape[1] - 1)


def max_pool(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def average_pool(x):
    return lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4


def tied_image_args(size, seed, dtype):
    n, s, c = ((2, 4, 2), (3, 6, 3), (2, 16, 4))[size]
    return (jax.random.randint(jax.random.key(seed), (n, s, s, c), 0, 4).astype(dtype),)


def image_args(size, seed, dtype):
    n, s, c = ((2, 4, 2), (3, 6, 3), (2, 16, 4))[size]
    return (jax.random.normal(jax.random.key(seed), (n, s, s, c), dtype),)


def _spread(g):
    return jnp.repeat(jnp.repeat(g, 2, 1), 2, 2)


@wrong(max_pool, tied_image_args, "tie", ("[0]",), "52 max pool to every tie")
def _(args, g):
    (x,) = args
    return (jnp.where(x == _spread(max_pool(x)), _spread(g), 0),)


@wrong(average_pool, image_args, "4", ("[0]",), "53 average pool not divided")
def _(args, g):
    return (_spread(g),)


def dropout(key, x):
    kept = jax.random.bernoulli(key, 0.7, x.shape)
    return jnp.where(kept, x / 0.7, 0)


def dropout_args(size, seed, dtype):
    n, o, _ = OBLONG[size]
    keys = jax.random.split(jax.random.key(seed))
    return keys[0], jax.random.normal(keys[1], (n, o), dtype)


@wrong(dropout, dropout_args, ("0\\.7", "missing|times"), ("[1]",), "54 dropout's scale missing")
def _(args, g):
    key, x = args
    return None, jnp.where(jax.random.bernoulli(key, 0.7, x.shape), g, 0)


@wrong(dropout, dropout_args, "fresh mask|another mask", ("[1]",), "55 dropout's mask afresh")
def _(args, g):
    key, x = args
    return None, jnp.where(jax.random.bernoulli(jax.random.fold_in(key, 1), 0.7, x.shape), g / 0.7, 0)
