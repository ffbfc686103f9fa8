"""Each example's factors, kept after the backward pass: any weighted sum of the gradients without a second one.

    Σ_x c_x ∇_W C_x = Σ_x (c_x δ_x) a_xᵀ        ⟨∇_W C_x, ∇_W C_x′⟩ = (δ_x·δ_x′)(a_x·a_x′)

c may depend on the readings: on each example's norm, where gradients are clipped. The memory is that of every δ and
of every layer's input.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet.backprop import backpropagate, size
from jaxnet.factors import dataclass_tree
from jaxnet.layer import Layer, Loss, Reading, Static, Tree
from jaxnet.quantities.sinks import is_trained, read
from jaxnet.readings import each

Backward = Callable[[Reading], Callable]
"""reading -> `(params, *batch) -> costs, readings` of a batch's mean cost: each example's δ has the factor 1/n."""


def of_network(net: Layer, loss: Loss) -> Backward:
    """The backward pass of a network of jaxnet, as the functions of this room take it.

    >>> net, xs, ys = dense(2), jnp.ones((3, 4)), jnp.array([0, 1, 1])
    >>> params = net.init(jax.random.key(0), xs[0])
    >>> of_network(net, softmax_cross_entropy)(total)(params, xs, ys)[1]["W"].shape
    (2, 4)
    """
    return partial(backpropagate, net, loss)


def of_function(loss: Callable, *, form: bool = False) -> Backward:
    """The same of any model: `loss(params, *example) -> number`; see `jaxnet.quantities.sinks.read`.

    >>> backward = of_function(lambda W, x: jnp.sum(jnp.tanh(W @ x)))
    >>> backward(total)(jnp.ones((2, 4)), jnp.ones((3, 4)))[1].shape
    (2, 4)
    """

    def backward(reading):
        def batch(params, *batch):
            return read(loss, reading, form=form)(params, *batch, weights=jnp.full(size(batch), 1 / size(batch)))

        return batch

    return backward


@dataclass_tree
class Kept:
    """A parameter's factor of one example, and the rank that the parameter has inside its layer: a stack adds axes."""

    factor: Any
    rank: Static

    def stacks(self, p: jax.Array) -> int:
        """In how many stacks (`repeat`) the parameter stands."""
        return p.ndim - self.rank.value


def is_kept(node: Any) -> bool:
    """Whether a node of a tree is a kept factor: `is_leaf` for trees of them."""
    return isinstance(node, Kept)


kept = Reading(each(lambda factor, p: Kept(factor, Static(p.ndim))), out_axes=0)
"""Each example's factors, for the functions below.

>>> net, xs, ys = dense(2), jnp.ones((3, 4)), jnp.array([0, 1, 1])
>>> params = net.init(jax.random.key(0), xs[0])
>>> _, factors = backpropagate(net, softmax_cross_entropy, kept)(params, xs, ys)
>>> weighted_total(factors, params, jnp.ones(3))["W"].shape
(2, 4)
"""


def over(f: Callable, factors: Tree, params: Tree, *more: Tree) -> Tree:
    """`f(kept factor, parameter, …)` for each parameter; a leaf of a model that is none has None, as in `factors`."""
    trained = jax.tree.map(lambda p: p if is_trained(p) else None, params)
    return jax.tree.map(f, factors, trained, *more, is_leaf=is_kept)


def of_each(f: Callable[[Any], Any], one: Kept, p: jax.Array) -> Any:
    """`f` of the factor of each example, and of each entry of the stacks.

    Stacks are the outer axes, as the scan over them lays its results: no factor is transposed.
    """
    f = jax.vmap(f)
    for _ in range(one.stacks(p)):
        f = jax.vmap(f, 1, 1)
    return f(one.factor)


def condensed(factors: Tree, params: Tree) -> Tree:
    """Kept factors in the fewest numbers: a gradient that is no larger than its factors stands in their place.

    Over a long sequence or a large image that is so of most layers; then neither norm nor sum costs another product.
    """

    def of(one: Kept, p):
        return Kept(of_each(lambda factor: factor.condensed(), one, p), one.rank)

    return over(of, factors, params)


def squared_norms(factors: Tree, params: Tree) -> Tree:
    """‖∇_p C_x‖² of each example for each parameter: (batch, *stacks)."""

    def of(one: Kept, p):
        return of_each(lambda factor: factor.squared_norm(), one, p)

    return over(of, factors, params)


def ranks(factors: Tree) -> Tree:
    """The rank that each parameter has inside its layer, of kept factors or of their shapes."""
    return jax.tree.map(lambda one: one.rank.value, factors, is_leaf=is_kept)


def weighted_total(factors: Tree, params: Tree, weights: Tree) -> Tree:
    """Σ_x c_x ∇_p C_x for each parameter; one matrix product for each W.

    weights: c of shape (batch,); or a tree with one for each parameter, (batch, *stacks) for one in a stack.
    """
    if hasattr(weights, "shape"):
        weights = over(lambda *_: weights, factors, params)

    def of(one: Kept, p, c):
        def weighted(factor, c):
            return factor.weighted(c)

        for _ in range(one.stacks(p)):
            weighted = jax.vmap(weighted, (1, 1 if c.ndim > 1 else None))
        return weighted(one.factor, c).astype(p.dtype)

    return over(of, factors, params, weights)


def inner_products(factors: Tree, others: Tree, params: Tree, *, rows: int | None = None) -> jax.Array:
    """⟨∇C_x, ∇C_x′⟩ over all parameters, for each x of `factors` and x′ of `others`: (batch, others).

    rows: how many x are taken at once, to save memory.
    """

    def leaves(tree):
        return jax.tree.leaves(tree, is_leaf=is_kept)

    mine, theirs, ps = leaves(factors), leaves(others), list(filter(is_trained, jax.tree.leaves(params)))

    def gram_of(stacks):
        def gram(f, g):
            return f.gram(g)

        for _ in range(stacks):
            gram = partial(lambda inner, f, g: jax.vmap(inner)(f, g).sum(), gram)
        return gram

    def row(mine):
        products = [
            jax.vmap(partial(gram_of(one.stacks(p)), one.factor))(other.factor)
            for one, other, p in zip(mine, theirs, ps, strict=True)
        ]
        return jnp.stack(products).sum(0)

    return jax.vmap(row)(mine) if rows is None else jax.lax.map(row, mine, batch_size=rows)
