"""Every reading of every factor against brute force: networks written out in plain `jax.numpy`, one example at a time.

A reference adds a tap, an array of zeros, to each leaf layer's value: the derivative with respect to it is its δ.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnet
from jaxnet import (
    backpropagate,
    deltas,
    dense,
    pair,
    parallel,
    per_example,
    per_position,
    product,
    remat,
    repeat,
    residual,
    serial,
    sigmoid,
    squared_norm,
    tanh,
    tied,
    total,
)
from jaxnet.factors import Outer, Plain, Sum
from jaxnet.layer import leaves
from jaxnet.losses import pointwise
from jaxnet.readings import squared_delta, sum_of_deltas
from tests.agreement import assert_agree, cast, integers, normal, random_like

cross_entropy = jaxnet.softmax_cross_entropy
mean_output = pointwise("mean_output", lambda x, y: x.mean(-1), lambda x, y: jnp.full(x.shape, 1 / x.shape[-1]))

# ------------------------------------------------------------------------------------------------- plain references


def affine(p, x):
    z = x @ p["W"].T
    return z + jnp.broadcast_to(p["b"], z.shape)


def vector(params, x, taps):
    first, _, last = params
    return affine(last, jax.nn.sigmoid(affine(first, x) + taps[0]) + taps[1]) + taps[2]


def sequence(params, x, taps):  # x: (positions, features), so `affine` takes all of them
    return vector(params, x, taps)


def linear(params, x, taps):
    return affine(params, x) + taps[0]


def blocks(params, x, taps):
    first, block, last = params
    x = affine(first, x) + taps[0]
    z_taps, a_taps = taps[1], taps[2]
    for i in range(3):
        layer = {name: p[i] for name, p in block[0].items()}
        x = x + jnp.tanh(affine(layer, x) + z_taps[i]) + a_taps[i]
    return affine(last, x) + taps[3]


def twice(params, x, taps):
    first, _, second, last = params
    a = jnp.tanh(affine(first, x) + taps[0]) + taps[1]
    return affine(last, affine({"W": first["W"], "b": second["b"]}, a) + taps[2]) + taps[3]


def two_ways(params, x, taps):
    left, right = affine(params[0], x) + taps[0], affine(params[1], x) + taps[1]
    return jnp.concatenate([left, right], axis=-1)


# --------------------------------------------------------------------------------------------------------- the cases


@dataclass(frozen=True)
class Case:
    """A network, its plain reference, the shape of an example, and the shapes of the taps of its leaf layers."""

    id: str
    net: jaxnet.Layer
    reference: Callable
    shape: tuple[int, ...]
    taps: tuple[tuple[int, ...], ...]
    loss: jaxnet.Loss = cross_entropy

    def inputs(self, batch: int):
        """Random parameters, a batch, and class indices."""
        x = jax.ShapeDtypeStruct(self.shape, jnp.float64)
        params = random_like(1, jax.eval_shape(self.net.init, jax.random.key(0), x))
        xs = normal(batch + 10, (batch, *self.shape)).astype(jnp.float64)
        return params, xs, integers(batch, (batch, *self.shape[:-1]), 3)


net = serial(dense(4), sigmoid, dense(3))
block = residual(serial(dense(4), tanh))
chain = serial(dense(4), repeat(block, 3), dense(3))
shared = (dense(4), tanh, dense(4), dense(3))
tie = partial(tied, where=(0, 2))
CASES = [
    Case("vector", net, vector, (6,), ((4,), (4,), (3,))),
    Case("remat", serial(remat(serial(dense(4), sigmoid)), dense(3)), lambda p, x, t: vector((*p[0], p[1]), x, t),
         (6,), ((4,), (4,), (3,))),
    Case("constant_delta", dense(3), linear, (6,), ((3,),), mean_output),
    Case("constant_delta_sequence", per_position(dense(3)), linear, (5, 6), ((5, 3),), mean_output),
    Case("short_sequence", per_position(serial(dense(40), sigmoid, dense(3))), sequence, (2, 60),
         ((2, 40), (2, 40), (2, 3))),
    Case("long_sequence", serial(per_position(dense(4)), sigmoid, per_position(dense(3))), sequence, (7, 2),
         ((7, 4), (7, 4), (7, 3))),
    Case("repeat", chain, blocks, (6,), ((4,), (3, 4), (3, 4), (3,))),
    Case("sequence_of_repeat", per_position(chain), blocks, (5, 6), ((5, 4), (3, 5, 4), (3, 5, 4), (5, 3))),
    Case("repeat_of_sequence", serial(per_position(dense(4)), repeat(per_position(block), 3), per_position(dense(3))),
         blocks, (5, 6), ((5, 4), (3, 5, 4), (3, 5, 4), (5, 3))),
    Case("tied", tie(*shared), twice, (4,), ((4,), (4,), (4,), (3,))),
    Case("tied_sequences", tie(*map(per_position, shared)), twice, (5, 4), ((5, 4), (5, 4), (5, 4), (5, 3))),
    Case("sequence_of_tied", per_position(tie(*shared)), twice, (5, 4), ((5, 4), (5, 4), (5, 4), (5, 3))),
    Case("parallel", parallel(dense(1), dense(2), join="concatenate"), two_ways, (6,), ((1,), (2,))),
]  # fmt: skip
READINGS = {
    "total": total,
    "product": product,
    "squared_norm": squared_norm,
    "deltas": deltas,
    "squared_delta": squared_delta,
    "sum_of_deltas": sum_of_deltas,
}
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)

# ---------------------------------------------------------------------------------------------------- by brute force


def over_all_but(leading: int, t):
    """Σ of squares over all axes but the leading ones."""
    return jnp.sum(t**2, axis=tuple(range(leading, t.ndim)))


def by_brute_force(case: Case, params, xs, ys):
    """Each reading by `jax.grad` of the plain reference, one example at a time; δ as a list, first layer first."""
    taps = [jnp.zeros(shape, xs.dtype) for shape in case.taps]
    terms = ys.size

    def cost(params, taps, x, y):
        out = case.reference(params, x, taps)
        each = out.mean(-1) if case.loss is mean_output else -(jax.nn.log_softmax(out) * jax.nn.one_hot(y, 3)).sum(-1)
        return jnp.sum(each) / terms

    grads, δs = jax.lax.map(lambda example: jax.grad(cost, (0, 1))(params, taps, *example), (xs, ys))
    return {
        "total": jax.tree.map(lambda t: t.sum(0), grads),
        "product": grads,
        "squared_norm": jax.tree.map(lambda t, p: over_all_but(1, t), grads, params),
        "deltas": δs,
    }


def with_expected(case: Case, run: Callable, batch: int):
    """What `run` gives for a batch, and each reading by brute force, as one compiled program."""
    return jax.jit(lambda *inputs: (run(*inputs), by_brute_force(case, *inputs)))(*case.inputs(batch))


def summed_over_times(norms):
    """‖∂C/∂p‖² of a stack of parameters, from the norms of each."""
    return jax.tree.map(lambda t: t.reshape(len(t), -1).sum(1), norms)


def assert_right(case: Case, name: str, actual, right: dict) -> None:
    """One reading of a batch, against brute force."""
    batch = len(right["deltas"][0])
    has_params = [delta for delta, tap in zip(right["deltas"], leaf_params(case), strict=True) if tap]
    if name in ("total", "product"):
        assert_agree(actual, right[name])
    elif name == "squared_norm":
        assert_agree(summed_over_times(actual), right[name])
    elif name == "deltas":
        assert_agree(jax.tree.leaves(actual), right["deltas"])
    elif name == "squared_delta":
        norms = [over_all_but(1, delta) for delta in has_params]
        assert_agree([t.reshape(batch, -1).sum(1) for t in jax.tree.leaves(actual)], norms)
    else:
        assert_agree(jax.tree.leaves(actual), [delta.sum(0) for delta in has_params])


def leaf_params(case: Case) -> list[bool]:
    """Which leaf layers have parameters, first to last."""
    return ["dense" in layer.name for layer in leaves(case.net)]


# ---------------------------------------------------------------------------------------------------------- the tests


@every_case
def test_each_reading_by_itself(case, x64):
    alone = {name: backpropagate(case.net, case.loss, read) for name, read in READINGS.items()}
    every, right = with_expected(case, lambda *inputs: {name: run(*inputs) for name, run in alone.items()}, 4)
    for name, (value, actual) in every.items():
        assert value.shape == ()
        assert_right(case, name, actual, right)


@every_case
def test_all_readings_of_one_example_in_one_pass(case, x64):
    """A batch of its own size has its own mean; a pair reads what its members read."""
    (_, readings), right = with_expected(case, backpropagate(case.net, case.loss, pair(*READINGS.values())), 1)
    for name, actual in zip(READINGS, readings, strict=True):
        assert_right(case, name, actual, right)


@every_case
def test_all_readings_with_seeds_vmapped(case, x64):
    """Two networks of different parameters, trained together as one program."""
    run = jax.vmap(backpropagate(case.net, case.loss, pair(*READINGS.values())), (0, None, None))

    def seeds(params, xs, ys):
        return run(jax.tree.map(lambda p: jnp.stack([0.5 * p, p]), params), xs, ys)

    (_, readings), right = with_expected(case, seeds, 3)
    for name, actual in zip(READINGS, readings, strict=True):
        assert_right(case, name, jax.tree.map(lambda t: t[1], actual), right)


def test_pairs_of_pairs(x64):
    case = CASES[0]
    nested = pair(total, pair(squared_norm, deltas))
    assert nested.out_axes == (None, (0, 0))
    (_, (grads, (norms, δs))), right = with_expected(case, backpropagate(case.net, case.loss, nested), 4)
    for name, actual in [("total", grads), ("squared_norm", norms), ("deltas", δs)]:
        assert_right(case, name, actual, right)


def test_which_readings_add_up():
    additive = {name for name, read in READINGS.items() if read.additive}
    assert additive == {"total", "sum_of_deltas"}
    assert pair(total, sum_of_deltas).additive
    assert not pair(total, product).additive


def test_a_reading_sees_all_that_meets_at_a_layer(x64):
    """Of a reading of one's own: dx at each layer, and the saved input of each dense."""
    of_dx = jaxnet.Reading(lambda passing: (passing.dx, passing.params), out_axes=0)
    case = CASES[0]
    params, xs, ys = case.inputs(4)
    _, readings = jax.jit(per_example(case.net, case.loss, of_dx))(params, xs, ys)
    dx = jax.grad(lambda x, y: -jax.nn.log_softmax(vector(params, x, [0.0] * 3))[y])
    dx_at_first = jax.jit(jax.vmap(dx))(xs, ys)
    assert_agree(readings[0][0], dx_at_first)
    assert_agree(jax.tree.map(lambda t: t[0], readings[2][1]), params[2])


# ------------------------------------------------------------------------------------------------ factors by themselves


def spelled_out(factor):
    """∂C/∂p, term by term."""
    if isinstance(factor, Sum):
        return sum(spelled_out(use) for use in factor.uses)
    lead = factor.delta.shape[: factor.sums]
    terms = [
        jnp.outer(factor.delta[i], factor.a[i]) if isinstance(factor, Outer) else factor.delta[i]
        for i in np.ndindex(*lead)
    ]
    return sum(terms[1:], start=terms[0])


def outer(seed, lead, outs, ins):
    delta, a = normal(seed, (*lead, outs)), normal(seed + 1, (*lead, ins))
    return Outer(*cast((delta, a), jnp.float64), sums=len(lead))


def plain(seed, lead, shape):
    return Plain(normal(seed, (*lead, *shape)).astype(jnp.float64), sums=len(lead))


FACTORS = {
    "outer": (lambda s: outer(s, (), 4, 3)),
    "outer_few_terms": (lambda s: outer(s, (2,), 20, 30)),
    "outer_many_terms": (lambda s: outer(s, (9,), 4, 3)),
    "outer_two_axes": (lambda s: outer(s, (2, 5), 4, 3)),
    "outer_one_by_one": (lambda s: outer(s, (3,), 1, 1)),
    "plain": (lambda s: plain(s, (), (4,))),
    "plain_summed": (lambda s: plain(s, (3, 2), (4, 5))),
    "plain_scalar": (lambda s: plain(s, (3,), ())),
    "sum_of_two": (lambda s: Sum((outer(s, (3,), 20, 30), outer(s + 7, (), 20, 30)))),
    "sum_of_kinds": (lambda s: Sum((outer(s, (3,), 4, 3), plain(s + 7, (2,), (4, 3))))),
    "sum_of_sums": (lambda s: Sum((Sum((plain(s, (), (4,)),)), plain(s + 7, (3,), (4,))))),
}


@pytest.mark.parametrize("make", FACTORS.values(), ids=FACTORS)
def test_factor(make, x64):

    @jax.jit
    def everything(factor, other):
        right, other_right = spelled_out(factor), spelled_out(other)
        stacked = jax.tree.map(lambda *t: jnp.stack(t), factor, other)
        products = factor.multiply(), factor.squared_norm(), stacked.summed_once_more().multiply()
        inner = factor.gram(other), other.gram(factor)
        return (products, inner), ((right, jnp.sum(right**2), right + other_right), jnp.sum(right * other_right))

    (products, (one, mirrored)), (expected, gram) = everything(make(1), make(50))
    for actual, right in zip(products, expected, strict=True):
        assert_agree(actual, right)
    assert_agree(one, gram, 1e-11)
    assert_agree(mirrored, gram, 1e-11)


def test_gram_of_factors_of_two_kinds(x64):
    one, other = outer(1, (3,), 4, 3), plain(5, (2,), (4, 3))
    right = jnp.sum(spelled_out(one) * spelled_out(other))
    assert_agree(one.gram(other), right)
    assert_agree(other.gram(one), right)
    assert_agree(Sum((one, other)).gram(one), right + one.squared_norm())


def test_norms_form_no_gradient():
    """‖δ‖²‖a‖²: no array of W's size stands in the program."""
    program = str(jax.make_jaxpr(lambda f: f.squared_norm())(Outer(jnp.ones(50), jnp.ones(70))))
    assert "50,70" not in program


def test_bfloat16_factors_sum_in_float32():
    terms = 4096
    ones = jnp.ones((terms, 1), jnp.bfloat16)
    assert Outer(ones, ones, sums=1).multiply() == terms
    assert Plain(ones, sums=1).multiply() == terms
    assert Outer(ones, ones, sums=1).squared_norm() == terms**2


def test_total_is_one_matrix_product():
    """Not a loop of outer products, which is what a vmap and a sum become."""
    program = str(
        jax.make_jaxpr(jaxnet.value_and_grad(dense(3), cross_entropy))(
            {"W": jnp.ones((3, 5)), "b": jnp.ones(3)}, jnp.ones((8, 5)), jnp.zeros(8, jnp.int32)
        )
    )
    assert "f32[8,3,5]" not in program
