"""What is allowed is measured: correct code raises no alarm, and small mistakes are seen in every dtype."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet.checking import CannotCheckError, check
from jaxnet.checking.agreement import CheckOptions, asks_finer
from jaxnet.checking.compare import pattern_of
from jaxnet.checking.report import summary
from tests.checking.rules import layer_norm, product, shapes

QUICK = {"seeds": 1, "also": False, "shapes": False, "diagnose": False}
DTYPES = ["float16", "bfloat16", "float32", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_mistakes_are_seen_in_every_dtype_and_correct_code_is_not(dtype):
    assert check(layer_norm(), shapes(dtype), **{**QUICK, "seeds": 8}).ok
    for mistake in ("per cent", "zero entry"):
        report = check(layer_norm(mistake), shapes(dtype), **QUICK)
        assert [leaf.path for leaf in report.wrong] == ["∂x"], (dtype, mistake)


def test_complex():
    assert check(product(), "complex64[4], complex64[4]", **QUICK).ok
    assert not check(product(wrong=True), "complex64[4], complex64[4]", **QUICK).ok


def test_a_badly_conditioned_point_is_allowed_its_rounding():
    """x has mean 1e4 and deviation 1: float32 leaves three digits of x − mean(x), whoever computes it."""

    def made(mistake):
        rule = layer_norm(mistake)
        x = np.random.default_rng(0).standard_normal((4, 16)) + 1e4
        return rule, jnp.asarray(x, jnp.float32), jnp.linspace(0.5, 2, 16), jnp.linspace(-1, 1, 16)

    right = check(*made(None), **QUICK)
    assert right.ok
    assert next(leaf for leaf in right.leaves if leaf.path == "∂x").allowed > 1e-4
    assert not check(*made("per cent"), **QUICK).ok


def relu(gate):
    @jax.custom_vjp
    def relu(x):
        return jax.nn.relu(x)

    relu.defvjp(lambda x: (relu(x), x), lambda x, g: (jnp.where(gate(x, g), g, 0),))
    return relu


def test_a_kink_is_called_a_kink():
    x = jnp.asarray([-1.0, 0.0, 0.5, 2.0])
    report = check(relu(lambda x, g: x >= 0), x, **QUICK)
    assert report.ok
    assert [leaf.verdict for leaf in report.leaves if not leaf.forward] == ["kink"]
    assert check(relu(lambda x, g: x > 0), x, **QUICK).leaves[-1].verdict == "ok"
    assert not check(relu(lambda x, g: x > -2), x, **QUICK).ok, "a wrong entry beside a kink is wrong"
    assert not check(relu(lambda x, g: g > 0), "float32[9]", **QUICK).ok


@pytest.mark.parametrize("factor", [1.0, 1.001])
def test_a_loop_that_stops_at_a_tolerance_is_no_finer_than_that(factor):
    """x = a cos x by steps until they are below 1e-6: autodiff follows the steps taken, and is 1e-5 off."""

    def steps(a):
        def step(state):
            x, _ = state
            return a * jnp.cos(x), jnp.max(jnp.abs(a * jnp.cos(x) - x))

        return jax.lax.while_loop(lambda state: state[1] > 1e-6, step, (jnp.ones_like(a), jnp.ones((), a.dtype)))[0]

    @jax.custom_vjp
    def root(a):
        return steps(a)

    root.defvjp(
        lambda a: (steps(a), (a, steps(a))),
        lambda saved, g: (factor * g * jnp.cos(saved[1]) / (1 + saved[0] * jnp.sin(saved[1])),),
    )
    assert check(root, "float32[5]>0<0.8", **QUICK).ok is (factor == 1)


def test_ties_show_a_maximum_that_is_given_to_all():
    def maximum(share):
        @jax.custom_vjp
        def maximum(x):
            return x.max(-1)

        def backward(x, g):
            at = (x == x.max(-1, keepdims=True)).astype(x.dtype)
            return (g[:, None] * (at / at.sum(-1, keepdims=True) if share else at),)

        maximum.defvjp(lambda x: (maximum(x), x), backward)
        return maximum

    options = {**QUICK, "shapes": True, "precise": False}
    assert check(maximum(share=True), "float32[6,20]", **options).ok
    wrong = check(maximum(share=False), "float32[6,20]", **options)
    assert not wrong.ok
    assert "ties" in wrong.wrong[0].dtype
    given = jnp.asarray([[1.0, 2.0, 2.0, 0.0], [3.0, 1.0, 3.0, 3.0]])
    assert check(maximum(share=True), given, **QUICK).ok
    assert not check(maximum(share=False), given, **QUICK).ok


def test_a_sum_in_another_order_is_imprecise_and_not_wrong():
    """One after the other in float32, where the reference sums in pairs; the algebra is the same."""

    def made(factor):
        @jax.custom_vjp
        def scaled(x, s):
            return x * s

        def backward(saved, g):
            x, s = saved
            ds = jax.lax.scan(lambda c, t: (c + t, None), jnp.zeros((), x.dtype), x * g)[0]
            return g * s, ds * jnp.asarray(factor, x.dtype)

        scaled.defvjp(lambda x, s: (x * s, (x, s)), backward)
        return scaled

    x = jnp.abs(jnp.asarray(np.random.default_rng(1).standard_normal(40000), jnp.float32))
    assert check(made(1.0), x, jnp.float32(2.0), **{**QUICK, "seeds": 4}).ok
    assert not check(made(1.0005), x, jnp.float32(2.0), **QUICK).ok


def test_a_loose_tolerance_is_a_warning_and_hides_what_it_hides():
    report = check(layer_norm("per cent"), shapes(), tolerance=0.1, precise=False, **QUICK)
    assert report.ok
    assert any(note.startswith("WARNING") for note in report.notes)
    assert not any(note.startswith("WARNING") for note in check(layer_norm(), shapes(), **QUICK).notes)


def test_a_tolerance_is_kept_in_float64_too():
    assert check(layer_norm("per cent"), shapes(), tolerance=0.1, **QUICK).ok
    assert not check(layer_norm("per cent"), shapes(), tolerance=1e-3, **QUICK).ok


def test_a_leaf_that_is_all_rounding_is_warned_of():
    """A bias before a norm changes nothing: its gradient is zero but for rounding."""

    @jax.custom_vjp
    def centred(x, b):
        z = x + b
        return z - z.mean()

    centred.defvjp(lambda x, b: (centred(x, b), None), lambda _, g: (g - g.mean(), (g - g.mean()).sum()))
    report = check(centred, "float32[50], float32[]", **QUICK)
    assert report.ok, str(report)
    assert any(note.startswith("WARNING: ∂b is no larger") for note in report.notes), report.notes


def test_half_precision_by_itself_says_what_it_cannot_see():
    alone = check(layer_norm("per cent"), shapes("bfloat16"), **{**QUICK, "precise": False})
    assert not alone.ok or any("pass: leave `precise` on" in note for note in alone.notes)
    both = check(layer_norm("per cent"), shapes("bfloat16"), **QUICK)
    assert [leaf.path for leaf in both.wrong] == ["∂x"]


def test_a_warning_is_said_of_a_right_rule_inside_too():
    report = check(layer_norm(), shapes("bfloat16"), **{**QUICK, "precise": False})
    assert report.ok
    assert "WARNING: in this dtype by itself" in summary(report)


def test_float64_is_asked_how_far_a_little_rounding_goes():
    off = CheckOptions(precise=False)
    assert not asks_finer(off, [np.ones(2, np.float32)], [np.ones(2, np.float64)])
    assert asks_finer(off, [np.ones(2, np.float64)], [np.ones(2, np.float64)])


def test_a_dtype_is_a_static_argument():
    @partial(jax.custom_jvp, nondiff_argnums=(0,))
    def twice(dtype, x):
        return 2 * jnp.asarray(x, dtype)

    twice.defjvp(lambda dtype, x, t: (twice(dtype, *x), 2 * jnp.asarray(t[0], dtype)))
    assert check(twice, jnp.dtype("float32"), jnp.array([0.5, -1.0, 2.0]), also=False, diagnose=False).ok
    twice.defjvp(lambda dtype, x, t: (twice(dtype, *x), 3 * jnp.asarray(t[0], dtype)))
    wrong = check(twice, jnp.dtype("float32"), jnp.array([0.5, -1.0, 2.0]), also=False)
    assert "3 * jnp.asarray(t[0], dtype) stands in the place of 2 * jnp.asarray(t[0], dtype)" in wrong.cause


def test_not_finite_on_both_sides_is_not_judged_and_its_first_term_is_named():
    @jax.custom_vjp
    def f(x):
        return jnp.log(x - 1) * 2

    f.defvjp(lambda x: (f(x), x), lambda x, g: (2 * g / (x - 1),))
    with pytest.raises(CannotCheckError, match=r"a NaN arises in `log` at .*test_check_rounding\.py"):
        check(f, jnp.asarray([0.5, 2.0]), **QUICK)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (np.s_[:, 128:], "columns 128 on: the last block"),
        (np.s_[-1:], "row 7 (the last)"),
        (np.s_[::2], "every 2nd of rows from 0"),
        (np.s_[3, 5], "one entry of 2048"),
        (np.s_[:], "everywhere"),
    ],
)
def test_patterns_of_wrong_entries(where, words):
    wrong = np.zeros((8, 256), bool)
    wrong[where] = True
    assert pattern_of(wrong) == words


def test_scattered_entries_are_said_to_be():
    wrong = np.random.default_rng(0).random((40, 40)) < 0.02
    assert "scattered" in pattern_of(wrong)


def test_a_rule_that_can_be_traced_in_float64_and_not_run_there():
    def host(x):
        if x.dtype != np.float32:
            raise TypeError("float32 alone")
        return np.asarray(2 * x)

    @jax.custom_vjp
    def double(x):
        return jax.pure_callback(host, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential")

    double.defvjp(lambda x: (double(x), None), lambda _, d_out: (2 * d_out,))
    report = check(double, "float32[3]", reference=lambda x: 2 * x, seeds=1, shapes=False)
    assert report.ok
    assert any("not run in float64" in note for note in report.notes)


def test_a_tolerance_is_for_the_properties_too():
    """A gradient that is 0.05 % off, as an iterative solver's may be."""
    off = jax.custom_vjp(lambda x: jnp.sin(x))
    off.defvjp(lambda x: (jnp.sin(x), x), lambda x, d_out: (1.0005 * d_out * jnp.cos(x),))
    assert check(off, "float32[4]", tolerance=2e-3, precise=False, **{**QUICK, "also": True}).ok
    assert not check(off, "float32[4]", tolerance=1e-5, precise=False, **QUICK).ok


def test_a_reference_that_names_its_dtype_is_no_finer_than_that():
    """Its rule does not trace in float64, where it is widened; the reference still rounds to float32."""

    def divergence(x, y):
        q, p = (jax.nn.log_softmax(each.astype(jnp.float32)) for each in (x, y))
        return (jnp.exp(p) * (p - q)).sum(-1).astype(jnp.float32)

    def backward(saved, g):
        x, y = map(jax.nn.softmax, saved)
        return ((x - y) * g[:, None]).astype(jnp.float32), None

    rule = jax.custom_vjp(divergence)
    rule.defvjp(lambda x, y: (rule(x, y), (x, y)), backward)
    x, y = (np.random.default_rng(seed).standard_normal((4, 5)).astype(np.float32) for seed in (22, 1))
    report = check(lambda x: rule(x, y), x, inside=False, **QUICK)
    assert report.ok, str(report)
    assert any("rounds to float32 inside" in note for note in report.notes)
