"""The training step against autodiff and optax, step by step; what it measures against brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

from jaxnet.backprop import one_example, predict
from jaxnet.combinators import per_position, repeat, residual, serial, tied
from jaxnet.layers import ACTIVATIONS, conv2d, dense, dropout, flatten
from jaxnet.readings import total
from jaxnet.traces import trace
from jaxnet.training import accuracy, monitors, step
from jaxnet.training.build import promoting
from jaxnet.training.flops import products
from jaxnet.training.low_precision import in_precision
from jaxnet.training.step import Arrays, Recipe
from tests.problems import LOSSES

tanh = ACTIVATIONS["tanh"]
NETS = {
    "plain": serial(dense(6), tanh, dense(3)),
    "repeat": serial(dense(4), repeat(residual(serial(dense(5), tanh, dense(4, bias=False))), 3), dense(3)),
    "tied": serial(tied(dense(5), tanh, dense(5), tanh, where=(0, 2)), dense(3)),
    "positions": serial(per_position(serial(dense(4), tanh)), flatten(), dense(3)),
}


def recipe(net="plain", optimizer=None, dtype=jnp.float32, **options):
    shape = (2, 5) if net == "positions" else (5,)
    return Recipe(
        NETS[net] if isinstance(net, str) else net,
        LOSSES["softmax_cross_entropy"],
        promoting(optimizer or optax.adamw(optax.cosine_decay_schedule(0.1, 20))),
        jax.ShapeDtypeStruct(shape, dtype),
        jax.ShapeDtypeStruct((), jnp.int32),
        **{"batch": 6} | options,
    )


def test_the_shapes_of_a_recipe_are_traced_once(monkeypatch):
    """To begin or to step again traces neither the parameters' shapes nor a backward pass for the sums' anew."""
    traced, usual = [], step.backpropagate
    monkeypatch.setattr(step, "backpropagate", lambda *of, **options: traced.append(of) or usual(*of, **options))
    of, key = recipe(), step.key_data(0)
    first, second = (jax.eval_shape(step.begin(of), key) for _ in range(2))
    assert first == second
    assert len(traced) == 1
    assert of.shapes[0] == first.params


def data(of, n=23):
    random = np.random.RandomState(0)
    x = random.normal(size=(n, *of.example.shape)).astype(of.example.dtype)
    return Arrays(jnp.asarray(x), jnp.asarray(random.randint(3, size=n), jnp.int32))


def mean_cost(of):
    """The batch's mean cost as a plain function, for autodiff."""

    def cost(params, xs, ys, key):
        keys = jax.random.split(key, len(xs))
        one = one_example(of.net, of.loss, total, train=True)
        return jax.vmap(lambda x, y, k: one(params, x, y, 1.0, k)[0])(xs, ys, keys).mean()

    return cost


def by_autodiff(of, state, seed, train, order, batch):
    """One epoch, step by step, by `jax.value_and_grad` and optax."""
    params, optimizer, loss = state.params, state.optimizer, 0.0
    gradient = jax.jit(jax.value_and_grad(mean_cost(of)))
    for i, start in enumerate(range(0, len(order), batch)):
        xs, ys = (t[order[start : start + batch]] for t in train)
        value, grads = gradient(params, xs, ys, step.step_key(seed, jnp.int32(i)))
        updates, optimizer = of.optimizer.update(grads, optimizer, params)
        params, loss = optax.apply_updates(params, updates), loss + value * len(xs)
    return params, optimizer, loss


def epoch(of, state, seed, train, order, batch, most=100):
    """One epoch by compiled calls."""
    for call in step.epoch_calls(len(order), batch, most):
        state, good = jax.jit(step.many_steps(of, call.count, call.batch))(state, train, order, call.start, seed)
        assert good.all()
    return state


@pytest.mark.parametrize("monitored", [False, True], ids=["plain", "monitored"])
def test_a_head_in_chunks_changes_nothing(monitored, x64):
    net = serial(per_position(serial(dense(4), tanh)), per_position(dense(3)))
    random = np.random.RandomState(0)
    xs, ys = jnp.asarray(random.normal(size=(6, 7, 5))), jnp.asarray(random.randint(-1, 3, size=(6, 7)), jnp.int32)
    whole = Recipe(
        *(net, LOSSES["softmax_cross_entropy"], optax.sgd(0.1)),
        *(jax.ShapeDtypeStruct(t.shape[1:], t.dtype) for t in (xs, ys)),
        **{"batch": 6, "delta_norms": monitored, "gradient_norms": monitored},
    )
    cut = Recipe(**vars(whole) | {"head_chunks": 3})
    state = jax.jit(step.begin(whole))(step.key_data(0))
    programs = [jax.jit(step.measured(of)) for of in (whole, cut)]
    expected, got = (of(state.params, None, xs, ys, jax.random.key(0)) for of in programs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15), got, expected)
    logits = [
        str(jax.make_jaxpr(step.measured(of))(state.params, None, xs, ys, jax.random.key(0))) for of in (whole, cut)
    ]
    assert ["f64[6,7,3]" in text for text in logits] == [True, monitored]


@pytest.mark.parametrize("net", [*NETS, "dropout"])
def test_an_epoch_equals_autodiff_step_by_step(net, x64):
    of = recipe(serial(dense(6), dropout(0.4), dense(3)) if net == "dropout" else net, dtype=jnp.float64)
    seed, train = step.key_data(7), data(of)
    order = jnp.asarray(np.random.RandomState(1).permutation(23).astype(np.int32))
    state = jax.jit(step.begin(of))(seed)
    after = epoch(of, state, seed, train, order, 5)
    params, optimizer, loss = by_autodiff(of, state, seed, train, order, 5)
    assert int(after.step) == 5
    # Adam divides by the gradient's size, so that noise of a gradient near 0 comes back enlarged.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), after.params, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), after.optimizer, optimizer)
    np.testing.assert_allclose(after.sums["loss"], loss, rtol=1e-12)


def test_the_remainder_has_its_own_mean(x64):
    """Three examples alone move the parameters as three examples, not as three fifths of a batch."""
    of = recipe(optimizer=optax.sgd(0.5), dtype=jnp.float64)
    seed, train = step.key_data(0), data(of, 3)
    state = jax.jit(step.begin(of))(seed)
    after = epoch(of, state, seed, train, jnp.arange(3), 5)
    grads = jax.jit(jax.grad(mean_cost(of)))(state.params, *train, jax.random.key(0))
    expected = jax.tree.map(lambda p, g: p - 0.5 * g, state.params, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), after.params, expected)


@pytest.mark.parametrize(("net", "chunks"), [("plain", 2), ("repeat", 1), ("tied", 2), ("positions", 1)])
def test_norms_by_layer_against_brute_force(net, chunks, x64):
    of = recipe(net, optax.sgd(0.3), jnp.float64, delta_norms=True, gradient_norms=True, update_ratios=True)
    of = Recipe(**vars(of) | {"chunks": chunks})
    seed, train = step.key_data(3), data(of, 6)
    state = jax.jit(step.begin(of))(seed)
    after = epoch(of, state, seed, train, jnp.arange(6), 6)
    deltas = [
        s for s in jax.jit(trace(of.net, of.loss))(state.params, *train).steps if s.layer.value.startswith("dense")
    ]
    grads = jax.jit(jax.grad(mean_cost(of)))(state.params, *train, jax.random.key(0))
    if net == "repeat":  # the first, then three times the two of the block, then the last
        blocks = [deltas[i].delta[:, t] for t in range(3) for i in (1, 2)]
        deltas = [deltas[0].delta, *blocks, deltas[3].delta]
        pairs = [grads[1][0], grads[1][2]]
        layers = [grads[0], *(jax.tree.map(lambda g, t=t: g[t], p) for t in range(3) for p in pairs), grads[2]]
        two = [state.params[1][0], state.params[1][2]]
        params = [state.params[0], *(jax.tree.map(lambda g, t=t: g[t], p) for t in range(3) for p in two)]
        params.append(state.params[2])
    else:
        deltas = [s.delta for s in deltas]
        layers, params = (owners(tree) for tree in (grads, state.params))
    squares = [jnp.sum(d**2) for d in deltas]
    np.testing.assert_allclose(after.sums["delta_norms"], squares, rtol=1e-9)
    np.testing.assert_allclose(after.sums["gradient_norms"], [size(g) for g in layers], rtol=1e-9)
    ratios = [0.3 * size(g) / size(p) if size(p) else 0.0 for g, p in zip(layers, params, strict=True)]
    np.testing.assert_allclose(after.sums["update_ratios"], ratios, rtol=1e-9)


def owners(tree):
    """The dictionaries of a tree of parameters, first to last."""
    return [node for node in jax.tree.leaves(tree, is_leaf=lambda t: isinstance(t, dict)) if node]


def size(tree):
    return np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(tree)))


@pytest.mark.parametrize("net", ["plain", "repeat"])
def test_norms_of_the_mean_delta(net, x64):
    of = recipe(net, dtype=jnp.float64)
    train = data(of, 6)
    params = jax.jit(step.begin(of))(step.key_data(3)).params
    found = jax.jit(monitors.mean_delta_norms(of.net, of.loss))(params, *train)
    deltas = [s for s in jax.jit(trace(of.net, of.loss))(params, *train).steps if s.layer.value.startswith("dense")]
    means = [d.delta.mean(0) for d in deltas]
    if net == "repeat":
        means = [means[0], *(means[i][t] for t in range(3) for i in (1, 2)), means[3]]
    np.testing.assert_allclose(found, [size(m) for m in means], rtol=1e-9)


def dots(function, *arguments):
    """The operand dtypes of the matrix products in a function."""
    found = []

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                found.append(tuple(str(v.aval.dtype) for v in eqn.invars))
            for sub in jax.tree.leaves(eqn.params, is_leaf=lambda t: hasattr(t, "eqns") or hasattr(t, "jaxpr")):
                if hasattr(sub, "eqns") or hasattr(sub, "jaxpr"):
                    walk(getattr(sub, "jaxpr", sub))

    walk(jax.make_jaxpr(function)(*arguments).jaxpr)
    return found


@pytest.mark.parametrize("net", ["repeat", "tied", "positions"])
def test_bfloat16_multiplies_in_it_and_keeps_float32(net):
    whole = recipe(net, optax.sgd(1.0))
    low = Recipe(**vars(whole) | {"net": in_precision(whole.net, "bfloat16")})
    train, key = data(whole, 8), jax.random.key(0)
    params = jax.jit(step.begin(whole))(step.key_data(0)).params
    exact, *_ = jax.jit(step.measured(whole))(params, None, *train, key)
    grads, *_ = jax.jit(step.measured(low))(params, None, *train, key)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    assert set(dots(step.measured(low), params, None, *train, key)) == {("bfloat16", "bfloat16")}
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(exact))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.03 * scale), grads, exact)
    rounded = [
        leaf for leaf in jax.tree.leaves(grads) if bool((leaf == leaf.astype(jnp.bfloat16).astype(leaf.dtype)).all())
    ]
    assert not rounded, "a gradient was rounded to bfloat16 on its way"


def test_dropout_keys_follow_seed_and_step():
    seen = {
        tuple(jax.random.key_data(step.step_key(step.key_data(seed), jnp.int32(i))).tolist())
        for seed in range(3)
        for i in range(4)
    } | {tuple(jax.random.key_data(step.init_key(step.key_data(seed))).tolist()) for seed in range(3)}
    assert len(seen) == 15


@pytest.mark.parametrize(("examples", "batch", "most"), [(50_000, 10, 9999), (103, 10, 4), (7, 10, 3), (12, 4, 1)])
def test_calls_cover_the_epoch(examples, batch, most):
    calls = step.epoch_calls(examples, batch, most)
    places = [i for call in calls for i in range(call.start, call.start + call.count * call.batch)]
    assert places == list(range(examples))
    assert all(call.count <= most and (call.batch == batch or call is calls[-1]) for call in calls)
    assert step.epoch_calls(50_000, 10, 9999) == [step.StepCall(0, 5000, 10)]
    assert {call.count for call in step.epoch_calls(390 * 128, 128, 34)} == {30}, "an even call compiles once"


@pytest.mark.parametrize(
    ("net", "shape", "operations"),
    [
        (serial(dense(7), tanh, dense(3)), (5,), 2 * (5 * 7 + 7 * 3)),
        (repeat(dense(5), 4), (5,), 4 * 2 * 25),
        (per_position(dense(3)), (6, 5), 6 * 2 * 15),
        (conv2d(4, 3, groups=2), (8, 8, 6), 2 * 6 * 6 * 4 * 9 * 3),
    ],
    ids=["serial", "repeat", "positions", "convolution"],
)
def test_operations_of_products_are_counted(net, shape, operations):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    params = jax.eval_shape(net.init, jax.random.key(0), x)
    assert products(jax.make_jaxpr(lambda p, x: net.forward(p, x)[0])(params, x)) == operations


def test_evaluation_in_chunks_is_the_whole():
    of = recipe()
    split, params = data(of, 23), jax.jit(step.begin(of))(step.key_data(0)).params
    out = jax.jit(predict(of.net))(params, split.x)
    for chunk in (4, 23, 100):
        found = jax.jit(accuracy.evaluation(of, True, chunk))(params, split)
        expected = optax.softmax_cross_entropy_with_integer_labels(out, split.y).mean()
        np.testing.assert_allclose(found["loss"], expected, rtol=1e-5)
        assert int(found["right"]) == int((out.argmax(-1) == split.y).sum())
        assert int(found["answers"]) == 23


def test_a_seed_among_others_trains_as_it_does_alone(x64):
    of = recipe(dtype=jnp.float64, delta_norms=True)
    train = data(of)
    seeds = jnp.stack([step.key_data(seed) for seed in (4, 5)])
    orders = jnp.stack([jnp.arange(23), jnp.arange(23)[::-1]])
    together = jax.jit(jax.vmap(step.begin(of)))(seeds)
    run = jax.vmap(step.many_steps(of, 4, 5), (0, None, 0, None, 0))
    after, good = jax.jit(run)(together, train, orders, 0, seeds)
    assert good.tolist() == [True, True]
    for i, seed in enumerate(seeds):
        alone, _ = jax.jit(step.many_steps(of, 4, 5))(jax.jit(step.begin(of))(seed), train, orders[i], 0, seed)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-9, atol=1e-12), after, alone)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_an_unsound_state_is_seen(bad, accumulate):
    """Also where the gradient has not reached the parameters yet, but waits in the optimiser's state."""
    optimizer = optax.adam(0.1)
    if accumulate > 1:
        optimizer = optax.MultiSteps(optimizer, accumulate).gradient_transformation()
    of = recipe(serial(dense(3)), optimizer)
    seed, train = step.key_data(0), data(of, 8)
    state = jax.jit(step.begin(of))(seed)
    run = jax.jit(step.many_steps(of, 2, 4))
    assert run(state, train, jnp.arange(8), 0, seed)[1]
    assert not run(state, train._replace(x=train.x.at[5, 0].set(bad)), jnp.arange(8), 0, seed)[1]


def test_the_step_exports_for_every_platform():
    of = recipe("repeat", optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)), delta_norms=True)
    train, seed = data(of), step.key_data(0)
    state = jax.eval_shape(step.begin(of), seed)
    for node in namedtuples(state) | {Arrays}:
        name = f"{node.__module__}.{node.__qualname__}"
        if name not in registered:
            export.register_namedtuple_serialization(node, serialized_name=name)
            registered.add(name)
    order = jax.ShapeDtypeStruct((23,), jnp.int32)
    exported = export.export(jax.jit(step.many_steps(of, 4, 5)), platforms=("cpu", "cuda", "rocm", "tpu"))(
        state, train, order, jax.ShapeDtypeStruct((), jnp.int32), seed
    )
    again = export.deserialize(exported.serialize())
    assert again.platforms == ("cpu", "cuda", "rocm", "tpu")
    begun = jax.jit(step.begin(of))(seed)
    arguments = (begun, train, jnp.arange(23, dtype=jnp.int32), jnp.int32(0), seed)
    here, _ = jax.jit(step.many_steps(of, 4, 5))(*arguments)
    there, _ = again.call(*arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), here, there)


registered: set[str] = set()


def namedtuples(tree):
    """The types of the NamedTuples in a tree."""
    found = set()

    def look(node):
        if isinstance(node, tuple) and hasattr(node, "_fields"):
            found.add(type(node))
        return False

    jax.tree.leaves(tree, is_leaf=look)
    return found
