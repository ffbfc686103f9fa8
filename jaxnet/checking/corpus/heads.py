"""Mistakes in attention as jaxnet has it: grouped heads, masks, rotary positions, the projections around it."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxnet.checking.corpus.case import Rules, normal
from jaxnet.layers import attention as attention_of
from jaxnet.layers import dot_product_attention
from jaxnet.layers.embedding import angles, turned

RULES = Rules()

# (time, heads of keys, heads of queries to each, width)
HEADS = ((5, 2, 2, 4), (6, 2, 3, 2), (12, 2, 2, 8))
qkv = normal(lambda t, h, g, d: (t, h * g, d), lambda t, h, g, d: (t, h, d), lambda t, h, g, d: (t, h, d), sizes=HEADS)


def causal(S, before=0):
    """Which key, in the last axis, a query sees: those up to its own position, or up to that `before` positions."""
    return jnp.tril(jnp.ones(S.shape[1:], bool), -before)[None]


def grouped_attention(q, k, v):
    """Causal, each head of keys and values shared by heads of queries next to each other: (time, heads, width)."""
    return dot_product_attention().forward((), (q, k, v))[0]


@RULES.back_of(grouped_attention, qkv)
def grouped_attention_back(args, do):
    q, k, v = args
    c, group = 1 / math.sqrt(q.shape[-1]), q.shape[1] // k.shape[1]
    K, V = jnp.repeat(k, group, 1), jnp.repeat(v, group, 1)
    S = jnp.einsum("thd,shd->hts", q, K) / math.sqrt(q.shape[-1])
    P = jax.nn.softmax(jnp.where(causal(S), S, -jnp.inf), axis=-1)
    dP = jnp.einsum("thd,shd->hts", do, V)
    dS = P * (dP - jnp.sum(P * dP, -1, keepdims=True))

    def shared(d):
        d = d.reshape(len(d), k.shape[1], -1, d.shape[-1])
        return d.sum(2)

    dq, dk = jnp.einsum("hts,shd->thd", dS, K) * c, jnp.einsum("hts,thd->shd", dS, q) * c
    dk, dv = shared(dk), shared(jnp.einsum("hts,thd->shd", P, do))
    return dq, dk, dv


def rotary_attention(q, k, v):
    """The same of queries and keys that are turned by their positions."""
    at = angles(len(q), q.shape[-1] // 2, 10_000.0, q.dtype)
    return dot_product_attention().forward((), (turned(q, at), turned(k, at), v))[0]


@RULES.back_of(rotary_attention, qkv)
def rotary_attention_back(args, do):
    q, k, v = args
    at = angles(len(q), q.shape[-1] // 2, 10_000.0, q.dtype)
    dq, dk, dv = grouped_attention_back((turned(q, at), turned(k, at), v), do)
    return turned(dq, at, back=True), turned(dk, at, back=True), dv


def whole(W_q, W_k, W_v, W_o, x):
    """Self-attention with two heads, all projections square."""
    return attention_of(2).forward({"W_q": W_q, "W_k": W_k, "W_v": W_v, "W_o": W_o}, x)[0]


# (time, width)
TEXTS = ((5, 4), (6, 8), (12, 12))


@RULES.back_of(whole, normal(*[lambda t, w: (w, w)] * 4, lambda t, w: (t, w), sizes=TEXTS))
def whole_back(args, d_out):
    W_q, W_k, W_v, W_o, x = args
    q, k, v = ((x @ W.T).reshape(len(x), 2, -1) for W in (W_q, W_k, W_v))
    o = grouped_attention(q, k, v)
    do = (d_out @ W_o).reshape(o.shape)
    dq, dk, dv = (t.reshape(len(x), -1) for t in grouped_attention_back((q, k, v), do))
    through = [dq @ W_q, dk @ W_k, dv @ W_v]
    return dq.T @ x, dk.T @ x, dv.T @ x, d_out.T @ o.reshape(len(o), -1), sum(through)


MISTAKES: tuple[tuple[str, ...], ...] = (
    ("grouped_attention", "90 a group's heads overwrite each other", ".sum(2)", "[:, :, -1]", "[1] [2]",
     "overwrit|missing|lost|only the last"),
    ("grouped_attention", "91 a group's heads averaged", ".sum(2)", ".mean(2)", "[1] [2]", r"1/|½|0\.5", "times"),
    ("grouped_attention", "92 attention without D", "P * (dP - jnp.sum(P * dP, -1, keepdims=True))", "P * dP",
     "[0] [1]", "missing|stop_gradient"),
    ("grouped_attention", "93 D summed over the queries", "jnp.sum(P * dP, -1", "jnp.sum(P * dP, 1", "[0] [1]", "axis"),
    ("grouped_attention", "94 mask off by one going back", "    dq, dk = jnp",
     "    P, dS = (jnp.where(causal(S, 1), t, 0) for t in (P, dS))\n    dq, dk = jnp", "[0] [1] [2]",
     "mask", "shift|off by one"),
    ("grouped_attention", "95 width in the place of its root", "c, group = 1 / math.sqrt(q.shape[-1])",
     "c, group = 1 / q.shape[-1]", "[0] [1]", r"√|sqrt|½|0\.5|twice|1/"),
    ("grouped_attention", "96 dq and dk scaled by heads, not by widths", "return dq, dk",
     "return dq * math.sqrt(q.shape[-1] / 3), dk * math.sqrt(q.shape[-1] / 3)", "[0] [1]", "times"),
    ("rotary_attention", "97 rotary: dk not turned back", "turned(dk, at, back=True)", "dk", "[1]",
     "missing|left out|passed|not turned"),
    ("rotary_attention", "98 rotary: dq turned on, not back", "turned(dq, at, back=True)", "turned(dq, at)", "[0]",
     "sign|sin"),
    ("whole", "99 W_o not transposed going back", "d_out @ W_o", "d_out @ W_o.T", "[0] [1] [2] [4]", "transpos"),
    ("whole", "100 heads laid together in another order", "o.reshape(len(o), -1)",
     "jnp.swapaxes(o, 1, 2).reshape(len(o), -1)", "[3]", "order|transpos"),
    ("whole", "101 dx of the values alone", "sum(through)", "through[2]", "[4]",
     "missing|overwritten|lost"),
)  # fmt: skip
