"""Networks composed of the layers, by name."""

from collections.abc import Callable, Sequence

from jaxnet.combinators import repeat, residual, serial
from jaxnet.layer import Layer
from jaxnet.layers import ACTIVATIONS, dense, dropout


def mlp(
    widths: Sequence[int], *, activation: str = "relu", out: str | None = None, drop_rate: float = 0.0, init="he_normal"
) -> Layer:
    """Dense layers of the given widths, first hidden to output, an activation after each but the last.

    `out`: the activation after the last, none where the loss takes logits. `drop_rate`: of a dropout after each hidden
    activation. `init`: as `dense`'s. Takes a vector.
    """
    *hidden, last = widths
    layers = []
    for width in hidden:
        layers += [dense(width, init=init), ACTIVATIONS[activation]]
        layers += [dropout(drop_rate)] if drop_rate else []
    return serial(*layers, dense(last, init=init), *([ACTIVATIONS[out]] if out else []))


def residual_mlp(width: int, depth: int, outputs: int, *, activation: str = "relu", init: str = "he_normal") -> Layer:
    """A dense layer to `width`, `depth` blocks x + g(W x + b) in one scan, a dense layer to `outputs` logits."""
    g = ACTIVATIONS[activation]
    block = residual(serial(dense(width, init=init), g))
    return serial(dense(width, init=init), g, repeat(block, depth), dense(outputs, init="lecun_normal"))


MODELS: dict[str, Callable[..., Layer]] = {"mlp": mlp, "residual_mlp": residual_mlp}
"""The models by name."""
