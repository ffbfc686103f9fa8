"""Every loss: its δ against `jax.grad` of its value, its weights, its labels, and the terms that it counts."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnet
from tests.agreement import assert_agree, assert_as_exact, cast, normal
from tests.problems import LOSS_PROBLEMS, LOSSES


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
    inputs = problem.inputs(jnp.float64)
    expected, *actual = compiled(problem)(*inputs)
    actual += [one_by_one(problem, inputs)] if problem.batch == 1 else []  # not compiled
    for result in actual:
        assert_agree(result, expected)


@pytest.mark.parametrize("problem", LOSS_PROBLEMS, ids=lambda p: p.id)
def test_root_of_the_hessian(problem, x64):
    """S Sᵀ is the Hessian of weight · cost, and the transposed one is the transpose."""
    x, y, weight = (t[0] for t in problem.inputs(jnp.float64))

    @jax.jit
    def matrices(x):
        hessian = jax.hessian(lambda x: turn(problem.loss, x, y, weight)[0])(x).reshape(x.size, x.size)
        basis = jnp.eye(x.size).reshape(x.size, *x.shape)

        def matrix(transposed):
            return jax.vmap(lambda u: problem.loss.root(x, y, weight, u, transposed).ravel())(basis).T

        return hessian, matrix(False), matrix(True)

    hessian, S, S_transposed = matrices(x)
    assert_agree(S @ S.T, hessian)
    assert_agree(S_transposed, S.T)


@pytest.mark.parametrize(
    "dtype", [pytest.param(jnp.float32, marks=pytest.mark.slow), jnp.bfloat16], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize("problem", [p for p in LOSS_PROBLEMS if p.batch > 1], ids=lambda p: p.id)
def test_narrow_dtypes_are_as_exact_as_autodiffs(problem, dtype, x64):
    inputs = problem.inputs(dtype)
    exact = compiled(problem)(*cast(inputs, jnp.float64))[0]
    theirs, *ours = compiled(problem)(*inputs)
    for result in ours:
        assert_as_exact(result, theirs, exact, dtype)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=lambda loss: loss.name)
def test_an_index_is_its_one_hot_array(loss, x64):
    x = jax.nn.sigmoid(normal(1, (2, 4)).astype(jnp.float64))
    y = jnp.array([3, 0])
    assert_agree(turn(loss, x, y, 0.5), turn(loss, x, jax.nn.one_hot(y, 4), 0.5))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=lambda loss: loss.name)
def test_terms_that_do_not_count_add_nothing(loss, x64):
    x = jax.nn.sigmoid(normal(1, (3, 4)).astype(jnp.float64))
    ignoring = jaxnet.ignoring(loss, -1)
    cost, delta = turn(ignoring, x, jnp.array([3, -1, 0]), 1.0)
    expected, expected_delta = turn(loss, x[jnp.array([0, 2])], jnp.array([3, 0]), 1.0)
    assert_agree(cost, expected)
    assert_agree(delta[jnp.array([0, 2])], expected_delta)
    np.testing.assert_array_equal(delta[1], 0)
    assert ignoring.terms(jnp.array([3, -1, 0]), 1.0) == 2
    assert ignoring.terms(jnp.array([3, -1, 0]), jnp.array([0.5, 7.0, 2.0])) == 2.5
    assert loss.terms(x, 1.0) == 3
    assert loss.terms(x[0], 0.25) == 0.25


@pytest.mark.parametrize("loss", LOSSES.values(), ids=lambda loss: loss.name)
def test_a_weight_for_each_term(loss, x64):
    x, y = jax.nn.sigmoid(normal(1, (3, 4)).astype(jnp.float64)), jnp.array([3, 1, 0])
    weights = jnp.array([0.5, 2.0, 0.0])
    each = [turn(loss, x[i], y[i], weights[i]) for i in range(3)]
    expected = sum(cost for cost, _ in each), jnp.stack([delta for _, delta in each])
    assert_agree(turn(loss, x, y, weights), expected)


NET = jaxnet.serial(jaxnet.dense(4))
OUTSIDE = (-1, -4, -100, 4)


def labelled(bad):
    """Parameters of NET, a batch of three, and labels of which the second is `bad`."""
    xs = normal(1, (3, 5))
    return NET.init(jax.random.key(0), xs[0]), xs, np.array([1, bad, 3])


def runs(loss):
    """Each way to run a batch through a network and a loss, and where its result has the second example."""
    return {
        "value_and_grad": (jaxnet.value_and_grad(NET, loss), None),
        "chunks": (jaxnet.value_and_grad(NET, loss, chunks=3), None),
        "per_example": (jaxnet.per_example(NET, loss), 1),
        "trace": (jaxnet.trace(NET, loss), 1),
    }


@pytest.mark.parametrize("bad", OUTSIDE)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=lambda loss: loss.name)
def test_a_label_outside_gives_nan_under_jit(loss, bad):
    """In the cost, and in each parameter's gradient that the example reaches; the other examples stay as they were."""
    x = jax.nn.sigmoid(normal(1, (4,)))
    cost, delta = jax.jit(lambda y: turn(loss, x, y, 1.0))(bad)
    assert np.isnan(cost)
    assert np.isnan(delta).all()
    params, xs, ys = labelled(bad)
    value, grads = jax.jit(jaxnet.value_and_grad(NET, loss))(params, xs, ys)
    assert np.isnan(value)
    assert all(np.isnan(g).all() for g in jax.tree.leaves(grads))
    costs, _ = jax.jit(jaxnet.per_example(NET, loss))(params, xs, ys)
    np.testing.assert_array_equal(np.isnan(costs), [False, True, False])


@pytest.mark.parametrize("bad", OUTSIDE)
@pytest.mark.parametrize("way", ["value_and_grad", "chunks", "per_example", "trace"])
def test_a_label_outside_is_an_error_outside_jit(way, bad):
    for loss in LOSSES.values():
        with pytest.raises(
            jaxnet.layer.LabelError, match=rf"example 1: .* go from 0 to 3, got {bad}: .*ignoring\({loss.name}"
        ):
            runs(loss)[way][0](*labelled(bad))
    params, xs, _ = labelled(0)
    with pytest.raises(jaxnet.layer.LabelError, match=f"got {bad}"):
        jaxnet.trace(NET, jaxnet.quadratic)(params, xs[0], np.array(bad))
    with pytest.raises(jaxnet.layer.LabelError, match=f"got {bad}"):
        turn(jaxnet.quadratic, normal(1, (4,)), np.array(bad), 1.0)


def test_a_label_outside_is_found_behind_a_fused_head():
    net = jaxnet.serial(jaxnet.embedding(7, 4), jaxnet.per_position(jaxnet.dense(7)))
    ids = np.zeros((2, 3), np.int32)
    params = net.init(jax.random.key(0), ids[0])
    labels = np.array([[0, 1, 2], [3, 7, 4]])
    with pytest.raises(jaxnet.layer.LabelError, match=r"example 1: .* from 0 to 6, got 7"):
        jaxnet.value_and_grad(*jaxnet.heads.fused_head(net, chunks=2))(params, ids, labels)
    value, _ = jax.jit(jaxnet.value_and_grad(*jaxnet.heads.fused_head(net, chunks=2)))(params, ids, labels)
    assert np.isnan(value)


def test_a_cost_that_is_nan_by_its_parameters_blames_no_label():
    params, xs, ys = labelled(2)
    value, _ = jaxnet.value_and_grad(NET, jaxnet.quadratic)(jax.tree.map(lambda p: p * jnp.nan, params), xs, ys)
    assert np.isnan(value)


def test_an_ignored_label_counts_nowhere(x64):
    """As the batch without it; any other label outside is still an error."""
    loss = jaxnet.ignoring(jaxnet.softmax_cross_entropy)
    params, xs, ys = labelled(-100)
    kept = np.array([0, 2])
    gradient = jaxnet.value_and_grad(NET, loss)
    assert_agree(gradient(params, xs, ys), gradient(params, xs[kept], ys[kept]))
    weights = jnp.array([0.5, 7.0, 2.0])
    assert_agree(gradient(params, xs, ys, weights=weights), gradient(params, xs[kept], ys[kept], weights=weights[kept]))
    with pytest.raises(jaxnet.layer.LabelError, match=r"example 1: .* got -1"):
        gradient(*labelled(-1))
    with pytest.raises(jaxnet.ShapeError, match="takes class labels, got float"):
        gradient(params, xs, jnp.zeros((3, 4)))


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (jnp.zeros(3), ValueError, "weights must not sum to 0"),
        (jnp.ones((3, 1)), jaxnet.ShapeError, r"one number; got shape \(1,\)"),
        (jnp.ones((3, 4)), jaxnet.ShapeError, r"one number; got shape \(4,\)"),
        (jnp.ones(2), jaxnet.ShapeError, r"one for each of 3 examples, got shape \(2,\)"),
        (2.0, jaxnet.ShapeError, r"one for each of 3 examples, got shape \(\)"),
    ],
)
def test_weights_that_do_not_fit(weights, error, message):
    for loss in LOSSES.values():
        with pytest.raises(error, match=message):
            jaxnet.value_and_grad(NET, loss)(*labelled(2), weights=weights)


def test_weights_that_sum_to_nothing_give_nan_under_jit():
    value, grads = jax.jit(jaxnet.value_and_grad(NET, jaxnet.quadratic))(*labelled(2), weights=jnp.zeros(3))
    assert np.isnan(value)
    assert all(np.isnan(g).all() for g in jax.tree.leaves(grads))


def test_weights_of_terms_have_the_terms_shape():
    x = normal(1, (3, 4))
    for weight in (jnp.ones((3, 1)), jnp.ones(4), jnp.ones(1)):
        with pytest.raises(jaxnet.ShapeError, match=r"one for each of its terms, of shape \(3,\)"):
            turn(jaxnet.quadratic, x, jnp.array([1, 2, 3]), weight)
