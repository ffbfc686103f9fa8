"""How parameters begin."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import dense
from jaxnet.layers import INITIALIZERS, Initializer, pinned


@pytest.mark.parametrize("name", INITIALIZERS)
def test_initializers(name):
    """Shape and dtype of the parameters, and their spread: the variance that the name promises."""
    params = dense(300, init=name).init(jax.random.key(0), jnp.zeros(200))
    assert {k: (p.shape, p.dtype) for k, p in params.items()} == {
        "W": ((300, 200), jnp.float32),
        "b": ((300,), jnp.float32),
    }
    variance = {"lecun": 1 / 200, "he": 2 / 200, "glorot": 2 / 500, "orthogonal": 1 / 300, "zeros": 0, "nielsen": 1}
    expected = 1 / 200 if name == "nielsen_scaled" else variance[name.split("_")[0]]
    assert float(params["W"].var()) == pytest.approx(expected, rel=0.03)
    assert float(params["b"].var()) == pytest.approx(1 if "nielsen" in name else 0, rel=0.2)


def test_orthogonal_columns_are_orthogonal(x64):
    W = dense(5, init="orthogonal").init(jax.random.key(0), jnp.zeros(3))["W"]
    np.testing.assert_allclose(W.T @ W, np.eye(3), atol=1e-12)


def test_orthogonal_weights_of_several_keys_are_made_one_after_another():
    """As each by itself; and no decomposition is of a batch: several of these at once wait for each other for ever."""
    keys = jax.random.split(jax.random.key(0), 3)

    def begin(key):
        return INITIALIZERS["orthogonal"].W(key, (6, 5), jnp.float32)

    np.testing.assert_array_equal(jax.vmap(begin)(keys), jnp.stack([begin(key) for key in keys]))
    program = str(jax.make_jaxpr(jax.vmap(begin))(keys))
    assert re.findall(r"f32\[([\d,]+)\] = qr\[", program) == ["5,5"]  # R's shape


@pytest.mark.parametrize("name", INITIALIZERS)
def test_initializers_in_half_precision(name):
    W = INITIALIZERS[name].W(jax.random.key(0), (8, 12), jnp.bfloat16)
    assert W.dtype == jnp.bfloat16
    assert jnp.isfinite(W).all()


def test_initializers_of_ones_own():
    values = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    params = dense(3, init=pinned(values)).init(jax.random.key(0), jnp.zeros(2))
    np.testing.assert_array_equal(params["W"], values)
    np.testing.assert_array_equal(params["b"], 0)
    params = dense(3, init=Initializer(pinned(values), pinned([1, 2, 3]))).init(jax.random.key(0), jnp.zeros(2))
    np.testing.assert_array_equal(params["b"], [1, 2, 3])
