"""Norms, losses and densities of public reports."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnet.checking.corpus.case import mean
from jaxnet.checking.corpus.recreated.entering import back_of, classes, definite, positive
from jaxnet.checking.subject import on_device

EPS, CAP, SMOOTHING, Z_LOSS = 0.1, 2.0, 0.1, 0.05


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


MISTAKES: tuple[tuple[str, ...], ...] = (
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
)  # fmt: skip
