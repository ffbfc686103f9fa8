"""Normalisation over the entries of one example: layer norm, RMS norm, group norm.

    x̂ = (x − μ) / σ         μ, σ² the mean and variance of a group of entries, σ = √(variance + ε)
    out = γ ⊙ x̂ + β
    ∇_γ C = δ ⊙ x̂           δ = ∂C/∂out, summed over the positions that share γ
    ∇_β C = δ               likewise
    ∂C/∂x = (ĝ − mean ĝ − x̂ mean(ĝ ⊙ x̂)) / σ        ĝ = γ ⊙ δ; the means over the same group

The groups: the last axis (layer norm, RMS norm, where μ = 0 and the mean of ĝ is not taken off), or everything of a
group of channels (group norm). x̂ and 1/σ are saved; statistics are taken in float32 or better.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxnet.factors import Plain
from jaxnet.layer import Layer, ShapeError, leaf
from jaxnet.lowering.products import accumulated
from jaxnet.registry import maker

Axes = int | tuple[int, ...]


def standardized(x: Float[Array, "..."], axes, epsilon: float, centred: bool = True):
    """x̂, and 1/σ with the `axes` of a group kept as ones."""
    x = x.astype(accumulated(x.dtype))
    if centred:
        x = x - jnp.mean(x, axes, keepdims=True)
    one_over_sigma = jax.lax.rsqrt(jnp.mean(jnp.square(x), axes, keepdims=True) + epsilon)
    return x * one_over_sigma, one_over_sigma


def standardized_back(g: Float[Array, "..."], x_hat: Float[Array, "..."], one_over_sigma, axes, centred: bool = True):
    """From g = ∂C/∂x̂ to ∂C/∂x, the means taken over `axes`."""
    mean_g = jnp.mean(g, axes, keepdims=True) if centred else 0.0
    return projected(g, x_hat, one_over_sigma, mean_g, jnp.mean(g * x_hat, axes, keepdims=True))


def projected(g: Float[Array, "..."], x_hat: Float[Array, "..."], one_over_sigma, mean_g, mean_g_x_hat):
    """(g − mean g − x̂ mean(g ⊙ x̂)) / σ: the part of g along x̂, and its mean where x̂ is centred, do not pass."""
    return one_over_sigma * (g - mean_g - x_hat * mean_g_x_hat)


def along_last(p: Float[Array, " width"], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """A parameter for each entry of the last axis, in the dtype of x, ready to be multiplied with it."""
    return p.astype(x.dtype).reshape((1,) * (x.ndim - 1) + p.shape)


def over_groups(grouped: Callable, axes) -> Callable:
    """The backward pass of x̂ for groups of any form: `axes` of `grouped(x)`."""

    def back(gamma, delta, x_hat, one_over_sigma):
        g = grouped(along_last(gamma, delta) * delta)
        return standardized_back(g, grouped(x_hat), one_over_sigma, axes).reshape(delta.shape)

    return back


def over_last(centred: bool) -> Callable:
    """The backward pass of x̂ along the last axis.

    mean ĝ = ⟨γ, δ⟩/width and mean(ĝ ⊙ x̂) = ⟨γ, δ ⊙ x̂⟩/width, as products with γ: for a mean of γ ⊙ δ the compiler
    lays γ out for every position first, which takes twice the time.
    """

    def mean(gamma, t):
        return jnp.matmul(t, gamma, precision="highest")[..., None] / t.shape[-1]

    def back(gamma, delta, x_hat, one_over_sigma):
        gamma = gamma.astype(delta.dtype)
        mean_g = mean(gamma, delta) if centred else 0.0
        g = along_last(gamma, delta) * delta
        return projected(g, x_hat, one_over_sigma, mean_g, mean(gamma, delta * x_hat))

    return back


def norm(
    name: str,
    epsilon: float,
    bias: bool,
    back: Callable,
    axes: Axes = -1,
    centred=True,
    grouped=lambda x: x,
    accepts=None,
) -> Layer:
    """out = γ ⊙ x̂ + β, normalised over `axes` of `grouped(x)`; γ and β have an entry for each of x's last axis.

    `back(gamma, delta, x_hat, one_over_sigma)`: ∂C/∂x.
    """
    if epsilon < 0:
        raise ValueError(f"{name} takes an epsilon of at least 0, got {epsilon}")

    def fits(x, params):
        if x.ndim < 1:
            raise ShapeError(f"{name} takes an input with a last axis to normalise, (…, width), got a single number")
        if params is not None and params["gamma"].shape != x.shape[-1:]:
            raise ShapeError(
                f"{name} has gamma for a last axis of {len(params['gamma'])}, got shape {x.shape}: "
                "initialise it for this input"
            )
        if accepts is not None:
            accepts(x)

    def init(key, x):
        dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32
        params = {"gamma": jnp.ones(x.shape[-1], dtype)}
        return params | {"beta": jnp.zeros(x.shape[-1], dtype)} if bias else params

    def forward(params, x, key=None, train=False):
        x_hat, one_over_sigma = standardized(grouped(x), axes, epsilon, centred)
        x_hat = x_hat.reshape(x.shape)
        out = along_last(params["gamma"], x_hat) * x_hat
        out = out + along_last(params["beta"], x_hat) if bias else out
        return out.astype(x.dtype), (x_hat.astype(x.dtype), one_over_sigma)

    def backward(params, saved, delta):  # out = γ ⊙ (x − μ)/σ + β
        # The barrier keeps the compiler from making x̂ again out of x for each of its uses: half of the time.
        delta, saved = jax.lax.optimization_barrier((delta, saved))
        x_hat, one_over_sigma = (t.astype(accumulated(delta.dtype)) for t in saved)
        wide = delta.astype(x_hat.dtype)
        dx = back(params["gamma"], wide, x_hat, one_over_sigma)
        factors = {"gamma": Plain(wide * x_hat, delta.ndim - 1)}
        return dx.astype(delta.dtype), factors | {"beta": Plain(delta, delta.ndim - 1)} if bias else factors

    return leaf(name, init, forward, backward, fits)


@maker(
    examples={"layer_norm()": "float32[5,6]", "layer_norm(bias=False)": "float32[6]"},
    axes={"gamma": "width", "beta": "width"},
)
def layer_norm(epsilon: float = 1e-5, *, bias: bool = True) -> Layer:
    """out = γ ⊙ (x − μ)/σ + β, over the last axis of x: (…, width), at each position by itself.

    `epsilon`: added to the variance. `bias`: whether there is a β. Parameters: `{"gamma": (width,), "beta": (width,)}`.
    Raises `ShapeError` for a number without axes or another width, `ValueError` for an epsilon below 0.
    Source: Ba, Kiros and Hinton, Layer Normalization, 2016, (3) and (4).
    """
    return norm("layer_norm", epsilon, bias, over_last(centred=True))


@maker(examples={"rms_norm()": "float32[5,6]"}, axes={"gamma": "width"})
def rms_norm(epsilon: float = 1e-6) -> Layer:
    """out = γ ⊙ x/σ, σ = √(mean x² + ε), over the last axis of x: (…, width), at each position by itself.

    `epsilon`: added to the mean square. Parameters: `{"gamma": (width,)}`.
    Raises `ShapeError` for a number without axes or another width, `ValueError` for an epsilon below 0.
    Source: Zhang and Sennrich, Root Mean Square Layer Normalization, 2019, (4).
    """
    return norm("rms_norm", epsilon, False, over_last(centred=False), centred=False)


@maker(examples={"group_norm(2)": "float32[3,2,6]"}, axes={"gamma": "channels", "beta": "channels"})
def group_norm(groups: int, *, epsilon: float = 1e-5) -> Layer:
    """out = γ ⊙ (x − μ)/σ + β, for x: (…, channels), over all positions and the channels of a group together.

    `groups`: of channels next to each other; 1 normalises the whole example. `epsilon`: added to the variance.
    Parameters: `{"gamma": (channels,), "beta": (channels,)}`.
    Raises `ShapeError` where the groups do not divide the channels, `ValueError` for no groups or an epsilon below 0.
    Source: Wu and He, Group Normalization, 2018, (7).
    """
    if groups < 1:
        raise ValueError(f"group_norm takes at least one group, got {groups}")

    def divides(x):
        if x.shape[-1] % groups:
            raise ShapeError(
                f"group_norm {groups} takes channels (the last axis) that {groups} groups divide, "
                f"got {x.shape[-1]} in shape {x.shape}: choose groups that divide them"
            )

    def grouped(x):
        return x.reshape(-1, groups, x.shape[-1] // groups)

    axes = (0, 2)
    return norm(
        f"group_norm {groups}", epsilon, True, over_groups(grouped, axes), axes, grouped=grouped, accepts=divides
    )
