"""Mistakes in pooling and in embeddings as jaxnet has them."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxnet.checking.corpus.case import Case, entering, gaussian, integers, normal
from jaxnet.layers import average_pool, embedding, max_pool, positional_embedding, rotary
from jaxnet.layers.embedding import angles, turned
from jaxnet.layers.pooling import seen, to_places
from jaxnet.layers.windows import window_over
from jaxnet.lowering.windows import pieces, put_back

CASES: list[Case] = []
wrong = entering(CASES)


def greatest(x):
    """The maximum of overlapping windows."""
    return max_pool(3, stride=2).forward((), x)[0]


def average(x):
    """The mean of overlapping windows."""
    return average_pool(3, stride=2).forward((), x)[0]


def edged(x):
    """The mean of windows that reach beyond the edge, of the places inside."""
    return average_pool(3, stride=2, padding="SAME").forward((), x)[0]


# (side, channels)
SIDES = ((7, 2), (9, 3), (13, 4))
image = normal(lambda s, c: (s, s, c), sizes=SIDES)


def window(x, padding="VALID"):
    """3 × 3 places, every second position."""
    return window_over(x.shape[:-1], (3, 3), (2, 2), (1, 1), padding)


def winners(x):
    """The tap that has the maximum, at each position."""
    return jnp.argmax(jnp.stack(pieces(x, window(x), fill=-jnp.inf)), axis=0)


def overwritten(d, winner, at, shape):
    """`to_places` with a place that two windows see set twice, not added to."""
    dx = jnp.zeros(shape, d.dtype)
    for number, tap in enumerate(at.taps()):
        here = jnp.ones_like(d) if winner is None else (winner == number).astype(d.dtype)
        dx = jnp.where(put_back(here, tap, at, shape[:-1]) > 0, put_back(d, tap, at, shape[:-1]), dx)
    return dx


OVERLAP = "overwrit|instead of add|not add"


@wrong(greatest, image, OVERLAP, ("[0]",), "78 overlapping maxima overwrite each other")
def _(args, d):
    (x,) = args
    return (overwritten(d, winners(x), window(x), x.shape),)


@wrong(average, image, OVERLAP, ("[0]",), "79 overlapping means overwrite each other")
def _(args, d):
    (x,) = args
    return (overwritten(d / 9, None, window(x), x.shape),)


@wrong(edged, image, "9|largest|greatest", ("[0]",), "80 average pool divided by k² at the edge")
def _(args, d):
    (x,) = args
    return (to_places(d / 9, None, window=window(x, "SAME"), shape=x.shape),)


@wrong(greatest, image, "mask|left out|missing|every", ("[0]",), "81 maximum's error to the whole window")
def _(args, d):
    (x,) = args
    return (to_places(d, None, window=window(x), shape=x.shape),)


@wrong(edged, image, "shift|pixel", ("[0]",), "82 average pool's padding at the wrong end")
def _(args, d):
    (x,) = args
    at = window(x, "SAME")
    dx = to_places(d / seen(at, x.shape, d.dtype), None, window=at, shape=x.shape)
    return (jnp.concatenate([dx[1:], jnp.zeros_like(dx[:1])]),)


# ---------------------------------------------------------------------------------------------------------- embeddings

# (tokens, vocabulary, width)
TEXTS = ((9, 4, 3), (14, 6, 5), (24, 11, 8))


def looked_up(W, tokens):
    """Rows of W."""
    return embedding(*W.shape).forward({"W": W}, tokens)[0]


def text(size, seed, dtype):
    """A table and tokens, of which each comes more than once."""
    n, vocab, width = TEXTS[size]
    rng = np.random.default_rng(seed)
    return gaussian(rng, (vocab, width), dtype), integers(rng, (n,), vocab)


def added(W, tokens, delta):
    """Σ e_token δᵀ."""
    return jnp.zeros_like(W).at[tokens].add(delta)


@wrong(looked_up, text, "mean|averag|number of times|count", ("[0]",), "83 embedding: mean of a token's errors")
def _(args, delta):
    W, tokens = args
    counts = jnp.zeros(len(W), delta.dtype).at[tokens].add(jnp.ones(len(tokens), delta.dtype))
    return added(W, tokens, delta) / jnp.maximum(counts, 1)[:, None], None


@wrong(looked_up, text, ("row 0", "zero"), ("[0]",), "84 embedding: row 0 taken for padding")
def _(args, delta):
    W, tokens = args
    return added(W, tokens, delta).at[0].set(0), None


@wrong(looked_up, text, ("1/", "tokens"), ("[0]",), "85 embedding: averaged over the text")
def _(args, delta):
    W, tokens = args
    return added(W, tokens, delta) / len(tokens), None


@wrong(looked_up, text, "shift", ("[0]",), "86 embedding: the next token's row")
def _(args, delta):
    W, tokens = args
    shifted = jnp.concatenate([delta[1:], jnp.zeros_like(delta[:1])])
    return added(W, tokens, shifted), None


def placed(W, x):
    """Learned positions, of which the text uses the first."""
    return positional_embedding(len(W)).forward({"W": W}, x)[0]


positions = normal(lambda n, v, w: (n + 2, w), lambda n, v, w: (n, w), sizes=TEXTS)


@wrong(placed, positions, "shift", ("[0]",), "87 positions counted from 1")
def _(args, delta):
    W, x = args
    return jnp.pad(delta, ((1, len(W) - len(x) - 1), (0, 0))), delta


def turning(x):
    """Rotary positions of heads: (time, heads, width)."""
    return rotary().forward((), x)[0]


heads = normal(lambda n, v, w: (n, 2, 2 * w), sizes=TEXTS)


@wrong(turning, heads, "sign|sin", ("[0]",), "88 rotary: turned on, not back")
def _(args, delta):
    at = angles(len(delta), delta.shape[-1] // 2, 10_000.0, delta.dtype)
    return (turned(delta, at),)


@wrong(turning, heads, "shift|step", ("[0]",), "89 rotary: turned back from position t + 1")
def _(args, delta):
    at = angles(len(delta) + 1, delta.shape[-1] // 2, 10_000.0, delta.dtype)
    return (turned(delta, at[1:], back=True),)
