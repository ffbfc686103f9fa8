"""Losses, each with its value and its δ = ∂C/∂x.

x is the network's output for one example, (…, features); y its target: class indices (integers) of shape (…), or an
array of the shape of x. The leading axes are the terms (tokens of a sequence), over which the mean is taken; among them
a negative class index marks one that does not count. Value and δ are taken in float32 or better.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxnet.factors import accumulated
from jaxnet.layer import Loss, ShapeError, Static


def is_index(y) -> bool:
    """Whether a target holds class indices."""
    return jnp.issubdtype(y.dtype, jnp.integer)


def tokens(y) -> bool:
    """Whether a target holds class indices of several terms, of which some may not count."""
    return is_index(y) and y.ndim > 0


def counted(y) -> Float[Array, "..."]:
    """1 for each term of one example that counts, 0 for each token that does not (a negative class index)."""
    if tokens(y):
        return jnp.where(y >= 0, 1.0, 0.0)
    return jnp.ones(y.shape if is_index(y) else y.shape[:-1])


def terms(y, weight=None) -> Float[Array, ""] | Static:
    """Σ weight over the terms of one example that count. `weight`: a number, or one for each term; None for 1.

    `Static` where no value matters: then no device has to ask another for 1/n.
    """
    if weight is None and not tokens(y):
        return Static(1 if is_index(y) else math.prod(y.shape[:-1]))
    counts = counted(y)
    return jnp.sum(counts if weight is None else counts * jnp.asarray(weight, counts.dtype))


def one_hot(y, x) -> Float[Array, "..."]:
    """The target as an array of the shape and dtype of x; all zero where it does not count."""
    return jax.nn.one_hot(y, x.shape[-1], dtype=x.dtype) if is_index(y) else y.astype(x.dtype)


def pointwise(
    name: str, value: Callable[..., Array], delta: Callable[..., Array], of_index: Callable | None = None
) -> Loss:
    """A loss without parameters, of its two formulas for one term: `value(x, y)` a number, `delta(x, y)` = ∂value/∂x.

    x and y, the target one-hot where it came as an index, are (…, features); value gives (…). `of_index(x, y)`: the
    pair of them for class indices y: (…) as they come, where that is less work.
    The turn raises `ShapeError` for a target that does not fit x.
    """

    def accepts(x, y):
        expected = x.shape[:-1] if is_index(y) else x.shape
        if x.ndim == 0 or y.shape != expected:
            raise ShapeError(
                f"{name} takes a target of shape {x.shape[:-1]} (class indices) or {x.shape} (values) "
                f"for an output of shape {x.shape}, got {y.dtype} {y.shape}"
            )

    def turn(params, x, y, weight, read):
        y = jnp.asarray(y)
        accepts(x, y)
        wide = x.astype(accumulated(x.dtype))
        if of_index is not None and is_index(y):
            values, deltas = of_index(wide, y)
        else:
            target = one_hot(y, wide)
            values, deltas = value(wide, target), delta(wide, target)
        weights = counted(y).astype(wide.dtype) * jnp.asarray(weight, wide.dtype)
        return jnp.sum(weights * values), (weights[..., None] * deltas).astype(x.dtype), ()

    return Loss(name, turn, terms)


def total(of) -> Array:
    """Σ over the features of each term."""
    return jnp.sum(of, axis=-1)


quadratic = pointwise("quadratic", lambda a, y: total((a - y) ** 2) / 2, lambda a, y: a - y)
"""C = ½‖a − y‖², δ = a − y. Source: Nielsen, ch. 1, (6)."""

mean_squared_error = pointwise(
    "mean_squared_error",
    lambda a, y: jnp.mean((a - y) ** 2, axis=-1),
    lambda a, y: 2 * (a - y) / a.shape[-1],
)
"""C = 1/d Σ (a − y)² over the d features, δ = 2 (a − y)/d."""

mean_absolute_error = pointwise(
    "mean_absolute_error",
    lambda a, y: jnp.mean(jnp.abs(a - y), axis=-1),
    lambda a, y: jnp.sign(a - y) / a.shape[-1],
)
"""C = 1/d Σ |a − y|, δ = sign(a − y)/d; 0 where a = y."""


def huber(threshold: float = 1.0) -> Loss:
    """C = 1/d Σ h(a − y), h(e) = ½e² up to the threshold t, t|e| − ½t² beyond; δ = clip(a − y, −t, t)/d.

    Source: Huber, Robust Estimation of a Location Parameter, 1964.
    """
    if threshold <= 0:
        raise ValueError(f"Huber's threshold is positive, got {threshold}")
    return pointwise(
        "huber",
        lambda a, y: jnp.mean(jnp.asarray(optax.losses.huber_loss(a, y, delta=threshold)), axis=-1),
        lambda a, y: jnp.clip(a - y, -threshold, threshold) / a.shape[-1],
    )


def _inside(a) -> Array:
    """a clipped into [ε, 1 − ε], ε the dtype's resolution: 1.2e-7 in float32."""
    eps = jnp.finfo(a.dtype).eps
    return jnp.clip(a, eps, 1 - eps)


def _binary_delta(a, y):
    a = _inside(a)
    return (a - y) / (a * (1 - a))


def _binary_value(a, y):
    # Beyond the clip the cost goes on along its tangent there: finite, and δ stays its derivative, also at 0 and 1.
    c = _inside(a)
    cost = -(jax.scipy.special.xlogy(y, c) + jax.scipy.special.xlog1py(1 - y, -c))
    return total(cost + _binary_delta(a, y) * (a - c))


binary_cross_entropy = pointwise("binary_cross_entropy", _binary_value, _binary_delta)
"""C = −Σ [y ln a + (1 − y) ln(1 − a)] of probabilities a, δ = (a − y) / (a (1 − a)).

a is clipped into [ε, 1 − ε] (ε = 1.2e-7 in float32, 2.2e-16 in float64) in value and δ alike, the value going on along
its tangent: so both are finite for all a in [0, 1]. Source: Nielsen, ch. 3, (63).
"""

binary_cross_entropy_on_logits = pointwise(
    "binary_cross_entropy_on_logits",
    lambda z, y: total(jnp.maximum(z, 0) - z * y + jnp.log1p(jnp.exp(-jnp.abs(z)))),
    lambda z, y: jax.nn.sigmoid(z) - y,
)
"""C = −Σ [y ln σ(z) + (1 − y) ln(1 − σ(z))], δ = σ(z) − y: Nielsen's cross-entropy of a sigmoid output, (67)."""


def _cross_entropy_of_class(z, y):
    """−ln p_y and p − e_y from one exponential of each entry: with a large vocabulary, most of what a loss costs.

    NaN for a class that there is none of, so that it shows.
    """
    highest = jnp.max(z, axis=-1)
    powers = jnp.exp(z - highest[..., None])
    sums = total(powers)
    z_y = jnp.take_along_axis(z, jnp.maximum(y, 0)[..., None], axis=-1, mode="fill")[..., 0]
    return highest + jnp.log(sums) - z_y, powers / sums[..., None] - one_hot(y, z)


softmax_cross_entropy = pointwise(
    "softmax_cross_entropy",
    lambda z, y: total(y) * jax.nn.logsumexp(z, axis=-1) - total(y * z),
    lambda z, y: total(y)[..., None] * jax.nn.softmax(z, axis=-1) - y,
    _cross_entropy_of_class,
)
"""C = −Σ yᵢ ln pᵢ, p = softmax(z), δ = p − y, or p Σy − y for a y that does not sum to 1.

Source: Bishop, Pattern Recognition and Machine Learning, (4.109).
"""


def _runner_up(z, y):
    """The class that comes nearest to violating the margin, one-hot, and whether it does."""
    margins = z - total(z * y)[..., None] + (1 - y)
    return jax.nn.one_hot(jnp.argmax(margins, axis=-1), z.shape[-1], dtype=z.dtype), jnp.max(margins, axis=-1)


def _hinge_delta(z, y):
    rival, margin = _runner_up(z, y)
    return jnp.where((margin > 0)[..., None], rival - y, 0.0)


multiclass_hinge = pointwise("multiclass_hinge", lambda z, y: jnp.maximum(_runner_up(z, y)[1], 0), _hinge_delta)
"""C = maxᵢ (zᵢ − z_y + 1 − yᵢ), at least 0; δ = e_rival − y where the margin is violated.

Source: Crammer and Singer, On the Algorithmic Implementation of Multiclass Kernel-based Vector Machines, 2001.
"""

LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        quadratic,
        mean_squared_error,
        mean_absolute_error,
        huber(),
        binary_cross_entropy,
        binary_cross_entropy_on_logits,
        softmax_cross_entropy,
        multiclass_hinge,
    )
}
"""The losses by name."""
