"""Angles in degrees, by layer, between feedback and backpropagation: of the gradients, and of the matrices."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from jaxnet.backprop import backpropagate
from jaxnet.factors import Plain
from jaxnet.feedback import Sent, by_transpose, watched
from jaxnet.layer import Layer, Loss, Passing, Reading, Tree
from jaxnet.lowering.products import accumulated
from jaxnet.readings import Beside, bare, in_order, pair, sum_over_examples, total
from jaxnet.training.monitors import Ranks, length, where_params


def degrees(apart: jax.Array, together: jax.Array) -> jax.Array:
    """The angle θ of two unit vectors from ‖u − v‖ and ‖u + v‖: tan θ/2 is their ratio. Exact near 0° too.

    Source: Kahan, How Futile are Mindless Assessments of Roundoff, 2006, §12.
    """
    return jnp.rad2deg(2 * jnp.arctan2(apart, together))


def unit(t: jax.Array) -> jax.Array:
    """t / ‖t‖ over the last axis; 0 where t is."""
    wide = t.astype(accumulated(t.dtype))
    norm = length(wide, (-1,))[..., None]
    return wide / jnp.where(norm > 0, norm, 1)


def between(ranks: Ranks, got: Tree, right: Tree) -> list[jax.Array]:
    """The angle of each layer's parts of two trees of gradients; a stack keeps its axis. 90° where one is zero."""
    arrays: Iterator = zip(jax.tree.leaves(got), jax.tree.leaves(right), strict=True)
    found = []
    for layer in ranks:
        sides: list[list[jax.Array]] = [[], []]
        for rank, both in zip(layer, arrays, strict=False) if layer else ():
            for side, t in zip(sides, both, strict=True):
                side.append(t.reshape(*t.shape[: t.ndim - rank], -1))
        if not layer:
            found.append(jnp.zeros((0,)))
            continue
        u, v = (unit(jnp.concatenate(side, axis=-1)) for side in sides)
        found.append(degrees(length(u - v, (-1,)), length(u + v, (-1,)))[..., None])
    return found


def _sent(sign: float, by_itself: float) -> Callable[[Passing], jax.Array]:
    """Σ ‖u ± v‖² over the examples: u the signal sent back, v the one by Wᵀ; `by_itself` where both are the same."""

    def at(passing):
        if not isinstance(passing.saved, Sent):
            return jnp.asarray(by_itself)
        u, v = (unit(t.reshape(-1)) for t in (passing.saved.instead, passing.saved.right))
        return sum_over_examples(None)(Plain(jnp.sum((u + sign * v) ** 2)))

    return where_params(at)


_apart = Reading(_sent(-1.0, 0.0), out_axes=None, coupled=True)
_together = Reading(_sent(1.0, 1.0), out_axes=None, coupled=True)


def with_zero_B(gradients: Tree, like: Tree) -> Tree:
    """Gradients with 0 for each B that is learned in `like`."""

    def of(node, g):
        return Beside(g, jax.tree.map(jnp.zeros_like, node.own)) if isinstance(node, Beside) else g

    return jax.tree.map(of, like, gradients, is_leaf=lambda node: isinstance(node, Beside))


def angles(net: Layer, loss: Loss, ranks: Ranks) -> Callable[[Tree, jax.Array, jax.Array], dict[str, jax.Array]]:
    """(params, xs, ys) -> angles by layer, in degrees, over these examples in evaluation mode.

    - `update_angles`: between the gradient with the network's feedback path, and the gradient.
    - `feedback_angles`: between the feedback matrix and Wᵀ, as vectors of all their entries; of `direct`,
      without a matrix for Wᵀ, between B e and Wᵀ δ (the mean cosine over the examples). 0° where it is Wᵀ.
    """
    gradient = backpropagate(by_transpose(net), loss, total)
    fed = backpropagate(watched(net), loss, pair(total, _apart, _together))

    def of(params, xs, ys):
        _, right = gradient(bare(params), xs, ys)
        _, (got, apart, together) = fed(params, xs, ys)
        return {
            "update_angles": in_order(net, between(ranks, with_zero_B(bare(got), got), with_zero_B(right, got))),
            "feedback_angles": degrees(jnp.sqrt(in_order(net, apart)), jnp.sqrt(in_order(net, together))),
        }

    return of
