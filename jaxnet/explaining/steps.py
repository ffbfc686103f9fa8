"""Step by step: each equation with its factors, their shapes and values, and what there is to say of it."""

from __future__ import annotations

import math
import textwrap
from contextlib import suppress

from jaxnet.explaining.arrays import array_lines
from jaxnet.explaining.expressions import formula, written
from jaxnet.explaining.model import Derivation, Line, Quoted
from jaxnet.explaining.numbers import shape
from jaxnet.explaining.terminal import DIGITS, equation, folded, header_lines, shapes, why_block

LONGEST_SOURCE = 30  # lines of a backward, beyond which the rest is left out
SAYS = {
    "z": "what the layer takes, weighted and added up",
    "a": "entry by entry",
    "delta": "the error at z: how C moves with z",
    "da": "the error sent back to what the layer took",
    "dW": "a weight meets the error only through its own input",
    "db": "z moves one to one with b",
}


def steps(derivation: Derivation, *, digits: int = DIGITS, width: int = 100, layer: str | None = None) -> list[str]:
    """Every step as a block of text, the first the header. layer: only those of the layer of this number."""
    lines = [*(("forward", line) for line in derivation.forward), *(("backward", line) for line in derivation.backward)]
    if layer is not None:
        lines = [(way, line) for way, line in lines if line.layer.split(".")[0] == layer]
    blocks = ["\n".join(header_lines(derivation.header, digits, width))]
    for n, (way, line) in enumerate(lines, 1):
        of = f"   {line.of}" if line.of else ""
        found = [f"{n} of {len(lines)}   {way}   layer {line.layer}{of}", *step_lines(line, digits, width)]
        why = next((each for each in derivation.why if each.item - 1 == line.item and way == "backward"), None)
        if why is not None and line.kind in ("da", "delta") and why.delta in parts_of(line):
            found += ["", *("  " + each for each in why_block(derivation, why, digits, width - 2))]
        blocks.append("\n".join(each.rstrip() for each in folded(found, width)))
    return blocks


def parts_of(line: Line) -> list:
    """The factors' symbols."""
    return [factor.expression for factor in line.factors]


def step_lines(line: Line, digits: int, width: int) -> list[str]:
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
    with suppress(ValueError):  # what has no form as a formula is not offered as one
        found.append(f'  --try "{formula(line.right)}"')
    return found


def within(ulp: float) -> str:
    """How far from autodiff's value."""
    if math.isnan(ulp):
        return "? NO: one of them is not finite"
    return "" if ulp == 0 else f" within {math.ceil(ulp):,} ulp"


def quoted_lines(quote: Quoted) -> list[str]:
    """The layer's own equations, and its code as it stands."""
    found = [f"    {line}" for line in quote.equations.splitlines()]
    for head, code in ((f"{quote.where}, forward:", quote.forward), ("backward:", quote.backward)):
        lines = code.splitlines()
        if lines:
            found += [f"  {head}", *(f"    │ {line}" for line in lines[:LONGEST_SOURCE])]
        if len(lines) > LONGEST_SOURCE:
            found.append(f"    │ … {len(lines) - LONGEST_SOURCE} more lines")
    return found


def question_lines(derivation: Derivation, width: int) -> list[str]:
    """The questions that people ask, each with its answer."""
    found: list[str] = []
    for answer in derivation.answers:
        found += textwrap.wrap(answer.question, width) or [""]
        found += textwrap.wrap(answer.answer, width, initial_indent="  ", subsequent_indent="  ")
    return found
