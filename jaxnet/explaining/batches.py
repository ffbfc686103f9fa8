"""A batch: dZ Aᵀ is the sum of the examples' outer products; 1/m stands once, before the sum."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.backprop import backpropagate, per_example
from jaxnet.explaining.model import Batch
from jaxnet.explaining.notation import ExplainError
from jaxnet.explaining.numbering import NumberedLayer
from jaxnet.explaining.observe import Observed, chain
from jaxnet.explaining.ulp import ulps
from jaxnet.layer import Reading
from jaxnet.readings import total, whole

SHOWN = 8  # outer products that are kept by themselves


def batches(
    observed: Observed, chosen: tuple[NumberedLayer, ...], xs: Any, ys: Any, examples: tuple[int, ...] = ()
) -> tuple[Batch, ...]:
    """Of each dense layer the outer products of the examples, their sum, and the network's own gradient of the mean.

    xs, ys: the batch. examples: its indices in the data.
    Raises `ExplainError` for an empty batch.
    """
    xs, ys = jnp.asarray(xs), jnp.asarray(ys)
    m = len(xs)
    if m == 0:
        raise ExplainError("a batch to be explained has at least one example, got none")
    net, loss, params = observed.net, observed.loss, observed.params
    _, grads = jax.jit(backpropagate(net, loss, total))(params, xs, ys)
    outers = Reading(lambda passing: whole.at(passing).factors, out_axes=0)
    _, factors = jax.jit(per_example(net, loss, outers))(params, xs, ys)
    own_grads, own_factors = (each if loss.init is None else each[0] for each in (grads, factors))
    layer_grads = [g for _, g in chain(net, own_grads)]
    layer_factors = [f for _, f in chain(net, own_factors)]
    found = []
    for place in chosen:
        factor = layer_factors[place.index]["W"]
        deltas, inputs = np.asarray(factor.delta), np.asarray(factor.a)
        each = np.einsum("xi,xj->xij", deltas[:SHOWN], inputs[:SHOWN])
        summed = np.sum([np.outer(d, a) for d, a in zip(deltas, inputs, strict=True)], axis=0) / deltas.dtype.type(m)
        gradient = np.asarray(layer_grads[place.index]["W"])
        found.append(
            Batch(
                place.index, place.gives.above, m, examples or tuple(range(m)), deltas, inputs, each, gradient,
                summed, ulps(summed, gradient),
            )
        )  # fmt: skip
    return tuple(found)
