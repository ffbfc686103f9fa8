"""A case of the corpus, and how one is entered."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.checking.subject import on_device


class Case(NamedTuple):
    """One mistake: the right function, the wrong rule, inputs by size (0, 1, 2), and the words of the right cause.

    Each of `cause_words` is a regular expression that the cause or the mended equation must hold, small letters.
    """

    name: str
    primal: Callable[..., Any]
    wrong_rule: tuple[Callable[..., Any], Callable[..., Any]]
    make_args: Callable[[int, int, Any], tuple]
    cause_words: tuple[str, ...]
    wrong_leaves: tuple[str, ...]

    def named_by(self, text: str) -> bool:
        """Whether a text, of the cause and the mended equation, says each of the words."""
        return all(re.search(word.lower(), text.lower()) for word in self.cause_words)


def saving_arguments(primal: Callable, backward: Callable) -> tuple[Callable, Callable]:
    """The rule that saves its arguments and goes back by `backward(args, cotangent)`."""
    return lambda *args: (primal(*args), args), backward


def completed(mistaken: dict, right: dict[str, Callable]) -> dict:
    """The gradients that a mistake gives, and the right ones of the other leaves, which are computed here."""
    return {name: gradient() for name, gradient in right.items() if name not in mistaken} | mistaken


def entering(cases: list[Case]) -> Callable[..., Callable]:
    """The decorator that enters a wrong backward pass of a primal into `cases`, under a name."""

    def wrong(primal, args, words, leaves, name):
        def enter(backward):
            said = (words,) if isinstance(words, str) else tuple(words)
            cases.append(Case(name, primal, saving_arguments(primal, backward), args, said, leaves))
            return backward

        return enter

    return wrong


def normal(*shapes, sizes):
    """Random inputs: `shapes` are functions of one entry of `sizes`."""

    def make(size, seed, dtype):
        rng = np.random.default_rng(seed)
        return tuple(gaussian(rng, shape(*sizes[size]), dtype) for shape in shapes)

    return make


def gaussian(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Normal numbers, drawn by numpy: nothing is compiled for them."""
    return on_device(rng.standard_normal(shape), dtype)


def integers(rng: np.random.Generator, shape: tuple[int, ...], below: int) -> jax.Array:
    """Numbers from 0 to `below` − 1."""
    return on_device(rng.integers(0, below, shape), np.int32)


def mean(x, axis=-1):
    """The mean over an axis, which is kept."""
    return jnp.mean(x, axis, keepdims=True)


def dot(x, y, axis=-1):
    """The sum of the products over an axis, which is kept."""
    return jnp.sum(x * y, axis, keepdims=True)
