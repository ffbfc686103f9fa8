"""Every kind of rule is taken, right ones are found right and wrong ones wrong."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet.checking import CannotCheckError, agreement, assert_backward, check
from jaxnet.program import Evaluation, graph_of, widened_program, without_rules
from tests.checking.rules import cube, layer_norm, layer_norm_reference, product, shapes

QUICK = {"seeds": 1, "also": False, "shapes": False, "diagnose": False, "precise": False}
VECTORS = "float32[5], float32[5]"


def verdicts(report):
    return {leaf.path: leaf.ok for leaf in report.leaves if not leaf.forward}


@pytest.mark.parametrize("mistake", ["projection", "one entry", "zero entry", "per cent", "last block", "nan"])
def test_a_wrong_leaf_of_a_custom_vjp_is_named(mistake):
    report = check(layer_norm(mistake), shapes(), **QUICK)
    assert not report.ok
    assert verdicts(report) == {"∂x": False, "∂gamma": True, "∂beta": True}


def test_a_rule_that_runs_only_without_jit_is_told_so():
    rule = jax.custom_vjp(lambda x: x**3)
    rule.defvjp(lambda x: (x**3, x), lambda x, d_out: (3 * x**2 * d_out if (x > 0).all() else x,))
    report = check(rule, jnp.array([1.0, 2.0]), **QUICK)
    assert [(each.name, each.ok) for each in report.properties if not each.ok] == [("jit", False)]
    assert verdicts(report) == {"∂x": True}


def test_a_right_custom_vjp_passes_with_all_that_is_held_beside_the_values():
    report = check(layer_norm(), shapes(), seeds=2, diagnose=False)
    assert report.ok, str(report)
    assert [h.name for h in report.properties if h.ok] == [
        "2 runs bitwise equal",
        "jit = eager",
        "linear in the cotangent",
        "⟨d_out, J v⟩ = ⟨backward(d_out), v⟩",
        "vmap",
    ]
    assert any("batch 1" in note for note in report.notes)


def test_a_reference_is_the_main_road_and_the_primal_is_held_to_it():
    right = check(layer_norm(), shapes(), reference=layer_norm_reference, **QUICK)
    assert right.ok
    other = check(layer_norm(), shapes(), reference=lambda x, g, b: layer_norm_reference(x, g, b) * 2, **QUICK)
    assert not next(leaf for leaf in other.leaves if leaf.forward).ok
    assert not any(verdicts(other).values())


@pytest.mark.parametrize("wrong", [False, True])
def test_custom_jvp(wrong):
    assert check(cube(wrong), "float32[4]", **QUICK).ok is not wrong


def test_a_jvp_that_cannot_be_transposed_is_compared_by_its_tangents():
    def made(factor):
        @jax.custom_jvp
        def f(x):
            return jnp.tanh(x)

        @f.defjvp
        def _(primals, tangents):
            (x,), (t,) = primals, tangents
            return f(x), factor * (1 - jnp.tanh(x) ** 2) * jnp.sign(t) * jnp.abs(t)  # |t| is not linear

        return f

    right, wrong = check(made(1.0), "float32[4]", **QUICK), check(made(1.5), "float32[4]", **QUICK)
    assert right.ok
    assert not wrong.ok
    assert "transposed" in " ".join(right.notes)


def test_static_arguments_keywords_and_several_outputs():
    @partial(jax.custom_vjp, nondiff_argnums=(1,))
    def power(x, n, scale=1.0):
        return scale * x**n, jnp.argmax(x)

    def backward(n, saved, g):
        x, scale = saved
        return g[0] * scale * n * x ** (n - 1), jnp.zeros(())

    power.defvjp(lambda x, n, scale=1.0: (power(x, n, scale), (x, scale)), backward)
    report = check(power, jnp.asarray([0.5, 2.0, 3.0]), 3, kwargs={"scale": jnp.asarray(2.0)}, **QUICK)
    assert report.ok, str(report)
    assert report.passed_over == {"n": "no gradient is given for it"}


def test_no_cotangent_and_symbolic_zeros():
    @jax.custom_vjp
    def f(x, y):
        return x * 2, y * 3

    def forward(x, y):
        return (x.value * 2, y.value * 3), None

    def backward(saved, g):
        zero = jax.custom_derivatives.SymbolicZero
        return tuple(None if isinstance(each, zero) else each * k for each, k in zip(g, (2, 3), strict=True))

    f.defvjp(forward, backward, symbolic_zeros=True)
    report = check(f, VECTORS, seeds=1, shapes=False, diagnose=False)
    assert report.ok, str(report)
    assert "each output by itself" in [h.name for h in report.properties]


def test_none_for_a_gradient_that_is_not_zero_is_wrong():
    @jax.custom_vjp
    def f(x, y):
        return x * y

    f.defvjp(lambda x, y: (x * y, y), lambda y, g: (g * y, None))
    assert verdicts(check(f, VECTORS, **QUICK)) == {"∂x": True, "∂y": False}


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("kind", ["saved", "pullback", "cotangent first", "cotangent last"])
def test_pairs(kind, wrong):
    def f(x, y):
        return jnp.sum(x) * y

    def grads(x, y, g):
        return jnp.full_like(x, (g * y).sum()), g * (1.0 if wrong else x.sum())

    pair = {
        "saved": (lambda x, y: (f(x, y), (x, y)), lambda saved, g: grads(*saved, g)),
        "pullback": (f, lambda x, y: (f(x, y), lambda g: grads(x, y, g))),
        "cotangent first": (f, lambda g, x, y: grads(x, y, g)),
        "cotangent last": (f, grads),
    }[kind]
    inputs = "float32[2,3], float32[4]" if kind.startswith("cotangent") else VECTORS
    assert verdicts(check(pair, inputs, **QUICK)) == {"∂x": True, "∂y": not wrong}


@pytest.mark.parametrize("wrong", [False, True])
def test_functions_of_gradients(wrong):
    def loss(params, x):
        return jnp.sum(jnp.tanh(params["W"] @ x + params["b"]) ** 2)

    def both(params, x):
        value, grads = jax.value_and_grad(loss)(params, x)
        return value, {**grads, "b": grads["b"] * (2 if wrong else 1)}

    for rule in (both, lambda params, x: both(params, x)[1]):
        report = check(rule, {"W": "float32[3,4]", "b": "float32[3]"}, "float32[4]", reference=loss, **QUICK)
        assert verdicts(report) == {"∂params['W']": True, "∂params['b']": not wrong}


def test_structure_shape_and_dtype_are_named_with_what_to_return():
    def pair(grads):
        return (lambda x, y: (x * y.sum(), (x, y)), lambda saved, g: grads(*saved, g))

    def full(x, y, g):
        return g * y.sum(), jnp.full(y.shape, (g * x).sum())

    assert check(pair(full), "float32[3], float32[2]", **QUICK).ok
    unsummed = check(pair(lambda x, y, g: (g * y.sum(), (g * x).sum())), "float32[3], float32[2]", **QUICK)
    assert not unsummed.ok
    assert str(unsummed).count("it must have y's, (2,)") == 1
    dtypes = pair(lambda x, y, g: (full(x, y, g)[0].astype(jnp.bfloat16), full(x, y, g)[1]))
    half = check(dtypes, "float32[3], float32[2]", **QUICK)
    assert not half.ok
    assert ".astype(float32)" in str(half)
    short = check(pair(lambda x, y, g: (g * y.sum(),)), "float32[3], float32[2]", **QUICK)
    assert not short.ok
    assert "no gradient for y" in str(short)


def test_rules_are_found_at_any_depth_and_checked_at_the_inputs_that_reach_them():
    good, bad = product(), product(wrong=True)

    def function(x):
        def step(carry, t):
            carry = jax.lax.cond(carry.sum() > 1e6, lambda c: c, lambda c: jax.jit(bad)(c, t), carry)
            return good(carry, t), None

        return jax.lax.scan(step, x, jnp.linspace(0.5, 1.5, 12).reshape(3, 4) * x[None])[0]

    report = check(function, "float32[4]", **QUICK)
    assert not report.ok
    assert [inner.ok for inner in report.inside] == [False, True]
    assert "product" in report.layer
    assert "scan step" in report.layer
    assert [leaf.ok for leaf in report.inside[0].leaves if not leaf.forward] == [True, False]


def test_a_rule_inside_is_told_in_its_own_argument_names():
    @jax.custom_vjp
    def scaled(scale, x):
        return scale * x

    scaled.defvjp(lambda scale, x: (scale * x, (scale, x)), lambda saved, g: (g * saved[1], 2 * g * saved[0]))
    report = check(lambda v: scaled(v[0] * jnp.ones(3), jnp.sin(v[1:])), "float32[4]", **QUICK)
    assert [leaf.path for leaf in report.inside[0].leaves if not leaf.forward] == ["∂scale", "∂x"]


def test_a_mistake_at_the_bounds_of_an_input_is_a_warning():
    @jax.custom_vjp
    def square(p):
        return p * p

    square.defvjp(lambda p: (p * p, p), lambda p, g: (2 * g * p**3 / p**2,))  # 0 / 0 at p = 0
    report = check(square, "float32[6]>0<1", **{**QUICK, "shapes": True})
    assert report.ok
    assert any("at the bounds of the inputs" in note and "∂p is wrong" in note for note in report.notes)


def test_a_rule_inside_the_primal_of_a_rule_is_found():
    inner = cube(wrong=True)

    @jax.custom_vjp
    def outer(x):
        return inner(x) * 2

    outer.defvjp(lambda x: (outer(x), x), lambda x, g: (g * 4 * x**2,))  # right for what inner says, wrong for x³
    report = check(outer, "float32[4]", **QUICK)
    assert [inside.name for inside in report.inside] == ["cube"]
    assert not report.inside[0].ok


def test_forward_mode_where_reverse_mode_cannot_go():
    def forward(x):
        return jax.lax.while_loop(lambda c: c[1] < 3, lambda c: (jnp.sin(c[0]) * 2, c[1] + 1), (x, 0))[0]

    @jax.custom_vjp
    def f(x):
        return forward(x)

    def grads(x, g, factor):
        for step in (2, 1, 0):
            at = x
            for _ in range(step):
                at = jnp.sin(at) * 2
            g = g * factor * jnp.cos(at)
        return (g,)

    for factor, right in ((2.0, True), (1.9, False)):
        f.defvjp(lambda x: (forward(x), x), partial(lambda x, g, factor: grads(x, g, factor), factor=factor))
        report = check(f, "float32[4]", **{**QUICK, "diagnose": True})  # there is no program to take apart
        assert report.ok is right
        assert "forward mode" in report.reference


def test_finite_differences_are_a_second_opinion():
    def host(x):
        return np.sin(np.asarray(x)) * 2

    def call(x):
        return jax.pure_callback(host, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential")

    def made(factor):
        @jax.custom_vjp
        def f(x):
            return call(x)

        f.defvjp(lambda x: (call(x), x), lambda x, g: (g * factor * jnp.cos(x),))
        return f

    right, wrong = check(made(2.0), "float32[4]", **QUICK), check(made(1.99), "float32[4]", **QUICK)
    assert right.ok, str(right)
    assert not wrong.ok
    assert "second opinion" in right.reference
    assert len(right.curve) > 3


@pytest.mark.slow
def test_a_while_loop_with_a_condition_for_each_example():
    """`jax.scipy.special.expi` of an array loops until every entry is done, and has a rule inside a rule."""

    def made(factor):
        @jax.custom_vjp
        def f(x):
            return jax.scipy.special.expi(x)

        f.defvjp(lambda x: (f(x), x), lambda x, g: (g * factor * jnp.exp(x) / x,))
        return f

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # jax's own code needs them
        report = check(made(1.0), "float32[5]>0.2<3", seeds=1, also=False, shapes=False)
        assert report.ok, str(report)
        assert [inside.name for inside in report.inside] == ["expi"]  # the other branch, of NaN, is not reached
        wrong = check(made(1.5), "float32[5]>0.2<3", **{**QUICK, "diagnose": True})
    assert not wrong.ok
    assert "1.5" in wrong.cause


def test_a_step_of_a_batched_loop_is_its_own_examples():
    def doubled(x, n):
        return jax.lax.while_loop(lambda c: c[1] < n, lambda c: (c[0] * 2, c[1] + 1), (x, 0))[0]

    mapped = jax.vmap(doubled)
    x, n = jnp.asarray([1.0, 3.0, 5.0]), jnp.asarray([0, 2, 1])
    program = jax.make_jaxpr(lambda x: cube()(mapped(x, n)))(x)
    expected = jnp.asarray([1.0, 12.0, 10.0]) ** 3
    assert jnp.allclose(without_rules(lambda x: cube()(mapped(x, n)))(x), expected)
    assert jnp.allclose(Evaluation().run(graph_of(program), [x])[0], expected)
    with jax.enable_x64(True):
        assert jnp.allclose(widened_program(program)(x)[0], expected.astype(jnp.float64))


def test_an_implicit_derivative_is_not_that_of_its_iterations():
    def root(x):
        def solve(g, y):
            return jax.lax.fori_loop(0, 40, lambda i, y: y - g(y) / (3 * y**2), y)

        return jax.lax.custom_root(lambda y: y**3 - x, x, solve, lambda g, y: y / g(jnp.ones_like(y)))

    report = check(lambda x: cube()(root(x)), "float32[]>1<4", **QUICK)
    assert report.ok, str(report)
    assert [inside.name for inside in report.inside] == ["cube"]
    assert any("implicitly" in note for note in report.notes)


def test_names_and_functions_as_static_arguments():
    @partial(jax.custom_vjp, nondiff_argnums=(1, 2))
    def applied(x, kind, act):
        return act(x) if kind == "float32" else x

    applied.defvjp(lambda x, kind, act: (applied(x, kind, act), x), lambda kind, act, x, g: (2 * g * jnp.cos(x),))
    report = check(applied, "float32[5]", "float32", jnp.sin, seeds=1, also=False, shapes=False)
    assert not report.ok
    assert "the factor 2 is too much" in report.cause
    assert check(applied, "float32[5], other, 3", **QUICK).wrong[0].path == "∂x"


def test_a_gradient_of_zeros_is_diagnosed():
    @jax.custom_vjp
    def f(x, y):
        return jnp.sum(x * 0) + jnp.sum(y * y)

    f.defvjp(lambda x, y: (f(x, y), y), lambda y, g: (jnp.ones_like(y) * g, g * y))
    assert not check(f, VECTORS, **{**QUICK, "diagnose": True}).ok


def test_another_rank_is_tried_and_only_warned_of(monkeypatch):
    monkeypatch.setattr(agreement, "ELSEWHERE_SECONDS", 600)  # whatever else the machine does

    def scaled(over):
        @jax.custom_vjp
        def scaled(x, s):
            return x * s

        def backward(saved, g):
            x, s = saved
            return g * s, (g * x).sum(over(x.ndim))

        scaled.defvjp(lambda x, s: (scaled(x, s), (x, s)), backward)
        return scaled

    options = {**QUICK, "shapes": True}
    with jax.numpy_rank_promotion("allow"):
        general = check(scaled(lambda ndim: tuple(range(ndim - 1))), "float32[4,3], float32[3]", **options)
    assert general.ok
    assert any("rank 1, rank 3" in note for note in general.notes)

    @jax.custom_vjp
    def mean(x):
        return x.mean()

    mean.defvjp(lambda x: (x.mean(), x), lambda x, g: (jnp.full_like(x, g) / (x.shape[0] * x.shape[-1]),))
    special = check(mean, "float32[4,3]", **options)
    assert special.ok
    assert any(note.startswith("WARNING: at rank 1") and "∂x is wrong" in note for note in special.notes)


def test_a_declared_deviation_is_held_to_what_was_declared():
    @jax.custom_vjp
    def rounded(x):
        return jnp.round(x)

    rounded.defvjp(lambda x: (jnp.round(x), x), lambda x, g: (jnp.where(jnp.abs(x) < 1, g, 0),))

    def straight(x):
        return x + jax.lax.stop_gradient(jnp.round(x) - x)

    def clipped(x, g):
        return jnp.where(jnp.abs(x) < 1, g, 0)

    x = jnp.asarray([0.2, -0.7, 1.4, 3.3])
    assert not check(rounded, x, **QUICK).ok
    assert not check(rounded, x, intended=straight, **QUICK).ok
    assert check(rounded, x, intended=clipped, **QUICK).ok


def test_what_cannot_be_checked_says_why():
    with pytest.raises(CannotCheckError, match="no custom rule anywhere"):
        check(jnp.sin, "float32[3]")
    with pytest.raises(CannotCheckError, match="no input has a gradient"):
        check(layer_norm(), jnp.arange(3), jnp.arange(3), jnp.arange(3))
    with pytest.raises(CannotCheckError, match="a pair must fit"):
        check((lambda x: x, lambda: 0), "float32[3]")
    with pytest.raises(CannotCheckError, match="dtypes with shapes"):
        check(layer_norm(), "floaty[3]")
    with pytest.raises(CannotCheckError, match='as "int32\\[3\\]<10"'):
        check(layer_norm(), "float32[3], int32[3]")
    for kind, how in ((jax.custom_vjp, "defvjp"), (jax.custom_jvp, "defjvp")):
        with pytest.raises(CannotCheckError, match=f"has none: call its {how}"):
            check(kind(jnp.sin), "float32[3]")
    with pytest.raises(CannotCheckError, match="must run on these inputs"):
        check(layer_norm(), "float32[4,3], float32[5], float32[5]")


def test_captured_arrays_and_traced_statics_are_found():
    weights = jnp.arange(4.0)

    @jax.custom_vjp
    def captures(x):
        return x * weights

    captures.defvjp(lambda x: (x * weights, None), lambda saved, g: (g * weights,))
    assert any("captures the array `weights`" in note for note in check(captures, "float32[4]", **QUICK).notes)

    @partial(jax.custom_vjp, nondiff_argnums=(1,))
    def static(x, scale):
        return x * scale

    static.defvjp(lambda x, scale: (x * scale, None), lambda scale, saved, g: (g * scale,))
    assert any("nondiff_argnums" in n for n in check(static, jnp.ones(3), jnp.asarray(2.0), **QUICK).notes)


def test_assert_backward_raises_the_table():
    with pytest.raises(AssertionError, match=r"layer_norm: backward WRONG[\s\S]*∂gamma .*WRONG"):
        assert_backward(layer_norm("sign"), shapes(), **QUICK)
    assert assert_backward(layer_norm(), shapes(), **QUICK).ok
