"""How the examples' gradients differ: variance, signal-to-noise, inner products, the gradient noise scale.

    g = 1/n Σ_x g_x               g_x, the gradient of example x; g, that of the batch's mean cost
    variance = 1/n Σ g_x² − g²    entry by entry; signal-to-noise g² / variance
    tr Σ ≈ n/(n−1) (1/n Σ ‖g_x‖² − ‖g‖²)    ‖G‖² ≈ ‖g‖² − tr Σ / n    noise scale = tr Σ / ‖G‖²

Σ is the covariance of the g_x, G the gradient over all data. Below the noise scale a larger batch pays, above it does
not. Each function takes a `Backward`: `of_network(net, loss)`, or `of_function(loss)` for any other model.

Sources: McCandlish et al., An Empirical Model of Large-Batch Training, 2018, §2.2 and appendix A; Gray et al.,
Normalization Layer Per-Example Gradients are Sufficient to Predict Gradient Noise Scale in Transformers, 2024.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnet.backprop import per_example, size
from jaxnet.factors import Factor, Outer, Plain
from jaxnet.layer import Layer, Loss, Reading, Static, Tree, output
from jaxnet.lowering.products import accumulated
from jaxnet.quantities.kept_factors import Backward, condensed, inner_products, kept
from jaxnet.readings import each, pair, second_moment, sum_over_examples, total


class Moments(NamedTuple):
    """Mean, second moment and variance of the examples' gradients, entry by entry, and g² / variance."""

    mean: Tree
    second: Tree
    variance: Tree
    signal_to_noise: Tree


def gradient_moments(backward: Backward) -> Callable[..., Moments]:
    """The moments of the examples' gradients; no example's gradient of a dense W is formed.

    Returns `(params, *batch) -> Moments`, each with the structure and shapes of params. Where the variance is 0 so is
    the signal-to-noise ratio.

    >>> net, xs, ys = dense(2), jnp.ones((3, 4)), jnp.array([0, 1, 1])
    >>> params = net.init(jax.random.key(0), xs[0])
    >>> from jaxnet.quantities.kept_factors import of_network
    >>> gradient_moments(of_network(net, softmax_cross_entropy))(params, xs, ys).variance["W"].shape
    (2, 4)
    """
    run = backward(pair(total, second_moment))

    def of(params, *batch):
        n = size(batch)
        _, (mean, squares) = run(params, *batch)
        second = jax.tree.map(lambda s: s * n, squares)
        variance = jax.tree.map(lambda s, g: jnp.maximum(s - g**2, 0), second, mean)
        ratio = jax.tree.map(lambda g, v: jnp.where(v > 0, g**2 / jnp.where(v > 0, v, 1), 0), mean, variance)
        return Moments(mean, second, variance, ratio)

    return of


def gradient_products(backward: Backward, *, rows: int | None = None) -> Callable[..., jax.Array]:
    """⟨g_x, g_x′⟩ for all pairs of examples, (batch, batch), from the factors.

    Returns `(params, *batch) -> products`. rows: how many examples are taken at once against all, to save memory.

    >>> from jaxnet.quantities.kept_factors import of_function
    >>> backward = of_function(lambda W, x: jnp.sum(jnp.tanh(W @ x)))
    >>> gradient_products(backward)(jnp.ones((2, 4)), jnp.ones((3, 4))).shape
    (3, 3)
    """
    run = backward(kept)

    def of(params, *batch):
        factors = condensed(run(params, *batch)[1], params)
        return inner_products(factors, factors, params, rows=rows) * size(batch) ** 2

    return of


COLUMN = Loss("column", lambda params, out, u, weight, read: (jnp.zeros(()), u, ()), lambda u, weight=None: Static(1))
"""A loss whose δ is its target: so the backward pass gives Jᵀu."""


def tangent_kernel(net: Layer, *, rows: int | None = None) -> Callable[..., jax.Array]:
    """The empirical neural tangent kernel ⟨∂out_k(x)/∂p, ∂out_l(x′)/∂p⟩: (batch, outputs, others, outputs).

    Returns `(params, xs, others=None) -> kernel`, by default of xs with itself; outputs are flattened.
    rows: how many pairs (k, x) are taken at once. Source: Jacot et al., Neural Tangent Kernel, 2018.

    >>> net, xs = dense(2), jnp.ones((3, 4))
    >>> params = net.init(jax.random.key(0), xs[0])
    >>> tangent_kernel(net)(params, xs).shape
    (3, 2, 3, 2)
    """
    run = per_example(net, COLUMN, kept)

    def columns(params, xs):
        out = output(net, params, jax.tree.map(lambda t: t[0], xs))
        units = jnp.eye(out.size, dtype=out.dtype).reshape(out.size, *out.shape)
        found = jax.vmap(lambda u: run(params, xs, jnp.broadcast_to(u, (size(xs), *u.shape)))[1])(units)
        return jax.tree.map(lambda t: t.swapaxes(0, 1).reshape(-1, *t.shape[2:]), found), out.size

    def of(params, xs, others=None):
        mine, outs = columns(params, xs)
        theirs = mine if others is None else columns(params, others)[0]
        return inner_products(mine, theirs, params, rows=rows).reshape(size(xs), outs, -1, outs)

    return of


def squares_of(chosen: Callable[[Factor, jax.Array], bool]) -> Reading:
    """For each parameter Σ_x ‖g_x‖² where `chosen(factor, p)`, and a number above 0; (0, 0) elsewhere."""

    def at(factor, p):
        used = chosen(factor, p)
        square = sum_over_examples(None)(Plain(factor.squared_norm())) if used else 0.0
        return jnp.asarray([square, used], accumulated(p.dtype))

    return Reading(each(at), out_axes=None, additive=True)


def is_cheap(factor: Factor, p: jax.Array) -> bool:
    """Whether the norm costs next to nothing: of a vector (gain, bias), or of a matrix used once, ‖δ‖²‖a‖²."""
    return p.ndim <= 1 or (isinstance(factor, Outer) and not factor.sums)


class NoiseScale(NamedTuple):
    """tr Σ / ‖G‖² of the whole and by parameter, and both estimates by parameter: 0 where it was not chosen."""

    whole: jax.Array
    by_parameter: Tree
    covariance: Tree
    squared_gradient: Tree


def noise_and_signal(grads: Tree, squares: Tree, n: int) -> tuple[Tree, Tree]:
    """tr Σ and ‖G‖² by parameter, unbiased, of the mean gradient and of `squares_of` with 1/n on each δ."""

    def of(g, read):
        mean_square, used = n * read[..., 0].sum(), (read[..., 1].reshape(-1)[0] > 0).astype(read.dtype)
        noise = (mean_square - used * jnp.vdot(g, g)) * n / max(n - 1, 1)
        return noise, used * jnp.vdot(g, g) - noise / n

    both = jax.tree.map(of, grads, squares)
    return jax.tree.transpose(jax.tree.structure(grads), jax.tree.structure((0, 0)), both)


def noise_scale(
    backward: Backward, *, chosen: Callable[[Factor, jax.Array], bool] = lambda *_: True
) -> Callable[..., NoiseScale]:
    """The gradient noise scale of one batch, in examples; an average over many batches takes the mean of both parts.

    `chosen(factor, p)`: the parameters that are read, by default all; `is_cheap` takes those whose norms cost next to
    nothing. Returns `(params, *batch) -> NoiseScale`. Raises `ValueError` for a batch of one example.

    >>> net, xs, ys = dense(2), jnp.eye(3), jnp.array([0, 1, 1])
    >>> params = net.init(jax.random.key(0), xs[0])
    >>> from jaxnet.quantities.kept_factors import of_network
    >>> noise_scale(of_network(net, softmax_cross_entropy))(params, xs, ys).whole.shape
    ()
    """
    run = backward(pair(total, squares_of(chosen)))

    def of(params, *batch):
        n = size(batch)
        if n < 2:
            raise ValueError("the noise scale compares examples, so a batch has at least 2, got 1")
        _, (grads, squares) = run(params, *batch)
        noise, signal = noise_and_signal(grads, squares, n)
        whole = jnp.stack(jax.tree.leaves(noise)).sum() / jnp.stack(jax.tree.leaves(signal)).sum()
        return NoiseScale(whole, jax.tree.map(jnp.divide, noise, signal), noise, signal)

    return of
