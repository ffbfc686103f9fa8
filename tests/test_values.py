"""Forward values against somebody else's, and losses that stay finite wherever they may be asked."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats

import jaxnet
from jaxnet import dense, per_position
from jaxnet.layers import ACTIVATIONS
from jaxnet.losses import huber
from tests.agreement import normal, uniform
from tests.problems import LOSSES

Z = np.concatenate([np.linspace(-8, 8, 81), [-1e4, -50, 50, 1e4]])
BY_SCIPY = {
    "sigmoid": scipy.special.expit,
    "tanh": np.tanh,
    "relu": lambda z: np.maximum(z, 0),
    "softplus": lambda z: np.logaddexp(z, 0),
    "silu": lambda z: z * scipy.special.expit(z),
    "gelu": lambda z: z * scipy.stats.norm.cdf(z),
    "gelu_tanh": lambda z: z / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))),
}
BY_JAX = {name: getattr(jax.nn, name) for name in ("sigmoid", "tanh", "relu", "softplus", "silu")} | {
    "gelu": lambda z: jax.nn.gelu(z, approximate=False),
    "gelu_tanh": lambda z: jax.nn.gelu(z, approximate=True),
}


def value(layer, z):
    return layer.forward((), jnp.asarray(z))[0]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name, x64):
    np.testing.assert_allclose(value(ACTIVATIONS[name], Z), BY_SCIPY[name](Z), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(value(ACTIVATIONS[name], Z), BY_JAX[name](Z), rtol=1e-13, atol=1e-14)


def test_activations_with_options(x64):
    np.testing.assert_allclose(value(jaxnet.leaky_relu(0.2), Z), np.where(Z >= 0, Z, 0.2 * Z), rtol=1e-15)
    np.testing.assert_allclose(value(jaxnet.elu(0.7), Z), np.where(Z > 0, Z, 0.7 * scipy.special.expm1(Z)), rtol=1e-13)
    np.testing.assert_array_equal(value(jaxnet.identity, Z), Z)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layer", [*ACTIVATIONS.values(), jaxnet.elu(), jaxnet.leaky_relu()], ids=lambda g: g.name)
def test_slopes_are_finite(layer, dtype):
    z = jnp.asarray(Z, dtype)
    _, saved = layer.forward((), z)
    slope, _ = layer.backward((), saved, jnp.ones_like(z), jaxnet.total)
    assert slope.dtype == dtype
    assert jnp.isfinite(slope).all()


def test_softmax(x64):
    z = np.array([[1.0, 2.0, 3.0], [1e4, -1e4, 0.0]])
    np.testing.assert_allclose(value(jaxnet.softmax, z), scipy.special.softmax(z, axis=-1), rtol=1e-14)


def test_dense(x64):
    W, b, xs = np.random.default_rng(0).normal(size=(3, 2, 4)), np.array([1.0, -2.0]), np.eye(4)[:3]
    params = {"W": jnp.asarray(W[0]), "b": jnp.asarray(b)}
    np.testing.assert_allclose(dense(2).forward(params, jnp.asarray(xs[0]))[0], W[0] @ xs[0] + b, rtol=1e-15)
    outs, _ = per_position(dense(2)).forward(params, jnp.asarray(xs))
    np.testing.assert_allclose(outs, xs @ W[0].T + b, rtol=1e-15)


# -------------------------------------------------------------------------------------------------------------- losses


def cost(loss, x, y):
    return loss.turn((), jnp.asarray(x), jnp.asarray(y), 1.0, jaxnet.total)[0]


def binary_by_scipy(a, y):
    return -np.sum(scipy.special.xlogy(y, a) + scipy.special.xlog1py(1 - y, -a))


def hinge_by_optax(z, y):
    return optax.losses.multiclass_hinge_loss(z, jnp.argmax(y))


# What another library says of one example; ours are sums over the features where Nielsen's are, else means.
BY_OTHERS = {
    "quadratic": lambda a, y: optax.losses.l2_loss(a, y).sum(),
    "mean_squared_error": lambda a, y: optax.losses.squared_error(a, y).mean(),
    "mean_absolute_error": lambda a, y: np.abs(a - y).mean(),
    "huber": lambda a, y: scipy.special.huber(1.0, np.asarray(a - y)).mean(),
    "binary_cross_entropy": binary_by_scipy,
    "binary_cross_entropy_on_logits": lambda z, y: optax.losses.sigmoid_binary_cross_entropy(z, y).sum(),
    "softmax_cross_entropy": optax.losses.safe_softmax_cross_entropy,
    "multiclass_hinge": hinge_by_optax,
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_of_a_class(name, x64):
    for seed in range(3):
        x = uniform(seed, (5,), 0.05, 0.95) if name == "binary_cross_entropy" else normal(seed, (5,), 3.0)
        x = x.astype(jnp.float64)
        y = jax.nn.one_hot(seed, 5)
        np.testing.assert_allclose(cost(LOSSES[name], x, seed), BY_OTHERS[name](x, y), rtol=1e-12)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "multiclass_hinge"])
def test_loss_of_values(name, x64):
    x = uniform(1, (5,), 0.05, 0.95).astype(jnp.float64)
    y = uniform(2, (5,)).astype(jnp.float64)
    np.testing.assert_allclose(cost(LOSSES[name], x, y), BY_OTHERS[name](x, y), rtol=1e-12)


def test_huber_with_a_threshold(x64):
    e = np.array([-3.0, -0.5, 0.0, 0.3, 2.0])
    expected = scipy.special.huber(0.5, e).mean()
    np.testing.assert_allclose(cost(huber(0.5), e, np.zeros(5)), expected, rtol=1e-14)


def test_softmax_cross_entropy_is_an_entropy_at_its_least(x64):
    """Where z = ln y: C is y's own entropy, and δ is zero."""
    y = np.array([0.2, 0.3, 0.5])
    value, delta, _ = jaxnet.softmax_cross_entropy.turn((), jnp.log(y), jnp.asarray(y), 1.0, jaxnet.total)
    np.testing.assert_allclose(value, scipy.stats.entropy(y), rtol=1e-14)
    np.testing.assert_allclose(delta, 0, atol=1e-15)


ON_PROBABILITIES = ["binary_cross_entropy"]
EXTREMES = [0.0, 1e-30, 1e-10, 0.5, 1 - 1e-7, 1.0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_finite(name, dtype, x64):
    """Value and δ for |z| ≤ 1e4 and for probabilities in [0, 1], 0 and 1 included, whatever the target."""
    row = EXTREMES if name in ON_PROBABILITIES else [-1e4, -100.0, -1.0, 0.0, 100.0, 1e4]
    for x in (row, row[::-1], [row[0]] * 6, [row[-1]] * 6):
        for y in (jnp.arange(6), jnp.eye(6, dtype=dtype), jnp.zeros((6, 6), dtype), jnp.ones((6, 6), dtype)):
            xs = jnp.tile(jnp.asarray(x, dtype), (6, 1))
            value, delta, _ = LOSSES[name].turn((), xs, y, 1.0, jaxnet.total)
            assert jnp.isfinite(value), (x, y)
            assert jnp.isfinite(delta).all(), (x, y)
            assert delta.dtype == dtype


@pytest.mark.parametrize("a", [0.0, 1e-12, 1.0])
@pytest.mark.parametrize("y", [0.0, 1.0])
def test_binary_cross_entropy_beyond_its_clip(a, y):
    """δ is the value's derivative there too: the value goes on along its tangent at ε = 1.2e-7."""
    eps = np.float64(jnp.finfo(jnp.float32).eps)
    c = np.clip(a, eps, 1 - eps)
    slope = (c - y) / (c * (1 - c))
    value, delta, _ = jaxnet.binary_cross_entropy.turn((), jnp.array([a]), jnp.array([y]), 1.0, jaxnet.total)
    np.testing.assert_allclose(delta, [slope], rtol=1e-6)
    np.testing.assert_allclose(value, binary_by_scipy(c, y) + slope * (a - c), rtol=1e-5, atol=1e-12)
