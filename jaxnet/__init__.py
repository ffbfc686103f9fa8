"""Neural networks in JAX whose backward pass is written by hand: read it, check it, change it, run it.

A layer is three pure functions of one example (`Layer`); networks are put together by combinators; `value_and_grad`
runs a batch through network and loss and back again, and other readings of the same backward pass give each
example's gradient, its norm, or every δ.

Examples in docstrings assume `from jaxnet import *`, `import jax`, `import jax.numpy as jnp`, `import numpy as np`.
"""

import jaxnet.feedback
import jaxnet.heads
import jaxnet.models  # noqa: F401 - their makers enter the registry
from jaxnet.backprop import as_custom_vjp, backpropagate, initialize, per_example, predict, value_and_grad, vjp
from jaxnet.combinators import parallel, per_position, remat, repeat, residual, serial, tied
from jaxnet.layer import Layer, Loss, Reading, ShapeError
from jaxnet.layers import (
    attention,
    average_pool,
    batch_norm,
    bidirectional,
    conv1d,
    conv2d,
    dense,
    dropout,
    elu,
    embedding,
    flatten,
    gelu,
    global_average_pool,
    global_max_pool,
    group_norm,
    gru,
    identity,
    layer_norm,
    leaky_relu,
    lstm,
    max_pool,
    relu,
    reshape,
    rms_norm,
    rnn,
    sigmoid,
    silu,
    softmax,
    softplus,
    tanh,
)
from jaxnet.losses import (
    binary_cross_entropy,
    binary_cross_entropy_on_logits,
    ignoring,
    mean_squared_error,
    quadratic,
    softmax_cross_entropy,
)
from jaxnet.readings import deltas, pair, product, squared_norm, total
from jaxnet.traces import trace

__version__ = "0.1.0"

__all__ = [
    "Layer",
    "Loss",
    "Reading",
    "ShapeError",
    "as_custom_vjp",
    "attention",
    "average_pool",
    "backpropagate",
    "batch_norm",
    "bidirectional",
    "binary_cross_entropy",
    "binary_cross_entropy_on_logits",
    "conv1d",
    "conv2d",
    "deltas",
    "dense",
    "dropout",
    "elu",
    "embedding",
    "flatten",
    "gelu",
    "global_average_pool",
    "global_max_pool",
    "group_norm",
    "gru",
    "identity",
    "ignoring",
    "initialize",
    "layer_norm",
    "leaky_relu",
    "lstm",
    "max_pool",
    "mean_squared_error",
    "pair",
    "parallel",
    "per_example",
    "per_position",
    "predict",
    "product",
    "quadratic",
    "relu",
    "remat",
    "repeat",
    "reshape",
    "residual",
    "rms_norm",
    "rnn",
    "serial",
    "sigmoid",
    "silu",
    "softmax",
    "softmax_cross_entropy",
    "softplus",
    "squared_norm",
    "tanh",
    "tied",
    "total",
    "trace",
    "value_and_grad",
    "vjp",
]
