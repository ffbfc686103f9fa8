"""Recurrences: a cell run over the time steps of a sequence, and back again.

    h_t = step(W x_t + b, U h_{t−1})    W: (blocks · units, in)   U: (blocks · units, units)   h: (units,)
    ∇_W C = Σ_t δ_t x_tᵀ                δ_t = ∂C/∂(W x_t + b)
    ∇_U C = Σ_t δᵁ_t h_{t−1}ᵀ           δᵁ_t = ∂C/∂(U h_{t−1}): δ_t, but where a gate stands between
    ∇_b C = Σ_t δ_t
    ∂C/∂x_t = Wᵀ δ_t

All W x_t are one product before the scan over time. The scan back gives the δ_t alone; each weight's gradient, and all
∂C/∂x_t, are one product after it.
Source: Werbos, Backpropagation Through Time, 1990.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxnet.factors import Outer, Plain
from jaxnet.layer import Layer, ShapeError, Static, fits_input, leaf
from jaxnet.layers.dense import times, transpose_times
from jaxnet.layers.initializers import Initializer, initializer
from jaxnet.lowering import form, op, recurrent
from jaxnet.lowering.products import accumulated


class Piece(NamedTuple):
    """A piece of a sequence, for a recurrence to go on from a state, or to stop early. It then gives (outputs, carry).

    `xs`: (time, in). `carry`: the state before it, as the recurrence gave it for the piece before; None for zeros.
    `length`: how many of its steps count, a whole number from 0 to time; None for all. Beyond it outputs are 0 and
    the state stays as it is.
    """

    xs: Any
    carry: Any = None
    length: Any = None


def begin_h(units: int, dtype) -> dict[str, Array]:
    """A carry of the output alone: zeros."""
    return {"h": jnp.zeros(units, dtype)}


class Cell(NamedTuple):
    """One time step of a recurrence.

    - `blocks`: how many gates of `units` entries W and U give.
    - `step(params, Wx, carry) -> carry, gates, more`: `gates` (as long as W x) and `more` are saved for back.
    - `back(params, gates, more, before, d_carry) -> d_carry before the step, δ`: `before` is h before it.
    - `begin(units, dtype) -> carry` of zeros, a dict with the output "h".
    - `at_state(more, δ) -> δᵁ` of all steps, from `more` of all of them; None where it is δ.
    """

    blocks: int
    step: Callable
    back: Callable
    begin: Callable = begin_h
    at_state: Callable | None = None


def wide(*arrays: Float[Array, "..."]) -> list[Array]:
    """The arrays in float32 or better."""
    return [t.astype(accumulated(t.dtype)) for t in arrays]


# ------------------------------------------------------------------------------------------------- the equations


def over_rows_plain(
    params: Any, carry: Any, rows: Float[Array, "time n"], xs: Any, *, step: Callable, reverse: bool
) -> tuple[Any, Array, Any]:
    """carry, row_t, y_t = step(params, carry, row_t, x_t) for each t: the last carry, all rows as they became, all y.

    `step` is a function of its arguments alone: it closes over no array.
    """

    def one(carry, at):
        carry, row, y = step(params, carry, *at)
        return carry, (row, y)

    carry, (rows, ys) = jax.lax.scan(one, carry, (rows, xs), reverse=reverse)
    return carry, rows, ys


over_rows = op(over_rows_plain, cpu=form(recurrent.over_rows, manual=True))

# ---------------------------------------------------------------------------------------------------- the layer


def over_time(
    name: str,
    units: int,
    cell: Cell,
    *,
    reverse: bool,
    init: str | Initializer | Callable,
    recurrent_init: str | Initializer | Callable,
    more_params: Callable = lambda dtype: {},
    more_factors: Callable = lambda delta_U: {},
) -> Layer:
    """The layer of a cell: (time, in) → (time, units), or `Piece` → (outputs, carry).

    `more_params(dtype)` are parameters beside W, U and b, or b's own beginning; `more_factors(δᵁ)` their factors.
    """

    def onward(params, carry, Wx, counts):
        after, gates, more = cell.step(params, Wx, carry)
        after = keep(counts, after, carry)
        return after, gates, (after["h"], more)

    def back(params, d_after, gates, at):
        d_h, counts, more, h_before = at
        d_h = d_after["h"] + d_h.astype(d_after["h"].dtype)
        d_before, delta = cell.back(params, gates, more, h_before, d_after | {"h": d_h})
        return keep(counts, d_before, d_after), keep(counts, delta, jnp.zeros_like(delta)), None

    def forward(params, x, key=None, train=False):
        xs, carry, length = as_piece(x)
        zeros = cell.begin(units, xs.dtype)
        first = zeros if carry is None else jax.tree.map(lambda t, like: t.astype(like.dtype), carry, zeros)
        valid = None if length is None else jnp.arange(len(xs), dtype=jnp.int32) < jnp.asarray(length, jnp.int32)

        Wx = times(params["W"], *wide(xs))
        last, gates, (hs, more) = over_rows(params, first, Wx, valid, step=onward, reverse=reverse)
        out = hs if valid is None else jnp.where(valid[:, None], hs, jnp.zeros_like(hs))
        kept = (xs.astype(params["W"].dtype), first["h"], hs, gates, more, valid, Static(carry is not None))
        return (out, last) if isinstance(x, Piece) else out, kept

    def backward(params, saved, d_out):  # h_t = step(W x_t + b, U h_{t−1})
        xs, first, hs, gates, more, valid, carried = saved
        d_hs, d_last = d_out if isinstance(d_out, tuple) else (d_out, cell.begin(units, d_out.dtype))
        before = jnp.concatenate([hs[1:], first[None]] if reverse else [first[None], hs[:-1]])

        d_last_wide = jax.tree.map(lambda t: t.astype(accumulated(t.dtype)), d_last)
        at = (d_hs, valid, more, before)
        d_first, delta, _ = over_rows(params, d_last_wide, gates, at, step=back, reverse=not reverse)
        delta_U = delta if cell.at_state is None else cell.at_state(more, delta)
        dx = transpose_times(params["W"], delta).astype(d_hs.dtype)
        if isinstance(d_out, tuple):
            begun = jax.tree.map(lambda t, like: t.astype(like.dtype), d_first, d_last) if carried.value else None
            dx = Piece(dx, begun)
        of_U = Outer(delta_U, before.astype(params["U"].dtype), 1)
        return dx, {"W": Outer(delta, xs, 1), "U": of_U, "b": Plain(delta, 1)} | more_factors(delta_U)

    new = weights(cell, units, init, recurrent_init, more_params)
    return leaf(name, new, forward, backward, lambda x, params: accepts_piece(name, units, cell, as_piece(x), params))


def weights(cell: Cell, units: int, init: Any, recurrent_init: Any, more_params: Callable) -> Callable:
    """The initialiser (key, x) -> params of `over_time`."""

    def new(key, x):
        xs = as_piece(x).xs
        dtype = xs.dtype if jnp.issubdtype(xs.dtype, jnp.floating) else jnp.float32
        W_key, U_key = jnp.unstack(jax.random.split(key))
        W = gates_of(init, W_key, (cell.blocks, units, xs.shape[-1]), dtype)
        U = gates_of(recurrent_init, U_key, (cell.blocks, units, units), dtype)
        return {"W": W, "U": U, "b": jnp.zeros(cell.blocks * units, dtype)} | more_params(dtype)

    return new


def gates_of(init: str | Initializer | Callable, key: Array, shape: tuple[int, int, int], dtype) -> Array:
    """The rows of all gates, (blocks · units, columns). Each gate begins as a dense layer of its own."""
    blocks, *rows = shape
    return jnp.concatenate([initializer(init).W(k, tuple(rows), dtype) for k in jax.random.split(key, blocks)])


def keep(counts: Array | None, new: Any, old: Any) -> Any:
    """The new state; the old one where the step lies beyond the sequence's length."""
    return new if counts is None else jax.tree.map(lambda a, b: jnp.where(counts, a, b), new, old)


def as_piece(x) -> Piece:
    """A sequence as a whole piece; a piece as it is."""
    return x if isinstance(x, Piece) else Piece(x)


def accepts_piece(name: str, units: int, cell: Cell, piece: Piece, params) -> None:
    """Raises `ShapeError` where a recurrence does not take this piece."""
    xs, carry, length = piece
    if xs.ndim != 2:
        raise ShapeError(
            f"{name} takes a sequence of vectors, (time, in), got shape {xs.shape}: "
            "put reshape(-1, 1) before it for a sequence of numbers, or vmap it over a batch"
        )
    if not len(xs):
        raise ShapeError(f"{name} takes a sequence of at least one step, got shape {xs.shape}")
    fits_input(name, params, "W", (cell.blocks * units, xs.shape[1]), xs)
    if carry is not None:
        wanted = {k: v.shape for k, v in jax.eval_shape(lambda: cell.begin(units, jnp.float32)).items()}
        got = {k: v.shape for k, v in carry.items()} if isinstance(carry, dict) else carry
        if got != wanted:
            raise ShapeError(
                f"{name} takes a carry of shapes {wanted}, got {got}: hand on the one it gave before, or None"
            )
    if length is not None and (jnp.ndim(length) or not jnp.issubdtype(jnp.result_type(length), jnp.integer)):
        raise ShapeError(f"{name} takes a length that is one whole number for the sequence, got {length}")
