"""The leaf layers: each one's backward pass stands right under its forward pass."""

from jaxnet.layers.activations import (
    ACTIVATIONS,
    Activation,
    activation_named,
    elementwise,
    elu,
    gelu,
    gelu_tanh,
    identity,
    leaky_relu,
    relu,
    sigmoid,
    silu,
    softmax,
    softplus,
    tanh,
)
from jaxnet.layers.dense import dense
from jaxnet.layers.dropout import dropout
from jaxnet.layers.initializers import INITIALIZERS, Initializer, pinned
from jaxnet.layers.normalization import group_norm, layer_norm, rms_norm
from jaxnet.layers.shape import flatten, reshape

__all__ = [
    "ACTIVATIONS",
    "INITIALIZERS",
    "Activation",
    "Initializer",
    "activation_named",
    "dense",
    "dropout",
    "elementwise",
    "elu",
    "flatten",
    "gelu",
    "gelu_tanh",
    "group_norm",
    "identity",
    "layer_norm",
    "leaky_relu",
    "pinned",
    "relu",
    "reshape",
    "rms_norm",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "tanh",
]
