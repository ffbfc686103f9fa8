"""Mistakes in pooling and in embeddings as jaxnet has them."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxnet.checking.corpus.case import Rules, gaussian, integers, normal
from jaxnet.layers import average_pool, embedding, max_pool, positional_embedding, rotary
from jaxnet.layers.embedding import angles, turned
from jaxnet.layers.pooling import seen, to_places
from jaxnet.layers.windows import window_over
from jaxnet.lowering.windows import pieces, put_back

RULES = Rules()

# (side, channels)
SIDES = ((7, 2), (9, 3), (13, 4))
image = normal(lambda s, c: (s, s, c), sizes=SIDES)


def window(x, padding="VALID"):
    """3 × 3 places, every second position."""
    return window_over(x.shape[:-1], (3, 3), (2, 2), (1, 1), padding)


def winners(x):
    """The tap that has the maximum, at each position."""
    return jnp.argmax(jnp.stack(pieces(x, window(x), fill=-jnp.inf)), axis=0)


def overwritten(d, winner, *, window, shape):
    """`to_places` with a place that two windows see set twice, not added to."""
    dx = jnp.zeros(shape, d.dtype)
    for number, tap in enumerate(window.taps()):
        here = jnp.ones_like(d) if winner is None else (winner == number).astype(d.dtype)
        dx = jnp.where(put_back(here, tap, window, shape[:-1]) > 0, put_back(d, tap, window, shape[:-1]), dx)
    return dx


def greatest(x):
    """The maximum of overlapping windows."""
    return max_pool(3, stride=2).forward((), x)[0]


@RULES.back_of(greatest, image)
def greatest_back(args, d):
    (x,) = args
    return (to_places(d, winners(x), window=window(x), shape=x.shape),)


def average(x):
    """The mean of overlapping windows."""
    return average_pool(3, stride=2).forward((), x)[0]


@RULES.back_of(average, image)
def average_back(args, d):
    (x,) = args
    return (to_places(d / 9, None, window=window(x), shape=x.shape),)


def edged(x):
    """The mean of windows that reach beyond the edge, of the places inside."""
    return average_pool(3, stride=2, padding="SAME").forward((), x)[0]


@RULES.back_of(edged, image)
def edged_back(args, d):
    (x,) = args
    at = window(x, "SAME")
    dx = to_places(d / seen(at, x.shape, d.dtype), None, window=at, shape=x.shape)
    return (dx,)


# (tokens, vocabulary, width)
TEXTS = ((9, 4, 3), (14, 6, 5), (24, 11, 8))


def text(size, seed, dtype):
    """A table and tokens, of which each comes more than once."""
    n, vocab, width = TEXTS[size]
    rng = np.random.default_rng(seed)
    return gaussian(rng, (vocab, width), dtype), integers(rng, (n,), vocab)


def looked_up(W, tokens):
    """Rows of W."""
    return embedding(*W.shape).forward({"W": W}, tokens)[0]


def added(W, tokens, delta):
    """Σ e_token δᵀ."""
    return jnp.zeros_like(W).at[tokens].add(delta)


@RULES.back_of(looked_up, text)
def looked_up_back(args, delta):
    W, tokens = args
    return added(W, tokens, delta), None


def placed(W, x):
    """Learned positions, of which the text uses the first."""
    return positional_embedding(len(W)).forward({"W": W}, x)[0]


@RULES.back_of(placed, normal(lambda n, v, w: (n + 2, w), lambda n, v, w: (n, w), sizes=TEXTS))
def placed_back(args, delta):
    W, x = args
    return jnp.pad(delta, ((0, len(W) - len(x)), (0, 0))), delta


def turning(x):
    """Rotary positions of heads: (time, heads, width)."""
    return rotary().forward((), x)[0]


@RULES.back_of(turning, normal(lambda n, v, w: (n, 2, 2 * w), sizes=TEXTS))
def turning_back(args, delta):
    at = angles(len(delta), delta.shape[-1] // 2, 10_000.0, delta.dtype)
    return (turned(delta, at, back=True),)


OVERLAP = "overwrit|instead of add|not add"
MISTAKES: tuple[tuple[str, ...], ...] = (
    ("greatest", "78 overlapping maxima overwrite each other", "to_places", "overwritten", "[0]", OVERLAP),
    ("average", "79 overlapping means overwrite each other", "to_places", "overwritten", "[0]", OVERLAP),
    ("edged", "80 average pool divided by k² at the edge", "d / seen(at, x.shape, d.dtype)", "d / 9", "[0]",
     "9|largest|greatest"),
    ("greatest", "81 maximum's error to the whole window", "winners(x)", "None", "[0]", "mask|left out|missing|every"),
    ("edged", "82 average pool's padding at the wrong end", "return (dx,)",
     "return (jnp.concatenate([dx[1:], jnp.zeros_like(dx[:1])]),)", "[0]", "shift|pixel"),
    ("looked_up", "83 embedding: mean of a token's errors", "return added(W, tokens, delta)",
     "counts = jnp.zeros(len(W), delta.dtype).at[tokens].add(jnp.ones(len(tokens), delta.dtype))\n"
     "    return added(W, tokens, delta) / jnp.maximum(counts, 1)[:, None]", "[0]",
     "mean|averag|number of times|count"),
    ("looked_up", "84 embedding: row 0 taken for padding", "tokens, delta)", "tokens, delta).at[0].set(0)", "[0]",
     "row 0", "zero"),
    ("looked_up", "85 embedding: averaged over the text", "tokens, delta)", "tokens, delta) / len(tokens)", "[0]",
     "1/", "tokens"),
    ("looked_up", "86 embedding: the next token's row", "return added(W, tokens, delta)",
     "shifted = jnp.concatenate([delta[1:], jnp.zeros_like(delta[:1])])\n    return added(W, tokens, shifted)", "[0]",
     "shift"),
    ("placed", "87 positions counted from 1", "(0, len(W) - len(x))", "(1, len(W) - len(x) - 1)", "[0]", "shift"),
    ("turning", "88 rotary: turned on, not back", ", back=True", "", "[0]", "sign|sin"),
    ("turning", "89 rotary: turned back from position t + 1",
     "len(delta), delta.shape[-1] // 2, 10_000.0, delta.dtype)",
     "len(delta) + 1, delta.shape[-1] // 2, 10_000.0, delta.dtype)[1:]", "[0]", "shift|step"),
)  # fmt: skip
