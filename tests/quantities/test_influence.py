"""Influence against gradients and matrices written out, and against training without the example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxnet
from jaxnet.quantities import kronecker
from jaxnet.quantities.influence import influence, self_influence
from tests.agreement import assert_agree, normal
from tests.quantities.test_curvature import NETWORKS, problem

LOSS = jaxnet.softmax_cross_entropy


@pytest.mark.parametrize("name", NETWORKS)
def test_against_gradients_and_the_matrix(name, x64):
    net, params, xs, ys = problem(name)
    axes = jax.jit(kronecker.ekfac(net, LOSS, samples=None))(params, xs, ys)
    flat, tree_of = ravel_pytree(params)

    @jax.jit
    def both():
        _, grads = jaxnet.per_example(net, LOSS)(params, xs, ys)
        G = jax.vmap(lambda g: ravel_pytree(g)[0])(grads)
        inverse = jax.vmap(lambda v: ravel_pytree(kronecker.solve(axes, tree_of(v), 0.02))[0])(jnp.eye(flat.size))
        expected = G @ inverse @ G.T
        found = influence(net, LOSS, damping=0.02)(params, axes, xs, ys, xs[:2], ys[:2])
        return (found, self_influence(net, LOSS, damping=0.02)(params, axes, xs, ys)), (
            expected[:2],
            jnp.diag(expected),
        )

    assert_agree(*both())


def test_it_foretells_training_without_an_example(x64):
    """Of one layer with the quadratic cost: there G is the Hessian, and the change of C_q is to first order this."""
    net, key = jaxnet.dense(1, bias=False), jax.random.key(0)
    xs, true = normal(1, (120, 3)).astype(jnp.float64), normal(2, (1, 3)).astype(jnp.float64)
    ys = xs @ true.T + 0.3 * jax.random.normal(key, (120, 1))
    query = normal(5, (1, 3)).astype(jnp.float64), jnp.zeros((1, 1))

    @jax.jit
    def solved(xs, ys):
        return {"W": jnp.linalg.lstsq(xs, ys)[0].T}

    def cost(params):
        return jnp.sum((query[0] @ params["W"].T - query[1]) ** 2) / 2

    params = solved(xs, ys)
    curvature = jax.jit(kronecker.kronecker(net, jaxnet.quadratic, samples=None))(params, xs, ys)
    axes = jax.jit(kronecker.axes)(curvature, params)
    found = jax.jit(influence(net, jaxnet.quadratic, damping=0.0))(params, axes, xs, ys, *query)[0]
    rest = [np.delete(np.arange(120), i) for i in range(120)]
    without = [cost(solved(xs[at], ys[at])) - cost(params) for at in rest]
    assert np.corrcoef(found / len(xs), without)[0, 1] > 0.99
    np.testing.assert_allclose(np.std(found / len(xs)), np.std(without), rtol=0.2)
