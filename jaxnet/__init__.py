"""Neural networks in JAX whose backward pass is written by hand: read it, check it, change it, run it.

A layer is three pure functions of one example (`Layer`); networks are put together by combinators; `value_and_grad`
runs a batch through network and loss and back again, and other readings of the same backward pass give each
example's gradient, its norm, or every δ.
"""

from jaxnet.backprop import (
    Step,
    Trace,
    as_custom_vjp,
    backpropagate,
    initialize,
    per_example,
    predict,
    trace,
    value_and_grad,
    vjp,
)
from jaxnet.combinators import parallel, per_position, remat, repeat, residual, serial, tied
from jaxnet.layer import Layer, Loss, Passing, Reading, ShapeError
from jaxnet.layers import (
    dense,
    dropout,
    elementwise,
    elu,
    flatten,
    gelu,
    gelu_tanh,
    identity,
    leaky_relu,
    relu,
    reshape,
    sigmoid,
    silu,
    softmax,
    softplus,
    tanh,
)
from jaxnet.losses import (
    binary_cross_entropy,
    binary_cross_entropy_on_logits,
    huber,
    mean_absolute_error,
    mean_squared_error,
    multiclass_hinge,
    quadratic,
    softmax_cross_entropy,
)
from jaxnet.models import mlp, residual_mlp
from jaxnet.readings import deltas, pair, product, squared_delta, squared_norm, sum_of_deltas, total

__version__ = "0.1.0"

__all__ = [
    "Layer",
    "Loss",
    "Passing",
    "Reading",
    "ShapeError",
    "Step",
    "Trace",
    "as_custom_vjp",
    "backpropagate",
    "binary_cross_entropy",
    "binary_cross_entropy_on_logits",
    "deltas",
    "dense",
    "dropout",
    "elementwise",
    "elu",
    "flatten",
    "gelu",
    "gelu_tanh",
    "huber",
    "identity",
    "initialize",
    "leaky_relu",
    "mean_absolute_error",
    "mean_squared_error",
    "mlp",
    "multiclass_hinge",
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
    "residual_mlp",
    "serial",
    "sigmoid",
    "silu",
    "softmax",
    "softmax_cross_entropy",
    "softplus",
    "squared_delta",
    "squared_norm",
    "sum_of_deltas",
    "tanh",
    "tied",
    "total",
    "trace",
    "value_and_grad",
    "vjp",
]
