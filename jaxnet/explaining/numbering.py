"""Numbers the layers of a chain and gives each its symbols, z and a.

Each layer counts one, but for an activation that follows a dense layer or another one with parameters: it makes a of
that layer's z.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np

from jaxnet.explaining.expressions import Name
from jaxnet.explaining.kinds import gives_z, is_activation
from jaxnet.explaining.notation import Notation
from jaxnet.explaining.observe import Item, Observed

Kind = Literal["dense", "activation", "softmax", "other"]


@dataclass(frozen=True, eq=False)
class NumberedLayer:
    """An item of the chain: its kind, its layer's number (the input is 0), the symbols of its input and output."""

    index: int
    item: Item
    kind: Kind
    number: int
    takes: Name
    gives: Name
    is_z: bool  # whether its output is z, so that the error there is δ


def kind_of(item: Item) -> Kind:
    """Whether a layer is a dense one on a vector, an activation of each entry, softmax of a vector, or another."""
    layer, params = item.layer, item.params
    if layer.rebuild is not None:
        return "other"
    if layer.maker == "dense" and isinstance(params, dict) and np.ndim(params.get("W", 0)) == 2:
        return "dense" if item.x.ndim == 1 else "other"
    if layer.maker == "softmax":
        return "softmax" if item.x.ndim == 1 else "other"
    return "activation" if is_activation(layer) else "other"


def number_layers(observed: Observed, notation: Notation) -> tuple[NumberedLayer, ...]:
    """The items of a chain with their symbols."""
    found: list[NumberedLayer] = []
    number, takes, open_z = 0, notation.a(0), False
    for index, item in enumerate(observed.items):
        kind = kind_of(item)
        follows = open_z and kind in ("activation", "softmax")
        if not follows:
            number += 1
        is_z = kind == "dense" or (kind == "other" and (followed(observed, index) or gives_z(item.layer)))
        gives = notation.z(number) if is_z else notation.a(number)
        found.append(NumberedLayer(index, item, kind, number, takes, gives, is_z))
        takes, open_z = gives, is_z
    return tuple(found)


def followed(observed: Observed, index: int) -> bool:
    """Whether a layer with parameters is followed by an activation, whose z it makes."""
    rest = observed.items[index + 1 :]
    own = observed.items[index].params
    return bool(rest) and bool(jax.tree.leaves(own)) and kind_of(rest[0]) in ("activation", "softmax")
