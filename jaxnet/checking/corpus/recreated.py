"""Mistakes of public reports, recreated in our own words: right backward passes, and one change of a line for each.

`MISTAKES` names the report, the backward pass, its right text, and the wrong one. No part of the checker
was tuned to these.
"""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import solve_triangular

from jaxnet.checking.corpus.case import Case, gaussian, integers, mean, saving_arguments
from jaxnet.checking.corpus.right import Right
from jaxnet.checking.subject import on_device

EPS, CAP, SMOOTHING, Z_LOSS = 0.1, 2.0, 0.1, 0.05


class Rule(NamedTuple):
    """A function, its right backward pass (args, cotangent) -> gradients, and shapes or makers of its arguments."""

    primal: Callable[..., Any]
    backward: Callable[[tuple, Any], tuple]
    inputs: Sequence[Any]

    def make_args(self, size: int, seed: int, dtype: Any) -> tuple:
        """Inputs; at larger sizes the first axis of `n` rows grows."""
        rng, n = np.random.default_rng(seed), (6, 9, 16)[size]
        return tuple(
            gaussian(rng, sized(each, n), dtype) if isinstance(each, tuple) else each(rng, n, dtype)
            for each in self.inputs
        )


RULES: dict[str, Rule] = {}


def sized(shape: tuple, n: int) -> tuple[int, ...]:
    """A shape with `n` rows."""
    return tuple(n if axis == "n" else axis for axis in shape)


def back_of(primal: Callable, *inputs: Any) -> Callable[[Callable], Callable]:
    """Enters a right backward pass under its function's name."""

    def enter(backward):
        RULES[primal.__name__] = Rule(primal, backward, inputs)
        return backward

    return enter


def positive(*shape):
    """Numbers between 0.3 and 1.3."""
    return lambda rng, n, dtype: on_device(rng.uniform(0.3, 1.3, sized(shape, n)), dtype)


def classes(below, *shape):
    """Labels below a number, one for each row; 0 stands first and `below` − 1 last."""

    def make(rng, n, dtype):
        return integers(rng, sized(shape, n), below).at[0].set(0).at[-1].set(below - 1)

    return make


def definite(rng, n, dtype):
    """A positive definite matrix."""
    A = rng.standard_normal((4, 4))
    return on_device(A @ A.T + 2 * np.eye(4), dtype)


# ------------------------------------------------------------------------------------------------------------- norms


def rms_norm(x, w):
    """x (1 + w)/√(E[x²] + ε): a norm whose weight is an offset from 1."""
    return x * lax.rsqrt(mean(x * x) + EPS) * (1 + w)


@back_of(rms_norm, ("n", 4), (4,))
def rms_norm_back(args, g):
    """Reported: unsloth 4533, attorch 17, llm.c 763."""
    x, w = args
    r = lax.rsqrt(mean(x * x) + EPS)
    n = x * r
    dn = g * (1 + w)
    dx = r * (dn - n * mean(dn * n))
    dw = jnp.sum(g * n, axis=0)
    return dx, dw


def layer_norm(x, w, b, rows):
    """Layer norm of x times a number for each row."""
    z = x * rows
    c = z - mean(z)
    return c * lax.rsqrt(mean(c * c) + EPS) * w + b


@back_of(layer_norm, ("n", 4), (4,), (4,), positive("n", 1))
def layer_norm_back(args, g):
    """Reported: mamba 1023."""
    x, w, _, rows = args
    z = x * rows
    c = z - mean(z)
    r = lax.rsqrt(mean(c * c) + EPS)
    n = c * r
    dn = g * w
    dz = r * (dn - mean(dn) - n * mean(dn * n))
    dx = dz * rows
    drows = jnp.sum(dz * x, axis=-1, keepdims=True)
    return dx, jnp.sum(g * n, axis=0), jnp.sum(g, axis=0), drows


def weight_norm(v, s):
    """s v/‖v‖, with the norm of each column of v."""
    return s * v / jnp.sqrt(jnp.sum(v * v, axis=0))


@back_of(weight_norm, ("n", 4), (4,))
def weight_norm_back(args, g):
    """From the norm of v: dv = s/‖v‖ (g − u (u·g))."""
    v, s = args
    size = jnp.sqrt(jnp.sum(v * v, axis=0))
    u = v / size
    ds = jnp.sum(g * u, axis=0)
    dv = s / size * (g - u * ds)
    return dv, ds


# ------------------------------------------------------------------------------------------------------------ losses


def cross_entropy(x, y):
    """Mean cross-entropy of soft-capped logits, with label smoothing and a z loss."""
    cap = CAP * jnp.tanh(x / CAP)
    lse = jax.nn.logsumexp(cap, axis=-1)
    hit = jnp.take_along_axis(cap, y[:, None], axis=-1)[:, 0]
    return jnp.mean(lse - (1 - SMOOTHING) * hit - SMOOTHING * cap.mean(-1) + Z_LOSS * lse**2)


@back_of(cross_entropy, ("n", 5), classes(5, "n"))
def cross_entropy_back(args, g):
    """Reported: Liger-Kernel 239, ledger 1580."""
    x, y = args
    t = jnp.tanh(x / CAP)
    p = jax.nn.softmax(CAP * t, axis=-1)
    lse = jax.nn.logsumexp(CAP * t, axis=-1)[:, None]
    q = (1 - SMOOTHING) * jax.nn.one_hot(y, 5, dtype=x.dtype) + SMOOTHING / 5
    dcap = p - q + 2 * Z_LOSS * lse * p
    dx = dcap * (1 - t * t)
    return g * dx / len(x), np.zeros(y.shape, jax.dtypes.float0)


def focal_loss(x, y):
    """−(1 − p)² ln p, p the probability of the right one of two classes."""
    p = jax.nn.sigmoid(jnp.where(y == 1, x, -x))
    return -((1 - p) ** 2) * jnp.log(p)


@back_of(focal_loss, ("n",), classes(2, "n"))
def focal_loss_back(args, g):
    """Reported: DOOBNet 6."""
    x, y = args
    p = jax.nn.sigmoid(jnp.where(y == 1, x, -x))
    dp = 2 * (1 - p) * jnp.log(p) - (1 - p) ** 2 / p
    dx = jnp.where(y == 1, 1, -1) * dp * p * (1 - p)
    return g * dx, np.zeros(y.shape, jax.dtypes.float0)


def jensen_shannon(a, b):
    """Jensen-Shannon divergence of two softmaxes, weighted 0.3 and 0.7."""
    p, q = jax.nn.softmax(a), jax.nn.softmax(b)
    m = 0.3 * p + 0.7 * q
    return jnp.sum(0.3 * p * jnp.log(p / m) + 0.7 * q * jnp.log(q / m), axis=-1)


@back_of(jensen_shannon, ("n", 4), ("n", 4))
def jensen_shannon_back(args, g):
    """Each softmax with its own weight."""
    a, b = args
    p, q = jax.nn.softmax(a), jax.nn.softmax(b)
    m = 0.3 * p + 0.7 * q
    dp = 0.3 * jnp.log(p / m)
    dq = 0.7 * jnp.log(q / m)
    da = p * (dp - jnp.sum(p * dp, axis=-1, keepdims=True))
    db = q * (dq - jnp.sum(q * dq, axis=-1, keepdims=True))
    return g[:, None] * da, g[:, None] * db


def soft_minimum(x, gamma):
    """−γ ln Σ exp(−x/γ)."""
    return -gamma * jax.nn.logsumexp(-x / gamma)


@back_of(soft_minimum, ("n",), positive())
def soft_minimum_back(args, g):
    """Reported: ott."""
    x, gamma = args
    p = jax.nn.softmax(-x / gamma)
    dgamma = -jax.nn.logsumexp(-x / gamma) - jnp.sum(p * x) / gamma
    return g * p, g * dgamma


def normal_density(x, S):
    """Log density of a normal distribution of mean 0 and covariance S, without its constant."""
    return -0.5 * x @ jnp.linalg.solve(S, x) - 0.5 * jnp.linalg.slogdet(S)[1]


@back_of(normal_density, (4,), definite)
def normal_density_back(args, g):
    """Reported: autograd 412."""
    x, S = args
    P = jnp.linalg.inv(S)
    u = P @ x
    v = P.T @ x
    dS = 0.5 * jnp.outer(v, u) - 0.5 * P.T
    return -0.5 * g * (u + v), g * dS


def power_law_density(x, k, high):
    """Log density of a power law between 1 and `high`."""
    return k * jnp.log(x) - jnp.log(high ** (k + 1) - 1) + jnp.log(k + 1)


@back_of(power_law_density, positive("n"), positive(), lambda rng, n, dtype: on_device(2.0, dtype))
def power_law_density_back(args, g):
    """Reported: numpyro."""
    x, k, high = args
    z = high ** (k + 1) - 1
    dk = jnp.log(x) - high ** (k + 1) * jnp.log(high) / z + 1 / (k + 1)
    dhigh = -(k + 1) * high**k / z
    return g * k / x, jnp.sum(g * dk), jnp.sum(g) * dhigh


# --------------------------------------------------------------------------------------------------------- attention


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


# --------------------------------------------------------------------------------------- gates, scans and other layers


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


# --------------------------------------------------------------------------------------- matrices, spectra, projections


def solve(A, b):
    """A⁻¹ b."""
    return jnp.linalg.solve(A, b)


@back_of(solve, definite, (4,))
def solve_back(args, g):
    """db = A⁻ᵀ g, dA = −db xᵀ."""
    A, b = args
    x = jnp.linalg.solve(A, b)
    db = jnp.linalg.solve(A.T, g)
    dA = -jnp.outer(db, x)
    return dA, db


def cholesky(A):
    """L of A = L Lᵀ, A made symmetric."""
    return jnp.linalg.cholesky((A + A.T) / 2)


@back_of(cholesky, definite)
def cholesky_back(args, g):
    """The diagonal of Lᵀ g counts half."""
    (A,) = args
    L = jnp.linalg.cholesky((A + A.T) / 2)
    P = jnp.tril(L.T @ jnp.tril(g))
    P = P - jnp.diag(jnp.diag(P)) / 2
    S = solve_triangular(L, solve_triangular(L, P.T, lower=True, trans=1).T, lower=True, trans=1)
    return ((S + S.T) / 2,)


def power_spectrum(x):
    """|F|² of the real Fourier transform."""
    return jnp.abs(jnp.fft.rfft(x)) ** 2


@back_of(power_spectrum, (6,))
def power_spectrum_back(args, g):
    """Reported: s2fft."""
    (x,) = args
    F = jnp.fft.rfft(x)
    twice = jnp.array([1, 2, 2, 1])
    return (2 * 6 * jnp.fft.irfft(g * F / twice * 1, 6) * 1,)


def simplex(x):
    """The projection onto the probability simplex."""
    u = jnp.sort(x)[::-1]
    k = jnp.sum(u + (1 - jnp.cumsum(u)) / jnp.arange(1, len(x) + 1) > 0)
    return jnp.maximum(x - (jnp.sum(jnp.where(jnp.arange(len(x)) < k, u, 0)) - 1) / k, 0)


@back_of(simplex, ("n",))
def simplex_back(args, g):
    """Reported: optax 1308."""
    (x,) = args
    active = (simplex(x) > 0).astype(x.dtype)
    dx = active * (g - jnp.sum(active * g) / jnp.sum(active))
    return (dx,)


def decayed_sum(x):
    """A cumulative sum, row t times t."""
    return jnp.cumsum(x, axis=0) * jnp.arange(1, len(x) + 1)[:, None]


@back_of(decayed_sum, ("n", 3))
def decayed_sum_back(args, g):
    """A cumulative sum from the end."""
    (x,) = args
    weighted = g * jnp.arange(1, len(x) + 1)[:, None]
    dx = jnp.cumsum(weighted[::-1], axis=0)[::-1]
    return (dx,)


def documented(x, y):
    """sin(x) y."""
    return jnp.sin(x) * y


@back_of(documented, (4,), (4,))
def documented_back(args, g):
    """Reported: jax 3213."""
    x, y = args
    dx = jnp.cos(x) * y * g
    dy = jnp.sin(x) * g
    return dx, dy


MISTAKES: tuple[tuple[str, str, str, str, str], ...] = (
    ("rms_norm", "unsloth 4533: no gradient of the weight", "jnp.sum(g * n, axis=0)", "jnp.zeros_like(w)", "[1]"),
    ("rms_norm", "attorch 17: another row's correction", "mean(dn * n)", "mean(dn * n)[::-1]", "[0]"),
    ("rms_norm", "llm.c 763: weight left out", "dn = g * (1 + w)", "dn = g", "[0]"),
    ("rms_norm", "the offset of the weight left out", "dn = g * (1 + w)", "dn = g * w", "[0]"),
    ("rms_norm", "weight's gradient from raw inputs", "g * n, axis", "g * x, axis", "[1]"),
    ("layer_norm", "mamba 1023: the rows' scale left out", "dx = dz * rows", "dx = dz", "[0]"),
    ("layer_norm", "mean of the error kept", "dn - mean(dn) - n", "dn - n", "[0] [3]"),
    ("layer_norm", "variance held constant", "dn - mean(dn) - n * mean(dn * n)", "dn - mean(dn)", "[0] [3]"),
    ("layer_norm", "epsilon left out backward", "mean(c * c) + EPS)\n    n", "mean(c * c))\n    n", "[0] [1] [3]"),
    ("weight_norm", "projection left out", "(g - u * ds)", "g", "[0]"),
    ("weight_norm", "direction not normalised", "g * u, axis", "g * v, axis", "[0] [1]"),
    ("cross_entropy", "Liger-Kernel 239: z loss left out", " + 2 * Z_LOSS * lse * p", "", "[0]"),
    ("cross_entropy", "z loss: two left out", "2 * Z_LOSS", "Z_LOSS", "[0]"),
    ("cross_entropy", "smoothing of the other classes left out", " + SMOOTHING / 5", "", "[0]"),
    ("cross_entropy", "soft cap's slope left out", "dx = dcap * (1 - t * t)", "dx = dcap", "[0]"),
    ("cross_entropy", "soft cap's slope not squared", "(1 - t * t)", "(1 - t)", "[0]"),
    ("cross_entropy", "ledger 1580: sum for mean", "g * dx / len(x)", "g * dx", "[0]"),
    ("focal_loss", "DOOBNet 6: weight held constant",
     "2 * (1 - p) * jnp.log(p) - (1 - p) ** 2 / p", "-((1 - p) ** 2) / p", "[0]"),
    ("focal_loss", "sign of the other class lost", "jnp.where(y == 1, 1, -1) * dp", "dp", "[0]"),
    ("jensen_shannon", "weights exchanged", "dp = 0.3 *", "dp = 0.7 *", "[0]"),
    ("jensen_shannon", "softmax's mean left out", "(dq - jnp.sum(q * dq, axis=-1, keepdims=True))", "dq", "[1]"),
    ("soft_minimum", "ott: no gradient of the temperature", "g * dgamma", "0 * gamma", "[1]"),
    ("soft_minimum", "temperature's second term left out", " - jnp.sum(p * x) / gamma", "", "[1]"),
    ("normal_density", "autograd 412: sign of the covariance",
     "dS = 0.5 * jnp.outer(v, u) - 0.5", "dS = -0.5 * jnp.outer(v, u) + 0.5", "[1]"),
    ("normal_density", "determinant left out", " - 0.5 * P.T", "", "[1]"),
    ("power_law_density", "numpyro: density for log density",
     "dhigh = -(k + 1) * high**k / z", "dhigh = -(k + 1) * high**k", "[2]"),
    ("power_law_density", "numpyro: sign of a bound", "dhigh = -(k", "dhigh = (k", "[2]"),
    ("power_law_density", "normaliser's exponent held constant", " - high ** (k + 1) * jnp.log(high) / z", "", "[1]"),
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
    ("solve", "sign", "dA = -jnp", "dA = jnp", "[0]"),
    ("solve", "transposed", "jnp.outer(db, x)", "jnp.outer(x, db)", "[0]"),
    ("cholesky", "diagonal not halved", "P - jnp.diag(jnp.diag(P)) / 2", "P", "[0]"),
    ("cholesky", "not symmetric", "((S + S.T) / 2,)", "(S,)", "[0]"),
    ("power_spectrum", "s2fft: inner frequencies counted once", "g * F / twice", "g * F", "[0]"),
    ("power_spectrum", "inverse transform's factor left out", "2 * 6 * jnp", "2 * jnp", "[0]"),
    ("simplex", "optax 1308: mean over all entries", "jnp.sum(active * g) / jnp.sum(active)", "jnp.mean(g)", "[0]"),
    ("simplex", "mask left out", "dx = active * (", "dx = (", "[0]"),
    ("decayed_sum", "exclusive", "[::-1], axis=0)[::-1]", "[::-1], axis=0)[::-1] - weighted", "[0]"),
    ("decayed_sum", "not reversed", "jnp.cumsum(weighted[::-1], axis=0)[::-1]", "jnp.cumsum(weighted, axis=0)", "[0]"),
    ("documented", "jax 3213: sign in the documentation", "dy = jnp", "dy = -jnp", "[1]"),
)  # fmt: skip
"""Rule; report or mistake; what stands in the right backward pass; what stood there wrongly; the leaves it spoils."""


def changed(function: Callable, name: str, right: str, wrong: str) -> Callable:
    """A backward pass with one change of its source, which tools can read as they read a file."""
    source = inspect.getsource(function)
    source = source[source.index("def ") :]
    if source.count(right) != 1:
        raise ValueError(f"{name}: {right!r} must stand once in the source, it stands {source.count(right)} times")
    text, file = source.replace(right, wrong), f"<recreated: {name}>"
    linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file
    space = dict(function.__globals__)
    exec(compile(text, file, "exec"), space)
    return space[function.__name__]


def cases() -> list[Case]:
    """The wrong rules."""
    found = []
    for rule_name, mistake, right, wrong, leaves in MISTAKES:
        primal, backward, _ = RULES[rule_name]
        name = f"{rule_name}: {mistake}"
        rule = saving_arguments(primal, changed(backward, name, right, wrong))
        found.append(Case(name, primal, rule, RULES[rule_name].make_args, (), tuple(leaves.split())))
    return found


def right() -> list[Right]:
    """Their right twins."""

    def custom(each: Rule) -> Callable:
        function = jax.custom_vjp(each.primal)
        function.defvjp(*saving_arguments(each.primal, each.backward))
        return function

    return [Right(name, custom(each), each.make_args) for name, each in RULES.items()]
