"""What carries the error back instead of Wᵀ: by hand, against stand-ins for autodiff in every combination, refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnet
from jaxnet import dense, feedback, parallel, per_position, remat, repeat, residual, serial, tanh, tied
from jaxnet.checking import check, network_subjects
from jaxnet.checking.feedback_reference import declared, deviation
from jaxnet.feedback import by_transpose, ways_in
from jaxnet.layer import ShapeError, on_leaves
from jaxnet.registry import makers
from jaxnet.training.step import in_precision
from tests.agreement import normal

QUICK = {"seeds": 1, "precise": False, "also": False, "shapes": False, "inside": False}
WAYS = makers("feedback")
OTHERS = [name for name in WAYS if name != "transpose"]


def drawn(seed, number, shape, count):
    """B as the docstring says it is drawn."""
    key = jax.random.fold_in(jax.random.key(seed), number)
    return np.asarray(jax.random.normal(key, shape, jnp.float32)) / np.sqrt(count)


def initialized(net, x):
    return jax.tree.map(lambda p: jnp.asarray(p, float), net.init(jax.random.key(0), x))


@pytest.mark.parametrize("name", OTHERS)
def test_three_layers_by_hand(name, x64):
    x, delta = normal(1, (3,)).astype(float), normal(2, (3,)).astype(float)
    net = WAYS[name]({"seed": 5} if name in ("random", "direct") else {})(
        serial(dense(3), tanh, dense(3), tanh, dense(3))
    )
    params = initialized(net, x)
    out, pullback = jaxnet.vjp(net)(params, x)
    grads, dx = pullback(delta)

    W = [np.asarray(params[i]["W"]) for i in (0, 2, 4)]
    a = [np.asarray(x)]
    for i in (0, 1):
        a.append(np.tanh(W[i] @ a[i] + np.asarray(params[2 * i]["b"])))
    np.testing.assert_allclose(out, W[2] @ a[2] + np.asarray(params[4]["b"]))
    sends = {
        "inverse": lambda i, d: np.linalg.inv(W[i]) @ d,
        "pinv": lambda i, d: np.linalg.pinv(W[i]) @ d,
        "random": lambda i, d: drawn(5, i, (3, 3), 3).T @ d,
        "sign": lambda i, d: np.sign(W[i]).T @ d / np.sqrt(3),
        "direct": lambda i, d: drawn(5, i, (3, 3), 3) @ np.asarray(delta),
    }[name]
    d = np.asarray(delta)
    for i in (2, 1, 0):
        np.testing.assert_allclose(grads[2 * i]["W"], np.outer(d, a[i]), rtol=1e-6)
        np.testing.assert_allclose(grads[2 * i]["b"], d, rtol=1e-6)
        d = sends(i, d) * ((1 - a[i] ** 2) if i else 1)
    np.testing.assert_allclose(dx, d, rtol=1e-6)


def block(width):
    return serial(dense(width), tanh)


NETWORKS = {
    "chain": (serial(block(4), dense(2)), (3,)),
    "repeat": (serial(repeat(remat(residual(block(4))), 3), dense(2)), (4,)),
    "parallel": (serial(parallel(block(4), dense(2), join="concatenate"), tanh, dense(3)), (4,)),
    "tied": (serial(tied(dense(4), tanh, dense(4), where=(0, 2)), dense(2)), (4,)),
    "positions": (serial(per_position(block(3)), jaxnet.flatten(), dense(4)), (2, 3)),
    "batch_norm": (serial(dense(4), jaxnet.layer_norm(), dense(4)), (4,)),
    "own": (serial(block(4), feedback.transpose()(block(4)), feedback.random(seed=3)(dense(4)), dense(2)), (3,)),
}


@pytest.mark.parametrize(
    ("network", "name"),
    [*((network, name) for network in NETWORKS for name in ("random", "direct")), ("tied", "pinv"), ("repeat", "sign")],
)
def test_as_declared(network, name, x64):
    """Against autodiff of the stand-in, which uses nothing of the backward pass; and it is not the derivative."""
    net, shape = NETWORKS[network]
    fed, x = WAYS[name]()(net), normal(1, shape).astype(float)
    params = initialized(net, x)

    @jax.jit
    def both(params, x):
        out, pullback = jaxnet.vjp(fed)(params, x)
        delta = jnp.cos(1.0 + jnp.arange(float(out.size))).reshape(out.shape)
        value, stand_in = jax.vjp(lambda p, x: declared(fed).forward(p, x)[0], params, x)
        truth = jax.vjp(lambda p, x: net.forward(p, x)[0], params, x)[1](delta)
        return out, value, pullback(delta), stand_in(delta), truth

    out, value, got, expected, truth = both(params, x)
    np.testing.assert_allclose(out, value, rtol=1e-12)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-9, atol=1e-12), got, expected)
    assert not np.allclose(got[1], truth[1], rtol=1e-3)


def test_each_layer_of_a_stack_has_its_own_B():
    net, x = feedback.random()(repeat(dense(3, bias=False), 2)), jnp.ones(3)
    zeros = jax.tree.map(jnp.zeros_like, net.init(jax.random.key(0), x))
    delta = jnp.array([1.0, 0.0, 0.0])
    first, second = drawn(0, 0, (2, 3, 3), 3)
    np.testing.assert_allclose(jaxnet.vjp(net)(zeros, x)[1](delta)[1], first.T @ second.T @ delta, rtol=1e-5)


def test_B_is_the_same_over_examples_calls_and_precisions():
    net = feedback.random()(serial(dense(4), tanh, dense(2)))
    params, xs, ys = net.init(jax.random.key(0), jnp.ones(3)), normal(1, (5, 3)), normal(2, (5, 2))
    _, grads = jax.jit(jaxnet.value_and_grad(net, jaxnet.quadratic))(params, xs, ys)
    _, each = jax.jit(jaxnet.per_example(net, jaxnet.quadratic))(params, xs, ys)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e.mean(0), rtol=1e-4, atol=1e-6), grads, each)
    low = jax.jit(jaxnet.value_and_grad(in_precision(net, "bfloat16"), jaxnet.quadratic))(params, xs, ys)[1]
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=0.1, atol=0.02), low, grads)


def test_inverse_and_transpose_coincide_where_W_is_orthogonal():
    net, x = serial(dense(4, init="orthogonal"), tanh, dense(4, init="orthogonal")), normal(1, (4,))
    params = net.init(jax.random.key(0), x)
    for way in (feedback.inverse(), feedback.pinv()):
        got, right = (jaxnet.vjp(each)(params, x)[1](jnp.ones(4)) for each in (way(net), net))
        jax.tree.map(lambda g, r: np.testing.assert_allclose(g, r, rtol=1e-4, atol=1e-6), got, right)


def test_a_layer_with_its_own_way_back_keeps_it():
    net = serial(feedback.transpose()(dense(3)), dense(3))
    around = feedback.random()(net)
    assert [way.name for way in ways_in(around)] == ["random"]
    params, x = net.init(jax.random.key(0), jnp.ones(3)), jnp.ones(3)
    got = jaxnet.vjp(around)(params, x)[1](jnp.ones(3))[1]
    expected = params[0]["W"].T @ (drawn(0, 0, (3, 3), 3).T @ np.ones(3))
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert ways_in(by_transpose(around)) == []


def test_layers_are_chosen_by_their_places():
    net, x = serial(dense(3), tanh, dense(3)), jnp.ones(3)
    params = net.init(jax.random.key(0), x)
    some = jaxnet.vjp(feedback.random(layers=[1])(net))(params, x)[1](jnp.ones(3))[1]
    slope = 1 - np.tanh(params[0]["W"] @ x) ** 2
    expected = params[0]["W"].T @ (slope * (drawn(0, 1, (3, 3), 3).T @ np.ones(3)))
    np.testing.assert_allclose(some, expected, rtol=1e-4)
    with pytest.raises(ValueError, match=r"places from 0 among the 2 layers with weights, got \[2\]"):
        jaxnet.vjp(feedback.random(layers=[2])(net))(params, x)[1](jnp.ones(3))


def backward_of(net, x):
    def run(key, x):
        out, pullback = jaxnet.vjp(net)(net.init(key, x), x)
        return pullback(jnp.ones_like(out))

    return jax.eval_shape(run, jax.random.key(0), x)


def test_a_convolution_takes_its_matrix_and_refuses_an_inverse():
    net, x = serial(jaxnet.conv2d(2, 3), jaxnet.flatten(), dense(2)), normal(1, (4, 4, 1))
    fed, delta = feedback.random()(net), jnp.array([0.3, -0.7])
    params = net.init(jax.random.key(0), x)
    got = jax.jit(lambda p, x: jaxnet.vjp(fed)(p, x)[1](delta))(params, x)
    expected = jax.jit(lambda p, x: jax.vjp(lambda *of: declared(fed).forward(*of)[0], p, x)[1](delta))(params, x)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-5), got, expected)
    with pytest.raises(ShapeError, match=r"pinv takes a matrix W, got conv2d .* with W of shape \(2, 3, 3, 1\)"):
        backward_of(feedback.pinv()(net), x)


def test_what_a_way_back_is_not_for_is_refused():
    with pytest.raises(ShapeError, match=r"square W, got dense 4 with W of shape \(4, 3\).*take pinv"):
        backward_of(feedback.inverse()(serial(dense(4), dense(2))), jnp.ones(3))
    with pytest.raises(ValueError, match=r"whose weights are one W, got .*attention.* with W_k, W_o, W_q, W_v: leave"):
        backward_of(feedback.random()(jaxnet.attention(2)), jnp.ones((3, 4)))
    with pytest.raises(ShapeError, match=r"must be a vector, got δ of shape \(2, 3\)"):
        backward_of(feedback.direct()(per_position(dense(3))), jnp.ones((2, 3)))


def test_the_checker_knows_a_deviation_and_finds_a_wrong_one():
    net = feedback.random()(serial(dense(4), tanh, dense(2)))
    report = check(net, "float32[3]", **QUICK)
    assert report.ok
    assert any(note.startswith("intended: the error goes back by feedback random") for note in report.notes)
    assert "intended" in str(report)
    pair = check((net, jaxnet.quadratic), "float32[4,3], float32[4,2]", **QUICK)
    assert pair.ok
    assert deviation(net) in pair.notes

    def halved(layer):
        def backward(params, saved, d_out, read):
            dx, reading = layer.backward(params, saved, d_out, read)
            return dx / 2, reading

        return layer._replace(backward=backward)

    wrong = feedback.random()(on_leaves(halved, serial(dense(4), tanh, dense(2))))
    assert not check((wrong, jaxnet.quadratic), "float32[4,3], float32[4,2]", **QUICK).ok


def test_without_the_declaration_the_checker_calls_it_wrong(monkeypatch):
    monkeypatch.setattr(network_subjects, "deviation", lambda net: "")
    net = feedback.sign()(serial(dense(4), tanh, dense(2)))
    assert not check(net, "float32[3]", **QUICK, diagnose=False).ok
