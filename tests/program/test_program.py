"""Programs as operations: opened calls, float64, rules inside, the first NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxnet.checking import CannotCheckError, check
from jaxnet.program import (
    CannotOpenError,
    UnknownPrimitiveError,
    calls,
    draws_numbers,
    first_not_finite,
    graph_of,
    in_numpy,
    rules_inside,
    widened_program,
    without_rules,
)
from jaxnet.program.dependencies import dependents, uses
from jaxnet.program.numpy_evaluation import NumpyEvaluation

X = jnp.asarray([1.0, 2.0, 3.0])


@jax.custom_vjp
def square(x):
    return x * x


square.defvjp(lambda x: (x * x, x), lambda x, g: (4 * x * g,))


def test_a_program_runs_in_numpy_as_in_jax():
    def attend(q, k, xs):
        scores = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k))
        carried, steps = lax.scan(lambda c, x: (jnp.tanh(c @ x), c.sum()), jnp.eye(3), xs)
        return scores, carried, jnp.einsum("bij,bjk,b->ik", xs, xs, steps)

    shapes = ((2, 5, 4, 3), (2, 6, 4, 3), (7, 3, 3))
    args = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]
    run = in_numpy(jax.make_jaxpr(attend)(*args), 1e6)
    for got, expected in zip(run(*args), jax.jit(attend)(*args), strict=True):
        assert jnp.allclose(got, expected, 1e-5, 1e-5)


@pytest.mark.parametrize(
    ("function", "x"),
    [
        (jnp.cumprod, X),
        (lambda x: x + 1, X.astype(jnp.bfloat16)),
        (lambda x: x.sum(), jnp.zeros((0, 3))),
        (lambda x: lax.fori_loop(0, 1000, lambda _, c: c * 0.5, x), X),
    ],
    ids=["an operation that it has not", "half precision", "an empty array", "too many steps"],
)
def test_a_program_is_left_to_jax(function, x):
    assert in_numpy(jax.make_jaxpr(function)(x), 1e6) is None


@pytest.mark.parametrize(
    "function",
    [
        lambda x: lax.scan(lambda c, row: (jnp.sin(c * 0.5) + row, c * 2), 0.0, x),
        lambda x: lax.while_loop(lambda c: c.sum() < 50, lambda c: c * 2 + x[0], x),
        lambda x: (lax.cond(x[1] > 5, lambda v: v, lambda v: -v, x[0]), square(x), x[2]),
    ],
    ids=["scan", "while", "cond"],
)
def test_a_changed_value_changes_only_its_dependents(function):
    graph = graph_of(jax.make_jaxpr(function)(X))
    evaluation = NumpyEvaluation()
    before = evaluation.run(graph, [X])
    following = uses(graph.everything)
    for number in [*graph.inputs, *(n for o in graph.everything for n in o.outputs)]:
        if np.asarray(evaluation.values.get(number, 0)).dtype.kind == "f":
            after = NumpyEvaluation(changes={number: lambda values, n=number: values[n] + 0.125}).run(graph, [X])
            for out, a, b in zip(graph.outputs, before, after, strict=True):
                assert out in dependents(following, [number]) or np.array_equal(a, b)
    assert len(dependents(following, graph.inputs)) > 3


def test_a_reducer_is_an_operand_and_runs_in_float64():
    def product(x):
        return lax.reduce(x, jnp.float32(1), lambda a, b: a * b, (0,))

    def windows(x):
        return lax.reduce_window(x, jnp.float32(1), lambda a, b: a * b + 0, (2,), (1,), "VALID")

    for function, expected in ((product, 6.0), (windows, [2.0, 6.0])):
        program = jax.make_jaxpr(function)(X)
        with jax.enable_x64(True):
            (out,) = widened_program(program)(X)
        assert out.dtype == jnp.float64
        assert out.tolist() == expected
    assert "an infinity arises in `reduce`" in str(first_not_finite(product, jnp.full(3, 1e30)))


def test_rules_are_found_in_loops_with_the_inputs_that_reach_them():
    def function(x):
        def step(c):
            c = lax.scan(lambda c, _: (square(c) * 0.5, None), c, None, length=2)[0]
            return lax.cond(c.sum() > 1.2, jax.jit(square), lambda c: c + 1.0, c)

        return lax.while_loop(lambda c: c.sum() < 1e6, step, x)

    sites = rules_inside(function, (X,))
    assert [site.path.split(", square")[0] for site in sites] == [
        "while step 0, scan step 0", "while step 0, scan step 1", "while step 1, scan step 0",
        "while step 1, scan step 1", "while step 0, branch 1", "while step 1, branch 1",
    ]  # fmt: skip
    assert sites[1].inputs[0].tolist() == [0.5, 2.0, 4.5]
    assert jnp.allclose(without_rules(function)(X), function(X))


def test_a_rule_inside_shard_map_is_opened():
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("d")
    sharded = jax.shard_map(square, mesh=mesh, in_specs=spec, out_specs=spec)
    assert [site.path for site in rules_inside(sharded, (X,))] == ["shard 0"]
    assert jax.grad(lambda x: without_rules(sharded)(x).sum())(X).tolist() == [2.0, 4.0, 6.0]


def test_the_first_nan_is_named_by_its_operation_in_the_order_of_running():
    def function(x):
        total, _ = lax.scan(lambda c, t: (c + t, jnp.log(t)), 0.0, x)
        return lax.cond(total > 3, lambda: jnp.sqrt(total - 7), lambda: total)

    assert "a NaN arises in `sqrt`" in str(first_not_finite(function, X))
    assert "a NaN arises in `log`" in str(first_not_finite(function, X.at[1].set(-1.0)))
    assert first_not_finite(function, X + 1) is None


def test_a_primitive_that_is_not_known_is_named(monkeypatch):
    monkeypatch.delitem(calls.CALLS, "jit")
    with pytest.raises(UnknownPrimitiveError, match="`jit` is not"):
        graph_of(jax.make_jaxpr(jax.jit(square))(X))


def test_a_rule_inside_a_reducer_cannot_be_opened():
    def reduced(x):
        return jax.lax.reduce(x, jnp.float32(0), lambda a, b: jax.nn.relu(a) + b, (0,))

    x = jnp.asarray([1.0, -2.0, 3.0])
    for ask in (lambda: rules_inside(reduced, (x,)), lambda: without_rules(reduced)(x)):
        with pytest.raises(CannotOpenError, match=r"stands inside `reduce`.*give `reference=`"):
            ask()
    with pytest.raises(CannotCheckError, match="cannot be opened"):
        check(lambda x: jax.nn.relu(reduced(x) * x), x)


def test_a_rule_says_which_of_its_inputs_do_not_depend_on_the_arguments():
    rule = jax.custom_jvp(lambda a, b, c: a * b * c)
    rule.defjvp(lambda p, t: (rule(*p), t[0] * p[1] * p[2]))

    def function(x, n):
        def step(carry, t):
            return rule(carry, t, jax.lax.stop_gradient(x).sum()), n.astype(x.dtype)

        carry, _ = jax.lax.scan(step, x.sum(), jnp.arange(3.0))
        steps = jnp.where(x > 0, 1.0, 0.0)  # a comparison has no derivative
        return rule(carry, rule(steps.sum(), x.max(), n.astype(x.dtype)), jnp.sign(steps).sum())

    sites = rules_inside(function, (jnp.asarray([1.0, -2.0]), jnp.int32(3)))
    assert [site.fixed for site in sites] == [(1, 2), (1, 2), (1, 2), (0, 2), (2,)]
    assert not any(site.inside_rule for site in sites)


@pytest.mark.parametrize(
    ("function", "draws"),
    [
        (lambda x: x + jax.random.normal(jax.random.key(0), x.shape), True),
        (
            lambda x: jax.lax.cond(x.sum() > 0, lambda x: x, lambda x: x * jax.random.uniform(jax.random.key(1)), x),
            True,
        ),
        (lambda x: jnp.tanh(x), False),
    ],
)
def test_random_numbers_in_a_program_are_found(function, draws):
    assert draws_numbers(jax.make_jaxpr(function)(jnp.ones(2))) is draws


def test_a_program_without_its_constants_takes_them_as_inputs():
    table = jnp.arange(3.0)
    made = jax.make_jaxpr(lambda x: jnp.sum(x * table))(table)
    assert made.jaxpr.constvars
    closed = calls.as_closed(made.jaxpr)
    inputs = [] if closed.consts else [table]  # jax 0.12 keeps a program's constants in it
    assert jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *inputs, table + 1) == [8.0]
