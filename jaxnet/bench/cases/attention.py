"""Attention, a head fused with its cross-entropy, and embeddings: forward, then backward, of a batch of sequences."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.backprop import value_and_grad
from jaxnet.bench.measure import TimedCase, Variant, compiled
from jaxnet.bench.peers import torch, torch_variants
from jaxnet.combinators import per_position, serial
from jaxnet.heads import linear_cross_entropy
from jaxnet.layers import dense, dot_product_attention, embedding
from jaxnet.losses import softmax_cross_entropy
from jaxnet.readings import total


def cases() -> Iterator[TimedCase]:
    """The cases, each made when it is asked for."""
    yield attention_case()
    yield head_case()
    yield embedding_case()


# ------------------------------------------------------------------------------------------------------ attention


def softmax_of(s: jax.Array, start: int = 0) -> jax.Array:
    """Causal softmax of scores (…, queries, keys), the first query standing at position `start`."""
    query, key = jnp.arange(s.shape[-2])[:, None] + start, jnp.arange(s.shape[-1])[None]
    return jax.nn.softmax(jnp.where(query >= key, s, -jnp.inf), axis=-1)


def at_once(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """All heads of one example at once, as the equation is: (time, heads, d)."""
    s = jnp.einsum("thd,shd->hts", q, k) / q.shape[-1] ** 0.5
    return jnp.einsum("hts,shd->thd", softmax_of(s), v)


def a_head_at_a_time(again: bool, strip: int | None = None) -> Callable:
    """A scan over heads. `again`: P is made again in backward. `strip`: queries at once, with the keys they see."""

    def block(q, k, v, start):
        return softmax_of(q @ k.T / q.shape[-1] ** 0.5, start) @ v

    def one(q, k, v):
        size = strip or len(q)
        of_block = jax.checkpoint(block, static_argnums=3) if strip else block
        return jnp.concatenate(
            [of_block(q[i : i + size], k[: i + size], v[: i + size], i) for i in range(0, len(q), size)]
        )

    def run(q, k, v):
        step = jax.checkpoint(one) if again else one
        first = (jnp.moveaxis(t, 1, 0) for t in (q, k, v))
        return jnp.moveaxis(jax.lax.scan(lambda _, qkv: (None, step(*qkv)), None, tuple(first))[1], 0, 1)

    return run


def attention_case(sizes: tuple[int, int, int, int] = (4, 512, 8, 64)) -> TimedCase:
    """Causal attention's core of `sizes`: batch, time, heads, width of a head."""
    batch, time, heads, width = sizes
    keys = jax.random.split(jax.random.key(0), 4)
    arguments = [jax.random.normal(key, sizes) for key in keys]
    layer = dot_product_attention()

    def by_hand(q, k, v, d_out):
        def one(*qkv_d):
            out, saved = layer.forward((), qkv_d[:3])
            return out, *layer.backward((), saved, qkv_d[3], total)[0]

        return jax.vmap(one)(q, k, v, d_out)

    def by_autodiff(forward):
        def run(q, k, v, d_out):
            out, pullback = jax.vjp(jax.vmap(forward), q, k, v)
            return out, *pullback(d_out)

        return run

    def fused(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, is_causal=True)

    module = torch()

    def peer(q, k, v):
        heads_first = (t.transpose(1, 2) for t in (q, k, v))
        attend = module.nn.functional.scaled_dot_product_attention
        return attend(*heads_first, is_causal=True).transpose(1, 2)

    def variant(name, forward, **aims):
        return compiled(f"autodiff, {name}", by_autodiff(forward), *arguments, **aims)

    return TimedCase(
        f"causal attention, batch {batch}, T {time}, {heads} heads of {width}",
        compiled("hand", by_hand, *arguments),
        (
            variant("naive", at_once, time_aim=0.4, memory_aim=0.05),
            variant("scan over heads", a_head_at_a_time(False)),
            variant("scan, P again", a_head_at_a_time(True), time_aim=0.7),
            variant("scan, strips again", a_head_at_a_time(True, 128), time_aim=1.05),
            variant("jax.nn's", fused),
            *torch_variants(peer, arguments[:3], arguments[3], time_aim=1.0),
        ),
        flops=7 * batch * heads * time * time * width,  # 2 forward and 5 backward, each 2 T² d, causal by half
    )


# ----------------------------------------------------------------------------------------- linear + cross-entropy


def head_case(sizes: tuple[int, int, int, int] = (4, 512, 256, 32_768)) -> TimedCase:
    """A head and its cross-entropy of `sizes`: batch, time, width, vocabulary."""
    batch, time, width, vocab = sizes
    x_key, y_key, W_key = jax.random.split(jax.random.key(0), 3)
    xs = jax.random.normal(x_key, (batch, time, width))
    ys = jax.random.randint(y_key, (batch, time), 0, vocab)
    W = jax.random.normal(W_key, (vocab, width)) / width**0.5
    arguments = W, xs, ys

    def by_hand(chunks):
        one, weight = linear_cross_entropy(vocab, chunks=chunks).turn, 1 / (batch * time)

        def run(W, xs, ys):
            turned = jax.vmap(lambda x, y, w: one({"W": W}, x, y, w, total), out_axes=(0, 0, None))
            costs, dxs, grads = turned(xs, ys, jnp.full(batch, weight))
            return costs.sum(), grads["W"], dxs

        return run

    def cost(W, xs, ys):
        z = xs.reshape(-1, width) @ W.T
        picked = jnp.take_along_axis(z, ys.reshape(-1, 1), axis=1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(z, axis=1) - picked)

    def in_chunks(W, xs, ys):
        parts = xs.reshape(8, -1, width), ys.reshape(8, -1)
        return jnp.mean(jax.lax.map(jax.checkpoint(lambda part: cost(W, *part)), parts))

    def by_autodiff(f):
        return lambda W, xs, ys: (lambda value, grads: (value, *grads))(*jax.value_and_grad(f, (0, 1))(W, xs, ys))

    module = torch()
    cross_entropy = module and module.nn.functional.cross_entropy
    targets = module and module.tensor(np.asarray(ys).reshape(-1)).long()

    def peer(W, xs):
        return cross_entropy(xs.reshape(-1, width) @ W.T, targets)

    return TimedCase(
        f"linear + cross-entropy, {batch * time} tokens, width {width}, vocabulary {vocab:,}",
        compiled("hand, 6 chunks", by_hand(6), *arguments),
        (
            compiled("autodiff, naive", by_autodiff(cost), *arguments, time_aim=0.95, memory_aim=0.2),
            compiled("autodiff, 8 chunks again", by_autodiff(in_chunks), *arguments, time_aim=1.05),
            compiled("hand, 8 chunks", by_hand(8), *arguments),
            compiled("hand, 4 chunks", by_hand(4), *arguments),
            compiled("hand, whole", by_hand(1), *arguments),
            *torch_variants(peer, (W, xs), np.float32(1), time_aim=1.0),
        ),
        rounds=9,
        flops=3 * 2 * batch * time * width * vocab,
    )


# ------------------------------------------------------------------------------------------------------ embedding


def embedding_case(sizes: tuple[int, int, int, int] = (8, 256, 128, 8192)) -> TimedCase:
    """The gradient of an embedding's table, with a small head over it, of `sizes`: batch, time, width, vocabulary."""
    batch, time, width, vocab = sizes
    xs = jax.random.randint(jax.random.key(0), (batch, time), 0, vocab)
    ys = xs % 16
    net = serial(embedding(vocab, width), per_position(dense(16)))
    params = jax.jit(net.init)(jax.random.key(1), xs[0])

    def by(look_up):
        def cost(params, xs, ys):
            (table, head) = params
            z = look_up(table["W"], xs) @ head["W"].T + head["b"][None, None]
            picked = jnp.take_along_axis(z, ys[..., None], axis=-1)[..., 0]
            return jnp.mean(jax.nn.logsumexp(z, axis=-1) - picked)

        return jax.value_and_grad(cost)

    others: tuple[Variant, ...] = (
        compiled("autodiff, naive", by(lambda W, i: W[i]), params, xs, ys, time_aim=1.05),
        compiled("autodiff, one-hot", by(lambda W, i: jax.nn.one_hot(i, vocab) @ W), params, xs, ys),
    )
    ours = compiled("hand", value_and_grad(net, softmax_cross_entropy), params, xs, ys)
    return TimedCase(f"embedding {vocab:,}×{width}, {batch * time} tokens", ours, others)
