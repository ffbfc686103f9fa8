"""The makers of feedback paths: each gives the matrix in the place of W."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from jaxnet.feedback.feedback_path import FeedbackPath
from jaxnet.lowering.products import accumulated
from jaxnet.registry import maker


@maker
def transpose() -> FeedbackPath:
    """Wᵀ δ: backpropagation. A part of a network that has it keeps it, whatever feedback path is chosen around it.

    >>> transpose()(dense(3))
    feedback(dense(3), transpose())
    """
    return FeedbackPath("transpose", lambda W, B, scale: W)


@maker
def inverse(*, layers: Sequence[int] | None = None) -> FeedbackPath:
    """W⁻¹ δ, for each W of shape (n, n); where W is orthogonal that is Wᵀ δ. A singular W gives infinities or NaN.

    `layers`: places among the layers with weights, from 0; None for all.

    >>> _, back = vjp(inverse()(dense(2)))({"W": jnp.array([[2.0, 0.0], [0.0, -4.0]]), "b": jnp.zeros(2)}, jnp.ones(2))
    >>> print(np.asarray(back(jnp.ones(2))[1]).round(3))
    [ 0.5  -0.25]
    """
    return FeedbackPath("inverse", lambda W, B, scale: wide(solved, W).T, layers=chosen(layers))


@maker
def pinv(*, layers: Sequence[int] | None = None) -> FeedbackPath:
    """W⁺ δ, W⁺ the pseudo-inverse, (in, out): of all a with W a nearest to δ the shortest. `layers`: as `inverse`'s.

    >>> pinv()(dense(3))
    feedback(dense(3), pinv())
    """
    return FeedbackPath("pinv", lambda W, B, scale: wide(jnp.linalg.pinv, W).T, layers=chosen(layers))


@maker
def random(*, seed: int = 0, scale: float = 1.0, layers: Sequence[int] | None = None) -> FeedbackPath:
    """Bᵀ δ with a fixed B of the shape of W, its entries N(0, scale²/n), n the numbers that a unit takes in.

    `layers`: as `inverse`'s; each has a B of its own, also in a stack. Source: Lillicrap et al., 2016.

    >>> random(seed=5)(dense(3))
    feedback(dense(3), random(seed=5))
    """
    return FeedbackPath("random", lambda W, B, scale: B, True, seed, scale, chosen(layers))


MAGNITUDES: dict[str, Callable] = {
    "equal": lambda W, B, key: jnp.ones_like(W),
    "fixed": lambda W, B, key: jnp.abs(B) * math.sqrt(W[0].size),
    "new": lambda W, B, key: jnp.abs(jax.random.normal(jax.random.fold_in(key, bits_of(W)), W.shape, W.dtype)),
}
"""|M| of sign-symmetry, times √n: all 1 (uSF), drawn once (frSF), drawn anew whenever W has changed (brSF)."""


@maker
def sign(
    *,
    magnitudes: Literal["equal", "fixed", "new"] = "equal",
    seed: int = 0,
    scale: float = 1.0,
    layers: Sequence[int] | None = None,
) -> FeedbackPath:
    """(M ⊙ sign W)ᵀ δ · scale/√n, n the numbers that a unit takes in: of W only the signs come back.

    `magnitudes`: of M, "equal": 1; "fixed": |N(0, 1)|, drawn once; "new": drawn anew after each change of W, so for
    each batch. `seed`: of the drawn ones. `layers`: as `inverse`'s.
    Raises `ValueError` for other magnitudes.
    Sources: Liao, Leibo and Poggio, 2016, uSF and brSF; Moskovitz, Litwin-Kumar and Abbott, 2018, frSF.

    >>> _, back = vjp(sign()(dense(2)))({"W": jnp.array([[2.0, 0.0], [0.0, -4.0]]), "b": jnp.zeros(2)}, jnp.ones(2))
    >>> print(np.asarray(back(jnp.ones(2))[1]).round(3))
    [ 0.707 -0.707]
    """
    if magnitudes not in MAGNITUDES:
        raise ValueError(f"magnitudes are one of {', '.join(MAGNITUDES)}, got {magnitudes!r}")

    def matrix(W, B, scale):
        found = jnp.sign(W) * MAGNITUDES[magnitudes](W, B, jax.random.key(seed))
        return found * ((1 if magnitudes == "fixed" else scale) / math.sqrt(W[0].size))  # B has the scale already

    return FeedbackPath("sign", matrix, magnitudes == "fixed", seed, scale, chosen(layers))


def bits_of(W: jax.Array) -> jax.Array:
    """A number of 32 bits that changes with any entry of W."""
    bits = jax.lax.bitcast_convert_type(W.astype(jnp.float32).ravel(), jnp.uint32)
    return jnp.sum(bits * (2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1), dtype=jnp.uint32)


@maker
def kolen_pollack(*, seed: int = 0, scale: float = 1.0, layers: Sequence[int] | None = None) -> FeedbackPath:
    """Bᵀ δ, B learned beside W: its gradient is ∇_W C too, so with weight decay on both W − B goes to 0.

    Each W among the parameters becomes `Beside(W, B)`, B begun as `random`'s. `layers`: as `inverse`'s.
    Sources: Kolen and Pollack, Backpropagation without weight transport, 1994; Akrout et al., 2019.

    >>> net, x = kolen_pollack()(dense(2, bias=False)), jnp.ones(3)
    >>> params = net.init(jax.random.key(0), x)
    >>> grads, _ = vjp(net)(params, x)[1](jnp.ones(2))
    >>> bool((grads["W"].p == grads["W"].own).all())
    True
    """
    return FeedbackPath("kolen_pollack", lambda W, B, scale: B, True, seed, scale, chosen(layers), "gradient")


NOISE = 64  # vectors of noise in a step of the mirror


@maker
def weight_mirror(
    *, rate: float = 0.1, seed: int = 0, scale: float = 1.0, layers: Sequence[int] | None = None
) -> FeedbackPath:
    """Bᵀ δ, B ← B + rate (mean of (W ξ) ξᵀ − B) in each step: B learns W from noise ξ ~ N(0, 1) sent through it.

    Each W among the parameters becomes `Beside(W, B)`, B begun as `random`'s, and kept as state (`split_state`). ξ is
    drawn anew whenever W has changed. `layers`: as `inverse`'s. Source: Akrout et al., 2019.

    >>> net, x = weight_mirror()(dense(2, bias=False)), jnp.ones(3)
    >>> jax.tree.map(jnp.shape, net.init(jax.random.key(0), x))
    {'W': Beside(p=(2, 3), own=Untrained(value=(2, 3)))}
    """

    def mirrored(W, B):
        key = jax.random.fold_in(jax.random.key(seed), bits_of(W))
        noise = jax.random.normal(key, (NOISE, W[0].size), W.dtype)
        seen = (W.reshape(len(W), -1) @ noise.T) @ noise / NOISE
        return B + rate * (seen.reshape(B.shape) - B)

    return FeedbackPath("weight_mirror", lambda W, B, scale: B, True, seed, scale, chosen(layers), mirrored)


@maker
def straight_through() -> FeedbackPath:
    """δ itself, as if the block were the identity: for a step or a rounding, whose derivative is 0 or none.

    The block keeps the shape of its input; gradients of its own parameters stay the same.
    Source: Bengio, Léonard and Courville, 2013.

    >>> _, back = vjp(straight_through()(relu))((), jnp.array([-1.0, 2.0]))
    >>> print(back(jnp.ones(2))[1])
    [1. 1.]
    """
    return FeedbackPath("straight_through", None, through=True)


@maker
def direct(*, seed: int = 0, scale: float = 1.0, layers: Sequence[int] | None = None) -> FeedbackPath:
    """B e in the place of all that a layer sends back: e the δ of the last layer with weights, (outputs,).

    B: (shape of the layer's input, outputs), fixed, its entries N(0, scale²/n), n the count of numbers that the
    layer takes. At each position of a sequence the same. `layers`: as `inverse`'s. Source: Nøkland, 2016.

    >>> direct(layers=[0])(serial(dense(5), tanh, dense(3)))
    feedback(serial(dense(5), tanh, dense(3)), direct(layers=[0]))
    """
    return FeedbackPath("direct", None, True, seed, scale, chosen(layers))


def chosen(layers: Sequence[int] | None) -> tuple[int, ...] | None:
    """The chosen layers as a `FeedbackPath` holds them."""
    return None if layers is None else tuple(layers)


def solved(W: jax.Array) -> jax.Array:
    """W⁻¹ as the solution of W X = 1: on a CPU many times faster than `jnp.linalg.inv`."""
    return jnp.linalg.solve(W, jnp.eye(len(W), dtype=W.dtype))


def wide(of: Callable, W: jax.Array) -> jax.Array:
    """A matrix function in float32 or wider, in W's dtype."""
    return of(W.astype(accumulated(W.dtype))).astype(W.dtype)
