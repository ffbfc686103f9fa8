"""Attention: what each position of a sequence takes from those that it sees.

    one head          q_t = W_q x_t,  k_s = W_k x_s,  v_s = W_v x_s          of width d each
    scores            S_ts = q_t·k_s / √d                                   t: a query, s: a key it sees
    softmax           P_ts = exp(S_ts − L_t),  L_t = ln Σₛ exp S_ts         L: saved, P is not
    values            o_t = Σₛ P_ts v_s
    all heads         out_t = W_o (o_t of every head, one after another)

    back              dv_s = Σₜ P_ts do_t
                      dP_ts = do_t·v_s
                      dS_ts = P_ts (dP_ts − D_t),  D_t = Σₛ P_ts dP_ts = do_t·o_t
                      dq_t = Σₛ dS_ts k_s / √d,  dk_s = Σₜ dS_ts q_t / √d

P is made anew from L in the backward pass, a head at a time and in it a block of queries at a time, so that at most one
head's scores are in memory; blocks of keys that no query of a block sees are left out.

Sources: Vaswani et al., Attention Is All You Need, 2017, (1); Dao et al., FlashAttention, 2022, §3.1 and B.2 (L and D);
Ainslie et al., GQA, 2023 (several heads of queries to one of keys and values).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxnet.factors import Outer, Plain, accumulated, transposed_operand
from jaxnet.layer import Layer, ShapeError, leaf, no_params
from jaxnet.layers.dense import times, transpose_times
from jaxnet.layers.embedding import angles, is_sequence, turned
from jaxnet.layers.initializers import Initializer, initializer

SCORES = 512 * 512  # of one head that are in memory at once
STRIPS = 8  # of queries, each with the keys that it sees: what no query of a strip sees is never computed
STRIP = 128  # queries in a strip, at least

# ------------------------------------------------------------------------------------ which keys a query sees


class Seen(NamedTuple):
    """Which keys a query sees: none after it where `causal`, and of these the ones that `mask` (queries, keys) says."""

    causal: bool
    mask: np.ndarray | None

    def block(self, start, rows: int, keys: slice) -> Array | None:
        """For the queries from `start` on and some keys, (rows, keys); None where all are seen."""
        seen = None
        if self.causal:
            query, key = (jax.lax.broadcasted_iota(jnp.int32, (rows, keys.stop - keys.start), i) for i in (0, 1))
            seen = start + query >= keys.start + key
        if self.mask is not None:
            # Rows beyond the last are what fills the last block.
            mask = jnp.asarray(np.pad(self.mask[:, keys], ((0, rows), (0, 0)), constant_values=True))
            mask = jax.lax.dynamic_slice_in_dim(mask, start, rows)
            seen = mask if seen is None else seen & mask
        return seen


class Strip(NamedTuple):
    """Queries next to each other, the range of keys that one of them sees, and how many queries are taken at once."""

    queries: slice
    keys: slice
    at_once: int


def strips(seen: Seen, queries: int, keys: int) -> list[Strip]:
    """The queries, cut where it saves keys."""
    at_once = max(SCORES // keys, 1)
    if not seen.causal and seen.mask is None:
        return [Strip(slice(0, queries), slice(0, keys), at_once)]
    size = max(-(-queries // STRIPS), STRIP)
    found = []
    for start in range(0, queries, size):
        stop = min(start + size, queries)
        first, last = 0, stop if seen.causal else keys
        if seen.mask is not None:
            [some] = np.nonzero(seen.mask[start:stop, :last].any(axis=0))
            first, last = int(some[0]), int(some[-1]) + 1
        found.append(Strip(slice(start, stop), slice(first, last), at_once))
    return found


def over_queries(f: Callable, so_far, strip: Strip, *arrays):
    """(so_far, results) of `f(so_far, start, *rows)` over a strip, a block of queries at a time.

    `arrays`: with the strip's queries first; the last block is filled up with zeros.
    """
    queries, size = strip.queries.stop - strip.queries.start, strip.at_once
    if queries <= size:
        return f(so_far, strip.queries.start, *arrays)
    blocks = -(-queries // size)

    def cut(t):
        filled = jnp.pad(t, ((0, blocks * size - queries), *((0, 0),) * (t.ndim - 1)))
        return filled.reshape(blocks, size, *t.shape[1:])

    starts = strip.queries.start + size * jnp.arange(blocks, dtype=jnp.int32)
    so_far, results = jax.lax.scan(lambda c, xs: f(c, *xs), so_far, (starts, *map(cut, arrays)))
    return so_far, jax.tree.map(lambda t: t.reshape(blocks * size, *t.shape[2:])[:queries], results)


# -------------------------------------------------------------------------------------------------- one head


def product(a: Float[Array, "m n"], b: Float[Array, "n k"]) -> Float[Array, "m k"]:
    """a b, multiplied in the dtype of b, summed and given in float32 or better."""
    return jnp.matmul(a.astype(b.dtype), b, preferred_element_type=accumulated(b.dtype))


def product_T(a: Float[Array, "m n"], b: Float[Array, "k n"]) -> Float[Array, "m k"]:
    """a bᵀ, likewise."""
    return product(a, transposed_operand(b))


def scores(q: Float[Array, "m d"], k: Float[Array, "n d"], seen, keys_first: bool = False) -> Float[Array, "..."]:
    """S = q kᵀ/√d, −∞ where a key is not seen: (m, n), or `keys_first`, (n, m)."""
    s = (product_T(k, q) if keys_first else product_T(q, k)) / math.sqrt(q.shape[-1])
    return s if seen is None else jnp.where(seen.T if keys_first else seen, s, -jnp.inf)


def head_forward(
    q: Float[Array, "queries d"], k: Float[Array, "keys d"], v: Float[Array, "keys e"], seen: Seen
) -> tuple[Float[Array, "queries e"], Float[Array, " queries"]]:
    """o and L of one head."""

    def block(strip):
        k_, v_ = k[strip.keys], v[strip.keys]

        def of(so_far, start, q):
            s = scores(q, k_, seen.block(start, len(q), strip.keys))
            m = jnp.max(s, axis=-1, keepdims=True)
            p = jnp.exp(s - m)
            total = jnp.sum(p, axis=-1, keepdims=True)
            return so_far, ((product(p, v_) / total).astype(v.dtype), (m + jnp.log(total))[:, 0])

        return over_queries(of, (), strip, q[strip.queries])[1]

    outs, lses = zip(*map(block, strips(seen, len(q), len(k))), strict=True)
    return jnp.concatenate(outs), jnp.concatenate(lses)


def head_backward(
    q: Float[Array, "queries d"],
    k: Float[Array, "keys d"],
    v: Float[Array, "keys e"],
    lse: Float[Array, " queries"],
    D: Float[Array, " queries"],
    do: Float[Array, "queries e"],
    seen: Seen,
) -> tuple[Float[Array, "queries d"], Float[Array, "keys d"], Float[Array, "keys e"]]:
    """dq, dk and dv of one head."""
    wide = accumulated(q.dtype)
    dk, dv, dqs = jnp.zeros(k.shape, wide), jnp.zeros(v.shape, wide), []
    for strip in strips(seen, len(q), len(k)):
        k_, v_ = k[strip.keys], v[strip.keys]

        # Keys by queries, S transposed: then of the five products only one has a large matrix to transpose.
        def of(so_far, start, q, lse, D, do, strip=strip, k_=k_, v_=v_):
            dk, dv = so_far
            p = jnp.exp(
                scores(q, k_, seen.block(start, len(q), strip.keys), keys_first=True) - lse[None]
            )  # P = exp(S − L)
            dv = dv + product(p, do)  # o = P v
            ds = p * (product_T(v_, do) - D[None]) / math.sqrt(q.shape[-1])  # P = softmax(q kᵀ/√d)
            return (dk + product(ds, q), dv), product(transposed_operand(ds.astype(k_.dtype)), k_)

        rows = (t[strip.queries] for t in (q, lse, D, do))
        (dk_, dv_), dq = over_queries(of, (dk[strip.keys], dv[strip.keys]), strip, *rows)
        dk, dv = dk.at[strip.keys].set(dk_), dv.at[strip.keys].set(dv_)
        dqs.append(dq)
    return jnp.concatenate(dqs).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


# ------------------------------------------------------------------------------------------------- all heads


def heads_forward(
    q: Float[Array, "queries heads d"],
    k: Float[Array, "keys kv_heads d"],
    v: Float[Array, "keys kv_heads e"],
    seen: Seen,
) -> tuple[Float[Array, "queries heads e"], Float[Array, "heads queries"]]:
    """o and L of every head, one after another."""
    group = q.shape[1] // k.shape[1]

    def one(out, h):
        o, lse = head_forward(head(q, h), head(k, h // group), head(v, h // group), seen)
        return with_head(out, h, o), lse

    return jax.lax.scan(one, jnp.zeros((*q.shape[:2], v.shape[2]), v.dtype), jnp.arange(q.shape[1]))


def heads_backward(
    q: Float[Array, "queries heads d"],
    k: Float[Array, "keys kv_heads d"],
    v: Float[Array, "keys kv_heads e"],
    out: Float[Array, "queries heads e"],
    lse: Float[Array, "heads queries"],
    d_out: Float[Array, "queries heads e"],
    seen: Seen,
) -> tuple[Float[Array, "queries heads d"], Float[Array, "keys kv_heads d"], Float[Array, "keys kv_heads e"]]:
    """dq, dk and dv of every head; those of a group add up in the keys and values that they share."""
    group = q.shape[1] // k.shape[1]
    D = jnp.sum(d_out.astype(lse.dtype) * out.astype(lse.dtype), axis=-1).T  # Σₛ P dP = do·o: (heads, queries)

    def one(so_far, of_head):
        h, lse, D = of_head
        do = head(d_out, h).astype(v.dtype)
        of_h = head_backward(head(q, h), head(k, h // group), head(v, h // group), lse, D, do, seen)
        (dq, dk, dv), (dq_h, dk_h, dv_h) = so_far, of_h
        if group > 1:  # the heads of a group, one after another, add to what they share
            dk_h, dv_h = dk_h + head(dk, h // group), dv_h + head(dv, h // group)
        return (with_head(dq, h, dq_h), with_head(dk, h // group, dk_h), with_head(dv, h // group, dv_h)), None

    return jax.lax.scan(
        one, (jnp.zeros_like(q), jnp.zeros_like(k), jnp.zeros_like(v)), (jnp.arange(q.shape[1]), lse, D)
    )[0]


def head(t: Float[Array, "time heads d"], i) -> Float[Array, "time d"]:
    """One head's part."""
    return jax.lax.dynamic_index_in_dim(t, i, axis=1, keepdims=False)


def with_head(t: Float[Array, "time heads d"], i, part: Float[Array, "time d"]) -> Float[Array, "time heads d"]:
    """`t` with one head's part in its place."""
    return jax.lax.dynamic_update_index_in_dim(t, part, i, axis=1)


# --------------------------------------------------------------------------------------------------- layers


def seen_by(name: str, causal: bool, mask) -> Seen:
    """What `causal` and `mask` let a query see. Raises `ValueError` for a query that sees nothing."""
    if mask is None:
        return Seen(causal, None)
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != bool:
        raise ValueError(f"{name} takes a mask of booleans, (queries, keys), got {mask.dtype} of shape {mask.shape}")
    [blind] = np.nonzero(~(np.tril(mask) if causal else mask).any(axis=1))
    if len(blind):
        raise ValueError(f"{name} takes a mask by which every query sees a key, got none for query {blind[0]}")
    return Seen(causal, mask)


def fits(name: str, seen: Seen, queries: int, keys: int) -> None:
    """Raises `ShapeError` for a mask of another shape, or causal attention to another sequence."""
    if seen.mask is not None and seen.mask.shape != (queries, keys):
        raise ShapeError(
            f"{name} has a mask of shape {seen.mask.shape}, (queries, keys), got {queries} queries and {keys} keys"
        )
    if seen.causal and queries != keys:
        raise ShapeError(f"{name} is causal: it takes as many queries as keys, got {queries} and {keys}")


def dot_product_attention(*, causal: bool = True, mask=None) -> Layer:
    """o_t = Σₛ softmaxₛ(q_t·k_s/√d) v_s in each head: the core of `attention`, without projections.

    Takes the tuple q: (queries, heads, d), k: (keys, kv_heads, d), v: (keys, kv_heads, e); kv_heads divides heads, and
    heads / kv_heads heads of queries in a row share one of keys and values. Gives (queries, heads, e).
    `causal`: a query sees no key after its own position. `mask`: (queries, keys), true where a query sees a key.
    Raises `ShapeError` for shapes that do not fit, `ValueError` for a mask by which some query sees nothing.
    Source: Dao et al., FlashAttention, 2022.
    """
    name = "dot_product_attention"
    seen = seen_by(name, causal, mask)

    def accepts(qkv, params):
        shapes = [t.shape for t in qkv]
        if [len(shape) for shape in shapes] != [3, 3, 3]:
            raise ShapeError(f"{name} takes q, k and v of shape (time, heads, width) each, got {shapes}")
        q, k, v = shapes
        if q[2] != k[2] or k[:2] != v[:2] or q[1] % k[1]:
            raise ShapeError(
                f"{name} takes q and k of one width, k and v of one time and number of heads that divides q's, "
                f"got q {q}, k {k}, v {v}"
            )
        fits(name, seen, q[0], k[0])

    def forward(params, qkv, key=None, train=False):
        q, k, v = qkv
        out, lse = heads_forward(q, k, v, seen)
        return out, (q, k, v, out, lse)

    def backward(params, saved, d_out):
        q, k, v, out, lse = saved
        return heads_backward(q, k, v, out, lse, d_out, seen), ()

    return leaf(name, no_params, forward, backward, accepts)


def self_attended(name: str, heads: int, rotary: bool, seen: Seen) -> Callable:
    """`accepts(x, params)` of `attention`: raises `ShapeError` for a sequence that its heads do not divide."""

    def accepts(x, params):
        is_sequence(name, x)
        time, width = x.shape
        if width % heads:
            raise ShapeError(f"{name} takes a width that {heads} heads divide, got {width} in shape {x.shape}")
        if rotary and (width // heads) % 2:
            raise ShapeError(
                f"{name} with rotary positions takes heads of an even width, whose entries make pairs, got "
                f"{width // heads}: choose heads of which twice their number divides the width {width}"
            )
        if params is not None and params["W_q"].shape != (width, width):
            raise ShapeError(
                f"{name} has W_q of shape {params['W_q'].shape}, got x of shape {x.shape}: initialise it for this input"
            )
        fits(name, seen, time, time)

    return accepts


def attention(
    heads: int,
    *,
    causal: bool = True,
    kv_heads: int | None = None,
    rotary: bool = False,
    bias: bool = False,
    mask=None,
    init: str | Initializer | Callable = "lecun_normal",
    rotary_base: float = 10_000.0,
) -> Layer:
    """Multi-head self-attention on a sequence x: (time, width): out = W_o o, o that of q = W_q x, k = W_k x, v = W_v x.

    `heads`: of width / heads entries each. `causal`: a position sees none after it. `kv_heads`: how many heads keys and
    values have, where fewer: heads / kv_heads heads of queries share each (grouped queries). `rotary`: queries and keys
    turned by their position, with angles of `rotary_base`, as the layer `rotary` does. `bias`: b added to each of the
    four products. `mask`: (time, time) booleans, true where a query (row) sees a key (column), beside `causal`.
    Parameters: W_q (width, width), W_k and W_v (kv_heads · width / heads, width), W_o (width, width); b_q to b_o.
    Raises `ShapeError` for an input that is no sequence, heads that do not divide its width, an odd width of a head
    with rotary positions, a mask of another shape; `ValueError` for kv_heads that do not divide heads, or a mask by
    which some query sees nothing.
    Sources: as of this module; rotary positions: Su et al., RoFormer, 2021.
    """
    name = f"attention {heads}"
    kv = heads if kv_heads is None else kv_heads
    if heads < 1 or kv < 1 or heads % kv:
        raise ValueError(f"{name} takes at least one head, and kv_heads that divide the heads, got kv_heads = {kv}")
    seen, begin = seen_by(name, causal, mask), initializer(init)

    accepts = self_attended(name, heads, rotary, seen)

    def new(key, x):
        width = x.shape[1]
        rows = {"q": width, "k": kv * (width // heads), "v": kv * (width // heads), "o": width}
        keys = jax.random.split(key, 8)
        params = {f"W_{p}": begin.W(keys[i], (n, width), x.dtype) for i, (p, n) in enumerate(rows.items())}
        biases = {f"b_{p}": begin.b(keys[4 + i], (n,), x.dtype) for i, (p, n) in enumerate(rows.items())}
        return params | biases if bias else params

    def project(params, p, x):
        z = times(params[f"W_{p}"], x)
        return z + params[f"b_{p}"].astype(z.dtype)[None] if bias else z

    def forward(params, x, key=None, train=False):
        dtype = params["W_q"].dtype
        q, k, v = (project(params, p, x).reshape(len(x), n, -1) for p, n in (("q", heads), ("k", kv), ("v", kv)))
        if rotary:
            at = angles(len(x), q.shape[-1] // 2, rotary_base, x.dtype)
            q, k = turned(q, at), turned(k, at)
        q, k, v = (t.astype(dtype) for t in (q, k, v))
        o, lse = heads_forward(q, k, v, seen)
        out = project(params, "o", o.reshape(x.shape).astype(x.dtype))
        return out, (x.astype(dtype), q, k, v, o, lse)

    def backward(params, saved, d_out):
        x, q, k, v, o, lse = saved

        def through(p, delta):  # z = W x + b, at each position
            return transpose_times(params[f"W_{p}"], delta)

        do = through("o", d_out).reshape(o.shape)
        dq, dk, dv = (t.astype(d_out.dtype) for t in heads_backward(q, k, v, o, lse, do, seen))
        if rotary:
            at = angles(len(x), q.shape[-1] // 2, rotary_base, x.dtype)
            dq, dk = turned(dq, at, back=True), turned(dk, at, back=True)
        deltas = {p: t.reshape(len(x), -1) for p, t in (("q", dq), ("k", dk), ("v", dv))}
        dx = through("q", deltas["q"]) + through("k", deltas["k"]) + through("v", deltas["v"])
        inputs = {"q": x, "k": x, "v": x, "o": o.reshape(x.shape)}
        deltas["o"] = d_out
        factors: dict = {f"W_{p}": Outer(delta, inputs[p], 1) for p, delta in deltas.items()}
        return dx, factors | {f"b_{p}": Plain(delta, 1) for p, delta in deltas.items()} if bias else factors

    return leaf(name, new, forward, backward, accepts)
