"""PyTorch modules as networks of jaxnet, with their own weights, where each of their layers is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxnet.combinators import serial
from jaxnet.explaining.notation import ExplainError
from jaxnet.layer import Layer, Tree
from jaxnet.layers import (
    dense,
    elu,
    flatten,
    gelu,
    gelu_tanh,
    identity,
    leaky_relu,
    relu,
    sigmoid,
    silu,
    softplus,
    tanh,
)
from jaxnet.layers.activations import softmax

KNOWN: dict[str, Callable[[Any], Layer]] = {
    "Linear": lambda of: dense(of.out_features, bias=of.bias is not None),
    "GELU": lambda of: gelu if of.approximate == "none" else gelu_tanh,
    "LeakyReLU": lambda of: leaky_relu(slope=of.negative_slope),
    "ELU": lambda of: elu(alpha=of.alpha),
    **{name: lambda _, layer=layer: layer for name, layer in {
        "ReLU": relu, "Sigmoid": sigmoid, "Tanh": tanh, "SiLU": silu, "Softplus": softplus, "Softmax": softmax,
        "Identity": identity, "Flatten": flatten,
    }.items()},
}  # fmt: skip


def is_torch_module(thing: Any) -> bool:
    """Whether an object is a `torch.nn.Module`; PyTorch is not imported for it."""
    return any(each.__module__ == "torch.nn.modules.module" for each in type(thing).__mro__)


def network_of(module: Any) -> tuple[Layer, Tree]:
    """The layers of a module in series, and its weights.

    Raises `ExplainError` that names the layers that are not known, and modules with a forward of their own.
    """
    parts = list(module.modules())
    inner = [type(each).__name__ for each in parts if list(each.children()) and type(each).__name__ != "Sequential"]
    leaves = [each for each in parts if not list(each.children())]
    unknown = [type(each).__name__ for each in leaves if type(each).__name__ not in KNOWN]
    if inner or unknown:
        own = f"a module with a forward of its own: {', '.join(dict.fromkeys(inner))}" if inner else ""
        other = f"layers that are not known: {', '.join(dict.fromkeys(unknown))}" if unknown else ""
        raise ExplainError(
            f"a PyTorch module is explained if it is a Sequential of {', '.join(KNOWN)}, got "
            f"{' and '.join(filter(None, (own, other)))}: write these as a function of arrays in JAX"
        )
    params = [{key: np.asarray(value.detach().cpu()) for name, key in (("weight", "W"), ("bias", "b"))
               if (value := getattr(each, name, None)) is not None} or () for each in leaves]  # fmt: skip
    return serial(*(KNOWN[type(each).__name__](each) for each in leaves)), tuple(params)
