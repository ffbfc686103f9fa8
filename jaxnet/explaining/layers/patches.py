"""Layers that look through a window: convolution, its transpose, and pooling.

A window cuts a patch at each position. Of a patch a convolution is W a of the dense layer, with the taps of the kernel
as columns; a place that lies in several patches gets the errors of all of them.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from jaxnet.explaining.expressions import BigSum, Call, Expression, Fraction, Name, Number, Product
from jaxnet.explaining.layers.simple import many_paths, sum_of
from jaxnet.explaining.layers.steps import Equations, Site, Step, at
from jaxnet.explaining.numbers import one, shape
from jaxnet.layers.windows import by
from jaxnet.lowering.windows import Window


def seen(window: Window, places: tuple[int, ...]) -> np.ndarray:
    """The place that each tap sees at each position, (positions, taps), counted through; their number for padding."""
    axes = []
    for n, k, s, d, (low, _), p in zip(places, *window, window.positions(places), strict=True):
        found = np.arange(p)[:, None] * s + np.arange(k) * d - low
        axes.append(np.where((found >= 0) & (found < n), found, -1))
    count = int(np.prod(places))
    rows = []
    for position in itertools.product(*(range(len(each)) for each in axes)):
        along = [each[i] for each, i in zip(axes, position, strict=True)]
        grid = np.meshgrid(*along, indexing="ij")
        flat = np.ravel_multi_index([np.maximum(g, 0) for g in grid], places)
        rows.append(np.where(np.min(grid, axis=0) < 0, count, flat).reshape(-1))
    return np.stack(rows)


def cut(v: Any, x: Any, index: np.ndarray, fill: float = 0.0) -> Any:
    """The patches of x, (positions, taps, channels), padding as `fill`."""
    rows = x.reshape(-1, x.shape[-1])
    return v.np.concatenate([rows, v.np.full((1, rows.shape[-1]), fill)])[index]


def put_back(v: Any, patches: Any, index: np.ndarray, shape_of: tuple[int, ...]) -> Any:
    """Every entry of the patches added at the place from which it was cut."""
    channels = shape_of[-1]
    count = int(np.prod(shape_of[:-1]))
    if v.np is np:
        rows = np.zeros((count + 1, channels))
        np.add.at(rows, index, patches)
    else:
        rows = v.np.zeros((count + 1, channels)).at[index].add(patches)
    return rows[:-1].reshape(shape_of)


def subscript(window: Window) -> str:
    """The place that tap k sees at position p: 2p+k−1; p,k where the axes differ."""
    each = set(zip(window.stride, window.dilation, (low for low, _ in window.padding), strict=True))
    if len(each) > 1:
        return "p,k"
    ((s, d, low),) = each
    return f"{'' if s == 1 else s}p+{'' if d == 1 else d}k{f'−{low}' if low else ''}"


def looks(window: Window, groups: int) -> str:
    """What a patch is."""
    where = subscript(window)
    said = f"places {'p+k' if where == 'p,k' else where}, all that a {by(window.kernel)} kernel sees at p"
    return f"{said}, {groups} groups of channels" if groups > 1 else said


def back_sum(site: Site, window: Window) -> tuple[Expression, str]:
    """∂C/∂a at a place as a sum over taps, and what there is to say of it."""
    W = at(site.param("W"), "k")
    one_step = set(zip(window.stride, window.dilation, window.padding, strict=True))
    if len(one_step) == 1 and window.stride[0] == 1:
        d, low = window.dilation[0], window.padding[0][0]
        place = f"p{f'+{low}' if low else ''}−{'' if d == 1 else d}k"
        return BigSum("k", site.back_through(W, at(site.error, place))), "a convolution again, the kernel flipped"
    where = subscript(window)
    said = "p, k that see this place" if where == "p,k" else f"p, k with {where} this place"
    return BigSum("p,k", site.back_through(W, at(site.error, "p"))), said


def place_named(flat: int, places: tuple[int, ...]) -> str:
    """(15,15), counted from 1."""
    indices = [int(i) + 1 for i in np.unravel_index(flat, places)]
    return f"({','.join(map(str, indices))})" if len(indices) > 1 else str(indices[0])


def paths(v: Any, index: np.ndarray, places: tuple[int, ...], out: int) -> list[str]:
    """Count the paths: from one place there are as many as patches have it, from one weight as many as positions."""
    middle = int(np.ravel_multi_index([(n - 1) // 2 for n in places], places))
    many, corner = (np.argwhere(index == place) for place in (middle, 0))
    if len(many) == 0:
        return []
    terms = v.dX[many[:, 0], many[:, 1], 0]
    said = f"place {place_named(middle, places)} lies in {patches(len(many))}"
    said += f": its channel 1 reaches C by {len(many)}·{out} z: {sum_of(terms)}"
    return [said if len(corner) == len(many) else f"{said}; the first place lies in {patches(len(corner))}"]


def patches(count: int) -> str:
    """1 patch, 25 patches."""
    return f"{count} patch{'' if count == 1 else 'es'}"


def convolution(site: Site) -> Equations:
    """z = W X + b at each position, X the patch that it sees, W as the matrix (out, taps · in)."""
    x, W = site.record.x, site.record.params["W"]
    groups, places = site.options["groups"], x.shape[:-1]
    window, _ = site.options["window_of"](places)
    index = seen(window, places)
    (count, taps), out, ins = index.shape, W.shape[0], W.shape[-1]
    bias = "b" in site.record.params
    X = site.name("X", "X", "p")
    symbol, z, error = site.param("W"), at(site.gives, "p"), at(site.error, "p")
    times = f", {count * groups} times"

    def grouped(v):
        return v.W.reshape(groups, out // groups, taps, ins)

    def forward(v):
        z = v.np.einsum("ptgi,goti->pgo", v.X.reshape(count, taps, groups, ins), grouped(v)).reshape(count, out)
        return (z + v.b[None] if bias else z).reshape(site.record.out.shape)

    def delta(v):
        return v.d_out.reshape(count, groups, out // groups)

    def dX(v):
        return v.np.einsum("pgo,goti->ptgi", delta(v), grouped(v)).reshape(count, taps, -1)

    def dW(v):
        return v.np.einsum("pgo,ptgi->goti", delta(v), v.X.reshape(count, taps, groups, ins)).reshape(W.shape)

    def flat(value):
        return value.reshape(count, -1)

    def one_weight(v):
        j, t, i = np.unravel_index(np.abs(v.dW).argmax(), (out, taps, ins))
        of_group = j // (out // groups) * ins + i
        return [many_paths(v.d_out.reshape(count, out)[:, j] * v.X[:, t, of_group])]

    right, said = back_sum(site, window)
    steps = [
        Step("X", X, Call(Name("patch", below="p"), site.takes[0]), lambda v: cut(v, v.x, index), shown=flat,
             sizes=f"{shape(x.shape)} → {count}×{taps * x.shape[-1]}", remark=looks(window, groups)),
        Step("out", z, site.affine(symbol, X, site.param("b") if bias else None), forward, "out",
             site.matrix(out // groups, taps * ins) + times),
    ]  # fmt: skip
    back = [
        Step("dW", site.grad("W"), BigSum("p", site.outer(error, X)), dW, "W",
             f"{site.outer_sizes(out // groups, taps * ins)}, {count} terms", notes=one_weight),
        *([Step("db", site.grad("b"), BigSum("p", error), lambda v: v.d_out.reshape(-1, out).sum(0), "b",
                f"{out}, {count} terms")] if bias else []),
        Step("dX", site.partial(X), site.back_through(symbol, error), dX, shown=flat,
             sizes=site.matrix(out // groups, taps * ins, back=True) + times, for_dx=True),
        Step("dx", at(site.back[0], "p"), right, lambda v: put_back(v, v.dX, index, x.shape), "dx",
             f"{shape(site.record.out.shape)} → {shape(x.shape)}", said, notes=lambda v: paths(v, index, places, out)),
    ]  # fmt: skip
    return Equations(tuple(steps), tuple(back), numbers=2 * index.size * x.shape[-1])


def transposed(site: Site) -> Equations:
    """Each place spreads W_k a over what a window sees there: the way back of a convolution, taken forward."""
    x, W, out_shape = site.record.x, site.record.params["W"], site.record.out.shape
    groups, out, ins = site.options["groups"], W.shape[0], W.shape[-1]
    window, places = site.options["window_of"](x.shape[:-1])
    index = seen(window, places)
    (count, taps), bias = index.shape, "b" in site.record.params
    Y, W_k, where = site.name("Y", "Y", "p,k"), site.param("W", "k"), subscript(window)
    a, z, error = at(site.takes[0], "p"), at(site.gives, where), at(site.error, where)

    def grouped(v):
        return v.W.reshape(groups, out // groups, taps, ins)

    def spread(v):
        made = v.np.einsum("pgi,goti->ptgo", v.x.reshape(count, groups, ins), grouped(v))
        return made.reshape(count, taps, out)

    def forward(v):
        z = put_back(v, v.Y, index, out_shape)
        return z + v.b.reshape((1,) * (len(out_shape) - 1) + (-1,)) if bias else z

    def by_group(v):
        return v.dY.reshape(count, taps, groups, out // groups)

    def dW(v):
        return v.np.einsum("ptgo,pgi->goti", by_group(v), v.x.reshape(count, groups, ins)).reshape(W.shape)

    def dx(v):
        return v.np.einsum("ptgo,goti->pgi", by_group(v), grouped(v)).reshape(x.shape)

    size = site.matrix(out // groups, ins)
    b = site.param("b") if bias else None
    total: Expression = BigSum("p,k", Y)
    steps = [
        Step("Y", Y, site.times(W_k, a), spread, shown=lambda value: value.reshape(count, -1),
             sizes=f"{size}, {taps} taps at {count} places"),
        Step("out", z, total if b is None else site.affine_of(total, b), forward, "out",
             f"{count}×{taps}×{out} → {shape(out_shape)}", "what falls on the same place is added"),
    ]  # fmt: skip
    back = [
        Step("dY", site.partial(Y), error, lambda v: cut(v, v.d_out, index),
             sizes=f"{shape(out_shape)} → {count}×{taps * out}", shown=lambda value: value.reshape(count, -1),
             remark="the patch of δ that the place had spread over"),
        Step("dW", at(site.grad("W"), "k"), BigSum("p", site.outer(error, a)), dW, "W",
             f"{site.outer_sizes(out // groups, ins)}, {count} terms"),
        *([Step("db", site.grad("b"), BigSum("", site.error), lambda v: v.d_out.reshape(-1, out).sum(0), "b",
                f"{out}")] if bias else []),
        Step("dx", at(site.back[0], "p"), BigSum("k", site.back_through(W_k, error)), dx, "dx",
             f"{shape(out_shape)} → {shape(x.shape)}", "a convolution: the same window, each Wₖ transposed"),
    ]  # fmt: skip
    return Equations(tuple(steps), tuple(back), numbers=2 * index.size * out)


# ------------------------------------------------------------------------------------------------- pooling


def window_of(site: Site) -> np.ndarray:
    """What each window sees; of a global pooling all places in one."""
    x = site.record.x
    if "window_of" not in site.options:
        return np.arange(int(np.prod(x.shape[:-1])))[None]
    return seen(site.options["window_of"](x), x.shape[:-1])


def average_pool(site: Site) -> Equations:
    """The mean of what a window sees; the error is spread evenly."""
    x, out_shape = site.record.x, site.record.out.shape
    index = window_of(site)
    inside = index < int(np.prod(x.shape[:-1]))
    counts = inside.sum(1).astype(float)
    whole = len(index) == 1 and len(out_shape) == 1
    n = f"{counts[0]:g}" if len(set(counts.tolist())) == 1 else "nₚ"
    a = at(site.takes[0], "k" if whole else where_of(site))
    gives, error, sent = (at(each, "" if whole else "p") for each in (site.gives, site.error, site.back[0]))
    sizes = f"{shape(x.shape)} → {shape(out_shape)}", f"{shape(out_shape)} → {shape(x.shape)}"

    def mean(v):
        return (cut(v, v.x, index).sum(1) / counts[:, None]).reshape(out_shape)

    def back(v):
        shares = v.d_out.reshape(len(index), -1) / counts[:, None]
        return put_back(v, np.repeat(shares[:, None], index.shape[1], 1), index, x.shape)

    def notes(v):
        d = float(v.d_out.reshape(-1)[0])
        return [f"channel 1, first window: each of its {counts[0]:g} places gets {one(d)}/{counts[0]:g} = "
                f"{one(d / float(counts[0]))}"]  # fmt: skip

    right = Fraction(BigSum("k", a), Number(n))
    spread = Fraction(error, Number(n))
    overlap = int(np.bincount(index[inside].reshape(-1)).max()) > 1
    return Equations(
        (Step("out", gives, right, mean, "out", sizes[0]),),
        (Step("dx", at(sent, "k") if whole else at(sent, where_of(site)), BigSum("p", spread) if overlap else spread,
              back, "dx", sizes[1], "spread evenly over the window", notes=notes),),
    )  # fmt: skip


def where_of(site: Site) -> str:
    """The place that tap k sees at position p."""
    return subscript(site.options["window_of"](site.record.x))


def max_pool(site: Site) -> Equations:
    """The largest of what a window sees; the error goes to the winner alone, the first on ties."""
    x, out_shape = site.record.x, site.record.out.shape
    index = window_of(site)
    places, channels = x.shape[:-1], x.shape[-1]
    whole = len(index) == 1 and len(out_shape) == 1
    a = at(site.takes[0], "k" if whole else where_of(site))
    gives, error = (at(each, "" if whole else "p") for each in (site.gives, site.error))
    sizes = f"{shape(x.shape)} → {shape(out_shape)}", f"{shape(out_shape)} → {shape(x.shape)}"

    def largest(v):
        seen_there = cut(v, v.x, index, fill=-np.inf)
        winner = seen_there.argmax(1)
        return v.np.take_along_axis(seen_there, winner[:, None], 1)[:, 0].reshape(out_shape)

    def winners(v):
        return cut(v, v.x, index, fill=-np.inf).argmax(1)

    def back(v):
        won = np.arange(index.shape[1])[None, :, None] == winners(v)[:, None]
        return put_back(v, won * v.d_out.reshape(len(index), 1, channels), index, x.shape)

    def notes(v):
        place = int(index[0, winners(v)[0, 0]])
        d = one(float(v.d_out.reshape(-1)[0]))
        return [f"channel 1, first window: {place_named(place, places)} won and gets all of {d}, the others nothing"]

    return Equations(
        (Step("out", gives, Call(Name("max", below="k"), a), largest, "out", sizes[0]),),
        (Step("dx", at(site.back[0], "k" if whole else where_of(site)), Product((error, Name("[k won]")), ""), back,
              "dx", sizes[1], "to the winner alone", notes=notes),),
    )  # fmt: skip
