"""Operations with several forms: which one runs, and that each has the plain equation's derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxnet.lowering import form, op, op_name, plain_forms
from jaxnet.lowering.sharding import Shares, shares


def scaled(x, n=2):
    """n x³."""
    return n * x**3


def wrongly(x, n=2):
    """A form that is told apart by its value: x more than the plain equation, and another derivative."""
    return n * x**3 + x


CPU, CUDA, LONG = (
    op(scaled, cpu=form(wrongly)),
    op(scaled, cuda=form(wrongly)),
    op(scaled, cpu=form(wrongly, when=lambda x, n=2: x.ndim > 0 and len(x) > 2)),
)


def test_a_form_runs_on_its_platform_alone():
    assert float(jax.jit(CPU)(2.0)) == float(CPU(2.0)) == 18
    assert float(jax.jit(CUDA)(2.0)) == float(CUDA(2.0)) == 16


def test_options_reach_every_form():
    assert float(CPU(2.0, n=3)) == 26
    assert float(CUDA(2.0, n=3)) == 24


def test_when_decides_by_shape():
    assert np.array_equal(LONG(jnp.ones(2)), [2, 2])
    assert np.array_equal(LONG(jnp.ones(3)), [3, 3, 3])


def test_plain_forms_reach_a_function_that_was_compiled_before():
    compiled = jax.jit(CPU)
    assert float(compiled(2.0)) == 18
    with plain_forms():
        assert float(compiled(2.0)) == 16
    assert float(compiled(2.0)) == 18


def test_derivatives_of_each_order_are_the_plain_equations():
    assert float(jax.grad(CPU)(2.0)) == 24
    assert float(jax.jit(jax.hessian(CPU))(2.0)) == 24
    assert float(jax.jvp(jax.grad(CPU), (2.0,), (1.0,))[1]) == 24


def test_vmap_and_scan():
    assert np.array_equal(jax.jit(jax.vmap(CPU))(jnp.arange(3.0)), [0, 3, 18])
    assert np.array_equal(jax.lax.scan(lambda c, x: (c, CPU(x)), 0, jnp.arange(3.0))[1], [0, 3, 18])


def test_a_mapped_loop_of_operations_is_differentiated_with_its_batch_axis_in_place():
    """The plain equation gives its batch axis second, as a scan does; a choice of forms gives it first."""

    def running_sum(x):
        return jax.lax.scan(lambda so_far, x: (so_far + x,) * 2, jnp.zeros(2), x)[1]

    def twice(f):
        return lambda x: jax.lax.scan(lambda x, _: (f(x), None), x, length=2)[0]

    xs = jnp.arange(12.0).reshape(3, 2, 2)
    of_op, of_plain = (
        jax.jvp(lambda x, f=f: jax.vmap(twice(f))(x), (xs,), (jnp.cos(xs),))
        for f in (op(running_sum, cpu=form(running_sum)), running_sum)
    )
    np.testing.assert_allclose(of_op, of_plain, rtol=1e-6)


@pytest.mark.parametrize(("manual", "expected"), [(False, 16), (True, 18)])
def test_under_manual_axes_only_a_form_marked_for_it_runs(manual, expected):
    operation = op(scaled, cpu=form(wrongly, manual=manual))
    mesh = jax.make_mesh((1,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    across = PartitionSpec("devices")
    mapped = jax.jit(jax.shard_map(operation, mesh=mesh, in_specs=across, out_specs=across))
    assert float(mapped(jnp.full(1, 2.0))[0]) == expected


def test_on_a_mesh_a_form_has_each_devices_share_also_under_manual_axes():
    """With the mesh's axis "stage" manual, the form has the share of "tensor" alone."""
    seen = []

    def share(x):
        seen.append(x.shape)
        return (x,)

    operation = op(lambda x: (x,), cpu=form(share, axes="heads width -> heads width"))
    mesh = jax.make_mesh((2, 4), ("stage", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    across = PartitionSpec("stage")
    staged = jax.shard_map(operation, mesh=mesh, axis_names={"stage"}, in_specs=across, out_specs=across)
    x = jnp.arange(48.0).reshape(8, 6)
    with shares(Shares(mesh, (), (("heads", "tensor"), ("width", "stage")))):
        assert np.array_equal(jax.jit(operation)(x)[0], x)
        assert np.array_equal(jax.jit(staged)(x)[0], x)
    assert {(2, 3), (1, 6)} == set(seen)


def test_an_operation_is_known_in_a_program_by_its_name():
    [equation] = jax.make_jaxpr(CPU)(1.0).eqns
    assert op_name(equation) == "scaled"
    assert [e.primitive.name for e in equation.params["call_jaxpr"].eqns] == ["platform_index", "cond"]
    [other] = jax.make_jaxpr(jax.nn.relu)(1.0).eqns
    assert op_name(other) is None
    with plain_forms():
        assert all(op_name(e) is None for e in jax.make_jaxpr(CPU)(1.0).eqns)


def test_only_one_form_is_compiled():
    text = jax.jit(LONG).lower(jnp.ones(3)).compile().as_text()
    assert "conditional" not in text


def test_an_array_for_an_option_is_refused():
    with pytest.raises(TypeError, match=r"scaled takes options that are hashable .* for n: give arrays by position"):
        CPU(1.0, n=jnp.ones(2))


def test_what_is_no_form_is_refused():
    with pytest.raises(TypeError, match=r"takes form\(f\) for each platform"):
        op(scaled, cpu=wrongly)
