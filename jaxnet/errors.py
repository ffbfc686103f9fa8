"""Common slips, told: no layer, no loss, no batch, parameters of another network."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet.layer import Layer, Loss, ShapeError, Tree, split_state
from jaxnet.registry import makers


def are_made(net: Any, loss: Any) -> None:
    """Raises `TypeError` unless these are a layer and a loss."""
    for what, thing, kind in (("network", net, Layer), ("loss", loss, Loss)):
        if isinstance(thing, kind):
            continue
        known = makers("loss") if kind is Loss else makers("layer", "model")
        of_name = thing if isinstance(thing, str) else getattr(thing, "__name__", "")
        mend = "make one, as quadratic" if kind is Loss else "make one, as serial(dense(3))"
        mend = f"write {known[of_name].call}" if of_name in known else mend
        raise TypeError(f"the {what} must be a {kind.__name__}, got {thing!r}: {mend}")


def is_batch(xs: Tree, ys: Tree) -> None:
    """Raises `ShapeError` unless all arrays have one count of examples along their first axis."""
    shapes = [("xs", jnp.shape(t)) for t in jax.tree.leaves(xs)] + [("ys", jnp.shape(t)) for t in jax.tree.leaves(ys)]
    for name, shape in shapes:
        if not shape:
            raise ShapeError(
                f"xs and ys are batches, with the examples along the first axis, got {name} without axes: "
                "for one example give x[None] and y[None]"
            )
    if len({shape[0] for _, shape in shapes}) > 1:
        raise ShapeError(
            "xs and ys must have as many examples, along the first axis, got "
            f"{', '.join(f'{name} of shape {shape}' for name, shape in shapes)}: "
            "give a target for each example; for one example give x[None] and y[None]"
        )


@contextmanager
def of_this_network(init: Callable[[jax.Array, Tree], Tree], params: Tree, xs: Tree) -> Iterator[None]:
    """Says why a network failed on a batch: parameters of another network, or one example in the place of a batch.

    `init(key, x)`: fresh parameters for one example. Raises `ShapeError` for these two; other errors pass.
    """
    try:
        yield
    except (TypeError, KeyError, IndexError, AttributeError, ValueError) as error:
        x = jax.tree.map(lambda t: jax.ShapeDtypeStruct(jnp.shape(t)[1:], jnp.asarray(t).dtype), xs)
        try:
            expected = fresh(init, x)
        except ShapeError as refused:
            whole = jax.tree.map(lambda t: jax.ShapeDtypeStruct(jnp.shape(t), jnp.asarray(t).dtype), xs)
            try:
                fresh(init, whole)
            except ShapeError:
                raise error from None
            raise ShapeError(
                f"{refused}; xs of shape {jnp.shape(jax.tree.leaves(xs)[0])} is one example, and a batch has the "
                "examples along its first axis: for one example give x[None] and y[None]"
            ) from None
        if isinstance(error, ShapeError) or same_shapes(params, expected):
            raise
        raise ShapeError(
            f"the parameters are another network's: this one takes {shapes_of(expected)}, got {shapes_of(params)}: "
            "initialise it"
        ) from error


def fresh(init: Callable[[jax.Array, Tree], Tree], x: Tree) -> Tree:
    """The shapes of fresh parameters."""
    return jax.eval_shape(lambda: init(jax.random.key(0), x))


def same_shapes(params: Tree, expected: Tree) -> bool:
    """Whether parameters have the structure and shapes of those expected; their state may have been taken out."""
    one, other = (jax.tree.map(jnp.shape, split_state(tree)[0]) for tree in (params, expected))
    return one == other


def shapes_of(params: Tree) -> str:
    """The shapes of parameters, shortened."""
    shapes = str(jax.tree.map(jnp.shape, params))
    return shapes if len(shapes) <= 200 else f"{shapes[:200]}…"
