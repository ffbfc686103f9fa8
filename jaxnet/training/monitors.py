"""Monitors by layer during training: norms of δ and of gradients, ratios of updates to weights, dead units.

Numbers come first layer first; of a block inside `repeat`, time by time.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxnet.backprop import backpropagate
from jaxnet.factors import Plain
from jaxnet.layer import Layer, Loss, Passing, Reading, Static, Tree, on_leaves
from jaxnet.lowering.products import accumulated
from jaxnet.readings import in_order, sum_over_examples
from jaxnet.traces import Recorded, recorded

Ranks = list[tuple[int, ...]]


def length(t: jax.Array, axes: tuple[int, ...] | None = None) -> jax.Array:
    """‖t‖ over some axes or all, summed in float32 or better."""
    wide = t.astype(accumulated(t.dtype))
    return jnp.sqrt(jnp.sum(wide * wide, axis=axes))


def where_params(at: Callable[[Passing], jax.Array]) -> Callable[[Passing], jax.Array]:
    """One number at each layer that has parameters, none at the others: vectors of length 1 and 0."""
    return lambda passing: at(passing)[None] if jax.tree.leaves(passing.params) else jnp.zeros((0,))


def _square(passing):
    wide = passing.d_out.astype(accumulated(passing.d_out.dtype))
    return sum_over_examples(None)(Plain(jnp.sum(wide * wide)))


sum_of_squares = Reading(where_params(_square), out_axes=None, additive=True, coupled=True)
"""Σ ‖δ‖² over the examples at every layer that has parameters."""

length_of_sum = Reading(
    where_params(lambda passing: length(sum_over_examples(None)(Plain(passing.d_out)))), out_axes=None, coupled=True
)
"""‖Σ δ‖ over the examples at every layer that has parameters: of the mean δ, since 1/n stands on each."""

_ranks = Reading(
    lambda passing: Static(tuple(p.ndim for p in jax.tree.leaves(passing.params))), out_axes=None, coupled=True
)


def ranks(net: Layer, loss: Loss, params: Tree, x: Tree, y: Tree) -> Ranks:
    """How many axes each parameter has inside its own layer, layer by layer; the axis of a stack is not counted.

    params, x, y: shapes and dtypes, x and y of one example. Parameters of the loss come after the network's.
    """
    found: list[Ranks] = []

    def batch(params, x, y):
        xs, ys = jax.tree.map(lambda t: t[None], (x, y))
        _, readings = backpropagate(net, loss, _ranks)(params, xs, ys, key=jax.random.key(0), train=True)
        found.append([node.value for node in jax.tree.leaves(readings, is_leaf=lambda node: isinstance(node, Static))])

    jax.eval_shape(batch, params, x, y)
    return found[0]


def by_layer(ranks: Ranks, tree: Tree) -> list[jax.Array]:
    """‖·‖ of each layer's part of a tree with the structure of the parameters; a stack keeps its axis."""
    arrays = iter(jax.tree.leaves(tree))
    found = []
    for layer in ranks:
        parts = [length(t, tuple(range(t.ndim - rank, t.ndim))) for rank, t in zip(layer, arrays, strict=False)]
        found.append(length(jnp.stack(parts, axis=-1), (-1,))[..., None] if parts else jnp.zeros((0,)))
    return found


def mean_delta_norms(net: Layer, loss: Loss) -> Callable[[Tree, jax.Array, jax.Array], jax.Array]:
    """(params, xs, ys) -> ‖1/n Σ δ‖ over these examples, by layer, in evaluation mode."""
    read = backpropagate(net, loss, length_of_sum)
    return lambda params, xs, ys: in_order(net, read(params, xs, ys)[1])


def _dead(passing):
    if not isinstance(passing.saved, Recorded):
        return jnp.zeros((0,))
    alive = (passing.saved.out != 0).astype(jnp.float32)
    within = alive.sum(axis=tuple(range(alive.ndim - 1)))  # of a picture: a channel anywhere in it
    return jnp.mean(sum_over_examples(None)(Plain(within)) == 0, dtype=jnp.float32)[None]


def dead_units(net: Layer, loss: Loss) -> Callable[[Tree, jax.Array, jax.Array], jax.Array]:
    """(params, xs, ys) -> of each activation the share of its units that are 0 for all of these examples."""

    def watched(layer: Layer) -> Layer:
        return recorded(layer) if layer.maker == "elementwise" else layer

    read = backpropagate(on_leaves(watched, net), loss, Reading(_dead, out_axes=None, coupled=True))
    return lambda params, xs, ys: in_order(net, read(params, xs, ys)[1])
