"""Where a step's examples are: rows of arrays, windows of a text on the device, or batches read from disk."""

from dataclasses import field

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.factors import dataclass_tree
from jaxnet.layer import Tree


@dataclass_tree
class Windows:
    """A text; its windows of one length are the examples. The place of a window is that of its first token.

    tokens: (characters,). length: of x and of y, the tokens one further.
    """

    tokens: jax.Array
    length: int = field(metadata={"static": True})


@dataclass_tree
class Batches:
    """The batches of a call, (steps, batch, …): batch i has the places from i · batch on."""

    x: jax.Array
    y: jax.Array


def examples_at(train: Tree, places: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x and y of the examples at some places, (examples,): of batches those of one."""
    if isinstance(train, Batches):
        step = places[0] // len(places)
        return train.x[step], train.y[step]
    if not isinstance(train, Windows):
        x, y = (t.at[places].get(mode="promise_in_bounds") for t in train)
        return x, y
    window = train.tokens.at[places[:, None] + jnp.arange(train.length + 1)[None]].get(mode="promise_in_bounds")
    return window[:, :-1], window[:, 1:]


def shifted(order: np.ndarray, random: np.random.RandomState, tokens: int, length: int) -> np.ndarray:
    """The places of windows one after another, in an order of them, all shifted by one random offset.

    tokens: how many there are; every window and the token after it lies among them.
    """
    room = tokens - len(order) * length
    return (order * length + random.randint(min(room, length))).astype(np.int32)
