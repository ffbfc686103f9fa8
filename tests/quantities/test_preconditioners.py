"""K-FAC, Shampoo and SOAP: each step against its formula, in a config, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxnet
from jaxnet import dense, layer_norm, repeat, serial, tanh
from jaxnet.quantities.kronecker import kronecker
from jaxnet.quantities.preconditioners import kfac, scale_by_kfac, shampoo, soap
from jaxnet.training import loop
from jaxnet.training.config import ConfigError
from jaxnet.training.data import load
from jaxnet.training.session import Session
from tests.agreement import assert_agree, cast, integers, normal, random_like
from tests.runs import metrics, small

NET, LOSS = serial(dense(4), repeat(serial(dense(4), tanh), 2), layer_norm(), dense(3)), jaxnet.softmax_cross_entropy
XS, YS = normal(2, (6, 5)), integers(3, (6,), 3)
CURVATURE, GRADIENT = jax.jit(kronecker(NET, LOSS, samples=None)), jax.jit(jaxnet.value_and_grad(NET, LOSS))


@pytest.fixture
def at(x64):
    shapes = jax.eval_shape(NET.init, jax.random.key(0), jnp.zeros(5))
    params = cast(random_like(1, shapes), jnp.float64)
    return params, GRADIENT(params, cast(XS, jnp.float64), YS)[1]


def blocks(params, scale=1.0):
    return jax.tree.map(lambda t: scale * t, CURVATURE(params, cast(XS, jnp.float64), YS))


def first_step(optimizer, params, grads, **given):
    """What an optimiser's first update gives."""
    return jax.jit(lambda params, grads: optimizer.update(grads, optimizer.init(params), params, **given)[0])(
        params, grads
    )


def by_hand(block, g, damping):
    """The step of one parameter, its matrices written out."""
    if block.B is None:
        return g / (block.diagonal + damping)
    eye = np.eye(len(block.B))
    if block.A is None:
        return np.linalg.solve(block.B + damping * eye, g)
    pi = np.sqrt(np.linalg.eigvalsh(block.A).mean() / np.linalg.eigvalsh(block.B).mean())
    A = block.A + pi * np.sqrt(damping) * np.eye(len(block.A))
    return np.linalg.solve(block.B + np.sqrt(damping) / pi * eye, g) @ np.linalg.inv(A)


def test_a_step_is_its_formula(at):
    params, grads = at
    found = blocks(params)
    step = first_step(scale_by_kfac(blocks, damping=0.03, limit=1e9), params, grads, curvature=lambda: found)
    for layer in (0, 2, 3):
        for name, g in grads[layer].items():
            assert_agree(step[layer][name], by_hand(found[layer][name], g, 0.03))
    for i in range(2):  # each layer of the stack has its own
        own = jax.tree.map(lambda t, i=i: t[i], found[1][0]["W"])
        assert_agree(step[1][0]["W"][i], by_hand(own, grads[1][0]["W"][i], 0.03))


def test_of_what_has_no_matrices_the_diagonal_is_taken(x64):
    net, xs = jaxnet.serial(jaxnet.embedding(5, 3), jaxnet.flatten(), dense(3)), jnp.array([[0, 1], [1, 4]])
    params = net.init(jax.random.key(0), xs[0])
    found = jax.jit(kronecker(net, LOSS, samples=None))(params, xs, jnp.array([0, 2]))
    grads = jax.jit(jaxnet.value_and_grad(net, LOSS))(params, xs, jnp.array([0, 2]))[1]
    optimizer = scale_by_kfac(lambda _: found, damping=0.03, limit=1e9)
    step = first_step(optimizer, params, grads, curvature=lambda: found)
    assert_agree(step[0]["W"], by_hand(found[0]["W"], grads[0]["W"], 0.03), 1e-5)


def test_running_means_and_when_they_are_taken(at):
    params, grads = at
    optimizer = scale_by_kfac(blocks, decay=0.6, every=2)
    state = optimizer.init(params)

    @jax.jit
    def update(state, scale):
        return optimizer.update(grads, state, curvature=lambda: blocks(params, scale))[1]

    for scale in (1.0, 7.0, 3.0, 7.0, 5.0):  # the sevens are never asked for
        state = update(state, scale)
    mean = 0.6 * (0.5 * 1.0 + 0.5 * 3.0) + 0.4 * 5.0  # of k the mean, until 1 − 1/k is above the decay
    assert_agree(state.blocks[0]["W"].A, mean * blocks(params)[0]["W"].A, 1e-6)  # steps are counted in float32


def test_the_limit(at):
    params, grads = at
    step, whole = (
        first_step(scale_by_kfac(blocks, limit=limit), params, grads, curvature=lambda: blocks(params))
        for limit in (1e-4, 1e9)
    )
    ratio = step[0]["W"] / whole[0]["W"]
    np.testing.assert_allclose(ratio, ratio[0, 0])
    np.testing.assert_allclose(optax.tree.vdot(whole, grads) * ratio[0, 0] ** 2, 1e-4)


def power(matrix, by):
    values, axes = np.linalg.eigh(matrix)
    return axes @ np.diag(values**by) @ axes.T


def test_shampoo_is_its_formula_in_each_layer_of_a_stack(at):
    params, grads = at
    step = first_step(shampoo(1.0, momentum=0.0, damping=1e-6, shapes=blocks), params, grads)
    for got, G in ((step[0]["W"], grads[0]["W"]), *zip(step[1][0]["W"], grads[1][0]["W"], strict=True)):
        left, right = (power(t + 1e-6 * np.eye(len(t)), -0.25) for t in (G @ G.T, G.T @ G))
        expected = left @ G @ right
        assert_agree(got, -expected * np.linalg.norm(G) / np.linalg.norm(expected), 1e-5)
    assert_agree(step[3]["b"], -grads[3]["b"], 1e-5)  # (g gᵀ)^(−1/2) g is along g


def test_soap_is_adam_along_the_eigenvectors(at):
    params, grads = at
    others = jax.tree.map(lambda g: jnp.flip(g, -1) * 2, grads)
    optimizer = soap(1.0, b1=0.8, b2=0.6, every=5, shapes=blocks)
    update = jax.jit(optimizer.update)
    _, state = update(grads, optimizer.init(params), params)
    step, _ = update(others, state, params)
    pairs = [(step[0]["W"], grads[0]["W"], others[0]["W"])]
    pairs += list(zip(step[1][0]["W"], grads[1][0]["W"], others[1][0]["W"], strict=True))
    for got, G, H in pairs:  # the axes are those of the first step
        B, A = (np.linalg.eigh(t)[1] for t in (G @ G.T, G.T @ G))
        first, second = (B.T @ t @ A for t in (G, H))
        mean = (0.8 * 0.2 * first + 0.2 * second) / (1 - 0.8**2)
        square = (0.6 * 0.4 * first**2 + 0.4 * second**2) / (1 - 0.6**2)
        assert_agree(got, -B @ (mean / (np.sqrt(square) + 1e-8)) @ A.T, 1e-5)


def test_soap_carries_its_squares_to_new_axes(at):
    params, grads = at
    others = jax.tree.map(lambda g: jnp.flip(g, -1) * 2, grads)
    optimizer = soap(1.0, b1=0.8, b2=0.6, every=1, shapes=blocks)
    update = jax.jit(optimizer.update)
    _, state = update(grads, optimizer.init(params), params)
    step, _ = update(others, state, params)
    G, H = grads[0]["W"], others[0]["W"]
    (B, A), (new_B, new_A) = (
        [np.linalg.eigh(t)[1] for t in pair]
        for pair in ((G @ G.T, G.T @ G), ((G @ G.T + H @ H.T) / 2, (G.T @ G + H.T @ H) / 2))
    )
    square = 0.6 * (new_B.T @ B) ** 2 @ (0.4 * (B.T @ G @ A) ** 2) @ (A.T @ new_A) ** 2
    square = (square + 0.4 * (new_B.T @ H @ new_A) ** 2) / (1 - 0.6**2)
    mean = new_B.T @ (0.8 * 0.2 * G + 0.2 * H) @ new_A / (1 - 0.8**2)
    assert_agree(step[0]["W"], -new_B @ (mean / (np.sqrt(square) + 1e-8)) @ new_A.T, 1e-5)


@pytest.mark.parametrize("optimizer", [kfac, shampoo, soap])
def test_shapes_must_be_given(optimizer):
    with pytest.raises(ValueError, match=r"give it kronecker\(net, loss\)"):
        optimizer(0.1)


KFAC = {"train": {"epochs": 3, "batch": 10, "optimizer": {"name": "kfac", "learning_rate": 0.05, "every": 3}}}


@pytest.mark.parametrize("name", ["kfac", "shampoo", "soap"])
def test_a_config_trains_by_it(tmp_path, name):
    rate = 0.02 if name == "shampoo" else 0.05
    options = f"train.optimizer={{name='{name}', learning_rate={rate}, every=3}}"
    run = loop.train(small(options, **KFAC), run_dir=tmp_path / "r", quiet=True)
    losses = [line["train_loss"] for line in metrics(run)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (["train.chunks=2"], "leave out train.chunks"),
        (['model=[{dense=8}, "batch_norm", {dense=3}]'], "take layer_norm or group_norm for batch_norm"),
        (['train.optimizer={name="kfac"}'], "learning_rate: is missing"),
    ],
)
def test_what_it_is_not_for_is_refused(changes, what):
    with pytest.raises(ConfigError, match=what):
        Session(config := small(*changes, **KFAC), load(config.data))


def test_a_linear_network_is_solved_in_one_step(x64):
    """There A ⊗ B is the Hessian's block, and of one layer all of it: one step of length 1 is Newton's."""
    net, xs = dense(2, bias=False), normal(1, (8, 3)).astype(jnp.float64)
    ys, params = normal(2, (8, 2)).astype(jnp.float64), {"W": jnp.zeros((2, 3))}
    curvature = kronecker(net, jaxnet.quadratic, samples=None)
    optimizer = kfac(1.0, momentum=0.0, damping=1e-14, limit=1e9, curvature=lambda p: curvature(p, xs, ys))
    _, grads = jaxnet.value_and_grad(net, jaxnet.quadratic)(params, xs, ys)
    updates, _ = optimizer.update(grads, optimizer.init(params), params, curvature=lambda: curvature(params, xs, ys))
    np.testing.assert_allclose(params["W"] + updates["W"], np.linalg.lstsq(xs, ys)[0].T, atol=1e-5)
