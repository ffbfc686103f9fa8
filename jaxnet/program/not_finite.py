"""The first operation of a function that gives a NaN or an infinity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.program.graph import Operation, graph_of
from jaxnet.program.numpy_evaluation import NumpyEvaluation


class Arising(NumpyEvaluation):
    """Finds the first operation in which a NaN arises from numbers, or an infinity from finite numbers."""

    found = ""

    def operation(self, operation: Operation, values: Sequence) -> Sequence:
        """The results of an operation."""
        outs = super().operation(operation, values)
        nan_in, infinite_in = kinds(values)
        nan, infinite = kinds(outs)
        nan, infinite = nan and not nan_in, infinite and not (nan_in or infinite_in)
        if not self.found and (nan or infinite):
            kind, where = "a NaN" if nan else "an infinity", operation.position or "no known line"
            self.found = f"{kind} arises in `{operation.name}` at {where}"
        return outs


def kinds(values: Sequence) -> tuple[bool, bool]:
    """Whether a NaN, and whether an infinity, stands in the values."""
    floats = [v for v in values if jnp.issubdtype(jnp.result_type(v), jnp.inexact)]
    return any(bool(np.isnan(v).any()) for v in floats), any(bool(np.isinf(v).any()) for v in floats)


def first_not_finite(function: Callable, *args: Any) -> str | None:
    """The first operation of `function(*args)` where a NaN or an infinity arises, with its line; None for none.

    Raises `UnknownPrimitiveError` for a primitive with programs inside that is not known.

    >>> import jax.numpy as jnp
    >>> from jaxnet.program import first_not_finite
    >>> first_not_finite(lambda x: x / x, jnp.zeros(2)).split(" at ")[0]
    'a NaN arises in `div`'
    """
    flat = jax.tree.leaves(args)
    if any(kinds([leaf for leaf in flat if hasattr(leaf, "dtype")])):
        return "a NaN or an infinity stands in the inputs"
    arising = Arising()
    with np.errstate(all="ignore"):
        arising.run(graph_of(jax.make_jaxpr(function)(*args)), flat)
    return arising.found or None
