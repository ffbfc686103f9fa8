"""Pooling: ties, NaN, shapes, bad input."""

from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnet
from jaxnet import (
    average_pool,
    global_average_pool,
    global_max_pool,
    max_pool,
)
from jaxnet.lowering import plain_forms
from tests.agreement import normal


@pytest.mark.parametrize(("window", "stride", "padding"), [(2, 2, "VALID"), (3, 2, "SAME")])
def test_the_winner_on_ties_is_jaxs(window, stride, padding):
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (7, 6, 2)), jnp.float32)
    sizes = {"window_dimensions": (window, window, 1), "window_strides": (stride, stride, 1), "padding": padding}
    expected, theirs = jax.vjp(partial(jax.lax.reduce_window, init_value=-jnp.inf, computation=jax.lax.max, **sizes), x)
    out, ours = jaxnet.vjp(max_pool(window, stride=stride, padding=padding))((), x)
    d_out = normal(1, out.shape)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_allclose(ours(d_out)[1], theirs(d_out)[0], rtol=1e-6)


def test_a_maximum_saves_a_byte_for_each_output_and_passes_on_a_nan():
    x = jnp.arange(16.0).reshape(4, 4, 1).at[0, 0].set(jnp.nan)
    out, (winner, _) = max_pool(2).forward((), x)
    assert winner.dtype == jnp.uint8
    np.testing.assert_array_equal(out[..., 0], [[np.nan, 7], [13, 15]])
    wide = jnp.arange(17.0**2).reshape(17, 17, 1)
    dx = jax.jit(lambda x: jaxnet.vjp(max_pool(17))((), x)[1](jnp.ones((1, 1, 1)))[1])(wide)
    assert dx[16, 16] == 1  # the 289th tap: more than a byte counts


@pytest.mark.parametrize("forms", [plain_forms, nullcontext])
@pytest.mark.parametrize("tap", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_nan_stays_at_its_tap(tap, forms):
    """A NaN wins at whatever tap it stands; a NaN that comes back reaches the winner alone, not 0 · NaN the others."""
    x = jnp.arange(16.0).reshape(4, 4, 1).at[tap].set(jnp.nan)
    with forms():
        out, pullback = jaxnet.vjp(max_pool(2))((), x)
        dx = pullback(jnp.ones((2, 2, 1)).at[0, 0].set(jnp.nan))[1]
    np.testing.assert_array_equal(out[..., 0], [[np.nan, 7], [13, 15]])
    expected = np.zeros((4, 4))
    expected[1::2, 1::2] = 1  # the greatest of a window is its last
    expected[1, 1], expected[tap] = 0, np.nan
    np.testing.assert_array_equal(dx[..., 0], expected)


@pytest.mark.parametrize(
    ("net", "shape", "out"),
    [
        (max_pool(3, stride=2), (7, 8, 1), (3, 3, 1)),
        (max_pool(2), (7, 3), (3, 3)),
    ],
    ids=lambda value: value.name if isinstance(value, jaxnet.Layer) else "",
)
def test_output_shapes(net, shape, out):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert (
        jax.eval_shape(lambda key: net.forward(net.init(key, x), jnp.zeros(shape))[0], jax.random.key(0)).shape == out
    )


@pytest.mark.parametrize(
    ("net", "shape", "message"),
    [
        (max_pool(2), (4,), r"max_pool 2 takes \(\*places, channels\), got shape \(4,\): put it before flatten\(\)"),
        (max_pool((2, 2)), (4, 3), r"max_pool 2×2 takes 2 axes of places and one of channels, got shape \(4, 3\)"),
        (average_pool(3), (2, 5, 1), r"average_pool 3 spans 3×3 places, more than its input has: 2×5"),
        (global_max_pool(), (4,), r"global_max_pool takes \(\*places, channels\)"),
        (global_average_pool(), (), r"global_average_pool takes \(\*places, channels\)"),
    ],
    ids=lambda value: value.name if isinstance(value, jaxnet.Layer) else "",
)
def test_inputs_that_do_not_fit_are_refused_with_the_mend(net, shape, message):
    with pytest.raises(jaxnet.ShapeError, match=message):
        net.init(jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: max_pool(2, padding=2), "max_pool: padding must be below the window's length, 2, got 2"),
        (lambda: max_pool(0), "max_pool: window must be"),
    ],
)
def test_options_that_do_not_hold_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
