"""Loss scaling against what float32 gives, and values saved in 8 bits: memory, and the error of every δ."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnet.backprop import backpropagate, per_example, value_and_grad
from jaxnet.combinators import repeat, residual, serial
from jaxnet.layers import ACTIVATIONS, dense, layer_norm
from jaxnet.losses import quadratic, softmax_cross_entropy
from jaxnet.models import gpt
from jaxnet.readings import deltas, total
from jaxnet.training import step
from jaxnet.training.config import ConfigError
from jaxnet.training.loop import resume, train
from jaxnet.training.low_precision import LossScale, in_precision, pack, saving, scaled
from jaxnet.training.run_folder import Run
from jaxnet.training.step import Recipe
from tests.runs import metrics, small, summary
from tests.test_training_step import data, recipe

tanh = ACTIVATIONS["tanh"]


def half(**options):
    of = recipe(optimizer=optax.sgd(0.1), **options)
    return Recipe(**vars(of) | {"net": in_precision(of.net, "float16"), "loss_scale": 2.0**15})


def test_a_small_delta_does_not_underflow():
    """δ of 1e-9 is 0 in float16."""
    net = in_precision(serial(dense(4), tanh, dense(3)), "float16")
    x, y = jnp.ones((1, 5)), jnp.full((1, 3), 1e-9)
    params = jax.tree.map(jnp.zeros_like, net.init(jax.random.key(0), x[0]))
    params = ({"W": jnp.ones((4, 5)), "b": params[0]["b"]}, *params[1:])  # out = 0, so δ = −y
    exact = -1e-9 * np.tanh(5.0) * np.ones((3, 4))

    def gradient(loss):
        return backpropagate(net, loss, total)(params, x, y)[1][2]["W"]

    assert not gradient(quadratic).any()
    found = gradient(scaled(quadratic, jnp.float32(2**20))) / 2**20
    np.testing.assert_allclose(found, exact, rtol=2e-3)


def test_what_is_read_is_not_scaled():
    options = {"delta_norms": True, "gradient_norms": True, "noise_scale": True}
    of = half(**options)
    plain = Recipe(**vars(of) | {"loss_scale": None})
    seed, (xs, ys) = step.key_data(0), data(of, 6)
    state = jax.jit(step.begin(of))(seed)
    found = jax.jit(step.training_step(of))(state, xs, ys, seed)
    expected = jax.jit(step.training_step(plain))(state._replace(scale=None), xs, ys, seed)
    assert found.scale == LossScale(2.0**15, 1)
    for one, other in ((found.sums, expected.sums), (found.params, expected.params)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-3, atol=1e-5), one, other)


def test_a_step_that_overflows_is_skipped_and_the_scale_halves():
    of = half()
    seed, (xs, ys) = step.key_data(0), data(of, 6)
    state = jax.jit(step.begin(of))(seed)
    run = jax.jit(step.training_step(of))
    large = state._replace(scale=LossScale.begin(2.0**24))
    after = run(large, xs, ys, seed)
    assert after.scale == LossScale(2.0**23, 0)
    assert after.step == 1
    jax.tree.map(np.testing.assert_array_equal, (after.params, after.optimizer), (state.params, state.optimizer))
    assert step.sound(after)
    while after.scale.good == 0:
        after = run(after, xs, ys, seed)
    assert 2.0**10 < after.scale.value < 2.0**23
    assert not jnp.array_equal(after.params[0]["W"], state.params[0]["W"])


def test_at_a_scale_of_one_nothing_is_skipped():
    of = half()
    seed, (xs, ys) = step.key_data(0), data(of, 6)
    state = jax.jit(step.begin(of))(seed)._replace(scale=LossScale.begin(1.0))
    assert not step.sound(jax.jit(step.training_step(of))(state, xs.at[0, 0].set(jnp.inf), ys, seed))


def test_the_scale_doubles_after_good_steps():
    scale = LossScale.begin(4.0)
    seen = []
    for finite in (True, True, True, False, True):
        scale = scale.after(jnp.asarray(finite), 2)
        seen.append((float(scale.value), int(scale.good)))
    assert seen == [(4, 1), (8, 0), (8, 1), (4, 0), (4, 1)]


def test_a_run_in_float16_goes_on_to_the_bits_of_a_whole_one(tmp_path):
    changes = ("precision=float16", "train.loss_scale=1e9", "train.loss_scale_steps=3")
    whole = train(small(*changes), run_dir=tmp_path / "whole", quiet=True)
    part = train(small(*changes, "train.epochs=2"), run_dir=tmp_path / "part", quiet=True)
    resume(part, overrides=("train.epochs=3",), quiet=True)
    assert summary(part)["params_sha256"] == summary(whole)["params_sha256"]
    scales = [line["loss_scale"] for line in metrics(whole)]
    assert scales == [line["loss_scale"] for line in metrics(part)]
    assert Run.open(whole).summary()["status"] == "finished"
    assert metrics(whole)[-1]["test_accuracy"] > 0.9


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("mesh.pipeline=2", "monitor.delta_norms=false"), "does not scale the loss"),
        (("privacy.noise_multiplier=1.0", "privacy.clip_norm=1.0"), 'precision = "bfloat16"'),
    ],
)
def test_what_float16_is_not_for(changes, words):
    with pytest.raises(ConfigError, match=words):
        small("precision=float16", "train.batch=16", *changes, monitor={"delta_norms": False})


# ------------------------------------------------------------------------------------------- saved in 8 bits


@pytest.mark.parametrize(("kind", "error"), [("int8", 1 / 254), ("float8", 1 / 16)])
def test_an_array_in_8_bits(kind, error):
    t = jnp.asarray(np.random.default_rng(0).standard_normal((5, 64)) * np.logspace(-6, 6, 5)[:, None], jnp.float32)
    t = t.at[2].set(0)
    packed = pack(t, kind)
    assert packed.bits.dtype == jnp.uint8
    off = np.abs(packed.unpacked() - t) / np.maximum(np.abs(t).max(1, keepdims=True), 1e-30)
    assert 0 < off.max() <= error * 1.001
    assert not packed.unpacked()[2].any()


def deep(kind):
    return saving(serial(dense(256), repeat(residual(serial(layer_norm(), dense(256), tanh)), 12), dense(3)), kind)


def temporary(net, params, xs, ys):
    compiled = jax.jit(value_and_grad(net, quadratic)).lower(params, xs, ys).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("kind", ["int8", "float8"])
def test_memory_and_the_error_of_every_delta(kind):
    xs, ys = jax.random.normal(jax.random.key(0), (2048, 256)), jnp.ones((2048, 3))
    params = deep("full").init(jax.random.key(1), xs[0])
    assert temporary(deep(kind), params, xs, ys) < 0.5 * temporary(deep("full"), params, xs, ys)

    def read(net):
        _, found = per_example(net, quadratic, deltas)(params, xs[:16], ys[:16])
        return jax.tree.leaves(found)

    errors = []
    for found, exact in zip(read(deep(kind)), read(deep("full")), strict=True):
        assert found.dtype == jnp.float32
        errors.append(float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact)))
    assert 1e-5 < max(errors) < (0.01 if kind == "int8" else 0.06)


def test_gradients_of_a_gpt_saved_in_8_bits():
    net = gpt(17, 32, 2, 2, 16)
    xs = jax.random.randint(jax.random.key(0), (4, 16), 0, 17)
    params = net.init(jax.random.key(1), xs[0])
    exact, found = (
        value_and_grad(each, softmax_cross_entropy)(params, xs, xs[:, ::-1])[1] for each in (net, saving(net, "int8"))
    )
    largest = max(jnp.linalg.norm(a) for a in jax.tree.leaves(exact))  # the gradient of a bias of the keys is 0
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(found), strict=True):
        assert jnp.linalg.norm(a - b) <= 0.03 * jnp.linalg.norm(a) + 0.005 * largest


def test_a_run_with_saved_values_in_8_bits(tmp_path):
    folder = train(small("saved=int8"), run_dir=tmp_path / "run", quiet=True)
    assert metrics(folder)[-1]["test_accuracy"] > 0.9
