"""The first NaN: its layer, its way and its examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import batch_norm, dense, quadratic, repeat, serial, softmax_cross_entropy, tanh
from jaxnet.layer import leaf, no_params
from jaxnet.quantities.nonfinite import finite, first_nonfinite

XS, YS = jnp.linspace(-1, 1, 20).reshape(5, 4), jnp.array([0, 1, 2, 0, 1])


def bad(forward=lambda x: x, backward=lambda x, d: d):
    """A layer that passes its input on by `forward`, and its error by `backward`."""

    def ahead(params, x, key=None, train=False):
        return forward(x), x

    return leaf("bad", no_params, ahead, lambda params, x, d: (backward(x, d), ()))


def origin(net, loss, xs, ys, **options):
    params = net.init(jax.random.key(0), xs[0])
    found = jax.jit(lambda *of: finite(net, loss)(*of, **options))(params, xs, ys)
    return first_nonfinite(net, loss, found)


def spoil_third(x, d):
    """The error d, infinite for the third example."""
    return jnp.where(jnp.all(x == XS[2]), d / 0, d)


def test_where_all_is_finite_there_is_none():
    assert origin(serial(dense(3), tanh), quadratic, XS, jnp.ones((5, 3))) is None


@pytest.mark.parametrize("spoiled", [[3], [0, 4]])
def test_an_example_of_its_own_is_named_where_it_enters(spoiled):
    found = origin(serial(tanh, dense(3)), softmax_cross_entropy, XS.at[jnp.array(spoiled), 1].set(jnp.nan), YS)
    assert found.where == "the value of layer 1 of 2 (tanh)"
    assert found.examples.tolist() == spoiled


def test_a_target_shows_at_the_loss():
    ys = jnp.ones((5, 3)).at[1].set(jnp.inf)
    found = origin(dense(3), quadratic, XS, ys)
    assert found.where == "the loss (quadratic)"
    assert found.examples.tolist() == [1]


def test_the_way_back_has_its_layer_and_example():
    found = origin(serial(bad(backward=spoil_third), tanh, dense(3)), softmax_cross_entropy, XS, YS)
    assert found.where == "the backward pass of layer 1 of 3 (bad)"
    assert found.examples.tolist() == [2]


def test_of_the_layers_that_an_error_spoils_the_last_is_named():
    everywhere = bad(backward=lambda x, d: d / 0)
    found = origin(serial(tanh, everywhere, dense(3)), softmax_cross_entropy, XS, YS)
    assert found.where == "the backward pass of layer 2 of 3 (bad)"


def test_the_time_of_a_stack_is_told_not_the_first_layer_of_its_block():
    net = repeat(serial(dense(4, init="lecun_normal"), bad(lambda x: jnp.where(x > 1, jnp.inf, x))), 3)
    params = jax.tree.map(jnp.zeros_like, net.init(jax.random.key(0), XS[0]))
    biased = jax.tree.map(lambda p: p.at[1].set(2.0) if p.ndim == 2 else p, params)  # the second time's bias
    found = first_nonfinite(net, quadratic, finite(net, quadratic)(biased, XS, XS))
    assert found.where == "the value of layer 2 of 2 (bad), time 2 of 3"
    assert len(found.examples) == 5


def test_a_layer_that_couples_the_examples_spoils_all_of_them():
    found = origin(serial(batch_norm(), dense(3)), softmax_cross_entropy, XS.at[3].set(jnp.inf), YS, train=True)
    assert found.where.startswith("the value of layer 1 of 2 (batch_norm")
    np.testing.assert_array_equal(found.examples, np.arange(5))
