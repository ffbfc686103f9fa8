"""From a config to what is trained: every recipe, every form of a layer, every optimizer, and all that is refused."""

import re
import tomllib
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxnet as jn
from jaxnet.layer import Layer, ShapeError
from jaxnet.layers import INITIALIZERS, pinned
from jaxnet.layers.initializers import Initializer
from jaxnet.quantities.kronecker import kronecker
from jaxnet.training.build import Experiment, build, in_toml, is_weight, network, optimizer_of, takes_blocks
from jaxnet.training.config import Config, ConfigError, load_config, make_config
from jaxnet.training.data import Dataset, Split, load
from jaxnet.training.data.text import from_text
from jaxnet.training.names import OPTIMIZERS, SCHEDULES, parameters
from jaxnet.training.toys import wedge
from tests.test_registry import doubled, gate

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.toml"))
SMALL = """
loss = "quadratic"
model = [{ dense = 4 }, "sigmoid", { dense = 3 }]
[train]
epochs = 1
batch = 2
optimizer = { name = "sgd", learning_rate = 0.5 }
"""


def made_up(shape=(6,), classes=3, n=8) -> Dataset:
    """Examples of a shape, in classes."""
    rng = np.random.default_rng(0)
    splits = [
        Split(rng.random((k, *shape), np.float32), rng.integers(0, classes, k).astype(np.int32)) for k in (n, 4, 4)
    ]
    return Dataset("made up", *splits, classes=classes)


def some_text() -> Dataset:
    """A text of the 65 characters that Shakespeare's has, in short windows."""
    return from_text("text", "".join(map(chr, range(32, 97))) * 3, window=8)


def config(*overrides: str) -> Config:
    return make_config(tomllib.loads(SMALL), overrides)


def built(*overrides: str, data: Dataset | None = None) -> Experiment:
    return build(config(*overrides), data or made_up())


def start(experiment: Experiment):
    return jn.initialize(experiment.net, experiment.loss, jax.random.key(0), experiment.example)


# -------------------------------------------------------------------------------------------- recipes


# Recipes that differ from another one in numbers alone take theirs by `pytest -m slow tests/test_build.py`.
ALIKE = {f"nielsen_ch{which}" for which in ("1_100", "3_30", "3_98", "5_1", "5_2", "5_3", "6_conv", "6_relu")}


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem in ALIKE else []) for p in CONFIGS]
)
def test_every_recipe_takes_two_steps(path):
    recipe = load_config(path)
    name, options = (recipe.data, {}) if isinstance(recipe.data, str) else (recipe.data["name"], recipe.data)
    picture = (784,) if options.get("flat", True) else (28, 28, 1)
    fetched = {"mnist": lambda: made_up(picture, 10, n=1100), "tinyshakespeare": some_text}
    data = fetched[name]() if name in fetched else load(recipe.data)
    net, loss, optimizer, example = build(recipe, data)
    blocks = kronecker(net, loss)

    @jax.jit
    def two_steps(key):
        def step(so_far, batch):
            params, state = so_far
            value, grads = jn.value_and_grad(net, loss)(params, *batch, key=key, train=True)
            extra = {"curvature": partial(blocks, params, *batch, key=key, train=True)} if takes_blocks(recipe) else {}
            updates, state = optimizer.update(grads, state, params, **extra)
            return (optax.apply_updates(params, updates), state), value

        params = jn.initialize(net, loss, key, example)
        batches = tuple(jnp.asarray(t[:10]).reshape(2, 5, *t.shape[1:]) for t in data.train)
        (params, _), values = jax.lax.scan(step, (params, optimizer.init(params)), batches)
        return values, params

    value, params = two_steps(jax.random.key(recipe.seed))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in [value, *jax.tree.leaves(params)])


def test_two_three_two_begins_with_its_pinned_weights():
    net, loss, _, example = build(load_config(CONFIGS[-1]), wedge())
    params = jn.initialize(net, loss, jax.random.key(7), example)
    first = wedge().train
    np.testing.assert_array_equal(first.x[0], [1, 2])
    assert first.y[0] == 0
    trace = jn.trace(net, loss)(params, jnp.array([1.0, 2.0]), jnp.array(0))
    z2, _, z3, a3 = (step.out for step in trace.steps)
    np.testing.assert_allclose(z2, [0.4, -0.3, 1.3], atol=1e-6)
    np.testing.assert_allclose(z3, [-1.13, 0.05], atol=1e-6)
    np.testing.assert_allclose(a3, [0.244, 0.513], atol=1e-3)
    np.testing.assert_allclose(trace.cost, 0.4170, atol=5e-5)


def test_the_wedge():
    data = wedge(train=30, validation=20, test=10)
    assert [len(split.y) for split in (data.train, data.validation, data.test)] == [30, 20, 10]
    for x, y in (data.train, data.validation, data.test):
        np.testing.assert_array_equal(y == 0, x[:, 1] > abs(x[:, 0]))
        assert {0, 1} == set(y.tolist())
    np.testing.assert_array_equal(wedge().test.x, wedge().test.x)


# --------------------------------------------------------------------------------------------- layers

nielsen = INITIALIZERS["nielsen"]
W, b = [[0.1, -0.2, 1.0], [0.3, 0.4, 0.5]], [0.0, 1.0]

FORMS = [
    # as a config says it, as one would write it, the shape of an input
    ("['sigmoid', 'gelu_tanh', 'identity', 'softmax']", [jn.sigmoid, jn.layers.gelu_tanh, jn.identity, jn.softmax],
     (3,)),
    ("[{dense = 5}]", [jn.dense(5, init="nielsen")], (3,)),
    ("[{dense = {units = 5, bias = false, init = 'orthogonal'}}]", [jn.dense(5, bias=False, init="orthogonal")], (3,)),
    (f"[{{dense = {{units = 2, weights = {W}, biases = {b}}}}}]",
     [jn.dense(2, init=Initializer(pinned(W), pinned(b)))], (3,)),
    (f"[{{dense = {{units = 2, weights = {W}}}}}]", [jn.dense(2, init=nielsen._replace(W=pinned(W)))], (3,)),
    ("['leaky_relu', {leaky_relu = 0.2}, {elu = {alpha = 2}}]",
     [jn.leaky_relu(), jn.leaky_relu(0.2), jn.elu(2.0)], (3,)),
    ("[{dropout = 0.4}]", [jn.dropout(0.4)], (50,)),
    ("['flatten', {reshape = [3, -1]}]", [jn.flatten(), jn.reshape(3, -1)], (2, 6)),
    ("[{residual = [{dense = 3}, 'tanh']}]", [jn.residual(jn.serial(jn.dense(3, init="nielsen"), jn.tanh))], (3,)),
    ("[{residual = {dense = 3}}]", [jn.residual(jn.dense(3, init="nielsen"))], (3,)),
    ("[{residual = 'relu'}]", [jn.residual(jn.relu)], (3,)),
    ("[{repeat = {times = 4, block = [{residual = [{dense = 3}]}]}}]",
     [jn.repeat(jn.serial(jn.residual(jn.serial(jn.dense(3, init="nielsen")))), 4)], (3,)),
    ("[{parallel = {branches = [['relu'], [{dense = 2}]], join = 'concatenate'}}]",
     [jn.parallel(jn.serial(jn.relu), jn.serial(jn.dense(2, init="nielsen")), join="concatenate")], (3,)),
    ("[{parallel = [['relu'], 'tanh']}]", [jn.parallel(jn.serial(jn.relu), jn.tanh)], (3,)),
    ("[{per_position = [{dense = 2}]}]", [jn.per_position(jn.serial(jn.dense(2, init="nielsen")))], (4, 3)),
    ("[{remat = ['tanh', {dense = 2}]}]", [jn.remat(jn.serial(jn.tanh, jn.dense(2, init="nielsen")))], (3,)),
    ("[{'tests.test_registry:doubled' = {times = 3}}]", [doubled(3)], (3,)),
    ("[{'tests.test_registry:gate' = {block = {dense = 3}}}]", [gate(jn.dense(3, init="nielsen"))], (3,)),
    ("[{bidirectional = [{gru = 2}, {gru = {units = 2, reverse = true}}]}]",
     [jn.bidirectional(jn.gru(2, init="nielsen"), jn.gru(2, reverse=True, init="nielsen"))], (4, 3)),
    ("[{pre_norm = {block = {dense = 3}, norm = 'rms_norm'}}]",
     [jn.models.pre_norm(jn.dense(3, init="nielsen"), jn.rms_norm())], (3,)),
    ("[{tied = {layers = [{dense = 3}, 'tanh', {dense = 3}], where = [0, 2]}}]",
     [jn.tied(jn.dense(3, init="nielsen"), jn.tanh, jn.dense(3, init="nielsen"), where=(0, 2))], (3,)),
    ("[{'jaxnet.layers:dense' = {units = 2}}, 'jaxnet:relu', 'jaxnet:flatten', {'jaxnet:dense' = 4}]",
     [jn.dense(2), jn.relu, jn.flatten(), jn.dense(4)], (3,)),
]  # fmt: skip


def same_function(net: Layer, other: Layer, shape) -> None:
    """Equal parameters from one key, equal outputs and readings, while training."""
    key, x = jax.random.key(3), jax.random.normal(jax.random.key(4), shape)
    params = net.init(key, x)
    jax.tree.map(np.testing.assert_array_equal, params, other.init(key, x))
    out, saved = net.forward(params, x, key, True)
    wanted, other_saved = other.forward(params, x, key, True)
    np.testing.assert_array_equal(out, wanted)
    dx = net.backward(params, saved, out, jn.product)
    jax.tree.map(np.testing.assert_array_equal, dx, other.backward(params, other_saved, out, jn.product))


@pytest.mark.parametrize(("spec", "layers", "shape"), FORMS, ids=[form[0] for form in FORMS])
def test_a_config_s_layers_are_those_that_one_would_write(spec, layers, shape):
    same_function(network(config("init=nielsen", f"model={spec}")), jn.serial(*layers), shape)


def test_models_by_name_and_of_one_s_own():
    mlp = network(config("init=glorot_normal", "model={name='mlp', widths=[5, 2], activation='tanh', out='sigmoid'}"))
    same_function(mlp, jn.models.mlp([5, 2], activation="tanh", out="sigmoid", init="glorot_normal"), (3,))
    own = network(config("model={name='jaxnet:residual_mlp', width=4, depth=2, outputs=3}"))
    same_function(own, jn.models.residual_mlp(4, 2, 3), (3,))
    same_function(network(config("model='jaxnet:relu'")), jn.relu, (3,))


def test_losses_by_name_with_options_and_of_one_s_own():
    data = made_up()
    assert built("loss=softmax_cross_entropy").loss is jn.softmax_cross_entropy
    assert built("loss=jaxnet:softmax_cross_entropy").loss is jn.softmax_cross_entropy
    for spec in ("{name='huber', threshold=0.1}", "{name='jaxnet:huber', threshold=0.1}"):
        net, loss, _, example = build(config(f"loss={spec}"), data)
        params = jn.initialize(net, loss, jax.random.key(0), example)
        found = jn.value_and_grad(net, loss)(params, *map(jnp.asarray, data.train))
        wanted = jn.value_and_grad(net, jn.losses.huber(0.1))(params, *map(jnp.asarray, data.train))
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_precision_is_that_of_the_example():
    assert built().example == jax.ShapeDtypeStruct((6,), np.float32)
    assert built("precision=bfloat16").example.dtype == np.float32
    double = built("precision=float64")
    assert double.example.dtype == np.float64
    with jax.enable_x64(True):
        assert {leaf.dtype for leaf in jax.tree.leaves(start(double))} == {np.dtype(np.float64)}


# ------------------------------------------------------------------------------------------ optimizers

PARAMS = ({"W": jnp.array([[1.0, -2.0], [3.0, 0.5]]), "b": jnp.array([1.0, -1.0])}, ())
GRADS = jax.tree.map(lambda p: 0.1 * p + 0.3, PARAMS)


def step(optimizer, times=1):
    """The parameters after so many steps with the same gradient."""

    def one(so_far, _):
        params, state = so_far
        updates, state = optimizer.update(GRADS, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda: jax.lax.scan(one, (PARAMS, optimizer.init(PARAMS)), length=times)[0][0])()


def allowed(optimizer, times=1):
    """The same of optax's own, which is not held strictly."""
    with jax.numpy_dtype_promotion("standard"):
        return step(optimizer, times)


@pytest.mark.parametrize(
    "name", sorted(set(OPTIMIZERS) - {"kfac", "shampoo", "soap"})
)  # which take the curvature too: tests/quantities
def test_every_optimizer_that_is_offered_takes_a_step(name):
    found = step(optimizer_of(config(f"train.optimizer={{name='{name}', learning_rate=0.1}}"), 8), times=2)
    jax.tree.map(np.testing.assert_array_equal, found, allowed(OPTIMIZERS[name](0.1), times=2))
    assert not np.array_equal(found[0]["W"], PARAMS[0]["W"])


ARGUMENTS = {
    "init_value": 1.0, "decay_steps": 10, "transition_steps": 10, "peak_value": 2.0, "decay_rate": 0.5,
    "end_value": 0.1, "power": 1.0, "warmup_steps": 5, "value": 0.3, "interpolate_type": "linear",
    "boundaries_and_scales": {"5": 0.5}, "boundaries": [5],
    "schedules": [{"schedule": "constant_schedule", "value": v} for v in (1.0, 2.0)],
    "cosine_kwargs": [{"init_value": 0.0, "peak_value": 1.0, "decay_steps": 10, "warmup_steps": 5, "end_value": 0.0}],
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_that_is_offered_drives_the_learning_rate(name):
    takes = parameters(SCHEDULES[name])
    needed = {k: v for k, v in ARGUMENTS.items() if k in takes and (takes[k].default is takes[k].empty or k[0] == "b")}
    document = tomllib.loads(SMALL)
    document["train"]["optimizer"]["learning_rate"] = {"schedule": name, **needed}
    found = step(optimizer_of(make_config(document), 8), times=7)
    plain = dict(needed)
    if "schedules" in plain:
        plain["schedules"] = [optax.constant_schedule(v) for v in (1.0, 2.0)]
    if "boundaries_and_scales" in plain:
        plain["boundaries_and_scales"] = {5: 0.5}
    jax.tree.map(np.testing.assert_allclose, found, allowed(optax.sgd(SCHEDULES[name](**plain)), times=7))


def test_l2_shrinks_weights_by_one_minus_eta_lambda_over_n_and_spares_biases():
    found = step(optimizer_of(config("train.l2=4", "train.optimizer.learning_rate=0.5"), 20))
    (p, _), (g, _) = PARAMS, GRADS
    np.testing.assert_allclose(found[0]["W"], (1 - 0.5 * 4 / 20) * p["W"] - 0.5 * g["W"], rtol=1e-6)
    np.testing.assert_allclose(found[0]["b"], p["b"] - 0.5 * g["b"], rtol=1e-6)


def test_l2_follows_a_schedule_and_goes_beside_any_optimizer():
    rate = "{schedule='piecewise_constant_schedule', init_value=0.5, boundaries_and_scales={1=0.1}}"
    with jax.numpy_dtype_promotion("standard"):
        for name, plain in (("sgd", optax.sgd), ("adam", optax.adam)):
            changes = [f"train.optimizer={{name='{name}', learning_rate={rate}}}", "train.l2=4"]
            optimizer, without = (
                optimizer_of(config(*changes), 20),
                plain(optax.piecewise_constant_schedule(0.5, {1: 0.1})),
            )
            state, other, params = optimizer.init(PARAMS), without.init(PARAMS), PARAMS
            for eta in (0.5, 0.05, 0.05):
                updates, state = optimizer.update(GRADS, state, params)
                wanted, other = without.update(GRADS, other, params)
                shrunk = wanted[0]["W"] - eta * 4 / 20 * params[0]["W"]
                np.testing.assert_allclose(updates[0]["W"], shrunk, rtol=1e-5, atol=1e-7)
                np.testing.assert_allclose(updates[0]["b"], wanted[0]["b"], rtol=1e-6)
                params = optax.apply_updates(params, updates)


def test_weights_are_known_inside_repeat_and_in_losses_with_parameters():
    params = (({"W": jnp.ones((4, 2, 2)), "b": jnp.ones((4, 2))}, ()), {"W": jnp.ones((2, 2)), "b": jnp.ones(2)})
    assert is_weight(params) == (({"W": True, "b": False}, ()), {"W": True, "b": False})


def test_clipping_comes_first_and_accumulation_averages():
    clipped = step(optimizer_of(config("train.clip_norm=0.1"), 8))
    scale = 0.1 / optax.tree.norm(GRADS)
    jax.tree.map(lambda p, g, f: np.testing.assert_allclose(f, p - 0.5 * scale * g, rtol=1e-5), PARAMS, GRADS, clipped)
    optimizer = optimizer_of(config("train.accumulate=2"), 8)
    jax.tree.map(np.testing.assert_array_equal, step(optimizer), PARAMS)
    jax.tree.map(
        lambda p, g, f: np.testing.assert_allclose(f, p - 0.5 * g, rtol=1e-5), PARAMS, GRADS, step(optimizer, times=2)
    )


def test_an_optimizer_of_one_s_own():
    found = step(
        optimizer_of(config("train.optimizer={name='optax:sgd', learning_rate=0.1, momentum=0.5}"), 8), times=3
    )
    jax.tree.map(np.testing.assert_array_equal, found, step(optax.sgd(0.1, momentum=0.5), times=3))


# --------------------------------------------------------------------------------------------- refused


def refused(message: str, *overrides: str, data: Dataset | None = None, kind: type[Exception] = ConfigError) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        built(*overrides, data=data)


def test_an_input_that_the_network_does_not_take_names_the_layer():
    message = "the network and the data do not fit: layer 1 of 3: dense 4 takes a vector, got shape (2, 3)"
    refused(message, data=made_up((2, 3)), kind=ShapeError)
    refused(
        "layer 2 of 2: dense 3 takes a vector, got shape (2, 3)", "model=[{reshape=[2,3]},{dense=3}]", kind=ShapeError
    )
    refused(
        "layer 1 of 1: residual takes a layer that gives back the shape",
        "model=[{residual={dense=3}}]",
        kind=ShapeError,
    )
    refused("a number for each of the 3 classes of made up, got 2: end the model", "model.2.dense=2", kind=ShapeError)


def test_targets_that_the_loss_does_not_take():
    data = made_up()
    floats = Dataset(
        "floats", *(Split(s.x, s.x[:, :2]) for s in (data.train, data.validation, data.test)), classes=None
    )
    refused("quadratic takes a target of shape () (class labels) or (3,) (values)", data=floats, kind=ShapeError)
    assert built("model.2.dense=2", data=floats)


def test_what_does_not_go_with_the_data():
    refused("train.batch must be at most 8, the examples of made up to train on, got 9", "train.batch=9")
    refused("monitor.mean_delta must be at most 8", "monitor.mean_delta=9")


REFUSED = [
    (["model=[{dropout=1.5}]"], "model.0.dropout: a drop rate is at least 0 and below 1, got 1.5"),
    (["model.0={dense={units=4, weights=[[1.0]]}}"], "pinned values must have the shape (4, 6) of the parameter"),
    (["model.0={dense={units=4, weights=[[1.0], [1.0, 2.0]]}}"], "rows of one length, got lengths [1, 2]"),
    (["model.0={dense={units=4, bias=false, biases=[1.0]}}"], "biases are given where bias = false leaves them out"),
    (["model.0={tied={layers=['relu', {dense=3}], where=[0, 1]}}"], "tied takes layers with a parameter 'W'"),
    (["model.0={tied={layers=['relu'], where=[0]}}"], "model.0.tied: tied takes at least two different indices"),
    (["loss={name='huber', threshold=-1}"], "loss: Huber's threshold is positive, got -1.0"),
    (["train.head_chunks=2"], "train.head_chunks: a head is fused where a network ends in a layer that works position"),
    (["model=nowhere_at_all:net"], 'model: "nowhere_at_all:net": there is no module nowhere_at_all'),
    (["model.0={'jaxnet:relu' = 3}"], '"jaxnet:relu" must have a table of options, such as { units = 32 }, got 3'),
    (["model=jaxnet:mpl"], '"jaxnet:mpl": jaxnet has no mpl: did you mean "mlp"?'),
    (["model=jaxnet:mlp"], 'model: "jaxnet:mlp" cannot be made with no options: missing a required argument'),
    (["model={name='jaxnet:mlp', widhts=[3]}"], "cannot be made with widhts = [3]"),
    (["model={name='jaxnet:relu', slope=3}"], 'model: "jaxnet:relu" is no function, so it takes no options, got slope'),
    (["model=jaxnet:quadratic"], '"jaxnet:quadratic" must be a Layer or a function that gives one, got a Loss'),
    (["model.0='os:getcwd'"], 'model.0: "os:getcwd" runs code of '),
    (["model.0='sys:exit'"], 'model.0: "sys:exit" runs code of sys: a config may name modules beside it'),
    (["model.0='tests.test_build:np.zeros'"], '"tests.test_build:np.zeros" must name an object of tests.test_build'),
    (["model.0='optax:nothing'"], "optax has no nothing"),
    (["loss=jaxnet:relu"], '"jaxnet:relu" must be a Loss or a function that gives one, got a Layer'),
    (["train.optimizer=adafactor", "train.l2=1"], "train.l2 needs a learning rate, by which weights shrink"),
    (["train.optimizer={name='jaxnet:relu'}"], "must be a GradientTransformation or a function that gives one"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=[each[0][0] for each in REFUSED])
def test_what_cannot_be_made_is_told_with_its_place(overrides, message):
    refused(message, *overrides)


def test_a_failure_in_code_of_one_s_own_is_told_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "mine_that_fails.py").write_text("def net():\n    return {}['no such key']\n")
    monkeypatch.chdir(tmp_path)
    refused("model: \"mine_that_fails:net\" failed: KeyError: 'no such key' (", "model=mine_that_fails:net")


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("put flatten() before it", 'put "flatten" before it'),
        ("put reshape(-1, 1) before it", "put { reshape = [-1, 1] } before it"),
        ("or per_position(dense(30)) for a", "or { per_position = { dense = 30 } } for a"),
        ("got shape (3, 4), f(x)", "got shape (3, 4), f(x)"),
    ],
)
def test_an_error_is_told_in_the_words_of_a_config(message, told):
    assert in_toml(message) == told
