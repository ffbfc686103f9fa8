"""The tape: every value with its line, name and dependencies; replay with changes."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxnet.program import record, replay

X = jnp.asarray([1.0, 2.0, 3.0])


def net(params, x):
    z = params["W"] @ x + params["b"]
    mean = jnp.mean(z)
    z -= mean
    return {"out": jnp.tanh(z), "mean": mean}


PARAMS = {"W": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(2)}


def named(tape):
    return {name: tape.values[number] for number, name in tape.names.items()}


def test_values_carry_the_names_that_statements_assign():
    tape = record(net, PARAMS, X)
    z = PARAMS["W"] @ X + 1
    assert jnp.allclose(named(tape)["mean"], z.mean())
    numbers = [number for number, name in tape.names.items() if name == "z"]
    assert [tape.values[n].tolist() for n in numbers] == [z.tolist(), (z - z.mean()).tolist()]
    assert tape.made_by[numbers[0]].position.text == 'z = params["W"] @ x + params["b"]'
    assert jax.tree.all(jax.tree.map(jnp.allclose, tape.result, net(PARAMS, X)))


def loops(w, x):
    def step(carry, row):
        before = carry
        carry = jnp.sin(carry * w) + row
        return carry, before * 2

    last, rows = lax.scan(step, 0.0, x)
    count = lax.while_loop(lambda c: c < 10, lambda c: c * 2, 1.0 + last * 0)
    return lax.cond(count > 5, jax.nn.relu, lambda v: -v, last), rows


def test_values_in_loops_are_stacked_over_the_steps():
    tape = record(loops, 0.5, X)
    carry, expected = 0.0, []
    for row in X:
        carry = jnp.sin(carry * 0.5) + row
        expected.append(carry)
    assert jnp.allclose(named(tape)["carry"], jnp.stack(expected))
    (scan,) = (o for o in tape.operations if o.kind == "scan")
    assert tape.values[scan.bodies[0].inputs[0]].shape == ()  # w, the same at every step
    (loop,) = (o for o in tape.operations if o.kind == "while")
    assert tape.values[loop.bodies[1].outputs[0]].tolist() == [2.0, 4.0, 8.0, 16.0]
    assert jax.tree.all(jax.tree.map(jnp.allclose, tape.result, loops(0.5, X)))


def test_a_loop_inside_a_loops_condition_runs_all_its_steps():
    def up_to_five(x):
        def small(c):
            return lax.while_loop(lambda d: d < c, lambda d: d + 1, 0.0) < 5

        return lax.while_loop(small, lambda c: c + 1, x)

    tape = record(lambda xs: lax.map(up_to_five, xs), jnp.asarray([0.0, 3.0, 9.0]))
    assert tape.result.tolist() == [5.0, 5.0, 9.0]


def test_a_change_is_made_at_each_step_and_can_be_differentiated():
    tape = record(loops, 0.5, X)
    (row,) = (o.outputs[0] for o in tape.operations if o.name == "sin")
    out, rows = replay(tape, {row: 0.0})
    assert (float(out), rows.tolist()) == (3.0, [0.0, 2.0, 4.0])
    grad = jax.grad(lambda w: replay(tape, {}, w, X)[0])(0.7)
    assert jnp.allclose(grad, jax.grad(lambda w: loops(w, X)[0])(0.7))
    changed = jax.vmap(lambda x: replay(tape, {row: lambda v: 2 * v}, 0.0, x)[1])(jnp.stack([X, 2 * X]))
    assert changed.tolist() == [[0.0, 2.0, 4.0], [0.0, 4.0, 8.0]]
    with pytest.raises(ValueError, match=r"no value has the number 9999.*tape\.operations"):
        replay(tape, {9999: 0.0})


@pytest.mark.parametrize("function", [lambda x: net(PARAMS, x), lambda x: loops(0.5, x), lambda x: loops(x[0], X)])
def test_a_changed_value_changes_only_its_dependents(function):
    tape = record(function, X)
    inner = [n for o in tape.operations for n in o.outputs if jnp.issubdtype(tape.values[n].dtype, jnp.floating)]
    flat = jax.tree.leaves(tape.result)
    for number in [*tape.graph.inputs, *inner]:
        changed = jax.tree.leaves(replay(tape, {number: lambda v: v + 0.125}))
        for out, before, after in zip(tape.graph.outputs, flat, changed, strict=True):
            assert out in tape.dependents(number) or jnp.array_equal(before, after)
    w, x = record(loops, 0.5, X).graph.inputs
    assert len(record(loops, 0.5, X).dependents(w)) > 5
    assert x not in record(loops, 0.5, X).dependents(w)


def test_integers_keys_and_none_pass_through():
    def function(key, n):
        return {"draw": jax.random.normal(key, (2,)), "n": n + 1, "none": None}

    tape = record(function, jax.random.key(1), 3)
    assert tape.result["none"] is None
    assert tape.result["n"] == 4
    assert jnp.array_equal(tape.result["draw"], function(jax.random.key(1), 3)["draw"])


def test_a_shard_is_recorded():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")
    tape = record(jax.shard_map(lambda x: 3 * x, mesh=mesh, in_specs=spec, out_specs=spec), X)
    (product,) = (o.outputs[0] for o in tape.operations if o.name == "mul")
    assert tape.values[product].tolist() == [[3.0, 6.0, 9.0]]
    assert replay(tape, {product: 1.0}).tolist() == [1.0, 1.0, 1.0]
