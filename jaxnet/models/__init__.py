"""Networks composed of the layers."""

from jaxnet.models.blocks import gated, pre_norm
from jaxnet.models.images import cnn, lenet5, residual_cnn
from jaxnet.models.language import char_lstm, gpt, gpt2
from jaxnet.models.mlps import mlp, residual_mlp

__all__ = [
    "char_lstm",
    "cnn",
    "gated",
    "gpt",
    "gpt2",
    "lenet5",
    "mlp",
    "pre_norm",
    "residual_cnn",
    "residual_mlp",
]
