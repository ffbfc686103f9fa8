"""The gradient of architectures drawn at random, and its own derivatives."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import jaxnet
from jaxnet import dense, per_position, repeat, residual, serial, sigmoid, value_and_grad
from jaxnet.layers import ACTIVATIONS
from tests.agreement import FLOAT64_NOISE, assert_agree, integers, normal, random_like
from tests.batches import SEQUENCE, VECTOR, cross_entropy, mean_cost, sequences, vectors
from tests.problems import LOSSES

# ------------------------------------------------------------------------------------------------------- second order


@pytest.mark.parametrize("case", [(VECTOR, vectors), (SEQUENCE, sequences)], ids=["vector", "sequence"])
def test_forward_mode_over_the_gradient(case, x64):
    """A Hessian times a vector: `jax.jvp` of the hand-written gradient and of `jax.grad`."""
    net, inputs = case
    params, xs, ys = inputs()
    direction = random_like(9, params)
    theirs = jax.grad(lambda p: mean_cost(net, cross_entropy, p, xs, ys))

    def along(gradient):
        return jax.jit(lambda p, v: jax.jvp(gradient, (p,), (v,)))(params, direction)

    assert_agree(along(lambda p: value_and_grad(net, cross_entropy)(p, xs, ys)[1]), along(theirs))


def test_reverse_mode_over_the_gradient(x64):
    """The gradient of the gradient's squared norm."""
    params, xs, ys = vectors()

    def squared(gradient):
        return jax.jit(jax.grad(lambda p: sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient(p)))))(params)

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


DRAWN = hypothesis.given(networks(), st.integers(1, 3), st.integers(0, 1000))
SETTINGS = {"deadline": None, "derandomize": True, "database": None}


# beartype looks at one entry of a sequence, drawn by `random`, when a strategy calls a maker.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
@hypothesis.settings(max_examples=10, **SETTINGS)
@DRAWN
def test_any_architecture(drawn, batch, seed):
    assert_gradient_is_autodiffs(drawn, batch, seed)


@pytest.mark.slow
@hypothesis.settings(max_examples=100, **SETTINGS)
@DRAWN
def test_many_architectures(drawn, batch, seed):
    assert_gradient_is_autodiffs(drawn, batch, seed)


def assert_gradient_is_autodiffs(drawn, batch, seed):
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
