"""Which training examples a prediction rests on.

    influence of x on q      ∇C_qᵀ (G + λ)⁻¹ ∇C_x      the rise of C_q, per weight, without x
    of x on itself           ∇C_xᵀ (G + λ)⁻¹ ∇C_x      large of a wrong label: nothing else supports it

G the curvature by `ekfac`. (G + λ)⁻¹ ∇C_q is one vector u for each q, and ∇C_x · u is the derivative of C_x along u: no
training example's gradient is formed.

Sources: Koh and Liang, Understanding Black-box Predictions via Influence Functions, 2017; Grosse et al., Studying Large
Language Model Generalization with Influence Functions, 2023, for the eigenvalue-corrected factors.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxnet.backprop import own_weight, per_example
from jaxnet.factors import Outer
from jaxnet.layer import Layer, Loss, Reading, Tree
from jaxnet.quantities.kronecker import as_outer, is_axes, solve, with_beside
from jaxnet.readings import Beside, each, total


def influence(net: Layer, loss: Loss, *, damping: float = 1e-3) -> Callable:
    """The influence of each training example on each query, (queries, examples): positive where it helps.

    Returns `(params, axes, xs, ys, query_xs, query_ys) -> influences`, in evaluation mode; `axes`: those of `ekfac` or
    `kronecker.axes`. damping: λ.

    >>> from jaxnet.quantities.kronecker import ekfac
    >>> net, xs, ys = dense(2), jnp.ones((3, 4)), jnp.array([0, 1, 1])
    >>> params = net.init(jax.random.key(0), xs[0])
    >>> axes = ekfac(net, softmax_cross_entropy, samples=None)(params, xs, ys)
    >>> found = influence(net, softmax_cross_entropy)(params, axes, xs, ys, xs[:1], ys[:1])
    >>> found.shape, bool(found[0, 0] > 0 > found[0, 1])
    ((1, 3), True)
    """
    gradients = per_example(net, loss)

    def cost(params, x, y):
        return loss.turn((), net.forward(params, x)[0], y, own_weight(loss, y), total)[0]

    def of(params, axes, xs, ys, query_xs, query_ys):
        _, grads = gradients(params, query_xs, query_ys)
        us = jax.vmap(lambda g: solve(axes, g, damping))(grads)

        def along(u, x, y):
            return jax.jvp(lambda params: cost(params, x, y), (params,), (u,))[1]

        return jax.vmap(jax.vmap(along, (None, 0, 0)), (0, None, None))(us, xs, ys)

    return of


def _own(damping):
    def of(factor, beside):
        """Σ (∂C/∂W′)² / (length + λ): of one term δ′²ᵀ (1 / (lengths + λ)) a′²."""
        axes, outer = beside.own, as_outer(factor)
        inverse = 1 / (axes.lengths + damping)
        if axes.B is None or outer is None:
            return jnp.sum(jnp.square(factor.multiply()) * inverse)
        delta = outer.delta @ axes.B
        a = outer.a if axes.A is None else outer.a @ axes.A
        inverse = inverse.reshape(delta.shape[-1], a.shape[-1])
        if outer.sums:
            return jnp.sum(jnp.square(Outer(delta, a, outer.sums).multiply()) * inverse)
        return jnp.square(delta) @ inverse @ jnp.square(a)

    return of


def self_influence(net: Layer, loss: Loss, *, damping: float = 1e-3) -> Callable:
    """The influence of each training example on itself, (examples,).

    Returns `(params, axes, xs, ys) -> influences`, in evaluation mode; arguments as `influence`'s.

    >>> from jaxnet.quantities.kronecker import ekfac
    >>> net, xs, ys = dense(2), jnp.ones((3, 4)), jnp.array([0, 1, 1])
    >>> params = net.init(jax.random.key(0), xs[0])
    >>> axes = ekfac(net, softmax_cross_entropy, samples=None)(params, xs, ys)
    >>> self_influence(net, softmax_cross_entropy)(params, axes, xs, ys).shape
    (3,)
    """
    run = per_example(with_beside(net), loss, Reading(each(_own(damping)), out_axes=0))

    def of(params: Tree, axes: Tree, xs, ys):
        both = jax.tree.map(lambda a, p: Beside(p, a), axes, params, is_leaf=is_axes)
        _, parts = run(both, xs, ys)
        return sum(jax.tree.leaves(jax.tree.map(lambda t: t.reshape(len(t), -1).sum(1), parts)))

    return of
