"""The kind of a layer, as its maker says."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jaxnet.combinators import per_position, remat
from jaxnet.layer import Layer

LINEAR = ("dense", "conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d")
"""Makers of layers that give a z: W a + b, at every position of a sequence or an image."""

INDICES = {1: "t", 2: "p", 3: "q"}
"""The index of a sum, by how many axes it runs over; over the examples of a batch it is "i"."""


def own_maker(layer: Layer) -> str:
    """The name of the last maker, relu, and not the one that it stands on, elementwise; "" where there is none."""
    return "" if layer.made is None else layer.made.maker


def options_of(layer: Layer) -> Mapping[str, Any]:
    """The options that a layer was made with."""
    return layer.made.root.options if layer.made is not None else MappingProxyType({})


def is_activation(layer: Layer) -> bool:
    """Whether a layer is a = g(z), entry by entry."""
    return layer.rebuild is None and layer.maker in ("elementwise", "identity")


def gives_z(layer: Layer) -> bool:
    """Whether a layer, or the one inside it, is a linear one."""
    while layer.rebuild in (per_position, remat):
        (layer,) = layer.parts
    return layer.rebuild is None and layer.maker in LINEAR
