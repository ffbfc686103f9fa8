"""Curvature against matrices formed by autodiff: products, diagonals, Kronecker factors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxnet
from jaxnet import conv2d, dense, flatten, per_position, repeat, residual, serial, sigmoid, tanh, tied
from jaxnet.quantities import curvature, kronecker
from tests.agreement import assert_agree, cast, integers, normal, random_like, uniform
from tests.problems import LOSSES

KEY = jax.random.key(0)
cross_entropy, quadratic = jaxnet.softmax_cross_entropy, jaxnet.quadratic
NETWORKS = {
    "dense": (serial(dense(4), tanh, dense(3)), (3,)),
    "conv": (serial(conv2d(2, 2), sigmoid, flatten(), dense(3)), (3, 3, 1)),
    "grouped": (serial(conv2d(2, 2, groups=2), sigmoid, flatten(), dense(3)), (3, 3, 2)),
    "stack": (serial(repeat(residual(serial(dense(3), tanh)), 2), dense(3)), (3,)),
    "tied": (serial(tied(dense(3), tanh, dense(3), where=(0, 2))), (3,)),
    "norm": (serial(dense(4), jaxnet.layer_norm(), dense(3)), (3,)),
    "positions": (serial(per_position(serial(dense(4), tanh)), flatten(), dense(3)), (2, 3)),
    "sequence": (per_position(serial(dense(4), tanh, dense(3))), (2, 3)),
}


def problem(name, batch=3):
    net, shape = NETWORKS[name]
    params = random_like(1, jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape)))
    ys = integers(3, (batch, 2) if name == "sequence" else (batch,), 3)
    return net, *cast((params, normal(2, (batch, *shape))), jnp.float64), ys


def mean_cost(net, loss, params, xs, ys, weights=None):
    def one(x, y, weight):
        return loss.turn((), net.forward(params, x)[0], y, weight, jaxnet.total)[0]

    return jnp.sum(jax.vmap(one)(xs, ys, jaxnet.backprop.mean_weights(loss, ys, weights)))


@partial(jax.jit, static_argnums=(0, 1))
def hessian(net, loss, params, *data):
    flat, tree_of = ravel_pytree(params)
    return jax.hessian(lambda flat: mean_cost(net, loss, tree_of(flat), *data))(flat)


@partial(jax.jit, static_argnums=(0, 1))
def gauss_newton(net, loss, params, xs, ys, weights=None):
    """Σ_x Jᵀ H J, of Jacobians and Hessians formed by autodiff."""
    flat, tree_of = ravel_pytree(params)
    shares = jaxnet.backprop.mean_weights(loss, ys, weights)

    def one(x, y, weight):
        def f(flat):
            return net.forward(tree_of(flat), x)[0]

        out = f(flat)
        J = jax.jacrev(f)(flat).reshape(out.size, -1)
        H = jax.hessian(lambda out: loss.turn((), out, y, weight, jaxnet.total)[0])(out).reshape(out.size, out.size)
        return J.T @ H @ J

    return jax.vmap(one)(xs, ys, shares).sum(0)


def diagonal(matrix, params):
    return ravel_pytree(params)[1](jnp.diag(matrix))


@pytest.mark.parametrize("name", NETWORKS)
def test_gauss_newton_of_every_kind_of_network(name, x64):
    net, params, xs, ys = problem(name)
    v = random_like(5, params)
    weights = uniform(6, (len(xs),), 0.5, 2.0).astype(jnp.float64)

    @jax.jit
    def both(params):
        G = gauss_newton(net, cross_entropy, params, xs, ys, weights)
        exact = curvature.ggn_diagonal(net, cross_entropy)(params, xs, ys, weights=weights)
        Gv = curvature.ggn_product(net, cross_entropy)(params, xs, ys, v, weights=weights)
        V = curvature.ggn_root(net, cross_entropy)(params, xs, ys, weights=weights)
        V = jax.vmap(jax.vmap(lambda tree: ravel_pytree(tree)[0]))(V).reshape(-1, len(G))
        return (exact, Gv, V.T @ V), (diagonal(G, params), ravel_pytree(params)[1](G @ ravel_pytree(v)[0]), G)

    assert_agree(*both(params))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=lambda loss: loss.name)
def test_gauss_newton_of_every_loss(loss, x64):
    net, params, xs, ys = problem("dense")
    net = serial(net, sigmoid)  # probabilities, for the losses that take them
    params = (params, ())
    found = jax.jit(curvature.ggn_diagonal(net, loss))(params, xs, ys)
    assert_agree(found, diagonal(gauss_newton(net, loss, params, xs, ys), params))


@pytest.mark.parametrize("name", ["dense", "norm"])
def test_the_hessian(name, x64):
    net, params, xs, ys = problem(name)
    H, v = hessian(net, cross_entropy, params, xs, ys), random_like(5, params)
    flat, tree_of = ravel_pytree(v)
    assert_agree(jax.jit(curvature.hessian_product(net, cross_entropy))(params, xs, ys, v), tree_of(H @ flat))
    assert_agree(jax.jit(curvature.hessian_diagonal(net, cross_entropy))(params, xs, ys), diagonal(H, params))
    drawn = jax.jit(curvature.hessian_diagonal(net, cross_entropy, samples=4000))
    estimate = drawn(params, xs, ys, key=jax.random.key(1))
    spread = jnp.sqrt(jnp.sum(H**2, 1) - jnp.diag(H) ** 2) / np.sqrt(4000)  # of the mean, by its formula
    assert jnp.all(jnp.abs(ravel_pytree(estimate)[0] - jnp.diag(H)) < 5 * spread + 1e-12)


def test_random_columns_of_the_root_are_those_of_the_diagonal(x64):
    net, params, xs, ys = problem("dense")
    given = {"key": jax.random.key(4)}
    V = jax.jit(curvature.ggn_root(net, cross_entropy, samples=3))(params, xs, ys, **given)
    squares = jax.tree.map(lambda t: jnp.sum(t**2, (0, 1)), V)
    assert_agree(squares, jax.jit(curvature.ggn_diagonal(net, cross_entropy, samples=3))(params, xs, ys, **given))


@pytest.mark.parametrize("name", ["dense", "sequence"])
def test_random_columns_are_right_on_the_mean(name, x64):
    net, params, xs, ys = problem(name)
    exact = ravel_pytree(jax.jit(curvature.ggn_diagonal(net, cross_entropy))(params, xs, ys))[0]
    estimate = jax.jit(curvature.ggn_diagonal(net, cross_entropy, samples=1))
    found = jax.lax.map(
        lambda key: ravel_pytree(estimate(params, xs, ys, key=key))[0], jax.random.split(jax.random.key(3), 4000)
    )
    assert jnp.all(jnp.abs(found.mean(0) - exact) < 5 * found.std(0) / np.sqrt(4000) + 1e-12)


# ------------------------------------------------------------------------------------------- Kronecker factors


def block_of(net, loss, params, xs, ys, at):
    """The block of G of one parameter."""
    marked = jax.tree_util.tree_map_with_path(
        lambda path, p: jnp.full(p.shape, jax.tree_util.keystr(path) == at), params
    )
    where = np.flatnonzero(ravel_pytree(marked)[0])
    return gauss_newton(net, loss, params, xs, ys)[np.ix_(where, where)]


@pytest.mark.parametrize("at", ["[0]['W']", "[0]['b']", "[2]['W']"])
def test_of_one_example_the_factors_are_the_block(at, x64):
    net, params, xs, ys = problem("dense", batch=1)
    found = jax.jit(kronecker.kronecker(net, cross_entropy, samples=None))(params, xs, ys)
    layer, name = found[int(at[1])], at[5]
    block = layer[name]
    matrix = block.B if block.A is None else jnp.kron(block.B, block.A)
    assert_agree(matrix, block_of(net, cross_entropy, params, xs, ys, at))


def test_where_all_is_linear_the_factors_are_the_block(x64):
    """s does not depend on the example there. Source: Bernacchia, Lengyel and Hennequin, 2018."""
    net = serial(dense(4), dense(3))
    params = cast(random_like(1, jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(3))), jnp.float64)
    xs, ys = cast((normal(2, (5, 3)), normal(3, (5, 3))), jnp.float64)
    found = jax.jit(kronecker.kronecker(net, quadratic, samples=None))(params, xs, ys)
    for i in (0, 1):
        matrix = jnp.kron(found[i]["W"].B, found[i]["W"].A)
        assert_agree(matrix, block_of(net, quadratic, params, xs, ys, f"[{i}]['W']"))


def test_averaged_factors_by_their_recursion(x64):
    """Ḡ of autodiff's Jacobians, averaged layer by layer; the block of W as the mean of J_Wᵀ Ḡ J_W."""
    layers = [dense(4), tanh, dense(2, bias=False), sigmoid, dense(3)]
    net = serial(layers[0], serial(*layers[1:3]), *layers[3:])
    params = random_like(1, jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(3)))
    params, xs = cast((params, normal(2, (5, 3))), jnp.float64)
    ys = integers(3, (5,), 3)

    @jax.jit
    def recursion(params):
        chain, inputs = [params[0], *params[1], *params[2:]], [xs]
        for layer, p in zip(layers, chain, strict=True):
            inputs.append(jaxnet.predict(layer)(p, inputs[-1]))
        out, found = inputs.pop(), []
        G = jax.vmap(lambda z, p: jnp.diag(p) - jnp.outer(p, p))(out, jax.nn.softmax(out)).mean(0)
        for layer, p, x in reversed([*zip(layers, chain, inputs, strict=True)]):
            J_p, J = jax.vmap(jax.jacrev(lambda p, x, layer=layer: layer.forward(p, x)[0], (0, 1)), (None, 0))(p, x)
            flat = jax.tree.map(lambda J: J.reshape(*J.shape[:2], -1), (J_p, J))
            means = jax.tree.map(lambda J, G=G: jnp.einsum("noi,op,npj->ij", J, G, J) / len(J), flat)
            found, G = [means[0], *found], means[1]
        return found

    def matrices(params):
        found = kronecker.kfra(net, cross_entropy)(params, xs, ys)
        return jax.tree.map(
            lambda b: b.B if b.A is None else jnp.kron(b.B, b.A),
            [found[0], *found[1], *found[2:]],
            is_leaf=kronecker.is_block,
        )

    assert_agree(jax.jit(matrices)(params), recursion(params))


def test_averaged_factors_of_one_example_are_the_exact_ones(x64):
    net = serial(conv2d(2, 2), tanh, conv2d(2, 2), sigmoid, flatten(), dense(3))
    params = random_like(1, jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((4, 4, 1))))
    params, xs = cast((params, normal(2, (1, 4, 4, 1))), jnp.float64)
    averaged, exact = kronecker.kfra(net, cross_entropy), kronecker.kronecker(net, cross_entropy, samples=None)
    assert_agree(*jax.jit(lambda *of: (averaged(*of), exact(*of)))(params, xs, jnp.array([1])))


@pytest.mark.parametrize("layer", [jaxnet.layer_norm(), residual(dense(3)), jaxnet.embedding(4, 3)])
def test_averaged_factors_are_of_chains_of_linear_layers(layer):
    xs = jnp.zeros((2, 1), jnp.int32) if layer.maker == "embedding" else jnp.zeros((2, 3))
    net = serial(layer, flatten(), dense(3))
    with pytest.raises(ValueError, match=r"kfra takes .*, got .*: take kronecker"):
        jax.eval_shape(kronecker.kfra(net, cross_entropy), jax.eval_shape(net.init, KEY, xs[0]), xs, jnp.array([0, 1]))


@pytest.mark.parametrize("name", NETWORKS)
def test_lengths_are_the_curvature_along_the_axes(name, x64):
    """The diagonal of Qᵀ G Q, Q all axes: for every kind of network exactly, whatever A and B are."""
    net, params, xs, ys = problem(name)

    @jax.jit
    def both(params):
        axes = kronecker.ekfac(net, cross_entropy, samples=None)(params, xs, ys)
        G, (flat, tree_of) = gauss_newton(net, cross_entropy, params, xs, ys), ravel_pytree(params)

        def turned(v):  # Q v: a unit vector along the axes, in the parameters' own
            return jax.tree.map(lambda a, t: a.turned(t, back=True), axes, tree_of(v), is_leaf=kronecker.is_axes)

        Q = jax.vmap(lambda v: ravel_pytree(turned(v))[0])(jnp.eye(flat.size)).T
        lengths = jax.tree.map(lambda a: a.lengths, axes, is_leaf=kronecker.is_axes)
        solved = kronecker.solve(axes, tree_of(flat), 0.1)
        along = jnp.diag(Q.T @ G @ Q)
        right = jnp.eye(flat.size), along, Q @ ((Q.T @ flat) / (along + 0.1))
        return (Q.T @ Q, ravel_pytree(lengths)[0], ravel_pytree(solved)[0]), right

    for found, right in zip(*both(params), strict=True):
        assert_agree(found, right)


def test_errors():
    loss = jaxnet.heads.linear_cross_entropy(5)
    with pytest.raises(ValueError, match="without parameters that gives a root"):
        curvature.ggn_diagonal(dense(2), loss)
    net, params, xs, ys = problem("dense")
    with pytest.raises(ValueError, match=r"drawn by a key: give key = jax.random.key"):
        curvature.ggn_diagonal(net, cross_entropy, samples=1)(params, xs, ys)
    with pytest.raises(ValueError, match="drawn by a key"):
        curvature.hessian_diagonal(net, cross_entropy, samples=1)(params, xs, ys)
