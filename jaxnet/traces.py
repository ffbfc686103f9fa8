"""Traces: the value and the δ of every leaf layer, from one backward pass."""

from collections.abc import Callable
from html import escape
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.backprop import check_labels, keys_for, mapped, one_example, own_weight
from jaxnet.errors import are_made
from jaxnet.factors import dataclass_tree
from jaxnet.layer import EXAMPLES, Layer, Loss, Reading, ShapeError, Static, Tree, on_leaves, with_state


@dataclass_tree
class Step:
    """One leaf layer in a trace: its name, its value, and δ = ∂C/∂out (both in the shape of out)."""

    layer: Static
    out: Tree
    delta: Tree

    def __str__(self):
        return f"{self.layer.value}: out {self.out.shape}, δ {self.delta.shape}"


class Trace(NamedTuple):
    """The costs of the examples, and a `Step` for each leaf layer, first layer first."""

    cost: jax.Array
    steps: tuple[Step, ...]

    def _repr_html_(self) -> str:
        """A table for notebooks: of each layer its value and its δ."""
        cells = [(step.layer.value, _brief(step.out), _brief(step.delta)) for step in self.steps]
        rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in cells)
        head = (
            f"<caption>C = {escape(_brief(self.cost))}</caption><tr><th>layer</th><th>out</th><th>δ = ∂C/∂out</th></tr>"
        )
        return f"<table>{head}{rows}</table>"


def _brief(values: Tree) -> str:
    """Arrays as text, their ends alone where they are long."""
    leaves = map(np.asarray, jax.tree.leaves(values))
    return "; ".join(np.array2string(leaf, precision=4, threshold=12, edgeitems=2) for leaf in leaves)


@dataclass_tree
class Recorded:
    """The saved values of a recorded layer: its own, its name and its output, for readings."""

    saved: Tree
    layer: Static
    out: Tree


def recorded(layer: Layer) -> Layer:
    """A leaf layer that saves its output too: `passing.saved` of a reading is a `Recorded`."""

    def forward(params, x, key=None, train=False):
        out, saved = layer.forward(params, x, key, train)
        return out, Recorded(saved, Static(layer.name), out)

    def backward(params, saved, d_out, read):
        seen = read._replace(at=lambda passing: read.at(passing._replace(saved=saved)))
        return layer.backward(params, saved.saved, d_out, seen)

    return layer._replace(forward=forward, backward=backward)


_steps = Reading(lambda passing: Step(passing.saved.layer, passing.saved.out, passing.d_out), out_axes=0)


def trace(net: Layer, loss: Loss) -> Callable:
    """Every value and every δ, by layer: of a dense layer z and δ = ∂C/∂z, of an activation a and ∂C/∂a.

    Returns `(params, x, y, *, state=None, key=None, train=False) -> Trace`, of one example, or of a batch with each
    example's own cost and δ: x is taken for one example where the network takes its shape, else for a batch. Where a
    layer couples the examples (`batch_norm` in training), δ is that of the sum of their costs.
    Inside `repeat`, a step's arrays have the times as leading axis; inside `per_position`, the positions.

    >>> net, xs, ys = dense(2), jnp.ones((3, 4)), jnp.array([0, 1, 1])
    >>> params = net.init(jax.random.key(0), xs[0])
    >>> trace(net, softmax_cross_entropy)(params, xs, ys).cost.shape
    (3,)
    """
    are_made(net, loss)
    watched = on_leaves(recorded, net)

    def of(params, x, y, *, state=None, key=None, train=False):
        params = with_state(params, state)

        def one(x, y, key):
            cost, readings = one_example(watched, loss, _steps, train)(params, x, y, own_weight(loss, y), key)
            steps = jax.tree.leaves(readings, is_leaf=lambda node: isinstance(node, Step))
            return Trace(cost, tuple(steps))

        x, y = jnp.asarray(x), jnp.asarray(y)
        try:
            jax.eval_shape(one, x, y, key)
        except ShapeError:
            found = mapped(one, x, axis=EXAMPLES)(x, y, keys_for(key, x))
            check_labels(net, loss, params, x, y, found.cost)
            return found
        return one(x, y, key)

    return of
