"""Batch normalisation: each channel to mean 0 and variance 1 over the examples of a batch, then scaled and shifted.

    μ  = E[x]        σ² = E[(x − μ)²]        E: the mean over the examples of the batch and the positions of each
    x̂  = (x − μ) / √(σ² + ε)
    out = γ x̂ + β                            x, out: (…, channels)   γ, β, μ, σ²: (channels,)

    dx̂ = γ d_out
    dx = (dx̂ − E[dx̂] − x̂ E[dx̂ x̂]) / √(σ² + ε)      every example's dx knows of all the others, through μ and σ²
    ∇_γ C = Σ d_out x̂        ∇_β C = Σ d_out           Σ: over positions, and examples

In evaluation μ and σ² are the population's, numbers like any others: dx = dx̂ / √(σ² + ε).

Source: Ioffe and Szegedy, Batch Normalization, 2015, §3, algorithms 1 and 2.
"""

import math

import jax
import jax.numpy as jnp

from jaxnet.factors import Plain
from jaxnet.layer import EXAMPLES, Layer, Passing, ShapeError, Static, Untrained, fits_input, split_state
from jaxnet.layers.normalization import along_last
from jaxnet.lowering.products import accumulated
from jaxnet.lowering.sharding import mean_over_axis
from jaxnet.registry import maker


def in_batch() -> bool:
    """Whether the surrounding vmap is that over the examples of a batch."""
    try:
        jax.lax.axis_size(EXAMPLES)
    except NameError:
        return False
    return True


def mean_over_batch(t: jax.Array) -> jax.Array:
    """E[t] over the examples and all axes but the last."""
    return mean_over_axis(t.reshape(-1, t.shape[-1]).mean(0), EXAMPLES)


def batch_statistics(x):
    """μ and σ² of the batch. Raises `ValueError` for one example by itself."""
    if not in_batch():
        raise ValueError(
            "batch_norm in training takes its mean over a whole batch, got one example by itself: its examples "
            "are coupled, so it has no gradient of each example alone and does not run in chunks; use "
            "value_and_grad with chunks=1, or evaluation mode (train=False)"
        )
    mu = mean_over_batch(x)
    return mu, mean_over_batch(jnp.square(x - along_last(mu, x)))


def moved(population, rate, mu, variance, count):
    """The population after a batch of `count` values of each channel."""
    if population is None:
        return None
    seen = {"mean": mu, "variance": variance * (count / max(count - 1, 1))}
    return Untrained(jax.tree.map(lambda old, new: (1 - rate) * old + rate * new, population.value, seen))


@maker(examples={"serial(dense(4), batch_norm())": "float32[6,5]"}, axes={"gamma": "channels", "beta": "channels"})
def batch_norm(*, epsilon: float = 1e-5, rate: float = 0.1) -> Layer:
    """out = γ (x − μ)/√(σ² + ε) + β, with μ and σ² over a batch, for x of shape (…, channels).

    In training μ and σ² are the batch's own, in evaluation the population's: a moving average of the batches' (of
    their unbiased variances), of which each new one makes the share `rate`. Parameters: `{"gamma": (channels,),
    "beta": (channels,), "population": Untrained({"mean", "variance"})}`; `split_state` takes the population apart, and
    `value_and_grad(…)(…, state=…, train=True)` gives it back as it is after the step.
    It couples the examples of a batch, so it trains only where they are all there: under `value_and_grad`, or the
    batched form of `as_custom_vjp`. Raises `ValueError` for one example by itself in training, for chunks of a batch,
    for readings of each example by itself, and in evaluation without a population; `ShapeError` for a number without
    channels, or another count of channels.

    >>> net, x = batch_norm(), jnp.ones(3)
    >>> params = net.init(jax.random.key(0), x)
    >>> jax.tree.map(jnp.shape, params)
    {'beta': (3,), 'gamma': (3,), 'population': Untrained(value={'mean': (3,), 'variance': (3,)})}
    """

    def accepts(x, params):
        if x.ndim < 1:
            raise ShapeError("batch_norm takes (…, channels), got a single number: put a dense layer before it")
        fits_input("batch_norm", params, "gamma", x.shape[-1:], x)

    def init(key, x):
        accepts(x, None)
        dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32
        zero, one = jnp.zeros(x.shape[-1:], dtype), jnp.ones(x.shape[-1:], dtype)
        population = {"mean": zero.astype(accumulated(dtype)), "variance": one.astype(accumulated(dtype))}
        return {"gamma": one, "beta": zero, "population": Untrained(population)}

    def forward(params, x, key=None, train=False):
        accepts(x, params)
        wide, population = x.astype(accumulated(x.dtype)), params["population"]
        if train:
            mu, variance = batch_statistics(wide)
            after = moved(population, rate, mu, variance, jax.lax.axis_size(EXAMPLES) * math.prod(x.shape[:-1]))
        elif population is None:
            raise ValueError("batch_norm in evaluation takes its population's statistics, got none: give state=…")
        else:
            mu, variance, after = population.value["mean"], population.value["variance"], population
        sigma = jnp.sqrt(variance + epsilon)
        x_hat = (wide - along_last(mu, wide)) / along_last(sigma, wide)
        out = along_last(params["gamma"], wide) * x_hat + along_last(params["beta"], wide)
        return out.astype(x.dtype), (x_hat, sigma, after, Static(train))

    def backward(params, saved, d_out, read):
        x_hat, sigma, after, train = saved
        d = d_out.astype(x_hat.dtype)
        dx_hat = along_last(params["gamma"], d) * d  # out = γ x̂ + β
        dx = dx_hat
        if train.value:  # x̂ = (x − μ)/√(σ² + ε), and μ and σ² are of this batch
            dx = dx - along_last(mean_over_batch(dx_hat), d) - x_hat * along_last(mean_over_batch(dx_hat * x_hat), d)
        dx = (dx / along_last(sigma, d)).astype(d_out.dtype)
        positions = d_out.ndim - 1
        factors = {"gamma": Plain(d * x_hat, positions), "beta": Plain(d, positions), "population": None}
        state = {"gamma": None, "beta": None, "population": after}
        own, _ = split_state(params)
        return dx, read.at(Passing(own, saved, d_out, dx, factors, state))

    return Layer("batch_norm", init, forward, backward)
