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
from jaxnet.factors import inner_products, sum_of_outer
from jaxnet.layers.attention import attend, attend_backward
from jaxnet.layers.conv import weight_gradient
from jaxnet.layers.dense import times
from jaxnet.layers.normalization import norm_backward, norm_forward
from jaxnet.layers.pooling import to_places
from jaxnet.layers.recurrent.over_time import over_rows
from jaxnet.lowering import Op
from jaxnet.lowering.attention import Seen
from jaxnet.lowering.depth import over_layers
from jaxnet.lowering.windows import Window

pytestmark = pytest.mark.usefixtures("x64")

MASK = np.random.default_rng(0).random((7, 5)) < 0.5
MASK[:, 2] = True  # each query sees one key at least


def normal(shape, seed=0, dtype=jnp.float64):
    return jax.device_put(np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype))


def heads(queries, keys, n, kv, d, e, dtype):
    return (
        normal((queries, n, d), 1, dtype),
        normal((keys, kv, d), 2, dtype),
        normal((keys, kv, e), 3, dtype),
    )


def heads_back(*sizes, dtype, seen):
    q, k, v = heads(*sizes, dtype=dtype)
    o, L = jax.jit(partial(attend.plain, seen=seen))(q, k, v)
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
SIDE_BY_SIDE = {
    "2x2": ((4, 6), window((2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1))),
    "places left over": ((7, 5), window((3, 2), (3, 2), ((0, 0), (0, 0)), (1, 1))),
    "in time": ((9,), window((4,), (4,), ((0, 0),), (1,))),
}
MATRICES = {"laid out": (5, 48), "as they lie": (7, 49)}


def matrices(left, right, dtype):
    return normal(left, 7, dtype), normal(right, 8, dtype)


def pooled(places, at, dtype):
    d_out = normal((*at.positions(places), 3), 9, dtype)
    return d_out, jax.device_put(np.random.default_rng(10).integers(len(at.taps()), size=d_out.shape, dtype=np.uint8))


def averaged(places, at, dtype):
    return pooled(places, at, dtype)[0], None


def normalised(positions, width, dtype):
    x_hat = normal((*positions, width), 11, dtype)
    return normal((width,), 12, dtype), normal((*positions, width), 13, dtype), x_hat, 1 + x_hat[..., :1] ** 2


def to_normalise(positions, width, bias, dtype):
    return (
        normal((*positions, width), 21, dtype),
        normal((width,), 22, dtype),
        normal((width,), 23, dtype) if bias else None,
    )


def stepped(time, dtype):
    rows = normal((time, 4), 14, dtype)
    return {"U": normal((4, 4), 15, dtype)}, {"h": normal((4,), 16, dtype)}, rows, normal((time, 2), 17, dtype)


def counted(params, carry, row, x):
    """A step that needs its row, what it carries, and what came with it."""
    h = jnp.tanh(params["U"] @ carry["h"] + row)
    return {"h": h}, h * row, x.sum() * h[:2]


def stacked(times, dtype):
    return normal((4,), 18, dtype), (normal((times, 4, 4), 19, dtype), normal((times, 4), 20, dtype))


def dense_and_tanh(x, of_layer):
    """A layer that needs its own entries and what the one before gave."""
    W, b = of_layer
    return jnp.tanh(W @ x + b), W @ x


CASES = {
    **{f"times {name}": (times, partial(matrices, shape, (3, shape[1])), {}) for name, shape in MATRICES.items()},
    **{
        f"sum_of_outer {name}": (sum_of_outer, partial(matrices, shape, (shape[0], 3)), {"out_sharding": None})
        for name, shape in MATRICES.items()
    },
    **{
        f"inner_products {name}": (inner_products, partial(matrices, (3, shape[1]), shape), {})
        for name, shape in MATRICES.items()
    },
    **{
        f"to_places {name} {kind}": (
            to_places,
            partial(of, places, at),
            {"window": at, "shape": (*places, 3)},
        )
        for name, (places, at) in SIDE_BY_SIDE.items()
        for kind, of in (("winner", pooled), ("all", averaged))
    },
    **{
        f"norm_backward {centred} {len(positions)}": (
            norm_backward,
            partial(normalised, positions, 5),
            {"groups": None, "centred": centred == "centred"},
        )
        for centred in ("centred", "not centred")
        for positions in ((), (3,), (2, 3))
    },
    "norm_forward": (
        norm_forward,
        partial(to_normalise, (3,), 5, True),
        {"groups": None, "centred": True, "epsilon": 1e-5},
    ),
    **{
        f"over_rows {time} {'backward' if reverse else 'forward'}": (
            over_rows,
            partial(stepped, time),
            {"step": counted, "reverse": reverse},
        )
        for time in (1, 5)
        for reverse in (False, True)
    },
    **{
        f"over_layers {times} {'backward' if reverse else 'forward'}": (
            over_layers,
            partial(stacked, times),
            {"layer": dense_and_tanh, "times": times, "reverse": reverse},
        )
        for times in (1, 3)
        for reverse in (False, True)
    },
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
    if platform == "cpu" or op is over_layers  # kernels are tested in test_kernels
]
every_form = pytest.mark.parametrize(("op", "form", "arrays", "options"), FORMS)
SMALL = [param for param in FORMS if "strips" not in str(param.id)]
every_small_form = pytest.mark.parametrize(("op", "form", "arrays", "options"), SMALL)


def moves(t):
    """Whether an array is one of real numbers, to be varied."""
    return jnp.issubdtype(t.dtype, jnp.floating)


def agree(found, expected, tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        wide = np.asarray(other, np.float64)
        np.testing.assert_allclose(
            np.asarray(one, np.float64), wide, rtol=tolerance, atol=tolerance * max(1.0, np.abs(wide).max())
        )


def test_each_operation_of_the_layers_has_a_case():
    rooms = pkgutil.walk_packages(jaxnet.layers.__path__, "jaxnet.layers.")
    names = ["jaxnet.factors", "jaxnet.combinators", *(each.name for each in rooms)]
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
    found, expected = jax.jit(lambda given: [f(*given, **options) for f in (form.f, op.plain)])(arrays(dtype=dtype))
    agree(found, expected, tolerance)


@every_small_form
def test_under_vmap_and_scan(op, form, arrays, options):
    given = jax.tree.map(np.asarray, arrays(dtype=jnp.float64))
    rows = jax.tree.map(lambda t: np.stack([t, 2 * t, t + 1] if moves(t) else [t] * 3), given)
    plain = jax.jit(partial(op.plain, **options))
    expected = [plain(*jax.tree.map(lambda t, i=i: t[i], rows)) for i in range(3)]
    expected = jax.tree.map(lambda *each: np.stack(each), *expected)
    of_form = partial(form.f, **options)
    mapped, scanned = jax.jit(
        lambda rows: (jax.vmap(of_form)(*rows), jax.lax.scan(lambda _, xs: (None, of_form(*xs)), None, rows)[1])
    )(tuple(rows))
    agree(mapped, expected, 1e-11)
    agree(scanned, expected, 1e-11)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@every_small_form
def test_over_a_sharded_batch(op, form, arrays, options, kind):
    """A layer's operation is mapped over examples; a weight's gradient has them as an axis of its own."""
    given = jax.tree.map(np.asarray, arrays(dtype=jnp.float64))
    whole = op is weight_gradient
    join = np.concatenate if whole else np.stack
    rows = jax.tree.map(lambda t: join([t, 2 * t if moves(t) else t]), given)
    batched = (lambda f: f) if whole else jax.vmap
    expected = jax.jit(batched(partial(op.plain, **options)))(*rows)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        rows = jax.device_put(rows, NamedSharding(mesh, PartitionSpec("data")))
        agree(jax.jit(batched(partial(op, **options)))(*rows), expected, 1e-11)


@every_small_form
def test_derivatives_through_the_operation(op, form, arrays, options):
    """First and second derivatives are those of the plain equation, whatever form runs."""
    given = arrays(dtype=jnp.float64)
    numbers, tree = jax.tree.flatten(given)
    varied = [t for t in numbers if moves(t)]
    direction = [normal(t.shape, 9) for t in varied]

    def total(f):
        def of(*varied):
            left = iter(varied)
            arrays = jax.tree.unflatten(tree, [next(left) if moves(t) else t for t in numbers])
            return sum(jnp.sum(jnp.sin(t)) for t in jax.tree.leaves(f(*arrays, **options)))

        return of

    def hessian_product(f):
        return jax.jvp(jax.grad(total(f), tuple(range(len(varied)))), tuple(varied), tuple(direction))

    agree(jax.jit(lambda: hessian_product(op))(), jax.jit(lambda: hessian_product(op.plain))(), 1e-9)
