"""Every loss: its δ against `jax.grad` of its value, its weights, and the terms that it counts."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnet
from jaxnet.losses import LOSSES
from tests.agreement import assert_agree, assert_as_exact, cast, normal
from tests.implementations import NARROW
from tests.problems import LOSS_PROBLEMS


def turn(loss, x, y, weight):
    """Cost and δ of one example."""
    cost, delta, readings = loss.turn((), x, y, weight, jaxnet.total)
    assert readings == ()
    return cost, delta


def by_autodiff(loss, x, y, weight):
    return jax.value_and_grad(lambda x: turn(loss, x, y, weight)[0])(x)


def batch(of, problem, inputs):
    return jax.vmap(lambda x, y, w: of(problem.loss, x, y, w))(*inputs)


def one_by_one(problem, inputs):
    alone = [turn(problem.loss, *(t[i] for t in inputs)) for i in range(problem.batch)]
    return jax.tree.map(lambda *t: jnp.stack(t), *alone)


@cache
def compiled(problem):
    """By autodiff, by hand under vmap, and by hand one by one, as one program."""
    return jax.jit(
        lambda *inputs: (batch(by_autodiff, problem, inputs), batch(turn, problem, inputs), one_by_one(problem, inputs))
    )


@pytest.mark.parametrize("problem", LOSS_PROBLEMS, ids=lambda p: p.id)
def test_delta_is_the_derivative_of_the_value(problem, x64):
    expected, *actual = compiled(problem)(*problem.inputs(jnp.float64))
    for result in actual:
        assert_agree(result, expected)


@pytest.mark.parametrize("problem", [p for p in LOSS_PROBLEMS if p.batch == 1], ids=lambda p: p.id)
def test_uncompiled_agrees_with_compiled(problem, x64):
    inputs = problem.inputs(jnp.float64)
    assert_agree(one_by_one(problem, inputs), compiled(problem)(*inputs)[2])


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("problem", [p for p in LOSS_PROBLEMS if p.batch > 1], ids=lambda p: p.id)
def test_narrow_dtypes_are_as_exact_as_autodiffs(problem, dtype, x64):
    inputs = problem.inputs(dtype)
    exact = compiled(problem)(*cast(inputs, jnp.float64))[0]
    theirs, *ours = compiled(problem)(*inputs)
    for result in ours:
        assert_as_exact(result, theirs, exact, dtype)


def test_every_loss_has_a_problem():
    assert {p.loss.name for p in LOSS_PROBLEMS} == set(LOSSES)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=lambda loss: loss.name)
def test_an_index_is_its_one_hot_array(loss, x64):
    x = jax.nn.sigmoid(normal(1, (2, 4)).astype(jnp.float64))
    y = jnp.array([3, 0])
    assert_agree(turn(loss, x, y, 0.5), turn(loss, x, jax.nn.one_hot(y, 4), 0.5))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=lambda loss: loss.name)
def test_terms_that_do_not_count_add_nothing(loss, x64):
    x = jax.nn.sigmoid(normal(1, (3, 4)).astype(jnp.float64))
    cost, delta = turn(loss, x, jnp.array([3, -1, 0]), 1.0)
    expected, expected_delta = turn(loss, x[jnp.array([0, 2])], jnp.array([3, 0]), 1.0)
    assert_agree(cost, expected)
    assert_agree(delta[jnp.array([0, 2])], expected_delta)
    np.testing.assert_array_equal(delta[1], 0)
    assert loss.terms(jnp.array([3, -1, 0]), 1.0) == 2
    assert loss.terms(jnp.array([3, -1, 0]), jnp.array([0.5, 7.0, 2.0])) == 2.5
    assert loss.terms(x, 1.0) == 3
    assert loss.terms(x[0], 0.25) == 0.25


@pytest.mark.parametrize("loss", LOSSES.values(), ids=lambda loss: loss.name)
def test_a_weight_for_each_term(loss, x64):
    x, y = jax.nn.sigmoid(normal(1, (3, 4)).astype(jnp.float64)), jnp.array([3, 1, 0])
    weights = jnp.array([0.5, 2.0, 0.0])
    each = [turn(loss, x[i], y[i], weights[i]) for i in range(3)]
    expected = sum(cost for cost, _ in each), jnp.stack([delta for _, delta in each])
    assert_agree(turn(loss, x, y, weights), expected)
