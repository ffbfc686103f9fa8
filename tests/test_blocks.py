"""Blocks of networks, by formula."""

import jax
import jax.numpy as jnp

from jaxnet.models import gated
from tests.agreement import assert_agree, normal, random_like


def test_a_gated_mlp_is_its_formula(x64):
    x = normal(1, (3,)).astype(jnp.float64)
    params = random_like(1, gated(5, 2).init(jax.random.key(0), x))
    ((gate, ()), up), down = params
    expected = down["W"] @ (jax.nn.silu(gate["W"] @ x) * (up["W"] @ x))
    assert_agree(gated(5, 2).forward(params, x)[0], expected)
