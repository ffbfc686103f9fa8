"""Norms: what they refuse, and in which dtype they take their statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnet
from jaxnet import ShapeError


@pytest.mark.parametrize(
    ("net", "shape", "says"),
    [
        (jaxnet.layer_norm(), (), "a last axis to normalise"),
        (jaxnet.group_norm(4), (3, 6), "channels .* that 4 groups divide, got 6"),
    ],
)
def test_norms_refuse_what_they_cannot_normalise(net, shape, says):
    with pytest.raises(ShapeError, match=says):
        net.init(jax.random.key(0), jnp.zeros(shape))


def test_norms_of_other_widths_or_options_are_refused():
    with pytest.raises(ShapeError, match=r"takes gamma of shape \(4,\)"):
        jaxnet.rms_norm().forward({"gamma": jnp.ones(3)}, jnp.zeros(4))
    with pytest.raises(ValueError, match="must be a whole number of at least 1, got 0"):
        jaxnet.group_norm(0)
    with pytest.raises(ValueError, match="epsilon of at least 0"):
        jaxnet.layer_norm(-1e-5)


def test_norms_take_their_statistics_in_float32():
    """300 and 1/8 apart, in bfloat16: their mean in bfloat16 would be off by as much as they differ."""
    x = jnp.tile(jnp.array([300.0, 302.0], jnp.bfloat16), 64)
    out = jaxnet.layer_norm(0.0, bias=False).forward({"gamma": jnp.ones(128, jnp.bfloat16)}, x)[0]
    np.testing.assert_allclose(out.astype(jnp.float32), np.tile([-1.0, 1.0], 64), atol=0.01)
