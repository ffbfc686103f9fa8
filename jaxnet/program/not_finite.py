"""The first operation of a function that gives a NaN or an infinity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.program.evaluate import Keeping, Kept, quickly, turns_of
from jaxnet.program.graph import Operation, graph_of
from jaxnet.program.nesting import nested

ARISES = "arises"


class Arising(Keeping):
    """Keeps, of each operation, whether a NaN and whether an infinity arises in it."""

    def keep(self, operation: Operation, values: Sequence, outs: Sequence) -> Kept:
        """Two truths: a NaN from numbers; an infinity from finite numbers."""
        nan_in, infinite_in = kinds(values)
        nan, infinite = kinds(outs)
        return {(operation.number, ARISES): jnp.stack([nan & ~nan_in, infinite & ~(nan_in | infinite_in)])}


def kinds(values: Sequence) -> tuple[Any, Any]:
    """Whether a NaN, and whether an infinity, stands in the values."""
    floats = [v for v in map(jnp.asarray, values) if jnp.issubdtype(v.dtype, jnp.inexact)]
    nan, infinite = jnp.asarray(False), jnp.asarray(False)
    for value in floats:
        nan |= jnp.isnan(value).any()
        infinite |= jnp.isinf(value).any()
    return nan, infinite


def first_not_finite(function: Callable, *args: Any) -> str | None:
    """The first operation of `function(*args)` where a NaN or an infinity arises, with its line; None for none.

    Raises `UnknownPrimitiveError` for a primitive with programs inside that is not known.

    >>> import jax.numpy as jnp
    >>> from jaxnet.program import first_not_finite
    >>> first_not_finite(lambda x: x / x, jnp.zeros(2)).split(" at ")[0]
    'a NaN arises in `div`'
    """
    flat = jax.tree.leaves(args)
    if any(map(np.any, kinds([leaf for leaf in flat if hasattr(leaf, "dtype")]))):
        return "a NaN or an infinity stands in the inputs"
    graph = graph_of(jax.make_jaxpr(function)(*args))
    arising = Arising(turns_of(graph, flat))
    kept = {key: np.asarray(value) for key, value in quickly(lambda *a: arising.body(graph, a)[1], flat).items()}
    found = [
        (each.order(step), each.operation, bool(truths[step][0]))
        for each in nested(graph)
        if (truths := kept.get((each.operation.number, ARISES))) is not None and truths.any()
        for step in each.steps(kept, truths.shape)
        if truths[step].any()
    ]
    if not found:
        return None
    _, operation, nan = min(found, key=lambda each: each[0])
    return (
        f"{'a NaN' if nan else 'an infinity'} arises in `{operation.name}` at {operation.position or 'no known line'}"
    )
