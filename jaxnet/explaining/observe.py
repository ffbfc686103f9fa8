"""The numbers of one example's forward and backward pass, layer by layer, by the network's own functions.

A network is walked as a chain: `serial` is opened, every other combination (residual, repeat, …) is one item, which
`records` take apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.backprop import own_weight
from jaxnet.combinators import serial
from jaxnet.explaining.notation import ExplainError
from jaxnet.layer import Layer, Loss, Tree, own_params
from jaxnet.losses import one_hot
from jaxnet.program.evaluate import quickly
from jaxnet.readings import product


@dataclass(frozen=True, eq=False)
class Item:
    """One layer of the chain at one example: input, output, and the error on both sides.

    reference: autodiff's ∂C/∂out, ∂C/∂x (None for whole numbers) and ∂C/∂params. single: whether it takes and gives
    one array.
    """

    layer: Layer
    params: Tree
    x: np.ndarray
    out: np.ndarray
    d_out: np.ndarray
    dx: np.ndarray | None
    grads: Tree
    reference: tuple[Any, Any, Any]
    single: bool = True


@dataclass(frozen=True, eq=False)
class Observed:
    """A network with its loss at one example, and all that was computed there."""

    net: Layer
    loss: Loss
    params: Tree
    x: np.ndarray
    y: np.ndarray
    cost: float
    items: tuple[Item, ...]

    @property
    def target(self) -> np.ndarray:
        """The target in the shape of the output: one-hot where it came as a class."""
        out = self.items[-1].out
        return np.asarray(one_hot(jnp.asarray(self.y), jnp.asarray(out)))


def chain(net: Layer, params: Tree) -> list[tuple[Layer, Tree]]:
    """The layers of a network one after the other, each with its parameters."""
    if net.rebuild is not serial:
        return [(net, params)]
    return [each for part, p in zip(net.parts, params, strict=True) for each in chain(part, p)]


def array(tree: Any) -> np.ndarray:
    """An item's input or output as a NumPy array. Several arrays are joined to one vector.

    Raises `ExplainError` for none.
    """
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    if not leaves:
        raise ExplainError(f"a layer to be explained takes and gives an array, got {tree!r}")
    return leaves[0] if len(leaves) == 1 else np.concatenate([leaf.reshape(-1) for leaf in leaves])


def exact(tree: Any) -> bool:
    """Whether all of it is of floats, so that there is a derivative by it."""
    return all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(tree))


def observe(net: Layer, loss: Loss, params: Tree, x: Any, y: Any) -> Observed:
    """Forward and backward of one example, in evaluation mode, with autodiff's values beside.

    x: one input of the network. y: its target. params: as `initialize` gives them.
    Raises `ExplainError` for a network without layers, and `ShapeError` for a wrong shape.
    """
    x, y = jax.tree.map(jnp.asarray, x), jnp.asarray(y)
    net_params, loss_params = own_params(loss, params)
    items = chain(net, net_params)
    if not items:
        raise ExplainError("a network to be explained has at least one layer, got none: put one into serial(…)")
    layers, own = [layer for layer, _ in items], [p for _, p in items]
    weight = own_weight(loss, y)

    def by_hand(params, x, y):
        outs, saved = [x], []
        for layer, p in zip(layers, params, strict=True):
            out, s = layer.forward(p, outs[-1])
            outs.append(out)
            saved.append(s)
        cost, d_out, _ = loss.turn(loss_params, outs[-1], y, weight, product)
        errors, grads = [d_out], []
        for layer, p, s in zip(reversed(layers), reversed(params), reversed(saved), strict=True):
            d_out, g = layer.backward(p, s, d_out, product)
            errors.append(d_out)
            grads.append(g)
        return (cost, outs, errors[::-1], grads[::-1]), by_autodiff(params, outs, y)

    def by_autodiff(params, outs, y):
        """∂C/∂params of each layer, and ∂C/∂ of the input and of each layer's value, by zeros added to them."""

        def added(value, zeros):
            return value if zeros is None else jax.tree.map(jnp.add, value, zeros)

        def cost(params, zeros):
            value = added(outs[0], zeros[0])
            for layer, p, each in zip(layers, params, zeros[1:], strict=True):
                value = added(layer.forward(p, value)[0], each)
            return loss.turn(loss_params, value, y, weight, product)[0]

        zeros = [jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), out) if exact(out) else None for out in outs]
        return jax.grad(cost, argnums=(0, 1), allow_int=True)(params, zeros)

    (cost, outs, errors, grads), (expected_grads, slopes) = quickly(by_hand, (own, x, y))
    made = []
    for i, layer in enumerate(layers):
        numbers, dx = jax.tree.map(np.asarray, (own[i], grads[i], expected_grads[i])), errors[i]
        sent = (array(dx), array(slopes[i])) if exact(outs[i]) and dx is not None else (None, None)
        single = len(jax.tree.leaves((outs[i], outs[i + 1]))) == 2
        made.append(Item(layer, numbers[0], array(outs[i]), array(outs[i + 1]), array(errors[i + 1]), sent[0],
                         numbers[1], (array(slopes[i + 1]), sent[1], numbers[2]), single))  # fmt: skip
    return Observed(net, loss, params, array(x), np.asarray(y), float(cost), tuple(made))


def features(out: np.ndarray) -> int:
    """How many features each term of the cost has."""
    return int(out.shape[-1]) if out.ndim else 1


def terms_of(observed: Observed) -> float:
    """Over how many terms (tokens) the cost of the example is the mean."""
    weight = float(own_weight(observed.loss, jnp.asarray(observed.y)))
    return round(1 / weight) if weight else 1
