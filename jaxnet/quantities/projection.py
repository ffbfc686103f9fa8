"""Gradients in a small space, and optimisers that live there: PᵀG without G.

    PᵀG = Pᵀ Σ δ aᵀ = Σ (Pᵀδ) aᵀ        P: (out, rank)   G: (out, in)   PᵀG: (rank, in)

δ is projected before it meets a, so that G is never formed: of a dense layer rank/out of the operations of ∇_W, and as
much of its memory. An optimiser of optax keeps its moments in the small space, and its update u becomes P u. Vectors
(biases, gains) keep their whole gradient.

Sources: Zhao et al., GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection, 2024; Hao et al., Flora:
Low-Rank Adapters Are Secretly Gradient Compressors, 2024, for random projections.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnet.layer import Tree
from jaxnet.quantities.kept_factors import Backward, Kept, is_kept, kept


def random_projections(key: jax.Array, params: Tree, ranks: Tree, rank: int) -> Tree:
    """P ~ N(0, 1/rank) for each matrix: (*stacks, out, rank), E[P Pᵀ] = 1; None for a vector."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))

    def of(p, axes, key):
        if axes < 2:
            return None
        lead = p.shape[: p.ndim - axes + 1]
        return jax.random.normal(key, (*lead, rank), p.dtype) / rank**0.5

    found = [of(p, axes, k) for p, axes, k in zip(leaves, jax.tree.leaves(ranks), keys, strict=True)]
    return jax.tree.unflatten(structure, found)


def leading_projections(grads: Tree, ranks: Tree, rank: int) -> Tree:
    """The `rank` leading left singular vectors of each matrix's gradient: (*stacks, out, rank); None for a vector."""

    def of(g, axes):
        if axes < 2:
            return None
        matrix = g.reshape(*g.shape[: g.ndim - axes + 1], -1)
        return jnp.linalg.svd(matrix, full_matrices=False)[0][..., :rank]

    return jax.tree.map(of, grads, ranks)


def projected(factors: Tree, params: Tree, projections: Tree, *, summed: bool = True) -> Tree:
    """Pᵀ ∇_p C for each parameter of the examples' kept factors, summed over them or (batch, …) for each of them.

    Of a parameter without a projection it is ∇_p C.
    """

    def of(one: Kept, p, P):
        def contracted(factor, P):
            small = factor if P is None else jax.vmap(lambda f: f.projected(P))(factor)
            return small.summed_once_more().multiply() if summed else jax.vmap(lambda f: f.multiply())(small)

        for _ in range(one.stacks(p)):
            contracted = jax.vmap(contracted, (1, 0), 0 if summed else 1)
        return contracted(one.factor, P).astype(p.dtype)

    return jax.tree.map(of, factors, params, projections, is_leaf=lambda node: is_kept(node) or node is None)


def projected_gradient(backward: Backward) -> Callable[..., tuple[Any, Tree]]:
    """PᵀG of a batch's mean cost, G never formed.

    Returns `(params, projections, *batch) -> value, small gradients`, with the value as `backward` gives it.

    >>> from jaxnet.quantities.kept_factors import of_network
    >>> net, xs, ys = dense(2), jnp.ones((3, 4)), jnp.array([0, 1, 1])
    >>> params = net.init(jax.random.key(0), xs[0])
    >>> P = {"W": jnp.ones((2, 1)), "b": None}
    >>> _, small = projected_gradient(of_network(net, softmax_cross_entropy))(params, P, xs, ys)
    >>> small["W"].shape, small["b"].shape
    ((1, 4), (2,))
    """
    run = backward(kept)

    def of(params, projections, *batch):
        value, factors = run(params, *batch)
        return value, projected(factors, params, projections)

    return of


class LowRankState(NamedTuple):
    """The projections, and the state of the optimiser in the small space."""

    projections: Tree
    inner: Any


def lifted(P: jax.Array | None, update: jax.Array, p: jax.Array) -> jax.Array:
    """P u in the parameter's shape."""
    if P is None:
        return update
    flat = update.reshape(*P.shape[:-2], P.shape[-1], -1)
    return (P @ flat).reshape(p.shape).astype(p.dtype)


def low_rank(inner: optax.GradientTransformation, projections: Tree) -> optax.GradientTransformation:
    """An optimiser of small gradients: `inner` in the small space, its update lifted by P.

    Its `update` takes the gradient of `projected_gradient` at `state.projections`; gradients of several batches may be
    summed there, in the small space. New projections go into the state by `_replace(projections=…)`; moments stay.

    >>> params, P = {"W": jnp.ones((2, 4)), "b": jnp.ones(2)}, {"W": jnp.ones((2, 1)), "b": None}
    >>> optimizer = low_rank(optax.sgd(1e-3), P)
    >>> state = optimizer.init(params)
    >>> updates, state = optimizer.update({"W": jnp.ones((1, 4)), "b": jnp.ones(2)}, state, params)
    >>> updates["W"].shape
    (2, 4)
    """

    def small(P, p):
        return p if P is None else jnp.zeros((*P.shape[:-2], P.shape[-1], *p.shape[P.ndim - 1 :]), p.dtype)

    over = partial(jax.tree.map, is_leaf=lambda node: node is None)

    def init(params):
        return LowRankState(projections, inner.init(over(small, projections, params)))

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("low_rank lifts updates to the parameters' shapes: call update(grads, state, params)")
        found, after = inner.update(updates, state.inner, over(small, state.projections, params))
        return over(lifted, state.projections, found, params), LowRankState(state.projections, after)

    return optax.GradientTransformation(init, update)


def channel_scaled(inner: optax.GradientTransformation, projections: Tree) -> optax.GradientTransformation:
    """The whole gradient G, each of its columns as much longer as `inner` makes that of PᵀG: APOLLO.

    G ⊙ s, s_j = ‖u_j‖ / ‖(PᵀG)_j‖, u the update that `inner` makes of PᵀG: `optax.scale_by_adam`'s moments then take
    rank/out of the memory. Follow it by `optax.scale_by_learning_rate`. A vector gets `inner`'s update.
    Source: Zhu et al., APOLLO: SGD-like Memory, AdamW-level Performance, 2024, §4.

    >>> params, P = {"W": jnp.ones((2, 4)), "b": jnp.ones(2)}, {"W": jnp.ones((2, 1)), "b": None}
    >>> optimizer = channel_scaled(optax.scale_by_sign(), P)
    >>> updates, state = optimizer.update(params, optimizer.init(params))
    >>> print(updates["W"].round(2)[0])
    [0.5 0.5 0.5 0.5]
    """
    over = partial(jax.tree.map, is_leaf=lambda node: node is None)

    def small(P, g):
        return g if P is None else jnp.matmul(P.mT, g.reshape(*P.shape[:-1], -1))

    def scaled(P, before, after, g):
        if P is None:
            return after
        lengths = (jnp.linalg.norm(t, axis=-2, keepdims=True) for t in (after, before))
        share = next(lengths) / jnp.maximum(next(lengths), jnp.finfo(g.dtype).tiny)
        matrix = g.reshape(*P.shape[:-1], -1)
        return (matrix * jnp.broadcast_to(share, matrix.shape)).reshape(g.shape)

    def init(params):
        return LowRankState(projections, inner.init(over(small, projections, params)))

    def update(updates, state, params=None):
        before = over(small, state.projections, updates)
        after, moments = inner.update(before, state.inner)
        return over(scaled, state.projections, before, after, updates), LowRankState(state.projections, moments)

    return optax.GradientTransformation(init, update)
