"""The dense layer: dtypes."""

import jax
import jax.numpy as jnp
import pytest

import jaxnet
from jaxnet import dense
from tests.agreement import assert_agree, cast, normal


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
