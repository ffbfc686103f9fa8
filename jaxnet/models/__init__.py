"""Networks composed of the layers, by name."""

from collections.abc import Callable

from jaxnet.layer import Layer
from jaxnet.models.blocks import gated, pre_norm
from jaxnet.models.images import cnn, lenet5, residual_cnn
from jaxnet.models.language import char_lstm, gpt, gpt2
from jaxnet.models.mlps import mlp, residual_mlp

__all__ = [
    "MODELS",
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

MODELS: dict[str, Callable[..., Layer]] = {
    "mlp": mlp,
    "residual_mlp": residual_mlp,
    "lenet5": lenet5,
    "cnn": cnn,
    "residual_cnn": residual_cnn,
    "gpt": gpt,
    "gpt2": gpt2,
    "char_lstm": char_lstm,
}
"""The models by name."""
