"""A derivation as text for the terminal: the overview that fits a screen."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from jaxnet.explaining.arrays import array_lines, inline, length, widest
from jaxnet.explaining.expressions import Product, Transposed, written
from jaxnet.explaining.model import Batch, Derivation, Header, Layouts, Line, Tensor, WhyTranspose
from jaxnet.explaining.notation import WHO
from jaxnet.explaining.numbers import one, shape, vector
from jaxnet.explaining.whytext import HANG, check_line, layout_lines, order_line, why_lines

DIGITS = 4
INDENT = "  "
KEEP = "\N{NO-BREAK SPACE}"
WIDEST_EQUATION = 34
FEW = 4  # outer products that are written out


def overview(derivation: Derivation, *, digits: int = DIGITS, width: int = 100) -> str:
    """The forward and the backward pass, why Wᵀ, layout, order and check, in lines of at most `width` where it can be.

    digits: the decimals of a number.
    """
    lines = header_lines(derivation.header, digits, width)
    columns = columns_of(derivation)
    lines += ["FORWARD", *section(derivation.forward, columns, digits, width)]
    cost = f"{written(derivation.header.cost_left)} = {one(derivation.header.value, digits)}"
    lines[-1:] = with_remark(lines[-1], cost, width, columns.values).split("\n")
    error = "dz" if derivation.header.notation == "ng" else "δ"
    cost = written(derivation.header.cost_left)
    meaning = f"{error} means ∂{cost}/∂z, how fast {cost} rises with z; ⊙ is entry by entry"
    lines.append(f"{'BACKWARD':<{columns.shapes}}{meaning}")
    before, after, why = split_at_why(derivation)
    lines += section(before, columns, digits, width)
    if why is not None:
        lines += ["", *(INDENT + line for line in why_block(derivation, why, digits, width - 2)), ""]
    lines += section(after, columns, digits, width)
    lines += closing(derivation)
    return "\n".join(line.rstrip() for line in folded(lines, width))


def why_block(derivation: Derivation, why: WhyTranspose, digits: int, width: int) -> list[str]:
    """Why Wᵀ, for the terminal, folded under its own column."""
    rows = derivation.header.weights == "in-out"
    turned = Transposed(why.W)
    back = written(Product((why.delta, turned) if rows else (turned, why.delta)))
    lines = why_lines(why, back, rows, digits, written(derivation.header.cost_left))
    return [each for line in lines for each in ([line] if len(line) <= width else wrapped(line, width, HANG))]


def closing(derivation: Derivation) -> list[str]:
    """LAYOUT, ORDER, CHECK."""
    found: list[str] = []
    if derivation.layouts:
        first, *rest = layout_lines(derivation.layouts[0])
        found += [f"LAYOUT  {first}", *(f"{'':8}{line}" for line in rest)]
    if derivation.order is not None:
        by = next((written(line.left) for line in derivation.backward if line.key == "dx"), "∂C/∂x")
        found.append(f"ORDER   {order_line(derivation.order, by)}")
    return [*found, f"CHECK   {check_line(derivation)}", *derivation.notes]


# ------------------------------------------------------------------------------------------------- header


def header_lines(header: Header, digits: int, width: int) -> list[str]:
    """Title, cost, x and y, and numbering, in one line if it fits."""
    cost = f"{written(header.cost_left)} = {written(header.cost_right)}"
    x = f"x = {given(header.x, digits)}"
    y = f"y = {given(header.y, digits)}"
    parts = [header.title, cost, f"{x}  {y}" if header.x.size else "", header.numbering]
    lines, line = [], ""
    for part in filter(None, parts):
        joined = f"{line}   {part}" if line else part
        if len(joined) > width and line:
            lines.append(line)
            joined = part
        line = joined
    return [*lines, line]


def given(values: np.ndarray, digits: int) -> str:
    """An input or a target with its given decimals: (1, 2)."""
    flat = np.asarray(values).reshape(-1)
    if len(flat) <= 8 and np.all(np.isfinite(flat)) and np.allclose(flat, np.round(flat.astype(np.float64), 2)):
        return f"({', '.join(f'{float(value):g}'.replace('-', '−') for value in np.round(flat.astype(np.float64), 2))})"
    text = vector(flat, min(digits, 3), longest=6)
    return text if values.ndim <= 1 else f"{text} of {shape(values.shape)}"


# --------------------------------------------------------------------------------------------- equations


class ColumnStarts:
    """Where the columns of the equations begin."""

    def __init__(self, equation: int, shapes: int):
        self.shapes = len(INDENT) + equation + 3
        self.values = self.shapes + shapes + 3


def columns_of(derivation: Derivation) -> ColumnStarts:
    """Columns as wide as the equations need, up to a bound."""
    lines = [*derivation.forward, *shown(derivation.backward)]
    equations = [len(equation(line)) for line in lines]
    fitting = [each for each in equations if each <= WIDEST_EQUATION]
    return ColumnStarts(
        max(fitting, default=10),
        max(len(shapes(line)) for line in lines if len(equation(line)) <= WIDEST_EQUATION or True),
    )


def equation(line: Line) -> str:
    """left = right."""
    return f"{written(line.left)} = {written(line.right)}"


def shapes(line: Line) -> str:
    """`3×2·2 → 3` of a product, `3` of what goes entry by entry."""
    if line.of:
        return line.sizes or shape(line.shape)
    product = isinstance(line.right, Product) and line.right.sign == ""
    if line.factors and (product or line.kind == "z"):
        return f"{'·'.join(shape(each.shape) for each in line.factors)} → {shape(line.shape)}"
    return shape(line.shape)


def shown(lines: Sequence[Line]) -> list[Line]:
    """The backward lines of the overview; a ∇b that is δ itself is a remark beside δ."""
    same = {line.right: line.left for line in lines if line.kind == "db"}
    kept = [line for line in lines if line.key == "dx" or (not line.aside and line.kind != "db")]
    return [
        replace(line, remarks=(f"= {written(same[line.left])}", *line.remarks)) if line.left in same else line
        for line in kept
    ]


def split_at_why(derivation: Derivation) -> tuple[list[Line], list[Line], WhyTranspose | None]:
    """The backward lines before and after the block Why Wᵀ, and the block."""
    lines = list(derivation.backward)
    if not derivation.why:
        return shown(lines), [], None
    why = derivation.why[0]
    at = next((i for i, line in enumerate(lines) if line.item == why.item - 1 and line.kind in ("da", "delta")), None)
    if at is None:
        return shown(lines), [], why
    return [*shown(lines[:at]), lines[at]], shown(lines[at + 1 :]), why


def section(lines: Sequence[Line], columns: ColumnStarts, digits: int, width: int) -> list[str]:
    """Equations, one a line: symbols, shapes, value, remarks."""
    cell: dict[int, int] = {}
    for line in lines:
        if len(line.shape) == 1:
            cell[line.shape[0]] = max(cell.get(line.shape[0], 0), widest(line.value, digits))
    found: list[str] = []
    before, block = ("", ""), ""
    for line in lines:
        if line.within != block and line.within:
            found.append(f" {line.within}")
        if line.of and before != (line.layer, line.of):
            found.append(f" {line.layer} {line.of}")
        before, block = (line.layer, line.of), line.within
        found += one_line(line, columns, digits, width, cell.get(line.shape[0], 0) if len(line.shape) == 1 else 0)
    return found


def one_line(line: Line, columns: ColumnStarts, digits: int, width: int, cell: int) -> list[str]:
    """One equation, and what does not fit into its line below it."""
    text, sizes = f"{INDENT}{equation(line)}", shapes(line)
    found: list[str] = []
    if len(text) > columns.shapes - 2:
        found, text = [text], ""
    first = f"{text:<{columns.shapes}}{sizes:<{columns.values - columns.shapes}}"
    room = width - columns.values
    values = array_lines(line.value, digits, room, cell, brief=bool(line.of) or line.kind in ("delta", "da"))
    found += [first + values[0], *(" " * columns.values + value for value in values[1:])]
    for remark in line.remarks:
        found = [*found[:-1], *with_remark(found[-1], remark, width, columns.values).split("\n")]
    for note in line.notes:
        found += textwrap.wrap(note, width, initial_indent=" " * 6, subsequent_indent=" " * 8)
    return found


def with_remark(line: str, remark: str, width: int, indent: int = 0) -> str:
    """A line with a remark at its end, or below if too wide."""
    if len(line) + 3 + len(remark) <= width:
        return f"{line}   {remark}"
    return f"{line}\n{max(0, min(indent, width - len(remark))) * ' '}{remark}"


def folded(lines: Sequence[str], width: int) -> list[str]:
    """Lines cut where they are too wide, what follows standing under where their text begins."""
    found: list[str] = []
    for line in lines:
        if len(line) <= width:
            found.append(line)
            continue
        start = len(line) - len(line.lstrip())
        gap = line.rfind("   ", 0, width // 2)
        hang = min(gap + 3 if gap > start else start + 2, width // 2)
        found += wrapped(line, width, hang)
    return found


def wrapped(line: str, width: int, hang: int) -> list[str]:
    """A line folded between words, not within brackets where these are short."""
    kept = re.sub(
        r"\([^()]{1,40}\)|⟨[^⟨⟩]{1,30}⟩|→ [CJ] [−+] \S+|→ [\d×]+| = [−.\d]+$",
        lambda found: found.group().replace(" ", KEEP),
        line,
    )
    folded = textwrap.wrap(
        kept, width, subsequent_indent=" " * hang, drop_whitespace=True, replace_whitespace=False,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return [each.replace(KEEP, " ") for each in folded]


# ------------------------------------------------------------- batches, tensors, chains and notations


def batch_lines(batch: Batch, header: Header, digits: int, width: int) -> list[str]:
    """The gradient of a batch is the sum of the examples' outer products: dZ Aᵀ of columns, Aᵀ dZ of rows."""
    m, (out, into), rows = batch.m, batch.gradient.shape, header.weights == "in-out"
    cost, error = written(header.cost_left), "dz" if header.notation == "ng" else "δ"
    lies, outer = ("rows", f"aᵀ{error}") if rows else ("columns", f"{error}aᵀ")
    found = [
        f"BATCH   layer {batch.layer}, {m:,} example{'s' * (m != 1)} as {lies}: {cost} = 1/m Σ {cost}ₓ. "
        f"Each {error} here is of {cost}ₓ; 1/m stands once, before the sum"
    ]
    for i in range(min(FEW, m)):
        product = batch.outers[i].T if rows else batch.outers[i]
        said = inline(product, digits) if out * into <= 12 else f"{shape(product.shape)}, ‖·‖ {one(length(product))}"
        delta, a = vector(batch.deltas[i], digits), vector(batch.inputs[i], digits)
        factors = f"{a}ᵀ {delta}" if rows else f"{delta} {a}ᵀ"
        found.append(f"  {batch.examples[i]:>4}  {outer} = {factors} = {said}")
    if m > FEW:
        found.append(f"        … {m - FEW:,} more")
    gradient = batch.gradient.T if rows else batch.gradient
    first, *rest = array_lines(gradient, digits, width - 28)
    sizes = f"{into}×{m}·{m}×{out} → {into}×{out}" if rows else f"{out}×{m}·{m}×{into} → {out}×{into}"
    back = f"dA = dZ Wᵀ   {m}×{out}·{out}×{into} → {m}×{into}" if rows else (
        f"dA = Wᵀ dZ   {into}×{out}·{out}×{m} → {into}×{m}"
    )  # fmt: skip
    found.append(f"  1/m Σ {outer} = 1/m {'Aᵀ dZ' if rows else 'dZ Aᵀ'}   {sizes}")
    found += [f"        = {first}", *(f"          {line}" for line in rest)]
    found.append(f"  {back}, of all examples at once   db = 1/m Σ of the {lies} of dZ")
    ulps = max(1, round(batch.ulp))
    found.append(f"  one matrix product and the sum of {m:,} agree within {ulps:,} ulp of their largest term")
    return found


def tensor_lines(tensor: Tensor, digits: int) -> list[str]:
    """∂z/∂W as the 3-D tensor that it is, and how δ collapses it."""
    out, _, into = tensor.value.shape
    found = [f"TENSOR  layer {tensor.layer}: ∂z/∂W is {out}×{out}×{into}: ∂z_k/∂W_ij = a_j where k = i, else 0"]
    for k in range(out):
        found.append(f"          ∂z{k + 1}/∂W = {inline(tensor.value[k], digits)}")
    found.append(f"        Σ_k δ_k ∂z_k/∂W = {inline(tensor.collapsed, digits)} = δaᵀ: each slice has one row")
    found.append("        that is not 0, so the tensor is never made")
    return found


def chain_lines(layouts: tuple[Layouts, ...]) -> list[str]:
    """The whole chain of Jacobians, and how a diagonal one becomes ⊙."""
    found: list[str] = []
    for each in layouts[1:]:
        found += [f"CHAIN   {written(each.of)} from C", *(f"        {line}" for line in layout_lines(each, why=False))]
    diagonal = [
        each for layout in layouts for each in layout.row if each.kind == "diagonal" and each.diagonal is not None
    ]
    if diagonal:
        last = diagonal[-1]
        assert last.diagonal is not None
        found.append(
            f"        {written(last.expression)} = diag{vector(last.diagonal, least=0)}, {shape(last.shape)}: "
            f"diag(g) v = g ⊙ v, so no matrix is made"
        )
    return found


def notation_lines(derivation: Derivation) -> list[str]:
    """The table between the notations, and the loops with the moving subscript marked."""
    if not derivation.notations:
        return []
    names = list(derivation.notations[0].names)
    who = WHO | {"cs229": f"{WHO['cs229']}, Wikipedia"}
    columns = [["", *(row.what for row in derivation.notations)]]
    columns += [[who[name], *(row.names[name] for row in derivation.notations)] for name in names]
    widths = [max(map(len, column)) for column in columns]
    found = ["NOTATION"]
    for row in zip(*columns, strict=True):
        found.append("  " + "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    found.append("LOOPS   the moving subscript, over which the sum runs")
    for loop in derivation.loops:
        moving = f"{loop.moving} moves" if loop.moving else "no sum"
        found.append(f"  {loop.direction:<9} {loop.text:<24} {moving:<8} {loop.code}")
    where = "W[i, j]" if derivation.header.weights == "in-out" else "W[j, i]"
    found.append(
        f"  W lies ({derivation.header.weights.replace('-', ', ')}): {where} leads from unit i to unit j, both ways"
    )
    return found
