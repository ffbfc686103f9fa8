"""Blocks that networks are stacked from: a norm, a branch and a sum; an MLP with a gate.

    pre_norm      x ← x + f(norm x)
    gated         out = W_down (g(W_gate x) ⊙ W_up x)

Sources: Xiong et al., On Layer Normalization in the Transformer Architecture, 2020; Shazeer, GLU Variants Improve
Transformer, 2020, (6).
"""

from collections.abc import Callable

from jaxnet.combinators import parallel, residual, serial
from jaxnet.layer import Layer
from jaxnet.layers import Initializer, activation_named, dense, layer_norm
from jaxnet.registry import Count, maker


@maker(examples={"pre_norm(attention(2))": "float32[5,6]"})
def pre_norm(block: Layer, norm: Layer | None = None) -> Layer:
    """out = x + block(norm(x)), for x of a shape that the block keeps. `norm`: by default `layer_norm()`.

    Parameters: the pair (the norm's, the block's). Raises `ShapeError` where the block changes the shape.

    >>> pre_norm(attention(2)).parts
    (serial(layer_norm(), attention(2)),)
    """
    return residual(serial(layer_norm() if norm is None else norm, block))


@maker(examples={"gated(8, 6)": "float32[6]"})
def gated(
    hidden: Count,
    width: Count,
    *,
    activation: str = "silu",
    bias: bool = False,
    init: str | Initializer | Callable = "lecun_normal",
    out_init: str | Initializer | Callable | None = None,
) -> Layer:
    """out = W_down (g(W_gate x) ⊙ W_up x) of a vector x: SwiGLU with g = silu, GEGLU with g = gelu.

    `hidden`: the length inside; `width`: that of out. `bias`: whether there is a b in each of the three. `init`: as of
    `dense`; `out_init`: that of W_down, where it is another. Parameters: the dense layers', (((gate, ()), up), down).
    Raises `ValueError` for an unknown activation.

    >>> gated(8, 6).parts
    (parallel(serial(dense(8, bias=False), silu), dense(8, bias=False), join='product'), dense(6, bias=False))
    """
    g = activation_named(activation)
    gate, up = serial(dense(hidden, bias=bias, init=init), g), dense(hidden, bias=bias, init=init)
    return serial(parallel(gate, up, join="product"), dense(width, bias=bias, init=out_init or init))
