"""A network of vectors and one of sequences, with a batch for each, and their mean cost spelled out."""

import jax
import jax.numpy as jnp

from jaxnet import (
    dense,
    dropout,
    ignoring,
    per_position,
    product,
    repeat,
    residual,
    serial,
    sigmoid,
    softmax_cross_entropy,
    tanh,
    total,
    value_and_grad,
)
from tests.agreement import assert_agree, integers, normal, random_like, uniform

cross_entropy = ignoring(softmax_cross_entropy, -1)
VECTOR = serial(dense(4), sigmoid, dropout(0.4), dense(3))
SEQUENCE = serial(per_position(dense(4)), tanh, repeat(residual(per_position(dense(4))), 2), per_position(dense(3)))


def random_params(net, shape, dtype=jnp.float64):
    x = jax.ShapeDtypeStruct(shape, dtype)
    return random_like(1, jax.eval_shape(net.init, jax.random.key(0), x))


def vectors(batch=4, dtype=jnp.float64):
    """Parameters of VECTOR, a batch, and classes."""
    xs = normal(2, (batch, 5)).astype(dtype)
    return random_params(VECTOR, (5,), dtype), xs, integers(3, (batch,), 3)


def sequences(batch=4, dtype=jnp.float64):
    """Parameters of SEQUENCE, a batch of six positions, and classes; −1 does not count."""
    ys = integers(3, (batch, 6), 3)
    ys = jnp.where(uniform(4, ys.shape) < 0.3, -1, ys).at[1].set(-1)
    return random_params(SEQUENCE, (6, 5), dtype), normal(2, (batch, 6, 5)).astype(dtype), ys


def mean_cost(net, loss, params, xs, ys, key=None, train=False, weights=None):
    """Σ w C / Σ w, spelled out: one example after another, each term with its weight."""
    keys = [None] * len(xs) if key is None else jax.random.split(key, len(xs))
    weights = [jnp.ones(())] * len(xs) if weights is None else weights
    costs, n = [], 0.0
    for x, y, k, w in zip(xs, ys, keys, weights, strict=True):
        costs.append(loss.turn((), net.forward(params, x, k, train)[0], y, w, total)[0])
        n += loss.terms(y, w)
    return sum(costs[1:], start=costs[0]) / jnp.asarray(n, xs.dtype)


def assert_gradient(net, loss, params, xs, ys, *, chunks=1, train=False, **options):
    """`value_and_grad` against autodiff of the cost spelled out, both in one compiled program."""

    @jax.jit
    def both(params, xs, ys, options):
        expected = jax.value_and_grad(lambda p: mean_cost(net, loss, p, xs, ys, train=train, **options))(params)
        return expected, value_and_grad(net, loss, chunks=chunks)(params, xs, ys, train=train, **options)

    expected, actual = both(params, xs, ys, options)
    assert_agree(actual, expected)


def loss_of(net, params, x, y):
    """The cross-entropy of one example."""
    return cross_entropy.turn((), net.forward(params, x)[0], y, 1.0, product)[0]


def plain_forward(net):
    """(params, x) -> out, for autodiff."""
    return lambda params, x: net.forward(params, x)[0]
