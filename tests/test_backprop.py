"""The gradient of a batch, against `jax.grad` of the same forward pass."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnet
from jaxnet import backpropagate, dense, pair, serial, squared_norm, tanh, total, value_and_grad
from jaxnet.readings import sum_of_deltas
from tests.agreement import assert_agree, normal, uniform
from tests.batches import SEQUENCE, VECTOR, assert_gradient, cross_entropy, sequences, vectors


@pytest.mark.parametrize("batch", [1, 4])
def test_value_and_grad(batch, x64):
    assert_gradient(VECTOR, cross_entropy, *vectors(batch))


def test_value_and_grad_in_training_mode(x64):
    assert_gradient(VECTOR, cross_entropy, *vectors(), key=jax.random.key(5), train=True)


def test_training_mode_differs_from_evaluation(x64):
    key = jax.random.key(5)
    gradient = jax.jit(value_and_grad(VECTOR, cross_entropy), static_argnames="train")
    assert gradient(*vectors(), key=key, train=True)[0] != gradient(*vectors(), key=key)[0]


def test_example_weights(x64):
    assert_gradient(VECTOR, cross_entropy, *vectors(), weights=jnp.array([0.5, 2.0, 0.0, 1.0]))


def test_an_example_without_weight_is_an_example_left_out(x64):
    params, xs, ys = vectors()
    both = jax.jit(value_and_grad(VECTOR, cross_entropy))
    kept = np.array([0, 1, 3])
    assert_agree(both(params, xs, ys, weights=jnp.array([1.0, 1.0, 0.0, 1.0])), both(params, xs[kept], ys[kept]))


def test_ignored_tokens(x64):
    """The mean is over the tokens that count; an example of ignored tokens alone adds nothing."""
    assert_gradient(SEQUENCE, cross_entropy, *sequences())


@pytest.mark.parametrize("dtype", ["bool", "int32", "float32"])
def test_weights_may_have_another_dtype(x64, dtype):
    mask = [1, 0, 1, 1]
    gradient = jax.jit(value_and_grad(VECTOR, cross_entropy))
    value, grads = gradient(*vectors(), weights=jnp.array(mask, dtype))
    expected, wanted = gradient(*vectors(), weights=jnp.array(mask, float))
    assert value == expected
    assert_agree(grads, wanted)


def test_token_weights(x64):
    weights = uniform(5, (4, 6)).astype(jnp.float64)
    assert_gradient(SEQUENCE, cross_entropy, *sequences(), weights=weights)


def test_example_weights_of_sequences(x64):
    assert_gradient(SEQUENCE, cross_entropy, *sequences(), weights=jnp.array([0.5, 2.0, 0.0, 1.0]))


def test_a_batch_of_ignored_tokens_alone_gives_zero(x64):
    params, xs, ys = sequences()
    value, grads = jax.jit(value_and_grad(SEQUENCE, cross_entropy))(params, xs, jnp.full_like(ys, -1))
    assert value == 0
    assert_agree(grads, jax.tree.map(jnp.zeros_like, params))


@pytest.mark.parametrize("chunks", [2, 4])
def test_chunks_change_nothing(chunks, x64):
    options = {"key": jax.random.key(5), "train": True, "weights": jnp.array([0.5, 2.0, 0.0, 1.0])}
    assert_gradient(VECTOR, cross_entropy, *vectors(), chunks=chunks, **options)
    assert_gradient(SEQUENCE, cross_entropy, *sequences(), chunks=chunks)


def test_chunks_of_a_pair(x64):
    read = pair(total, sum_of_deltas)
    whole, chunked = (jax.jit(backpropagate(VECTOR, cross_entropy, read, chunks=n)) for n in (1, 2))
    assert_agree(chunked(*vectors()), whole(*vectors()))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_gradients_have_the_structure_shapes_and_dtypes_of_the_parameters(dtype):
    for net, (params, xs, ys) in [(VECTOR, vectors(dtype=dtype)), (SEQUENCE, sequences(dtype=dtype))]:
        value, grads = jax.jit(value_and_grad(net, cross_entropy))(params, xs, ys)
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
    expected = jax.jit(value_and_grad(serial(net, head), cross_entropy))(params, xs, ys)
    assert_agree(jax.jit(value_and_grad(net, fused))(params, xs, ys), expected)
    _, (grads, norms) = jax.jit(backpropagate(net, fused, pair(total, squared_norm)))(params, xs, ys)
    assert_agree(grads, expected[1])
    assert norms[1]["W"].shape == (4,)


def test_initialize_and_predict():
    xs = normal(1, (4, 5))
    params = jaxnet.initialize(VECTOR, cross_entropy, jax.random.key(0), xs[0])
    chex.assert_trees_all_equal(params, VECTOR.init(jax.random.key(0), xs[0]))
    outs = jaxnet.predict(VECTOR)(params, xs)
    assert_agree(outs, jnp.stack([VECTOR.forward(params, x)[0] for x in xs]), 1e-6)
