"""What the overview has no room for: batches, the tensor ∂z/∂W, the whole chain, notations and loops."""

from __future__ import annotations

import numpy as np

from jaxnet.explaining.arrays import array_lines, inline
from jaxnet.explaining.expressions import written
from jaxnet.explaining.model import Batch, Derivation, Layouts, Tensor
from jaxnet.explaining.numbers import shape, vector
from jaxnet.explaining.whytext import layout_lines

FEW = 4  # outer products that are written out


def batch_lines(batch: Batch, digits: int, width: int) -> list[str]:
    """dZ Aᵀ is the sum of the outer products."""
    m, (out, into) = batch.m, batch.gradient.shape
    n = batch.layer
    found = [f"BATCH   layer {n}, {m:,} example{'s' * (m != 1)}: C = 1/m Σ Cₓ, so 1/m stands on each δ at the loss, "
             "once, and on no gradient"]  # fmt: skip
    small = out * into <= 12
    for i in range(min(FEW, m)):
        outer = (
            inline(batch.outers[i], digits)
            if small
            else f"{shape((out, into))}, ‖·‖ {np.linalg.norm(batch.outers[i]):.4g}"
        )
        delta, a = vector(batch.deltas[i], digits), vector(batch.inputs[i], digits)
        found.append(f"  {batch.examples[i]:>4}  δaᵀ = {delta} {a}ᵀ = {outer}")
    if m > FEW:
        found.append(f"        … {m - FEW:,} more")
    first, *rest = array_lines(batch.gradient, digits, width - 28)
    found.append(f"  1/m Σ δaᵀ = 1/m dZ Aᵀ   {out}×{m}·{m}×{into} → {out}×{into}")
    found += [f"        = {first}", *(f"          {line}" for line in rest)]
    found.append(
        f"  one matrix product and the sum of {m:,} agree within {max(1, round(batch.ulp)):,} ulp of their largest term"
    )
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
    columns = [["", *(row.what for row in derivation.notations)]]
    columns += [[NAMES[name], *(row.names[name] for row in derivation.notations)] for name in names]
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


NAMES = {"nielsen": "Nielsen", "ng": "Ng", "cs229": "CS229, Wikipedia"}
