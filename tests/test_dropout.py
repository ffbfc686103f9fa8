"""Dropout."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import dropout


def test_dropout_keeps_the_mean_and_its_mask_is_new_for_each_example():
    net, xs = dropout(0.25), jnp.ones((4, 5000))
    keys = jax.random.split(jax.random.key(0), 4)
    outs = jax.vmap(lambda x, key: net.forward((), x, key, True)[0])(xs, keys)
    np.testing.assert_allclose(outs.mean(1), 1, atol=0.03)
    assert set(np.unique(outs)) == {0.0, np.float32(1 / 0.75)}
    assert not np.array_equal(outs[0], outs[1])
    np.testing.assert_array_equal(net.forward((), xs[0])[0], xs[0])
