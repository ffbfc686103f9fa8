"""K-FAC, Shampoo and SOAP: gradients multiplied by Kronecker factors, as optax optimisers.

    A, B      running means of factors of each W; G, its gradient, as a matrix (out, in)
    K-FAC     factors of the curvature (`kronecker`)      (B + √λ/π)⁻¹ G (A + π√λ)⁻¹
              π² = mean eigenvalue of A / mean eigenvalue of B
    Shampoo   B = G Gᵀ, A = Gᵀ G                          (B + λ)^(−1/4) G (A + λ)^(−1/4), made as long as G
    SOAP      Shampoo's factors; Adam in their eigenvectors' axes, its squares carried along as these turn

Of a bias b only B stands, with the powers −1, −1/2, and Adam in B's axes; of anything else (gains of a norm, rows of an
embedding) the diagonal. In a stack (`repeat`) each layer has its own.

Sources: Martens and Grosse, Optimizing Neural Networks with Kronecker-factored Approximate Curvature, 2015, §6.3 (the
factored damping); Ba, Grosse and Martens, Distributed Second-Order Optimization using Kronecker-Factored
Approximations, 2017, §5 (the limit κ); Gupta, Koren and Singer, Shampoo: Preconditioned Stochastic Tensor Optimization,
2018; Anil et al., Scalable Second Order Optimization for Deep Learning, 2020, §5 (the length); Vyas et al., SOAP:
Improving and Stabilizing Shampoo using Adam, 2024, algorithm 3.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnet.layer import Tree
from jaxnet.quantities.kronecker import Axes, Block, axes, between, is_axes, is_block

TINY = 1e-12  # keeps divisors from 0


class FactorState(NamedTuple):
    """Steps done, running means of the blocks, and their inverses, roots or axes, made now and then."""

    steps: jax.Array
    blocks: Tree
    derived: Tree


def running_factors(
    shapes: Callable[[Tree], Tree] | None, derive: Callable[[Tree, Tree], Tree], *, decay: float, every: int
) -> tuple[Callable, Callable]:
    """(init, refreshed): running means of blocks, and `derive(blocks, params)` of them, in every `every`th step.

    `shapes(params)`: the blocks of `kronecker`, arrays or shapes. `refreshed(state, params, new)`: the state a step
    later; `new`, a function of nothing, gives the blocks of this step and is called where they are taken.
    Raises `ValueError` without shapes.
    """
    if shapes is None:
        raise ValueError("the optimizer begins with the shapes of blocks: give it kronecker(net, loss) at a batch")

    def zeros(tree):
        return jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), tree)

    def init(params):
        blocks = zeros(jax.eval_shape(shapes, params))
        return FactorState(jnp.zeros((), jnp.int32), blocks, zeros(jax.eval_shape(derive, blocks, params)))

    def refreshed(state, like, new):
        def of():
            keep = jnp.minimum(decay, 1 - 1 / (state.steps // every + 1))  # the mean of all until they are many

            def mean(old, new):
                return keep.astype(old.dtype) * old + (1 - keep).astype(old.dtype) * new.astype(old.dtype)

            blocks = jax.tree.map(mean, state.blocks, new())
            return blocks, derive(blocks, like)

        found = jax.lax.cond(state.steps % every == 0, of, lambda: (state.blocks, state.derived))
        return FactorState(state.steps + 1, *found)

    return init, refreshed


def each_block(f: Callable[[Block], Block]) -> Callable[[Tree, Tree], Tree]:
    """`f` of every block of a tree."""
    return lambda blocks, params: jax.tree.map(f, blocks, is_leaf=is_block)


def times(block: Block, g: jax.Array) -> jax.Array:
    """A block, the inverse or root of another, times a gradient."""
    if block.B is None:
        return block.diagonal * g
    return between(block.B, g, block.A)


def damped(matrix: jax.Array, by: Any) -> jax.Array:
    """matrix + by · 1; leading axes are stacks of layers."""
    eye = jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape)
    return matrix + jnp.broadcast_to(jnp.asarray(by, matrix.dtype)[..., None, None], matrix.shape) * eye


def inverse(block: Block, damping: float) -> Block:
    """K-FAC's damped inverse of a block, again as a block."""
    if block.B is None:
        return Block(diagonal=1 / (block.diagonal + damping))
    if block.A is None:
        return Block(B=jnp.linalg.inv(damped(block.B, damping)))
    mean_a, mean_b = (jnp.trace(t, axis1=-2, axis2=-1) / t.shape[-1] for t in (block.A, block.B))
    pi = jnp.sqrt(jnp.maximum(mean_a, TINY) / jnp.maximum(mean_b, TINY))
    A, B = damped(block.A, pi * damping**0.5), damped(block.B, damping**0.5 / pi)
    return Block(jnp.linalg.inv(A), jnp.linalg.inv(B))


def inverse_root(block: Block, damping: float) -> Block:
    """Shampoo's roots of a block, again as a block: each factor to the power −1/4, one alone to −1/2."""

    def root(matrix, power):
        values, vectors = jnp.linalg.eigh(damped(matrix, damping))
        return (vectors * jnp.maximum(values, damping)[..., None, :] ** power) @ vectors.mT

    if block.B is None:
        return Block(diagonal=(block.diagonal + damping) ** -0.5)
    if block.A is None:
        return Block(B=root(block.B, -0.5))
    return Block(root(block.A, -0.25), root(block.B, -0.25))


def rotated(root: Block, g: jax.Array) -> jax.Array:
    """The root times a gradient, as long as the gradient; in a stack layer by layer."""
    found = times(root, g)
    inner = tuple(range(0 if root.B is None else root.B.ndim - 2, g.ndim))
    squares = (jnp.sum(jnp.square(t), axis=inner, keepdims=True) for t in (g, found))
    return found * jnp.sqrt(next(squares) / jnp.maximum(next(squares), TINY))


def own_products(blocks: Tree, grads: Tree) -> Tree:
    """Gᵀ G and G Gᵀ of each gradient, as blocks of the shapes of these."""

    def of(block, g):
        if block.B is None:
            return Block(diagonal=jnp.square(g))
        G = g.reshape(*block.B.shape[:-1], -1)
        return Block(None if block.A is None else G.mT @ G, G @ G.mT)

    return jax.tree.map(of, blocks, grads, is_leaf=is_block)


def scale_by_kfac(
    curvature: Callable[[Tree], Tree] | None,
    *,
    damping: float = 1e-2,
    decay: float = 0.95,
    every: int = 10,
    limit: float = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """d, the gradient times the damped inverse of the Kronecker-factored curvature, times min(1, √(κ / d·∇C)).

    `curvature(params)`: the blocks of `kronecker`, for their shapes. `update` takes `curvature`, a function of nothing
    that gives the blocks of this batch; it is called in every `every`th step. decay: of the running means. limit: κ.

    >>> from jaxnet.quantities.kronecker import kronecker
    >>> net, xs, ys = dense(2), jnp.ones((3, 4)), jnp.array([0, 1, 1])
    >>> params = net.init(jax.random.key(0), xs[0])
    >>> blocks = kronecker(net, softmax_cross_entropy, samples=None)
    >>> optimizer = scale_by_kfac(lambda params: blocks(params, xs, ys))
    >>> _, grads = value_and_grad(net, softmax_cross_entropy)(params, xs, ys)
    >>> step, _ = optimizer.update(grads, optimizer.init(params), curvature=lambda: blocks(params, xs, ys))
    >>> step["W"].shape
    (2, 4)
    """
    derive = each_block(lambda block: inverse(block, damping))
    init, refreshed = running_factors(curvature, derive, decay=decay, every=every)

    def update(updates, state, params=None, **extra):
        state = refreshed(state, updates, extra["curvature"])
        direction = jax.tree.map(times, state.derived, updates, is_leaf=is_block)
        length = optax.tree.vdot(direction, updates)
        scale = jnp.minimum(1.0, jnp.sqrt(limit / jnp.maximum(length, TINY)))
        return jax.tree.map(lambda d: scale.astype(d.dtype) * d, direction), state

    return optax.GradientTransformationExtraArgs(init, update)


def kfac(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    damping: float = 1e-2,
    decay: float = 0.95,
    every: int = 10,
    limit: float = 1.0,
    curvature: Callable[[Tree], Tree] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """K-FAC with momentum: `scale_by_kfac`, then `optax.trace`, then the learning rate.

    Arguments as `scale_by_kfac`'s; momentum: μ.
    Raises `ValueError` without curvature.
    """
    direction = scale_by_kfac(curvature, damping=damping, decay=decay, every=every, limit=limit)
    steps = direction, optax.trace(momentum), optax.scale_by_learning_rate(learning_rate)
    return optax.with_extra_args_support(optax.chain(*steps))


def shampoo(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    damping: float = 1e-6,
    decay: float = 0.95,
    every: int = 10,
    shapes: Callable[[Tree], Tree] | None = None,
) -> optax.GradientTransformation:
    """Shampoo with momentum: B^(−1/4) G A^(−1/4) as long as G, B and A running means of G Gᵀ and Gᵀ G.

    `shapes(params)`: the blocks of `kronecker`, for their shapes. damping: λ. decay: of the running means, taken, with
    their roots, in every `every`th step.
    Raises `ValueError` without shapes.

    >>> from jaxnet.quantities.kronecker import kronecker
    >>> net, xs, ys = dense(2), jnp.ones((3, 4)), jnp.array([0, 1, 1])
    >>> params, blocks = net.init(jax.random.key(0), xs[0]), kronecker(net, softmax_cross_entropy, samples=None)
    >>> optimizer = shampoo(0.1, shapes=lambda params: blocks(params, xs, ys))
    >>> optimizer.update(params, optimizer.init(params), params)[0]["W"].shape
    (2, 4)
    """
    derive = each_block(lambda block: inverse_root(block, damping))
    init, refreshed = running_factors(shapes, derive, decay=decay, every=every)

    def update(updates, state, params=None):
        state = refreshed(state, updates, lambda: own_products(state.blocks, updates))
        return jax.tree.map(rotated, state.derived, updates, is_leaf=is_block), state

    direction = optax.GradientTransformation(init, update)
    return optax.chain(direction, optax.trace(momentum), optax.scale_by_learning_rate(learning_rate))


class SoapState(NamedTuple):
    """The factors and their axes; Adam's means: of the gradient, and of its square along the axes."""

    factors: FactorState
    mean: Tree
    square: Tree


def turned(axes: Tree, grads: Tree, back: bool = False) -> Tree:
    """Gradients along the axes of their factors, or back from there."""
    return jax.tree.map(lambda own, g: own.turned(g, back), axes, grads, is_leaf=is_axes)


def carried(old: Tree, new: Tree, squares: Tree) -> Tree:
    """The mean squares along new axes, of entries that are uncorrelated along the old ones: (B′ᵀ B)² v (Aᵀ A′)²."""

    def of(old, new, v):
        if new.B is None:
            return v
        right = None if new.A is None else jnp.square(old.A.mT @ new.A)
        return between(jnp.square(new.B.mT @ old.B), v, right)

    return jax.tree.map(of, old, new, squares, is_leaf=is_axes)


def soap(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
    decay: float = 0.95,
    every: int = 10,
    shapes: Callable[[Tree], Tree] | None = None,
) -> optax.GradientTransformation:
    """Adam along the eigenvectors of Shampoo's factors.

    b1, b2, eps: Adam's. decay, every, shapes: as `shampoo`'s, with eigenvectors in the place of roots.
    Raises `ValueError` without shapes.

    >>> from jaxnet.quantities.kronecker import kronecker
    >>> net, xs, ys = dense(2), jnp.ones((3, 4)), jnp.array([0, 1, 1])
    >>> params, blocks = net.init(jax.random.key(0), xs[0]), kronecker(net, softmax_cross_entropy, samples=None)
    >>> optimizer = soap(0.1, shapes=lambda params: blocks(params, xs, ys))
    >>> optimizer.update(params, optimizer.init(params), params)[0]["W"].shape
    (2, 4)
    """

    def derive(blocks, params):  # the axes alone
        found = axes(blocks, params)
        return jax.tree.map(lambda own: Axes(own.A, own.B, None), found, is_leaf=is_axes)

    init_factors, refreshed = running_factors(shapes, derive, decay=decay, every=every)

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return SoapState(init_factors(params), zeros, zeros)

    def update(updates, state, params=None):
        blocks = state.factors.blocks
        factors = refreshed(state.factors, updates, lambda: own_products(blocks, updates))
        along = turned(factors.derived, updates)
        mean = optax.tree.update_moment(updates, state.mean, b1, 1)
        old = state.factors.derived
        square = jax.lax.cond(
            state.factors.steps % every == 0, lambda: carried(old, factors.derived, state.square), lambda: state.square
        )
        square = optax.tree.update_moment(along, square, b2, 2)

        def adam(m, v):
            m, v = (t / (1 - jnp.asarray(b, t.dtype) ** factors.steps.astype(t.dtype)) for t, b in ((m, b1), (v, b2)))
            return m / (jnp.sqrt(v) + eps)

        step = jax.tree.map(adam, turned(factors.derived, mean), square)
        return turned(factors.derived, step, back=True), SoapState(factors, mean, square)

    return optax.chain(optax.GradientTransformation(init, update), optax.scale_by_learning_rate(learning_rate))
