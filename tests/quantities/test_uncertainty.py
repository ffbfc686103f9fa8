"""Laplace's approximation against brute force, and against Bayesian linear regression."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxnet
from jaxnet import dense, repeat, serial, tanh
from jaxnet.quantities.kronecker import axes, ekfac, is_axes, kronecker, solve
from jaxnet.quantities.uncertainty import laplace, probabilities
from tests.agreement import assert_agree, cast, integers, normal, random_like

NET, LOSS = serial(dense(3), repeat(serial(dense(3), tanh), 2), dense(3)), jaxnet.softmax_cross_entropy
XS, YS = normal(2, (6, 4)), integers(3, (6,), 3)


@pytest.mark.parametrize("last", [False, True])
def test_against_brute_force(last, x64):
    """Σ as a matrix, a column at a time; J by autodiff."""
    params = cast(random_like(1, jax.eval_shape(NET.init, jax.random.key(0), jnp.zeros(4))), jnp.float64)
    xs = cast(XS, jnp.float64)
    found = jax.jit(ekfac(NET, LOSS, samples=None))(params, xs, YS)
    only = {"only": lambda path: path.startswith("[2]")} if last else {}
    mean, covariance = jax.jit(laplace(NET, examples=50, precision=0.3, **only))(params, found, xs)
    flat, tree = ravel_pytree(params)
    scaled = jax.tree.map(lambda own: replace(own, lengths=50 * own.lengths), found, is_leaf=is_axes)
    Sigma = jax.vmap(lambda u: ravel_pytree(solve(scaled, tree(u), 0.3))[0])(jnp.eye(flat.size))
    if last:
        chosen = ravel_pytree((jax.tree.map(jnp.zeros_like, params[:2]), jax.tree.map(jnp.ones_like, params[2])))[0]
        Sigma = Sigma * jnp.outer(chosen, chosen)
    J = jax.jit(jax.vmap(jax.jacrev(lambda p, x: NET.forward(tree(p), x)[0]), (None, 0)))(flat, xs)
    assert_agree(mean, jax.vmap(lambda x: NET.forward(params, x)[0])(xs))
    assert_agree(covariance, J @ Sigma[None] @ J.mT, 1e-9)


def test_of_a_linear_layer_it_is_bayesian_regression(x64):
    """There A ⊗ 1 is the Hessian: the variance of an output is xᵀ (Σ x xᵀ + τ)⁻¹ x."""
    net, xs, ys = dense(2, bias=False), normal(1, (8, 3)).astype(jnp.float64), normal(2, (8, 2)).astype(jnp.float64)
    params = {"W": jnp.zeros((2, 3))}
    curvature = axes(kronecker(net, jaxnet.quadratic, samples=None)(params, xs, ys), params)
    _, covariance = laplace(net, examples=8, precision=0.7)(params, curvature, xs[:2])
    for x, found in zip(np.asarray(xs[:2]), covariance, strict=True):
        expected = x @ np.linalg.inv(xs.T @ xs + 0.7 * np.eye(3)) @ x
        np.testing.assert_allclose(found, expected * np.eye(2), atol=1e-12)


def test_probabilities_are_less_sure_the_wider_the_outputs():
    mean, wide = jnp.array([[3.0, 0.0, 0.0]]), jnp.eye(3)[None]
    sure = [float(probabilities(mean, by * wide)[0, 0]) for by in (0.0, 1.0, 100.0)]
    np.testing.assert_allclose(sure[0], jax.nn.softmax(mean)[0, 0])
    assert sure[0] > sure[1] > sure[2] > 1 / 3
