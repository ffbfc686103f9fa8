"""Where NaN or infinity first appears: the layer, on the way forward or back, and the examples.

    forward     a layer whose output is not finite
    the turn    the cost, or δ = ∂C/∂out of the network
    backward    a layer whose dx is not finite, though its δ is

Every flag is one for each example and layer, from one backward pass. Without it a batch's gradient is NaN, and says
neither.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.backprop import per_example
from jaxnet.layer import Layer, Loss, Passing, Reading, Tree, leaves, on_leaves
from jaxnet.readings import in_order, pair
from jaxnet.traces import Recorded, recorded


class Finite(NamedTuple):
    """Whether all numbers are finite: of each example's cost; of its out, δ and dx at each layer, (batch, layers).

    `number`: the leaf layer of each column, from 0. A layer inside `repeat` has a column for each time.
    """

    cost: jax.Array
    out: jax.Array
    delta: jax.Array
    dx: jax.Array
    number: jax.Array


class Origin(NamedTuple):
    """A place in words, and the examples whose numbers are not finite there, from 0."""

    where: str
    examples: np.ndarray


def is_finite(tree: Tree) -> jax.Array:
    """Whether all real numbers of a tree are finite."""
    inexact = [t for t in jax.tree.leaves(tree) if jnp.issubdtype(t.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(t).all() for t in inexact]).all() if inexact else jnp.ones((), bool)


def _at(values: Callable[[Passing], Any]) -> Reading:
    def at(passing):
        return is_finite(values(passing))[None] if isinstance(passing.saved, Recorded) else jnp.zeros((0,), bool)

    return Reading(at, out_axes=0, coupled=True)


def finite(net: Layer, loss: Loss) -> Callable[..., Finite]:
    """Which examples have NaN or infinity, by layer; `first_nonfinite` says of it where they began.

    Returns `(params, xs, ys, *, state=None, key=None, train=False) -> Finite`. Where a layer couples the examples
    (`batch_norm` in training) δ is that of the sum of their costs.

    >>> net, xs, ys = serial(dense(2, init="glorot_normal"), relu), jnp.ones((3, 4)), jnp.ones((3, 2))
    >>> params = net.init(jax.random.key(0), xs[0])
    >>> found = finite(net, quadratic)(params, xs.at[1].set(jnp.nan), ys)
    >>> print(found.out[:, 0])
    [ True False  True]
    """
    flags = pair(_at(lambda passing: passing.saved.out), _at(lambda p: p.d_out), _at(lambda p: p.dx))
    run = per_example(on_leaves(recorded, net), loss, flags)

    def of(params, xs, ys, **given):
        costs, found = run(params, xs, ys, **given)
        seen, structure = jax.tree.flatten(found[0])
        numbers = jax.tree.unflatten(structure, [jnp.full(t.shape[1:], i) for i, t in enumerate(seen)])
        out, delta, dx = (in_order(net, each) for each in found)
        return Finite(jnp.isfinite(costs), out, delta, dx, in_order(net, numbers))

    return of


def first_nonfinite(net: Layer, loss: Loss, found: Finite) -> Origin | None:
    """The first place that is not finite, forward and then back, and its examples; None where all is finite.

    `found`: the reading `finite(net, loss)`.

    >>> net, xs, ys = serial(dense(2, init="glorot_normal"), relu), jnp.ones((3, 4)), jnp.ones((3, 2))
    >>> params = net.init(jax.random.key(0), xs[0])
    >>> found = finite(net, quadratic)(params, xs.at[1].set(jnp.nan), ys)
    >>> print(first_nonfinite(net, quadratic, found))
    Origin(where='the value of layer 1 of 2 (dense 2)', examples=array([1]))
    """
    cost, out, delta, dx, number = map(np.asarray, found)
    layers = named(net, number)
    the_loss = f"the loss ({loss.name})"
    places = [(f"the value of {layer}", out[:, i]) for i, layer in enumerate(layers)]
    places.append((the_loss, cost))
    for i, layer in reversed([*enumerate(layers)]):
        reached = f"the error that reaches {layer}" if i + 1 < len(layers) else f"the backward pass of {the_loss}"
        places += [(reached, delta[:, i]), (f"the backward pass of {layer}", dx[:, i])]
    return next((Origin(where, np.flatnonzero(~flags)) for where, flags in places if not flags.all()), None)


def named(net: Layer, number: np.ndarray) -> list[str]:
    """Each column's layer by its place and name, inside `repeat` with its time."""
    names, columns = [leaf.name for leaf in leaves(net)], number.tolist()
    times = [f", time {columns[:i].count(n) + 1} of {columns.count(n)}" if columns.count(n) > 1 else ""
             for i, n in enumerate(columns)]  # fmt: skip
    return [f"layer {n + 1} of {len(names)} ({names[n]}){time}" for n, time in zip(columns, times, strict=True)]
