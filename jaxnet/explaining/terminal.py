"""A derivation as text for the terminal: the overview that fits a screen, and step by step."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from jaxnet.explaining import model
from jaxnet.explaining.expressions import Product, Transposed, Words, formula, written
from jaxnet.explaining.notation import WHO
from jaxnet.explaining.numbers import array_lines, inline, length, one, shape, vector, widest
from jaxnet.explaining.why import HANG, why_lines

DIGITS = 4
INDENT = "  "
KEEP = "\N{NO-BREAK SPACE}"
WIDEST_EQUATION = 34
FEW = 4  # outer products that are written out


def overview(derivation: model.Derivation, *, digits: int = DIGITS, width: int = 100) -> str:
    """The forward and the backward pass, why Wᵀ, layout, order and check, in lines of at most `width` where it can be.

    digits: the decimals of a number.
    """
    header = derivation.header
    cost, error = written(header.cost_left), "dz" if header.notation == "ng" else "δ"
    columns = columns_of(derivation)
    lines = [*header_lines(header, digits, width), "FORWARD", *section(derivation.forward, columns, digits, width)]
    meaning = "⊙ is entry by entry"
    if derivation.layers:
        lines[-1:] = with_remark(lines[-1], f"{cost} = {one(header.value, digits)}", width, columns[1])
        meaning = f"{error} means ∂{cost}/∂z, how fast {cost} rises with z; {meaning}"
    lines.append(f"{'BACKWARD':<{columns[0]}}{meaning}")
    before, after, why = split_at_why(derivation)
    lines += section(before, columns, digits, width)
    if why is not None:
        lines += ["", *(INDENT + line for line in why_block(derivation, why, digits, width - 2)), ""]
    lines += [*section(after, columns, digits, width), *closing(derivation)]
    if any("│" in line for line in lines):
        lines[-1 - len(derivation.notes)] += "; │ begins a row"
    return "\n".join(line.rstrip() for line in folded(lines, width))


def shape_lines(derivation: model.Derivation, width: int) -> list[str]:
    """The equations with the shapes of their factors, without numbers."""
    columns = columns_of(derivation)
    lines = [derivation.header.title, "FORWARD", *section(derivation.forward, columns, 0, width)]
    return [*lines, "BACKWARD", *section(shown(derivation.backward), columns, 0, width)]


def why_block(derivation: model.Derivation, why: model.WhyTranspose, digits: int, width: int) -> list[str]:
    """Why Wᵀ, for the terminal, folded under its own column."""
    rows = derivation.header.weights == "in-out"
    turned = Transposed(why.W)
    back = written(Product((why.delta, turned) if rows else (turned, why.delta)))
    return folded(why_lines(why, back, rows, digits, written(derivation.header.cost_left)), width, HANG)


def closing(derivation: model.Derivation) -> list[str]:
    """LAYOUT, ORDER, CHECK."""
    found: list[str] = []
    if derivation.layouts:
        first, *rest = layout_lines(derivation.layouts[0])
        found += [f"LAYOUT  {first}", *(f"{'':8}{line}" for line in rest)]
    if derivation.order is not None:
        by = next((written(line.left) for line in derivation.backward if line.key == "dx"), "∂C/∂x")
        found.append(f"ORDER   {order_line(derivation.order, by)}")
    return [*found, f"CHECK   {check_line(derivation)}; ulp: unit in the last place", *derivation.notes]


# ------------------------------------------------------------------------------------------------- header


def header_lines(header: model.Header, digits: int, width: int) -> list[str]:
    """Title, cost, x and y, and numbering, in one line if it fits."""
    cost = f"{written(header.cost_left)} = {written(header.cost_right)}"
    x = f"x = {given(header.x, digits)}"
    y = f"y = {given(header.y, digits)}"
    y += f", class {header.target}" if header.target is not None and header.y.size > 8 else ""  # shown in part
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


ColumnStarts = tuple[int, int]
"""Where the shapes and the values begin."""


def columns_of(derivation: model.Derivation) -> ColumnStarts:
    """ColumnStarts as wide as the equations need, up to a bound."""
    lines = [*derivation.forward, *shown(derivation.backward)]
    fitting = [length for line in lines if (length := len(equation(line))) <= WIDEST_EQUATION]
    at_shapes = len(INDENT) + max(fitting, default=10) + 3
    return at_shapes, at_shapes + max(len(shapes(line)) for line in lines) + 3


def equation(line: model.Line) -> str:
    """left = right."""
    return f"{written(line.left)} = {written(line.right)}"


def shapes(line: model.Line) -> str:
    """`3×2·2 → 3` of a product, `3` of an entrywise equation."""
    if line.of:
        return line.sizes or shape(line.shape)
    product = isinstance(line.right, Product) and line.right.sign == ""
    if line.factors and (product or line.kind == "z"):
        return f"{'·'.join(shape(each.shape) for each in line.factors)} → {shape(line.shape)}"
    return shape(line.shape)


def shown(lines: Sequence[model.Line]) -> list[model.Line]:
    """The backward lines of the overview; a ∇b that is δ itself is a remark beside δ."""
    errors = {line.left for line in lines if line.kind != "db"}
    same = {line.right: line.left for line in lines if line.kind == "db" and line.right in errors}
    kept = [line for line in lines if line.key == "dx" or not (line.aside or line.left in same.values())]
    return [
        replace(line, remarks=(f"= {written(same[line.left])}", *line.remarks)) if line.left in same else line
        for line in kept
    ]


def split_at_why(derivation: model.Derivation) -> tuple[list[model.Line], list[model.Line], model.WhyTranspose | None]:
    """The backward lines before and after the block Why Wᵀ, and the block."""
    lines = list(derivation.backward)
    if not derivation.why:
        return shown(lines), [], None
    why = derivation.why[0]
    at = next((i for i, line in enumerate(lines) if line.item == why.item - 1 and line.kind in ("da", "delta")), None)
    if at is None:
        return shown(lines), [], why
    return [*shown(lines[:at]), lines[at]], shown(lines[at + 1 :]), why


def section(lines: Sequence[model.Line], columns: ColumnStarts, digits: int, width: int) -> list[str]:
    """Equations, one a line: symbols, shapes, value, remarks; with 0 digits symbols and shapes alone."""
    cell: dict[tuple[int, ...], int] = {}
    for line in lines:
        if len(line.shape) == 1 and digits:
            cell[line.shape] = max(cell.get(line.shape, 0), widest(line.value, digits))
    found: list[str] = []
    for line, block, layer in headed(lines):
        found += [f" {head}" for head in (block, layer) if head]
        found += one_line(line, columns, digits, width, cell.get(line.shape, 0))
    return found


def headed(lines: Sequence[model.Line]) -> Iterator[tuple[model.Line, str, str]]:
    """Lines with the headings above them: the block that begins there, and the layer."""
    before, block = ("", ""), ""
    for line in lines:
        of = (line.layer, line.of)
        yield line, line.within if line.within != block else "", " ".join(of) if line.of and of != before else ""
        before, block = of, line.within


def one_line(line: model.Line, columns: ColumnStarts, digits: int, width: int, cell: int) -> list[str]:
    """One equation; the overflow goes below its line."""
    at_shapes, at_values = columns
    text, found = f"{INDENT}{equation(line)}", []
    if len(text) > at_shapes - 2:
        text, found = "", [text]
    first = f"{text:<{at_shapes}}{shapes(line):<{at_values - at_shapes}}"
    if not digits:
        return [*found, first]
    brief = bool(line.of) or line.kind in ("delta", "da")
    values = array_lines(line.value, digits, width - at_values, cell, brief)
    found += [first + values[0], *(" " * at_values + value for value in values[1:])]
    for remark in line.remarks:
        found[-1:] = with_remark(found[-1], remark, width, at_values)
    for note in line.notes:
        found += textwrap.wrap(note, width, initial_indent=" " * 6, subsequent_indent=" " * 8)
    return found


def with_remark(line: str, remark: str, width: int, indent: int) -> list[str]:
    """A line with a remark at its end, or below if too wide."""
    if len(line) + 3 + len(remark) <= width:
        return [f"{line}   {remark}"]
    return [line, f"{max(0, min(indent, width - len(remark))) * ' '}{remark}"]


def folded(lines: Sequence[str], width: int, hang: int | None = None) -> list[str]:
    """Lines cut where they are too wide, the rest at column `hang`, by default under where their text begins."""
    found: list[str] = []
    for line in lines:
        start = len(line) - len(line.lstrip())
        gap = line.rfind("   ", 0, width // 2)
        under = min(gap + 3 if gap > start else start + 2, width // 2) if hang is None else hang
        found += [line] if len(line) <= width else wrapped(line, width, under)
    return found


def wrapped(line: str, width: int, hang: int) -> list[str]:
    """A line folded between words, not within brackets where these are short."""
    kept = re.sub(
        r"\([^()]{1,40}\)|‖[^‖]+‖ [−.\d]+|⟨[^⟨⟩]{1,30}⟩|→ [CJ] [−+] \S+|→ [\d×]+| = [−.\d]+$",
        lambda found: found.group().replace(" ", KEEP),
        line,
    )
    folded = textwrap.wrap(
        kept, width, subsequent_indent=" " * hang, drop_whitespace=True, replace_whitespace=False,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return [each.replace(KEEP, " ") for each in folded]


# ------------------------------------------------------------- batches, tensors, chains and notations


def batch_lines(batch: model.Batch, header: model.Header, digits: int, width: int) -> list[str]:
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


def tensor_lines(tensor: model.Tensor, digits: int) -> list[str]:
    """∂z/∂W as the 3-D tensor that it is, and how δ collapses it."""
    out, _, into = tensor.value.shape
    found = [f"TENSOR  layer {tensor.layer}: ∂z/∂W is {out}×{out}×{into}: ∂z_k/∂W_ij = a_j where k = i, else 0"]
    for k in range(out):
        found.append(f"          ∂z{k + 1}/∂W = {inline(tensor.value[k], digits)}")
    found.append(f"        Σ_k δ_k ∂z_k/∂W = {inline(tensor.collapsed, digits)} = δaᵀ: each slice has one row")
    found.append("        that is not 0, so the tensor is never made")
    return found


def chain_lines(layouts: tuple[model.Layouts, ...]) -> list[str]:
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


def notation_lines(derivation: model.Derivation) -> list[str]:
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


LONGEST_SOURCE = 30  # lines of a backward, beyond which the rest is left out
SAYS = {
    "z": "what the layer takes, weighted and added up",
    "a": "entry by entry",
    "delta": "the error at z: how C moves with z",
    "da": "the error sent back to what the layer took",
    "dW": "a weight meets the error only through its own input",
    "db": "z moves one to one with b",
}


def steps(
    derivation: model.Derivation, *, digits: int = DIGITS, width: int = 100, layer: str | None = None
) -> list[str]:
    """Every step as a block of text, the first the header. layer: only those of the layer of this number."""
    lines = [*(("forward", line) for line in derivation.forward), *(("backward", line) for line in derivation.backward)]
    if layer is not None:
        lines = [(way, line) for way, line in lines if line.layer.split(".")[0] == layer]
    blocks = ["\n".join(header_lines(derivation.header, digits, width))]
    for n, (way, line) in enumerate(lines, 1):
        of = f"   {line.of}" if line.of else ""
        found = [f"{n} of {len(lines)}   {way}   layer {line.layer}{of}", *step_lines(line, digits, width)]
        why = next((each for each in derivation.why if each.item - 1 == line.item and way == "backward"), None)
        if why is not None and line.kind in ("da", "delta") and why.delta in [each.expression for each in line.factors]:
            found += ["", *("  " + each for each in why_block(derivation, why, digits, width - 2))]
        blocks.append("\n".join(each.rstrip() for each in folded(found, width)))
    return blocks


def step_lines(line: model.Line, digits: int, width: int) -> list[str]:
    """One equation and all that belongs to it."""
    rule = f"   ({line.rule})" if line.rule else ""
    found = [f"  {equation(line)}   {shapes(line)}{rule}"]
    heads = [f"    {written(factor.expression)}: {shape(factor.shape)}" for factor in line.factors]
    wide = max(map(len, heads), default=0) + 3
    for head, factor in zip(heads, line.factors, strict=True):
        first, *rest = array_lines(factor.value, digits, width - wide)
        found += [f"{head:<{wide}}{first}", *(" " * wide + each for each in rest)]
    found += [f"  = {values}" if i == 0 else f"    {values}" for i, values in
              enumerate(array_lines(line.value, digits, width - 4))]  # fmt: skip
    found += [f"  {remark}" for remark in line.remarks]
    found += [f"  {note}" for note in line.notes]
    if line.kind in SAYS and not line.of:
        found.append(f"  {SAYS[line.kind]}")
    if line.quoted is not None:
        found += quoted_lines(line.quoted)
    if line.ulp is not None:
        found.append(f"  jax.grad gives the same{within(line.ulp)}")
    with suppress(ValueError):  # an expression without a form as a formula is not offered as one
        found.append(f'  --try "{formula(line.right)}"')
    return found


def within(ulp: float) -> str:
    """How far from autodiff's value."""
    if math.isnan(ulp):
        return "? NO: one of them is not finite"
    return "" if ulp == 0 else f" within {math.ceil(ulp):,} ulp"


def quoted_lines(quote: model.Quoted) -> list[str]:
    """The layer's own equations, and its code as it stands."""
    found = [f"    {line}" for line in quote.equations.splitlines()]
    for head, code in ((f"{quote.where}, forward:", quote.forward), ("backward:", quote.backward)):
        lines = code.splitlines()
        if lines:
            found += [f"  {head}", *(f"    │ {line}" for line in lines[:LONGEST_SOURCE])]
        if len(lines) > LONGEST_SOURCE:
            found.append(f"    │ … {len(lines) - LONGEST_SOURCE} more lines")
    return found


def question_lines(derivation: model.Derivation, width: int) -> list[str]:
    """The questions that people ask, each with its answer."""
    found: list[str] = []
    for answer in derivation.answers:
        found += textwrap.wrap(answer.question, width) or [""]
        found += textwrap.wrap(answer.answer, width, initial_indent="  ", subsequent_indent="  ")
    return found


# ---------------------------------------------------------------------------------------- layout and order


def layout_lines(layouts: model.Layouts, why: bool = True) -> list[str]:
    """Both layouts side by side, with the shapes of the product, and where `why` how the one becomes the other."""
    parts = []
    for factors, result in ((layouts.row, layouts.row_shape), (layouts.column, layouts.column_shape)):
        sizes = f"{'·'.join(shape(each.shape) for each in factors)} → {shape(result)}"
        parts.append((jacobians(factors), sizes))
    width, wide = (max(map(len, column)) for column in zip(*parts, strict=True))
    row, column = (f"{symbols:<{width}}   {sizes:<{wide}}" for symbols, sizes in parts)
    return [f"row:    {row}".rstrip(), f"column: {column}{'   the same, transposed: (AB)ᵀ = BᵀAᵀ' if why else ''}"]


def jacobians(factors: Sequence[model.Jacobian]) -> str:
    """The product of Jacobians; where one alone is diagonal, that as `diag`."""
    alone = sum(each.kind == "diagonal" for each in factors) == 1
    parts = [Words("diag") if alone and each.kind == "diagonal" else each.expression for each in factors]
    return written(Product(tuple(parts), "·"))


def order_line(order: model.Order, by: str) -> str:
    """The multiplications for ∂C/∂x from either end."""
    text = f"{by} from the loss {order.from_loss:,} products, from the input {order.from_input:,} (⊙ not counted)"
    return text if order.cheapest == order.from_loss else f"{text}; cheapest {order.cheapest:,}: {order.bracketing}"


def check_line(derivation: model.Derivation) -> str:
    """How far all values are from autodiff's."""
    checked: model.Checked = derivation.checked
    if checked.ok:
        return f"every line equals jax.grad within {max(1, math.ceil(checked.worst))} ulp"
    far = [f"{key} {value:,.0f}" for key, value in checked.by_key.items() if not value <= checked.allowed]
    return f"NOT EQUAL to jax.grad, in ulp: {', '.join(far)}"
