"""The gated recurrent unit, its reset gate applied after U.

    r = σ(W_r x + U_r h + b_r)            z = σ(W_z x + U_z h + b_z)
    u = U_n h + c                         n = tanh(W_n x + b_n + r ⊙ u)
    h ← (1 − z) ⊙ n + z ⊙ h               h, c: (units,)   W: (3 · units, in)   U: (3 · units, units), r, z, n

    δ_n = ∂C/∂h ⊙ (1 − z) ⊙ (1 − n²)      δ_z = ∂C/∂h ⊙ (h_before − n) ⊙ z(1 − z)      δ_r = δ_n ⊙ u ⊙ r(1 − r)
    δᵁ = (δ_r, δ_z, δ_n ⊙ r)              ∇_c C = Σ_t δ_n ⊙ r
    before the step: ∂C/∂h ⊙ z + Uᵀ δᵁ

Source: Cho et al., Learning Phrase Representations using RNN Encoder–Decoder, 2014, (5) to (8), in the variant of
cuDNN and torch: there U_n (r ⊙ h) stands where here r ⊙ (U_n h + c) does, and z and 1 − z are exchanged.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxnet.factors import Plain
from jaxnet.layer import Layer
from jaxnet.layers.dense import times, transpose_times
from jaxnet.layers.initializers import Initializer
from jaxnet.layers.recurrent.over_time import Cell, over_time, wide
from jaxnet.registry import Count, maker


def step(params, Wx, carry):
    """h ← (1 − z) ⊙ n + z ⊙ h: the carry after the step; saved for back: u, z and n, and r."""
    [h] = wide(carry["h"])
    x_r, x_z, x_n = jnp.split(Wx + params["b"].astype(Wx.dtype), 3)
    h_r, h_z, h_n = jnp.split(times(params["U"], h), 3)
    r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
    u = h_n + params["c"].astype(h_n.dtype)
    n = jnp.tanh(x_n + r * u)
    h = (1 - z) * n + z * h
    return {"h": h.astype(carry["h"].dtype)}, jnp.concatenate([u, z, n]), r


def back(params, gates, r, before, d):  # h ← (1 − z) ⊙ n + z ⊙ h
    """∂C/∂carry before the step from that after it, and δ, as at the head of this module."""
    [h], (u, z, n) = wide(before), jnp.split(gates, 3)
    dh = d["h"]
    delta_n = dh * (1 - z) * (1 - n**2)
    delta_z = dh * (h - n) * z * (1 - z)
    delta_r = delta_n * u * r * (1 - r)
    delta = jnp.concatenate([delta_r, delta_z, delta_n])
    return {"h": dh * z + transpose_times(params["U"], delta_U(r, delta))}, delta


def delta_U(r, delta):
    """(δ_r, δ_z, δ_n ⊙ r): computed after the scan from saved values, rather than kept beside δ."""
    delta_r, delta_z, delta_n = jnp.split(delta, 3, axis=-1)
    delta_c = delta_n * r
    return jnp.concatenate([delta_r, delta_z, delta_c], axis=-1)


@maker(
    examples={"gru(4)": "float32[5,6]", "gru(4, reverse=True)": "float32[5,6]"},
    axes={"W": "out in", "U": "out state", "b": "out", "c": "state"},
)
def gru(
    units: Count,
    *,
    reverse: bool = False,
    init: str | Initializer | Callable = "lecun_normal",
    recurrent_init: str | Initializer | Callable = "orthogonal",
) -> Layer:
    """h_t = (1 − z) ⊙ n + z ⊙ h_{t−1}, n = tanh(W_n x + b_n + r ⊙ (U_n h + c)), over (time, in): gives (time, units).

    A `Piece` it takes too, and gives (outputs, carry), the carry {"h": (units,)}. `reverse`: from the last step to the
    first. `init`, `recurrent_init`: of W and U at each gate, as `dense`'s.
    Parameters: `{"W": (3 · units, in), "U": (3 · units, units), "b": (3 · units,), "c": (units,)}`, gates r, z, n.
    Raises `ShapeError` for another input, carry or length.
    Source: Cho et al., 2014, in torch's variant: the reset gate stands outside U_n h + c.

    >>> net, x = gru(3), jnp.ones((5, 6))
    >>> params = net.init(jax.random.key(0), x)
    >>> out, back = vjp(net)(params, x)
    >>> grads, dx = back(jnp.ones_like(out))
    >>> out.shape, dx.shape, jax.tree.map(jnp.shape, grads)
    ((5, 3), (5, 6), {'U': (9, 3), 'W': (9, 6), 'b': (9,), 'c': (3,)})
    """

    def c(dtype):
        return {"c": jnp.zeros(units, dtype)}

    def factor_of_c(delta_U):
        return {"c": Plain(delta_U[..., 2 * units :], 1)}

    name = f"gru {units}{' reverse' if reverse else ''}"
    options = {"reverse": reverse, "init": init, "recurrent_init": recurrent_init}
    cell = Cell(3, step, back, at_state=delta_U)
    return over_time(name, units, cell, more_params=c, more_factors=factor_of_c, **options)
