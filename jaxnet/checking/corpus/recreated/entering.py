"""How a rule of a public report is entered, and its inputs: at larger sizes the first axis of `n` rows grows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxnet.checking.corpus.case import Rules, gaussian, integers
from jaxnet.checking.subject import on_device

RULES = Rules()


def sized(shape: tuple, n: int) -> tuple[int, ...]:
    """A shape with `n` rows."""
    return tuple(n if axis == "n" else axis for axis in shape)


def back_of(primal: Callable, *inputs: Any) -> Callable[[Callable], Callable]:
    """Enters a right backward pass of a function of some inputs, each a shape or a function that draws it."""

    def make_args(size: int, seed: int, dtype: Any) -> tuple:
        rng, n = np.random.default_rng(seed), (6, 9, 16)[size]
        return tuple(
            gaussian(rng, sized(each, n), dtype) if isinstance(each, tuple) else each(rng, n, dtype) for each in inputs
        )

    return RULES.back_of(primal, make_args)


def positive(*shape):
    """Numbers between 0.3 and 1.3."""
    return lambda rng, n, dtype: on_device(rng.uniform(0.3, 1.3, sized(shape, n)), dtype)


def classes(below, *shape):
    """Labels below a number, one for each row; 0 stands first and `below` − 1 last."""

    def make(rng, n, dtype):
        return integers(rng, sized(shape, n), below).at[0].set(0).at[-1].set(below - 1)

    return make


def definite(rng, n, dtype):
    """A positive definite matrix."""
    A = rng.standard_normal((4, 4))
    return on_device(A @ A.T + 2 * np.eye(4), dtype)
