"""Readings of plain JAX functions, against `vmap(grad)`."""

import jax
import jax.numpy as jnp
import pytest

from jaxnet import pair, product, squared_norm, total
from jaxnet.quantities.kronecker import blocks
from jaxnet.quantities.sinks import coverage, is_trained, read
from tests.agreement import assert_agree, cast, integers, normal, on_device


@pytest.fixture(autouse=True)
def promotion_of_other_people():
    """The models here are written as JAX allows by default."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def in_float64(tree):
    """A tree with its parameters in float64, other leaves (functions, tokens) as they are."""
    return jax.tree.map(lambda t: on_device(t, jnp.float64) if is_trained(t) else t, tree)


def by_path(tree):
    """The arrays of a tree by their paths."""
    with_paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): t for path, t in with_paths}


def check_against_vmap_of_grad(loss, params, *batch, form=False):
    """Costs, gradients, norms and sums in one backward pass, in float64, by the paths of the model."""
    params, batch = in_float64((params, batch))
    paths, structure = jax.tree_util.tree_flatten_with_path(params)
    leaves = [leaf for _, leaf in paths]
    trained = [is_trained(t) for t in leaves]

    def cost(own, *example):
        mine = iter(own)
        return loss(structure.unflatten([next(mine) if of else t for t, of in zip(leaves, trained, strict=True)]),
                    *example)  # fmt: skip

    own = [t for t, of in zip(leaves, trained, strict=True) if of]
    right_costs, grads = jax.jit(jax.vmap(jax.value_and_grad(cost), (None, *(0,) * len(batch))))(own, *batch)
    names = [jax.tree_util.keystr(path) for (path, _), of in zip(paths, trained, strict=True) if of]
    right = dict(zip(names, grads, strict=True))
    reading = pair(product, squared_norm, total)

    @jax.jit
    def run(own, *batch):
        mine = iter(own)
        whole = structure.unflatten([next(mine) if of else t for t, of in zip(leaves, trained, strict=True)])
        costs, readings = read(loss, reading, form=form)(whole, *batch)
        return costs, [by_path(each) for each in readings]

    costs, (each, norms, sums) = run(own, *batch)
    assert_agree(costs, right_costs)
    assert_agree(each, right)
    assert_agree(norms, jax.tree.map(lambda g: jnp.sum(g**2, tuple(range(1, g.ndim))), right), 1e-11)
    assert_agree(sums, jax.tree.map(lambda g: g.sum(0), right))


def arrays(**shapes):
    return {name: normal(i, shape, 0.5) for i, (name, shape) in enumerate(shapes.items(), 1)}


XS, YS = normal(90, (4, 5, 3)), normal(91, (4, 3))


def layers_in_a_scan(p, x, y):
    h, _ = jax.lax.scan(lambda h, p: (h + jnp.tanh(h @ p["W"].T + p["b"]), None), x, {"W": p["W"], "b": p["b"]})
    return jnp.sum((h[0] - y) ** 2)


def one_layer_at_every_step(p, x, y):
    """A recurrence: W and R have a use at each step, b an addition."""
    h, hs = jax.lax.scan(lambda h, x: (jnp.tanh(p["R"] @ h + p["W"] @ x + p["b"]), h), y, x, reverse=True)
    return jnp.sum(h * hs[1])


def shared_by_three(p, x, y):
    """As it is, transposed, and as rows."""
    h = p["E"][jnp.array([1, 0, 1])] @ p["W"]
    return jnp.sum(jnp.tanh(x @ p["W"].T + h[0]) @ p["E"].T) + jnp.sum((p["W"] @ y) ** 2)


def scan_in_a_scan(p, x, y):
    """Outer steps have their own S and share W; inner steps share both."""

    def outer(h, S):
        return jax.lax.scan(lambda h, x: (jnp.tanh(h @ S + x @ p["W"]), None), h, x)[0], None

    h, _ = jax.lax.scan(outer, y, p["S"])
    return jnp.sum(h**2)


def many_heads(p, x, y):
    """A matrix for each head as a batch, and axes in an odd order."""
    h = jnp.einsum("ti,hio->oth", x, p["H"])
    return jnp.sum(jnp.tanh(jnp.einsum("oth,hmo->tm", h, p["O"])) @ y[:2])


def mapped_and_jitted(p, x, y):
    dense = jax.jit(lambda x: jax.checkpoint(lambda W, x: jnp.tanh(W @ x))(p["W"].reshape(3, 3), x) * p["g"])
    return jnp.sum(jax.vmap(dense)(x) @ y) + jnp.sum(dense(dense(y)))


def images(p, x, y):
    x = x[:, :, None] * y
    x = jax.lax.conv_general_dilated(x[None], p["K"], (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x = jnp.moveaxis(jnp.tanh(x), -1, 1)
    x = jax.lax.conv_general_dilated(x, p["L"], (1, 1), [(1, 0), (0, 2)], rhs_dilation=(1, 2), feature_group_count=2)
    return jnp.sum(x**2)


def two_parameters_multiplied(p, x, y):
    """A low-rank update of W: the product of two parameters is covered by no rule, and W by the first."""
    return jnp.sum((x @ (p["W"] + p["A"] @ p["B"]) - y) ** 2)


def branches(p, x, y):
    return jax.lax.cond(x[0, 0] > 0, lambda W: jnp.sum(jnp.tanh(W @ y)), lambda W: jnp.sum(W**2), p["W"])


def carried_through_a_scan(p, x, y):
    (h, _), _ = jax.lax.scan(lambda hW, x: ((jnp.tanh(hW[1] @ hW[0] + x), 0.9 * hW[1]), None), (y, p["W"]), x)
    return jnp.sum(h)


def covered_and_not(p, x, y):
    """One use by factors, one formed: neither counts the other's gradient."""
    return jnp.sum(jnp.tanh(x @ p["W"])) + jnp.sum(jnp.sort(p["W"], axis=0)[0] * y)


COVERED = {
    layers_in_a_scan: arrays(W=(2, 3, 3), b=(2, 3)),
    one_layer_at_every_step: arrays(R=(3, 3), W=(3, 3), b=(3,)),
    shared_by_three: arrays(W=(3, 3), E=(2, 3)),
    scan_in_a_scan: arrays(S=(2, 3, 3), W=(3, 3)),
    many_heads: arrays(H=(2, 3, 4), O=(2, 2, 4)),
    mapped_and_jitted: arrays(W=(9,), g=(3,)),
    images: arrays(K=(3, 2, 3, 4), L=(6, 2, 2, 2)),
}
NOT_COVERED = {
    two_parameters_multiplied: arrays(W=(3, 3), A=(3, 2), B=(2, 3)),
    branches: arrays(W=(3, 3)),
    covered_and_not: arrays(W=(3, 3)),
    carried_through_a_scan: arrays(W=(3, 3)),
}


@pytest.mark.parametrize("loss", COVERED, ids=lambda f: f.__name__)
def test_factors(loss, x64):
    params = COVERED[loss]
    assert all(row.factors for row in coverage(loss)(params, XS[0], YS[0]))
    check_against_vmap_of_grad(loss, params, XS, YS)


@pytest.mark.parametrize("loss", NOT_COVERED, ids=lambda f: f.__name__)
def test_gradients_that_are_formed_where_asked(loss, x64):
    xs, ys = XS, YS
    with pytest.raises(ValueError, match=r"every parameter must be used in a way that a rule covers, \['\w'\]"):
        read(loss, squared_norm)(NOT_COVERED[loss], xs, ys)
    check_against_vmap_of_grad(loss, NOT_COVERED[loss], xs, ys, form=True)


def test_norms_of_a_sum_have_cross_terms(x64):
    """A recurrence's norm is not the sum of its steps' norms."""
    params, x, y = cast((COVERED[one_layer_at_every_step], XS, YS), jnp.float64)
    _, norms = read(one_layer_at_every_step, squared_norm)(params, x, y)
    grads = jax.vmap(jax.grad(one_layer_at_every_step), (None, 0, 0))(params, x, y)
    assert_agree(norms["R"], jnp.sum(grads["R"] ** 2, (1, 2)), 1e-11)


def test_tokens_out_of_range_and_indices_of_two_axes(x64):
    params, ids = arrays(E=(4, 3), W=(3,)), integers(5, (3, 2, 5), 6) - 1

    def loss(p, ids):
        return jnp.sum(jnp.tanh(p["E"].at[ids].get(mode="clip")) @ p["W"])

    def filled(p, ids):
        return jnp.sum(jnp.tanh(p["E"].at[ids].get(mode="fill", fill_value=0.5)) @ p["W"])

    check_against_vmap_of_grad(loss, params, ids)
    check_against_vmap_of_grad(filled, params, ids)


def test_a_shared_product_forms_no_gradient_for_an_example():
    """The norms of a dense layer over a short sequence: no array of W's size for each example."""

    def norms(params, xs):
        return read(lambda p, x: jnp.sum(jnp.tanh(x @ p)), squared_norm)(params, xs)[1]

    assert "5,60,70" not in str(jax.make_jaxpr(norms)(jnp.ones((60, 70)), jnp.ones((5, 3, 60))))


def test_weights_multiply_costs():
    def loss(p, x):
        return jnp.sum(jnp.tanh(p @ x))

    params, xs = normal(1, (3, 4)), normal(2, (5, 4))
    _, mean = read(loss, total)(params, xs, weights=jnp.full(5, 1 / 5))
    right = jax.grad(lambda p: jax.vmap(loss, (None, 0))(p, xs).mean())(params)
    assert_agree(mean, right, 1e-6)


def test_a_loss_that_couples_the_examples_is_refused():
    def loss(p, x):
        return jnp.sum(p * (x - jax.lax.pmean(x, "batch")))

    with pytest.raises(ValueError, match="an example's own gradient must not depend on the other examples"):
        read(loss, squared_norm)(jnp.ones(3), jnp.ones((4, 3)))


def test_a_loss_is_a_number():
    with pytest.raises(ValueError, match=r"the loss of one example must be a number, got \(3,\)"):
        read(lambda p, x: p * x, squared_norm)(jnp.ones(3), jnp.ones((4, 3)))


def test_a_loss_of_a_batch_is_told():
    def loss(p, xs, ys):
        return jnp.mean(jax.vmap(lambda x, y: (p @ x - y) ** 2)(xs, ys))

    with pytest.raises(ValueError, match=r"the cost of one example, here of the shapes \(3,\), \(\), but it raises"):
        read(loss, squared_norm)(jnp.ones(3), jnp.ones((4, 3)), jnp.ones(4))


def test_rows_by_one_number_and_the_first_rows(x64):
    def loss(p, i, x):
        return jnp.sum(jnp.tanh(p["E"][i] * x) @ p["E"][:2].T) + jnp.sum(jnp.sin(p["P"][1:3] + x))

    assert all(row.factors for row in coverage(loss)(arrays(E=(4, 3), P=(4, 3)), jnp.array(1), YS[0]))
    check_against_vmap_of_grad(loss, arrays(E=(4, 3), P=(4, 3)), integers(1, (4,), 4), YS)


@pytest.mark.parametrize("transposed", [False, True])
def test_kronecker_factors_of_any_function(transposed, x64):
    """Σ a aᵀ and Σ δ δᵀ of a matrix at positions, and of a stack in a scan; δ by zeros that are added by hand."""

    def run(params, zeros, x):
        first = params["first"].T if transposed else params["first"]
        z = x @ first.T + zeros[0]

        def layer(h, own):
            W, zero = own
            return jnp.tanh(h @ W.T + zero), h

        h, inputs = jax.lax.scan(layer, jnp.tanh(z), (params["stack"], zeros[1]))
        return jnp.sum(jnp.sin(h + params["b"]) ** 2), (x, inputs)

    params, xs = arrays(first=(4, 3), stack=(2, 4, 4), b=(4,)), normal(5, (6, 5, 3)).astype(float)
    params = {name: p.astype(float) for name, p in params.items()}
    params["first"] = params["first"].T if transposed else params["first"]
    zeros = jnp.zeros((5, 4)), jnp.zeros((2, 5, 4))
    deltas, inputs = jax.vmap(lambda x: jax.grad(run, 1, has_aux=True)(params, zeros, x))(xs)
    _, found = jax.jit(read(lambda p, x: run(p, zeros, x)[0], blocks))(params, xs)
    for name, delta, a in zip(("first", "stack"), deltas, inputs, strict=True):
        assert_agree(found[name].B, jnp.einsum("n...to,n...tp->...op", delta, delta))
        assert_agree(found[name].A, jnp.einsum("n...ti,n...tj->...ij", a, a) / 5)
    g = jax.vmap(lambda x: jax.grad(lambda p: run(p, zeros, x)[0])(params)["b"])(xs)
    assert_agree(found["b"].B, g.T @ g)
