"""Attention: each position of a sequence takes a weighted mean of those that it sees.

    one head          q_t = W_q x_t,  k_s = W_k x_s,  v_s = W_v x_s          of width d each
    scores            S_ts = q_t·k_s / √d                                   t: a query, s: a key it sees
    softmax           P_ts = exp(S_ts − L_t),  L_t = ln Σₛ exp S_ts         L: saved, P is not
    values            o_t = Σₛ P_ts v_s
    all heads         out_t = W_o (o_t of every head, one after another)

    back              dv_s = Σₜ P_ts do_t
                      dP_ts = do_t·v_s
                      dS_ts = P_ts (dP_ts − D_t),  D_t = Σₛ P_ts dP_ts = do_t·o_t
                      dq_t = Σₛ dS_ts k_s / √d,  dk_s = Σₜ dS_ts q_t / √d

The backward pass makes P again from L.

Sources: Vaswani et al., Attention Is All You Need, 2017, (1); Dao et al., FlashAttention, 2022, §3.1 and B.2 (L and D);
Ainslie et al., GQA, 2023 (several heads of queries to one of keys and values).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxnet.factors import Outer, Plain
from jaxnet.layer import Layer, ShapeError, fits_input, leaf, no_params
from jaxnet.layers.dense import times, transpose_times
from jaxnet.layers.embedding import angles, is_sequence, turned
from jaxnet.layers.initializers import Initializer, initializer
from jaxnet.lowering import attention as strips
from jaxnet.lowering import form, op
from jaxnet.lowering.attention import Seen
from jaxnet.lowering.kernels import kernel
from jaxnet.lowering.products import accumulated
from jaxnet.registry import Count, maker

# ------------------------------------------------------------------------------------------------- the equations
#
#     t, s   positions of queries and keys          h   heads of keys and values
#     i, j   entries of a key and of a value        r   heads of queries that share one of these


def in_groups(t: Float[Array, "time heads width"], like) -> Float[Array, "time h r width"]:
    """The heads of queries by the head of keys that they share, those of `like`."""
    return t.reshape(len(t), like.shape[1], -1, t.shape[-1])


def product(indices: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """An einsum, multiplied in the dtype of b, summed in float32 or better."""
    return jnp.einsum(indices, a.astype(b.dtype), b, preferred_element_type=accumulated(b.dtype))


def scores(q, k, seen: Seen) -> Float[Array, "h r queries keys"]:
    """S_ts = q_t·k_s/√d, −∞ where t does not see s."""
    S = product("thri,shi->hrts", in_groups(q, k), k) / math.sqrt(q.shape[-1])
    sees = seen.block(0, len(q), slice(0, len(k)))
    return S if sees is None else jnp.where(sees[None, None], S, -jnp.inf)


def attend_plain(
    q: Float[Array, "queries heads d"],
    k: Float[Array, "keys kv_heads d"],
    v: Float[Array, "keys kv_heads e"],
    *,
    seen: Seen,
) -> tuple[Float[Array, "queries heads e"], Float[Array, "heads queries"]]:
    """o and L of every head."""
    S = scores(q, k, seen)
    L = jax.nn.logsumexp(S, axis=-1)
    P = jnp.exp(S - L[..., None])
    o = product("hrts,shj->thrj", P, v)
    return o.reshape(*q.shape[:2], -1).astype(v.dtype), L.reshape(-1, len(q))


def attend_backward_plain(
    q: Float[Array, "queries heads d"],
    k: Float[Array, "keys kv_heads d"],
    v: Float[Array, "keys kv_heads e"],
    o: Float[Array, "queries heads e"],
    L: Float[Array, "heads queries"],
    do: Float[Array, "queries heads e"],
    *,
    seen: Seen,
) -> tuple[Float[Array, "queries heads d"], Float[Array, "keys kv_heads d"], Float[Array, "keys kv_heads e"]]:
    """dq, dk and dv of every head."""
    S = scores(q, k, seen)
    P = jnp.exp(S - L.reshape(S.shape[:-1])[..., None])  # P = softmax S, made again from L
    wide_do, wide_o = in_groups(do.astype(L.dtype), v), in_groups(o.astype(L.dtype), v)
    D = product("thrj,thrj->hrt", wide_do, wide_o)  # D_t = do_t·o_t
    dO = in_groups(do.astype(v.dtype), v)
    dv = product("hrts,thrj->shj", P, dO)  # dV = Pᵀ dO
    dP = product("thrj,shj->hrts", dO, v)  # dP = dO Vᵀ
    dS = P * (dP - D[..., None])  # dS = P ⊙ (dP − D)
    dq = product("hrts,shi->thri", dS, k) / math.sqrt(q.shape[-1])  # dQ = dS K/√d
    dk = product("hrts,thri->shi", dS, in_groups(q, k)) / math.sqrt(q.shape[-1])  # dK = dSᵀ Q/√d
    return dq.reshape(q.shape).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


# The axes of arrays -> results: a mesh cuts the heads, for the forms that its compiler cannot cut.
QKV = "queries heads d, keys heads d, keys heads e"
OUT = "queries heads e, heads queries"
FORWARD, BACKWARD = f"{QKV} -> {OUT}", f"{QKV}, {OUT}, queries heads e -> {QKV}"

attend = op(
    attend_plain,
    cpu=form(strips.heads_forward, manual=True, axes=FORWARD),
    cuda=kernel("attention", "forward", FORWARD, on="cuda"),
    tpu=kernel("attention", "forward", FORWARD, on="tpu"),
)
attend_backward = op(
    attend_backward_plain,
    cpu=form(strips.heads_backward, manual=True, axes=BACKWARD),
    cuda=kernel("attention", "backward", BACKWARD, on="cuda"),
    tpu=kernel("attention", "backward", BACKWARD, on="tpu"),
)

# --------------------------------------------------------------------------------------------------- layers


def seen_by(name: str, causal: bool, mask) -> Seen:
    """The keys that each query sees, by `causal` and `mask`. Raises `ValueError` for a query that sees nothing."""
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


thirds = leaf(
    "thirds",
    no_params,
    lambda params, x, key=None, train=False: (tuple(jnp.split(x, 3, axis=-1)), ()),
    lambda params, saved, d_outs: (jnp.concatenate(d_outs, axis=-1), ()),
)
"""The last axis cut into three: queries, keys and values of one array, for the example below."""


@maker(configs=False, examples={"serial(thirds, dot_product_attention())": "float32[5,2,24]"})
def dot_product_attention(*, causal: bool = True, mask=None) -> Layer:
    """o_t = Σₛ softmaxₛ(q_t·k_s/√d) v_s in each head: the core of `attention`, without projections.

    Takes the tuple q: (queries, heads, d), k: (keys, kv_heads, d), v: (keys, kv_heads, e); kv_heads divides heads, and
    heads / kv_heads heads of queries in a row share one of keys and values. Gives (queries, heads, e).
    `causal`: a query sees no key after its own position. `mask`: (queries, keys), true where a query sees a key.
    Raises `ShapeError` for shapes that do not fit, `ValueError` for a mask with a query that sees nothing.
    Source: Dao et al., FlashAttention, 2022.

    >>> q, k = jnp.ones((5, 4, 3)), jnp.ones((5, 2, 3))
    >>> o, back = vjp(dot_product_attention())((), (q, k, k))
    >>> o.shape, [d.shape for d in back(o)[1]]
    ((5, 4, 3), [(5, 4, 3), (5, 2, 3), (5, 2, 3)])
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
        out, L = attend(q, k, v, seen=seen)
        return out, (q, k, v, out, L)

    def backward(params, saved, d_out):
        q, k, v, out, L = saved
        return attend_backward(q, k, v, out, L, d_out, seen=seen), ()

    return leaf(name, no_params, forward, backward, accepts)


def self_attended(name: str, heads: int, rotary: bool, seen: Seen) -> Callable:
    """`accepts(x, params)` of `attention`: raises `ShapeError` for a sequence that its heads do not divide."""

    def accepts(x, params):
        is_sequence(name, x)
        time, width = x.shape
        if width % heads:
            fitting = ", ".join(str(h) for h in range(1, width + 1) if width % h == 0)
            raise ShapeError(
                f"{name} takes a width that {heads} heads divide, got {width} in shape {x.shape}: "
                f"give it {fitting} heads"
            )
        if rotary and (width // heads) % 2:
            raise ShapeError(
                f"{name} with rotary positions takes heads of an even width, whose entries make pairs, got "
                f"{width // heads}: choose heads such that 2 · heads divides the width {width}"
            )
        fits_input(name, params, "W_q", (width, width), x)
        fits(name, seen, time, time)

    return accepts


@maker(
    examples={
        "attention(3, bias=True)": "float32[5,6]",
        "attention(2, causal=False, kv_heads=1, rotary=True)": "float32[5,8]",
    },
    axes={f"W_{of}": "heads in" for of in "qkv"}
    | {f"b_{of}": "heads" for of in "qkv"}
    | {"W_o": "out heads", "b_o": "out"},
)
def attention(
    heads: Count,
    *,
    causal: bool = True,
    kv_heads: Count | None = None,
    rotary: bool = False,
    bias: bool = False,
    mask=None,
    init: str | Initializer | Callable = "lecun_normal",
    out_init: str | Initializer | Callable | None = None,
    rotary_base: float = 10_000.0,
) -> Layer:
    """Multi-head self-attention on a sequence x: (time, width): out = W_o o, o that of q = W_q x, k = W_k x, v = W_v x.

    `heads`: of width / heads entries each. `causal`: a position sees none after it. `kv_heads`: how many heads keys and
    values have, where fewer: heads / kv_heads heads of queries share each (grouped queries). `rotary`: queries and keys
    turned by their position, with angles of `rotary_base`, as the layer `rotary` does. `bias`: b added to each of the
    four products. `mask`: (time, time) booleans, true where a query (row) sees a key (column), beside `causal`.
    `init`: as of `dense`. `out_init`: that of W_o, where it is another.
    Parameters: W_q (width, width), W_k and W_v (kv_heads · width / heads, width), W_o (width, width); b_q to b_o.
    Raises `ShapeError` for an input that is no sequence, heads that do not divide its width, an odd width of a head
    with rotary positions, a mask of another shape; `ValueError` for kv_heads that do not divide heads, or a mask by
    which some query sees nothing.
    Sources: as of this module; rotary positions: Su et al., RoFormer, 2021.

    >>> net, x = attention(2), jnp.ones((5, 4))
    >>> params = net.init(jax.random.key(0), x)
    >>> out, back = vjp(net)(params, x)
    >>> grads, dx = back(jnp.ones_like(out))
    >>> out.shape, dx.shape, jax.tree.map(jnp.shape, grads)
    ((5, 4), (5, 4), {'W_k': (4, 4), 'W_o': (4, 4), 'W_q': (4, 4), 'W_v': (4, 4)})
    """
    name = f"attention {heads}"
    kv = heads if kv_heads is None else kv_heads
    if heads % kv:
        raise ValueError(f"{name} takes kv_heads that divide the heads, got kv_heads = {kv}")
    begin = dict.fromkeys("qkv", initializer(init)) | {"o": initializer(init if out_init is None else out_init)}
    angle_base = rotary_base if rotary else None
    return self_attention(name, heads, kv, begin, bias=bias, angle_base=angle_base, seen=seen_by(name, causal, mask))


def self_attention(
    name: str,
    heads: int,
    kv: int,
    begin: dict[str, Initializer],
    *,
    bias: bool,
    angle_base: float | None,
    seen: Seen,
) -> Layer:
    """The layer `attention`. begin: the initialisers of q, k, v and o. angle_base: of rotary positions, if any."""
    accepts = self_attended(name, heads, angle_base is not None, seen)

    def new(key, x):
        width = x.shape[1]
        rows = {"q": width, "k": kv * (width // heads), "v": kv * (width // heads), "o": width}
        keys = jax.random.split(key, 8)
        params = {f"W_{p}": begin[p].W(keys[i], (n, width), x.dtype) for i, (p, n) in enumerate(rows.items())}
        biases = {f"b_{p}": begin[p].b(keys[4 + i], (n,), x.dtype) for i, (p, n) in enumerate(rows.items())}
        return params | biases if bias else params

    def project(params, p, x):
        z = times(params[f"W_{p}"], x)
        return z + params[f"b_{p}"].astype(z.dtype)[None] if bias else z

    def forward(params, x, key=None, train=False):
        dtype = params["W_q"].dtype
        q, k, v = (project(params, p, x).reshape(len(x), n, -1) for p, n in (("q", heads), ("k", kv), ("v", kv)))
        if angle_base is not None:
            at = angles(len(x), q.shape[-1] // 2, angle_base, x.dtype)
            q, k = turned(q, at), turned(k, at)
        q, k, v = (t.astype(dtype) for t in (q, k, v))
        o, L = attend(q, k, v, seen=seen)
        out = project(params, "o", o.reshape(x.shape).astype(x.dtype))
        return out, (x.astype(dtype), q, k, v, o, L)

    def backward(params, saved, d_out):
        x, q, k, v, o, L = saved

        def through(p, delta):  # z = W x + b, at each position
            return transpose_times(params[f"W_{p}"], delta)

        do = through("o", d_out).reshape(o.shape)
        dq, dk, dv = (t.astype(d_out.dtype) for t in attend_backward(q, k, v, o, L, do, seen=seen))
        if angle_base is not None:
            at = angles(len(x), q.shape[-1] // 2, angle_base, x.dtype)
            dq, dk = turned(dq, at, back=True), turned(dk, at, back=True)
        deltas = {p: t.reshape(len(x), -1) for p, t in (("q", dq), ("k", dk), ("v", dv))}
        dx = through("q", deltas["q"]) + through("k", deltas["k"]) + through("v", deltas["v"])
        inputs = {"q": x, "k": x, "v": x, "o": o.reshape(x.shape)}
        deltas["o"] = d_out
        factors: dict = {f"W_{p}": Outer(delta, inputs[p], 1) for p, delta in deltas.items()}
        return dx, factors | {f"b_{p}": Plain(delta, 1) for p, delta in deltas.items()} if bias else factors

    return leaf(name, new, forward, backward, accepts)
