"""Further wrong rules, written after the operators of the diagnosis were frozen: the share of these that is named."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jaxnet.checking.corpus.case import Case, dot, mean, normal, saving_arguments

CASES: list[Case] = []


def wrong(name, primal, args, words, leaves):
    """Enter a wrong backward pass of `primal`."""

    def enter(backward):
        said = (words,) if isinstance(words, str) else tuple(words)
        CASES.append(Case(name, primal, saving_arguments(primal, backward), args, said, leaves))
        return backward

    return enter


def wrong_slope(name, primal, slope, words):
    """Enter a wrong derivative of an elementwise function."""
    wrong(name, primal, one, words, ("[0]",))(lambda args, g: (g * slope(args[0]).astype(g.dtype),))


SIZES = ((6, 4), (9, 5), (16, 12))
one = normal(lambda n, d: (n, d), sizes=SIZES)
two = normal(lambda n, d: (n, d), lambda n, d: (n, d), sizes=SIZES)
vectors = normal(lambda n, d: (d,), lambda n, d: (d, d), lambda n, d: (d,), sizes=SIZES)
both = ("[0]", "[1]")


# -- activations ------------------------------------------------------------------------------------------------------


def softplus(x):
    return jnp.logaddexp(x, 0)


def elu(x):
    return jnp.where(x > 0, x, jnp.exp(jnp.minimum(x, 0)) - 1)


def selu(x):
    return 1.0507 * jnp.where(x > 0, x, 1.6733 * (jnp.exp(jnp.minimum(x, 0)) - 1))


def mish(x):
    return x * jnp.tanh(jnp.logaddexp(x, 0))


def softsign(x):
    return x / (1 + jnp.abs(x))


def hard_clip(x):
    return jnp.clip(x, -0.5, 0.5)


def gaussian(x):
    return jnp.exp(-(x**2) / 2)


wrong_slope("01 softplus: sigma of -x", softplus, lambda x: jax.nn.sigmoid(-x), r"σ|sigmoid|logistic|exp|sign|1 - ")
wrong_slope(
    "02 elu: its value for its slope", elu, lambda x: jnp.where(x > 0, 1, jnp.exp(jnp.minimum(x, 0)) - 1), "exp|elu|- 1"
)
wrong_slope(
    "03 selu: scale lost on one side",
    selu,
    lambda x: jnp.where(x > 0, 1.0507, 1.6733 * jnp.exp(jnp.minimum(x, 0))),
    r"1\.0507",
)
wrong_slope(
    "04 mish: product's second term lost", mish, lambda x: jnp.tanh(jnp.logaddexp(x, 0)), "missing|stop_gradient"
)
wrong_slope("05 softsign: square forgotten", softsign, lambda x: 1 / (1 + jnp.abs(x)), r"missing|1/|abs")
wrong_slope(
    "06 clip: passed outside", hard_clip, lambda x: jnp.ones_like(x), "derivative is left out|mask|cut|clip|clamp"
)
wrong_slope("07 gaussian: sign", gaussian, lambda x: x * jnp.exp(-(x**2) / 2), "wrong sign")
wrong_slope(
    "08 gaussian: x forgotten",
    gaussian,
    lambda x: -jnp.exp(-(x**2) / 2),
    r"\bx\b.*missing|missing.*\bx\b|2 \* x|left out",
)


# -- norms and projections --------------------------------------------------------------------------------------------


def unit(x):
    s = jnp.sqrt(jnp.sum(x**2, -1, keepdims=True))
    return x / s


@wrong("09 unit vector without projection", unit, one, (r"\bs\b|sum", "missing|stop_gradient"), ("[0]",))
def _(args, g):
    (x,) = args
    return (g / jnp.sqrt(dot(x, x)),)


@wrong("10 unit vector: norm not squared in the projection", unit, one, r"\bs\b|norm|sqrt|square", ("[0]",))
def _(args, g):
    (x,) = args
    s = jnp.sqrt(dot(x, x))
    return (g / s - x * dot(x, g) / s**2,)


def group_norm(x):
    y = x.reshape(x.shape[0], 2, -1)
    m = jnp.mean(y, -1, keepdims=True)
    v = jnp.mean((y - m) ** 2, -1, keepdims=True)
    return ((y - m) * lax.rsqrt(v + 1e-5)).reshape(x.shape)


@wrong(
    "11 GroupNorm without its mean",
    group_norm,
    normal(lambda n, d: (n, 2 * d), sizes=SIZES),
    (r"\bm\b", "missing|stop_gradient"),
    ("[0]",),
)
def _(args, g):
    (x,) = args
    y, g = (a.reshape(x.shape[0], 2, -1) for a in (x, g))
    r = lax.rsqrt(jnp.var(y, -1, keepdims=True) + 1e-5)
    xh = (y - mean(y)) * r
    return ((r * (g - xh * mean(g * xh))).reshape(x.shape),)


def weight_norm(scale, V, x):
    n = jnp.sqrt(jnp.sum(V**2, -1, keepdims=True))
    W = scale[:, None] * V / n
    return x @ W.T


@wrong(
    "12 weight norm: dV not projected",
    weight_norm,
    normal(lambda n, d: (d,), lambda n, d: (d, n), lambda n, d: (n + 1, n), sizes=SIZES),
    (r"\bn\b|sum", "missing|stop_gradient"),
    ("[1]",),
)
def _(args, g):
    scale, V, x = args
    n = jnp.sqrt(dot(V, V))
    dW = g.T @ x
    return dot(dW, V / n)[:, 0], dW * scale[:, None] / n, g @ (scale[:, None] * V / n)


# -- losses -----------------------------------------------------------------------------------------------------------


def log_softmax(x):
    return x - jax.scipy.special.logsumexp(x, -1, keepdims=True)


@wrong("13 log-softmax: row sum of g forgotten", log_softmax, one, "sum|row|diagonal", ("[0]",))
def _(args, g):
    return (g - jax.nn.softmax(args[0], -1) * g,)


def huber(a, y):
    e = a - y
    return jnp.sum(jnp.where(jnp.abs(e) < 1, 0.5 * e**2, jnp.abs(e) - 0.5))


@wrong("14 Huber not cut off", huber, two, "mask|branch|cut", both)
def _(args, g):
    a, y = args
    return g * (a - y), g * (y - a)


def hinge(a, y):
    return jnp.sum(jnp.maximum(0, 1 - y * a))


@wrong("15 hinge: margin forgotten", hinge, two, r"mask|branch|cut|\[|derivative is left out|max", both)
def _(args, g):
    a, y = args
    return -g * y, -g * a


def gaussian_kl(mu, logvar):
    return 0.5 * jnp.sum(mu**2 + jnp.exp(logvar) - 1 - logvar)


@wrong("16 KL: the constant's gradient lost", gaussian_kl, two, "missing", ("[1]",))
def _(args, g):
    mu, logvar = args
    return g * mu, g * 0.5 * jnp.exp(logvar)


def sampled(mu, logvar, noise):
    return mu + jnp.exp(0.5 * logvar) * noise


@wrong(
    "17 reparametrisation: half lost",
    sampled,
    normal(*[lambda n, d: (n, d)] * 3, sizes=SIZES),
    ("2|0.5", "times|missing|twice"),
    ("[1]",),
)
def _(args, g):
    _mu, logvar, noise = args
    s = jnp.exp(0.5 * logvar)
    return g, g * s * noise, g * s


def smoothed(z):
    target = (
        jnp.asarray(0.9, z.dtype) * jax.nn.one_hot(jnp.arange(z.shape[0]) % z.shape[1], z.shape[1], dtype=z.dtype)
        + 0.1 / z.shape[1]
    )
    return -jnp.sum(target * jax.nn.log_softmax(z, -1))


@wrong("18 label smoothing forgotten", smoothed, one, "smooth|target|0\\.9|0\\.02|0\\.1", ("[0]",))
def _(args, g):
    (z,) = args
    return (
        g * (jax.nn.softmax(z, -1) - jax.nn.one_hot(jnp.arange(z.shape[0]) % z.shape[1], z.shape[1], dtype=z.dtype)),
    )


def tempered(z):
    return jax.nn.softmax(z / 3.0, axis=-1)


@wrong("19 temperature applied twice", tempered, one, ("3", "times|twice|1/"), ("[0]",))
def _(args, g):
    p = tempered(args[0])
    return (p * (g - dot(g, p)) / 9,)


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
    return (jax.random.normal(jax.random.key(seed), (d, d), dtype) + 3 * jnp.eye(d, dtype=dtype),)


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
    keys = jax.random.split(jax.random.key(seed), 4)
    parts = [jax.random.normal(k, (n, d), dtype) for k in keys]
    return lax.complex(parts[0], parts[1]), lax.complex(parts[2], parts[3])


@wrong("38 complex product: conjugates of the factors", product, complex_args, "conj", both)
def _(args, g):
    a, b = args
    return g * jnp.conj(b), g * jnp.conj(a)  # jax's transpose takes no conjugate


def padded_embedding(E, tokens):
    return jnp.where((tokens > 0)[:, None], E[tokens], 0)


def padded_args(size, seed, dtype):
    n, d = SIZES[size]
    tokens = jax.random.randint(jax.random.key(seed), (2 * n,), 0, 5).at[0].set(0)
    return jax.random.normal(jax.random.key(seed + 1), (5, d), dtype), tokens


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
