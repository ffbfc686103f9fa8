"""A batch sharded over eight devices: the same training as on one, with one exchange of gradients in a step."""

import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnet.backprop import initialize, mean_weights, one_example
from jaxnet.combinators import repeat, residual, serial
from jaxnet.devices.placement import RULES, layout, make_mesh
from jaxnet.layers import ACTIVATIONS, attention, dense
from jaxnet.readings import total
from jaxnet.training import devices, loop, step
from jaxnet.training.config import ConfigError
from jaxnet.training.data import load
from jaxnet.training.fine_tuning import by_name
from jaxnet.training.session import Session
from jaxnet.training.trained_network import restore
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


def by_autodiff(recipe):
    """As `step.measured`, by autodiff of the same costs."""
    one = one_example(recipe.net, recipe.loss, total, train=True)

    def cost(params, xs, ys):
        weights = mean_weights(recipe.loss, ys, None)
        return jax.vmap(lambda x, y, w: one(params, x, y, w, None)[0])(xs, ys, weights).sum()

    def of(params, kept, xs, ys, key, *_):
        value, grads = jax.value_and_grad(cost)(params, xs, ys)
        return grads, {"loss": value * len(xs)}, kept

    return of


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

    monkeypatch.setattr(step, "measured", by_autodiff)
    theirs = collectives(jax.jit(step.many_steps(recipe, 4, 16), out_shardings=whole).lower(*arguments).compile())
    assert ours == theirs
    assert set(ours) == {"all-reduce"}


def test_each_device_has_its_share_of_the_batch():
    """The compiled step multiplies two of sixteen examples on each of eight devices, and not all on all."""
    with devices.precision("float32"):
        session = Session(small("mesh.data=8", "train.batch=16"), load("tests.runs:blobs"))
        state = session.begin()
        session.steps(session.calls[0], state, session.order(0))
    text = session.programs[(session.calls[0].count, 16)].as_text()
    assert re.search(r"f32\[2,8\]", text)
    assert not re.search(r"f32\[16,8\]", text)


# ----------------------------------------------------------------------------- parameters over devices, and pipelines

DEEP = [{"dense": 8}, {"repeat": {"block": [{"residual": [{"dense": 8}, "tanh"]}], "times": 4}}, {"dense": 3}]
TEXT = {"name": "letters.txt", "window": 8, "limit": 32}
DOCUMENTS = {
    "deep": {"model": DEEP},
    "gpt2": {
        "data": TEXT,
        "model": {"name": "gpt2", "vocab": 16, "width": 16, "heads": 4, "depth": 4, "positions": 8},
    },
}


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """A folder with a text of 16 letters."""
    folder = tmp_path_factory.mktemp("text")
    ids = np.random.RandomState(1).randint(16, size=2000)
    (folder / "letters.txt").write_text("".join("abcdefghijklmnop"[i] for i in ids))
    return folder


def two_steps(folder, name, *mesh):
    """A session, the state after two steps, and their compiled program."""
    with pytest.MonkeyPatch.context() as patch, devices.precision("float32"):
        patch.chdir(folder)
        sgd = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}
        train = {"epochs": 1, "batch": 16, "steps_per_call": 2, "optimizer": sgd}
        config = small("monitor.delta_norms=false", *mesh, train=train, **DOCUMENTS[name])
        session = Session(config, load(config.data))
        state, good, _ = session.steps(session.calls[0], session.begin(), session.order(0))
    assert good.all()
    return session, state, session.programs[(2, 16)]


@pytest.fixture(scope="module")
def on_one(letters):
    """The state after two steps on one device, by the document's name."""
    return functools.cache(lambda name: jax.device_get(two_steps(letters, name)[1]))


@pytest.mark.parametrize(
    ("name", "sizes", "cut"),
    [
        ("deep", "data=2 fsdp=2 tensor=2", {"1.0.0.W": (4, 4, 4), "0.W": (4, 5), "2.b": (3,)}),
        ("deep", "pipeline=2 fsdp=2 tensor=2 microbatches=4", {"1.0.0.W": (2, 4, 4)}),
        ("gpt2", "fsdp=2 tensor=4", {"0.W": (4, 8), "2.0.1.W_q": (4, 4, 8), "2.0.1.W_o": (4, 8, 4)}),
        pytest.param(
            "gpt2",
            "pipeline=2 data=2 tensor=2 microbatches=2 schedule=1f1b",
            {"2.0.1.W_q": (2, 8, 16)},
            marks=pytest.mark.long,
        ),
    ],
)
def test_parameters_over_devices_train_as_on_one(letters, on_one, name, sizes, cut):
    mesh = [f"mesh.{size}" for size in sizes.split()]
    _, state, _ = two_steps(letters, name, *mesh)
    jax.tree.map(
        lambda got, expected: np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6),
        jax.device_get(state),
        on_one(name),
    )
    for tree in (state.params, state.optimizer[0][0].trace):
        found = dict(by_name(tree))
        shares = {place: found[place].sharding.shard_shape(found[place].shape) for place in cut}
        assert shares == cut


def test_no_more_exchanges_than_autodiff_of_the_same_layout(letters, monkeypatch):
    ours = collectives(two_steps(letters, "gpt2", "mesh.tensor=4")[2])
    monkeypatch.setattr(step, "measured", by_autodiff)
    theirs = collectives(two_steps(letters, "gpt2", "mesh.tensor=4")[2])
    assert sum(ours.values()) <= sum(theirs.values()), (ours, theirs)


def test_fsdp_gathers_each_matrix_as_it_is_used_and_keeps_none(letters, monkeypatch):
    """Autodiff saves the gathered matrices from forward to backward; here each is gathered twice and never kept."""
    _, state, program = two_steps(letters, "deep", "mesh.fsdp=8")
    matrices = sum(p.sharding.is_fully_replicated is False for p in jax.tree.leaves(state.params))
    ours, memory = collectives(program), program.memory_analysis().temp_size_in_bytes
    monkeypatch.setattr(step, "measured", by_autodiff)
    program = two_steps(letters, "deep", "mesh.fsdp=8")[2]
    assert ours["all-reduce"] <= collectives(program)["all-reduce"]
    assert ours["all-gather"] <= 2 * matrices
    assert memory <= program.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    ("net", "sizes", "rules", "told"),
    [
        (
            dense(10),
            {"tensor": 4},
            {},
            r"dense\(10\): out = 10 must be a multiple of .* tensor = 4: take tensor from 1, 2,",
        ),
        (attention(6), {"tensor": 4}, {}, r"attention\(6\): heads = 6 must be .* or heads = 8"),
        (attention(4, kv_heads=2), {"tensor": 4}, {}, "kv_heads = 2 must be a multiple"),
        (repeat(dense(6), 3), {"pipeline": 2}, {}, "3 layers of a repeat must be a multiple of .* pipeline from 1, 3"),
        (dense(10), {"tensor": 4}, {"outs": ""}, 'no layer has an axis "outs": did you mean "out"'),
        (dense(10), {"tensor": 4}, {"out": "model"}, "is no axis of the mesh"),
    ],
)
def test_a_network_that_a_mesh_does_not_divide_is_refused(net, sizes, rules, told):
    x = jax.ShapeDtypeStruct((6,) if net.maker != "attention" else (5, 12), jnp.float32)
    with pytest.raises(ValueError, match=told):
        layout(net, None, x, make_mesh(sizes, jax.devices()[: math.prod(sizes.values())]), RULES | rules)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["mesh.data=4"], "train.batch must be a multiple of mesh.data = 4, got 10: take 12"),
        (["mesh.data=2", "mesh.fsdp=3"], "mesh.data · mesh.fsdp = 6"),
        (["mesh.pipeline=2"], r"monitor.delta_norms = false"),
        (["mesh.pipeline=2", "monitor.delta_norms=false"], "mesh.microbatches · mesh.data = 8, got 10: take 16"),
    ],
)
def test_a_config_whose_batch_a_mesh_does_not_divide_is_refused(overrides, told):
    with pytest.raises(ConfigError, match=told):
        small(*overrides)


def test_a_rule_leaves_an_axis_whole():
    x, mesh = jax.ShapeDtypeStruct((6,), jnp.float32), make_mesh({"tensor": 4}, jax.devices()[:4])
    whole = layout(serial(dense(8), dense(3)), None, x, mesh, RULES | {"dense.out": ""} | {"in": ""})
    assert all(p.is_fully_replicated for p in jax.tree.leaves(whole.params))


def test_initialize_is_the_same_on_any_mesh():
    params = initialize(NETS["unrolled"], None, jax.random.key(0), jnp.ones(5))
    assert params[0]["W"].shape == (8, 5)
