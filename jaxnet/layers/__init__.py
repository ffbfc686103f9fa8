"""The layers: each one's backward pass stands right under its forward pass."""

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
from jaxnet.layers.attention import attention, dot_product_attention
from jaxnet.layers.batch_norm import batch_norm
from jaxnet.layers.conv import conv1d, conv2d, conv_transpose1d, conv_transpose2d
from jaxnet.layers.dense import dense
from jaxnet.layers.dropout import dropout
from jaxnet.layers.embedding import embedding, positional_embedding, rotary, sinusoidal_positions
from jaxnet.layers.initializers import INITIALIZERS, Divided, Initializer, pinned
from jaxnet.layers.normalization import group_norm, layer_norm, rms_norm
from jaxnet.layers.pooling import average_pool, global_average_pool, global_max_pool, max_pool
from jaxnet.layers.recurrent import Piece, bidirectional, gru, lstm, rnn
from jaxnet.layers.shape import flatten, reshape

__all__ = [
    "ACTIVATIONS",
    "INITIALIZERS",
    "Activation",
    "Divided",
    "Initializer",
    "Piece",
    "activation_named",
    "attention",
    "average_pool",
    "batch_norm",
    "bidirectional",
    "conv1d",
    "conv2d",
    "conv_transpose1d",
    "conv_transpose2d",
    "dense",
    "dot_product_attention",
    "dropout",
    "elementwise",
    "elu",
    "embedding",
    "flatten",
    "gelu",
    "gelu_tanh",
    "global_average_pool",
    "global_max_pool",
    "group_norm",
    "gru",
    "identity",
    "layer_norm",
    "leaky_relu",
    "lstm",
    "max_pool",
    "pinned",
    "positional_embedding",
    "relu",
    "reshape",
    "rms_norm",
    "rnn",
    "rotary",
    "sigmoid",
    "silu",
    "sinusoidal_positions",
    "softmax",
    "softplus",
    "tanh",
]
