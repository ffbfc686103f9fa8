"""The head of a network and its loss, a few positions of the sequence at a time: the logits are never whole.

With a large vocabulary the logits, (time, vocab), are the largest array of a network, and δ of their size follows. But
the turn from forward to backward needs no more than one position's logits: so a piece of the sequence goes through the
head forward, the loss and the head backward, and the next piece follows,

    z = W x,  δ = softmax(z) − e_y,  dx = Wᵀ δ,  ∇_W C += Σ δ xᵀ        x: (piece, width), z: (piece, vocab)

No derivative is written here: these are the layer's and the loss's own. The pieces' gradients add up for a reading that
is linear in them (`total`, `product`); any other is read once of the whole sequence, with all of its logits.
"""

from collections.abc import Callable
from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxnet.combinators import per_position
from jaxnet.factors import dataclass_tree
from jaxnet.layer import Layer, Loss, Reading, ShapeError, Tree
from jaxnet.layers import Initializer, dense
from jaxnet.losses import softmax_cross_entropy
from jaxnet.registry import maker


@maker(configs=False, examples={"in_chunks(per_position(dense(7)), chunks=3)": "float32[5,6], int32[5]<7"})
def in_chunks(head: Layer, loss: Loss = softmax_cross_entropy, *, chunks: int = 8) -> Loss:
    """`loss` of head(x) for a sequence x: (time, …), in `chunks` pieces of the sequence.

    `head`: a layer that works position by position, without randomness. `loss`: without parameters, of a sequence's
    class labels y: (time,). Parameters: the head's.
    Raises `ValueError` for less than one chunk or a loss with parameters; its turn `ShapeError` for another y.

    >>> loss, x = in_chunks(per_position(dense(7)), chunks=2), jnp.ones((5, 6))
    >>> jax.tree.map(jnp.shape, initialize(identity, loss, jax.random.key(0), x))
    ((), {'W': (7, 6), 'b': (7,)})
    """
    one_at_least(chunks)
    without_params(loss)

    def turn(params, x, y, weight, read):
        return through(head, loss, chunks, params, x, y, weight, read)

    return Loss(f"{loss.name} of {head.name}", turn, loss.terms, head.init)


@maker(configs=False, examples={"linear_cross_entropy(7, chunks=2, bias=True)": "float32[5,6], int32[5]<7"})
def linear_cross_entropy(
    vocab: int, *, chunks: int = 8, bias: bool = False, init: str | Initializer | Callable = "lecun_normal"
) -> Loss:
    """Softmax cross-entropy of z = W x + b for a sequence x: (time, width), in `chunks` pieces; logits never whole.

    `vocab`: the classes. y: (time,) class labels. `bias`: whether there is a b. `init`: as of `dense`.
    Parameters: `{"W": (vocab, width), "b": (vocab,)}`.
    Raises as `in_chunks`. For a network that ends in its own head, or shares it with its embedding: `fused_head`.

    >>> loss, x = linear_cross_entropy(7), jnp.ones((5, 6))
    >>> jax.tree.map(jnp.shape, initialize(identity, loss, jax.random.key(0), x))
    ((), {'W': (7, 6)})
    """
    return in_chunks(per_position(dense(vocab, bias=bias, init=init)), chunks=chunks)


def fused_head(net: Layer, loss: Loss = softmax_cross_entropy, *, chunks: int = 8) -> tuple[Layer, Loss]:
    """A network for sequences and its loss, fused at its last layer: logits of shape (time, vocab) are never whole.

    Returns the pair (network, loss) in place of (`net`, `loss`): same cost, same gradients, same parameters, a W that
    is `tied` with the embedding's included. The network's output is then not yet the logits: predict with `net` itself.
    `net`: its last layer works position by position, `per_position(dense(vocab))`. `chunks`: pieces of the sequence.
    Raises `ValueError` for a network that ends otherwise, less than one chunk, or a loss with parameters.
    """
    one_at_least(chunks)
    without_params(loss)
    return with_last(net, deferred_head), deferred_loss(loss, chunks)


@maker(configs=False)
def deferred_loss(loss: Loss, chunks: int) -> Loss:
    """`loss` behind a `deferred_head`: it goes through the head itself."""

    def turn(params, deferred, y, weight, read):
        if read.linear:
            cost, dx, reading = through(deferred.head, loss, chunks, deferred.params, deferred.x, y, weight, read)
            return cost, Read(dx, reading), ()
        z, saved = deferred.head.forward(deferred.params, deferred.x)
        cost, delta, _ = loss.turn((), z, y, weight, read)
        return cost, Unread(saved, delta), ()

    return Loss(f"fused {loss.name}", turn, loss.terms)


def one_at_least(chunks: int) -> None:
    """Raises `ValueError` for less than one chunk."""
    if chunks < 1:
        raise ValueError(f"a sequence is taken in at least one chunk, got {chunks}")


def without_params(loss: Loss) -> None:
    """Raises `ValueError` for a loss with parameters."""
    if loss.init is not None:
        raise ValueError(f"{loss.name} has parameters of its own: a head is fused with a loss that has none")


# ------------------------------------------------------------------------------------- a piece at a time


def through(head: Layer, loss: Loss, chunks: int, params: Tree, x, y, weight, read: Reading):
    """Cost, dx and readings: forward through the head, the turn, and back through it."""
    y = jnp.asarray(y)
    if x.ndim < 1 or y.shape != x.shape[:1] or not jnp.issubdtype(y.dtype, jnp.integer):
        raise ShapeError(
            f"{loss.name} in chunks takes class labels of shape {x.shape[:1]} for a sequence of shape {x.shape}, "
            f"got {y.dtype} {y.shape}"
        )
    weights = jnp.broadcast_to(jnp.asarray(weight), y.shape)
    if not isinstance(y, Tracer):  # the scan below gives labels no values, so they are checked here
        z = jax.eval_shape(lambda: head.forward(params, x)[0])
        loss.turn((), jnp.zeros(z.shape, z.dtype), y, weights, read)

    def piece(x, y, weights):
        z, saved = head.forward(params, x)
        cost, delta, _ = loss.turn((), z, y, weights, read)
        dx, reading = head.backward(params, saved, delta, read)
        return (cost, reading), dx

    if not read.linear or chunks == 1 or len(y) == 1:
        (cost, reading), dx = piece(x, y, weights)
        return cost, dx, reading
    pieces = cut(x, 0, chunks), cut(y, 0, chunks), cut(weights, 0, chunks)
    first = jax.eval_shape(lambda pieces: piece(*(t[0] for t in pieces))[0], pieces)

    def add(so_far, pieces):
        of_piece, dx = piece(*pieces)
        return jax.tree.map(jnp.add, so_far, of_piece), dx

    nothing = jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), first)
    (cost, reading), dx = jax.lax.scan(add, nothing, pieces)
    return cost, dx.reshape(-1, *x.shape[1:])[: len(x)], reading


def cut(t: jax.Array, fill, chunks: int) -> jax.Array:
    """The positions in `chunks` equal pieces, the last one filled up."""
    size = -(-len(t) // chunks)
    missing = chunks * size - len(t)
    filled = jnp.pad(t, ((0, missing), *((0, 0),) * (t.ndim - 1)), constant_values=fill) if missing else t
    return filled.reshape(chunks, size, *t.shape[1:])


# ------------------------------------------------------------------------------ a network that ends in its head


@dataclass_tree
class Deferred:
    """The head and its input, for the loss to go through."""

    x: Any
    params: Any
    head: Layer = field(metadata={"static": True})


@dataclass_tree
class Read:
    """dx and readings of a head that the loss has gone back through."""

    dx: Any
    reading: Any


@dataclass_tree
class Unread:
    """The saved values and δ of a head that is still to be gone back through."""

    saved: Any
    delta: Any


@maker(configs=False)
def deferred_head(head: Layer) -> Layer:
    """A layer that hands its input to the loss, and takes the readings from it. Parameters: the head's."""

    def forward(params, x, key=None, train=False):
        return Deferred(x, params, head), ()

    def backward(params, saved, d_out, read):
        if isinstance(d_out, Read):
            return d_out.dx, d_out.reading
        return head.backward(params, d_out.saved, d_out.delta, read)

    return Layer(f"deferred {head.name}", head.init, forward, backward, (head,), deferred_head)


def with_last(net: Layer, change: Callable[[Layer], Layer]) -> Layer:
    """The network with `change(layer)` for its last layer, which works position by position."""
    if net.maker == "per_position":
        return change(net)
    if net.maker in ("serial", "tied") and net.rebuild is not None and net.parts:
        *others, last = net.parts
        return net.rebuild(*others, with_last(last, change))
    raise ValueError(
        f"a head is fused where a network ends in a layer that works position by position, got {net!r}: "
        "end it with per_position(dense(vocab))"
    )
