"""Attention on a CPU: a head at a time, and in it a strip of queries at a time, each with the keys that it sees.

On 2 cores (4 examples, T 512, 8 heads of 64) this takes 0.08 of naive autodiff's memory and 0.55 of its time. At most
one head's scores are in memory. Keys that no query of a strip sees are never multiplied. A GPU would launch a kernel
for each strip, so there the plain equations run.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxnet.lowering.products import accumulated, inner_products, laid_out, product

SCORES = 512 * 512  # of one head in memory at once
STRIPS = 8  # of queries
STRIP = 128  # queries in a strip, at least


@dataclass(frozen=True, eq=False)
class Seen:
    """Which keys a query sees: none after it where `causal`, and of these only the ones in `mask` (queries, keys).

    Two are equal where they let the same keys be seen; so it is an option of an operation.
    """

    causal: bool
    mask: np.ndarray | None = None

    def key(self) -> tuple:
        """The mask by its bytes."""
        return self.causal, None if self.mask is None else (self.mask.shape, self.mask.tobytes())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Seen) and self.key() == other.key()

    def __hash__(self) -> int:
        return hash(self.key())

    def block(self, start, rows: int, keys: slice) -> Array | None:
        """For the queries from `start` on and some keys, (rows, keys); None where all are seen."""
        seen = None
        if self.causal:
            query, key = (jax.lax.broadcasted_iota(jnp.int32, (rows, keys.stop - keys.start), i) for i in (0, 1))
            seen = start + query >= keys.start + key
        if self.mask is not None:
            # The last block is filled up with queries that see every key.
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
    """The queries, cut into strips where that saves keys."""
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


def scores(q: Float[Array, "m d"], k: Float[Array, "n d"], seen, keys_first: bool = False) -> Float[Array, "..."]:
    """S = q kᵀ/√d, −∞ where a key is not seen: (m, n), or `keys_first`, (n, m)."""
    s = (inner_products(k, q) if keys_first else inner_products(q, k)) / math.sqrt(q.shape[-1])
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
            ds = p * (inner_products(v_, do) - D[None]) / math.sqrt(q.shape[-1])  # P = softmax(q kᵀ/√d)
            return (dk + product(ds, q), dv), product(laid_out(ds.astype(k_.dtype)), k_)

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
    *,
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
    *,
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
        if group > 1:  # the heads of a group, one after another, add to their shared head
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
