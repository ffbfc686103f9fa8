"""Normalisation over the entries of one example: layer norm, RMS norm, group norm.

    x̂ = (x − μ) / σ         μ, σ² the mean and variance of a group of entries, σ = √(variance + ε)
    out = γ ⊙ x̂ + β
    ∇_γ C = δ ⊙ x̂           δ = ∂C/∂out, summed over the positions that share γ
    ∇_β C = δ               likewise
    ∂C/∂x = (ĝ − mean ĝ − x̂ mean(ĝ ⊙ x̂)) / σ        ĝ = γ ⊙ δ; the means over the same group

The groups: the last axis (layer norm, RMS norm, where μ = 0 and the mean of ĝ is not taken off), or everything of a
group of channels (group norm). x̂ and σ are saved; statistics are taken in float32 or better.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxnet.factors import Plain
from jaxnet.layer import Layer, ShapeError, fits_input, leaf
from jaxnet.lowering import form, op
from jaxnet.lowering.kernels import kernel
from jaxnet.lowering.memory import from_memory
from jaxnet.lowering.products import accumulated
from jaxnet.registry import Count, maker

# ------------------------------------------------------------------------------------------------- the equations


def standardized(x: Float[Array, "..."], axes, epsilon: float, centred: bool = True):
    """x̂, and σ with the `axes` of a group kept as ones."""
    mu = jnp.mean(x, axes, keepdims=True) if centred else 0.0
    sigma = jnp.sqrt(jnp.mean(jnp.square(x - mu), axes, keepdims=True) + epsilon)
    x_hat = (x - mu) / sigma
    return x_hat, sigma


def standardized_back(g: Float[Array, "..."], x_hat: Float[Array, "..."], sigma, axes, centred: bool = True):
    """From ĝ = ∂C/∂x̂ to ∂C/∂x: the part of ĝ along x̂, and its mean where x̂ is centred, do not pass."""
    mean_g = jnp.mean(g, axes, keepdims=True) if centred else 0.0
    return (g - mean_g - x_hat * jnp.mean(g * x_hat, axes, keepdims=True)) / sigma


def along_last(p: Float[Array, " width"], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """A parameter for each entry of the last axis, in the dtype of x, ready to be multiplied with it."""
    return p.astype(x.dtype).reshape((1,) * (x.ndim - 1) + p.shape)


def grouped(x: Float[Array, "..."], groups: int | None) -> Float[Array, "..."]:
    """(…, width) as it is, or, with its channels in groups, (positions, groups, channels of one)."""
    return x if groups is None else x.reshape(-1, groups, x.shape[-1] // groups)


def norm_forward_plain(
    x: Float[Array, "*positions width"],
    gamma: Float[Array, " width"],
    beta: Float[Array, " width"] | None,
    *,
    groups: int | None,
    centred: bool,
    epsilon: float,
) -> tuple[Float[Array, "*positions width"], Float[Array, "*positions width"], Float[Array, "..."]]:
    """out, x̂ and σ."""
    wide = x.astype(accumulated(x.dtype))
    x_hat, sigma = standardized(grouped(wide, groups), axes(groups), epsilon, centred)
    x_hat = x_hat.reshape(x.shape)
    out = along_last(gamma, x_hat) * x_hat
    out = out if beta is None else out + along_last(beta, x_hat)
    return out.astype(x.dtype), x_hat.astype(x.dtype), sigma


def norm_backward_plain(
    gamma: Float[Array, " width"],
    delta: Float[Array, "*positions width"],
    x_hat: Float[Array, "*positions width"],
    sigma: Float[Array, "..."],
    *,
    groups: int | None,
    centred: bool,
) -> tuple[Float[Array, "*positions width"], Float[Array, " width"], Float[Array, " width"]]:
    """∂C/∂x, and ∇_γ C and ∇_β C, summed over the positions."""
    wide, x_hat = delta.astype(sigma.dtype), x_hat.astype(sigma.dtype)
    g = along_last(gamma, wide) * wide  # out = γ ⊙ x̂ + β
    dx = standardized_back(grouped(g, groups), grouped(x_hat, groups), sigma, axes(groups), centred)
    positions = tuple(range(delta.ndim - 1))
    return dx.reshape(delta.shape).astype(delta.dtype), jnp.sum(wide * x_hat, positions), jnp.sum(wide, positions)


def axes(groups: int | None) -> int | tuple[int, int]:
    """The axes of a group in `grouped(x, groups)`."""
    return -1 if groups is None else (0, 2)


norm_forward = op(
    norm_forward_plain,
    cuda=kernel("gpu_normalization", "forward"),
    tpu=kernel("tpu_normalization", "forward", plain=norm_forward_plain),
)
norm_backward = op(
    norm_backward_plain,
    cpu=form(from_memory(norm_backward_plain), when=lambda *arrays, groups, centred: groups is None, manual=True),
    cuda=kernel("gpu_normalization", "backward"),
    tpu=kernel("tpu_normalization", "backward", plain=norm_backward_plain),
)

# ---------------------------------------------------------------------------------------------------- the layers


def norm(name: str, epsilon: float, bias: bool, *, groups: int | None = None, centred=True, accepts=None) -> Layer:
    """out = γ ⊙ x̂ + β, over the last axis of x or over groups of channels; γ and β are as long as x's last axis."""
    if epsilon < 0:
        raise ValueError(f"{name} takes an epsilon of at least 0, got {epsilon}")

    def fits(x, params):
        if x.ndim < 1:
            raise ShapeError(f"{name} takes an input with a last axis to normalise, (…, width), got a single number")
        fits_input(name, params, "gamma", x.shape[-1:], x)
        if accepts is not None:
            accepts(x)

    def init(key, x):
        dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32
        params = {"gamma": jnp.ones(x.shape[-1], dtype)}
        return params | {"beta": jnp.zeros(x.shape[-1], dtype)} if bias else params

    def forward(params, x, key=None, train=False):
        options = {"groups": groups, "centred": centred, "epsilon": epsilon}
        out, x_hat, sigma = norm_forward(x, params["gamma"], params.get("beta"), **options)
        return out, (x_hat, sigma)

    def backward(params, saved, delta):  # out = γ ⊙ (x − μ)/σ + β
        x_hat, sigma = saved
        dx, d_gamma, d_beta = norm_backward(params["gamma"], delta, x_hat, sigma, groups=groups, centred=centred)
        factors = {"gamma": Plain(d_gamma)}
        return dx, factors | {"beta": Plain(d_beta)} if bias else factors

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

    >>> net, x = layer_norm(), jnp.array([1.0, 3.0])
    >>> params = net.init(jax.random.key(0), x)
    >>> print(np.asarray(net.forward(params, x)[0]).round(3))
    [-1.  1.]
    """
    return norm("layer_norm", epsilon, bias)


@maker(examples={"rms_norm()": "float32[5,6]"}, axes={"gamma": "width"})
def rms_norm(epsilon: float = 1e-6) -> Layer:
    """out = γ ⊙ x/σ, σ = √(mean x² + ε), over the last axis of x: (…, width), at each position by itself.

    `epsilon`: added to the mean square. Parameters: `{"gamma": (width,)}`.
    Raises `ShapeError` for a number without axes or another width, `ValueError` for an epsilon below 0.
    Source: Zhang and Sennrich, Root Mean Square Layer Normalization, 2019, (4).

    >>> net, x = rms_norm(), jnp.array([3.0, 4.0])
    >>> params = net.init(jax.random.key(0), x)
    >>> print(np.asarray(net.forward(params, x)[0]).round(3))
    [0.849 1.131]
    """
    return norm("rms_norm", epsilon, False, centred=False)


@maker(examples={"group_norm(2)": "float32[3,2,6]"}, axes={"gamma": "channels", "beta": "channels"})
def group_norm(groups: Count, *, epsilon: float = 1e-5) -> Layer:
    """out = γ ⊙ (x − μ)/σ + β, for x: (…, channels), over all positions and the channels of a group together.

    `groups`: of channels next to each other; 1 normalises the whole example. `epsilon`: added to the variance.
    Parameters: `{"gamma": (channels,), "beta": (channels,)}`.
    Raises `ShapeError` where the groups do not divide the channels, `ValueError` for no groups or an epsilon below 0.
    Source: Wu and He, Group Normalization, 2018, (7).

    >>> net, x = group_norm(2), jnp.ones((3, 4))
    >>> params = net.init(jax.random.key(0), x)
    >>> out, back = vjp(net)(params, x)
    >>> grads, dx = back(jnp.ones_like(out))
    >>> out.shape, dx.shape, jax.tree.map(jnp.shape, grads)
    ((3, 4), (3, 4), {'beta': (4,), 'gamma': (4,)})
    """

    def divides(x):
        if x.shape[-1] % groups:
            raise ShapeError(
                f"group_norm {groups} takes channels (the last axis) that {groups} groups divide, "
                f"got {x.shape[-1]} in shape {x.shape}: choose groups that divide them"
            )

    return norm(f"group_norm {groups}", epsilon, True, groups=groups, accepts=divides)
