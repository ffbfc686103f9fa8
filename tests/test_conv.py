"""Convolution: the loop over examples, sharded batches, dtypes, shapes, bad input."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

import jaxnet
from jaxnet import (
    conv1d,
    conv2d,
    dense,
    flatten,
    max_pool,
    pair,
    per_example,
    product,
    relu,
    serial,
    softmax_cross_entropy,
    squared_norm,
    value_and_grad,
)
from jaxnet.layers import conv_transpose2d
from jaxnet.lowering import conv as patches
from jaxnet.lowering.chunks import sum_over_chunks
from tests.agreement import assert_agree, cast, normal
from tests.test_sharding import assert_close, by_autodiff, exchanges, over

NET = serial(conv2d(3, 3, padding="SAME"), relu, max_pool(2), conv2d(4, 2, groups=1), flatten(), dense(5))


@pytest.fixture
def one_at_a_time(monkeypatch):
    """Kernels' gradients go through the examples one after another, however small these are."""
    monkeypatch.setattr(patches, "ROWS", 1)


def images(n: int = 5, dtype=jnp.float64):
    """Parameters of NET, pictures and labels."""
    xs = normal(1, (n, 6, 6, 2)).astype(dtype)
    return NET.init(jax.random.key(0), xs[0]), xs, jnp.arange(n) % 5


@pytest.mark.parametrize("size", [1, 2, 3, 7, 9])
def test_a_loop_over_examples_sums_all_of_them(size, x64):
    left, right = normal(1, (7, 3)), normal(2, (7, 2))
    got = sum_over_chunks(lambda a, b: {"outer": a.T @ b, "count": jnp.ones(()) * len(a)}, (left, right), size)
    assert_agree(got, {"outer": left.T @ right, "count": jnp.full((), 7.0)}, 1e-6)


def test_norms_seeds_and_cross_terms(one_at_a_time, x64):
    """Each example's norm from the patches, without its gradient; and a batch under a further vmap, over seeds."""
    params, xs, ys = images()
    _, (products, norms) = jax.jit(per_example(NET, softmax_cross_entropy, pair(product, squared_norm)))(params, xs, ys)
    assert_agree(norms, jax.tree.map(lambda g: jnp.sum(g.reshape(len(g), -1) ** 2, axis=1), products))

    seeds = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
    gradient = value_and_grad(NET, softmax_cross_entropy)
    _, grads = jax.jit(jax.vmap(gradient, (0, None, None)))(seeds, xs, ys)
    assert_agree(grads, jax.jit(jax.vmap(by_autodiff(NET), (0, None, None)))(seeds, xs, ys)[1])


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_a_sharded_batch_stays_where_it_lies(kind, one_at_a_time):
    """As many exchanges as autodiff's: one, and the batch is not gathered for the loop over examples."""
    params, xs, ys = images(32, jnp.float32)
    gradient = value_and_grad(NET, softmax_cross_entropy)
    expected = jax.device_get(jax.jit(gradient)(params, xs, ys))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        sharded = over(mesh, params), over(mesh, xs, "data"), over(mesh, ys, "data")
        ours, theirs = (jax.jit(f).lower(*sharded).compile() for f in (gradient, by_autodiff(NET)))
        assert exchanges(ours) == exchanges(theirs) == {"all-reduce": 1}
        assert_close(jax.device_get(ours(*sharded)), expected)


def test_bfloat16_kernels_take_and_give_float32():
    """Mixed precision: products in W's dtype, everything that passes between layers in the input's."""
    net, x = conv2d(3, 3, padding="SAME"), normal(1, (4, 4, 2))
    exact = net.init(jax.random.key(0), x)
    params = exact | {"W": cast(exact["W"], jnp.bfloat16)}
    out, pullback = jaxnet.vjp(net)(params, x)
    grads, dx = pullback(out)
    assert (out.dtype, dx.dtype, grads["W"].dtype) == (jnp.float32, jnp.float32, jnp.bfloat16)
    exact_out, exact_pullback = jaxnet.vjp(net)(exact, x)
    exact_grads, exact_dx = exact_pullback(out)
    assert_agree((out, dx, grads["W"].astype(jnp.float32)), (exact_out, exact_dx, exact_grads["W"]), 0.02)


@pytest.mark.parametrize(
    ("init", "variance"),
    [
        ("he_normal", 2 / 75),
        ("glorot_uniform", 2 / (75 + 25 * 400)),
        ("nielsen_scaled", 1 / 75),
        ("orthogonal", 1 / 400),
    ],
)
def test_a_kernel_begins_as_the_matrix_of_its_patches(init, variance):
    params = conv2d(400, 5, init=init).init(jax.random.key(0), jnp.zeros((8, 8, 3)))
    assert {name: p.shape for name, p in params.items()} == {"W": (400, 5, 5, 3), "b": (400,)}
    assert float(params["W"].var()) == pytest.approx(variance, rel=0.03)


@pytest.mark.parametrize(
    ("net", "shape", "out"),
    [
        (conv2d(3, 3, stride=2, padding="SAME"), (7, 8, 1), (4, 4, 3)),
        (conv2d(3, (3, 1), padding=((1, -1), (2, 0))), (5, 5, 1), (3, 7, 3)),
        (conv1d(3, 2, dilation=3), (8, 1), (5, 3)),
        (conv_transpose2d(3, 3, stride=2), (4, 4, 1), (9, 9, 3)),
        (conv_transpose2d(3, 2, stride=3, padding="SAME"), (4, 5, 1), (12, 15, 3)),
    ],
    ids=lambda value: value.name if isinstance(value, jaxnet.Layer) else "",
)
def test_output_shapes(net, shape, out):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert (
        jax.eval_shape(lambda key: net.forward(net.init(key, x), jnp.zeros(shape))[0], jax.random.key(0)).shape == out
    )


@pytest.mark.parametrize(
    ("net", "shape", "message"),
    [
        (
            conv2d(20, 5),
            (28, 28),
            r"conv2d 20@5×5 takes an image .* got shape \(28, 28\): put reshape\(28, 28, 1\) before",
        ),
        (conv2d(20, 5), (784,), r"got shape \(784,\): put reshape\(28, 28, 1\) before it"),
        (conv2d(20, 5), (783,), r"put reshape\(height, width, channels\) before it"),
        (conv1d(4, 3), (9,), r"conv1d 4@3 takes a sequence \(time, channels\), got shape \(9,\): put reshape\(9, 1\)"),
        (conv2d(4, 3, groups=2), (5, 5, 3), r"takes channels that its 2 groups divide, got 3 in \(5, 5, 3\)"),
        (conv2d(4, 5), (4, 9, 1), r"conv2d 4@5×5 spans 5×5 places, more than its input has: 4×9; take a smaller"),
        (conv2d(4, 5, padding=((0, 0), (1, 1))), (4, 2, 1), r"its input has: 4×2, 4×4 with its padding"),
        (serial(conv2d(4, 3), conv2d(4, 4)), (5, 5, 1), r"layer 2 of 2: conv2d 4@4×4 spans 4×4 places"),
    ],
    ids=lambda value: value.name if isinstance(value, jaxnet.Layer) else "",
)
def test_inputs_that_do_not_fit_are_refused_with_the_mend(net, shape, message):
    with pytest.raises(jaxnet.ShapeError, match=message):
        net.init(jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: conv2d(4, 0), "conv2d: kernel must be a whole number of at least 1, or 2 of them, got 0"),
        (lambda: conv2d(4, (3, 3, 3)), r"conv2d: kernel must be .* got \(3, 3, 3\)"),
        (lambda: conv2d(4, 3, stride=-1), "conv2d: stride must be"),
        (lambda: conv2d(4, 3, groups=3), "conv2d: groups must divide its channels, got 3 groups of 4 channels"),
        (
            lambda: conv2d(4, 3, padding="same"),
            r'padding must be "SAME", "VALID", a number, or 2 pairs .* got \'same\'',
        ),
        (lambda: conv1d(4, 3, padding=((1, 1), (1, 1))), "conv1d: padding must be .* 1 pairs"),
    ],
)
def test_options_that_do_not_hold_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_parameters_of_another_input_are_refused():
    params = conv2d(4, 3).init(jax.random.key(0), jnp.zeros((5, 5, 3)))
    with pytest.raises(
        jaxnet.ShapeError, match=r"takes W of shape \(4, 3, 3, 1\) for an input of shape .*, got \(4, 3, 3, 3\): init"
    ):
        conv2d(4, 3).forward(params, jnp.zeros((5, 5, 1)))
