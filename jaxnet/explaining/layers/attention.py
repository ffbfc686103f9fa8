"""Attention, its first head shown: scores, softmax, values, and the error back through each of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxnet.explaining.expressions import (
    BigSum,
    Call,
    Fraction,
    Minus,
    Name,
    Number,
    Product,
    Sum,
    Transposed,
)
from jaxnet.explaining.layers.embeddings import angles, turned
from jaxnet.explaining.layers.steps import Equations, Site, Step, at
from jaxnet.explaining.numbers import one, shape

PARTS = ("q", "k", "v")


def visible(seen: Any, time: int) -> np.ndarray:
    """Which key each query sees."""
    allowed = np.ones((time, time), bool) if seen.mask is None else np.asarray(seen.mask)
    return np.tril(allowed) if seen.causal else allowed


class Heads:
    """The numbers of attention: how the heads lie, and each quantity of the forward pass."""

    def __init__(self, site: Site):
        options = site.record.options
        self.time, self.width = site.record.x.shape
        self.heads, self.kv = options["heads"], options["kv"]
        self.d, self.group = self.width // self.heads, self.heads // self.kv
        self.causal = options["seen"].causal
        self.sees = visible(options["seen"], self.time)
        self.turns = angles(self.time, self.d // 2, options["rotary_base"]) if options["rotary"] else None
        self.counts = {"q": self.heads, "k": self.kv, "v": self.kv}
        self.bias = "b_q" in site.record.params

    def project(self, v: Any, part: str, x: Any) -> Any:
        """W x + b at each position."""
        z = x @ v.known[f"W_{part}"].T
        return z + v.known[f"b_{part}"][None] if self.bias else z

    def made(self, v: Any, part: str) -> Any:
        """q, k or v: (time, heads, d), turned where they are."""
        z = self.project(v, part, v.x).reshape(self.time, self.counts[part], self.d)
        return z if self.turns is None or part == "v" else turned(v, z, self.turns)

    def by_head(self, t: Any, shared: bool) -> Any:
        """(heads, time, d), where heads share keys and values each of them as often."""
        return np_of(t).repeat(t, self.group, 1).swapaxes(0, 1) if shared else t.swapaxes(0, 1)

    def scores(self, v: Any) -> Any:
        """S of every head."""
        s = self.by_head(v.q, False) @ self.by_head(v.k, True).swapaxes(1, 2) / np.sqrt(self.d)
        return v.np.where(self.sees[None], s, -np.inf)

    def softmax(self, v: Any) -> Any:
        """P of every head."""
        e = v.np.exp(v.S - v.S.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def mixed(self, v: Any) -> Any:
        """o: (time, width)."""
        return (v.P @ self.by_head(v.v, True)).swapaxes(0, 1).reshape(self.time, self.width)

    def head_one(self, value: Any) -> np.ndarray:
        """The first head's part of (time, heads · d)."""
        return np.asarray(value).reshape(self.time, -1, self.d)[:, 0]


def first(value: Any) -> np.ndarray:
    """The first head's of (heads, …)."""
    return np.asarray(value)[0]


def attention(site: Site) -> Equations:
    """out = W_o o; o = P v; P = softmax(q kᵀ/√d); q, k, v = W x."""
    h = Heads(site)
    time, width, d = h.time, h.width, h.d
    x = at(site.takes[0], "t")
    q, k, v_, S, P, o = (site.name(base, base) for base in ("q", "k", "v", "S", "P", "o"))
    named = {"q": q, "k": k, "v": v_, "o": o}
    forward = []
    for part in PARTS:
        right = site.affine(site.param(f"W_{part}"), x, site.param(f"b_{part}") if h.bias else None)
        rotated = h.turns is not None and part != "v"
        right = Product((Name("R", below="t"), right)) if rotated else right
        forward.append(
            Step(part, at(named[part], "t"), right, lambda v, part=part: h.made(v, part),
                 sizes=site.matrix(h.counts[part] * d, width), shown=lambda value: value.reshape(time, -1),
                 remark="Rₜ: pairs turned by their position" if rotated and part == "q" else "")
        )  # fmt: skip
    root = Number(f"√{d}")
    said = f"head 1 of {h.heads}" + (", −∞ for what comes later" if h.causal else "")
    forward += [
        Step("S", S, Fraction(Product((q, Transposed(k))), root), h.scores, shown=first, remark=said,
             sizes=f"{time}×{d}·{d}×{time} → {time}×{time}"),
        Step("P", P, Call(Name("softmax"), S), h.softmax, shown=first, sizes=f"{time}×{time}",
             remark="each row sums to 1", notes=lambda v: [looks_at(first(v.P))]),
        Step("o", o, Product((P, v_)), h.mixed, shown=h.head_one, sizes=f"{time}×{time}·{time}×{d} → {time}×{d}"),
        Step("out", at(site.gives, "t"),
             site.affine(site.param("W_o"), at(o, "t"), site.param("b_o") if h.bias else None),
             lambda v: h.project(v, "o", v.o), "out", site.matrix(width, width),
             f"o of the {h.heads} heads one after another" if h.heads > 1 else ""),
    ]  # fmt: skip
    backward = (*through_scores(site, h, named, S, P), *through_projections(site, h, named))
    return Equations(tuple(forward), backward, numbers=6 * h.heads * time * time)


def np_of(t: Any) -> Any:
    """NumPy, or `jax.numpy`, whichever an array is of."""
    if isinstance(t, np.ndarray):
        return np
    import jax.numpy as jnp

    return jnp


def looks_at(P: np.ndarray) -> str:
    """Where the last position looks."""
    row = P[-1]
    best = int(row.argmax())
    return f"the last position takes most, {one(float(row[best]))} of the whole, from position {best + 1}"


def through_scores(site: Site, h: Heads, named: dict[str, Name], S: Name, P: Name) -> tuple[Step, ...]:
    """From do to dv, dP, dS, dq and dk; heads that share keys and values add up in them."""
    q, k, v_, o = (named[part] for part in "qkvo")
    do, dP, dS = site.partial(o), site.partial(P), site.partial(S)
    time, width, d, head_one, by_head = h.time, h.width, h.d, h.head_one, h.by_head
    group, root = h.group, Number(f"√{h.d}")

    def errors(v):
        return v.do.reshape(time, h.heads, d).swapaxes(0, 1)

    def shared(t):
        """(heads, time, d) added up over the heads of a group: (time, kv heads, d)."""
        return t.swapaxes(0, 1).reshape(time, h.kv, group, d).sum(2)

    def dS_of(v):
        return v.P * (v.dP - (v.dP * v.P).sum(-1, keepdims=True))

    less = Sum((dP, Minus(Call(Name("rowsum"), Product((dP, P), "⊙")))))
    added = f"{group} heads share them and add up" if group > 1 else ""
    square, across = f"{time}×{time}", f"{time}×{time}·{time}×{d} → {time}×{d}"
    return (
        Step("do", at(do, "t"), site.back_through(site.param("W_o"), at(site.error, "t")),
             lambda v: v.d_out @ v.W_o, sizes=site.matrix(width, width, back=True), shown=head_one,
             remark=f"head 1 of {h.heads}"),
        Step("dv", site.partial(v_), Product((Transposed(P), do)),
             lambda v: shared(v.P.swapaxes(1, 2) @ errors(v)), sizes=across, shown=head_one, remark=added),
        Step("dP", dP, Product((do, Transposed(v_))), lambda v: errors(v) @ by_head(v.v, True).swapaxes(1, 2),
             sizes=f"{time}×{d}·{d}×{time} → {square}", shown=first),
        Step("dS", dS, Product((P, less), "⊙"), dS_of, sizes=square, shown=first,
             remark="softmax's Jacobian, row by row: each row sums to 0"),
        Step("dq", site.partial(q), Fraction(Product((dS, k)), root),
             lambda v: (v.dS @ by_head(v.k, True)).swapaxes(0, 1) / np.sqrt(d), sizes=across, shown=head_one),
        Step("dk", site.partial(k), Fraction(Product((Transposed(dS), q)), root),
             lambda v: shared(v.dS.swapaxes(1, 2) @ by_head(v.q, False)) / np.sqrt(d), sizes=across, shown=head_one,
             remark=added),
    )  # fmt: skip


def through_projections(site: Site, h: Heads, named: dict[str, Name]) -> tuple[Step, ...]:
    """The four gradients, and three ways back to x."""
    x, error = at(site.takes[0], "t"), at(site.error, "t")
    time, width, d, counts, turns = h.time, h.width, h.d, h.counts, h.turns
    at_z = {part: at(site.partial(named[part]), "t") for part in PARTS}

    def delta(v, part):
        value = v.known[f"d{part}"]
        value = value if turns is None or part == "v" else turned(v, value, -turns)
        return value.reshape(time, -1)

    def turned_back(part):
        R = Transposed(Name("R", below="t"))
        return Product((R, at_z[part])) if turns is not None and part != "v" else at_z[part]

    found = []
    for part in PARTS:
        rows = counts[part] * d
        found.append(
            Step(f"dW_{part}", site.grad(f"W_{part}"), BigSum("t", site.outer(turned_back(part), x)),
                 lambda v, part=part: delta(v, part).T @ v.x, f"W_{part}",
                 f"{site.outer_sizes(rows, width)}, {time} terms")
        )  # fmt: skip
    found.append(
        Step("dW_o", site.grad("W_o"), BigSum("t", site.outer(error, at(named["o"], "t"))),
             lambda v: v.d_out.T @ v.o, "W_o", f"{site.outer_sizes(width, width)}, {time} terms")
    )  # fmt: skip
    for part in (*PARTS, "o") if h.bias else ():
        right = error if part == "o" else turned_back(part)
        found.append(
            Step(f"db_{part}", site.grad(f"b_{part}"), BigSum("t", right),
                 lambda v, part=part: (v.d_out if part == "o" else delta(v, part)).sum(0), f"b_{part}",
                 f"{width if part == 'o' else counts[part] * d}, {time} terms")
        )  # fmt: skip
    ways = tuple(site.back_through(site.param(f"W_{part}"), turned_back(part)) for part in PARTS)
    found.append(
        Step("dx", at(site.back[0], "t"), Sum(ways),
             lambda v: sum(delta(v, part) @ v.known[f"W_{part}"] for part in PARTS), "dx", shape(site.record.x.shape),
             "three ways back, by q, k and v, added")
    )  # fmt: skip
    return tuple(found)
