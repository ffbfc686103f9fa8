"""Combinators: what each promises besides its derivative."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import dense, dropout, parallel, per_position, remat, repeat, residual, serial, sigmoid, tanh, tied, total
from jaxnet.layer import Static, leaves, on_leaves
from tests.implementations import one_of_each
from tests.problems import COMBINATORS, MODELS


def test_leaves_are_walked_first_to_last():
    net = serial(dense(4), repeat(residual(serial(dense(4), tanh)), 3), parallel(dense(2), remat(sigmoid)))
    assert [layer.name for layer in leaves(net)] == ["dense 4", "dense 4", "tanh", "dense 2", "sigmoid"]


@pytest.mark.parametrize("problem", one_of_each(COMBINATORS + MODELS), ids=lambda p: p.id)
def test_a_network_rebuilt_of_its_leaves_is_the_same(problem, x64):
    """`on_leaves` gives back the same combination, whatever stands in it."""
    params, xs, _ = problem.inputs(jnp.float64)
    key = None if problem.keys() is None else problem.keys()[0]
    rebuilt = on_leaves(lambda layer: layer, problem.net)
    assert [layer.name for layer in leaves(rebuilt)] == [layer.name for layer in leaves(problem.net)]
    chex.assert_trees_all_equal(
        rebuilt.forward(params, xs[0], key, problem.train)[0], problem.net.forward(params, xs[0], key, problem.train)[0]
    )


def test_repeat_starts_every_block_differently():
    params = repeat(dense(3), 2).init(jax.random.key(0), jnp.zeros(3))
    assert params["W"].shape == (2, 3, 3)
    assert not np.array_equal(params["W"][0], params["W"][1])


def test_tied_layers_hold_the_shared_parameter_once():
    net = tied(dense(3), tanh, dense(3), where=(2, 0))
    params = net.init(jax.random.key(0), jnp.zeros(3))
    assert [sorted(p) for p in params] == [["W", "b"], [], ["b"]]


def test_keys_differ_between_layers_positions_and_times():
    """One mask for two places would be a silent mistake."""
    key, ones = jax.random.key(0), jnp.ones(64)
    net = parallel(dropout(0.5), dropout(0.5), join="concatenate")
    halves = jnp.split(net.forward(((), ()), ones, key, True)[0], 2)
    assert not np.array_equal(*halves)
    positions = per_position(dropout(0.5)).forward((), jnp.ones((2, 64)), key, True)[0]
    assert not np.array_equal(*positions)
    _, masks = repeat(dropout(0.5), 2).forward((), ones, key, True)
    assert not np.array_equal(*masks)


def test_remat_saves_only_its_input():
    net = remat(serial(dense(4), sigmoid, dense(2)))
    params = net.init(jax.random.key(0), jnp.zeros(3))
    _, saved = net.forward(params, jnp.ones(3))
    assert [leaf.shape for leaf in jax.tree.leaves(saved)] == [(3,)]


def test_remat_hides_the_second_forward_pass_from_the_compiler():
    """Outside of loops it would otherwise find that it has the values already, and keep them."""
    net = remat(dense(4))
    params = net.init(jax.random.key(0), jnp.zeros(3))
    back = jax.make_jaxpr(lambda p, x, d: net.backward(p, (x, None, Static(False)), d, total))
    assert "optimization_barrier" in str(back(params, jnp.zeros(3), jnp.zeros(4)))
