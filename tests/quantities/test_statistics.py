"""Quantities of the examples' gradients, against these gradients themselves, for every network of `tests.problems`."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnet
from jaxnet import per_example, serial
from jaxnet.layer import Static
from jaxnet.models import gpt
from jaxnet.quantities.gradient_statistics import (
    gradient_moments,
    gradient_products,
    is_cheap,
    noise_scale,
    tangent_kernel,
)
from jaxnet.quantities.kept_factors import kept, of_function, of_network, ranks
from jaxnet.quantities.privacy import clipped_sum
from jaxnet.quantities.projection import projected_gradient, random_projections
from jaxnet.quantities.sinks import read
from tests.agreement import assert_agree, cast, integers, normal
from tests.implementations import brute_force, one_of_each
from tests.problems import COMBINATORS, REGISTERED, WRITTEN

LINEAR = jaxnet.Loss(
    "linear", lambda _, out, d, weight, read: (weight * jnp.sum(d * out), weight * d, ()), lambda *_: Static(1)
)
"""C = Σ d · out, d the target: δ of the network is the target."""


def has_parameters(problem):
    x = jax.ShapeDtypeStruct(problem.shape, jnp.float32)
    return bool(jax.tree.leaves(jax.eval_shape(problem.net.init, jax.random.key(0), x)))


PROBLEMS = [p for p in one_of_each(WRITTEN + REGISTERED) if p.batch > 1 and has_parameters(p)]
USUAL = {p.id for p in one_of_each(COMBINATORS)}
CLIP = 0.7


def flat(grads):
    """Each example's gradient as a row."""
    return jnp.concatenate([g.reshape(len(g), -1) for g in jax.tree.leaves(grads)], axis=1)


def clipped(rows, bound):
    """Rows no longer than the bound."""
    return rows * jnp.minimum(1, bound / jnp.linalg.norm(rows, axis=1, keepdims=True))


def projected_by_hand(axes, P, grads):
    """PᵀG of the mean gradient, in each stack."""

    def of(axes, P, g):
        g = g.mean(0)
        if P is None:
            return g
        product = partial(jnp.tensordot, axes=(0, 0))
        for _ in range(g.ndim - axes):
            product = jax.vmap(product)
        return product(P, g)

    return jax.tree.map(of, axes, P, grads, is_leaf=lambda node: node is None)


def expected(grads):
    """All quantities of the gradients of the examples, (n, …) each."""
    n = len(jax.tree.leaves(grads)[0])
    rows = flat(grads)
    mean = jax.tree.map(lambda g: g.mean(0), grads)
    second = jax.tree.map(lambda g: (g**2).mean(0), grads)
    covariance = jnp.sum((rows - rows.mean(0, keepdims=True)) ** 2) / (n - 1)
    return {
        "mean": mean,
        "second": second,
        "variance": jax.tree.map(lambda g: g.var(0), grads),
        "products": rows @ rows.T,
        "noise": covariance / (jnp.sum(rows.mean(0) ** 2) - covariance / n),
        "clipped": clipped(rows, CLIP).sum(0),
    }


@pytest.mark.parametrize(
    "problem",
    [pytest.param(p, id=p.id, marks=() if p.id in USUAL else pytest.mark.slow) for p in PROBLEMS],
)
def test_of_every_network(problem, x64):
    params, xs, ds = problem.inputs(jnp.float64)
    options = {"key": problem.key(), "train": problem.train}

    def backward(reading):
        return partial(of_network(problem.net, LINEAR)(reading), **options)

    axes = ranks(jax.eval_shape(backward(kept), params, xs, ds)[1])
    P = random_projections(jax.random.key(3), params, axes, 2)

    @jax.jit
    def run(params, xs, ds):
        _, grads, _, _ = brute_force(problem, params, xs, ds)
        moments = gradient_moments(backward)(params, xs, ds)
        own = partial(per_example, problem.net, LINEAR)
        _, bounded = clipped_sum(own, clip=CLIP)(params, xs, ds, **options)
        found = {
            "mean": moments.mean,
            "second": moments.second,
            "variance": moments.variance,
            "products": gradient_products(backward)(params, xs, ds),
            "noise": noise_scale(backward)(params, xs, ds).whole,
            "clipped": flat(jax.tree.map(lambda g: g[None], bounded))[0],
        }
        found["projected"] = projected_gradient(backward)(params, P, xs, ds)[1]
        return found, expected(grads) | {"projected": projected_by_hand(axes, P, grads)}

    found, right = run(params, xs, ds)
    for name, value in found.items():
        assert_agree(value, right[name], 1e-9)


NET = serial(jaxnet.repeat(serial(jaxnet.dense(3), jaxnet.tanh), 2), jaxnet.layer_norm(), jaxnet.dense(2))


def small(dtype=jnp.float64):
    xs, ys = normal(1, (6, 3)), integers(2, (6,), 2)
    params = NET.init(jax.random.key(0), xs[0])
    return (*cast((jax.tree.map(lambda p: p + normal(9, p.shape, 0.3), params), xs), dtype), ys)


def cost(params, x, y):
    """The network's cost of one example, as a function."""
    return -jax.nn.log_softmax(NET.forward(params, x)[0])[y]


def gradients(params, xs, ys):
    return jax.vmap(jax.grad(cost), (None, 0, 0))(params, xs, ys)


def test_each_layer_clipped_by_itself(x64):
    """The blocks of `repeat` are layers: four in all, each clipped to C/2."""
    params, xs, ys = small()
    own = partial(per_example, NET, jaxnet.softmax_cross_entropy)
    _, found = clipped_sum(own, clip=CLIP, per_layer=True)(params, xs, ys)
    (blocks, _), norm, head = gradients(params, xs, ys)

    def layer(grads):
        rows = clipped(flat(grads), CLIP / 2).sum(0)
        sizes = np.cumsum([math.prod(g.shape[1:]) for g in jax.tree.leaves(grads)])[:-1]
        parts = jnp.split(rows, sizes)
        return jax.tree.unflatten(
            jax.tree.structure(grads),
            [part.reshape(g.shape[1:]) for part, g in zip(parts, jax.tree.leaves(grads), strict=True)],
        )

    by_block = [layer(jax.tree.map(lambda g, i=i: g[:, i], blocks)) for i in range(2)]
    assert_agree(found, ((jax.tree.map(lambda *g: jnp.stack(g), *by_block), ()), layer(norm), layer(head)), 1e-10)
    assert float(jnp.linalg.norm(flat(gradients(params, xs, ys)), axis=1).max()) > CLIP


def test_padding_and_chunks_change_nothing(x64):
    params, xs, ys = small()
    run = clipped_sum(partial(per_example, NET, jaxnet.softmax_cross_entropy), clip=CLIP)
    right = run(params, xs[:4], ys[:4])
    counts = jnp.array([1.0, 1, 1, 1, 0, 0])
    assert_agree(run(params, xs, ys, counts=counts), right)
    in_chunks = clipped_sum(partial(per_example, NET, jaxnet.softmax_cross_entropy), clip=CLIP, chunks=3)
    assert_agree(in_chunks(params, xs, ys, counts=counts), right)


def test_of_a_transformer_two_chunks_take_no_more_memory_than_a_gradient():
    net, loss = gpt(96, 64, 2, 2, 64), jaxnet.softmax_cross_entropy
    tokens = integers(1, (8, 64), 96)
    params = jax.eval_shape(net.init, jax.random.key(0), tokens[0])

    def memory(run):
        return jax.jit(run).lower(params, tokens, tokens).compile().memory_analysis().temp_size_in_bytes

    private = clipped_sum(partial(per_example, net, loss), clip=CLIP, chunks=2)
    assert memory(private) < 1.2 * memory(jaxnet.value_and_grad(net, loss))


def test_any_function(x64):
    """The same network as a function that nothing is known of."""
    params, xs, ys = small()
    ours, theirs = of_network(NET, jaxnet.softmax_cross_entropy), of_function(cost)
    for quantity in (gradient_moments, gradient_products, partial(gradient_products, rows=2), noise_scale):
        assert_agree(quantity(theirs)(params, xs, ys), quantity(ours)(params, xs, ys), 1e-10)
    for per_layer in (False, True):
        _, found = clipped_sum(partial(read, cost), clip=CLIP, per_layer=per_layer)(params, xs, ys)
        assert jax.tree.structure(found) == jax.tree.structure(params)
    _, right = clipped_sum(partial(per_example, NET, jaxnet.softmax_cross_entropy), clip=CLIP)(params, xs, ys)
    _, found = clipped_sum(partial(read, cost), clip=CLIP)(params, xs, ys)
    assert_agree(found, right, 1e-10)


def test_the_tangent_kernel(x64):
    params, xs, _ = small()
    jacobian = jax.vmap(jax.jacrev(lambda p, x: NET.forward(p, x)[0]), (None, 0))(params, xs)
    J = jnp.concatenate([t.reshape(6, 2, -1) for t in jax.tree.leaves(jacobian)], axis=-1)
    right = jnp.einsum("xkp,ylp->xkyl", J, J)
    assert_agree(tangent_kernel(NET)(params, xs), right, 1e-11)
    assert_agree(tangent_kernel(NET, rows=5)(params, xs, xs[:2]), right[:, :, :2], 1e-11)


def test_the_noise_scale_of_the_parameters_that_cost_nothing(x64):
    """Vectors, and matrices used once: here all but what stands in no layer with a sequence."""
    params, xs, ys = small()
    grads = gradients(params, xs, ys)
    vectors = jax.tree.leaves(grads[1])
    found = noise_scale(of_network(NET, jaxnet.softmax_cross_entropy), chosen=lambda _, p: p.ndim == 1)(params, xs, ys)
    rows = flat(vectors)
    assert_agree(
        jnp.stack(jax.tree.leaves(found.covariance[1])).sum(),
        jnp.sum((rows - rows.mean(0, keepdims=True)) ** 2) / 5,
        1e-10,
    )
    assert float(found.covariance[2]["W"]) == 0
    whole = noise_scale(of_network(NET, jaxnet.softmax_cross_entropy), chosen=is_cheap)(params, xs, ys)
    assert_agree(whole, noise_scale(of_network(NET, jaxnet.softmax_cross_entropy))(params, xs, ys), 1e-11)


def test_batch_norm_is_refused():
    net = serial(jaxnet.dense(3), jaxnet.batch_norm())
    params, xs = net.init(jax.random.key(0), jnp.ones(3)), normal(1, (4, 3))
    for run in (gradient_products, noise_scale, gradient_moments):
        with pytest.raises(ValueError, match="batch_norm"):
            run(lambda r: partial(of_network(net, jaxnet.quadratic)(r), train=True))(params, xs, xs)
    with pytest.raises(ValueError, match="batch_norm"):
        clipped_sum(partial(per_example, net, jaxnet.quadratic), clip=1.0)(params, xs, xs, train=True)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        noise_scale(of_network(NET, jaxnet.quadratic))(small(jnp.float32)[0], xs[:1], xs[:1, :2])
