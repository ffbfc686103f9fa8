"""The simple recurrence.

    z = W x + U h + b        z, b: (units,)   W: (units, in)   U: (units, units)
    h ← g(z)                 g: tanh or relu;  h: (units,), before the step and after
    δ = ∂C/∂h ⊙ g′(z)        g′ in terms of h: 1 − h², or 1 where h > 0
    before the step: Uᵀ δ

Source: Elman, Finding Structure in Time, 1990.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from jaxnet.layer import Layer
from jaxnet.layers.dense import times, transpose_times
from jaxnet.layers.initializers import Initializer
from jaxnet.layers.recurrent.over_time import Cell, over_time, wide
from jaxnet.registry import Count, maker

G = {"tanh": jnp.tanh, "relu": jax.nn.relu}
G_PRIME = {"tanh": lambda h: 1 - h**2, "relu": lambda h: (h > 0).astype(h.dtype)}


def step(name, params, Wx, carry):
    """h ← g(W x + U h + b): the carry after the step; saved for back: h before it was rounded."""
    [h] = wide(carry["h"])
    h = G[name](Wx + times(params["U"], h) + params["b"].astype(Wx.dtype))
    return {"h": h.astype(carry["h"].dtype)}, h, ()


def back(name, params, h, more, before, d):  # h ← g(W x + U h + b)
    """∂C/∂carry before the step from that after it, and δ, as at the head of this module."""
    delta = d["h"] * G_PRIME[name](h)
    return {"h": transpose_times(params["U"], delta)}, delta


@maker(
    examples={"rnn(4)": "float32[5,6]", 'rnn(4, activation="relu", reverse=True)': "float32[5,6]"},
    axes={"W": "out in", "U": "out state", "b": "out"},
)
def rnn(
    units: Count,
    *,
    activation: Literal["tanh", "relu"] = "tanh",
    reverse: bool = False,
    init: str | Initializer | Callable = "lecun_normal",
    recurrent_init: str | Initializer | Callable = "orthogonal",
) -> Layer:
    """h_t = g(W x_t + U h_{t−1} + b) over a sequence (time, in): gives (time, units).

    A `Piece` it takes too, and gives (outputs, carry), the carry {"h": (units,)}. `reverse`: from the last step to the
    first. `init`, `recurrent_init`: of W and U, as `dense`'s.
    Parameters: `{"W": (units, in), "U": (units, units), "b": (units,)}`.
    Raises `ShapeError` for another input, carry or length, `ValueError` for another activation.
    Source: Elman, 1990.

    >>> net, x = rnn(3), jnp.ones((5, 6))
    >>> params = net.init(jax.random.key(0), x)
    >>> out, back = vjp(net)(params, x)
    >>> grads, dx = back(jnp.ones_like(out))
    >>> out.shape, dx.shape, jax.tree.map(jnp.shape, grads)
    ((5, 3), (5, 6), {'U': (3, 3), 'W': (3, 6), 'b': (3,)})
    """
    if activation not in G:
        raise ValueError(f"rnn takes tanh or relu as its activation, got {activation!r}")
    cell = Cell(1, partial(step, activation), partial(back, activation))
    name = f"rnn {units}{' reverse' if reverse else ''}"
    return over_time(name, units, cell, reverse=reverse, init=init, recurrent_init=recurrent_init)
