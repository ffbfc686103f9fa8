"""Differentially private gradients (DP-SGD) from one backward pass.

    ḡ = 1/L (Σ_x min(1, C / ‖g_x‖) g_x + σ C ε)        ε ~ N(0, 1), entry by entry

The norms come from the factors, and the clipped sum from the same factors with min(1, C/‖g_x‖) on each δ: one matrix
product for each W, and no example's gradient is formed. Each example is in a batch with probability q, independently
(`poisson_sample`), and L = q · N is the expected size, so the privacy loss is that of the subsampled Gaussian
mechanism; dp-accounting computes it.

The factors of a batch take about the memory of a plain step once more, so batches run in `chunks`: a GPT of 2 blocks of
128 in two takes 1.4 of a plain step's time and 1.01 of its memory. A second backward pass for the weighted sum, in the
place of kept factors, took 1.6 and 1.14.

Sources: Abadi et al., Deep Learning with Differential Privacy, 2016, algorithm 1; McMahan et al., A General Approach to
Adding Differential Privacy to Iterative Training Procedures, 2018, for the norm of each layer; Doroshenko et al.,
Connect the Dots, 2022, for the accounting.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet.backprop import size, summed
from jaxnet.layer import Reading, Tree
from jaxnet.quantities.kept_factors import condensed, kept, squared_norms, weighted_total


def clipped_sum(
    own: Callable[[Reading], Callable],
    *,
    clip: float,
    per_layer: bool = False,
    chunks: int = 1,
) -> Callable[..., tuple[jax.Array, Tree]]:
    """Σ_x min(1, C / ‖g_x‖) g_x over a batch, g_x the gradient of example x's own cost.

    `own`: a reading as each example's own: `partial(per_example, net, loss)`, or `partial(read, loss)` of any model.
    Returns `(params, *batch, counts=None, **options) -> sum of the costs, sum of the clipped gradients`. counts: 1 for
    each example that is in the batch and 0 for padding. per_layer: the gradient of each of L layers, the parameters
    with a container in common, is clipped to C/√L; of the blocks of `repeat` each is a layer.
    chunks: the batch runs in so many equal pieces, one after another, to save memory.

    >>> from functools import partial
    >>> net, xs, ys = dense(2), jnp.ones((3, 4)), jnp.array([0, 1, 1])
    >>> params = net.init(jax.random.key(0), xs[0])
    >>> own = partial(per_example, net, softmax_cross_entropy)
    >>> cost, grads = clipped_sum(own, clip=0.1)(params, xs, ys)
    >>> bool(jnp.linalg.norm(grads["W"]) <= 3 * 0.1)
    True
    """
    run = own(kept)

    def of(params, *batch, counts=None, **options):
        counts = jnp.ones(size(batch)) if counts is None else counts

        def piece(pieces):
            batch, counts = pieces
            costs, found = run(params, *batch, **options)
            factors = condensed(found, params)
            weights = shares(squared_norms(factors, params), clip, per_layer)
            weights = jax.tree.map(lambda w: w * counts.reshape(-1, *[1] * (w.ndim - 1)).astype(w.dtype), weights)
            return jnp.sum(costs * counts.astype(costs.dtype)), weighted_total(factors, params, weights)

        return piece((batch, counts)) if chunks == 1 else summed(piece, (batch, counts), chunks)

    return of


def shares(squares: Tree, clip: float, per_layer: bool) -> Tree:
    """min(1, C / ‖g_x‖) for each parameter and example, of the squared norms: (batch, *stacks)."""
    found, structure = jax.tree_util.tree_flatten_with_path(squares)
    layers = [path[:-1] if per_layer else () for path, _ in found]
    blocks: dict[tuple, list[jax.Array]] = {}
    for layer, (_, square) in zip(layers, found, strict=True):
        blocks.setdefault(layer, []).append(square if per_layer else square.reshape(len(square), -1).sum(1))
    bound = clip / math.sqrt(sum(math.prod(parts[0].shape[1:]) for parts in blocks.values()))
    of = {layer: jnp.minimum(1, bound / jnp.sqrt(jnp.maximum(sum(parts), 1e-30))) for layer, parts in blocks.items()}
    return jax.tree.unflatten(structure, [of[layer] for layer in layers])


def with_noise(clipped: Tree, key: jax.Array, *, noise_multiplier: float, clip: float, expected: float) -> Tree:
    """(Σ + σ C ε) / L: the private gradient, for any optimiser of optax.

    >>> grads = with_noise({"W": jnp.zeros(5)}, jax.random.key(0), noise_multiplier=2.0, clip=0.5, expected=10)
    >>> grads["W"].shape
    (5,)
    """
    leaves, structure = jax.tree.flatten(clipped)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        (g + noise_multiplier * clip * jax.random.normal(k, g.shape, g.dtype)) / expected
        for g, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)


def capacity(examples: int, rate: float, multiple_of: int = 1) -> int:
    """A size that a batch of expected size L = rate · examples exceeds with probability below 1e-12.

    A multiple of `multiple_of`, at most all examples, rounded up. By Bernstein's inequality, for L ≥ 1.

    >>> capacity(60000, 0.01)
    792
    """
    expected = rate * examples
    # P(X ≥ L + t) ≤ exp(−t² / (2 L + 2 t / 3)) = 1e-12, solved for t.
    nats = 12 * math.log(10)
    excess = nats / 3 + math.sqrt((nats / 3) ** 2 + 2 * nats * expected)
    return -(-min(examples, math.ceil(expected + excess)) // multiple_of) * multiple_of


def poisson_sample(key: jax.Array, examples: int, rate: float, places: int) -> tuple[jax.Array, jax.Array]:
    """Each example with probability `rate`, independently: numbers, filled up to `places`, and 1 where one counts.

    >>> at, counts = poisson_sample(jax.random.key(0), 100, 0.1, capacity(100, 0.1))
    >>> at.shape == counts.shape
    True
    """
    chosen = jax.random.bernoulli(key, rate, (examples,))
    [at] = jnp.nonzero(chosen, size=places, fill_value=0)
    return at.astype(jnp.int32), (jnp.arange(places) < chosen.sum()).astype(jnp.float32)


def accounting() -> Any:
    """dp-accounting, which takes seconds to import."""
    try:
        import dp_accounting
        import dp_accounting.pld
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            'the privacy loss is computed by dp-accounting: install it with pip install "jaxnet-backprop[privacy]"'
        ) from None
    return dp_accounting


def event(noise_multiplier: float, rate: float, steps: int) -> Any:
    """Training of so many steps, as dp-accounting's event."""
    dp = accounting()
    return dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise_multiplier)), steps)


def epsilon(*, noise_multiplier: float, rate: float, steps: int, delta: float) -> float:
    """ε of so many steps at this δ, neighbours differing by one example more or less; 0 before the first.

    noise_multiplier: σ, the noise over the clipping norm. rate: the probability q of an example to be in a batch.

    >>> round(epsilon(noise_multiplier=1.0, rate=256 / 60000, steps=200, delta=1e-5), 3)
    0.37
    """
    if steps == 0:
        return 0.0
    accountant = accounting().pld.PLDAccountant()
    accountant.compose(event(noise_multiplier, rate, steps))
    return float(accountant.get_epsilon(delta))


def noise_multiplier_for(target: float, *, rate: float, steps: int, delta: float) -> float:
    """The σ with which so many steps have ε = `target` at this δ; found by bisection."""
    dp = accounting()

    def of(sigma):
        return event(sigma, rate, steps)

    return float(dp.calibrate_dp_mechanism(dp.pld.PLDAccountant, of, target, delta, tol=1e-3))
