"""Losses, each with its value and its δ = ∂C/∂x.

x is the network's output for one example, (…, features). Its target y holds class labels (integers) of shape (…), or
values of the shape of x. The leading axes are the terms (tokens of a sequence); the cost is their mean. A label must be
from 0 to features − 1: another one raises `LabelError`, or under `jax.jit` makes cost and δ NaN. Labels that do not
count are declared: `ignoring(loss, -100)`. Cost and δ are computed in float32 or better.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxnet.layer import LabelError, Loss, ShapeError, Static
from jaxnet.lowering.products import accumulated
from jaxnet.registry import maker, row


def is_index(y) -> bool:
    """Whether a target holds class labels."""
    return jnp.issubdtype(y.dtype, jnp.integer)


def term_shape(y) -> tuple[int, ...]:
    """The shape of the terms of one example's target."""
    return y.shape if is_index(y) else y.shape[:-1]


def terms(y, weight=None) -> Float[Array, ""] | Static:
    """Σ weight over the terms of one example. `weight`: a number, or one for each term; None for 1.

    Without weights it is `Static`: no device has to ask another for 1/n.
    Raises `ShapeError` for weights of another shape.
    """
    shape = term_shape(y)
    if weight is None:
        return Static(math.prod(shape))
    check_weight(weight, shape)
    return jnp.sum(jnp.broadcast_to(jnp.asarray(weight, float), shape))


def check_weight(weight, shape: tuple[int, ...]) -> None:
    """Raise `ShapeError` unless the weight of one example is a number, or one for each term."""
    if jnp.shape(weight) not in ((), shape):
        per_term = f", or one for each of its terms, of shape {shape}" if shape else ""
        raise ShapeError(
            f"the weight of an example is one number{per_term}; got shape {jnp.shape(weight)}: "
            "give weights of the shape (examples,)" + (f" or (examples, {', '.join(map(str, shape))})" * bool(shape))
        )


def check_labels(name: str, y, classes: int) -> None:
    """Raise `LabelError` for a label outside 0 … classes − 1. Labels without a value yet (under `jit`) pass."""
    if isinstance(y, Tracer):
        return
    labels = np.asarray(y)
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        bad = labels[outside][0]
        raise LabelError(
            f"{name}: the class labels of an output of {classes} numbers go from 0 to {classes - 1}, got {bad}: "
            f"mend the label, or declare that it does not count: ignoring({name}, {bad})"
        )


def one_hot(y, x) -> Float[Array, "..."]:
    """The target as an array of the shape and dtype of x."""
    return jax.nn.one_hot(y, x.shape[-1], dtype=x.dtype) if is_index(y) else y.astype(x.dtype)


def pointwise(
    name: str,
    value: Callable[..., Array],
    delta: Callable[..., Array],
    curvature: Callable[..., Array] | None = None,
    *,
    of_index: Callable | None = None,
    root: Callable[..., Array] | None = None,
) -> Loss:
    """A loss without parameters, of its formulas for one term: `value(x, y)` a number, `delta(x, y)` = ∂value/∂x.

    x and y are (…, features), labels as one-hot rows; value gives (…). `curvature(x, y)`: ∂delta/∂x of a loss whose
    features do not mix, its Hessian's diagonal; of another loss `root(x, y, u, transposed)`: S u or Sᵀ u, S Sᵀ the
    Hessian. `of_index(x, y)`: value and delta together for labels y: (…), where that is less work.
    The turn raises `ShapeError` for a target or a weight that does not fit x, `LabelError` for a label outside.
    """

    def accepts(x, y, weight):
        expected = x.shape[:-1] if is_index(y) else x.shape
        if x.ndim == 0 or y.shape != expected:
            raise ShapeError(
                f"{name} takes a target of shape {x.shape[:-1]} (class labels) or {x.shape} (values) "
                f"for an output of shape {x.shape}, got {y.dtype} {y.shape}"
            )
        check_weight(weight, x.shape[:-1])

    def turn(params, x, y, weight, read):
        given, y = y, jnp.asarray(y)
        accepts(x, y, weight)
        wide = x.astype(accumulated(x.dtype))
        weights = jnp.broadcast_to(jnp.asarray(weight, wide.dtype), x.shape[:-1])
        if is_index(y):
            check_labels(name, given, x.shape[-1])
            weights = jnp.where((y >= 0) & (y < x.shape[-1]), weights, jnp.nan)
        if of_index is not None and is_index(y):
            values, deltas = of_index(wide, y)
        else:
            target = one_hot(y, wide)
            values, deltas = value(wide, target), delta(wide, target)
        return jnp.sum(weights * values), (weights[..., None] * deltas).astype(x.dtype), ()

    def of_diagonal(x, y, u, transposed):
        return jnp.sqrt(curvature(x, y)) * u if curvature else u

    def weighted_root(x, y, weight, u, transposed=False):
        accepts(x, jnp.asarray(y), weight)
        wide = x.astype(accumulated(x.dtype))
        found = (root or of_diagonal)(wide, one_hot(jnp.asarray(y), wide), u, transposed)
        weights = jnp.broadcast_to(jnp.asarray(weight, wide.dtype), x.shape[:-1])
        return (jnp.sqrt(weights)[..., None] * found).astype(x.dtype)

    return Loss(name, turn, terms, root=weighted_root if root or curvature else None)


@maker(configs=False, examples={"ignoring(softmax_cross_entropy, 0)": "float32[5,6], int32[5]<6"})
def ignoring(loss: Loss, label: int = -100) -> Loss:
    """The same loss without the terms of class label `label`.

    Its weight is 0, in Σ weight · C, in δ and in n.

    >>> loss = ignoring(softmax_cross_entropy, -1)
    >>> _, every = backpropagate(identity, loss, deltas)((), jnp.zeros((1, 2, 2)), jnp.array([[0, -1]]))
    >>> print(every[0])
    [[-0.5  0.5]
     [-0.   0. ]]
    """

    def of_counted(y, weight):
        y = jnp.asarray(y)
        if not is_index(y):
            raise ShapeError(f"{loss.name} ignores the class label {label}, so it takes class labels, got {y.dtype}")
        check_weight(weight, y.shape)
        ignored = y == label
        return jnp.where(ignored, 0, y), jnp.where(ignored, 0.0, jnp.asarray(weight, float))

    def turn(params, x, y, weight, read):
        return loss.turn(params, x, *of_counted(y, weight), read)

    def counted(y, weight=None):
        return loss.terms(*of_counted(y, 1.0 if weight is None else weight))

    own = loss.root

    def root(x, y, weight, u, transposed=False):
        return own(x, *of_counted(y, weight), u, transposed) if own else None

    return loss._replace(turn=turn, terms=counted, root=root if own else None)


def total(of) -> Array:
    """Σ over the features of each term."""
    return jnp.sum(of, axis=-1)


INPUTS = ("float32[6], float32[6]", "float32[6], int32[]<6", "float32[5,6], int32[5]<6")
"""The inputs at which most losses are checked: an output and values, a class label, labels of a sequence."""

PROBABILITIES = ("float32[6]<1>0, float32[6]<1>0", "float32[6]<1>0, int32[]<6")
"""The same for a loss that takes probabilities."""

quadratic = row(
    pointwise("quadratic", lambda a, y: total((a - y) ** 2) / 2, lambda a, y: a - y, lambda a, y: jnp.ones_like(a)),
    __name__,
    *INPUTS,
)
"""C = ½‖a − y‖², δ = a − y. Source: Nielsen, ch. 1, (6).

>>> x, y = jnp.array([[2.0, 0.5]]), jnp.array([[1.0, 0.0]])
>>> cost, delta = backpropagate(identity, quadratic, deltas)((), x, y)
>>> print(np.asarray(cost).round(3), np.asarray(delta).round(3))
0.625 [[1.  0.5]]
"""

mean_squared_error = row(
    pointwise(
        "mean_squared_error",
        lambda a, y: jnp.mean((a - y) ** 2, axis=-1),
        lambda a, y: 2 * (a - y) / a.shape[-1],
        lambda a, y: jnp.full_like(a, 2 / a.shape[-1]),
    ),
    __name__,
    *INPUTS,
)
"""C = 1/d Σ (a − y)² over the d features, δ = 2 (a − y)/d.

>>> x, y = jnp.array([[2.0, 0.5]]), jnp.array([[1.0, 0.0]])
>>> cost, delta = backpropagate(identity, mean_squared_error, deltas)((), x, y)
>>> print(np.asarray(cost).round(3), np.asarray(delta).round(3))
0.625 [[1.  0.5]]
"""

mean_absolute_error = row(
    pointwise(
        "mean_absolute_error",
        lambda a, y: jnp.mean(jnp.abs(a - y), axis=-1),
        lambda a, y: jnp.sign(a - y) / a.shape[-1],
        lambda a, y: jnp.zeros_like(a),
    ),
    __name__,
    *INPUTS,
)
"""C = 1/d Σ |a − y|, δ = sign(a − y)/d; 0 where a = y.

>>> x, y = jnp.array([[2.0, 0.5]]), jnp.array([[1.0, 0.0]])
>>> cost, delta = backpropagate(identity, mean_absolute_error, deltas)((), x, y)
>>> print(cost, delta)
0.75 [[0.5 0.5]]
"""


@maker(examples={"huber()": INPUTS, "huber(0.3)": INPUTS})
def huber(threshold: float = 1.0) -> Loss:
    """C = 1/d Σ h(a − y), h(e) = ½e² up to the threshold t, t|e| − ½t² beyond; δ = clip(a − y, −t, t)/d.

    Raises `ValueError` for a threshold that is not positive.
    Source: Huber, Robust Estimation of a Location Parameter, 1964.

    >>> x, y = jnp.array([[2.0, 1.0]]), jnp.array([[0.0, 0.0]])
    >>> cost, delta = backpropagate(identity, huber(), deltas)((), x, y)
    >>> print(cost, delta)
    1.0 [[0.5 0.5]]
    """
    if threshold <= 0:
        raise ValueError(f"Huber's threshold is positive, got {threshold}")
    return pointwise(
        "huber",
        lambda a, y: jnp.mean(jnp.asarray(optax.losses.huber_loss(a, y, delta=threshold)), axis=-1),
        lambda a, y: jnp.clip(a - y, -threshold, threshold) / a.shape[-1],
        lambda a, y: jnp.where(jnp.abs(a - y) < threshold, 1 / a.shape[-1], 0.0),
    )


def _inside(a) -> Array:
    """a clipped into [ε, 1 − ε], ε the dtype's resolution: 1.2e-7 in float32."""
    eps = jnp.finfo(a.dtype).eps
    return jnp.clip(a, eps, 1 - eps)


def _binary_delta(a, y):
    a = _inside(a)
    return (a - y) / (a * (1 - a))


def _binary_curvature(a, y):
    c = _inside(a)
    return jnp.where(a == c, y / c**2 + (1 - y) / (1 - c) ** 2, 0.0)


def _binary_value(a, y):
    # Beyond the clip the cost goes on along its tangent there: finite, and δ stays its derivative, also at 0 and 1.
    c = _inside(a)
    cost = -(jax.scipy.special.xlogy(y, c) + jax.scipy.special.xlog1py(1 - y, -c))
    return total(cost + _binary_delta(a, y) * (a - c))


binary_cross_entropy = row(
    pointwise("binary_cross_entropy", _binary_value, _binary_delta, _binary_curvature), __name__, *PROBABILITIES
)
"""C = −Σ [y ln a + (1 − y) ln(1 − a)] of probabilities a, δ = (a − y) / (a (1 − a)).

a is clipped into [ε, 1 − ε] (ε = 1.2e-7 in float32, 2.2e-16 in float64) in value and δ alike, the value going on along
its tangent: so both are finite for all a in [0, 1]. Source: Nielsen, ch. 3, (63).

>>> x, y = jnp.array([[0.8, 0.5]]), jnp.array([[1.0, 0.0]])
>>> cost, delta = backpropagate(identity, binary_cross_entropy, deltas)((), x, y)
>>> print(np.asarray(cost).round(3), np.asarray(delta).round(3))
0.916 [[-1.25  2.  ]]
"""

binary_cross_entropy_on_logits = row(
    pointwise(
        "binary_cross_entropy_on_logits",
        lambda z, y: total(jnp.maximum(z, 0) - z * y + jnp.log1p(jnp.exp(-jnp.abs(z)))),
        lambda z, y: jax.nn.sigmoid(z) - y,
        lambda z, y: jax.nn.sigmoid(z) * jax.nn.sigmoid(-z),
    ),
    __name__,
    *INPUTS,
)
"""C = −Σ [y ln σ(z) + (1 − y) ln(1 − σ(z))], δ = σ(z) − y: Nielsen's cross-entropy of a sigmoid output, (67).

>>> x, y = jnp.array([[2.0, 0.5]]), jnp.array([[1.0, 0.0]])
>>> cost, delta = backpropagate(identity, binary_cross_entropy_on_logits, deltas)((), x, y)
>>> print(np.asarray(cost).round(3), np.asarray(delta).round(3))
1.101 [[-0.119  0.622]]
"""


def _cross_entropy_of_class(z, y):
    """−ln p_y and p − e_y. One exponential for each entry: with a large vocabulary, this is most of the work."""
    highest = jnp.max(z, axis=-1)
    powers = jnp.exp(z - highest[..., None])
    sums = total(powers)
    z_y = jnp.take_along_axis(z, y[..., None], axis=-1, mode="clip")[..., 0]
    return highest + jnp.log(sums) - z_y, powers / sums[..., None] - one_hot(y, z)


def _root_of_softmax(z, y, u, transposed):
    """S = (diag(√p) − p √pᵀ) √Σy, since diag(p) − p pᵀ = S Sᵀ. Source: Dangel et al., BackPACK, 2020, appendix."""
    p = jax.nn.softmax(z, axis=-1)
    size = jnp.sqrt(total(y))[..., None]
    mixed = total(p * u) if transposed else total(jnp.sqrt(p) * u)
    return size * (jnp.sqrt(p) * u - (jnp.sqrt(p) if transposed else p) * mixed[..., None])


softmax_cross_entropy = row(
    pointwise(
        "softmax_cross_entropy",
        lambda z, y: total(y) * jax.nn.logsumexp(z, axis=-1) - total(y * z),
        lambda z, y: total(y)[..., None] * jax.nn.softmax(z, axis=-1) - y,
        of_index=_cross_entropy_of_class,
        root=_root_of_softmax,
    ),
    __name__,
    *INPUTS,
)
"""C = −Σ yᵢ ln pᵢ, p = softmax(z), δ = p − y, or p Σy − y for a y that does not sum to 1.

Source: Bishop, Pattern Recognition and Machine Learning, (4.109).

>>> x, y = jnp.array([[2.0, 0.5]]), jnp.array([0])
>>> cost, delta = backpropagate(identity, softmax_cross_entropy, deltas)((), x, y)
>>> print(np.asarray(cost).round(3), np.asarray(delta).round(3))
0.201 [[-0.182  0.182]]
"""


def _runner_up(z, y):
    """The class that comes nearest to violating the margin, one-hot, and whether it does."""
    margins = z - total(z * y)[..., None] + (1 - y)
    return jax.nn.one_hot(jnp.argmax(margins, axis=-1), z.shape[-1], dtype=z.dtype), jnp.max(margins, axis=-1)


def _hinge_delta(z, y):
    rival, margin = _runner_up(z, y)
    return jnp.where((margin > 0)[..., None], rival - y, 0.0)


multiclass_hinge = row(
    pointwise(
        "multiclass_hinge",
        lambda z, y: jnp.maximum(_runner_up(z, y)[1], 0),
        _hinge_delta,
        lambda z, y: jnp.zeros_like(z),
    ),
    __name__,
    *INPUTS,
)
"""C = maxᵢ (zᵢ − z_y + 1 − yᵢ), at least 0; δ = e_rival − y where the margin is violated.

Source: Crammer and Singer, On the Algorithmic Implementation of Multiclass Kernel-based Vector Machines, 2001.

>>> x, y = jnp.array([[2.0, 0.5]]), jnp.array([1])
>>> cost, delta = backpropagate(identity, multiclass_hinge, deltas)((), x, y)
>>> print(cost, delta)
2.5 [[ 1. -1.]]
"""
