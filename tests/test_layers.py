"""Every leaf layer against `jax.vjp` of its forward pass, and what its parameters begin as."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnet
from jaxnet import dense, dropout, relu
from jaxnet.layers import INITIALIZERS, Activation, Initializer, elementwise, pinned
from tests.agreement import assert_agree, cast, normal
from tests.implementations import NARROW, check_against_autodiff, check_one_by_one, check_precision, one_of_each
from tests.problems import LAYERS


@pytest.mark.parametrize("problem", LAYERS, ids=lambda p: p.id)
def test_every_implementation_agrees_with_autodiff(problem, x64):
    check_against_autodiff(problem)


@pytest.mark.parametrize("problem", one_of_each(LAYERS), ids=lambda p: p.id)
def test_one_by_one_agrees_with_compiled(problem, x64):
    check_one_by_one(problem)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("problem", one_of_each(LAYERS), ids=lambda p: p.id)
def test_narrow_dtypes_are_as_exact_as_autodiffs(problem, dtype, x64):
    check_precision(problem, dtype)


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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.uint8])
def test_parameters_take_the_dtype_of_a_floating_input(dtype):
    params = dense(3).init(jax.random.key(0), jnp.zeros(2, dtype))
    assert {p.dtype.name for p in jax.tree.leaves(params)} == {"float32" if dtype == jnp.uint8 else dtype.__name__}


def test_bfloat16_weights_take_and_give_float32():
    """Mixed precision: products in W's dtype, everything that passes between layers in the input's."""
    x, d_out = normal(1, (3,)), normal(2, (4,))
    params = cast(dense(4).init(jax.random.key(0), x), jnp.bfloat16) | {"b": normal(3, (4,))}
    out, pullback = jaxnet.vjp(dense(4))(params, x)
    grads, dx = pullback(d_out)
    assert (out.dtype, dx.dtype) == (jnp.float32, jnp.float32)
    assert (grads["W"].dtype, grads["b"].dtype) == (jnp.bfloat16, jnp.float32)
    assert_agree(grads["W"].astype(jnp.float32), jnp.outer(d_out, x), 0.02)


def test_relu_saves_one_bit_an_entry():
    _, saved = relu.forward((), jnp.zeros(5))
    assert saved.dtype == jnp.bool_


def test_dropout_keeps_the_mean_and_its_mask_is_new_for_each_example():
    net, xs = dropout(0.25), jnp.ones((4, 5000))
    keys = jax.random.split(jax.random.key(0), 4)
    outs = jax.vmap(lambda x, key: net.forward((), x, key, True)[0])(xs, keys)
    np.testing.assert_allclose(outs.mean(1), 1, atol=0.03)
    assert set(np.unique(outs)) == {0.0, np.float32(1 / 0.75)}
    assert not np.array_equal(outs[0], outs[1])
    np.testing.assert_array_equal(net.forward((), xs[0])[0], xs[0])


def test_a_row_of_ones_own():
    """The table's manner is open: `elementwise` of another g and g′."""
    square = elementwise(Activation("square", jnp.square, lambda z, a: 2 * z, "z"))
    out, pullback = jaxnet.vjp(square)((), jnp.array([1.0, -3.0]))
    np.testing.assert_array_equal(out, [1.0, 9.0])
    np.testing.assert_array_equal(pullback(jnp.array([1.0, 10.0]))[1], [2.0, -60.0])
