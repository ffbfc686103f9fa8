"""The step of a GPT: cost and gradients of a batch of sequences, as the character recipe has them but for the sizes."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.backprop import initialize, value_and_grad
from jaxnet.bench.measure import TimedCase, Variant, compiled
from jaxnet.bench.peers import torch, torch_variants
from jaxnet.heads import fused_head
from jaxnet.layer import Layer, Loss
from jaxnet.losses import softmax_cross_entropy
from jaxnet.models import gpt, mlp
from jaxnet.training.low_precision import in_precision


class Sizes(NamedTuple):
    """Sizes of a GPT's step: sequences in the batch, their length, and the options of `gpt`."""

    batch: int = 8
    time: int = 512
    vocab: int = 4096
    width: int = 256
    heads: int = 4
    depth: int = 4

    def net(self, **options: Any) -> Layer:
        """The network."""
        return gpt(self.vocab, self.width, self.heads, self.depth, self.time, **options)

    def arguments(self) -> tuple:
        """Parameters, tokens and targets, (batch, time)."""
        xs, ys = jax.random.randint(jax.random.key(0), (2, self.batch, self.time), 0, self.vocab)
        return jax.jit(lambda key: self.net().init(key, xs[0]))(jax.random.key(1)), xs, ys

    def weight_flops(self) -> float:
        """Operations of the products with weights of one step, forward and twice as many backward."""
        return 3 * 2 * self.batch * self.time * (self.depth * 12 * self.width**2 + self.vocab * self.width)

    def flops(self) -> float:
        """The same with the products of attention, of queries with keys and of these with values: half of all pairs."""
        seen = self.depth * 2 * self.width * (self.time + 1) / 2
        return self.weight_flops() + 3 * 2 * self.batch * self.time * seen


FULL = Sizes()


def cases() -> Iterator[TimedCase]:
    """The cases, each made when it is asked for."""
    yield kept()
    yield run_again()
    yield gpt_in_bfloat16()
    yield mlp_in_bfloat16()


# ------------------------------------------------------------------------------------------ as for autodiff


def norm(p: dict, x: jax.Array) -> jax.Array:
    """Layer norm of a batch of sequences."""
    centred = x - x.mean(-1, keepdims=True)
    x_hat = centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-5)
    return x_hat * p["gamma"].reshape(1, 1, -1) + p["beta"].reshape(1, 1, -1)


def affine(p: dict, x: jax.Array, which: str = "") -> jax.Array:
    """x Wᵀ + b of a batch of sequences."""
    return x @ p[f"W{which}"].T + p[f"b{which}"].reshape(1, 1, -1)


def attend(p: dict, x: jax.Array, heads: int) -> jax.Array:
    """Causal attention with all scores at once."""
    q, k, v = (affine(p, x, f"_{which}").reshape(*x.shape[:2], heads, -1) for which in "qkv")
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5
    scores = jnp.where(jnp.tril(jnp.ones((1, 1, x.shape[1], x.shape[1]), bool)), scores, -jnp.inf)
    o = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v)
    return affine(p, o.reshape(x.shape), "_o")


def fused_attend(p: dict, x: jax.Array, heads: int) -> jax.Array:
    """Causal attention by JAX's own function."""
    q, k, v = (affine(p, x, f"_{which}").reshape(*x.shape[:2], heads, -1) for which in "qkv")
    return affine(p, jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape), "_o")


def block(p: tuple, x: jax.Array, heads: int, attention: Callable) -> jax.Array:
    """x + attention(norm x), then x + MLP(norm x)."""
    (norm_1, mixed), (norm_2, (first, (_, last))) = p
    x = x + attention(mixed, norm(norm_1, x), heads)
    return x + affine(last, jax.nn.gelu(affine(first, norm(norm_2, x)), approximate=False))


def by_autodiff(sizes: Sizes, stack: str, attention: Callable = attend) -> Callable:
    """`jax.value_and_grad` of the cost. `stack`: "unrolled", "scan", or "checkpoint" for a scan that keeps inputs."""

    def one(x, p):
        return block(p, x, sizes.heads, attention), None

    def cost(params, xs, ys):
        tokens, positions, blocks, last, head = params
        x = tokens["W"][xs] + positions["W"][None, : xs.shape[1]]
        if stack == "unrolled":
            for p in blocks:
                x, _ = one(x, p)
        else:
            x, _ = jax.lax.scan(jax.checkpoint(one) if stack == "checkpoint" else one, x, blocks)
        z = norm(last, x) @ head["W"].T
        picked = jnp.take_along_axis(z, ys[..., None], axis=-1)[..., 0]
        return jnp.mean(jax.nn.logsumexp(z, axis=-1) - picked)

    def unrolled(params, xs, ys):
        before, (blocks, *after) = params[:2], params[2:]
        value, grads = jax.value_and_grad(cost)((*before, apart(blocks, sizes.depth), *after), xs, ys)
        return value, (*grads[:2], jax.tree.map(lambda *t: jnp.stack(t), *grads[2]), *grads[3:])

    return unrolled if stack == "unrolled" else jax.value_and_grad(cost)


def apart(blocks: tuple, depth: int) -> list[tuple]:
    """Each block's parameters by themselves."""
    return [jax.tree.map(lambda t, i=i: t[i], blocks) for i in range(depth)]


def autodiff_variants(sizes: Sizes, arguments: tuple, naive: dict, best: dict) -> tuple[Variant, ...]:
    """The same step by autodiff. `naive`, `best`: aims against the plain one and against those written to be faster."""
    return (
        compiled("autodiff, naive", by_autodiff(sizes, "unrolled"), *arguments, **naive),
        compiled("autodiff, scan", by_autodiff(sizes, "scan"), *arguments, **best),
        compiled("autodiff, scan, checkpoint", by_autodiff(sizes, "checkpoint"), *arguments, **best),
        compiled("autodiff, scan, jax's attention", by_autodiff(sizes, "scan", fused_attend), *arguments),
    )


def in_torch(sizes: Sizes, arguments: tuple, **aims: float) -> tuple[Variant, ...]:
    """The same step in torch, with its fused attention."""
    module = torch()
    if module is None:
        return ()
    params, xs, ys = arguments
    leaves, structure = jax.tree.flatten(params)
    tokens, targets = (module.tensor(np.asarray(t), dtype=module.long) for t in (xs, ys))
    functional = module.nn.functional

    # Places among the leaves, so that torch's compiler meets no trees of ours.
    words, positions, ((norm_1, mixed), (norm_2, (first, (_, second)))), last, head = jax.tree.unflatten(
        structure, range(len(leaves))
    )

    def linear(p, x, which=""):
        return functional.linear(x, p[f"W{which}"], p.get(f"b{which}"))

    def normed(p, x):
        return functional.layer_norm(x, x.shape[-1:], p["gamma"], p["beta"], eps=1e-5)

    def forward(*leaves):
        def of(places):
            return {name: leaves[place] for name, place in places.items()}

        def stack(places):
            rows = {name: leaves[place].unbind(0) for name, place in places.items()}
            return [{name: row[i] for name, row in rows.items()} for i in range(sizes.depth)]

        x = of(words)["W"][tokens] + of(positions)["W"][: tokens.shape[1]]
        for a, b, c, d, e in zip(*map(stack, (norm_1, mixed, norm_2, first, second)), strict=True):
            y = normed(a, x)
            q, k, v = (linear(b, y, f"_{p}").unflatten(-1, (sizes.heads, -1)).transpose(1, 2) for p in "qkv")
            o = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + linear(b, o.transpose(1, 2).flatten(-2), "_o")
            x = x + linear(e, functional.gelu(linear(d, normed(c, x))))
        return functional.cross_entropy(linear(of(head), normed(of(last), x)).flatten(0, 1), targets.flatten())

    def arrange(cost, *grads):
        return cost, jax.tree.unflatten(structure, grads)

    return torch_variants(forward, leaves, np.float32(1), arrange, **aims)


# ------------------------------------------------------------------------------------------------ the steps


def step(net: Layer, loss: Loss = softmax_cross_entropy) -> Callable:
    """Cost and gradients by hand, the head fused with the loss."""
    return value_and_grad(*fused_head(net, loss, chunks=4))


def named(what: str, sizes: Sizes) -> str:
    """A case's name with its sizes."""
    return f"{what} {sizes.depth} layers of {sizes.width}, T {sizes.time}, batch {sizes.batch}"


def kept(sizes: Sizes = FULL) -> TimedCase:
    """The saved values of each block are kept."""
    arguments = sizes.arguments()
    naive, best = {"time_aim": 0.73, "memory_aim": 0.32}, {"time_aim": 0.75}
    return TimedCase(
        named("GPT", sizes),
        compiled("hand", step(sizes.net()), *arguments),
        (
            *autodiff_variants(sizes, arguments, naive, best),
            compiled("hand, head not fused", value_and_grad(sizes.net(), softmax_cross_entropy), *arguments),
            *in_torch(sizes, arguments, time_aim=0.9),
        ),
        rounds=7,
        flops=sizes.flops(),
    )


def run_again(sizes: Sizes = FULL) -> TimedCase:
    """Each branch's input alone is kept, and the branch run again in backward."""
    arguments = sizes.arguments()
    naive, best = {"time_aim": 0.78, "memory_aim": 0.20}, {"time_aim": 1.0, "memory_aim": 1.0}
    return TimedCase(
        named("GPT, remat,", sizes),
        compiled("hand", step(sizes.net(remat=True)), *arguments),
        (
            compiled("autodiff, naive", by_autodiff(sizes, "unrolled"), *arguments, **naive),
            compiled("autodiff, scan, checkpoint", by_autodiff(sizes, "checkpoint"), *arguments, **best),
        ),
        rounds=7,
        flops=sizes.flops(),
    )


def gpt_in_bfloat16(sizes: Sizes = FULL) -> TimedCase:
    """Products of bfloat16 with float32 sums, against our own step in float32: pays where the CPU has units for it."""
    arguments = sizes.arguments()
    return TimedCase(
        named("GPT, bfloat16,", sizes),
        compiled("hand, bfloat16", step(in_precision(sizes.net(), "bfloat16")), *arguments),
        (compiled("hand, float32", step(sizes.net()), *arguments, time_aim=0.70),),
        rounds=7,
    )


def mlp_in_bfloat16(widths: tuple[int, ...] = (2048, 2048, 10), batch: int = 512) -> TimedCase:
    """The same of an MLP on pictures of 784 numbers."""
    net, loss = mlp(widths), softmax_cross_entropy
    xs = jax.random.normal(jax.random.key(0), (batch, 784))
    ys = jax.random.randint(jax.random.key(1), (batch,), 0, widths[-1])
    params = jax.jit(lambda key: initialize(net, loss, key, xs[0]))(jax.random.key(2))
    return TimedCase(
        f"MLP, bfloat16, 784-{'-'.join(map(str, widths))}, batch {batch}",
        compiled("hand, bfloat16", value_and_grad(in_precision(net, "bfloat16"), loss), params, xs, ys),
        (compiled("hand, float32", value_and_grad(net, loss), params, xs, ys, time_aim=0.70),),
        rounds=15,
    )
