"""Networks that foretell the next token of a sequence: transformers and recurrences. Each takes (time,) token ids and
gives (time, vocab) logits, those at t seeing the tokens up to t alone.

    x ← W[token] + P[t]
    x ← x + attention(norm x)        in each of `depth` blocks, one scan
    x ← x + W₂ g(W₁ norm x)
    z = W_head norm x

Sources: Vaswani et al., Attention Is All You Need, 2017; Radford et al., Language Models are Unsupervised Multitask
Learners, 2019, §2.3 (norms first, one more at the end); Touvron et al., LLaMA, 2023, §2.2 (the other options).
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax

from jaxnet.combinators import per_position, remat, repeat, serial, tied
from jaxnet.layer import Layer
from jaxnet.layers import (
    Divided,
    activation_named,
    attention,
    dense,
    dropout,
    embedding,
    layer_norm,
    lstm,
    positional_embedding,
    rms_norm,
)
from jaxnet.models.blocks import gated, pre_norm
from jaxnet.registry import Count, maker

GPT2_SIZES = {
    #         width, heads, depth
    "124M": (768, 12, 12),
    "355M": (1024, 16, 24),
    "774M": (1280, 20, 36),
    "1558M": (1600, 25, 48),
}
"""The published configurations of GPT-2, by their number of parameters. Source: Radford et al., 2019, table 2."""

NORMS: dict[str, Callable[..., Layer]] = {"layer_norm": layer_norm, "rms_norm": rms_norm}
remat_of = remat  # the combinator, where an option has its name


@maker(
    kind="model",
    examples={
        "gpt(11, 8, 2, 2, 6), softmax_cross_entropy": "int32[3,6]<11, int32[3,6]<11",
        "gpt(11, 8, 4, 2, 6, gate=True, rotary=True), softmax_cross_entropy": "int32[3,6]<11, int32[3,6]<11",
    },
)
def gpt(
    vocab: Count,
    width: Count,
    heads: Count,
    depth: Count,
    positions: Count,
    *,
    hidden: Count | None = None,
    activation: str = "gelu",
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm",
    norm_epsilon: float | None = None,
    gate: bool = False,
    rotary: bool = False,
    kv_heads: Count | None = None,
    bias: bool = True,
    tied_head: bool = False,
    drop_rate: float = 0.0,
    remat: bool = False,
    init: str = "lecun_normal",
) -> Layer:
    """A transformer that sees backward alone: (time,) token ids to (time, vocab) logits, time at most `positions`.

    `hidden`: the width inside the blocks' MLPs, four times `width` by default. `norm_epsilon`: ε of the norms, their
    own by default. `gate`: the MLPs are `gated`. `rotary`: queries and keys turned by their positions, in place of a
    learned vector added for each. `kv_heads`: heads of keys and values, each shared by a group of queries' heads.
    `bias`: whether the blocks' products have a b. `tied_head`: the embedding's W as the head's. `drop_rate`: of dropout
    after the embedding and in each branch. `remat`: keep each branch's input alone, and run the branch again in
    backward. `init`: as `dense`'s, of the blocks. LLaMA's form is norm "rms_norm", activation "silu", gate, rotary,
    bias=False. Raises `ValueError` for an unknown activation or norm, or sizes that do not go together.

    >>> net, tokens = gpt(11, 8, 2, 2, 6), jnp.zeros(6, int)
    >>> params = jax.eval_shape(net.init, jax.random.key(0), tokens)
    >>> jax.eval_shape(lambda params: net.forward(params, tokens)[0], params).shape
    (6, 11)
    """
    if norm not in NORMS:
        raise ValueError(f"a norm is one of {', '.join(NORMS)}, got {norm!r}")
    normed = partial(NORMS[norm], **({} if norm_epsilon is None else {"epsilon": norm_epsilon}))
    inner = hidden or 4 * width
    drop = [dropout(drop_rate)] if drop_rate else []
    into_sum = Divided(init, (2 * depth) ** 0.5)  # as many branches are summed: Radford et al., 2019, §2.3
    mixed = attention(heads, kv_heads=kv_heads, rotary=rotary, bias=bias, init=init, out_init=into_sum)
    if gate:
        mlp = gated(inner, width, activation=activation, bias=bias, init=init, out_init=into_sum)
    else:
        first, last = dense(inner, bias=bias, init=init), dense(width, bias=bias, init=into_sum)
        # Backward computes the activation again: a fifth of the memory for one more g.
        mlp = serial(first, remat_of(serial(activation_named(activation), last)))
    kept = remat_of if remat else lambda branch: branch
    branches = (mixed, per_position(mlp))
    block = serial(*(kept(pre_norm(serial(branch, *drop) if drop else branch, normed())) for branch in branches))
    begin = [embedding(vocab, width), *([] if rotary else [positional_embedding(positions)]), *drop]
    end = [normed(), per_position(dense(vocab, bias=False))]
    layers = [*begin, repeat(block, depth), *end]
    return tied(*layers, share="W", where=(0, len(layers) - 1)) if tied_head else serial(*layers)


@maker(
    kind="model",
    examples={
        "gpt2(vocab=11, positions=6, width=8, heads=2, depth=2), softmax_cross_entropy": "int32[3,6]<11, int32[3,6]<11"
    },
)
def gpt2(
    size: Literal["124M", "355M", "774M", "1558M"] = "124M",
    *,
    vocab: Count = 50_257,
    positions: Count = 1024,
    width: Count | None = None,
    heads: Count | None = None,
    depth: Count | None = None,
    drop_rate: float = 0.0,
    remat: bool = False,
) -> Layer:
    """GPT-2: biases, tanh's GELU, learned positions, one matrix as embedding and head.

    `size`: a published configuration, by its number of parameters; the other numbers stand in for those of it that they
    name. Takes (time,) token ids, gives (time, vocab) logits. Raises `ValueError` for another size.
    Source: Radford et al., Language Models are Unsupervised Multitask Learners, 2019.

    >>> params = jax.eval_shape(gpt2("124M").init, jax.random.key(0), jnp.zeros(8, int))
    >>> sum(p.size for p in jax.tree.leaves(params))
    124439808
    """
    if size not in GPT2_SIZES:
        raise ValueError(f"GPT-2 was published as {', '.join(GPT2_SIZES)}, got {size!r}")
    published = GPT2_SIZES[size]
    width, heads, depth = (own or of_size for own, of_size in zip((width, heads, depth), published, strict=True))
    options = {"activation": "gelu_tanh", "tied_head": True, "drop_rate": drop_rate, "remat": remat}
    return gpt(vocab, width, heads, depth, positions, **options)


@maker(kind="model", examples={"char_lstm(11, 8, 2), softmax_cross_entropy": "int32[3,6]<11, int32[3,6]<11"})
def char_lstm(vocab: Count, width: Count, depth: Count = 1, *, drop_rate: float = 0.0) -> Layer:
    """`depth` LSTM layers of `width` units over embedded tokens: (time,) token ids to (time, vocab) logits.

    `drop_rate`: of a dropout after each layer. Raises `ValueError` for less than one layer.
    Source: Graves, Generating Sequences With Recurrent Neural Networks, 2013.

    >>> char_lstm(65, 128, 2).parts[1:]
    (repeat(serial(lstm(128)), 2), per_position(dense(65)))
    """
    drop = [dropout(drop_rate)] if drop_rate else []
    unit = serial(lstm(width), *drop)
    return serial(
        embedding(vocab, width, init=jax.nn.initializers.normal(1.0)), repeat(unit, depth), per_position(dense(vocab))
    )
