"""Embeddings and positions: by formula, repeated tokens, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnet
from jaxnet import (
    embedding,
)
from jaxnet.factors import FactorSum, Outer
from jaxnet.layers import positional_embedding, rotary
from jaxnet.layers.embedding import Rows
from tests.agreement import integers, normal


def test_turned_products_depend_on_the_distance_alone(x64):
    a, b = (jnp.tile(normal(i, (1, 6)).astype(jnp.float64), (9, 1)) for i in (1, 2))
    a, b = (rotary().forward((), t)[0] for t in (a, b))
    products = a @ b.T
    np.testing.assert_allclose(products[3:, 3:], products[:-3, :-3], rtol=0, atol=1e-12)
    assert abs(products[0, 1] - products[1, 0]) > 1e-3


def test_sines_and_cosines():
    x = jnp.zeros((4, 6))
    out, _ = jaxnet.layers.sinusoidal_positions.forward((), x)
    t, i = 3, 2
    assert out[t, 2 * i] == pytest.approx(np.sin(t / 10_000 ** (2 * i / 6)), rel=1e-5)
    assert out[t, 2 * i + 1] == pytest.approx(np.cos(t / 10_000 ** (2 * i / 6)), rel=1e-5)


@pytest.mark.parametrize("tokens", [2, 40], ids=["fewer", "more"])
def test_inner_products_of_rows(tokens, x64):
    deltas = [normal(i, (tokens, 3)).astype(jnp.float64) for i in (1, 2)]
    first, second = (Rows(integers(i, (tokens,), 7), delta, 7) for i, delta in enumerate(deltas))
    head = Outer(normal(3, (4, 7)).astype(jnp.float64), normal(4, (4, 3)).astype(jnp.float64), 1)
    both, other = FactorSum((first, head)), FactorSum((second, head))
    for one, another in ((first, second), (first, head), (both, other), (both, both)):
        np.testing.assert_allclose(one.gram(another), jnp.sum(one.multiply() * another.multiply()), rtol=1e-12)


def test_a_token_outside_the_vocabulary():
    """Raised where its value is known; a NaN in place of its vector where it is not; never another token's."""
    net = embedding(5, 3)
    params = net.init(jax.random.key(0), jnp.arange(2))
    for token in (5, -1):
        with pytest.raises(ValueError, match=f"token ids from 0 to 4, got {token}: choose a vocabulary"):
            net.forward(params, jnp.array([0, token]))
        out = jax.jit(lambda tokens: net.forward(params, tokens)[0])(jnp.array([0, token]))
        assert np.isfinite(out[0]).all()
        assert np.isnan(out[1]).all()


SEQUENCE, IDS = jnp.zeros((4, 6)), jnp.zeros(4, jnp.int32)


BAD = [
    (embedding(5, 3), SEQUENCE, "embedding 5×3 takes token ids, an array of integers, got float32"),
    (positional_embedding(3), SEQUENCE, "has 3 positions, got a sequence of 4"),
    (positional_embedding(3), IDS, r"takes a sequence of vectors, \(time, width\), got int32 of shape \(4,\)"),
    (jaxnet.layers.sinusoidal_positions, jnp.zeros((4, 3)), "even width, whose entries make pairs, got a width of 3"),
    (rotary(), jnp.zeros((4, 3)), "rotary takes vectors of an even width"),
    (rotary(), jnp.zeros(4), r"rotary takes a sequence, \(time, …, width\), got shape \(4,\)"),
]


@pytest.mark.parametrize(("net", "x", "message"), BAD, ids=lambda part: getattr(part, "name", ""))
def test_inputs_that_do_not_fit(net, x, message):
    with pytest.raises(jaxnet.ShapeError, match=message):
        net.init(jax.random.key(0), x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: embedding(0, 3), "embedding: vocab must be a whole number of at least 1, got 0"),
        (lambda: positional_embedding(0), "positional_embedding: length must be a whole number of at least 1, got 0"),
        (lambda: rotary(0.0), "a positive base"),
    ],
)
def test_options_that_do_not_fit(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_parameters_of_another_input():
    params = positional_embedding(4).init(jax.random.key(0), SEQUENCE)
    with pytest.raises(jaxnet.ShapeError, match="initialise it for this input"):
        positional_embedding(4).forward(params, jnp.zeros((4, 8)))
