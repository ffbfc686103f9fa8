"""Why Wᵀ? Answers in the order of asking, each by the network's own numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.backprop import own_weight
from jaxnet.explaining.expressions import Transposed, written
from jaxnet.explaining.lines import Chain
from jaxnet.explaining.model import Adjoint, Nudge, Orthogonal, Paths, SentBack, WholeRows, WhyTranspose
from jaxnet.explaining.numbering import NumberedLayer
from jaxnet.explaining.numbers import entries, exponent, lowered_index, number, one, shape, shortened, vector
from jaxnet.explaining.observe import Observed
from jaxnet.readings import product

NUDGE = 0.001
STEP = 0.1
SINGULAR = 1e7  # condition number beyond which an inverse says nothing in float32


def wide(tree: Any) -> Any:
    """Floats in float64, precise enough for a nudge of a thousandth."""
    return jax.tree.map(
        lambda t: jnp.asarray(t, jnp.float64) if jnp.issubdtype(jnp.asarray(t).dtype, jnp.floating) else t, tree
    )


def cost_from(
    observed: Observed, index: int, values: list[np.ndarray], weights: list[np.ndarray]
) -> tuple[list[float], list[np.ndarray]]:
    """C and the output of dense layer `index` at other inputs and W: the network runs on from there, in float64."""
    with jax.enable_x64(True):
        loss_params = () if observed.loss.init is None else wide(observed.params[1])
        (first, own), *rest = [(item.layer, wide(item.params)) for item in observed.items[index:]]
        y = wide(jnp.asarray(observed.y))
        weight = own_weight(observed.loss, y)

        def run(value, W, y):
            z = value = first.forward({**own, "W": W}, value)[0]
            for layer, params in rest:
                value, _ = layer.forward(params, value)
            return observed.loss.turn(loss_params, value, y, weight, product)[0], z

        costs, outs = jax.jit(jax.vmap(run, (0, 0, None)))(*(wide(np.stack(each)) for each in (values, weights)), y)
        return [float(cost) for cost in costs], [np.asarray(out) for out in outs]


def why_transpose(chain: Chain, place: NumberedLayer) -> WhyTranspose:
    """Why the error goes back from a dense layer as Wᵀδ."""
    notation = chain.notation
    return WhyTranspose(
        item=place.index,
        layer=notation.number(place.number),
        W=notation.param("W", place.number),
        delta=notation.delta(place.number),
        a=place.takes,
        gives=place.gives,
        units=(("δ", "cost/z"), ("W", "z/a"), ("Wᵀδ", "cost/a"), ("W⁻¹δ", "cost·a/z²")),
        **numbers(chain.observed, place.index),
    )


@lru_cache(maxsize=64)
def numbers(observed: Observed, index: int) -> dict[str, Any]:
    """The numbers of `WhyTranspose`. They are the same in every notation."""
    item = observed.items[index]
    W, delta, a = (np.asarray(each, np.float64) for each in (item.params["W"], item.d_out, item.x))
    back = W.T @ delta
    unit = int(np.argmax(a != 0))  # the first that is on, or the first
    inverse, other = other_way(W, delta)
    raised, raised_W = a.copy(), W.copy()
    raised[unit] += NUDGE
    raised_W[0, unit] += NUDGE
    values = [a, raised, a - STEP * unit_vector(back), a - STEP * unit_vector(other), a]
    costs, outs = cost_from(observed, index, values, [W, W, W, W, raised_W])
    return {
        "shape": W.shape,
        "back": back,
        "nudge": Nudge(unit, NUDGE, outs[1] - outs[0], W[:, unit], costs[1] - costs[0], NUDGE * float(back[unit])),
        "paths": Paths(
            unit, delta * W[:, unit], float(back[unit]), (0, unit), float(delta[0] * a[unit]), float(delta[0]),
            float(a[unit]), costs[4] - costs[0],
        ),
        "rows": WholeRows(delta, W, delta[:, None] * W, back),
        "sent_back": SentBack(inverse, other, angle(back, other), STEP, costs[0] - costs[2], costs[0] - costs[3]),
        "orthogonal": orthogonal(W, delta),
        "adjoint": adjoint(W, delta),
    }  # fmt: skip


def unit_vector(v: np.ndarray) -> np.ndarray:
    """v at length 1; 0 stays."""
    length = np.linalg.norm(v)
    return v / length if length else v


def other_way(W: np.ndarray, delta: np.ndarray) -> tuple[Literal["none", "singular", "inverse"], np.ndarray]:
    """The error sent back by the inverse, or by the pseudo-inverse if there is none."""
    if W.shape[0] != W.shape[1]:
        return "none", np.linalg.pinv(W) @ delta
    if np.linalg.cond(W) > SINGULAR:
        return "singular", np.linalg.pinv(W) @ delta
    return "inverse", np.linalg.solve(W, delta)


def angle(u: np.ndarray, v: np.ndarray) -> float:
    """Degrees between two vectors; NaN where one is 0."""
    lengths = float(np.linalg.norm(u) * np.linalg.norm(v))
    return float(np.degrees(np.arccos(np.clip(u @ v / lengths, -1, 1)))) if lengths else float("nan")


def orthogonal(W: np.ndarray, delta: np.ndarray) -> Orthogonal:
    """The orthogonal matrix nearest to W, by its polar decomposition. Its inverse is its transpose."""
    left, _, right = np.linalg.svd(W, full_matrices=False)
    Q = left @ right
    transposed, inverted = Q.T @ delta, np.linalg.pinv(Q) @ delta
    return Orthogonal(Q, transposed, inverted, float(np.abs(transposed - inverted).max()))


def adjoint(W: np.ndarray, delta: np.ndarray) -> Adjoint:
    """⟨δ, W v⟩ and ⟨Wᵀδ, v⟩."""
    v = np.round(np.random.RandomState(0).standard_normal(W.shape[1]), 2)
    return Adjoint(v, float(delta @ (W @ v)), float((W.T @ delta) @ v))


HANG = 20  # where the text of the block stands
MANY = 4  # terms of a sum or rows of a matrix, beyond which the middle is left out


def why_lines(why: WhyTranspose, back: str, rows: bool, digits: int, cost: str = "C") -> list[str]:
    """The block under ∂C/∂a, in the order of asking. back: Wᵀδ as written. rows: whether W is (in, out)."""
    W, delta, a, nudge, unit = written(why.W), written(why.delta), written(why.a), why.nudge, why.nudge.unit + 1
    line, across = ("row", "column") if rows else ("column", "row")
    orthonormal = "columns" if (why.shape[0] >= why.shape[1]) != rows else "rows"
    asked = {
        "ask the network": [f"{entry(a, unit)} + {number(nudge.by, 3)} → {written(why.gives)} + "
                            f"{fixed(nudge.dz, digits)}, {W}'s {line} {unit} → {cost} {plus(nudge.cost_moves)}"],
        "count paths": counted(why, rows, digits, cost),
        f"whole {'columns' if rows else 'rows'}": whole_rows(why, across, digits),
        f"not {W}⁻¹": not_inverse(why, back, rows, digits, cost),
        "orthogonal": [f"if W's {orthonormal} are orthonormal the two are equal: Qᵀδ = Q⁺δ = "
                       f"{vector(why.orthogonal.transposed, 3)}"],
        "adjoint": [f"⟨{delta}, {f'v{W}' if rows else f'{W}v'}⟩ = ⟨{back}, v⟩ for every v: "
                    f"{one(why.adjoint.left, digits)} at v = {vector(why.adjoint.v, 2)}"],
    }  # fmt: skip
    found = [f"Why {written(Transposed(why.W))}?"]
    for n, (head, lines) in enumerate(asked.items(), 1):
        found += [f" {n} {head:<15}  {lines[0]}", *(f"{'':{HANG}}{text}" for text in lines[1:])]
    units = "   ".join(f"{what}: {unit}" for what, unit in why.units)
    return [*found, f"   {'units':<15}  {units}"]


def fixed(values: np.ndarray, digits: int) -> str:
    """A vector with `digits` decimals, or with a power of ten if it is smaller."""
    largest = float(np.abs(values).max(initial=0))
    if len(values) > 8 or not 10.0**-digits <= largest:
        return vector(values, digits)
    return f"({' '.join(number(float(value), digits) for value in np.round(values, digits))})"


def plus(value: float) -> str:
    """A small number of three significant digits with its sign before it."""
    size = abs(value)
    decimals = min(12, max(0, 2 - math.floor(math.log10(size)))) if size else 0
    return f"{'−' if value < 0 else '+'} {number(size, decimals)}"


def entry(symbol: str, *indices: int) -> str:
    """A symbol with subscripts."""
    return f"{symbol}{lowered_index(*indices)}"


def weight(why: WhyTranspose, rows: bool, out: int, into: int) -> str:
    """An entry of W in its orientation."""
    return entry(written(why.W), *((into, out) if rows else (out, into)))


def some(items: Sequence[str], between: str = " + ") -> str:
    """A sum's terms, of many the first two and the last."""
    return between.join(items if len(items) <= MANY else [*items[:2], "…", items[-1]])


def counted(why: WhyTranspose, rows: bool, digits: int, cost: str) -> list[str]:
    """2: count paths."""
    paths, unit = why.paths, why.paths.unit + 1
    delta, a = written(why.delta), written(why.a)
    count = {1: "one", 2: "two", 3: "three", 4: "four"}.get(len(paths.terms), str(len(paths.terms)))
    symbols = some([f"{entry(delta, j + 1)}{weight(why, rows, j + 1, unit)}" for j in range(len(paths.terms))])
    shown = range(len(paths.terms)) if len(paths.terms) <= MANY else (0, 1, len(paths.terms) - 1)
    values = [*(float(paths.terms[i]) for i in shown), paths.total, paths.weight_gradient]
    texts, power = scaled(values, digits)
    *terms, total, gradient = texts
    if len(paths.terms) > MANY:
        terms.insert(2, "…")
    added = "" if len(terms) == 1 else " + ".join(terms).replace("+ −", "− ") + " = "
    first = f"{entry(a, unit)} reaches {cost} by {count}:"
    second = f"{weight(why, rows, 1, unit)} by one, no sum:"
    width = max(len(first), len(second))
    return [
        f"{first:<{width}}  {symbols} = {added}{total}{power and f', all {power}'}",
        f"{second:<{width}}  {entry(delta, 1)}{entry(a, unit)} = {gradient}{power and f', {power}'}",
    ]


def scaled(values: Sequence[float] | np.ndarray, digits: int) -> tuple[list[str], str]:
    """The numbers of one calculation with `digits` decimals, or with one power of ten if they are smaller."""
    array = np.asarray(values, np.float64)
    if not exponent(array, digits):
        return [number(float(value), digits) for value in array.reshape(-1)], ""
    texts, power = entries(array, digits)
    return texts, f"× {power.removesuffix(' × ')}"


def whole_rows(why: WhyTranspose, line: str, digits: int) -> list[str]:
    """3: whole rows. line: "row", or "column" where W is (in, out)."""
    W, (out, into) = written(why.W), why.shape
    shown = range(out) if out <= MANY else (0, 1, out - 1)
    columns = shortened(into, MANY + 1, (2, 1))
    kept = [j for j in columns if j is not None]
    parts = (why.rows.delta[list(shown)], why.rows.scaled[list(shown)][:, kept], why.rows.total[kept])
    weights, of_weights = entries(why.rows.W[list(shown)][:, kept], digits, 1)
    if exponent(np.concatenate([part.reshape(-1) for part in parts]), digits):
        texts, of_errors = scaled(np.concatenate([part.reshape(-1) for part in parts]), digits)
        deltas, products, total = (texts[: len(shown)], texts[len(shown) : -len(kept)], texts[-len(kept) :])
    else:
        of_errors, deltas = "", [number(float(each), digits) for each in parts[0]]
        (products, _), (total, _) = (entries(part, digits) for part in parts[1:])
    wide = [max(map(len, deltas)), max(map(len, weights)), max(map(len, [*products, *total]))]
    error = "dz" if written(why.delta).startswith("dz") else "δ"
    of_weights = of_weights and f"{W} × {of_weights.removesuffix(' × ')}"
    scales = (of_weights, of_errors and f"{error} and products {of_errors}")
    said = "; ".join(each for each in scales if each)
    found = [f"each {error} returns along the {line} of {W} that made its z{said and f' ({said})'}:"]
    for i, delta in enumerate(deltas):
        here = slice(i * len(kept), (i + 1) * len(kept))
        row, product = spread(weights[here], columns, wide[1]), spread(products[here], columns, wide[2])
        left = f"  {delta:>{wide[0]}} × {row} ="
        found.append(f"{left} {product}")
        if out > MANY and i == 1:
            found.append(" " * (len(left) // 2) + "⋮")
    blank = " " * len(f"  {'':{wide[0]}} × {spread(weights[: len(kept)], columns, wide[1])} =")
    return [*found[:-1], f"{found[-1]}  + ↓", f"{blank} {spread(total, columns, wide[2])}"]


def spread(texts: Sequence[str], columns: Sequence[int | None], width: int) -> str:
    """Entries at their places, … for those left out."""
    left = iter(texts)
    return f"({' '.join('…' if j is None else next(left).rjust(width) for j in columns)})"


def not_inverse(why: WhyTranspose, back: str, rows: bool, digits: int, cost: str) -> list[str]:
    """4: not the inverse."""
    sent = why.sent_back
    size = shape(why.shape[::-1] if rows else why.shape)
    has = {"none": f"{size} has no inverse; the pseudo-inverse", "singular": "singular; the pseudo-inverse",
           "inverse": "the inverse"}[sent.inverse]  # fmt: skip
    away = "one of them is 0" if math.isnan(sent.angle) else f"{sent.angle:.0f}° away"
    other = "inverse" if sent.inverse == "inverse" else "pinv"
    lowers, instead = (sized(value, digits) for value in (sent.transpose_lowers, sent.other_lowers))
    return [
        f"{has} gives {vector(sent.value, 2)}, {away}.",
        f"Step {number(sent.step, 1)} downhill: {back} lowers {cost} by {lowers}, {other} by {instead}",
    ]


def sized(value: float, digits: int) -> str:
    """A change of the cost with `digits` decimals, or two significant digits if it is smaller."""
    return one(value, digits) if 0 < abs(value) < 10.0**-digits else number(value, digits)
