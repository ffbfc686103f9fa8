"""Readings: quantities taken at each layer as the error passes. A new quantity is a new reading, not a new backward.

`total` is the gradient; `product` each example's own; `squared_norm` its length, without forming it; `second_moment`
the sum of their squares; `deltas` every δ.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from jaxnet.factors import Plain, dataclass_tree, is_factor
from jaxnet.layer import Layer, Passing, Reading, ShapeError, Tree
from jaxnet.lowering.products import accumulated
from jaxnet.lowering.sharding import explicit_sharding


def each(of: Callable) -> Callable[[Passing], Tree]:
    """Read every parameter's factor by itself: `of(factor, parameter)`."""
    return lambda passing: jax.tree.map(of, passing.factors, passing.params, is_leaf=is_factor)


def everywhere(size: int, mapped: Tree, tree: Tree) -> Tree:
    """`tree` with a leading axis of `size` on the leaves that `vmap` left without one."""
    return jax.tree.map(lambda t, m: t if m else jnp.broadcast_to(t, (size, *t.shape)), tree, mapped)


@lru_cache
def sum_over_examples(out_sharding):
    """A function from the factor of ONE example to its gradient; under vmap over examples, to the sum of theirs.

    The sum is one matrix product. Left to itself, XLA makes a loop of vmap(outer) and a sum: 2 to 7 times slower.
    """

    @custom_vmap
    def contract(factor):
        return factor.multiply(out_sharding)

    @contract.def_vmap
    def _(size, mapped, factor):
        # The rule multiplies out plainly, so that a further vmap (over seeds) batches it as any other operation.
        return everywhere(size, mapped[0], factor).summed_once_more().multiply(out_sharding), False

    return contract


def total_of(factor, p):
    """The gradient of one parameter, in its dtype and with its sharding."""
    return like_parameter(sum_over_examples(explicit_sharding(p))(factor), p)


def like_parameter(gradient, p):
    """A gradient in the dtype of its parameter; refused in another shape, as of a bias that was broadcast."""
    if gradient.shape != p.shape:
        raise ShapeError(f"a parameter of shape {p.shape} has a gradient of shape {gradient.shape}: give it this shape")
    return gradient.astype(p.dtype)


total = Reading(each(total_of), out_axes=None, additive=True, coupled=True, linear=True)
"""∂C/∂p summed over the examples: the gradient. One matrix product for each W.

>>> net, xs, ys = dense(2), jnp.ones((3, 4)), jnp.array([0, 1, 1])
>>> params = net.init(jax.random.key(0), xs[0])
>>> _, grads = backpropagate(net, softmax_cross_entropy, total)(params, xs, ys)
>>> grads["W"].shape
(2, 4)
"""

product = Reading(each(lambda factor, p: like_parameter(factor.multiply(), p)), out_axes=0, linear=True)
"""Each example's own ∂C_x/∂p.

>>> net, xs, ys = dense(2), jnp.ones((3, 4)), jnp.array([0, 1, 1])
>>> params = net.init(jax.random.key(0), xs[0])
>>> _, grads = per_example(net, softmax_cross_entropy, product)(params, xs, ys)
>>> grads["W"].shape
(3, 2, 4)
"""

squared_norm = Reading(each(lambda factor, p: factor.squared_norm()), out_axes=0)
"""Each example's ‖∂C_x/∂p‖² for each parameter, without forming the gradient: ‖δ‖²‖a‖² for a dense W.

>>> net, xs, ys = dense(2), jnp.ones((3, 4)), jnp.array([0, 1, 1])
>>> params = net.init(jax.random.key(0), xs[0])
>>> _, norms = per_example(net, softmax_cross_entropy, squared_norm)(params, xs, ys)
>>> norms["W"].shape
(3,)
"""

second_moment = Reading(each(lambda factor, p: total_of(factor.squared(), p)), out_axes=None, additive=True)
"""Σ (∂C_x/∂p)² over the examples, entry by entry: δ² (a²)ᵀ for a dense W, one matrix product.

>>> net, xs, ys = dense(2), jnp.ones((3, 4)), jnp.array([0, 1, 1])
>>> params = net.init(jax.random.key(0), xs[0])
>>> _, squares = backpropagate(net, softmax_cross_entropy, second_moment)(params, xs, ys)
>>> squares["W"].shape
(2, 4)
"""

deltas = Reading(lambda passing: passing.d_out, out_axes=0, coupled=True)
"""Each example's δ = ∂C/∂out at every layer.

>>> net, xs, ys = dense(2), jnp.ones((3, 4)), jnp.array([0, 1, 1])
>>> params = net.init(jax.random.key(0), xs[0])
>>> _, every = backpropagate(net, softmax_cross_entropy, deltas)(params, xs, ys)
>>> every.shape
(3, 2)
"""

new_state = Reading(
    lambda p: jax.tree.map(lambda _: None, p.params) if p.state is None else p.state, out_axes=None, coupled=True
)
"""The layers' state after a step on the whole batch, in the structure of `split_state`'s second."""

nothing = Reading(lambda passing: (), out_axes=0)
"""For the cost or dx alone."""

whole = Reading(lambda passing: passing, out_axes=0)
"""All that meets at a layer, factors not multiplied out; for combinators that read later."""


def where_params(at):
    """Read only at layers with parameters."""
    return lambda passing: at(passing) if jax.tree.leaves(passing.params) else ()


def _sum_of_squares(passing):
    return jnp.sum(jnp.square(passing.d_out.astype(accumulated(passing.d_out.dtype))))


squared_delta = Reading(where_params(_sum_of_squares), out_axes=0, coupled=True)
"""Each example's ‖δ‖² at every layer that has parameters, first layer first."""

sum_of_deltas = Reading(
    where_params(lambda p: sum_over_examples(None)(Plain(p.d_out))), out_axes=None, additive=True, coupled=True
)
"""Σ δ over the examples at every layer that has parameters: the mean δ, since 1/n stands on each."""


@dataclass_tree
class Beside:
    """A parameter p with something beside it that a backward pass uses too: its curvature, or the feedback matrix."""

    p: Any
    own: Any


def bare(params: Tree) -> Tree:
    """The parameters alone, without the values beside them."""

    def beside(node):
        return isinstance(node, Beside)

    return jax.tree.map(lambda node: node.p if beside(node) else node, params, is_leaf=beside)


@dataclass_tree
class Together:
    """The results of several readings at one layer."""

    read: tuple


def pair(*readings: Reading) -> Reading:
    """Several readings in one backward pass; their results come as a tuple of trees.

    >>> net, xs, ys = dense(2), jnp.ones((3, 4)), jnp.array([0, 1, 1])
    >>> params = net.init(jax.random.key(0), xs[0])
    >>> _, (grads, every) = backpropagate(net, softmax_cross_entropy, pair(total, deltas))(params, xs, ys)
    >>> grads["W"].shape, every.shape
    ((2, 4), (3, 2))
    """
    return Reading(
        lambda passing: Together(tuple(reading.at(passing) for reading in readings)),
        out_axes=tuple(reading.out_axes for reading in readings),
        additive=all(reading.additive for reading in readings),
        coupled=all(reading.coupled for reading in readings),
        linear=all(reading.linear for reading in readings),
    )


def in_each(f: Callable, *readings: Tree) -> Tree:
    """`f` of one reading's result at a layer, or of each result of a `pair`."""
    if not isinstance(readings[0], Together):
        return f(*readings)
    return Together(tuple(in_each(f, *each) for each in zip(*(t.read for t in readings), strict=True)))


def apart(readings: Tree, out_axes) -> Tree:
    """A tree of `Together`s as a tuple of trees, one for each reading of a `pair`."""

    def of(i):
        return jax.tree.map(lambda t: t.read[i], readings, is_leaf=lambda t: isinstance(t, Together))

    if not isinstance(out_axes, tuple):
        return readings
    return tuple(apart(of(i), axes) for i, axes in enumerate(out_axes))


def in_order(net: Layer, numbers: Tree) -> jax.Array:
    """The readings of all leaf layers as one vector, first layer first; of a stack, block by block."""
    return _in_order(net, iter(jax.tree.leaves(numbers)))


def _in_order(net: Layer, numbers: Iterator[jax.Array]) -> jax.Array:
    if net.rebuild is None:
        return next(numbers)
    rows = [row for part in net.parts if (row := _in_order(part, numbers)).shape[-1]]
    if not rows:
        return jnp.zeros((0,))
    joined = jnp.concatenate(rows, axis=-1)
    # Inside a stack each row is (…, times, layers of the block): one time comes after the other.
    return joined.reshape(*joined.shape[:-2], -1) if net.maker == "repeat" else joined


def over_positions(read: Reading) -> Reading:
    """`read` for a layer that vmap applies at every position of a sequence, its factors summed over them.

    The layer hands over one position; the rule of this vmap sees all positions, and reads them once.
    So every layer inside is read by itself, whatever combinators stand between, a scan included.
    """

    def at_all(passing):
        factors = jax.tree.map(lambda f: f.summed_once_more(), passing.factors, is_leaf=is_factor)
        return read.at(passing._replace(factors=factors))

    @custom_vmap
    def at(passing):
        # A sequence of one: both ways give one structure, also where factors are handed on unread.
        return at_all(Passing(passing.params, *jax.tree.map(lambda t: t[None], passing[1:])))

    @at.def_vmap
    def _(size, mapped, passing):
        [mapped] = mapped
        result = at_all(Passing(passing.params, *everywhere(size, mapped[1:], passing[1:])))
        return result, jax.tree.map(lambda _: False, result)

    return read._replace(at=at)
