"""Mistakes in attention as jaxnet has it: grouped heads, masks, rotary positions, the projections around it."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxnet.checking.corpus.case import Case, entering, normal
from jaxnet.layers import attention as attention_of
from jaxnet.layers import dot_product_attention
from jaxnet.layers.embedding import angles, turned

CASES: list[Case] = []
wrong = entering(CASES)


def grouped_attention(q, k, v):
    """Causal, each head of keys and values shared by heads of queries next to each other: (time, heads, width)."""
    return dot_product_attention().forward((), (q, k, v))[0]


def rotary_attention(q, k, v):
    """The same of queries and keys that are turned by their positions."""
    at = angles(len(q), q.shape[-1] // 2, 10_000.0, q.dtype)
    return dot_product_attention().forward((), (turned(q, at), turned(k, at), v))[0]


# (time, heads of keys, heads of queries to each, width)
HEADS = ((5, 2, 2, 4), (6, 2, 3, 2), (12, 2, 2, 8))
qkv = normal(lambda t, h, g, d: (t, h * g, d), lambda t, h, g, d: (t, h, d), lambda t, h, g, d: (t, h, d), sizes=HEADS)


def parts(q, k, v, do, causal=True):
    """P, dP and dS of every head of queries, (heads, queries, keys), and k and v repeated for each."""
    group, d = q.shape[1] // k.shape[1], q.shape[2]
    K, V = jnp.repeat(k, group, 1), jnp.repeat(v, group, 1)
    S = jnp.einsum("thd,shd->hts", q, K) / math.sqrt(d)
    seen = jnp.tril(jnp.ones(S.shape[1:], bool))[None]
    P = jax.nn.softmax(jnp.where(seen, S, -jnp.inf) if causal else S, axis=-1)
    dP = jnp.einsum("thd,shd->hts", do, V)
    return P, dP, P * (dP - jnp.sum(P * dP, -1, keepdims=True)), K, V


def shared(d, heads):
    """The errors of the heads of queries that share a head of keys, added."""
    return d.reshape(len(d), heads, -1, d.shape[-1]).sum(2)


def gradients(q, k, v, do, P, dS):
    """dq, dk and dv from P and dS."""
    c, K = 1 / math.sqrt(q.shape[-1]), jnp.repeat(k, q.shape[1] // k.shape[1], 1)
    dq, dk = jnp.einsum("hts,shd->thd", dS, K) * c, jnp.einsum("hts,thd->shd", dS, q) * c
    return dq, shared(dk, k.shape[1]), shared(jnp.einsum("hts,thd->shd", P, do), k.shape[1])


def _rule(name, words, leaves, mistaken, primal=grouped_attention):
    """Enter a wrong rule: `mistaken(q, k, v, do)` gives dq, dk and dv, q and k turned where the primal turns them."""

    def backward(args, do):
        q, k, v = args
        if primal is grouped_attention:
            return mistaken(q, k, v, do)
        at = angles(len(q), q.shape[-1] // 2, 10_000.0, q.dtype)
        return mistaken(turned(q, at), turned(k, at), v, do, at)

    wrong(primal, qkv, words, leaves, name)(backward)


def _unshared(combine):
    """dk and dv of the heads of a group combined otherwise than by their sum."""

    def backward(q, k, v, do):
        P, _, dS, _, _ = parts(q, k, v, do)
        dq, dk, dv = gradients(q, k, v, do, P, dS)
        c, n = 1 / math.sqrt(q.shape[-1]), k.shape[1]
        each = jnp.einsum("hts,thd->shd", dS, q) * c, jnp.einsum("hts,thd->shd", P, do)
        dk, dv = (combine(d.reshape(len(d), n, -1, d.shape[-1])) for d in each)
        return dq, dk, dv

    return backward


def _from_scores(change):
    """The backward pass with P and dS as `change(P, dP, dS)` makes them."""

    def backward(q, k, v, do):
        P, dP, dS, _, _ = parts(q, k, v, do)
        return gradients(q, k, v, do, *change(P, dP, dS))

    return backward


def _scaled(by):
    """dq and dk times a number that `by` makes of the width."""

    def backward(q, k, v, do):
        P, _, dS, _, _ = parts(q, k, v, do)
        dq, dk, dv = gradients(q, k, v, do, P, dS)
        return dq * by(q.shape[-1]), dk * by(q.shape[-1]), dv

    return backward


def off_by_one(P):
    """A query that does not see its own position."""
    return jnp.where(jnp.tril(jnp.ones(P.shape[1:], bool), -1)[None], P, 0)


both = ("[0]", "[1]")
_rule(
    "90 a group's heads overwrite each other", "overwrit|missing|lost|only the last", ("[1]", "[2]"),
    _unshared(lambda d: d[:, :, -1]),
)  # fmt: skip
_rule("91 a group's heads averaged", ("1/|½|0\\.5", "times"), ("[1]", "[2]"), _unshared(lambda d: d.mean(2)))
_rule("92 attention without D", "missing|stop_gradient", both, _from_scores(lambda P, dP, dS: (P, P * dP)))
_rule(
    "93 D summed over the queries", "axis", both,
    _from_scores(lambda P, dP, dS: (P, P * (dP - jnp.sum(P * dP, 1, keepdims=True)))),
)  # fmt: skip
_rule(
    "94 mask off by one going back", ("mask", "shift|off by one"), ("[0]", "[1]", "[2]"),
    _from_scores(lambda P, dP, dS: (off_by_one(P), off_by_one(dS))),
)  # fmt: skip
_rule("95 width in the place of its root", "√|sqrt|½|0\\.5|twice|1/", both, _scaled(lambda width: 1 / math.sqrt(width)))
_rule("96 dq and dk scaled by heads, not by widths", "times", both, _scaled(lambda width: math.sqrt(width / 3)))


def _turned(of_q, of_k):
    """dq and dk turned back, each by its function of itself and the angles."""

    def backward(q, k, v, do, at):
        P, _, dS, _, _ = parts(q, k, v, do)
        dq, dk, dv = gradients(q, k, v, do, P, dS)
        return of_q(dq, at), of_k(dk, at), dv

    return backward


def back(d, at):
    """Turned back."""
    return turned(d, at, back=True)


_rule(
    "97 rotary: dk not turned back", "missing|left out|passed|not turned", ("[1]",),
    _turned(back, lambda dk, at: dk), rotary_attention,
)  # fmt: skip
_rule("98 rotary: dq turned on, not back", "sign|sin", ("[0]",), _turned(turned, back), rotary_attention)


# ------------------------------------------------------------------------------------------------------ projections


def whole(W_q, W_k, W_v, W_o, x):
    """Self-attention with two heads, all projections square."""
    return attention_of(2).forward({"W_q": W_q, "W_k": W_k, "W_v": W_v, "W_o": W_o}, x)[0]


# (time, width)
TEXTS = ((5, 4), (6, 8), (12, 12))
projected = normal(*[lambda t, w: (w, w)] * 4, lambda t, w: (t, w), sizes=TEXTS)


def _whole(args, d_out, do=lambda d_out, W_o: d_out @ W_o, o_in=lambda o: o.reshape(len(o), -1), dx=None):
    """The right backward pass of `whole`, but for what `do`, `o_in` and `dx` make of it."""
    W_q, W_k, W_v, W_o, x = args
    q, k, v = ((x @ W.T).reshape(len(x), 2, -1) for W in (W_q, W_k, W_v))
    P, _, _, _, _ = parts(q, k, v, jnp.zeros_like(v))
    o = jnp.einsum("hts,shd->thd", P, v)
    d = do(d_out, W_o).reshape(o.shape)
    _, _, dS, _, _ = parts(q, k, v, d)
    dq, dk, dv = (t.reshape(len(x), -1) for t in gradients(q, k, v, d, P, dS))
    through = [dq @ W_q, dk @ W_k, dv @ W_v]
    return dq.T @ x, dk.T @ x, dv.T @ x, d_out.T @ o_in(o), sum(through) if dx is None else dx(through)


everywhere = ("[0]", "[1]", "[2]", "[4]")
wrong(whole, projected, "transpos", everywhere, "99 W_o not transposed going back")(
    lambda args, d: _whole(args, d, do=lambda d_out, W_o: d_out @ W_o.T)
)
wrong(whole, projected, "order|transpos", ("[3]",), "100 heads laid together in another order")(
    lambda args, d: _whole(args, d, o_in=lambda o: jnp.swapaxes(o, 1, 2).reshape(len(o), -1))
)
wrong(whole, projected, "missing|overwritten|lost", ("[4]",), "101 dx of the values alone")(
    lambda args, d: _whole(args, d, dx=lambda through: through[2])
)
