"""Matrices, spectra and projections of public reports."""

from __future__ import annotations

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from jaxnet.checking.corpus.recreated.entering import back_of, definite


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


MISTAKES: tuple[tuple[str, ...], ...] = (
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
