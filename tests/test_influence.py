"""`jaxnet influence`: its page and its words, what it refuses; wrong labels are found by it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

import jaxnet
from jaxnet.quantities.influence import self_influence
from jaxnet.training import influence, loop
from jaxnet.training.config import make_config
from jaxnet.training.run_folder import RunError
from tests.runs import called

DIGITS = {
    "data": "digits",
    "loss": "softmax_cross_entropy",
    "model": [{"dense": 16}, "tanh", {"dense": 10}],
    "train": {"epochs": 2, "batch": 32, "optimizer": {"name": "adam", "learning_rate": 0.01}},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return loop.train(make_config(DIGITS), run_dir=tmp_path_factory.mktemp("runs") / "digits", quiet=True)


def test_a_page_with_pictures(run, tmp_path):
    found = called("influence", run, "--test", "3", "--most", "2", "--out", tmp_path)
    assert found.exit_code == 0, found.stderr
    said, *groups, file = found.stdout.splitlines()
    assert re.fullmatch(r"test example 3, \d: the network says \d", said)
    assert [line.partition(":")[0] for line in groups] == [
        "helped most by",
        "hindered most by",
        "least supported labels",
    ]
    page = (tmp_path / "influence-3.html").read_text()
    assert file == str(tmp_path / "influence-3.html")
    assert page.count("data:image/png;base64,") == 1 + 3 * 2
    assert "undefined" not in page


def test_its_numbers_are_those_of_the_functions(run):
    """The helpful ones first, the harmful ones last; each as `influence` gives it for that example by itself."""
    found = influence.of_run(run, 0, most=3)
    helpful, harmful = ([each.influence for each in group] for group in (found.helpful, found.harmful))
    assert helpful == sorted(helpful, reverse=True)
    assert harmful == sorted(harmful)
    assert helpful[0] > 0 > harmful[0]
    assert all(each.influence > 0 for each in found.suspects)


@pytest.mark.parametrize("place", [-1, 300])
def test_an_example_that_is_none_is_refused(run, place):
    with pytest.raises(RunError, match=f"the test set has examples 0 to 299, got {place}"):
        influence.of_run(run, place)


def test_a_regression_is_refused(tmp_path):
    x = np.linspace(0, 1, 60, dtype=np.float32)[:, None]
    np.savez(tmp_path / "line.npz", x=x, y=2.5 * x[:, 0])
    data = {"name": str(tmp_path / "line.npz"), "task": "regression"}
    config = make_config(DIGITS | {"data": data, "loss": "quadratic", "model": [{"dense": 1}]})
    with pytest.raises(RunError, match="influences are of examples with a class each"):
        influence.of_run(loop.train(config, run_dir=tmp_path / "r", quiet=True), 0)


def test_wrong_labels_are_found():
    """A tenth of the digits' labels are made wrong: influence tells 0.97 of the pairs apart, the cost 0.96."""
    x, right = load_digits(return_X_y=True)
    xs, random = jnp.asarray(x[:900] / 16, jnp.float32), np.random.RandomState(0)
    wrong = random.rand(900) < 0.1
    ys = jnp.asarray(np.where(wrong, (right[:900] + random.randint(1, 10, 900)) % 10, right[:900]), jnp.int32)
    net, loss = jaxnet.serial(jaxnet.dense(32), jaxnet.tanh, jaxnet.dense(10)), jaxnet.softmax_cross_entropy
    params, optimizer = net.init(jax.random.key(0), xs[0]), optax.adam(0.01)
    gradient = jaxnet.value_and_grad(net, loss)

    def one(so_far, _):
        params, state = so_far
        updates, state = optimizer.update(gradient(params, xs, ys)[1], state)
        return (optax.apply_updates(params, updates), state), None

    with jax.numpy_dtype_promotion("standard"):
        (params, _), _ = jax.jit(lambda p: jax.lax.scan(one, (p, optimizer.init(p)), length=400))(params)
    axes = influence.curvature(net, loss, params, xs, ys)
    by_influence = influence.in_batches(lambda x, y: self_influence(net, loss)(params, axes, x, y), xs, ys)
    costs, _ = jaxnet.per_example(net, loss)(params, xs, ys)
    found, by_cost = (roc_auc_score(wrong, values) for values in (by_influence, costs))
    assert found > 0.95
    assert found >= by_cost - 0.01
