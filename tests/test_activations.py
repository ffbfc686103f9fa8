"""Activations: what is saved, and a row of one's own."""

import jax.numpy as jnp
import numpy as np

import jaxnet
from jaxnet import relu
from jaxnet.layers import Activation, elementwise


def test_relu_saves_one_bit_an_entry():
    _, saved = relu.forward((), jnp.zeros(5))
    assert saved.dtype == jnp.bool_


def test_a_row_of_ones_own():
    """The table's manner is open: `elementwise` of another g and g′."""
    square = elementwise(Activation("square", jnp.square, lambda z, a: 2 * z, "z"))
    out, pullback = jaxnet.vjp(square)((), jnp.array([1.0, -3.0]))
    np.testing.assert_array_equal(out, [1.0, 9.0])
    np.testing.assert_array_equal(pullback(jnp.array([1.0, 10.0]))[1], [2.0, -60.0])
