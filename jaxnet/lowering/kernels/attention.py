"""Attention on a GPU or TPU: three kernels, one forward and two backward, that never write the scores to memory.

Each program of a kernel holds one block of queries (or of keys) of one head, and goes through the keys (or queries)
that meet it, a block at a time. With the scores s_ts = q_t·k_s/√d of a block:

    forward      m, l, o   the largest score so far, Σ exp(s − m), Σ exp(s − m) v;  out = o/l,  L = m + ln l
    queries      dq_t = Σₛ dS_ts k_s/√d,  D_t = do_t·o_t             P = exp(s − L),  dP_ts = do_t·v_s,  dS = P (dP − D)
    keys         dk_s = Σₜ dS_ts q_t/√d,  dv_s = Σₜ P_ts do_t

Compiled for an H100, forward and backward of 8 examples, T 512, 8 heads of 64, take 3 launches and 0.25 MiB; the plain
equations take 22 and 164 MiB in bfloat16.

Sources: Dao et al., FlashAttention, 2022, algorithms 1 and 4; Dao, FlashAttention-2, 2023, §3.1.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from jaxnet.lowering.attention import Seen
from jaxnet.lowering.kernels.compilers import LANES, MEMORY, Compiler, compiler, product

WIDTHS = (16, 32, 64, 128)  # of a head; on a GPU a block is a power of 2 along each axis


def fits(q, k, v, *_, seen: Seen, on: str) -> bool:
    """Whether the kernels take these arrays: heads of a width that is a power of 2, without a mask, float32 or half."""
    return (
        seen.mask is None
        and q.shape[-1] in WIDTHS
        and v.shape[-1] in WIDTHS
        and all(t.dtype in (jnp.float32, jnp.bfloat16, jnp.float16)[: 2 if on == "tpu" else 3] for t in (q, k, v))
        and (on != "tpu" or core_memory(q, k) <= MEMORY)
    )


def core_memory(q, k) -> int:
    """Bytes of the heads that a program on a TPU holds: those of the backward passes, each twice, to copy the next."""
    of_head = max(len(q), len(k)) * LANES * q.dtype.itemsize
    return 2 * of_head * max(6, 4 + 2 * (q.shape[1] // k.shape[1]))


def scores(q, k, query, key, keys: int, causal: bool):
    """s of a block, −∞ where a query does not see a key."""
    s = product(q, k, trans_b=True) / math.sqrt(q.shape[-1])
    t, u = query + iota(s, 0), key + iota(s, 1)
    seen = u < keys
    return jnp.where(seen & (t >= u) if causal else seen, s, -jnp.inf)


def iota(s, axis: int):
    """The place of each entry along an axis."""
    return jax.lax.broadcasted_iota(jnp.int32, s.shape, axis)


def forward_kernel(q_ref, k_ref, v_ref, o_ref, L_ref, *, on: Compiler, queries: int, keys: int, causal: bool):
    """out and L of a block of queries: m, l and o go along the keys."""
    start = pl.program_id(1) * on.block
    q = on.rows(q_ref, start, queries)

    def step(i, so_far):
        m, l, o = so_far
        k, v = (on.rows(ref, i * on.block, keys) for ref in (k_ref, v_ref))
        s = scores(q, k, start, i * on.block, keys, causal)
        m_new = jnp.maximum(m, s.max(axis=1, keepdims=True))
        p, shrink = jnp.exp(s - m_new), jnp.exp(m - m_new)
        return m_new, shrink * l + p.sum(axis=1, keepdims=True), shrink * o + product(p.astype(v.dtype), v)

    column = on.block, 1
    begin = (jnp.full(column, -jnp.inf), jnp.zeros(column), jnp.zeros((on.block, v_ref.shape[2])))
    last = jnp.minimum(start + on.block, keys) if causal else keys
    m, l, o = jax.lax.fori_loop(0, pl.cdiv(last, on.block), step, begin)
    on.put_rows(o_ref, start, queries, o / l)
    on.put_column(L_ref, start, queries, m + jnp.log(l))


def queries_kernel(
    q_ref, k_ref, v_ref, o_ref, L_ref, do_ref, dq_ref, D_ref, *, on: Compiler, queries: int, keys: int, causal: bool
):
    """dq and D of a block of queries: dq = Σₛ dS k/√d."""
    start = pl.program_id(1) * on.block
    q, o, do = (on.rows(ref, start, queries) for ref in (q_ref, o_ref, do_ref))
    L = on.column(L_ref, start, queries)
    D = (do.astype(L.dtype) * o.astype(L.dtype)).sum(axis=1, keepdims=True)
    do = do.astype(v_ref.dtype)

    def step(i, dq):
        k, v = (on.rows(ref, i * on.block, keys) for ref in (k_ref, v_ref))
        p = jnp.exp(scores(q, k, start, i * on.block, keys, causal) - L)
        ds = p * (product(do, v, trans_b=True) - D)
        return dq + product(ds.astype(k.dtype), k)

    last = jnp.minimum(start + on.block, keys) if causal else keys
    dq = jax.lax.fori_loop(0, pl.cdiv(last, on.block), step, jnp.zeros(q.shape))
    on.put_rows(dq_ref, start, queries, dq / math.sqrt(q.shape[-1]))
    on.put_column(D_ref, start, queries, D)


def keys_kernel(
    q_ref, k_ref, v_ref, L_ref, D_ref, do_ref, dk_ref, dv_ref, *, on: Compiler, queries: int, keys: int, causal: bool
):
    """dk and dv of a block of keys: dk = Σₜ dSᵀ q/√d, dv = Σₜ Pᵀ do."""
    start = pl.program_id(1) * on.block
    k, v = (on.rows(ref, start, keys) for ref in (k_ref, v_ref))

    def step(r, i, so_far):
        dk, dv = so_far
        at = i * on.block
        q, do = (on.rows(ref, at, queries, r) for ref in (q_ref, do_ref))
        L, D = (on.column(ref, at, queries, r) for ref in (L_ref, D_ref))
        do = do.astype(v.dtype)
        p = jnp.exp(scores(q, k, at, start, keys, causal) - L)
        ds = p * (product(do, v, trans_b=True) - D)
        return dk + product(ds.astype(q.dtype), q, trans_a=True), dv + product(p.astype(do.dtype), do, trans_a=True)

    def of_head(r, so_far):  # of the heads of queries that share these keys
        first = start // on.block if causal else 0
        return jax.lax.fori_loop(first, pl.cdiv(queries, on.block), partial(step, r), so_far)

    begin = jnp.zeros(k.shape), jnp.zeros(v.shape)
    dk, dv = jax.lax.fori_loop(0, L_ref.shape[0], of_head, begin)
    on.put_rows(dk_ref, start, keys, dk / math.sqrt(k.shape[1]))
    on.put_rows(dv_ref, start, keys, dv)


def call(kernel, on: Compiler, grid: tuple[int, int], given: list[tuple], results: tuple, name: str) -> tuple:
    """The results of a kernel, shaped as `results`. given: arrays, each with the options of its `Compiler.spec`."""
    laid = [on.laid(t) for t, _ in given]
    shapes = jax.eval_shape(lambda *like: tuple(map(on.laid, like)), *results)
    found = pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[on.spec(t, **part) for t, (_, part) in zip(laid, given, strict=True)],
        out_specs=tuple(map(on.spec, shapes)),
        out_shape=shapes,
        name=name,
        **on.options(),
    )(*laid)
    return tuple(map(on.as_before, found, results))


def forward(
    q: Float[Array, "queries heads d"],
    k: Float[Array, "keys kv_heads d"],
    v: Float[Array, "keys kv_heads e"],
    *,
    seen: Seen,
    on: str,
    interpret: bool = False,
) -> tuple[Float[Array, "queries heads e"], Float[Array, "heads queries"]]:
    """o and L of every head."""
    (queries, heads, _), (keys, kv_heads, _) = q.shape, k.shape
    to = compiler(on, max(queries, keys), interpret)
    own, of_group = {}, {"shared": heads // kv_heads}
    results = (
        jax.ShapeDtypeStruct((queries, heads, v.shape[2]), v.dtype),
        jax.ShapeDtypeStruct((heads, queries), jnp.float32),
    )
    kernel = partial(forward_kernel, on=to, queries=queries, keys=keys, causal=seen.causal)
    given = [(q, own), (k, of_group), (v, of_group)]
    return call(kernel, to, (heads, pl.cdiv(queries, to.block)), given, results, "attention_forward")


def backward(
    q: Float[Array, "queries heads d"],
    k: Float[Array, "keys kv_heads d"],
    v: Float[Array, "keys kv_heads e"],
    o: Float[Array, "queries heads e"],
    L: Float[Array, "heads queries"],
    do: Float[Array, "queries heads e"],
    *,
    seen: Seen,
    on: str,
    interpret: bool = False,
) -> tuple[Float[Array, "queries heads d"], Float[Array, "keys kv_heads d"], Float[Array, "keys kv_heads e"]]:
    """dq, dk and dv of every head."""
    (queries, heads, _), (keys, kv_heads, _) = q.shape, k.shape
    to = compiler(on, max(queries, keys), interpret)
    options = {"on": to, "queries": queries, "keys": keys, "causal": seen.causal}
    own, of_group, group = {}, {"shared": heads // kv_heads}, {"heads": heads // kv_heads}
    given = [(q, own), (k, of_group), (v, of_group), (o, own), (L, own), (do, own)]
    grid = heads, pl.cdiv(queries, to.block)
    dq, D = call(partial(queries_kernel, **options), to, grid, given, (q, L), "attention_backward_queries")
    given = [(q, group), (k, own), (v, own), (L, group), (D, group), (do, group)]
    grid = kv_heads, pl.cdiv(keys, to.block)
    dk, dv = call(partial(keys_kernel, **options), to, grid, given, (k, v), "attention_backward_keys")
    return dq, dk, dv
