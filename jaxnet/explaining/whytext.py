"""Why Wᵀ?, layouts and order, as lines of text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jaxnet.explaining.expressions import Product, Transposed, written
from jaxnet.explaining.model import Checked, Derivation, Jacobian, Layouts, Order, WhyTranspose
from jaxnet.explaining.numbers import entries, exponent, lowered_index, number, one, shape, shortened, vector

HANG = 20  # where the text of the block stands
MANY = 4  # terms of a sum or rows of a matrix, beyond which the middle is left out


def why_lines(why: WhyTranspose, back: str, rows: bool, digits: int, cost: str = "C") -> list[str]:
    """The block under ∂C/∂a, in the order of asking. back: Wᵀδ as written. rows: whether W is (in, out)."""
    W = written(why.W)
    found = [f"Why {written(Transposed(why.W))}?"]
    for n, (head, lines) in enumerate(
        (
            ("ask the network", nudged(why, rows, digits, cost)),
            ("count paths", counted(why, rows, digits, cost)),
            ("whole columns" if rows else "whole rows", whole_rows(why, rows, digits)),
            (f"not {W}⁻¹", not_inverse(why, back, rows, digits, cost)),
            ("orthogonal", orthogonal(why, rows)),
            ("adjoint", adjoint(why, back, rows, digits)),
        ),
        1,
    ):
        found += [f" {n} {head:<15}  {lines[0]}", *(f"{'':{HANG}}{line}" for line in lines[1:])]
    units = "   ".join(f"{what}: {unit}" for what, unit in why.units)
    return [*found, f"   {'units':<15}  {units}"]


def nudged(why: WhyTranspose, rows: bool, digits: int, cost: str) -> list[str]:
    """1: ask the network."""
    nudge, unit = why.nudge, why.nudge.unit + 1
    line = "row" if rows else "column"
    moved = fixed(nudge.dz, digits)
    return [
        f"{entry(written(why.a), unit)} + {number(nudge.by, 3)} → {written(why.gives)} + {moved}, "
        f"{written(why.W)}'s {line} {unit} → {cost} {plus(nudge.cost_moves)}"
    ]


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
    added = " + ".join(terms).replace("+ −", "− ")
    first = f"{entry(a, unit)} reaches {cost} by {count}:"
    second = f"{weight(why, rows, 1, unit)} by one, no sum:"
    width = max(len(first), len(second))
    return [
        f"{first:<{width}}  {symbols} = {added} = {total}{power and f', all {power}'}",
        f"{second:<{width}}  {entry(delta, 1)}{entry(a, unit)} = {gradient}{power and f', {power}'}",
    ]


def scaled(values: Sequence[float] | np.ndarray, digits: int) -> tuple[list[str], str]:
    """The numbers of one calculation with `digits` decimals, or with one power of ten if they are smaller."""
    array = np.asarray(values, np.float64)
    if not exponent(array, digits):
        return [number(float(value), digits) for value in array.reshape(-1)], ""
    texts, power = entries(array, digits)
    return texts, f"× {power.removesuffix(' × ')}"


def whole_rows(why: WhyTranspose, rows: bool, digits: int) -> list[str]:
    """3: whole rows."""
    W, line = written(why.W), "column" if rows else "row"
    out, into = why.shape
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
    has = {"none": f"{size} has none; the pseudo-inverse", "singular": "singular; the pseudo-inverse",
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


def orthogonal(why: WhyTranspose, rows: bool) -> list[str]:
    """5: where they are one."""
    lines = "columns" if (why.shape[0] >= why.shape[1]) != rows else "rows"
    same = vector(why.orthogonal.transposed, 3)
    return [f"where W's {lines} are orthonormal the two are one: Qᵀδ = Q⁺δ = {same}"]


def adjoint(why: WhyTranspose, back: str, rows: bool, digits: int) -> list[str]:
    """6: the adjoint."""
    side, v = one(why.adjoint.left, digits), vector(why.adjoint.v, 2)
    W, delta = written(why.W), written(why.delta)
    forth = f"v{W}" if rows else f"{W}v"
    return [f"⟨{delta}, {forth}⟩ = ⟨{back}, v⟩ for every v: {side} at v = {v}"]


# ---------------------------------------------------------------------------------------- layout and order


def layout_lines(layouts: Layouts, why: bool = True) -> list[str]:
    """Both layouts side by side, with the shapes of the product, and where `why` how the one becomes the other."""
    parts = []
    for name, factors, result in (
        ("row:", layouts.row, layouts.row_shape),
        ("column:", layouts.column, layouts.column_shape),
    ):
        symbols = written(Product(tuple(each.expression for each in factors), "·"))
        parts.append(
            (name, shortly(factors, symbols), f"{'·'.join(shape(each.shape) for each in factors)} → {shape(result)}")
        )
    width, shapes = max(len(symbols) for _, symbols, _ in parts), max(len(text) for *_, text in parts)
    lines = [f"{name:<7} {symbols:<{width}}   {text:<{shapes}}" for name, symbols, text in parts]
    return [lines[0].rstrip(), f"{lines[1]}{'   the same, transposed: (AB)ᵀ = BᵀAᵀ' if why else ''}"]


def shortly(factors: Sequence[Jacobian], symbols: str) -> str:
    """The product with diagonal Jacobians as `diag` where there is one alone."""
    if sum(each.kind == "diagonal" for each in factors) != 1:
        return symbols
    return " · ".join("diag" if each.kind == "diagonal" else written_factor(each) for each in factors)


def written_factor(each: Jacobian) -> str:
    """A factor, in brackets where it is a sum."""
    return written(Product((each.expression, each.expression), "·")).split(" · ")[0]


def order_line(order: Order, by: str) -> str:
    """The multiplications for ∂C/∂x from either end."""
    text = f"{by} from the loss {order.from_loss:,} products, from the input {order.from_input:,} (⊙ not counted)"
    return text if order.cheapest == order.from_loss else f"{text}; cheapest {order.cheapest:,}: {order.bracketing}"


def check_line(derivation: Derivation) -> str:
    """How far all values are from autodiff's."""
    checked: Checked = derivation.checked
    if checked.ok:
        return f"every line equals jax.grad within {max(1, math.ceil(checked.worst))} ulp"
    far = [f"{key} {value:,.0f}" for key, value in checked.by_key.items() if not value <= checked.allowed]
    return f"NOT EQUAL to jax.grad, in ulp: {', '.join(far)}"
