"""Readings by themselves and together, and factors against their sums spelled out.

Every reading is held against brute force for every network of `tests.problems`, in one backward pass with the others
(`tests.implementations`).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnet
from jaxnet import deltas, dense, pair, per_example, product, readings, serial, sigmoid, squared_norm, total
from jaxnet.factors import FactorSum, Outer, Plain
from jaxnet.readings import sum_of_deltas
from tests.agreement import assert_agree, cast, integers, normal
from tests.implementations import READINGS, check_readings_by_themselves, read
from tests.problems import COMBINATORS

cross_entropy = jaxnet.softmax_cross_entropy
SOME = {problem.id.partition("-")[0]: problem for problem in reversed(COMBINATORS)}


@pytest.mark.parametrize("one_delta", [False, True])
@pytest.mark.parametrize(
    "name", ["serial", "parallel_concatenate", "repeat_of_per_position", "per_position_of_repeat", "remat", "tied",
             "tied_bias", "per_position_of_tied"]
)  # fmt: skip
def test_each_reading_by_itself(name, one_delta, x64):
    check_readings_by_themselves(SOME[name], one_delta)


def test_every_reading_is_held_against_brute_force():
    """`whole` is read by `tied` later, `nothing` is empty; `new_state` is held in the tests of batch_norm."""
    public = {name for name, value in vars(readings).items() if isinstance(value, jaxnet.Reading)}
    assert public - {"whole", "new_state", "nothing"} == set(READINGS)


def test_pairs_of_pairs(x64):
    nested = pair(total, pair(squared_norm, deltas))
    assert nested.out_axes == (None, (0, 0))
    params, xs, d_outs = SOME["serial"].inputs(jnp.float64)
    run = jax.jit(lambda by: read(SOME["serial"], params, xs, d_outs, by)[1], static_argnums=0)
    assert_agree(run(nested), (run(total), (run(squared_norm), run(deltas))))


def test_which_readings_add_up():
    additive = {name for name, (reading, _) in READINGS.items() if reading.additive}
    assert additive == {"total", "second_moment", "sum_of_deltas"}
    assert pair(total, sum_of_deltas).additive
    assert not pair(total, product).additive


def test_a_reading_sees_all_that_meets_at_a_layer(x64):
    """A reading of one's own: dx and the parameters at each layer."""
    of_dx = jaxnet.Reading(lambda passing: (passing.dx, passing.params), out_axes=0)
    net, xs, ys = serial(dense(4), sigmoid, dense(3)), normal(1, (4, 6)).astype(jnp.float64), integers(2, (4,), 3)
    params = net.init(jax.random.key(0), xs[0])
    _, found = jax.jit(per_example(net, cross_entropy, of_dx))(params, xs, ys)

    def cost(x, y):
        first, _, last = params
        z = last["W"] @ jax.nn.sigmoid(first["W"] @ x + first["b"]) + last["b"]
        return -jax.nn.log_softmax(z)[y]

    assert_agree(found[0][0], jax.jit(jax.vmap(jax.grad(cost)))(xs, ys))
    assert_agree(jax.tree.map(lambda t: t[0], found[2][1]), params[2])


# ------------------------------------------------------------------------------------------------ factors by themselves


def spelled_out(factor):
    """∂C/∂p, term by term."""
    if isinstance(factor, FactorSum):
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
    "sum_of_two": (lambda s: FactorSum((outer(s, (3,), 20, 30), outer(s + 7, (), 20, 30)))),
    "sum_of_kinds": (lambda s: FactorSum((outer(s, (3,), 4, 3), plain(s + 7, (2,), (4, 3))))),
    "sum_of_sums": (lambda s: FactorSum((FactorSum((plain(s, (), (4,)),)), plain(s + 7, (3,), (4,))))),
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
    assert_agree(FactorSum((one, other)).gram(one), right + one.squared_norm())


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
