"""Token and position embeddings.

    out_t = W[i_t]                  W: (vocab, width)   i_t: a token id, from 0 to vocab − 1
    ∇_W C = Σₜ e_{i_t} δ_tᵀ         δ_t = ∂C/∂out_t added to row i_t; the rows of no token stay zero

    out_t = x_t + W[t]              learned positions, W: (positions, width)
    out_t = x_t + s_t               sines and cosines of t at falling frequencies: nothing to learn

    (u, v) ↦ (u cos tθᵢ − v sin tθᵢ, u sin tθᵢ + v cos tθᵢ)      rotary positions: the i-th pair of x_t, turned by tθᵢ
    The Jacobian is that rotation, so ∂C/∂(u, v) is ∂C/∂out turned back: by −tθᵢ.

Sources: Vaswani et al., Attention Is All You Need, 2017, §3.5; Su et al., RoFormer, 2021, (34).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.nn.initializers import normal
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from jaxnet.factors import Factor, Outer, Plain, dataclass_tree
from jaxnet.layer import Layer, ShapeError, fits_input, leaf, no_params
from jaxnet.layers.initializers import Initializer, initializer
from jaxnet.lowering.products import accumulated
from jaxnet.lowering.sharding import explicit_sharding
from jaxnet.registry import Count, maker, row

NARROW = normal(0.02)  # as published transformers begin: Radford et al., GPT-2's code, 2019


@dataclass_tree
class Rows(Factor):
    """∇_W C = Σ e_token δᵀ over all tokens: each δ stands in the row of its token, of `rows` in all."""

    tokens: Any  # (…) from 0 to rows − 1; others add nothing
    delta: Any  # (…, width)
    rows: int = field(metadata={"static": True})

    def flat(self):
        """The tokens and their δ as a vector and a matrix, in the dtype that sums are taken in."""
        delta = self.delta.reshape(-1, self.delta.shape[-1])
        return self.tokens.reshape(-1), delta.astype(accumulated(delta.dtype))

    def multiply(self, out_sharding=None):
        tokens, delta = self.flat()
        nothing = jnp.zeros((self.rows, delta.shape[-1]), delta.dtype)
        return nothing.at[tokens].add(
            delta, mode="drop", wrap_negative_indices=False, out_sharding=out_sharding
        )  # fmt: skip

    def summed_once_more(self):
        return self

    def projected(self, P):
        # Pᵀ Σ e_token δᵀ = Σ P[token] δᵀ
        tokens, delta = self.flat()
        return Outer(P.at[tokens].get(mode="fill", fill_value=0, wrap_negative_indices=False), delta, sums=1)

    def gram(self, other):
        tokens, delta = self.flat()
        if isinstance(other, Outer):  # Σₜₛ δ′ₛ[iₜ] (δₜ·aₛ): of a tied head
            outs, ins = other.rows()
            picked = outs.astype(delta.dtype).at[:, tokens].get(mode="fill", fill_value=0, wrap_negative_indices=False)
            return jnp.sum(picked.T * (delta @ ins.astype(delta.dtype).T))
        # Σₜₛ [iₜ = i′ₛ] δₜ·δ′ₛ, where that is less work than filling the rows.
        if not isinstance(other, Rows) or len(tokens) * len(other.flat()[0]) >= self.rows * delta.shape[-1]:
            return super().gram(other)
        others, other_delta = other.flat()
        counted = (tokens >= 0) & (tokens < self.rows)
        same = (tokens[:, None] == others[None]) & counted[:, None]
        return jnp.sum(jnp.where(same, delta @ other_delta.T, 0.0))


def rows_sharding(W, tokens) -> NamedSharding | None:
    """How rows of W lie, of tokens that are sharded, where types carry shardings: a look-up cannot tell by itself."""
    if (own := explicit_sharding(W)) is None:
        return None
    ids = explicit_sharding(tokens)
    return NamedSharding(own.mesh, PartitionSpec(*(ids.spec if ids else [None] * tokens.ndim), own.spec[1]))


def in_vocabulary(name: str, tokens, vocab: int) -> None:
    """Raises `ShapeError` for ids that are no integers, `ValueError` for one outside where its value is known."""
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ShapeError(f"{name} takes token ids, an array of integers, got {tokens.dtype} {tokens.shape}")
    if isinstance(tokens, jax.ShapeDtypeStruct | Tracer) or not tokens.size:
        return
    values = np.asarray(tokens)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= vocab:
        raise ValueError(
            f"{name} takes token ids from 0 to {vocab - 1}, got {low if low < 0 else high}: "
            "choose a vocabulary that holds all ids of the data"
        )


@maker(examples={"embedding(9, 4)": "int32[5]<9"}, axes={"W": "vocab width"})
def embedding(vocab: Count, width: Count, *, init: str | Initializer | Callable = NARROW) -> Layer:
    """out = W[token]: a vector of `width` for each token id; ids of any shape (…) give (…, width).

    `vocab`: how many ids there are. `init`: as of `dense`, by default N(0, 0.02²). Parameters: `{"W": (vocab, width)}`.
    out has W's dtype, but float32 where that is narrower: the residual stream begins here.
    Raises `ShapeError` for ids that are no integers, `ValueError` for an id outside the vocabulary. Inside `jit` and
    `vmap` values cannot raise: there its vector is NaN (JAX's own look-up would take the nearest row).

    >>> net, x = embedding(5, 3), jnp.array([1, 1])
    >>> params = net.init(jax.random.key(0), x)
    >>> out, back = vjp(net)(params, x)
    >>> grads, dx = back(jnp.ones_like(out))
    >>> grads["W"].sum(1).tolist()
    [0.0, 6.0, 0.0, 0.0, 0.0]
    """
    name = f"embedding {vocab}×{width}"
    begin = initializer(init)

    def accepts(tokens, params):
        in_vocabulary(name, tokens, vocab)
        if params is not None and params["W"].shape != (vocab, width):
            raise ShapeError(f"{name} takes W of shape {(vocab, width)}, got {params['W'].shape}")

    def new(key, tokens):
        return {"W": begin.W(key, (vocab, width), jnp.float32)}

    def forward(params, tokens, key=None, train=False):
        W = params["W"]
        out = W.at[tokens].get(
            mode="fill", fill_value=jnp.nan, wrap_negative_indices=False, out_sharding=rows_sharding(W, tokens)
        )
        return out.astype(accumulated(W.dtype)), tokens

    def backward(params, tokens, delta):  # out = W[token]
        no_slope = jnp.zeros(tokens.shape, delta.dtype)  # an id has no neighbours to differ from
        return no_slope, {"W": Rows(tokens, delta, vocab)}

    return leaf(name, new, forward, backward, accepts)


def is_sequence(name: str, x) -> None:
    """Raises `ShapeError` for an input that is no sequence of vectors."""
    if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ShapeError(f"{name} takes a sequence of vectors, (time, width), got {x.dtype} of shape {x.shape}")


@maker(examples={"positional_embedding(7)": "float32[5,6]"}, axes={"W": "time width"})
def positional_embedding(length: Count, *, init: str | Initializer | Callable = NARROW) -> Layer:
    """out_t = x_t + W[t]: a learned vector for each position of a sequence x: (time, width).

    `length`: the most positions there may be. `init`: as of `dense`, by default N(0, 0.02²).
    Parameters: `{"W": (length, width)}`.
    Raises `ShapeError` for a longer sequence, or an input that is no sequence; `ValueError` for a length below 1.

    >>> net, x = positional_embedding(7), jnp.ones((5, 2))
    >>> params = net.init(jax.random.key(0), x)
    >>> params["W"].shape, net.forward(params, x)[0].shape
    ((7, 2), (5, 2))
    """
    name = f"positional_embedding {length}"
    begin = initializer(init)

    def accepts(x, params):
        is_sequence(name, x)
        if len(x) > length:
            raise ShapeError(
                f"{name} has {length} positions, got a sequence of {len(x)}: cut it, or initialise with more positions"
            )
        fits_input(name, params, "W", (length, x.shape[1]), x)

    def new(key, x):
        return {"W": begin.W(key, (length, x.shape[1]), x.dtype)}

    def forward(params, x, key=None, train=False):
        return x + params["W"][: len(x)].astype(x.dtype), ()

    def backward(params, _, delta):  # out_t = x_t + W[t]
        return delta, {"W": Plain(jnp.pad(delta, ((0, length - len(delta)), (0, 0))))}

    return leaf(name, new, forward, backward, accepts)


def _frequencies(pairs: int, base: float, dtype) -> Float[Array, " pairs"]:
    """θᵢ = base^(−i/pairs)."""
    return jnp.asarray(base, dtype) ** (-jnp.arange(pairs, dtype=dtype) / pairs)


def angles(time: int, pairs: int, base: float, dtype) -> Float[Array, "time pairs"]:
    """tθᵢ for each position t and pair i, in float32 or better."""
    wide = accumulated(dtype)
    return jnp.outer(jnp.arange(time, dtype=wide), _frequencies(pairs, base, wide))


def _even(name: str, width: int) -> None:
    if width % 2:
        raise ShapeError(f"{name} takes vectors of an even width, whose entries make pairs, got a width of {width}")


def _sinusoidal_accepts(x, params):
    is_sequence("sinusoidal_positions", x)
    _even("sinusoidal_positions", x.shape[1])


def _sinusoidal_forward(params, x, key=None, train=False):
    at = angles(len(x), x.shape[1] // 2, 10_000.0, x.dtype)
    s = jnp.stack([jnp.sin(at), jnp.cos(at)], axis=-1).reshape(x.shape)
    return x + s.astype(x.dtype), ()


sinusoidal_positions = row(
    leaf("sinusoidal_positions", no_params, _sinusoidal_forward, lambda _, __, d: (d, ()), _sinusoidal_accepts),
    *(__name__, "float32[5,6]"),
)
"""out_t = x_t + (sin tθ₀, cos tθ₀, sin tθ₁, …), θᵢ = 10000^(−2i/width), of a sequence x: (time, width), width even.

>>> print(np.asarray(sinusoidal_positions.forward((), jnp.zeros((2, 2)))[0]).round(3))
[[0.    1.   ]
 [0.841 0.54 ]]
"""


def turned(
    x: Float[Array, "time *heads width"], at: Float[Array, "time pairs"], back: bool = False
) -> Float[Array, "time *heads width"]:
    """Each pair (xᵢ, xᵢ₊ₙ) of the width 2n turned by its angle, or `back`, in float32 or better."""
    at = at.reshape(len(at), *(1,) * (x.ndim - 2), -1)
    cos, sin = jnp.cos(at), -jnp.sin(at) if back else jnp.sin(at)
    u, v = jnp.split(x.astype(at.dtype), 2, axis=-1)
    return jnp.concatenate([u * cos - v * sin, u * sin + v * cos], axis=-1).astype(x.dtype)


@maker(examples={"rotary()": "float32[5,2,6]"})
def rotary(base: float = 10_000.0) -> Layer:
    """Rotary positions: the pair (xᵢ, xᵢ₊ₙ) of x_t turned by t·base^(−i/n), of x: (time, …, 2n).

    Inner products of two turned vectors depend on the distance of their positions alone. `attention(…, rotary=True)`
    turns its queries and keys so. RoFormer pairs neighbours; halves, as here and in Llama's weights, are the same up
    to the order of the entries.
    Raises `ShapeError` for an odd width or an input without positions, `ValueError` for a base that is not positive.

    >>> x = jnp.ones((3, 4))
    >>> out, back = vjp(rotary())((), x)
    >>> bool(jnp.allclose(back(out)[1], x, atol=1e-6))
    True
    """
    if base <= 0:
        raise ValueError(f"rotary takes a positive base, got {base}")
    name = "rotary"

    def accepts(x, params):
        if x.ndim < 2:
            raise ShapeError(f"{name} takes a sequence, (time, …, width), got shape {x.shape}")
        _even(name, x.shape[-1])

    def at(x):
        return angles(len(x), x.shape[-1] // 2, base, x.dtype)

    def forward(params, x, key=None, train=False):
        return turned(x, at(x)), ()

    def backward(params, _, delta):  # out = R x, R a rotation: Rᵀ turns back
        return turned(delta, at(delta), back=True), ()

    return leaf(name, no_params, forward, backward, accepts)
