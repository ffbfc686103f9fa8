"""What each example adds: its own gradient and norm, and the trace of every layer."""

import jax
import jax.numpy as jnp
import pytest

import jaxnet
from jaxnet import dense, per_example, serial, sigmoid, squared_norm, trace, value_and_grad
from tests.agreement import assert_agree, normal
from tests.batches import SEQUENCE, VECTOR, cross_entropy, loss_of, random_params, sequences, vectors

# -------------------------------------------------------------------------------------------------------- per example


@pytest.mark.parametrize("case", [(VECTOR, vectors), (SEQUENCE, sequences)], ids=["vector", "sequence"])
def test_per_example(case, x64):
    """Each example's own mean cost over its terms, and its gradient: nothing divided by the batch's size."""
    net, inputs = case
    params, xs, ys = inputs()

    def one(p, x, y):
        cost = loss_of(net, p, x, y)
        n = cross_entropy.terms(y, 1.0)
        return jnp.where(n > 0, cost / jnp.where(n > 0, n, 1.0), 0.0)

    @jax.jit
    def every(*batch):
        expected = jax.vmap(jax.value_and_grad(one), (None, 0, 0))(*batch)
        _, norms = per_example(net, cross_entropy, squared_norm)(*batch)
        return expected, per_example(net, cross_entropy)(*batch), norms

    expected, actual, norms = every(params, xs, ys)
    assert_agree(actual, expected)
    summed = jax.tree.map(lambda t: t.reshape(len(xs), -1).sum(1), norms)
    assert_agree(summed, jax.tree.map(lambda t: (t**2).reshape(len(xs), -1).sum(1), expected[1]))


# -------------------------------------------------------------------------------------------------------------- trace


def test_trace_of_one_example(x64):
    """z, a and δ of every layer, by Nielsen's equations (BP1) to (BP4) written out."""
    net = serial(dense(4), sigmoid, dense(3), sigmoid)
    params, x, y = random_params(net, (5,)), normal(2, (5,)).astype(jnp.float64), jax.nn.one_hot(1, 3)
    z1 = params[0]["W"] @ x + params[0]["b"]
    a1 = jax.nn.sigmoid(z1)
    z2 = params[2]["W"] @ a1 + params[2]["b"]
    a2 = jax.nn.sigmoid(z2)
    da2 = a2 - y
    delta2 = da2 * a2 * (1 - a2)
    da1 = params[2]["W"].T @ delta2
    delta1 = da1 * a1 * (1 - a1)
    traced = trace(net, jaxnet.quadratic)(params, x, y)
    assert [step.layer.value for step in traced.steps] == ["dense 4", "sigmoid", "dense 3", "sigmoid"]
    assert_agree([step.out for step in traced.steps], [z1, a1, z2, a2])
    assert_agree([step.delta for step in traced.steps], [delta1, da1, delta2, da2])
    assert_agree(traced.cost, jnp.sum((a2 - y) ** 2) / 2)
    assert str(traced.steps[0]) == "dense 4: out (4,), δ (4,)"


@pytest.mark.parametrize("case", [(VECTOR, vectors), (SEQUENCE, sequences)], ids=["vector", "sequence"])
def test_trace_of_a_batch_is_the_examples_own(case, x64):
    net, inputs = case
    params, xs, ys = inputs()
    traced = jax.jit(trace(net, cross_entropy))
    whole = traced(params, xs, ys)
    for i in range(len(xs)):
        assert_agree(jax.tree.map(lambda t, i=i: t[i], whole), traced(params, xs[i], ys[i]))


def test_trace_with_dropout_is_what_the_gradient_saw(x64):
    params, xs, ys = vectors()

    @jax.jit
    def both(*batch):
        options = {"key": jax.random.key(5), "train": True}
        return trace(VECTOR, cross_entropy)(*batch, **options), value_and_grad(VECTOR, cross_entropy)(*batch, **options)

    traced, (_, grads) = both(params, xs, ys)
    assert_agree(traced.steps[0].delta.mean(0), grads[0]["b"])
    assert traced.steps[2].layer.value == "dropout 0.4"
    assert (traced.steps[2].out == 0).any()
