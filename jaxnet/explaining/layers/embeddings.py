"""Tokens and positions: rows gathered, rows added, pairs turned."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxnet.explaining.expressions import BigSum, Call, Entry, Expression, Name, Product, Sum, Transposed
from jaxnet.explaining.layers.steps import Equations, Site, Step, at
from jaxnet.explaining.numbers import one, shape


def embedding(site: Site) -> Equations:
    """The row of each token; back, each error is added to its row."""
    tokens, W = site.record.x, site.record.params["W"]
    index = "t" if tokens.ndim else ""
    flat = tokens.reshape(-1)
    token = at(site.takes[0], index)
    row, unit = Entry(site.param("W"), token), Call(Name("unit"), token)
    count = len(flat)

    def gradient(v):
        found = np.zeros(W.shape)
        np.add.at(found, flat, v.d_out.reshape(count, -1))
        return found

    sizes = f"{shape(tokens.shape)} of {len(W)} → {shape(site.record.out.shape)}"
    return Equations(
        (Step("out", at(site.gives, index), row, lambda v: v.np.asarray(v.W)[tokens], "out", sizes,
              "a row of W for each token, as it stands"),),
        (Step("dW", site.grad("W"), BigSum(index, site.outer(unit, at(site.error, index))), gradient, "W",
              f"{shape(W.shape)}, {count} terms", notes=lambda v: rows_of(flat, v)),),
    )  # fmt: skip


def rows_of(tokens: np.ndarray, v: Any) -> list[str]:
    """Which rows get an error, the one most often met among them."""
    ids, counts = np.unique(tokens, return_counts=True)
    most = int(ids[counts.argmax()])
    terms = v.d_out.reshape(len(tokens), -1)[tokens == most, 0]
    places = [int(i) + 1 for i in np.flatnonzero(tokens == most)]
    named = ", ".join(map(str, places[:4])) + (", …" if len(places) > 4 else "")
    where = f"position{'s' if len(places) > 1 else ''} {named}"
    return [
        f"{len(ids)} of {len(v.W)} rows get an error, the others none; row {most} that of {where}: "
        f"{one(float(terms.sum()))} in its first entry"
    ]


def positional(site: Site) -> Equations:
    """out = x + W[t]: the error passes whole, and row t of W gets it too."""
    x, W = site.record.x, site.record.params["W"]
    time, size = len(x), shape(x.shape)
    a, error = at(site.takes[0], "t"), at(site.error, "t")
    added = Sum((a, at(site.param("W"), "t")))
    return Equations(
        (Step("out", at(site.gives, "t"), added, lambda v: v.x + v.W[:time], "out", size),),
        (Step("dW", at(site.grad("W"), "t"), error, lambda v: np.pad(v.d_out, ((0, len(W) - time), (0, 0))), "W",
              shape(W.shape), f"rows beyond {time} get nothing" if len(W) > time else ""),
         Step("dx", at(site.back[0], "t"), error, lambda v: v.d_out, "dx", size, "a sum passes the error on")),
    )  # fmt: skip


def angles(time: int, pairs: int, base: float) -> np.ndarray:
    """t θᵢ, θᵢ = base^(−i/pairs)."""
    return np.outer(np.arange(time), base ** (-np.arange(pairs) / pairs))


def sinusoidal(site: Site) -> Equations:
    """out = x + s_t, sines and cosines of t: nothing to learn."""
    x = site.record.x
    turns = angles(len(x), x.shape[1] // 2, 10_000.0)
    waves = np.stack([np.sin(turns), np.cos(turns)], -1).reshape(x.shape)
    size = shape(x.shape)
    s: Expression = Name("s", below="t")
    return Equations(
        (Step("out", at(site.gives, "t"), Sum((at(site.takes[0], "t"), s)), lambda v: v.x + waves, "out", size,
              "s: sines and cosines of t, nothing to learn"),),
        (Step("dx", at(site.back[0], "t"), at(site.error, "t"), lambda v: v.d_out, "dx", size),),
    )  # fmt: skip


def turned(v: Any, x: Any, turns: np.ndarray) -> Any:
    """Each pair (xᵢ, xᵢ₊ₙ) turned by its angle."""
    turns = turns.reshape(len(turns), *(1,) * (x.ndim - 2), -1)
    u, w = v.np.split(x, 2, -1)
    c, s = np.cos(turns), np.sin(turns)
    return v.np.concatenate([u * c - w * s, u * s + w * c], -1)


def rotary(site: Site) -> Equations:
    """Pairs turned by their position; back, turned the other way: Rᵀ = R⁻¹."""
    x = site.record.x
    turns = angles(len(x), x.shape[-1] // 2, site.options["base"])
    R, size = Name("R", below="t"), shape(x.shape)
    return Equations(
        (Step("out", at(site.gives, "t"), Product((R, at(site.takes[0], "t"))), lambda v: turned(v, v.x, turns), "out",
              size, "each pair turned by tθᵢ"),),
        (Step("dx", at(site.back[0], "t"), Product((Transposed(R), at(site.error, "t"))),
              lambda v: turned(v, v.d_out, -turns), "dx", size, "turned back: here Rᵀ is R⁻¹"),),
    )  # fmt: skip
