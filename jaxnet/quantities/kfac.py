"""K-FAC: the natural gradient by Kronecker factors, as an optax optimiser.

    A, B    running means of the factors of `kronecker`
    d       (B + √λ/π)⁻¹ ∇_W C (A + π√λ)⁻¹       π² = mean eigenvalue of A / mean eigenvalue of B
            (B + λ)⁻¹ ∇_b C of a bias; ∇C / (diagonal + λ) of anything else
    step    −η m, m ← μ m + d · min(1, √(κ / d·∇C))

Sources: Martens and Grosse, Optimizing Neural Networks with Kronecker-factored Approximate Curvature, 2015, §6.3 (the
factored damping); Ba, Grosse and Martens, Distributed Second-Order Optimization using Kronecker-Factored
Approximations, 2017, §5 (the limit κ).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnet.layer import Tree
from jaxnet.quantities.kronecker import Block, between, is_block

TINY = 1e-12  # keeps what is divided by from 0


class KfacState(NamedTuple):
    """Steps done, running means of the blocks, and their damped inverses."""

    steps: jax.Array
    blocks: Tree
    inverses: Tree


def inverse(block: Block, damping: float) -> Block:
    """The damped inverse of a block, again as a block."""
    if block.B is None:
        return Block(diagonal=1 / (block.diagonal + damping))
    if block.A is None:
        return Block(B=damped(block.B, damping))
    mean_a, mean_b = (jnp.trace(t, axis1=-2, axis2=-1) / t.shape[-1] for t in (block.A, block.B))
    pi = jnp.sqrt(jnp.maximum(mean_a, TINY) / jnp.maximum(mean_b, TINY))
    return Block(damped(block.A, pi * damping**0.5), damped(block.B, damping**0.5 / pi))


def damped(matrix: jax.Array, by: Any) -> jax.Array:
    """(matrix + by)⁻¹; leading axes are stacks of layers."""
    eye = jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape)
    return jnp.linalg.inv(matrix + jnp.broadcast_to(jnp.asarray(by, matrix.dtype)[..., None, None], eye.shape) * eye)


def times(inverse: Block, g: jax.Array) -> jax.Array:
    """The damped inverse times a gradient."""
    if inverse.B is None:
        return inverse.diagonal * g
    return between(inverse.B, g, inverse.A)


def scale_by_kfac(
    shapes: Callable[[Tree], Tree], *, damping: float = 1e-2, decay: float = 0.95, every: int = 10, limit: float = 1.0
) -> optax.GradientTransformationExtraArgs:
    """The gradient times the damped inverse of the Kronecker-factored curvature.

    `shapes(params)`: the blocks of `kronecker`, arrays or shapes. `update` takes `curvature`, a function of nothing
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

    def init(params):
        blocks = jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), jax.eval_shape(shapes, params))
        return KfacState(jnp.zeros((), jnp.int32), blocks, blocks)

    def update(updates, state, params=None, **extra):
        def refreshed():
            keep = jnp.minimum(decay, 1 - 1 / (state.steps // every + 1))  # the mean of all until they are many

            def mean(old, new):
                return keep.astype(old.dtype) * old + (1 - keep).astype(old.dtype) * new.astype(old.dtype)

            blocks = jax.tree.map(mean, state.blocks, extra["curvature"]())
            return blocks, jax.tree.map(lambda block: inverse(block, damping), blocks, is_leaf=is_block)

        due = state.steps % every == 0
        blocks, inverses = jax.lax.cond(due, refreshed, lambda: (state.blocks, state.inverses))
        direction = jax.tree.map(times, inverses, updates, is_leaf=is_block)
        length = optax.tree.vdot(direction, updates)
        scale = jnp.minimum(1.0, jnp.sqrt(limit / jnp.maximum(length, TINY)))
        direction = jax.tree.map(lambda d: scale.astype(d.dtype) * d, direction)
        return direction, KfacState(state.steps + 1, blocks, inverses)

    return optax.GradientTransformationExtraArgs(init, update)


def kfac(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    damping: float = 1e-2,
    decay: float = 0.95,
    every: int = 10,
    limit: float = 1.0,
    shapes: Callable[[Tree], Tree] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """K-FAC with momentum: `scale_by_kfac`, then `optax.trace`, then the learning rate.

    Arguments as `scale_by_kfac`'s; momentum: μ.
    Raises `ValueError` without shapes.
    """
    if shapes is None:
        raise ValueError("kfac begins with the blocks' shapes: give shapes = kronecker(net, loss) at a batch")
    return optax.with_extra_args_support(
        optax.chain(
            scale_by_kfac(shapes, damping=damping, decay=decay, every=every, limit=limit),
            optax.trace(momentum),
            optax.scale_by_learning_rate(learning_rate),
        )
    )
