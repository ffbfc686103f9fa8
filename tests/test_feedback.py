"""What carries the error back instead of Wᵀ: by hand, against stand-ins for autodiff in every combination, refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnet
from jaxnet import dense, feedback, parallel, per_position, remat, repeat, residual, serial, tanh, tied
from jaxnet.checking import check, network_subjects
from jaxnet.checking.feedback_reference import declared, deviation
from jaxnet.factors import Plain
from jaxnet.feedback import by_transpose, feedback_paths_in
from jaxnet.layer import ShapeError, leaf, no_params, on_leaves, split_state
from jaxnet.registry import makers
from jaxnet.training.low_precision import in_precision
from tests.agreement import normal

QUICK = {"seeds": 1, "precise": False, "also": False, "shapes": False, "inside": False}
PATHS = makers("feedback")
OTHERS = [name for name in PATHS if name not in ("transpose", "straight_through", "kolen_pollack", "weight_mirror")]


def drawn(seed, number, shape, count):
    """B as the docstring says it is drawn."""
    key = jax.random.fold_in(jax.random.key(seed), number)
    return np.asarray(jax.random.normal(key, shape, jnp.float32)) / np.sqrt(count)


def initialized(net, x):
    return jax.tree.map(lambda p: jnp.asarray(p, float), net.init(jax.random.key(0), x))


@pytest.mark.parametrize("name", OTHERS)
def test_three_layers_by_hand(name, x64):
    x, delta = normal(1, (3,)).astype(float), normal(2, (3,)).astype(float)
    net = PATHS[name]({"seed": 5} if name in ("random", "direct") else {})(
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
    "attention": (serial(jaxnet.attention(2, bias=True), jaxnet.flatten(), dense(2)), (3, 4)),
    "lstm": (serial(jaxnet.lstm(3), jaxnet.flatten(), dense(2)), (3, 4)),
    "gru": (serial(jaxnet.gru(3), jaxnet.flatten(), dense(2)), (3, 4)),
    "own": (serial(block(4), feedback.transpose()(block(4)), feedback.random(seed=3)(dense(4)), dense(2)), (3,)),
}


@pytest.mark.parametrize(
    ("network", "name"),
    [*((network, name) for network in NETWORKS for name in ("random", "direct")), ("tied", "pinv"), ("repeat", "sign")],
)
def test_as_declared(network, name, x64):
    """Against autodiff of the stand-in, which uses nothing of the backward pass; and it is not the derivative."""
    net, shape = NETWORKS[network]
    fed, x = PATHS[name]()(net), normal(1, shape).astype(float)
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


@pytest.mark.parametrize("magnitudes", ["fixed", "new"])
def test_magnitudes_of_sign_symmetry(magnitudes, x64):
    path, x = feedback.sign(magnitudes=magnitudes, seed=4, scale=2.0), jnp.ones(3)
    net = path(dense(3, bias=False))
    params = initialized(net, x)

    def instead(params):  # its rows, by unit errors
        pullback = jaxnet.vjp(net)(params, x)[1]
        return np.stack([pullback(row)[1] for row in jnp.eye(3)])

    M, W = instead(params), params["W"]
    np.testing.assert_array_equal(np.sign(M), np.sign(W))
    assert len(np.unique(np.abs(M).round(6))) == 9
    np.testing.assert_array_equal(M, instead(params))
    changed = instead({"W": W.at[0, 0].multiply(1.01)})
    assert np.allclose(np.abs(changed), np.abs(M)) == (magnitudes == "fixed")
    wide = initialized(path(dense(300, bias=False)), jnp.ones(100))
    [sent] = [jaxnet.vjp(path(dense(300, bias=False)))(wide, jnp.ones(100))[1](jnp.eye(300)[0])[1]]
    np.testing.assert_allclose(np.mean(sent**2), 2.0**2 / 100, rtol=0.5)  # E[M²] = scale²/n


@pytest.mark.parametrize("network", [name for name in NETWORKS if name != "own"])
def test_kolen_pollack_as_declared(network, x64):
    net, shape = NETWORKS[network]
    fed, x = feedback.kolen_pollack(seed=2)(net), normal(1, shape).astype(float)
    params = initialized(fed, x)

    @jax.jit
    def both(params, x):
        out, pullback = jaxnet.vjp(fed)(params, x)
        delta = jnp.cos(1.0 + jnp.arange(float(out.size))).reshape(out.shape)
        return pullback(delta), jax.vjp(lambda p, x: declared(fed).forward(p, x)[0], params, x)[1](delta)

    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-9, atol=1e-12), *both(params, x))


def test_kolen_pollack_brings_W_and_B_together(x64):
    """Both get the same ∇, and the same decay: their difference shrinks by 1 − decay in each step."""
    net = feedback.kolen_pollack()(serial(dense(4), tanh, dense(2)))
    xs, ys = normal(1, (8, 3)).astype(float), normal(2, (8, 2)).astype(float)
    params = initialized(net, xs[0])
    gradient = jax.jit(jaxnet.value_and_grad(net, jaxnet.quadratic))

    def apart(params):
        return np.linalg.norm(params[2]["W"].p - params[2]["W"].own)

    begun = apart(params)
    for _ in range(20):
        _, grads = gradient(params, xs, ys)
        params = jax.tree.map(lambda p, g: 0.95 * p - 0.1 * g, params, grads)
    np.testing.assert_allclose(apart(params), begun * 0.95**20)


def test_the_weight_mirror_comes_to_W_without_a_gradient(x64):
    net = feedback.weight_mirror(rate=0.2)(serial(dense(4), tanh, repeat(dense(4), 2), dense(2)))
    xs, ys = normal(1, (8, 3)).astype(float), normal(2, (8, 2)).astype(float)
    params, state = split_state(initialized(net, xs[0]))
    gradient = jax.jit(jaxnet.value_and_grad(net, jaxnet.quadratic))

    def angle(i):
        W, B = (np.ravel(t) for t in (params[i]["W"].p, state[i]["W"].own.value))
        return W @ B / np.linalg.norm(W) / np.linalg.norm(B)

    begun = [angle(i) for i in (0, 2, 3)]
    costs = []
    for _ in range(80):
        cost, grads, state = gradient(params, xs, ys, state=state)
        costs.append(cost)
        assert grads[0]["W"].own is None
        params = jax.tree.map(lambda p, g: p - 0.02 * g, params, grads)
    assert max(begun) < 0.9
    assert min(angle(i) for i in (0, 2, 3)) > 0.97
    assert costs[-1] < costs[0]
    assert check(net, "float32[3]", **QUICK).ok


def test_straight_through(x64):
    """∂/∂x is 1, also of a step; the checker holds it against what is declared."""
    step = leaf("step", no_params, lambda p, x, key=None, train=False: (jnp.sign(x), ()), lambda p, s, d: (0 * d, ()))
    net = serial(dense(4), feedback.straight_through()(step), dense(2))
    params, x = initialized(net, jnp.ones(3)), normal(1, (3,)).astype(float)
    delta = jnp.array([0.3, -0.7])
    got = jaxnet.vjp(net)(params, x)[1](delta)
    np.testing.assert_allclose(got[1], params[0]["W"].T @ params[2]["W"].T @ delta)
    assert check(net, "float32[3]", **QUICK).ok
    with pytest.raises(ShapeError, match="takes a layer that gives back the shape it takes"):
        feedback.straight_through()(dense(4)).forward(dense(4).init(jax.random.key(0), x), x)


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
    for path in (feedback.inverse(), feedback.pinv()):
        got, right = (jaxnet.vjp(each)(params, x)[1](jnp.ones(4)) for each in (path(net), net))
        jax.tree.map(lambda g, r: np.testing.assert_allclose(g, r, rtol=1e-4, atol=1e-6), got, right)


def test_a_layer_with_its_own_way_back_keeps_it():
    net = serial(feedback.transpose()(dense(3)), dense(3))
    around = feedback.random()(net)
    assert [path.name for path in feedback_paths_in(around)] == ["random"]
    params, x = net.init(jax.random.key(0), jnp.ones(3)), jnp.ones(3)
    got = jaxnet.vjp(around)(params, x)[1](jnp.ones(3))[1]
    expected = params[0]["W"].T @ (drawn(0, 0, (3, 3), 3).T @ np.ones(3))
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert feedback_paths_in(by_transpose(around)) == []


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
    def backward(params, x, delta):
        return params[0] * delta, (Plain(delta * x),)

    with pytest.raises(ShapeError, match=r"square W, got dense 4 with W of shape \(4, 3\).*take pinv"):
        backward_of(feedback.inverse()(serial(dense(4), dense(2))), jnp.ones(3))
    with pytest.raises(ShapeError, match=r"takes a square U, got lstm 3 with U of shape \(12, 3\)"):
        backward_of(feedback.inverse()(jaxnet.lstm(3)), jnp.ones((3, 4)))
    nameless = leaf("own", lambda k, x: (jnp.ones(3),), lambda p, x, key=None, train=False: (p[0] * x, x), backward)
    with pytest.raises(ValueError, match=r"whose weights have names, .* got own with parameters without names: leave"):
        backward_of(feedback.random()(nameless), jnp.ones(3))
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
