"""Networks composed of the layers, by name."""

from collections.abc import Callable

from jaxnet.layer import Layer
from jaxnet.models.mlps import mlp, residual_mlp

__all__ = ["MODELS", "mlp", "residual_mlp"]

MODELS: dict[str, Callable[..., Layer]] = {
    "mlp": mlp,
    "residual_mlp": residual_mlp,
}
"""The models by name."""
