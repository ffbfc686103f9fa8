"""How parameters begin. The scaled ones are `jax.nn.initializers`, told that W is (out, …, in).

Between them a convolution's W has its taps: fan-in is taps · in, fan-out taps · out.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
from jax.nn import initializers as jax_initializers

from jaxnet.lowering.products import accumulated


class Initializer(NamedTuple):
    """How W, (out, in) or (out, *taps, in), and b, (out,), begin: functions `(key, shape, dtype) -> array`."""

    W: Callable
    b: Callable


def _scaled(initializer: Callable) -> Callable:
    return initializer(in_axis=-1, out_axis=0)


def _over_sqrt_fan_in(key, shape, dtype):
    return jax.random.normal(key, shape, dtype) / math.prod(shape[1:]) ** 0.5


def _orthogonal(key, shape, dtype):
    # By a QR decomposition, which there is in float32 and wider alone. Under a vmap (the layers of a stack, seeds) one
    # after another: a batch of them waits in a thread of jaxlib's pool for tasks that it is to run itself, and where
    # as many batches wait as the pool has threads, a program never ends (0.10.2, four batches of two, two cores).
    @jax.custom_batching.sequential_vmap
    def begin(key):
        return jax_initializers.orthogonal(column_axis=0)(key, matrix, accumulated(dtype))

    matrix = shape[0], math.prod(shape[1:])
    return begin(key).astype(dtype).reshape(shape)


zeros = jax_initializers.zeros
normal = jax_initializers.normal(1.0)

INITIALIZERS: dict[str, Initializer] = {
    name: Initializer(W, b)
    for name, W, b in (
        ("lecun_normal", _scaled(jax_initializers.lecun_normal), zeros),
        ("lecun_uniform", _scaled(jax_initializers.lecun_uniform), zeros),
        ("he_normal", _scaled(jax_initializers.he_normal), zeros),
        ("he_uniform", _scaled(jax_initializers.he_uniform), zeros),
        ("glorot_normal", _scaled(jax_initializers.glorot_normal), zeros),
        ("glorot_uniform", _scaled(jax_initializers.glorot_uniform), zeros),
        ("orthogonal", _orthogonal, zeros),
        ("zeros", zeros, zeros),
        ("nielsen", normal, normal),  # Nielsen, Neural Networks and Deep Learning, ch. 1: all N(0, 1)
        ("nielsen_scaled", _over_sqrt_fan_in, normal),  # the same, ch. 3: weights N(0, 1/fan_in), biases N(0, 1)
    )
}
"""The initialisers by name."""


def initializer(of: str | Initializer | Callable) -> Initializer:
    """The initialiser of a name; a function is taken for W's, with b = 0.

    Raises `ValueError` for a name that is not in `INITIALIZERS`.
    """
    if isinstance(of, Initializer):
        return of
    if isinstance(of, Divided):
        return Initializer(of, initializer(of.init).b)
    if callable(of):
        return Initializer(of, zeros)
    if of not in INITIALIZERS:
        raise ValueError(f"an initialiser is one of {', '.join(INITIALIZERS)}, got {of!r}")
    return INITIALIZERS[of]


@dataclass(frozen=True)
class Divided:
    """W of `init` divided by `by`, for branches whose sum should keep its variance."""

    init: str | Initializer | Callable
    by: float

    def __call__(self, key, shape, dtype) -> jax.Array:
        return initializer(self.init).W(key, shape, dtype) / self.by


def pinned(values) -> Callable:
    """An initialiser that gives these very values: for examples with pinned weights.

    Raises `ValueError` where the shape asked for is another.
    """
    return partial(_pinned, values)


def _pinned(values, key, shape, dtype):
    array = jax.numpy.asarray(values, dtype)
    if array.shape != shape:
        raise ValueError(f"pinned values must have the shape {shape} of the parameter, got {array.shape}")
    return array
