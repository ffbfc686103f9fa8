"""Attention, embeddings, positions and blocks: against `jax.vjp`, by formula, in blocks, sharded, on bad input."""

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
    pair,
    per_position,
    product,
    repeat,
    serial,
    softmax_cross_entropy,
    squared_norm,
    value_and_grad,
)
from jaxnet.factors import Outer, Sum
from jaxnet.layers import dot_product_attention, positional_embedding, rotary
from jaxnet.layers.embedding import Rows, angles, turned
from jaxnet.lowering import attention as strips
from jaxnet.models import gated, pre_norm
from tests.agreement import assert_agree, integers, normal, random_like
from tests.implementations import check_against_autodiff, check_one_by_one, check_precision
from tests.problems import SEQUENCE_LAYERS
from tests.test_sharding import AXES, by_autodiff, exchanges, over

KINDS = [
    p
    for p in SEQUENCE_LAYERS
    if p.id in ("embedding-2x3-batch3", "attention_grouped_rotary-4x8-batch1", "gated-3-batch1")
]
LENGTH = 11
NEAR = np.abs(np.subtract.outer(np.arange(LENGTH), np.arange(LENGTH))) < 3


@pytest.mark.parametrize("problem", SEQUENCE_LAYERS, ids=lambda p: p.id)
def test_every_implementation_agrees_with_autodiff(problem, x64):
    check_against_autodiff(problem)


@pytest.mark.parametrize("problem", KINDS, ids=lambda p: p.id)
def test_one_by_one_agrees_with_compiled(problem, x64):
    check_one_by_one(problem)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("problem", KINDS[1:], ids=lambda p: p.id)
def test_narrow_dtypes_are_as_exact_as_autodiffs(problem, dtype, x64):
    check_precision(problem, dtype)


@pytest.mark.parametrize(
    "name", ["embedding-2x3-batch3", "positional_embedding-3x2-batch1", "embedding_tied_to_head-4-batch1"]
)
def test_squared_norms_are_those_of_the_gradients(name, x64):
    [problem] = [p for p in SEQUENCE_LAYERS if p.id == name]
    params, xs, d_outs = problem.inputs(jnp.float64)

    def one(x, d_out):
        _, saved = problem.net.forward(params, x)
        _, reading = problem.net.backward(params, saved, d_out, pair(product, squared_norm))
        return jaxnet.readings.apart(reading, (0, 0))

    gradients, norms = jax.jit(jax.vmap(one))(xs, d_outs)
    assert_agree(norms, jax.tree.map(lambda g: jnp.sum(g**2, tuple(range(1, g.ndim))), gradients))


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


def test_turned_products_depend_on_the_distance_alone(x64):
    a, b = (jnp.tile(normal(i, (1, 6)).astype(jnp.float64), (9, 1)) for i in (1, 2))
    a, b = (rotary().forward((), t)[0] for t in (a, b))
    products = a @ b.T
    np.testing.assert_allclose(products[3:, 3:], products[:-3, :-3], rtol=0, atol=1e-12)
    assert abs(products[0, 1] - products[1, 0]) > 1e-3


def test_sines_and_cosines():
    x = jnp.zeros((4, 6))
    out, _ = jaxnet.layers.sinusoidal_positions.forward((), x)
    t, i = 3, 2
    assert out[t, 2 * i] == pytest.approx(np.sin(t / 10_000 ** (2 * i / 6)), rel=1e-5)
    assert out[t, 2 * i + 1] == pytest.approx(np.cos(t / 10_000 ** (2 * i / 6)), rel=1e-5)


def test_a_gated_mlp_is_its_formula(x64):
    x = normal(1, (3,)).astype(jnp.float64)
    params = random_like(1, gated(5, 2).init(jax.random.key(0), x))
    ((gate, ()), up), down = params
    expected = down["W"] @ (jax.nn.silu(gate["W"] @ x) * (up["W"] @ x))
    assert_agree(gated(5, 2).forward(params, x)[0], expected)


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


# --------------------------------------------------------------------------------------------------- factors


@pytest.mark.parametrize("tokens", [2, 40], ids=["fewer", "more"])
def test_inner_products_of_rows(tokens, x64):
    deltas = [normal(i, (tokens, 3)).astype(jnp.float64) for i in (1, 2)]
    first, second = (Rows(integers(i, (tokens,), 7), delta, 7) for i, delta in enumerate(deltas))
    head = Outer(normal(3, (4, 7)).astype(jnp.float64), normal(4, (4, 3)).astype(jnp.float64), 1)
    both, other = Sum((first, head)), Sum((second, head))
    for one, another in ((first, second), (first, head), (both, other), (both, both)):
        np.testing.assert_allclose(one.gram(another), jnp.sum(one.multiply() * another.multiply()), rtol=1e-12)


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


def test_a_token_outside_the_vocabulary():
    """Raised where its value is known; a NaN in place of its vector where it is not; never another token's."""
    net = embedding(5, 3)
    params = net.init(jax.random.key(0), jnp.arange(2))
    for token in (5, -1):
        with pytest.raises(ValueError, match=f"token ids from 0 to 4, got {token}: choose a vocabulary"):
            net.forward(params, jnp.array([0, token]))
        out = jax.jit(lambda tokens: net.forward(params, tokens)[0])(jnp.array([0, token]))
        assert np.isfinite(out[0]).all()
        assert np.isnan(out[1]).all()


SEQUENCE, IDS = jnp.zeros((4, 6)), jnp.zeros(4, jnp.int32)
BAD = [
    (embedding(5, 3), SEQUENCE, "embedding 5×3 takes token ids, an array of integers, got float32"),
    (positional_embedding(3), SEQUENCE, "has 3 positions, got a sequence of 4"),
    (positional_embedding(3), IDS, r"takes a sequence of vectors, \(time, width\), got int32 of shape \(4,\)"),
    (jaxnet.layers.sinusoidal_positions, jnp.zeros((4, 3)), "even width, whose entries make pairs, got a width of 3"),
    (rotary(), jnp.zeros((4, 3)), "rotary takes vectors of an even width"),
    (rotary(), jnp.zeros(4), r"rotary takes a sequence, \(time, …, width\), got shape \(4,\)"),
    (attention(4), SEQUENCE, "attention 4 takes a width that 4 heads divide, got 6"),
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
        (lambda: embedding(0, 3), "embedding: vocab must be a whole number of at least 1, got 0"),
        (lambda: positional_embedding(0), "positional_embedding: length must be a whole number of at least 1, got 0"),
        (lambda: rotary(0.0), "a positive base"),
    ],
)
def test_options_that_do_not_fit(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_parameters_of_another_input():
    params = attention(2).init(jax.random.key(0), SEQUENCE)
    with pytest.raises(jaxnet.ShapeError, match="initialise it for this input"):
        attention(2).forward(params, jnp.zeros((4, 8)))
    params = positional_embedding(4).init(jax.random.key(0), SEQUENCE)
    with pytest.raises(jaxnet.ShapeError, match="initialise it for this input"):
        positional_embedding(4).forward(params, jnp.zeros((4, 8)))
