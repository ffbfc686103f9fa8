"""Attention: by formula, in blocks, in memory, sharded, on bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

import jaxnet
from jaxnet import (
    attention,
    dense,
    embedding,
    per_position,
    repeat,
    serial,
    softmax_cross_entropy,
    value_and_grad,
)
from jaxnet.layers import dot_product_attention, positional_embedding
from jaxnet.layers.embedding import angles, turned
from jaxnet.lowering import attention as strips
from jaxnet.models import gated, pre_norm
from tests.agreement import assert_agree, integers, normal, random_like
from tests.test_sharding import AXES, by_autodiff, exchanges, over

LENGTH = 11
NEAR = np.abs(np.subtract.outer(np.arange(LENGTH), np.arange(LENGTH))) < 3


# ------------------------------------------------------------------------------------------- by their formulas


def by_the_formula(q, k, v, causal, mask):
    """softmax(q kᵀ/√d) v of all heads at once: q (time, heads, d), k and v (time, kv_heads, d)."""
    k, v = (jnp.repeat(t, q.shape[1] // t.shape[1], axis=1) for t in (k, v))
    seen = np.ones((len(q), len(k)), bool) if mask is None else mask
    seen = np.tril(seen) if causal else seen
    s = jnp.einsum("thd,shd->hts", q, k) / q.shape[-1] ** 0.5
    return jnp.einsum("hts,shd->thd", jax.nn.softmax(jnp.where(seen[None], s, -jnp.inf), axis=-1), v)


@pytest.mark.parametrize("scores", [512 * 512, 3 * LENGTH], ids=["whole", "blocks"])
@pytest.mark.parametrize(
    ("causal", "mask"),
    [(True, None), (False, None), (True, NEAR), (False, NEAR)],
    ids=["causal", "full", "causal-near", "near"],
)
def test_in_strips_and_blocks_it_is_the_formula(scores, causal, mask, x64, monkeypatch):
    monkeypatch.setattr(strips, "SCORES", scores)
    monkeypatch.setattr(strips, "STRIP", 4)
    q, k, v, d_out = (normal(i, (LENGTH, heads, 2)).astype(jnp.float64) for i, heads in enumerate((4, 2, 2, 4)))
    layer = dot_product_attention(causal=causal, mask=mask)

    def by_hand(q, k, v, d_out):
        out, pullback = jaxnet.vjp(layer)((), (q, k, v))
        return out, pullback(d_out)[1]

    def by_formula(q, k, v, d_out):
        out, pullback = jax.vjp(lambda *qkv: by_the_formula(*qkv, causal, mask), q, k, v)
        return out, pullback(d_out)

    ours, theirs = jax.jit(lambda *args: (by_hand(*args), by_formula(*args)))(q, k, v, d_out)
    assert_agree(ours, theirs)


def test_the_whole_layer_is_its_formula(x64):
    x = normal(1, (5, 8)).astype(jnp.float64)
    net = attention(4, kv_heads=2, rotary=True, bias=True)
    params = random_like(2, net.init(jax.random.key(0), x))

    def project(p, x):
        return x @ params[f"W_{p}"].T + params[f"b_{p}"][None]

    at = angles(5, 1, 10_000.0, jnp.float64)
    q, k, v = (project(p, x).reshape(5, -1, 2) for p in "qkv")
    o = by_the_formula(turned(q, at), turned(k, at), v, True, None)
    assert_agree(net.forward(params, x)[0], project("o", o.reshape(5, 8)))


def test_attention_to_another_sequence(x64):
    q, k, v = (normal(i, (time, 1, 2)).astype(jnp.float64) for i, time in enumerate((3, 5, 5)))
    layer = dot_product_attention(causal=False)
    assert_agree(layer.forward((), (q, k, v))[0], by_the_formula(q, k, v, False, None))


# ------------------------------------------------------------------------------------- what is in memory


def largest_array(f, *args) -> int:
    """Entries of the largest array that a program makes, inside its loops too."""

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            yield from (v.aval.size for v in eqn.outvars if hasattr(v.aval, "size"))
            for inner in jaxprs_in_params(eqn.params):
                yield from walk(inner)

    return max(walk(jax.make_jaxpr(f)(*args).jaxpr))


@pytest.mark.parametrize("causal", [True, False])
def test_on_a_cpu_at_most_the_scores_of_one_head_are_in_memory(causal):
    def both(q, k, v):
        o, lse = strips.heads_forward(q, k, v, seen=strips.Seen(causal))
        return strips.heads_backward(q, k, v, o, lse, o, seen=strips.Seen(causal))

    for time in (512, 2048):
        qkv = [jax.ShapeDtypeStruct((time, 4, 8), jnp.float32)] * 3
        assert largest_array(both, *qkv) <= 512 * 512


def test_keys_that_no_query_sees_are_left_out():
    def computed(seen, time):
        return sum((s.queries.stop - s.queries.start) * (s.keys.stop - s.keys.start)
                   for s in strips.strips(seen, time, time)) / time**2  # fmt: skip

    assert computed(strips.Seen(True, None), 1024) == 9 / 16
    near = np.abs(np.subtract.outer(np.arange(1024), np.arange(1024))) < 64
    assert computed(strips.Seen(False, near), 1024) < 0.26


def test_program_does_not_grow_with_the_length():
    def size(time):
        x = jax.ShapeDtypeStruct((time, 8), jnp.float32)
        params = jax.eval_shape(attention(2).init, jax.random.key(0), x)
        return len(str(jax.make_jaxpr(attention(2).forward)(params, x)))

    assert size(8192) < 1.1 * size(2048)


# ------------------------------------------------------------------------------------------------ over devices


@pytest.mark.parametrize("axes", [pytest.param("auto", marks=pytest.mark.slow), "explicit"])
def test_as_many_exchanges_as_autodiff_and_no_gathering(axes):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AXES[axes],))
    block = serial(pre_norm(attention(2, kv_heads=1, rotary=True)), pre_norm(per_position(gated(8, 4))))
    begin = embedding(5, 4, init=jax.nn.initializers.normal(1.0))
    net = serial(begin, positional_embedding(6), repeat(block, 2), per_position(dense(5)))
    xs, ys = integers(1, (16, 6), 5), integers(2, (16, 6), 5)
    params = net.init(jax.random.key(0), xs[0])
    by_hand = value_and_grad(net, softmax_cross_entropy)
    expected = jax.device_get(jax.jit(by_hand)(params, xs, ys))
    with jax.set_mesh(mesh):
        sharded = over(mesh, params), over(mesh, xs, "data"), over(mesh, ys, "data")
        ours, theirs = (jax.jit(f).lower(*sharded).compile() for f in (by_hand, by_autodiff(net)))
        mine, got = exchanges(ours), jax.device_get(ours(*sharded))
    assert mine["all-gather"] == 0
    assert sum(mine.values()) <= sum(exchanges(theirs).values())
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5), got, expected)


# --------------------------------------------------------------------------------------------------- bad input


SEQUENCE, IDS = jnp.zeros((4, 6)), jnp.zeros(4, jnp.int32)
BAD = [
    (attention(4), SEQUENCE, "attention 4 takes a width that 4 heads divide, got 6.*: give it 1, 2, 3, 6 heads"),
    (attention(2, rotary=True), SEQUENCE, "heads of an even width, whose entries make pairs, got 3"),
    (attention(2), jnp.zeros(6), "attention 2 takes a sequence of vectors"),
    (attention(2, mask=np.ones((3, 3), bool)), SEQUENCE, r"mask of shape \(3, 3\), .* got 4 queries and 4 keys"),
    (dot_product_attention(), (SEQUENCE,) * 3, r"takes q, k and v of shape \(time, heads, width\)"),
    (dot_product_attention(), tuple(jnp.zeros((t, 2, 3)) for t in (4, 5, 5)), "as many queries as keys, got 4 and 5"),
    (dot_product_attention(), tuple(jnp.zeros((4, h, 3)) for h in (3, 2, 2)), "number of heads that divides q's"),
]


@pytest.mark.parametrize(("net", "x", "message"), BAD, ids=lambda part: getattr(part, "name", ""))
def test_inputs_that_do_not_fit(net, x, message):
    with pytest.raises(jaxnet.ShapeError, match=message):
        net.init(jax.random.key(0), x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: attention(4, kv_heads=3), "kv_heads that divide the heads, got kv_heads = 3"),
        (lambda: attention(2, mask=np.eye(3)), "a mask of booleans"),
        (lambda: attention(2, mask=~np.eye(3, dtype=bool)), "every query sees a key, got none for query 0"),
    ],
)
def test_options_that_do_not_fit(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_parameters_of_another_input():
    params = attention(2).init(jax.random.key(0), SEQUENCE)
    with pytest.raises(jaxnet.ShapeError, match="initialise it for this input"):
        attention(2).forward(params, jnp.zeros((4, 8)))
