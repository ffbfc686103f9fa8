"""The gradient of a batch and its kin, against `jax.grad` of the same forward pass."""

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

import jaxnet
from jaxnet import (
    as_custom_vjp,
    backpropagate,
    dense,
    dropout,
    pair,
    per_example,
    per_position,
    product,
    repeat,
    residual,
    serial,
    sigmoid,
    softmax_cross_entropy,
    squared_norm,
    sum_of_deltas,
    tanh,
    total,
    trace,
    value_and_grad,
)
from jaxnet.layers import ACTIVATIONS
from jaxnet.losses import LOSSES
from tests.agreement import FLOAT64_NOISE, assert_agree, integers, normal, random_like, uniform

cross_entropy = softmax_cross_entropy
VECTOR = serial(dense(4), sigmoid, dropout(0.4), dense(3))
SEQUENCE = serial(per_position(dense(4)), tanh, repeat(residual(per_position(dense(4))), 2), per_position(dense(3)))


def random_params(net, shape, dtype=jnp.float64):
    x = jax.ShapeDtypeStruct(shape, dtype)
    return random_like(1, jax.eval_shape(net.init, jax.random.key(0), x))


def vectors(batch=4, dtype=jnp.float64):
    """Parameters of VECTOR, a batch, and classes."""
    xs = normal(2, (batch, 5)).astype(dtype)
    return random_params(VECTOR, (5,), dtype), xs, integers(3, (batch,), 3)


def sequences(batch=4, dtype=jnp.float64):
    """Parameters of SEQUENCE, a batch of six positions, and classes, of which some do not count."""
    ys = integers(3, (batch, 6), 3)
    ys = jnp.where(uniform(4, ys.shape) < 0.3, -1, ys).at[1].set(-1)
    return random_params(SEQUENCE, (6, 5), dtype), normal(2, (batch, 6, 5)).astype(dtype), ys


def mean_cost(net, loss, params, xs, ys, key=None, train=False, weights=None):
    """Σ w C / Σ w, spelled out: one example after another, each term with its weight."""
    keys = [None] * len(xs) if key is None else jax.random.split(key, len(xs))
    weights = [jnp.ones(())] * len(xs) if weights is None else weights
    costs, n = [], 0.0
    for x, y, k, w in zip(xs, ys, keys, weights, strict=True):
        costs.append(loss.turn((), net.forward(params, x, k, train)[0], y, w, total)[0])
        n += loss.terms(y, w)
    return sum(costs[1:], start=costs[0]) / jnp.asarray(n, xs.dtype)


def assert_gradient(net, loss, params, xs, ys, *, chunks=1, **options):
    expected = jax.value_and_grad(lambda p: mean_cost(net, loss, p, xs, ys, **options))(params)
    assert_agree(value_and_grad(net, loss, chunks=chunks)(params, xs, ys, **options), expected)


# -------------------------------------------------------------------------------------------------- value and gradient


@pytest.mark.parametrize("batch", [1, 4])
def test_value_and_grad(batch, x64):
    assert_gradient(VECTOR, cross_entropy, *vectors(batch))


def test_value_and_grad_in_training_mode(x64):
    assert_gradient(VECTOR, cross_entropy, *vectors(), key=jax.random.key(5), train=True)


def test_training_mode_differs_from_evaluation(x64):
    key = jax.random.key(5)
    training = value_and_grad(VECTOR, cross_entropy)(*vectors(), key=key, train=True)
    assert training[0] != value_and_grad(VECTOR, cross_entropy)(*vectors(), key=key)[0]


def test_example_weights(x64):
    assert_gradient(VECTOR, cross_entropy, *vectors(), weights=jnp.array([0.5, 2.0, 0.0, 1.0]))


def test_an_example_without_weight_is_an_example_left_out(x64):
    params, xs, ys = vectors()
    weighted = value_and_grad(VECTOR, cross_entropy)(params, xs, ys, weights=jnp.array([1.0, 1.0, 0.0, 1.0]))
    kept = jnp.array([0, 1, 3])
    assert_agree(weighted, value_and_grad(VECTOR, cross_entropy)(params, xs[kept], ys[kept]))


def test_ignored_tokens(x64):
    """The mean is over the tokens that count; an example of ignored tokens alone adds nothing."""
    assert_gradient(SEQUENCE, cross_entropy, *sequences())


@pytest.mark.parametrize("dtype", ["bool", "int32", "float32"])
def test_weights_may_have_another_dtype(x64, dtype):
    mask = [1, 0, 1, 1]
    value, grads = value_and_grad(VECTOR, cross_entropy)(*vectors(), weights=jnp.array(mask, dtype))
    expected, wanted = value_and_grad(VECTOR, cross_entropy)(*vectors(), weights=jnp.array(mask, float))
    assert value == expected
    assert_agree(grads, wanted)


def test_token_weights(x64):
    weights = uniform(5, (4, 6)).astype(jnp.float64)
    assert_gradient(SEQUENCE, cross_entropy, *sequences(), weights=weights)


def test_example_weights_of_sequences(x64):
    assert_gradient(SEQUENCE, cross_entropy, *sequences(), weights=jnp.array([0.5, 2.0, 0.0, 1.0]))


def test_a_batch_of_ignored_tokens_alone_gives_zero(x64):
    params, xs, ys = sequences()
    value, grads = value_and_grad(SEQUENCE, cross_entropy)(params, xs, jnp.full_like(ys, -1))
    assert value == 0
    assert_agree(grads, jax.tree.map(jnp.zeros_like, params))


@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_chunks_change_nothing(chunks, x64):
    options = {"key": jax.random.key(5), "train": True, "weights": jnp.array([0.5, 2.0, 0.0, 1.0])}
    assert_gradient(VECTOR, cross_entropy, *vectors(), chunks=chunks, **options)
    assert_gradient(SEQUENCE, cross_entropy, *sequences(), chunks=chunks)


def test_chunks_of_a_pair(x64):
    read = pair(total, sum_of_deltas)
    whole = backpropagate(VECTOR, cross_entropy, read)(*vectors())
    assert_agree(backpropagate(VECTOR, cross_entropy, read, chunks=2)(*vectors()), whole)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_gradients_have_the_structure_shapes_and_dtypes_of_the_parameters(dtype):
    for net, (params, xs, ys) in [(VECTOR, vectors(dtype=dtype)), (SEQUENCE, sequences(dtype=dtype))]:
        value, grads = value_and_grad(net, cross_entropy)(params, xs, ys)
        chex.assert_trees_all_equal_structs(grads, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)
        assert value.dtype == jnp.float32


def test_loss_with_parameters_of_its_own(x64):
    """A fused head: the parameters are the pair of the network's and the loss's, and so are the gradients."""
    head = dense(3)

    def turn(params, x, y, weight, read):
        z, saved = head.forward(params, x)
        cost, delta, _ = cross_entropy.turn((), z, y, weight, read)
        return cost, *head.backward(params, saved, delta, read)

    fused = jaxnet.Loss("head", turn, cross_entropy.terms, head.init)
    net, (_, xs, ys) = serial(dense(4), tanh), vectors()
    params = jaxnet.initialize(net, fused, jax.random.key(0), xs[0])
    expected = value_and_grad(serial(net, head), cross_entropy)(params, xs, ys)
    assert_agree(value_and_grad(net, fused)(params, xs, ys), expected)
    _, (grads, norms) = backpropagate(net, fused, pair(total, squared_norm))(params, xs, ys)
    assert_agree(grads, expected[1])
    assert norms[1]["W"].shape == (4,)


def test_initialize_and_predict():
    xs = normal(1, (4, 5))
    params = jaxnet.initialize(VECTOR, cross_entropy, jax.random.key(0), xs[0])
    chex.assert_trees_all_equal(params, VECTOR.init(jax.random.key(0), xs[0]))
    outs = jaxnet.predict(VECTOR)(params, xs)
    assert_agree(outs, jnp.stack([VECTOR.forward(params, x)[0] for x in xs]), 1e-6)


# -------------------------------------------------------------------------------------------------------- per example


@pytest.mark.parametrize("case", [(VECTOR, vectors), (SEQUENCE, sequences)], ids=["vector", "sequence"])
def test_per_example(case, x64):
    """Each example's own mean cost over its terms, and its gradient: nothing divided by the batch's size."""
    net, inputs = case
    params, xs, ys = inputs()

    def one(p, x, y):
        cost = loss_of(net, p, x, y)
        n = cross_entropy.terms(y, 1.0)
        return jnp.where(n > 0, cost / jnp.where(n > 0, n, 1.0), 0.0)

    expected = jax.vmap(jax.value_and_grad(one), (None, 0, 0))(params, xs, ys)
    assert_agree(per_example(net, cross_entropy)(params, xs, ys), expected)
    _, norms = per_example(net, cross_entropy, squared_norm)(params, xs, ys)
    summed = jax.tree.map(lambda t: t.reshape(len(xs), -1).sum(1), norms)
    assert_agree(summed, jax.tree.map(lambda t: (t**2).reshape(len(xs), -1).sum(1), expected[1]))


def loss_of(net, params, x, y):
    return cross_entropy.turn((), net.forward(params, x)[0], y, 1.0, product)[0]


# -------------------------------------------------------------------------------------------------------------- trace


def test_trace_of_one_example(x64):
    """z, a and δ of every layer, by Nielsen's equations (BP1) to (BP4) written out."""
    net = serial(dense(4), sigmoid, dense(3), sigmoid)
    params, x, y = random_params(net, (5,)), normal(2, (5,)).astype(jnp.float64), jax.nn.one_hot(1, 3)
    z1 = params[0]["W"] @ x + params[0]["b"]
    a1 = jax.nn.sigmoid(z1)
    z2 = params[2]["W"] @ a1 + params[2]["b"]
    a2 = jax.nn.sigmoid(z2)
    da2 = a2 - y
    delta2 = da2 * a2 * (1 - a2)
    da1 = params[2]["W"].T @ delta2
    delta1 = da1 * a1 * (1 - a1)
    traced = trace(net, jaxnet.quadratic)(params, x, y)
    assert [step.layer.value for step in traced.steps] == ["dense 4", "sigmoid", "dense 3", "sigmoid"]
    assert_agree([step.out for step in traced.steps], [z1, a1, z2, a2])
    assert_agree([step.delta for step in traced.steps], [delta1, da1, delta2, da2])
    assert_agree(traced.cost, jnp.sum((a2 - y) ** 2) / 2)
    assert str(traced.steps[0]) == "dense 4: out (4,), δ (4,)"


@pytest.mark.parametrize("case", [(VECTOR, vectors), (SEQUENCE, sequences)], ids=["vector", "sequence"])
def test_trace_of_a_batch_is_the_examples_own(case, x64):
    net, inputs = case
    params, xs, ys = inputs()
    whole = trace(net, cross_entropy)(params, xs, ys)
    for i in range(len(xs)):
        assert_agree(jax.tree.map(lambda t, i=i: t[i], whole), trace(net, cross_entropy)(params, xs[i], ys[i]))


def test_trace_with_dropout_is_what_the_gradient_saw(x64):
    params, xs, ys = vectors()
    options = {"key": jax.random.key(5), "train": True}
    traced = trace(VECTOR, cross_entropy)(params, xs, ys, **options)
    _, grads = value_and_grad(VECTOR, cross_entropy)(params, xs, ys, **options)
    assert_agree(traced.steps[0].delta.mean(0), grads[0]["b"])
    assert traced.steps[2].layer.value == "dropout 0.4"
    assert (traced.steps[2].out == 0).any()


# --------------------------------------------------------------------------------------------------------- custom vjp


def of_custom(f, params, xs, ys):
    """A user's own mean cross-entropy, by Optax, of the function that we hand out."""
    outs = jax.vmap(f, (None, 0))(params, xs)
    return optax.softmax_cross_entropy_with_integer_labels(outs, ys).mean()


def plain_forward(net):
    return lambda params, x: net.forward(params, x)[0]


@pytest.mark.parametrize("wrap", [lambda g: g, jax.jit], ids=["grad", "jit_of_grad"])
def test_custom_vjp_under_grad(wrap, x64):
    inputs = vectors()
    expected = jax.grad(lambda p: of_custom(plain_forward(VECTOR), p, *inputs[1:]))(inputs[0])
    f = as_custom_vjp(VECTOR)
    assert_agree(wrap(jax.grad(lambda *inputs: of_custom(f, *inputs)))(*inputs), expected)
    batched = as_custom_vjp(VECTOR, batched=True)

    def of_batch(params, xs, ys):
        return optax.softmax_cross_entropy_with_integer_labels(batched(params, xs), ys).mean()

    assert_agree(wrap(jax.grad(of_batch))(*inputs), expected)


@pytest.mark.parametrize("case", [(VECTOR, vectors), (SEQUENCE, sequences)], ids=["vector", "sequence"])
def test_vmap_of_grad_gives_per_example_gradients(case, x64):
    net, inputs = case
    params, xs, _ = inputs()
    f = as_custom_vjp(net)

    def each(of):
        return jax.vmap(jax.grad(lambda p, x: jnp.sum(jnp.sin(of(p, x)))), (None, 0))(params, xs)

    assert_agree(each(f), each(plain_forward(net)))
    assert jax.tree.leaves(each(f))[0].shape[0] == len(xs)


def test_custom_vjp_gives_the_inputs_gradient(x64):
    params, xs, _ = vectors()
    for f, of in [(as_custom_vjp(VECTOR), xs[0]), (as_custom_vjp(VECTOR, batched=True), xs)]:
        plain = plain_forward(VECTOR) if of.ndim == 1 else jax.vmap(plain_forward(VECTOR), (None, 0))
        expected = jax.grad(lambda x, plain=plain: jnp.sum(plain(params, x) ** 2))(of)
        assert_agree(jax.grad(lambda x, f=f: jnp.sum(f(params, x) ** 2))(of), expected)


@pytest.mark.parametrize("batched", [False, True])
def test_custom_vjp_of_whole_numbers(batched):
    """Pixels of uint8 have no gradient, and ask for none."""
    params = vectors(dtype=jnp.float32)[0]
    xs = integers(1, (4, 5), 255).astype(jnp.uint8)
    f = as_custom_vjp(serial(scaled, VECTOR), batched=batched)
    grads = jax.grad(lambda p: jnp.sum(f(p, xs if batched else xs[0])))(((), params))
    chex.assert_trees_all_equal_structs(grads, ((), params))


scaled = jaxnet.Layer(
    "over 255",
    lambda key, x: (),
    lambda params, x, key=None, train=False: (x.astype(jnp.float32) / 255, ()),
    lambda params, saved, d_out, read: (d_out / 255, ()),
)


def test_custom_vjp_with_keys_in_training(x64):
    params, xs, _ = vectors()
    key = jax.random.key(5)
    f = as_custom_vjp(VECTOR, batched=True, train=True)

    def plain(p):
        keys = jax.random.split(key, len(xs))
        return jax.vmap(lambda x, k: VECTOR.forward(p, x, k, True)[0])(xs, keys)

    assert_agree(
        jax.grad(lambda p: jnp.sum(f(p, xs, key) ** 2))(params), jax.grad(lambda p: jnp.sum(plain(p) ** 2))(params)
    )


def test_custom_vjp_inside_scan(x64):
    """A user's scan over steps of descent, differentiated inside."""
    params, xs, ys = vectors()

    def descend(of):
        def step(p, _):
            value, grads = jax.value_and_grad(lambda p: of_custom(of, p, xs, ys))(p)
            return jax.tree.map(lambda p, g: p - 0.5 * g, p, grads), value

        return jax.lax.scan(step, params, length=3)

    assert_agree(descend(as_custom_vjp(VECTOR)), descend(plain_forward(VECTOR)))


def test_custom_vjp_in_an_optax_loop():
    params, xs, ys = vectors(8, jnp.float32)
    f = as_custom_vjp(VECTOR, batched=True)
    optimizer = optax.sgd(0.5, momentum=0.9)

    def cost(params):
        return optax.softmax_cross_entropy_with_integer_labels(f(params, xs), ys).mean()

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(cost)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    state, values = optimizer.init(params), []
    for _ in range(60):
        params, state, value = step(params, state)
        values.append(float(value))
    assert values[-1] < 0.2 * values[0]


# ------------------------------------------------------------------------------------------------------- second order


@pytest.mark.parametrize("case", [(VECTOR, vectors), (SEQUENCE, sequences)], ids=["vector", "sequence"])
def test_forward_mode_over_the_gradient(case, x64):
    """A Hessian times a vector: `jax.jvp` of the hand-written gradient and of `jax.grad`."""
    net, inputs = case
    params, xs, ys = inputs()
    direction = random_like(9, params)
    theirs = jax.grad(lambda p: mean_cost(net, cross_entropy, p, xs, ys))
    expected = jax.jvp(theirs, (params,), (direction,))
    ours = jax.jvp(lambda p: value_and_grad(net, cross_entropy)(p, xs, ys)[1], (params,), (direction,))
    assert_agree(ours, expected)


def test_reverse_mode_over_the_gradient(x64):
    """The gradient of the gradient's squared norm."""
    params, xs, ys = vectors()

    def squared(gradient):
        return jax.grad(lambda p: sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient(p))))(params)

    ours = squared(lambda p: value_and_grad(VECTOR, cross_entropy)(p, xs, ys)[1])
    assert_agree(ours, squared(jax.grad(lambda p: mean_cost(VECTOR, cross_entropy, p, xs, ys))))


# ---------------------------------------------------------------------------------------------- architectures at random

WIDTHS = st.integers(1, 5)


@st.composite
def layers(draw, width, depth=2):
    """Some layers for a vector of `width`, and the width that comes out."""
    kind = draw(
        st.sampled_from(["dense", "activation", "residual", "repeat", "softmax", "parallel"][: 6 if depth else 2])
    )
    if kind == "dense":
        out = draw(WIDTHS)
        return dense(out, bias=draw(st.booleans())), out
    if kind == "activation":
        return ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))], width
    if kind == "softmax":
        return jaxnet.softmax, width
    inner, out = draw(layers(width, depth - 1))
    if kind == "parallel":
        other, other_out = draw(layers(width, depth - 1))
        return jaxnet.parallel(inner, other, join="concatenate"), out + other_out
    same = serial(inner, dense(width))
    return (residual(same) if kind == "residual" else repeat(same, draw(st.integers(1, 3)))), width


@st.composite
def networks(draw):
    """A network, the length of its input, and a loss that takes its output."""
    width = first = draw(WIDTHS)
    drawn = []
    for _ in range(draw(st.integers(1, 4))):
        layer, width = draw(layers(width))
        drawn.append(layer)
    loss = LOSSES[draw(st.sampled_from(sorted(LOSSES)))]
    if loss.name == "binary_cross_entropy":
        drawn.append(sigmoid)
    net = serial(*drawn)
    return (per_position(net), (2, first), (2, width), loss) if draw(st.booleans()) else (net, (first,), (width,), loss)


@hypothesis.settings(max_examples=25, deadline=None, derandomize=True, database=None)
@hypothesis.given(networks(), st.integers(1, 3), st.integers(0, 1000))
def test_any_architecture(drawn, batch, seed):
    net, shape, out_shape, loss = drawn
    with jax.enable_x64(True):
        x = jax.ShapeDtypeStruct(shape, jnp.float64)
        params = random_like(seed, jax.eval_shape(net.init, jax.random.key(0), x))
        xs = normal(seed + 1, (batch, *shape)).astype(jnp.float64)
        ys = integers(seed + 2, (batch, *out_shape[:-1]), out_shape[-1])

        @jax.jit
        def both(params):
            by_autodiff = jax.value_and_grad(lambda p: mean_cost(net, loss, p, xs, ys))(params)
            return by_autodiff, value_and_grad(net, loss)(params, xs, ys)

        expected, actual = both(params)
        assert np.isfinite(expected[0])
        assert_agree(actual, expected, 100 * FLOAT64_NOISE)
