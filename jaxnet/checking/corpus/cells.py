"""Mistakes in recurrences as jaxnet has them: in a cell's step back, and in the sums over the steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnet.checking.corpus.case import Rules
from jaxnet.checking.subject import on_device
from jaxnet.factors import Plain
from jaxnet.layers import gru, lstm, rnn
from jaxnet.layers.dense import transpose_times
from jaxnet.layers.recurrent.gru import delta_U
from jaxnet.layers.recurrent.gru import step as gru_step
from jaxnet.layers.recurrent.lstm import begin
from jaxnet.layers.recurrent.lstm import step as lstm_step
from jaxnet.layers.recurrent.over_time import Cell, over_time, wide
from jaxnet.layers.recurrent.rnn import step as rnn_step
from jaxnet.readings import Reading, each

RULES = Rules()

# (time, units, in)
SEQUENCES = ((4, 3, 2), (6, 4, 3), (24, 6, 5))


def sequence(gates: int, more: int = 0) -> Callable:
    """W, U, b, as many more vectors, and a sequence; small enough that nothing is saturated."""

    def make(size, seed, dtype):
        time, units, ins = SEQUENCES[size]
        rng = np.random.default_rng(seed)
        shapes = [(gates * units, ins), (gates * units, units), (gates * units,), *[(units,)] * more]
        params = [on_device(0.5 * rng.standard_normal(shape), dtype) for shape in shapes]
        return *params, on_device(rng.standard_normal((time, ins)), dtype)

    return make


multiplied = Reading(each(lambda factor, p: factor.multiply()), out_axes=0, linear=True)
"""∂C/∂p, of whatever shape: another W than the layer's own gives another."""


def over(args: tuple, d_out: Any, cell: Cell, W: Any = None) -> dict[str, Any]:
    """Gradients by name, the input's as x, by a layer's own backward pass with a cell, or with another W."""
    *params, x = args
    units = params[1].shape[1]
    factors = {"more_factors": lambda d: {"c": Plain(d[..., -units:], 1)}} if len(params) > 3 else {}
    layer = over_time("a cell", units, cell, reverse=False, init="zeros", recurrent_init="zeros", **factors)
    named = dict(zip("WUbc", params, strict=False))
    saved = layer.forward(named, x)[1]
    dx, grads = layer.backward(named if W is None else named | {"W": W}, saved, d_out, multiplied)
    return {**grads, "x": dx}


def deltas(args: tuple, d_out: Any, cell: Cell) -> Any:
    """δ of every step (time, gates · units), from ∂C/∂x = δ W by a W that shows it."""
    return over(args, d_out, cell, W=jnp.eye(len(args[0]), dtype=args[0].dtype))["x"]


def rnn_over(W, U, b, x):
    """The simple recurrence."""
    return rnn(len(U)).forward({"W": W, "U": U, "b": b}, x)[0]


@RULES.back_of(rnn_over, sequence(1))
def rnn_over_back(args, d_out):
    def back(params, h, more, before, d):
        delta = d["h"] * (1 - h**2)
        return {"h": transpose_times(params["U"], delta)}, delta

    cell = Cell(1, partial(rnn_step, "tanh"), back)
    grads = over(args, d_out, cell)
    return tuple(grads[name] for name in "WUbx")


def lstm_over(W, U, b, x):
    """Long short-term memory."""
    return lstm(U.shape[1]).forward({"W": W, "U": U, "b": b}, x)[0]


@RULES.back_of(lstm_over, sequence(4))
def lstm_over_back(args, d_out):
    def back(params, gates, c_before, before, d):
        i, f, g, o = jnp.split(gates, 4)
        c = f * c_before + i * g
        t = jnp.tanh(c)
        dc = d["c"] + d["h"] * o * (1 - t**2)
        di, df = dc * g * i * (1 - i), dc * c_before * f * (1 - f)
        dg, do = dc * i * (1 - g**2), d["h"] * t * o * (1 - o)
        delta = jnp.concatenate([di, df, dg, do])
        return {"h": transpose_times(params["U"], delta), "c": dc * f}, delta

    cell = Cell(4, lstm_step, back, begin)
    grads = over(args, d_out, cell)
    return tuple(grads[name] for name in "WUbx")


def gru_over(W, U, b, c, x):
    """The gated recurrent unit."""
    return gru(U.shape[1]).forward({"W": W, "U": U, "b": b, "c": c}, x)[0]


@RULES.back_of(gru_over, sequence(3, 1))
def gru_over_back(args, d_out):
    def back(params, gates, r, before, d):
        [h], (u, z, n) = wide(before), jnp.split(gates, 3)
        delta_n = d["h"] * (1 - z) * (1 - n**2)
        delta_z = d["h"] * (h - n) * z * (1 - z)
        delta = jnp.concatenate([delta_n * u * r * (1 - r), delta_z, delta_n])
        return {"h": d["h"] * z + transpose_times(params["U"], delta_U(r, delta))}, delta

    cell = Cell(3, gru_step, back, at_state=delta_U)
    grads = over(args, d_out, cell)
    return tuple(grads[name] for name in "WUbcx")


every = "[0] [1] [2] [3]"
MISTAKES: tuple[tuple[str, ...], ...] = (
    ("lstm_over", "102 LSTM: tanh′(c) left out", " * (1 - t**2)", "", every, "tanh", "missing|left out"),
    ("lstm_over", "103 LSTM: the new cell at the forget gate", "dc * c_before", "dc * c", every,
     "stands in the place|step"),
    ("lstm_over", "104 LSTM: tanh of the cell before", "jnp.tanh(c)", "jnp.tanh(c_before)", every,
     "stands in the place|step|two at once"),
    ("lstm_over", "105 LSTM: gates i and f exchanged", "[di, df,", "[df, di,", every, "exchanged"),
    ("lstm_over", "106 LSTM: nothing back through h", 'transpose_times(params["U"], delta)', "jnp.zeros_like(i)", every,
     "step|carry|h", "missing"),
    ("lstm_over", "107 LSTM: bias of the last step alone", "over(args, d_out, cell)",
     'over(args, d_out, cell) | {"b": deltas(args, d_out, cell)[-1]}', "[2]", "last", "missing|only"),
    ("lstm_over", "108 LSTM: h of this step in dU", "over(args, d_out, cell)",
     'over(args, d_out, cell) | {"U": deltas(args, d_out, cell).T @ lstm_over(*args)}', "[1]",
     "stands in the place|step|shift"),
    ("gru_over", "109 GRU: what z keeps is lost", 'd["h"] * z + ', "", every + " [4]", "missing"),
    ("gru_over", "110 GRU: h and n exchanged at z", "h - n", "n - h", every + " [4]", "sign"),
    ("gru_over", "111 GRU: the reset gate not passed going back", "delta_U(r,", "delta_U(jnp.ones_like(r),",
     every + " [4]", r"\br\b|logistic|sigmoid", "missing"),
    ("gru_over", "112 GRU: dU without the reset gate", "grads = over(args, d_out, cell)",
     "ungated = over(args, d_out, cell._replace(at_state=lambda r, delta: delta))\n"
     '    grads = over(args, d_out, cell) | {"U": ungated["U"], "c": ungated["c"]}', "[1] [3]",
     r"\br\b|logistic|sigmoid", "missing"),
    ("rnn_over", "113 RNN: slope at the state before", "1 - h**2", "1 - before**2", every,
     r"step|stands in the place|shift|tanh|h\[t-1\]"),
    ("rnn_over", "114 RNN: U not transposed", 'transpose_times(params["U"], delta)', 'params["U"] @ delta', every,
     "transpos", "u"),
    ("rnn_over", "115 RNN: h of this step in dU", "over(args, d_out, cell)",
     'over(args, d_out, cell) | {"U": deltas(args, d_out, cell).T @ rnn_over(*args)}', "[1]",
     "stands in the place|step|shift"),
    ("rnn_over", "116 RNN: errors in the reverse order", "over(args, d_out,", "over(args, d_out[::-1],", every,
     "flip|reverse"),
)  # fmt: skip
