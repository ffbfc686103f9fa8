"""Projected gradients and the optimiser in the small space."""

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxnet
from jaxnet import dense, relu, repeat, serial, softmax_cross_entropy, tanh, value_and_grad
from jaxnet.bench.example_gradients import mlp_problem
from jaxnet.quantities.kept_factors import kept, of_function, of_network, ranks
from jaxnet.quantities.projection import (
    channel_scaled,
    leading_projections,
    low_rank,
    projected,
    projected_gradient,
    random_projections,
)
from tests.agreement import assert_agree, cast, integers, normal

NET = serial(repeat(serial(dense(6), tanh), 2), dense(3))
XS, YS = normal(1, (5, 6)), integers(2, (5,), 3)


def setting(net=NET, xs=XS, ys=YS, rank=2):
    """Parameters, the backward pass, the parameters' ranks inside their layers, and random projections."""
    params, backward = net.init(jax.random.key(0), xs[0]), of_network(net, softmax_cross_entropy)
    axes = ranks(jax.eval_shape(backward(kept), params, xs, ys)[1])
    return params, backward, axes, random_projections(jax.random.key(1), params, axes, rank)


def test_projected_by_svd_and_by_chance(x64):
    params, backward, axes, P = cast_arrays(setting())
    xs = XS.astype(jnp.float64)
    _, grads = value_and_grad(NET, softmax_cross_entropy)(params, xs, YS)
    leading = leading_projections(grads, axes, 2)
    assert leading[0][0]["W"].shape == P[0][0]["W"].shape == (2, 6, 2)
    assert leading[0][0]["b"] is None
    for projections in (P, leading):
        _, found = projected_gradient(backward)(params, projections, xs, YS)
        W = jnp.einsum("tor,toi->tri", projections[0][0]["W"], grads[0][0]["W"])
        assert_agree(found[0][0], {"W": W, "b": grads[0][0]["b"]})
        assert_agree(found[1]["W"], projections[1]["W"].T @ grads[1]["W"])


def cast_arrays(setting):
    params, backward, axes, P = setting
    params, P = cast((params, P), jnp.float64)
    return params, backward, axes, P


def test_each_example_by_itself_for_storage(x64):
    params, backward, _, P = cast_arrays(setting())
    xs = XS.astype(jnp.float64)
    _, factors = backward(kept)(params, xs, YS)
    each = projected(factors, params, P, summed=False)
    assert_agree(jax.tree.map(lambda t: t.sum(0), each), projected(factors, params, P))
    assert each[0][0]["W"].shape == (5, 2, 2, 6)


def test_projections_keep_a_gradient_on_the_mean():
    """E[P Pᵀ] = 1."""
    params = {"W": jnp.zeros((4, 3))}
    keys = jax.random.split(jax.random.key(0), 4000)
    P = jax.vmap(lambda key: random_projections(key, params, {"W": 2}, 2)["W"])(keys)
    assert jnp.abs(jnp.einsum("kor,kpr->op", P, P) / 4000 - jnp.eye(4)).max() < 0.08


def test_with_orthogonal_projections_of_full_rank_it_is_the_optimiser_itself(x64):
    params, backward, _, _ = cast_arrays(setting())
    xs = XS.astype(jnp.float64)
    whole = ({"W": jnp.stack([jnp.eye(6)] * 2), "b": None}, ()), {"W": jnp.eye(3), "b": None}
    _, grads = value_and_grad(NET, softmax_cross_entropy)(params, xs, YS)
    for inner in (optax.sgd(0.1, momentum=0.9), optax.sgd(0.1)):
        optimizer = low_rank(inner, whole)
        _, small = projected_gradient(backward)(params, whole, xs, YS)
        found, _ = optimizer.update(small, optimizer.init(params), params)
        right, _ = inner.update(grads, inner.init(params), params)
        assert_agree(found, right)


def test_it_trains_and_its_moments_are_small():
    net = serial(dense(32), relu, dense(3))
    params, backward, _, P = setting(net, rank=4)
    with jax.numpy_dtype_promotion("standard"):
        optimizer = low_rank(optax.adam(0.02), P)
        state = optimizer.init(params)
        assert state.inner[0].mu[0]["W"].shape == (4, 6)
        step = jax.jit(lambda params, P: projected_gradient(backward)(params, P, XS, YS))
        first = step(params, P)[0]
        for _ in range(60):
            _, small = step(params, state.projections)
            updates, state = optimizer.update(small, state, params)
            params = optax.apply_updates(params, updates)
    assert step(params, P)[0] < first / 5


def test_an_update_needs_the_parameters():
    optimizer = low_rank(optax.sgd(0.1), {"W": None})
    state = optimizer.init({"W": jnp.ones(2)})
    with pytest.raises(ValueError, match="call update"):
        optimizer.update({"W": jnp.ones(2)}, state)


def test_operations_and_memory():
    """2048-2048-2048-10, batch 256, rank 16: at most 0.65 of a plain gradient's operations, 1/50 of its gradients."""
    net, params, xs, ys = mlp_problem((2048, 2048, 2048, 10))
    backward = of_network(net, softmax_cross_entropy)
    P = random_projections(jax.random.key(3), params, ranks(jax.eval_shape(backward(kept), params, xs, ys)[1]), 16)
    with jaxnet.lowering.plain_forms():
        ours = jax.jit(projected_gradient(backward)).lower(params, P, xs, ys)
        plain = jax.jit(value_and_grad(net, softmax_cross_entropy)).lower(params, xs, ys)
        assert ours.cost_analysis()["flops"] <= 0.65 * plain.cost_analysis()["flops"]
        ours, plain = ours.compile().memory_analysis(), plain.compile().memory_analysis()
    assert ours.output_size_in_bytes <= plain.output_size_in_bytes / 50
    assert ours.temp_size_in_bytes <= plain.output_size_in_bytes / 2


def test_of_any_function(x64):
    """A tied embedding: rows, and the transposed matrix."""

    def cost(p, tokens):
        logits = jnp.tanh(p[tokens]) @ p.T
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(4), tokens])

    W, P = cast((normal(1, (7, 3)), normal(2, (7, 2))), jnp.float64)
    tokens = integers(3, (5, 4), 7)
    _, found = projected_gradient(of_function(cost))(W, P, tokens)
    right = P.T @ jax.grad(lambda W: jax.vmap(cost, (None, 0))(W, tokens).mean())(W)
    assert_agree(found, right)


def test_channels_are_scaled_as_adam_scales_those_of_the_small_gradient(x64):
    P = {"W": normal(1, (2, 5, 3)).astype(float), "b": None}  # a stack of two
    first, second = ({"W": normal(i, (2, 5, 2, 2)).astype(float), "b": normal(i, (2, 5)).astype(float)} for i in (2, 3))
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam relies on it
        optimizer, adam = channel_scaled(optax.scale_by_adam(), P), optax.scale_by_adam()
        _, state = optimizer.update(first, optimizer.init(first))
        assert state.inner.mu["W"].shape == (2, 3, 4)
        found, _ = optimizer.update(second, state)
        for i in range(2):
            small = [P["W"][i].T @ g["W"][i].reshape(5, 4) for g in (first, second)]
            _, own = adam.update(small[0], adam.init(small[0]))
            share = jnp.linalg.norm(adam.update(small[1], own)[0], axis=0) / jnp.linalg.norm(small[1], axis=0)
            assert_agree(found["W"][i], second["W"][i] * jnp.broadcast_to(share.reshape(1, 2, 2), (5, 2, 2)), 1e-6)
        _, own = adam.update(first["b"], adam.init(first["b"]))
        assert_agree(found["b"], adam.update(second["b"], own)[0], 1e-6)
