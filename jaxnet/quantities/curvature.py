"""Curvature of a batch's mean cost, by the same hand-written backward pass sent another error.

    generalised Gauss-Newton   G = Σ_x Jᵀ H Jₓ       J = ∂out/∂p, H = the Hessian of weight · cost in out = S Sᵀ
    its columns                Jᵀ S u                 the backward pass with S u in the place of δ
    exact                      Σ over all unit vectors u
    Monte-Carlo                the mean over random signs u: E[u uᵀ] = 1

So diag G is the second moment of these columns, and its Kronecker factors are read off their factors: no derivative is
written here a second time. For softmax with cross-entropy and for the quadratic cost G is the Fisher matrix.

Sources: Martens, New Insights and Perspectives on the Natural Gradient Method, 2020; Dangel, Kunstner and Hennig,
BackPACK: Packing more into backprop, 2020.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxnet.backprop import backpropagate, mean_weights, size, value_and_grad
from jaxnet.layer import Layer, Loss, Reading, output, with_state
from jaxnet.readings import product, second_moment, total


def root_of(loss: Loss) -> Callable:
    """The root of the loss's Hessian; `ValueError` where it gives none."""
    if loss.root is None or loss.init is not None:
        raise ValueError(
            f"curvature takes a loss without parameters that gives a root of its Hessian (`Loss.root`), got {loss!r}: "
            "take one of jaxnet.losses, its head in the network"
        )
    return loss.root


def sent(loss: Loss) -> Loss:
    """The loss that sends S u back in the place of δ, for targets (y, u); its cost is 0."""

    root = root_of(loss)

    def turn(params, x, target, weight, read):
        y, u = target
        return jnp.zeros(()), root(x, y, weight, u), ()

    return Loss(f"root of {loss.name}", turn, lambda target, weight=None: loss.terms(target[0], weight))


def signs(key: jax.Array | None, shape: tuple[int, ...], dtype) -> jax.Array:
    """Random numbers ±1; `ValueError` without a key."""
    if key is None:
        raise ValueError("random numbers are drawn by a key: give key = jax.random.key(…), or samples = None")
    return jax.random.rademacher(key, shape, dtype)


def of_columns(net: Layer, loss: Loss, read: Reading, samples: int | None) -> Callable:
    """A reading of each column Jᵀ S u: of every unit vector u, or of `samples` random ones.

    Returns `(params, xs, ys, *, key=None, state=None, train=False, weights=None) -> readings`. `key` draws u, and
    the network's own draws in training mode.
    """
    back = backpropagate(net, sent(loss), read)

    def batch(params, xs, ys, *, key=None, state=None, train=False, weights=None):
        out = output(net, with_state(params, state), jax.tree.map(lambda t: t[0], xs), train)
        shape = (size(xs), *out.shape)
        if samples is None:
            units = jnp.eye(out.size, dtype=out.dtype).reshape(out.size, 1, *out.shape)
            us = jnp.broadcast_to(units, (out.size, *shape))
        else:
            us = signs(key, (samples, *shape), out.dtype)

        def column(u):
            return back(params, xs, (ys, u), state=state, key=key, train=train, weights=weights)[1]

        return jax.vmap(column)(us)

    return batch


def over_columns(net: Layer, loss: Loss, read: Reading, samples: int | None) -> Callable:
    """Σ of `of_columns` over the unit vectors, or the mean over the random ones."""
    columns = of_columns(net, loss, read, samples)

    def batch(*data, **given):
        found = columns(*data, **given)
        return jax.tree.map(lambda t: t.sum(0) if samples is None else t.mean(0), found)

    return batch


def ggn_root(net: Layer, loss: Loss, *, samples: int | None = None) -> Callable:
    """V with G = Σ over columns and examples of V Vᵀ, the square root of G; random columns give G on the mean.

    Σ V² over the columns is each example's own diagonal, V V′ᵀ of two examples a block of the Gram matrix.
    Returns `(params, xs, ys, *, key=None, state=None, train=False, weights=None) -> V`, in the structure of params with
    the leading axes (columns, examples). Raises as `ggn_diagonal`.
    Source: Dangel et al., BackPACK, 2020, SqrtGGNExact and SqrtGGNMC.

    >>> net, xs, ys = dense(2, bias=False), jnp.ones((3, 4)), jnp.array([0, 1, 1])
    >>> ggn_root(net, softmax_cross_entropy)({"W": jnp.zeros((2, 4))}, xs, ys)["W"].shape
    (2, 3, 2, 4)
    """
    columns = of_columns(net, loss, product, samples)
    if samples is None:
        return columns

    def batch(*data, **given):  # the mean of the samples, as the sum of their outer products
        return jax.tree.map(lambda t: t / samples**0.5, columns(*data, **given))

    return batch


def ggn_diagonal(net: Layer, loss: Loss, *, samples: int | None = None) -> Callable:
    """diag G of the mean cost, G the generalised Gauss-Newton matrix: exact, or a mean of `samples` random columns.

    Exact it takes one backward pass for each number of an example's output. Returns `(params, xs, ys, *, key=None,
    state=None, train=False, weights=None) -> diagonal` with the structure and shapes of params.
    Raises `ValueError` for a loss without a root, and for samples without a key.
    Source: Dangel et al., BackPACK, 2020, DiagGGNExact and DiagGGNMC.

    >>> net, xs, ys = dense(2, bias=False), jnp.ones((3, 4)), jnp.array([0, 1, 1])
    >>> params = {"W": jnp.zeros((2, 4))}
    >>> print(ggn_diagonal(net, softmax_cross_entropy)(params, xs, ys)["W"][0].round(3))
    [0.25 0.25 0.25 0.25]
    """
    return over_columns(net, loss, second_moment, samples)


def ggn_product(net: Layer, loss: Loss) -> Callable:
    """G v of the mean cost: forward by J v, the loss's S Sᵀ, back by Jᵀ. G itself is never formed.

    Returns `(params, xs, ys, v, *, key=None, state=None, train=False, weights=None) -> G v`, v as params.
    Raises `ValueError` for a loss without a root. Source: Schraudolph, Fast Curvature Matrix-Vector Products, 2002.

    >>> net, xs, ys = dense(2, bias=False), jnp.ones((3, 4)), jnp.array([0, 1, 1])
    >>> params = {"W": jnp.zeros((2, 4))}
    >>> print(ggn_product(net, softmax_cross_entropy)(params, xs, ys, {"W": jnp.ones((2, 4))})["W"][0])
    [0. 0. 0. 0.]
    """
    root = root_of(loss)
    back = backpropagate(net, sent(loss), total)

    def batch(params, xs, ys, v, *, key=None, state=None, train=False, weights=None):
        each = mean_weights(loss, ys, weights)
        keys = None if key is None else jax.random.split(key, size(xs))

        def column(x, y, weight, key):  # u = Sᵀ J v
            def forward(p):
                return net.forward(with_state(p, state), x, key, train)[0]

            out, Jv = jax.jvp(forward, (params,), (v,))
            return root(out, y, weight, Jv, True)

        us = jax.vmap(column)(xs, ys, each, keys)
        return back(params, xs, (ys, us), state=state, key=key, train=train, weights=weights)[1]

    return batch


def hessian_product(net: Layer, loss: Loss, **options: Any) -> Callable:
    """H v of the mean cost: the derivative, in the direction of v, of the hand-written gradient.

    Returns `(params, xs, ys, v, **as value_and_grad) -> H v`, v as params. `options`: those of `value_and_grad`.
    Source: Pearlmutter, Fast Exact Multiplication by the Hessian, 1994.

    >>> net, xs, ys = dense(2, bias=False), jnp.ones((3, 4)), jnp.array([0, 1, 1])
    >>> params = {"W": jnp.zeros((2, 4))}
    >>> print(hessian_product(net, quadratic)(params, xs, xs[:, :2], {"W": jnp.ones((2, 4))})["W"][0])
    [4. 4. 4. 4.]
    """
    gradient = value_and_grad(net, loss, **options)

    def batch(params, xs, ys, v, **given):
        return jax.jvp(lambda p: gradient(p, xs, ys, **given)[1], (params,), (v,))[1]

    return batch


def hessian_diagonal(net: Layer, loss: Loss, *, samples: int | None = None) -> Callable:
    """diag H of the mean cost: exact, by a product with each unit vector, or the mean of v ⊙ H v over random signs v.

    Exact it takes as many products as there are parameters, one after another: for small networks. Returns `(params,
    xs, ys, *, key=None, **as value_and_grad) -> diagonal`; `key` draws v. Source: Bekas, Kokiopoulou and Saad, An
    estimator for the diagonal of a matrix, 2007.

    >>> net, xs, ys = dense(2, bias=False), jnp.ones((3, 4)), jnp.array([0, 1, 1])
    >>> params = {"W": jnp.zeros((2, 4))}
    >>> print(hessian_diagonal(net, softmax_cross_entropy)(params, xs, ys)["W"][0].round(3))
    [0.25 0.25 0.25 0.25]
    """
    along_v = hessian_product(net, loss)

    def batch(params, xs, ys, *, key=None, **given):
        flat, tree_of = ravel_pytree(params)

        def along(v):
            return v * ravel_pytree(along_v(params, xs, ys, tree_of(v), **given))[0]

        if samples is None:
            return tree_of(
                jax.lax.map(lambda i: along(jax.nn.one_hot(i, flat.size, dtype=flat.dtype))[i], jnp.arange(flat.size))
            )
        return tree_of(jnp.mean(jax.lax.map(along, signs(key, (samples, flat.size), flat.dtype)), axis=0))

    return batch
