"""A batch sharded over eight devices: the same training as on one, with one exchange of gradients in a step."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnet.backprop import initialize, one_example
from jaxnet.combinators import repeat, residual, serial
from jaxnet.layers import ACTIVATIONS, dense
from jaxnet.readings import total
from jaxnet.training import devices, loop, step
from jaxnet.training.evaluate import restore
from jaxnet.training.session import Session
from tests.problems import LOSSES
from tests.runs import metrics, small, summary

NETS = {
    "unrolled": serial(dense(8), ACTIVATIONS["tanh"], dense(3)),
    "repeat": serial(dense(8), repeat(residual(serial(dense(8), ACTIVATIONS["tanh"])), 3), dense(3)),
}


@pytest.mark.parametrize("count", [2, 8])
def test_sharded_training_equals_that_on_one_device(tmp_path, count):
    monitor = {"mean_delta": 20, "gradient_norms": True}
    config = {
        "monitor": monitor,
        "train": {"epochs": 3, "batch": 16, "optimizer": {"name": "sgd", "learning_rate": 0.1}},
    }
    one = loop.train(small(**config), run_dir=tmp_path / "one", quiet=True)
    many = loop.train(small(f"mesh.data={count}", **config), run_dir=tmp_path / "many", quiet=True)
    for ours, theirs in zip(metrics(one), metrics(many), strict=True):
        for name in ("train_loss", "test_loss", "delta_norms", "mean_delta_norms", "gradient_norms"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, err_msg=name)
    params = [restore(folder).params for folder in (one, many)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *params)
    assert json.loads((many / "environment.json").read_text())["devices"] == count


def test_a_sharded_run_resumes_to_the_same_bits(tmp_path):
    config = small("mesh.data=8", "train.batch=16", "checkpoint.every_seconds=0.0")
    whole = loop.train(config, run_dir=tmp_path / "whole", quiet=True)
    half = loop.train(config, run_dir=tmp_path / "half", quiet=True)
    (half / "summary.json").unlink()
    (half / "checkpoints" / "21").rename(tmp_path / "taken away")
    loop.resume(half, quiet=True)
    assert summary(half)["params_sha256"] == summary(whole)["params_sha256"]


def collectives(compiled):
    """How many of each kind of exchange a compiled program has."""
    kinds = re.findall(
        r"= .*? (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(", compiled.as_text()
    )
    return {kind: kinds.count(kind) for kind in set(kinds)}


@pytest.mark.parametrize("net", NETS)
def test_as_many_exchanges_as_autodiff(net, monkeypatch):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    recipe = step.Recipe(
        NETS[net],
        LOSSES["softmax_cross_entropy"],
        optax.sgd(0.1),
        jax.ShapeDtypeStruct((5,), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.int32),
        batch=16,
        mesh=mesh,
    )
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    train = step.Arrays(jnp.ones((64, 5)), jnp.zeros(64, jnp.int32))
    key = step.key_data(0)
    arguments = jax.device_put((jax.jit(step.begin(recipe))(key), train, jnp.arange(64), jnp.int32(0), key), whole)
    ours = collectives(jax.jit(step.many_steps(recipe, 4, 16), out_shardings=whole).lower(*arguments).compile())

    def autodiff(recipe):
        one = one_example(recipe.net, recipe.loss, total, train=True)

        def cost(params, xs, ys):
            return jax.vmap(lambda x, y: one(params, x, y, 1 / len(xs), None)[0])(xs, ys).sum()

        def of(params, kept, xs, ys, key):
            value, grads = jax.value_and_grad(cost)(params, xs, ys)
            return grads, {"loss": value * len(xs)}, kept

        return of

    monkeypatch.setattr(step, "measured", autodiff)
    theirs = collectives(jax.jit(step.many_steps(recipe, 4, 16), out_shardings=whole).lower(*arguments).compile())
    assert ours == theirs
    assert set(ours) == {"all-reduce"}


def test_each_device_has_its_share_of_the_batch():
    """The compiled step multiplies two of sixteen examples on each of eight devices, and not all on all."""
    from jaxnet.training.data import load

    with devices.precision("float32"):
        session = Session(small("mesh.data=8", "train.batch=16"), load("tests.runs:blobs"))
        state = session.begin()
        session.steps(session.calls[0], state, session.order(0))
    text = session.programs[(session.calls[0].count, 16)].as_text()
    assert re.search(r"f32\[2,8\]", text)
    assert not re.search(r"f32\[16,8\]", text)


def test_initialize_is_the_same_on_any_mesh():
    params = initialize(NETS["unrolled"], None, jax.random.key(0), jnp.ones(5))
    assert params[0]["W"].shape == (8, 5)
