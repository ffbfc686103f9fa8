"""Every form of every operation of the layers, held against its plain equation."""

import importlib
import pkgutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxnet.layers
from jaxnet.layers.attention import attend, attend_backward
from jaxnet.layers.conv import weight_gradient
from jaxnet.lowering import Op
from jaxnet.lowering.attention import Seen
from jaxnet.lowering.windows import Window

pytestmark = pytest.mark.usefixtures("x64")

MASK = np.random.default_rng(0).random((7, 5)) < 0.5
MASK[:, 2] = True  # each query sees one key at least


def normal(shape, seed=0, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape), dtype)


def heads(queries, keys, n, kv, d, e, dtype):
    return (
        normal((queries, n, d), 1, dtype),
        normal((keys, kv, d), 2, dtype),
        normal((keys, kv, e), 3, dtype),
    )


def heads_back(*sizes, dtype, seen):
    q, k, v = heads(*sizes, dtype=dtype)
    o, L = attend.plain(q, k, v, seen=seen)
    return q, k, v, o, L, normal(o.shape, 4, dtype)


def window(kernel, stride, padding, dilation):
    return Window(kernel, stride, dilation, padding)


def convolution(examples, places, at, ins, outs, dtype):
    return normal((examples, *at.positions(places), outs), 5, dtype), normal((examples, *places, ins), 6, dtype)


# For each operation: its arrays, as a function of the dtype, and its options, in several sizes, odd ones among them.
ATTENTIONS = {
    "every key": ((5, 7, 2, 1, 3, 4), Seen(causal=False)),
    "causal": ((9, 9, 3, 3, 2, 2), Seen(causal=True)),
    "mask": ((7, 5, 4, 2, 3, 3), Seen(causal=False, mask=MASK)),
    "causal, in strips": ((300, 300, 2, 1, 4, 4), Seen(causal=True)),
}
CONVOLUTIONS = {
    "3x3": (2, (5, 6), window((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)), 1, 2, 3),
    "strided": (3, (7, 5), window((3, 2), (2, 3), ((1, 0), (0, 2)), (1, 1)), 1, 2, 3),
    "dilated, in groups": (2, (9,), window((3,), (2,), ((2, 2),), (2,)), 2, 4, 6),
    "depthwise": (1, (6, 6), window((3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1)), 4, 4, 4),
}
CASES = {
    **{
        f"attend {name}": (attend, partial(heads, *sizes), {"seen": seen}) for name, (sizes, seen) in ATTENTIONS.items()
    },
    **{
        f"attend_backward {name}": (attend_backward, partial(heads_back, *sizes, seen=seen), {"seen": seen})
        for name, (sizes, seen) in ATTENTIONS.items()
    },
    **{
        f"weight_gradient {name}": (
            weight_gradient,
            partial(convolution, examples, places, at, ins, outs),
            {"window": at, "groups": groups},
        )
        for name, (examples, places, at, groups, ins, outs) in CONVOLUTIONS.items()
    },
}
FORMS = [
    pytest.param(op, each, arrays, options, id=f"{name}-{platform}")
    for name, (op, arrays, options) in CASES.items()
    for platform, each in op.forms.items()
]
every_form = pytest.mark.parametrize(("op", "form", "arrays", "options"), FORMS)
SMALL = [param for param in FORMS if "strips" not in param.id]
every_small_form = pytest.mark.parametrize(("op", "form", "arrays", "options"), SMALL)


def agree(found, expected, tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        wide = np.asarray(other, np.float64)
        np.testing.assert_allclose(
            np.asarray(one, np.float64), wide, rtol=tolerance, atol=tolerance * max(1.0, np.abs(wide).max())
        )


def test_each_operation_of_the_layers_has_a_case():
    names = [each.name for each in pkgutil.walk_packages(jaxnet.layers.__path__, "jaxnet.layers.")]
    ops = {
        id(value): value
        for name in names
        for value in vars(importlib.import_module(name)).values()
        if isinstance(value, Op) and value.forms
    }
    assert {each.__name__ for each in ops.values()} == {op.__name__ for op, _, _ in CASES.values()}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-5), ("bfloat16", 6e-2)])
@every_form
def test_values(op, form, arrays, options, dtype, tolerance):
    given = arrays(dtype=dtype)
    agree(form.f(*given, **options), op.plain(*given, **options), tolerance)


@every_small_form
def test_under_vmap_and_scan(op, form, arrays, options):
    given = arrays(dtype=jnp.float64)
    rows = [jnp.stack([t, 2 * t, t + 1]) for t in given]
    expected = [op.plain(*(t[i] for t in rows), **options) for i in range(3)]
    expected = jax.tree.map(lambda *each: jnp.stack(each), *expected)
    agree(jax.vmap(partial(form.f, **options))(*rows), expected, 1e-11)
    agree(jax.lax.scan(lambda _, xs: (None, form.f(*xs, **options)), None, tuple(rows))[1], expected, 1e-11)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@every_small_form
def test_over_a_sharded_batch(op, form, arrays, options, kind):
    """A layer's operation is mapped over examples; a weight's gradient has them as an axis of its own."""
    given = arrays(dtype=jnp.float64)
    whole = op is weight_gradient
    join = jnp.concatenate if whole else jnp.stack
    rows = [join([t, 2 * t]) for t in given]
    batched = (lambda f: f) if whole else jax.vmap
    expected = batched(partial(op.plain, **options))(*rows)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        rows = [jax.device_put(t, NamedSharding(mesh, PartitionSpec("data"))) for t in rows]
        agree(jax.jit(batched(partial(op, **options)))(*rows), expected, 1e-11)


@every_small_form
def test_derivatives_through_the_operation(op, form, arrays, options):
    """First and second derivatives are those of the plain equation, whatever form runs."""
    given = arrays(dtype=jnp.float64)
    direction = [normal(t.shape, 9) for t in given]

    def total(f):
        return lambda *args: sum(jnp.sum(jnp.sin(t)) for t in jax.tree.leaves(f(*args, **options)))

    everywhere = tuple(range(len(given)))

    def hessian_product(f):
        return jax.jvp(jax.grad(total(f), everywhere), tuple(given), tuple(direction))

    agree(jax.jit(lambda: hessian_product(op))(), jax.jit(lambda: hessian_product(op.plain))(), 1e-9)
