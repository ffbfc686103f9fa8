"""Long short-term memory, with forget gates.

    z = W x + U h + b          z, b: (4 · units,)   W: (4 · units, in)   U: (4 · units, units)
    i, f, o = σ(z_i), σ(z_f), σ(z_o)    g = tanh(z_g)      z in the order i, f, g, o
    c ← f ⊙ c + i ⊙ g          c, h: (units,), before the step and after
    h ← o ⊙ tanh c

    ∂C/∂c = ∂C/∂c′ + ∂C/∂h ⊙ o ⊙ (1 − tanh² c)                c′: the same cell a step later
    δ_i = ∂C/∂c ⊙ g ⊙ i(1 − i)           δ_f = ∂C/∂c ⊙ c_before ⊙ f(1 − f)
    δ_g = ∂C/∂c ⊙ i ⊙ (1 − g²)           δ_o = ∂C/∂h ⊙ tanh c ⊙ o(1 − o)
    before the step: ∂C/∂c ⊙ f, and Uᵀ δ

Source: Hochreiter and Schmidhuber, Long Short-Term Memory, 1997, with the forget gate of Gers, Schmidhuber and Cummins,
Learning to Forget, 2000, (1) to (8), and no peepholes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxnet.layer import Layer
from jaxnet.layers.dense import times, transpose_times
from jaxnet.layers.initializers import Initializer
from jaxnet.layers.recurrent.over_time import Cell, over_time, wide
from jaxnet.lowering.products import accumulated
from jaxnet.registry import Count, maker


def begin(units: int, dtype):
    """The carry before the first step: zeros, the cell's state in float32 or better."""
    return {"h": jnp.zeros(units, dtype), "c": jnp.zeros(units, accumulated(dtype))}


def step(params, Wx, carry):
    """c ← f ⊙ c + i ⊙ g, h ← o ⊙ tanh c: the carry after the step; saved for back: the gates, c before."""
    [h] = wide(carry["h"])
    z = Wx + (times(params["U"], h) + params["b"].astype(Wx.dtype))
    z_i, z_f, z_g, z_o = jnp.split(z, 4)
    i, f, g, o = jax.nn.sigmoid(z_i), jax.nn.sigmoid(z_f), jnp.tanh(z_g), jax.nn.sigmoid(z_o)
    c = f * carry["c"] + i * g
    h = (o * jnp.tanh(c)).astype(carry["h"].dtype)
    return {"h": h, "c": c}, jnp.concatenate([i, f, g, o]), carry["c"]


def back(params, gates, c_before, before, d):  # c ← f ⊙ c + i ⊙ g;  h ← o ⊙ tanh c
    """∂C/∂carry before the step from that after it, and δ, as at the head of this module."""
    i, f, g, o = jnp.split(gates, 4)
    tanh_c = jnp.tanh(f * c_before + i * g)
    dc = d["c"] + d["h"] * o * (1 - tanh_c**2)
    delta_i = dc * g * i * (1 - i)
    delta_f = dc * c_before * f * (1 - f)
    delta_g = dc * i * (1 - g**2)
    delta_o = d["h"] * tanh_c * o * (1 - o)
    delta = jnp.concatenate([delta_i, delta_f, delta_g, delta_o])
    return {"h": transpose_times(params["U"], delta), "c": dc * f}, delta


@maker(
    examples={"lstm(4)": "float32[5,6]", "lstm(4, reverse=True)": "float32[5,6]"},
    axes={"W": "out in", "U": "out state", "b": "out"},
)
def lstm(
    units: Count,
    *,
    reverse: bool = False,
    forget_bias: float = 1.0,
    init: str | Initializer | Callable = "lecun_normal",
    recurrent_init: str | Initializer | Callable = "orthogonal",
) -> Layer:
    """h_t = o ⊙ tanh c_t, c_t = f ⊙ c_{t−1} + i ⊙ g, over a sequence (time, in): gives (time, units).

    A `Piece` it takes too, and gives (outputs, carry), the carry {"h": (units,), "c": (units,)}; c is float32 or
    better. `reverse`: from the last step to the first; `parallel(lstm(n), lstm(n, reverse=True), join="concatenate")`
    is bidirectional. `forget_bias`: the initial b of the forget gate. `init`, `recurrent_init`: of W and U at each
    gate, as `dense`'s.
    Parameters: `{"W": (4 · units, in), "U": (4 · units, units), "b": (4 · units,)}`, gates in the order i, f, g, o.
    Raises `ShapeError` for another input, carry or length.
    Source: Hochreiter and Schmidhuber, 1997; Gers, Schmidhuber and Cummins, 2000.

    >>> net, x = lstm(3), jnp.ones((5, 6))
    >>> params = net.init(jax.random.key(0), x)
    >>> out, back = vjp(net)(params, x)
    >>> grads, dx = back(jnp.ones_like(out))
    >>> out.shape, dx.shape, jax.tree.map(jnp.shape, grads)
    ((5, 3), (5, 6), {'U': (12, 3), 'W': (12, 6), 'b': (12,)})
    """

    def b(dtype):
        return {"b": jnp.zeros(4 * units, dtype).at[units : 2 * units].set(forget_bias)}

    cell = Cell(4, step, back, begin)
    name = f"lstm {units}{' reverse' if reverse else ''}"
    return over_time(name, units, cell, reverse=reverse, init=init, recurrent_init=recurrent_init, more_params=b)
