"""Layers that only change the shape: the error passes back in the old one."""

import math

from jaxnet.layer import Layer, ShapeError, Static, leaf, no_params
from jaxnet.registry import maker


@maker(examples={"reshape(3, 2)": "float32[6]"})
def reshape(*shape: int) -> Layer:
    """The same numbers in another shape, in row-major order; one −1 is filled in.

    Raises `ShapeError` where the numbers do not fill the shape.

    >>> out, back = vjp(reshape(3, -1))((), jnp.ones(6))
    >>> out.shape, back(out)[1].shape
    ((3, 2), (6,))
    """
    name = f"reshape {'×'.join(map(str, shape))}"

    def accepts(x, params):
        size = math.prod(x.shape)
        known = math.prod(n for n in shape if n != -1)
        if shape.count(-1) > 1 or (size % max(known, 1) if -1 in shape else size != known):
            raise ShapeError(f"{name} takes an input whose size fills it, got shape {x.shape} of size {size}")

    def forward(params, x, key=None, train=False):
        return x.reshape(shape), Static(x.shape)

    def backward(params, saved, d_out):
        return d_out.reshape(saved.value), ()

    return leaf(name, no_params, forward, backward, accepts)


@maker(examples={"flatten()": "float32[3,4]"})
def flatten() -> Layer:
    """All numbers of one example as a vector.

    >>> out, back = vjp(flatten())((), jnp.ones((2, 3)))
    >>> out.shape, back(out)[1].shape
    ((6,), (2, 3))
    """
    return reshape(-1)
