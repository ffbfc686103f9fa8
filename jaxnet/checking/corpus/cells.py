"""Mistakes in recurrences as jaxnet has them: in a cell's step back, and in the sums over the steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnet.checking.corpus.case import Case, entering
from jaxnet.checking.subject import on_device
from jaxnet.factors import Plain
from jaxnet.layers import lstm, rnn
from jaxnet.layers.dense import transpose_times
from jaxnet.layers.recurrent import gru as gru_layer
from jaxnet.layers.recurrent.gru import back as gru_back
from jaxnet.layers.recurrent.gru import delta_U
from jaxnet.layers.recurrent.gru import step as gru_step
from jaxnet.layers.recurrent.lstm import back as lstm_back
from jaxnet.layers.recurrent.lstm import begin, step
from jaxnet.layers.recurrent.over_time import Cell, over_time, wide
from jaxnet.layers.recurrent.rnn import back as rnn_back
from jaxnet.layers.recurrent.rnn import step as rnn_step
from jaxnet.readings import Reading, each

CASES: list[Case] = []
wrong = entering(CASES)


def rnn_over(W, U, b, x):
    """The simple recurrence."""
    return rnn(len(U)).forward({"W": W, "U": U, "b": b}, x)[0]


def lstm_over(W, U, b, x):
    """Long short-term memory."""
    return lstm(U.shape[1]).forward({"W": W, "U": U, "b": b}, x)[0]


def gru_over(W, U, b, c, x):
    """The gated recurrent unit."""
    return gru_layer(U.shape[1]).forward({"W": W, "U": U, "b": b, "c": c}, x)[0]


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


class Kind:
    """A recurrence: its layer as a function, its cell, and the names of its parameters."""

    def __init__(self, primal: Callable, cell: Cell, names: tuple[str, ...], more: int = 0):
        self.primal, self.cell, self.names = primal, cell, names
        self.args = sequence(cell.blocks, more)

    def back(self, args: tuple, d_out: Any, cell: Cell, W: Any = None) -> dict[str, Any]:
        """Gradients by name, the input's as x, by the layer's own backward pass with another cell's, or another W."""
        *params, x = args
        factors = (
            {"more_factors": lambda d: {"c": Plain(d[..., -params[-1].shape[0] :], 1)}} if "c" in self.names else {}
        )
        layer = over_time(
            "wrong", params[1].shape[1], cell, reverse=False, init="zeros", recurrent_init="zeros", **factors
        )
        named = dict(zip(self.names, params, strict=True))
        saved = layer.forward(named, x)[1]
        dx, grads = layer.backward(named if W is None else named | {"W": W}, saved, d_out, multiplied)
        return {**grads, "x": dx}

    def enter(self, name, words, leaves, mistaken: Callable) -> None:
        """Enter a wrong rule: `mistaken(args, d_out)` gives its gradients by name."""

        def backward(args, d_out):
            found = mistaken(args, d_out)
            return tuple(found[n] for n in (*self.names, "x"))

        wrong(self.primal, self.args, words, leaves, name)(backward)

    def step_back(self, name, words, leaves, back: Callable) -> None:
        """Enter a wrong rule: another `back` of the cell."""
        self.enter(name, words, leaves, lambda args, d: self.back(args, d, self.cell._replace(back=back)))


RNN = Kind(rnn_over, Cell(1, partial(rnn_step, "tanh"), partial(rnn_back, "tanh")), ("W", "U", "b"))
LSTM = Kind(lstm_over, Cell(4, step, lstm_back, begin), ("W", "U", "b"))
GRU = Kind(gru_over, Cell(3, gru_step, gru_back, at_state=delta_U), ("W", "U", "b", "c"), 1)


# ---------------------------------------------------------------------------------------------------------------- LSTM


def _lstm_back(params, gates, c_before, before, d, *, slope=lambda t: 1 - t**2, cell=lambda c_before, c: c_before,
               at=lambda c_before, c: c, order=(0, 1, 2, 3), h=True):  # fmt: skip
    """The step back of an LSTM, with the given parts in place of the right ones."""
    i, f, g, o = jnp.split(gates, 4)
    c = f * c_before + i * g
    t = jnp.tanh(at(c_before, c))
    dc = d["c"] + d["h"] * o * slope(t)
    parts = [dc * g * i * (1 - i), dc * cell(c_before, c) * f * (1 - f), dc * i * (1 - g**2), d["h"] * t * o * (1 - o)]
    delta = jnp.concatenate([parts[k] for k in order])
    dh = transpose_times(params["U"], delta)
    return {"h": dh if h else jnp.zeros_like(dh), "c": dc * f}, delta


every = ("[0]", "[1]", "[2]", "[3]")
LSTM.step_back(
    "102 LSTM: tanh′(c) left out", ("tanh", "missing|left out"), every, partial(_lstm_back, slope=lambda t: 1.0)
)
LSTM.step_back(
    "103 LSTM: the new cell at the forget gate", "stands in the place|step", every,
    partial(_lstm_back, cell=lambda c_before, c: c),
)  # fmt: skip
LSTM.step_back(
    "104 LSTM: tanh of the cell before", "stands in the place|step|two at once", every,
    partial(_lstm_back, at=lambda c_before, c: c_before),
)  # fmt: skip
LSTM.step_back(
    "105 LSTM: gates i and f exchanged", ("exchanged",), every, partial(_lstm_back, order=(1, 0, 2, 3))
)  # fmt: skip
LSTM.step_back(
    "106 LSTM: nothing back through h", ("step|carry|h", "missing"), every, partial(_lstm_back, h=False)
)  # fmt: skip


def _deltas(kind: Kind, args: tuple, d_out: Any) -> tuple[Any, Any]:
    """δ of every step (time, gates · units), from ∂C/∂x = δ W by a W that shows it; and h of every step."""
    rows = jnp.eye(len(args[0]), dtype=args[0].dtype)
    delta = kind.back(args, d_out, kind.cell, W=rows)["x"]
    return delta, kind.primal(*args)


def _summed_bias(args, d_out):
    """∇_b of the last step alone."""
    delta, _ = _deltas(LSTM, args, d_out)
    return LSTM.back(args, d_out, LSTM.cell) | {"b": delta[-1]}


def _state_after(kind):
    """∇_U with h after each step for h before it."""

    def backward(args, d_out):
        delta, hs = _deltas(kind, args, d_out)
        return kind.back(args, d_out, kind.cell) | {"U": delta.T @ hs}

    return backward


LSTM.enter("107 LSTM: bias of the last step alone", ("last", "missing|only"), ("[2]",), _summed_bias)
LSTM.enter("108 LSTM: h of this step in dU", "stands in the place|step|shift", ("[1]",), _state_after(LSTM))


# ----------------------------------------------------------------------------------------------------------------- GRU


def _gru_back(params, gates, r, before, d, *, kept=True, z_of=lambda h, n: h - n, u_of=lambda u: u, r_of=lambda r: r):
    """The step back of a GRU, with the given parts in place of the right ones."""
    [h], (u, z, n) = wide(before), jnp.split(gates, 3)
    delta_n = d["h"] * (1 - z) * (1 - n**2)
    delta_z = d["h"] * z_of(h, n) * z * (1 - z)
    delta = jnp.concatenate([delta_n * u_of(u) * r * (1 - r), delta_z, delta_n])
    carried = transpose_times(params["U"], delta_U(r_of(r), delta))
    return {"h": d["h"] * z + carried if kept else carried}, delta


all_of_gru = ("[0]", "[1]", "[2]", "[3]", "[4]")
GRU.step_back("109 GRU: what z keeps is lost", ("missing",), all_of_gru, partial(_gru_back, kept=False))
GRU.step_back(
    "110 GRU: h and n exchanged at z", "sign", all_of_gru, partial(_gru_back, z_of=lambda h, n: n - h)
)  # fmt: skip
GRU.step_back(
    "111 GRU: the reset gate not passed going back", (r"\br\b|logistic|sigmoid", "missing"), all_of_gru,
    partial(_gru_back, r_of=jnp.ones_like),
)  # fmt: skip


def _ungated(args, d_out):
    """∇_U and ∇_c of δ, not of δᵁ."""
    of_delta = GRU.back(args, d_out, GRU.cell._replace(at_state=lambda r, delta: delta))
    return GRU.back(args, d_out, GRU.cell) | {"U": of_delta["U"], "c": of_delta["c"]}


GRU.enter(
    "112 GRU: dU without the reset gate", (r"\br\b|logistic|sigmoid", "missing"), ("[1]", "[3]"), _ungated,
)  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------- RNN


def _rnn_back(params, h, more, before, d, *, slope=lambda h, before: 1 - h**2, through=transpose_times):
    """The step back of the simple recurrence, with the given parts in place of the right ones."""
    delta = d["h"] * slope(h, before)
    return {"h": through(params["U"], delta)}, delta


RNN.step_back(
    "113 RNN: slope at the state before", r"step|stands in the place|shift|tanh|h\[t-1\]", every,
    partial(_rnn_back, slope=lambda h, before: 1 - before**2),
)  # fmt: skip
RNN.step_back(
    "114 RNN: U not transposed", ("transpos", "u"), every, partial(_rnn_back, through=lambda U, delta: U @ delta)
)
RNN.enter("115 RNN: h of this step in dU", "stands in the place|step|shift", ("[1]",), _state_after(RNN))


def _newest_first(args, d_out):
    """The errors read from the first step on: the sequence's order forgotten."""
    return RNN.back(args, d_out[::-1], RNN.cell)


RNN.enter("116 RNN: errors in the reverse order", "flip|reverse", every, _newest_first)
