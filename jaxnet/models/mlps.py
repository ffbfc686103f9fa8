"""Networks of dense layers."""

from collections.abc import Sequence

from jaxnet.combinators import repeat, residual, serial
from jaxnet.layer import Layer
from jaxnet.layers import activation_named, dense, dropout
from jaxnet.registry import Count, maker


@maker(
    kind="model",
    examples={
        "mlp([16, 16, 5]), softmax_cross_entropy": "float32[8,12], int32[8]<5",
        'mlp([9, 5], activation="sigmoid", out="sigmoid"), binary_cross_entropy': "float32[8,12], int32[8]<5",
    },
)
def mlp(
    widths: Sequence[int], *, activation: str = "relu", out: str | None = None, drop_rate: float = 0.0, init="he_normal"
) -> Layer:
    """Dense layers of the given widths, first hidden to output, an activation after each but the last.

    `out`: the activation after the last, none where the loss takes logits. `drop_rate`: of a dropout after each hidden
    activation. `init`: as `dense`'s. Takes a vector.
    Raises `ValueError` for no widths, or an unknown activation.

    >>> mlp([30, 10], init="lecun_normal").parts
    (dense(30), relu, dense(10))
    """
    if not widths:
        raise ValueError("an mlp takes at least one width, that of its output, got none")
    *hidden, last = widths
    layers = []
    for width in hidden:
        layers += [dense(width, init=init), activation_named(activation)]
        layers += [dropout(drop_rate)] if drop_rate else []
    return serial(*layers, dense(last, init=init), *([activation_named(out)] if out else []))


@maker(kind="model", examples={"residual_mlp(16, 3, 5), softmax_cross_entropy": "float32[8,12], int32[8]<5"})
def residual_mlp(
    width: Count, depth: Count, outputs: Count, *, activation: str = "relu", init: str = "he_normal"
) -> Layer:
    """A dense layer to `width`, `depth` blocks x + g(W x + b) in one scan, a dense layer to `outputs` logits.

    Takes a vector. Raises `ValueError` for an unknown activation, or less than one block.

    >>> residual_mlp(30, 3, 10, init="lecun_normal").parts
    (dense(30), relu, repeat(residual(serial(dense(30), relu)), 3), dense(10))
    """
    g = activation_named(activation)
    block = residual(serial(dense(width, init=init), g))
    return serial(dense(width, init=init), g, repeat(block, depth), dense(outputs, init="lecun_normal"))
