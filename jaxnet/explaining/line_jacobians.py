"""The Jacobian of a whole line, where no rule reaches: as a matrix, and in words."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.explaining.numbers import shape
from jaxnet.explaining.recording import Array, Recording


def jacobians(recording: Recording, ref: int, named: set[int]) -> dict[int, np.ndarray]:
    """∂/∂ of a line's value by the values with a symbol that it is made of, of arrays as vectors.

    Empty where it is made inside `vmap` or `scan`, whose operations cannot be run one by one.
    """
    wanted: dict[int, Any] = {}

    def run(of: int, values: dict[int, Any]) -> Any:
        of = recording.root(of)
        if of in values:
            return values[of]
        if (of in named and of != ref) or of not in recording.operations:
            return wanted.setdefault(of, recording.values[of])
        made = recording.operations[of]
        if made.part or recording.stacked.get(of):
            raise LookupError(made.name)
        take = partial(filled, values=lambda each: run(each, values))
        return jnp.asarray(
            function_named(made.name)(*map(take, made.args), **{k: take(v) for k, v in made.options.items()})
        )

    try:
        with jax.enable_x64(True):
            out = run(ref, {})
            found = {
                of: value for of, value in wanted.items() if of in named and jnp.issubdtype(value.dtype, jnp.inexact)
            }
            rows = {
                of: jax.jacrev(lambda value, of=of: run(ref, {of: value}))(jnp.asarray(value))
                for of, value in found.items()
            }
    except (LookupError, TypeError):  # an operation that is not known by its name and operands alone
        return {}
    return {of: np.asarray(each).reshape(out.size, -1) for of, each in rows.items()}


def filled(operand: Any, values: Callable[[int], Any]) -> Any:
    """An operand with the values of its arrays."""
    if isinstance(operand, Array):
        return values(operand.ref)
    return type(operand)(filled(each, values) for each in operand) if type(operand) in (tuple, list) else operand


def function_named(name: str) -> Callable:
    """A function of `jax.numpy`, `jax.nn` or `jax.lax`, or an operator.

    Raises `LookupError` for another.
    """
    for module in (operator if name == "getitem" else jnp, jax.nn, jax.lax):
        if hasattr(module, name):
            return getattr(module, name)
    raise LookupError(name)


def jacobian_in_words(J: np.ndarray) -> str:
    """A Jacobian in words."""
    ones = np.isin(J, (0, 1)).all()
    rows, columns = (np.count_nonzero(J, axis) for axis in (1, 0))
    if ones and (rows == 1).all() and J.shape[0] == J.shape[1] and (columns == 1).all():
        return "a permutation, each error goes back to where its entry came from"
    if ones and (rows == 1).all():
        return "each entry is one that was picked; where none was picked the error is 0"
    if J.shape[0] == J.shape[1] and not np.any(J - np.diag(np.diag(J))):
        return "diagonal, each entry by itself"
    if ones:
        return "a 1 wherever an entry is added"
    return f"{shape(J.shape)}, of the whole line"
