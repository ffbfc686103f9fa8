"""Another feedback path by a config: what is refused, with its place; and the angles that `monitor.angles` takes."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnet as j
from jaxnet.feedback.feedback_path import unstated
from jaxnet.layer import ShapeError
from jaxnet.readings import bare
from jaxnet.registry import makers
from jaxnet.training import loop
from jaxnet.training.angles import angles
from jaxnet.training.build import build
from jaxnet.training.config import ConfigError, load_config
from jaxnet.training.data import load
from jaxnet.training.monitors import ranks
from tests.runs import ROOT, metrics, small

CONFIG = ROOT / "configs" / "digits.toml"


@cache
def digits():
    return load({"name": "digits"})


def built(*overrides):
    return build(load_config(CONFIG, overrides), digits())


def one(inside):
    return f"model=[{{feedback={{{inside}}}}},{{dense=10}}]"


WRONG = {
    one('block={dense=8},path="rendom"'): 'must be a feedback path, got "rendom": did you mean "random"?',
    one('block={dense=8},path="sign",sede=1'): 'model.0.feedback: unknown key "sede": did you mean "seed"?',
    one('path="sign"'): "model.0.feedback.block: is missing",
    one('block={dens=8},path="sign"'): "model.0.feedback.block: ",
    one('block={dense=8},path="transpose",seed=3'): 'model.0.feedback: path = "transpose" takes no seed: leave it out',
    one('block={dense=8},path="pinv",scale=2.0'): 'model.0.feedback: path = "pinv" takes no scale: leave it out',
    'feedback="rand"': 'feedback: must be a known feedback, got "rand": did you mean "random"?',
    'feedback={name="random",sed=1}': 'feedback: unknown key "sed": did you mean "seed"?',
    "monitor.angles=-1": "monitor.angles: must be at least 0, got -1",
    "monitor.angles=99999": "monitor.angles must be at most 1197, the examples of digits to train on, got 99999",
}  # fmt: skip


@pytest.mark.parametrize("override", WRONG)
def test_a_wrong_way_back_is_refused_with_its_place(override):
    with pytest.raises(ConfigError) as caught:
        built(override)
    assert WRONG[override] in str(caught.value)


def test_an_inverse_of_what_has_none_names_the_layer():
    with pytest.raises(ShapeError, match=r"inverse takes a square W, got dense 8 with W of shape \(8, 64\).*take pinv"):
        built(one('block={dense=8},path="inverse"'))


def test_one_layer_goes_back_another_way_and_the_others_by_the_transpose():
    net = built("model=[{dense=8},{feedback={block={dense=6},path='random',seed=2}},{dense=10}]")[0]
    plain = j.serial(j.dense(8), j.dense(6), j.dense(10))
    x, delta = jnp.linspace(-1, 1, 64), jnp.linspace(0.5, 1, 10)
    params = plain.init(jax.random.key(0), x)
    (got, _), (right, _) = (j.vjp(each)(params, x)[1](delta) for each in (net, plain))
    for layer in (2, 1):
        np.testing.assert_allclose(got[layer]["W"], right[layer]["W"], rtol=1e-5)
    assert not np.allclose(got[0]["W"], right[0]["W"], rtol=0.1)


# ------------------------------------------------------------------------------------------------ the angles


def angle(u, v):
    u, v = (np.concatenate([np.asarray(t, np.float64).reshape(-1) for t in each]) for each in (u, v))
    return np.degrees(np.arccos(min(1.0, u @ v / np.linalg.norm(u) / np.linalg.norm(v))))


def taken(net, count=5):
    """The angles of a network, its parameters, and the examples over which they are."""
    xs = jax.random.normal(jax.random.key(1), (count, 4))
    ys = jax.random.normal(jax.random.key(2), (count, 3))
    params = j.initialize(net, j.quadratic, jax.random.key(3), xs[0])
    found = jax.jit(angles(net, j.quadratic, ranks(net, j.quadratic, params, xs[0], ys[0])))(params, xs, ys)
    return {name: np.asarray(value) for name, value in found.items()}, params, xs, ys


NET = j.serial(j.dense(5), j.tanh, j.dense(3))


def test_by_the_transpose_all_angles_are_zero():
    found = taken(NET)[0]
    np.testing.assert_array_equal(found["update_angles"], [0, 0])
    np.testing.assert_array_equal(found["feedback_angles"], [0, 0])


@pytest.mark.parametrize("path", ["random", "sign", "pinv", "kolen_pollack", "weight_mirror"])
def test_angles_are_those_to_the_gradient_and_to_the_transpose(path):
    net = makers("feedback")[path]()(NET)
    found, params, xs, ys = taken(net)
    own = bare(params)
    grads, right = (j.value_and_grad(each, j.quadratic)(p, xs, ys)[1] for each, p in ((net, params), (NET, own)))
    grads = bare(grads)
    expected = [angle(*([each[i]["W"], each[i]["b"]] for each in (grads, right))) for i in (0, 2)]
    np.testing.assert_allclose(found["update_angles"], expected, atol=0.05)
    assert found["update_angles"][0] > 1
    W = np.asarray(own[2]["W"])
    sent = np.linalg.pinv(W) if path == "pinv" else np.sign(W).T if path == "sign" else None
    sent = unstated(params[2]["W"].own).T if path in ("kolen_pollack", "weight_mirror") else sent
    if sent is not None:
        np.testing.assert_allclose(found["feedback_angles"][1], angle([sent], [W.T]), atol=0.05)


def test_a_block_inside_of_a_stack_has_its_own_angle():
    net = j.serial(j.dense(3), j.repeat(j.serial(j.dense(3), j.tanh), 2), j.dense(3))
    found = taken(makers("feedback")["random"]()(net))[0]
    assert found["update_angles"].shape == found["feedback_angles"].shape == (4,)
    assert found["update_angles"][-1] == 0  # its δ is the loss's own
    assert len(set(np.round(found["feedback_angles"], 3))) == 4


@pytest.mark.parametrize("path", ["kolen_pollack", "weight_mirror"])
def test_a_run_learns_its_feedback(tmp_path, path):
    """Beside the weights: each B comes nearer to its W than it was, with weight decay on both."""
    config = small(f"feedback='{path}'", "train.epochs=6", "train.l2=20.0", "monitor.angles=20")
    lines = metrics(loop.train(config, run_dir=tmp_path / "r", quiet=True))
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    assert lines[-1]["feedback_angles"][-1] < 0.7 * lines[0]["feedback_angles"][-1]
