"""Low precision: products in half, dynamic loss scaling, and saved values in 8 bits.

    products       in bfloat16 or float16; parameters, sums and all else in float32
    loss scaling   S δ goes through the network, so that δ does not underflow in float16;  ∇C = ∇(S C)/S
    8 bits         x ≈ s q, s = max|x| / 127 of each row, q 8 bits; δ stays as it is

Autodiff cannot save in 8 bits: a cotangent has the type of its value.

Sources: Micikevicius et al., Mixed Precision Training, 2018, §3 (loss scaling); Chakrabarti and Moseley, Backprop with
Approximate Activations for Memory-efficient Network Training, 2019 (saved values).
"""

from dataclasses import field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnet.factors import dataclass_tree
from jaxnet.layer import Layer, Loss, Tree, adapted, on_leaves

HALF = {"bfloat16": jnp.bfloat16, "float16": jnp.float16}
EIGHT_BITS = {"int8": (jnp.int8, 127), "float8": (jnp.float8_e4m3fn, 448)}  # and the largest number
SMALL = 1 / 8  # of a layer's largest saved array; smaller ones, as σ, stay as they are
LARGEST_SCALE = 2.0**24


def in_precision(net: Layer, precision: str) -> Layer:
    """The network for a precision: in half, matrices are multiplied in it, and all else stays float32.

    Parameters and gradients keep their own dtype: a reading sees the uncast parameters.
    """
    if precision not in HALF:
        return net

    def cast(params):
        return jax.tree.map(lambda p: p.astype(HALF[precision]) if p.ndim >= 2 else p, params)

    return on_leaves(lambda layer: layer if layer.maker == "elementwise" else adapted(layer, cast), net)


# ------------------------------------------------------------------------------------------- saved in 8 bits


@dataclass_tree
class Packed:
    """An array in 8 bits, with a scale for each row along its last axis.

    The bits are kept as whole numbers: a CPU would keep floats of 8 bits in 16.
    """

    bits: Any
    scale: Any
    kind: str = field(metadata={"static": True})
    dtype: Any = field(metadata={"static": True})

    def unpacked(self) -> jax.Array:
        """The array, to 8 bits."""
        q = jax.lax.bitcast_convert_type(self.bits, EIGHT_BITS[self.kind][0])
        return (q.astype(jnp.float32) * self.scale).astype(self.dtype)


def pack(t: jax.Array, kind: str) -> Packed:
    """An array in 8 bits, "int8" or "float8"."""
    dtype, largest = EIGHT_BITS[kind]
    wide = t.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=-1, keepdims=True) / largest
    q = wide / jnp.where(scale == 0, 1, scale)
    q = (jnp.round(q) if kind == "int8" else q).astype(dtype)
    return Packed(jax.lax.bitcast_convert_type(q, jnp.uint8), scale, kind, t.dtype)


def saving(net: Layer, kind: str) -> Layer:
    """The network with its layers' saved arrays of real numbers in 8 bits: "int8", "float8"; "full" as they are.

    >>> from jaxnet import dense, vjp
    >>> net, x = dense(2), jnp.arange(3.0)
    >>> params = net.init(jax.random.key(0), x)
    >>> jax.tree.leaves(saving(net, "int8").forward(params, x)[1])[0].dtype
    dtype('uint8')
    """
    if kind == "full":
        return net

    def packed(saved):
        least = SMALL * max((t.size for t in jax.tree.leaves(saved)), default=0)

        def of(t):
            return pack(t, kind) if jnp.issubdtype(t.dtype, jnp.floating) and t.ndim and t.size >= least else t

        return jax.tree.map(of, saved)

    def unpacked(saved):
        return jax.tree.map(lambda t: t.unpacked() if is_packed(t) else t, saved, is_leaf=is_packed)

    return on_leaves(lambda layer: adapted(layer, pack=packed, unpack=unpacked), net)


def is_packed(node: Any) -> bool:
    """Whether a node of a tree is an array in 8 bits."""
    return isinstance(node, Packed)


# --------------------------------------------------------------------------------------------- loss scaling


class LossScale(NamedTuple):
    """The number that the loss is multiplied by, and how many steps it has been good for."""

    value: jax.Array
    good: jax.Array

    @staticmethod
    def begin(value: float) -> "LossScale":
        """The scale before the first step."""
        return LossScale(jnp.float32(value), jnp.int32(0))

    def after(self, finite: jax.Array, steps: int) -> "LossScale":
        """Half after a gradient that is not finite; twice after `steps` finite ones."""
        grows = self.good + 1 >= steps
        value = jnp.where(finite, jnp.where(grows, 2 * self.value, self.value), self.value / 2)
        return LossScale(jnp.clip(value, 1, LARGEST_SCALE), jnp.where(finite & ~grows, self.good + 1, 0))


def scaled(loss: Loss, scale: jax.Array) -> Loss:
    """The loss with `scale` times its errors and gradients, and its own cost."""

    def turn(params, x, y, weight, read):
        cost, dx, readings = loss.turn(params, x, y, scale * weight, read)
        return cost / scale, dx, readings

    return loss._replace(turn=turn)


def divided(tree: Tree, by: jax.Array) -> Tree:
    """Every array over a number."""
    return jax.tree.map(lambda t: t / by, tree)
