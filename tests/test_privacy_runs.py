"""Runs with private gradients and with the noise scale: what the step does, and what the metrics say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet.quantities.privacy import capacity, epsilon, noise_multiplier_for, poisson_sample, with_noise
from jaxnet.training import loop, step
from jaxnet.training.config import ConfigError
from jaxnet.training.data import load
from jaxnet.training.session import Session
from jaxnet.training.text_windows import examples_at
from tests.runs import metrics, small, summary

pytest.importorskip("dp_accounting", reason="dp-accounting comes with the extra `privacy`")
PRIVACY = {"noise_multiplier": 0.8, "clip_norm": 0.5}
QUIET = {"delta_norms": False}


def of_cost(net):
    def cost(params, x, y):
        return -jax.nn.log_softmax(net.forward(params, x)[0])[y]

    return cost


def test_a_private_run(tmp_path):
    """It learns, is bit for bit the same again, and its metrics have the loss of privacy of the steps so far."""
    config = small("train.epochs=4", privacy=PRIVACY, monitor=QUIET)
    run = loop.train(config, runs_dir=tmp_path)
    lines = metrics(run)
    for line in (lines[0], lines[-1]):
        spent = epsilon(noise_multiplier=0.8, rate=10 / 103, steps=line["step"], delta=1e-5)
        assert line["epsilon"] == pytest.approx(spent)
    assert [line["step"] for line in lines] == [11, 22, 33, 44]
    assert summary(run)["test_accuracy"] > 0.6
    again = loop.train(config, runs_dir=tmp_path / "again")
    assert summary(again)["params_sha256"] == summary(run)["params_sha256"]
    in_chunks = loop.train(small("train.epochs=4", "train.chunks=2", privacy=PRIVACY, monitor=QUIET), runs_dir=tmp_path)
    assert summary(in_chunks)["test_loss"] == pytest.approx(summary(run)["test_loss"], rel=0.3)


def test_the_gradient_of_a_step(x64):
    """Clipped, summed over what the draw chose, with noise of this size, over the expected batch."""
    session = Session(small(privacy=PRIVACY, monitor=QUIET, precision="float64"), load("tests.runs:blobs"))
    recipe, key = session.recipe, step.key_data(0)
    state = session.begin()
    places, counts = step.drawn(recipe, jnp.zeros(10, jnp.int32), key, state.step)
    xs, ys = examples_at(session.training, places)
    assert len(xs) == capacity(103, 10 / 103) > counts.sum() > 0
    grads = jax.vmap(jax.grad(of_cost(recipe.net)), (None, 0, 0))(state.params, xs, ys)
    rows = jnp.concatenate([g.reshape(len(g), -1) for g in jax.tree.leaves(grads)], axis=1)
    shares = counts.astype(rows.dtype) * jnp.minimum(1, 0.5 / jnp.linalg.norm(rows, axis=1))
    found, _, _ = step.measured(recipe)(state.params, None, xs, ys, jax.random.key(1), counts)
    noise, _ = jax.random.split(jax.random.key(1))
    clipped = jax.tree.map(lambda g: jnp.tensordot(shares, g, 1), grads)
    right = with_noise(clipped, noise, noise_multiplier=0.8, clip=0.5, expected=10)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, right)
    silent = with_noise(clipped, noise, noise_multiplier=0.0, clip=0.5, expected=10)
    added = jnp.concatenate([(a - b).ravel() for a, b in zip(*map(jax.tree.leaves, (right, silent)), strict=True)])
    assert float(added.std()) == pytest.approx(0.8 * 0.5 / 10, rel=0.3)


def test_the_draw_is_of_poisson():
    """Each example as often as its probability says, none beyond the places, and the numbers in the front count."""
    places = capacity(50, 0.2)
    at, counts = jax.vmap(lambda key: poisson_sample(key, 50, 0.2, places))(jax.random.split(jax.random.key(0), 4000))
    often = np.zeros(50)
    np.add.at(often, np.asarray(at)[np.asarray(counts) == 1], 1)
    assert np.abs(often / 4000 - 0.2).max() < 0.03
    sizes = np.asarray(counts.sum(1))
    assert sizes.max() < places
    assert sizes.var() == pytest.approx(50 * 0.2 * 0.8, rel=0.1)


def test_epsilon_of_no_step_and_the_noise_for_an_epsilon():
    options = {"rate": 0.1, "steps": 50, "delta": 1e-5}
    assert epsilon(noise_multiplier=1.0, rate=0.1, steps=0, delta=1e-5) == 0
    assert epsilon(noise_multiplier=noise_multiplier_for(2.0, **options), **options) == pytest.approx(2, abs=0.02)


@pytest.mark.parametrize(
    ("overrides", "document", "told"),
    [
        ((), {}, r"monitor.delta_norms = false"),
        (("monitor.noise_scale=true",), {"monitor": QUIET}, r"monitor.noise_scale = false"),
        (("monitor.mean_delta=5",), {"monitor": QUIET}, r"monitor.mean_delta = 0"),
        (("train.head_chunks=2",), {"monitor": QUIET}, r"train.head_chunks = 1"),
        (("mesh.data=2",), {"monitor": QUIET}, r"one device"),
    ],
)
def test_what_goes_round_the_noise_is_refused(overrides, document, told):
    with pytest.raises(ConfigError, match=told):
        small(*overrides, privacy=PRIVACY, **document)


@pytest.mark.parametrize("options", [{"privacy": PRIVACY, "monitor": QUIET}, {"monitor": {"noise_scale": True}}])
def test_batch_norm_is_refused(options, tmp_path):
    config = small(model=[{"dense": 8}, "batch_norm", {"dense": 3}], **options)
    with pytest.raises(ConfigError, match="batch_norm"):
        loop.train(config, runs_dir=tmp_path)


@pytest.mark.parametrize("chunks", [1, 2])
def test_the_noise_scale_of_an_epoch(chunks, tmp_path, x64):
    """The mean of both parts over the steps, of the gradients of each example; the step of one example adds nothing."""
    config = small("train.epochs=1", f"train.chunks={chunks}", monitor={"noise_scale": True}, precision="float64",
                   train={"epochs": 1, "batch": 6, "optimizer": {"name": "sgd", "learning_rate": 0.1}})  # fmt: skip
    run = loop.train(config, runs_dir=tmp_path)
    session = Session(config, load("tests.runs:blobs"))
    state, order, parts = session.begin(), np.asarray(session.order(0)), []
    gradient = jax.jit(jax.vmap(jax.grad(of_cost(session.recipe.net)), (None, 0, 0)))
    params = state.params
    for start in range(0, 103, 6):
        at = order[start : start + 6]
        grads = gradient(params, *(t[at] for t in session.training))
        rows = np.concatenate([np.asarray(g).reshape(len(at), -1) for g in jax.tree.leaves(grads)], axis=1)
        if len(at) > 1:
            noise = rows.var(axis=0, ddof=1).sum()
            parts.append((noise, (rows.mean(0) ** 2).sum() - noise / len(at)))
        params = jax.tree.map(lambda p, g: p - 0.1 * g.mean(0), params, grads)
    noise, signal = np.sum(parts, axis=0)
    assert metrics(run)[0]["noise_scale"] == pytest.approx(noise / signal if signal > 0 else np.inf, rel=1e-8)
