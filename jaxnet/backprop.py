"""Backpropagation of a network and a loss: the only vmap over examples, and the only 1/n.

Everything here is one function, `backpropagate`, with another reading.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from jaxnet.errors import are_made, is_batch, of_this_network
from jaxnet.layer import (
    EXAMPLES,
    LabelError,
    Layer,
    Loss,
    Reading,
    ShapeError,
    Static,
    Tree,
    output,
    own_params,
    with_state,
)
from jaxnet.lowering.sharding import axes_of_examples, explicit_sharding
from jaxnet.readings import apart, new_state, pair, product, total


def initialize(net: Layer, loss: Loss | None, key: jax.Array, x: Tree) -> Tree:
    """Fresh parameters for inputs of the shape and dtype of `x`, one example.

    The network's; or the pair (the network's, the loss's) where the loss has parameters of its own. Where a layer
    keeps state (`batch_norm`), `split_state` takes parameters and state apart.

    >>> params = initialize(dense(3), quadratic, jax.random.key(0), jnp.zeros(5))
    >>> jax.tree.map(jnp.shape, params)
    {'W': (3, 5), 'b': (3,)}
    """
    if loss is not None:
        are_made(net, loss)
    if loss is None or loss.init is None:
        return net.init(key, x)
    net_key, loss_key = jax.random.split(key)
    params = net.init(net_key, x)
    return params, loss.init(loss_key, output(net, params, x))


def one_example(net: Layer, loss: Loss, read: Reading, train: bool = False) -> Callable:
    """(params, x, y, weight, key) -> weight · cost, readings: forward, the turn, backward, of one example."""

    def one(params, x, y, weight, key):
        net_params, loss_params = own_params(loss, params)
        out, saved = net.forward(net_params, x, key, train)
        cost, d_out, loss_reading = loss.turn(loss_params, out, y, weight, read)
        _, reading = net.backward(net_params, saved, d_out, read)
        reading = reading if loss.init is None else (reading, loss_reading)
        return cost, apart(reading, read.out_axes)

    return one


def backpropagate(net: Layer, loss: Loss, read: Reading, *, chunks: int = 1) -> Callable:
    """The cost of a batch, and a reading of its backward pass.

    C = 1/n Σ_x C_x, over n = the terms that count (examples, or tokens), each with its weight.

    Returns `batch(params, xs, ys, *, state=None, key=None, train=False, weights=None) -> value, readings`: xs, ys and
    weights have the batch as leading axis; a weight is a number for each example, or one for each of its terms; the
    mean is then Σ w C / Σ w. Readings come with the structure of the parameters, one for each example or one for the
    batch as the reading says; those of a pair as a tuple. `chunks`: the number of equal pieces of the batch that
    run one after another, to save memory; for additive readings.
    Raises `ValueError` for a reading that is not additive in several chunks, or chunks that do not divide the batch,
    and where a layer couples the examples (`batch_norm` in training) in several chunks or for a reading of each
    example by itself. Outside `jax.jit` it raises `LabelError` for a class label outside the network's classes, and
    `ValueError` for weights that sum to 0; under `jax.jit` value and readings are then NaN. `ShapeError` for weights
    of another shape, batches of different sizes, and parameters of another network; `TypeError` for anything but a
    `Layer` and a `Loss`.

    >>> net, xs, ys = dense(2), jnp.ones((3, 4)), jnp.array([0, 1, 1])
    >>> params = net.init(jax.random.key(0), xs[0])
    >>> cost, grads = backpropagate(net, softmax_cross_entropy, total)(params, xs, ys)
    >>> cost.shape, jax.tree.map(jnp.shape, grads)
    ((), {'W': (2, 4), 'b': (2,)})
    """
    are_made(net, loss)
    if chunks > 1 and not read.additive:
        raise ValueError("only additive readings (total, pairs of them) may run in chunks: call it with chunks=1")

    # The axis has a name where a layer may look across it: for a whole batch, and a reading that allows it.
    axis = EXAMPLES if read.coupled and chunks == 1 else None

    def batch(params, xs, ys, *, state=None, key=None, train=False, weights=None):
        is_batch(xs, ys)
        params = with_state(params, state)
        one = one_example(net, loss, read, train)

        def piece(pieces):
            in_axes, out_axes = (None, 0, 0, 0, 0), (0, read.out_axes)
            costs, readings = mapped(one, pieces, in_axes, out_axes, axis)(params, *pieces)
            return costs.sum(), readings

        # One weight for each example, and mapped: so no factor is ever unmapped, not even of a δ equal for all.
        weights = mean_weights(loss, ys, weights)
        whole = xs, ys, weights, keys_for(key, xs)
        with of_this_network(partial(initialize, net, loss), params, xs):
            value, readings = piece(whole) if chunks == 1 else summed(piece, whole, chunks)
        check_labels(net, loss, params, xs, ys, value)
        return value, readings

    return batch


def mapped(f: Callable, batch: Tree, in_axes: Any = 0, out_axes: Any = 0, axis: str | None = None) -> Callable:
    """`f` of one example for as many as a batch has, each device of a mesh with its share."""
    return jax.vmap(f, in_axes, out_axes, axis_name=axis, spmd_axis_name=axes_of_examples(batch))


def check_labels(net: Layer, loss: Loss, params: Tree, xs: Tree, ys: Tree, costs: jax.Array) -> None:
    """Where a cost came out as NaN, raise `LabelError` if a label of `ys` is the cause; under `jax.jit` nothing.

    Only the loss knows its labels. So its turn runs again, with 0 as the network's output: where the cost is NaN
    still, the turn of that example by itself raises.
    """
    if any(isinstance(t, Tracer) for t in jax.tree.leaves((costs, ys))) or not readable(costs):
        return
    if not np.isnan(costs).any():
        return
    net_params, loss_params = own_params(loss, params)
    out = jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), output(net, net_params, jax.tree.map(lambda t: t[0], xs)))

    def cost(y):
        return loss.turn(loss_params, out, y, 1.0, total)[0]

    bad = np.flatnonzero(np.isnan(jax.vmap(cost)(ys)))
    if not len(bad):
        return
    first = int(bad[0])
    try:
        cost(jax.tree.map(lambda t: t[first], ys))
    except LabelError as error:
        raise LabelError(f"example {first}: {error}") from None


def readable(array: jax.Array) -> bool:
    """Whether this process holds all values of an array."""
    return array.is_fully_addressable or array.is_fully_replicated


def mean_weights(loss: Loss, ys: Tree, weights: Tree | None = None) -> jax.Array:
    """The share of each example, or of each of its terms, in the batch's mean: w / Σ w.

    Raises `ShapeError` for weights of another shape, `ValueError` where they sum to 0; under `jax.jit` shares are then
    NaN.
    """
    if weights is None:
        n = jax.vmap(loss.terms)(ys)
        n = size(ys) * n.value if isinstance(n, Static) else n.sum()
        return sharded_as(jnp.ones(size(ys)), ys) * one_over(n)
    if jnp.shape(weights)[:1] != (size(ys),):
        raise ShapeError(f"weights: one for each of {size(ys)} examples, got shape {jnp.shape(weights)}")
    n = jax.vmap(loss.terms)(ys, weights).sum()
    weights = jnp.asarray(weights, n.dtype)
    whole = weights.sum()
    if not isinstance(whole, Tracer) and readable(whole) and whole == 0:
        raise ValueError(
            "weights must not sum to 0: the mean of a batch is Σ w C / Σ w; give at least one example weight"
        )
    return weights * jnp.where(whole == 0, jnp.nan, one_over(n))


def size(batch: Tree) -> int:
    """How many examples a batch has."""
    return len(jax.tree.leaves(batch)[0])


def keys_for(key: jax.Array | None, batch: Tree) -> jax.Array | None:
    """A key for each example of a batch; None where there is none."""
    return None if key is None else sharded_as(jax.random.split(key, size(batch)), batch)


def sharded_as(array: jax.Array, batch: Tree) -> jax.Array:
    """`array`, its leading axis sharded as the batch's where types carry shardings: all that vmap maps must agree."""
    sharding = explicit_sharding(jax.tree.leaves(batch)[0])
    if sharding is None:
        return array
    return jax.sharding.reshard(array, NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[0])))


def one_over(n: jax.Array | float) -> jax.Array:
    """1/n; 0 where n is 0, so that a batch or an example of ignored terms alone adds nothing."""
    return jnp.where(n == 0, 0.0, 1 / jnp.where(n == 0, 1, n))


def own_weight(loss: Loss, y: Tree) -> jax.Array:
    """1 / the terms of one example that count: the weight of its own mean cost."""
    n = loss.terms(y)
    return one_over(n.value if isinstance(n, Static) else n)


def summed(piece: Callable, batch: Tree, chunks: int) -> Tree:
    """Σ piece(chunk) over equal chunks of a batch, in a scan."""
    if size(batch) % chunks:
        raise ValueError(f"chunks must divide the batch, got {chunks} chunks of {size(batch)} examples")
    split = jax.tree.map(lambda t: t.reshape(chunks, -1, *t.shape[1:]), batch)
    first = jax.tree.map(
        lambda t: jnp.zeros(t.shape, t.dtype), jax.eval_shape(piece, jax.tree.map(lambda t: t[0], split))
    )
    return jax.lax.scan(lambda so_far, part: (jax.tree.map(jnp.add, so_far, piece(part)), None), first, split)[0]


def value_and_grad(net: Layer, loss: Loss, *, chunks: int = 1) -> Callable:
    """As `jax.value_and_grad` of a batch's mean cost, by the hand-written backward pass.

    Returns `(params, xs, ys, *, state=None, key=None, train=False, weights=None) -> value, grads`, grads with the
    structure, shapes and dtypes of params; see `backpropagate`. Given the state of the layers that keep one, it returns
    `value, grads, state`, with the state after this step.

    >>> net, xs, ys = dense(2), jnp.ones((3, 4)), jnp.array([0, 1, 1])
    >>> params = net.init(jax.random.key(0), xs[0])
    >>> cost, grads = value_and_grad(net, softmax_cross_entropy)(params, xs, ys)
    >>> cost.shape, grads["W"].shape
    ((), (2, 4))
    """
    stateless = backpropagate(net, loss, total, chunks=chunks)
    stateful = backpropagate(net, loss, pair(total, new_state))

    def batch(params, xs, ys, *, state=None, key=None, train=False, weights=None):
        given = {"key": key, "train": train, "weights": weights}
        if state is None:
            return stateless(params, xs, ys, **given)
        if chunks > 1:
            raise ValueError(f"layers with state couple the examples, so their batch runs whole, got {chunks} chunks")
        value, (grads, after) = stateful(params, xs, ys, state=state, **given)
        return value, grads, after

    return batch


def per_example(net: Layer, loss: Loss, read: Reading = product) -> Callable:
    """Each example's own cost C_x and the readings of its backward pass: by default its own gradient.

    Returns `(params, xs, ys, *, state=None, key=None, train=False) -> costs (batch,), readings`, each with the batch as
    leading axis. Nothing is divided by the batch's size; a sequence's cost is the mean over its terms.
    Raises `ValueError` for a reading that sums over the examples, and where a layer couples them, unless the reading is
    coupled too (`deltas`).

    >>> net, xs, ys = dense(2), jnp.ones((3, 4)), jnp.array([0, 1, 1])
    >>> params = net.init(jax.random.key(0), xs[0])
    >>> _, grads = per_example(net, softmax_cross_entropy)(params, xs, ys)
    >>> grads["W"].shape
    (3, 2, 4)
    """
    are_made(net, loss)
    if None in jax.tree.leaves(read.out_axes, is_leaf=lambda axes: axes is None):
        raise ValueError("per_example takes readings that are one for each example (product, squared_norm, deltas)")

    def batch(params, xs, ys, *, state=None, key=None, train=False):
        is_batch(xs, ys)
        params = with_state(params, state)

        def one(x, y, k):
            return one_example(net, loss, read, train)(params, x, y, own_weight(loss, y), k)

        with of_this_network(partial(initialize, net, loss), params, xs):
            axis = EXAMPLES if read.coupled else None
            costs, readings = mapped(one, xs, axis=axis)(xs, ys, keys_for(key, xs))
        check_labels(net, loss, params, xs, ys, costs)
        return costs, readings

    return batch


def predict(net: Layer) -> Callable:
    """(params, xs, state=None) -> the network's outputs for a batch, in evaluation mode.

    >>> net, xs, ys = dense(2), jnp.ones((3, 4)), jnp.array([0, 1, 1])
    >>> params = net.init(jax.random.key(0), xs[0])
    >>> predict(net)(params, xs).shape
    (3, 2)
    """

    def batch(params, xs, state=None):
        with of_this_network(net.init, params, xs):
            return mapped(lambda x: net.forward(with_state(params, state), x)[0], xs)(xs)

    return batch


def vjp(net: Layer) -> Callable:
    """As `jax.vjp` of the network at one example, by the hand-written backward pass.

    Returns `(params, x, *, key=None, train=False) -> out, pullback`, and `pullback(d_out) -> (d_params, dx)`.

    >>> out, back = vjp(relu)((), jnp.array([-1.0, 2.0]))
    >>> _, dx = back(jnp.ones(2))
    >>> print(dx)
    [0. 1.]
    """

    def at(params, x, *, key=None, train=False):
        out, saved = net.forward(params, x, key, train)

        def pullback(d_out):
            dx, d_params = net.backward(params, saved, d_out, product)
            return d_params, dx

        return out, pullback

    return at


def as_custom_vjp(net: Layer, *, batched: bool = False, train: bool = False) -> Callable:
    """The network as a function that `jax.grad` differentiates by the hand-written rule.

    Returns `f(params, x, key=None) -> out`, for one example, which `jit`, `vmap`, `grad` and other libraries' training
    loops take; `vmap(grad(…))` of it gives per-example gradients. With `batched`, for a batch `xs`: gradients of a sum
    over the batch then cost one matrix product for each W, where `vmap` of the single form costs about twice that.
    Of a network with state, params are taken with it (`with_state`), and the state after a step does not come back.

    >>> f = as_custom_vjp(sigmoid)
    >>> print(jax.grad(lambda x: f((), x))(0.0))
    0.25
    """
    read = total if batched else product

    def forward(params, x, key):
        return net.forward(params, x, key, train)

    def backward(params, saved, d_out):
        return net.backward(params, saved, d_out, read)

    def over(f, out_axes: Any = 0):
        return jax.vmap(f, (None, 0, 0), out_axes, axis_name=EXAMPLES) if batched else f

    def keys(x, key):
        return keys_for(key, x) if batched else key

    @jax.custom_vjp
    def f(params, x, key):
        return over(forward)(params, x, keys(x, key))[0]

    def rule_forward(params, x, key):
        out, saved = over(forward)(params, x, keys(x, key))
        return out, (params, saved, Static(jax.tree.map(lambda t: t.dtype, x)))

    def rule_backward(residuals, d_out):
        params, saved, dtype = residuals
        dx, d_params = over(backward, (0, read.out_axes))(params, saved, d_out)

        def in_dtype(dtype, d):
            return d.astype(dtype) if jnp.issubdtype(dtype, jnp.inexact) else None

        return d_params, jax.tree.map(in_dtype, dtype.value, dx), None

    f.defvjp(rule_forward, rule_backward)

    def network(params, x, key=None):
        return f(*varying_alike((params, x, key)))

    return network


def varying_alike(arguments: Tree) -> Tree:
    """The arguments, all varying over the same mesh axes, as inside `jax.shard_map`.

    The derivative of this is the sum over these axes: a rule gives each device's own part of a gradient.
    """
    axes = [jax.typeof(leaf).manual_axis_type.varying for leaf in jax.tree.leaves(arguments)]
    union = frozenset().union(*axes)

    def vary(leaf):
        missing = tuple(union - jax.typeof(leaf).manual_axis_type.varying)
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(vary, arguments)
