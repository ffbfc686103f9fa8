"""How sure a trained network is: Laplace's approximation, the posterior of its parameters as a normal distribution.

    p | data ~ N(p*, Σ)      Σ = (N G + τ)⁻¹      G: curvature of the mean cost of N examples; τ: 1 / prior variance
    out(x) ~ N(out*(x), J Σ Jᵀ)                    J = ∂out/∂p at p*

Each row of J is a backward pass of a unit error. Along the axes of `ekfac` or `kronecker.axes` Σ is diagonal. For a
cross-entropy the probabilities are softmax(out / √(1 + π/8 · variance)).

Sources: MacKay, A Practical Bayesian Framework for Backpropagation Networks, 1992; Ritter, Botev and Barber, A Scalable
Laplace Approximation for Neural Networks, 2018; Immer, Korzepa and Bauer, Improving Predictions of Bayesian Neural Nets
via Local Linearization, 2021.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxnet.backprop import per_example, predict, size
from jaxnet.layer import Layer, output
from jaxnet.quantities.gradient_statistics import COLUMN
from jaxnet.quantities.kronecker import is_axes


def laplace(
    net: Layer, *, examples: int, precision: float, only: Callable[[str], bool] = lambda path: True
) -> Callable:
    """Mean and covariance of the outputs under Laplace's approximation: (batch, outputs) and (batch, outputs, outputs).

    Returns `(params, axes, xs) -> mean, covariance`, in evaluation mode, outputs flattened; `axes`: of the mean cost's
    curvature, by `ekfac` or `kronecker.axes`. `examples`: N, those that the network was trained on. `precision`: τ.
    `only(path)`: the parameters that are uncertain, by default all; a path such as "[2]['W']", so
    `lambda path: path.startswith("[2]")` takes the last layer of three.

    >>> from jaxnet.quantities.kronecker import ekfac
    >>> net, xs, ys = dense(2), jnp.ones((3, 4)), jnp.array([0, 1, 1])
    >>> params = net.init(jax.random.key(0), xs[0])
    >>> axes = ekfac(net, softmax_cross_entropy, samples=None)(params, xs, ys)
    >>> mean, covariance = laplace(net, examples=3, precision=1.0)(params, axes, xs)
    >>> mean.shape, covariance.shape
    ((3, 2), (3, 2, 2))
    """
    row, outputs = per_example(net, COLUMN), predict(net)

    def of(params, axes, xs):
        out = output(net, params, jax.tree.map(lambda t: t[0], xs))
        units = jnp.eye(out.size, dtype=out.dtype).reshape(out.size, *out.shape)

        def roots(unit):
            """Σ^(1/2) Jᵀ u of each example, as one vector: Σ^(1/2) along the axes."""
            _, rows = row(params, xs, jnp.broadcast_to(unit, (size(xs), *unit.shape)))

            def of_one(path, own, g):
                along = jax.vmap(own.turned)(g) / jnp.sqrt(examples * own.lengths + precision)[None]
                kept = only(jax.tree_util.keystr(path))
                return [along.reshape(len(g), -1)] if kept else []

            found = jax.tree_util.tree_map_with_path(of_one, axes, rows, is_leaf=is_axes)
            return jnp.concatenate(jax.tree.leaves(found), axis=1)

        columns = jax.vmap(roots, out_axes=1)(units)
        mean = outputs(params, xs).reshape(size(xs), -1)
        return mean, columns @ columns.mT

    return of


def probabilities(mean: jax.Array, covariance: jax.Array) -> jax.Array:
    """The classes' probabilities under uncertain outputs: softmax(mean / √(1 + π/8 · variance)), (batch, classes).

    >>> print(probabilities(jnp.array([[2.0, 0.0]]), 1e3 * jnp.eye(2)[None]).round(1))
    [[0.5 0.5]]
    """
    variance = jnp.diagonal(covariance, axis1=-2, axis2=-1)
    return jax.nn.softmax(mean / jnp.sqrt(1 + math.pi / 8 * variance))
