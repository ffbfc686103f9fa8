"""A function with its right backward pass, and a case of the corpus: one change of that pass's text."""

from __future__ import annotations

import inspect
import linecache
import re
from collections.abc import Callable, Iterable
from functools import partial
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


class Right(NamedTuple):
    """One right rule: its name, the function, and inputs by size (0, 1, 2), seed and dtype."""

    name: str
    rule: Callable[..., Any]
    make_args: Callable[[int, int, Any], tuple]


class Rule(NamedTuple):
    """A function, its right backward pass (args, cotangent) -> gradients, its inputs, and options of the pass."""

    primal: Callable[..., Any]
    backward: Callable[[tuple, Any], tuple]
    make_args: Callable[[int, int, Any], tuple]
    options: dict[str, Any]

    def right(self) -> Right:
        """The right rule."""
        function = jax.custom_vjp(self.primal)
        function.defvjp(*saving_arguments(self.primal, partial(self.backward, **self.options)))
        return Right(self.primal.__name__, function, self.make_args)

    def case(self, mistake: str, right: str, wrong: str, leaves: str, *words: str) -> Case:
        """The rule with one change of the text of its backward pass."""
        backward = partial(changed(self.backward, mistake, right, wrong), **self.options)
        rule = saving_arguments(self.primal, backward if self.options else backward.func)
        return Case(mistake, self.primal, rule, self.make_args, words, tuple(leaves.split()))


class Rules(dict[str, Rule]):
    """Functions with their right backward passes, by name."""

    def back_of(self, primal: Callable, make_args: Callable, **options: Any) -> Callable[[Callable], Callable]:
        """Enters the right backward pass of a function."""

        def enter(backward):
            self[primal.__name__] = Rule(primal, backward, make_args, options)
            return backward

        return enter

    def cases(self, mistakes: Iterable[tuple[str, ...]]) -> list[Case]:
        """The wrong rules: of each row, the rule, the mistake, the right text, the wrong one, the leaves, the words."""
        return [self[rule].case(*row) for rule, *row in mistakes]


def saving_arguments(primal: Callable, backward: Callable) -> tuple[Callable, Callable]:
    """The rule that saves its arguments and goes back by `backward(args, cotangent)`."""
    return lambda *args: (primal(*args), args), backward


def changed(function: Callable, name: str, right: str, wrong: str) -> Callable:
    """A backward pass with one change of its source, which tools can read as they read a file."""
    source = inspect.getsource(function)
    source = source[source.index("def ") :]
    if source.count(right) != 1:
        raise ValueError(f"{name}: {right!r} must stand once in the source, it stands {source.count(right)} times")
    text, file = source.replace(right, wrong), f"<mistake: {name}>"
    linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file
    space = dict(function.__globals__)
    exec(compile(text, file, "exec"), space)
    return space[function.__name__]


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


def mean(x, axis: int | tuple[int, ...] = -1):
    """The mean over an axis, which is kept."""
    return jnp.mean(x, axis, keepdims=True)


def dot(x, y, axis=-1):
    """The sum of the products over an axis, which is kept."""
    return jnp.sum(x * y, axis, keepdims=True)
