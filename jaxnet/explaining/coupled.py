"""Layers that couple the examples of a batch: run over a whole batch, in training."""

from __future__ import annotations

from typing import Any

import jax

from jaxnet.combinators import over_positions
from jaxnet.layer import EXAMPLES, Layer, Tree


def in_training(layer: Layer) -> Layer:
    """A layer in training over a whole batch, the first axis of x. It gives the sum of the examples' gradients."""

    def init(key, xs):
        return layer.init(key, jax.eval_shape(lambda xs: xs[0], xs))

    def forward(params, xs, key=None, train=False):
        return jax.vmap(lambda x: layer.forward(params, x, None, True), axis_name=EXAMPLES)(xs)

    def backward(params, saved, d_outs, read):
        def at_one(saved, d_out):
            return layer.backward(params, saved, d_out, over_positions(read))

        return jax.vmap(at_one, out_axes=(0, None), axis_name=EXAMPLES)(saved, d_outs)

    return Layer(layer.name, init, forward, backward, (layer,), in_training)


def couples(layer: Layer, params: Tree, x: Any) -> bool:
    """Whether a layer takes statistics over a batch in training: one example alone it refuses."""

    def runs(layer: Layer, x: Any) -> bool:
        try:
            jax.eval_shape(lambda p, x: layer.forward(p, x, None, True), params, x)
        except ValueError:
            return False
        return True

    return not runs(layer, x) and runs(
        in_training(layer), jax.tree.map(lambda t: jax.ShapeDtypeStruct((2, *t.shape), t.dtype), x)
    )
