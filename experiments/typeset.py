"""Equations of the experiments' pages as MathML: trees as they are, and symbols within a text by their letters."""

import re
from dataclasses import dataclass

from markupsafe import Markup, escape

from jaxnet.explaining.expressions import Derivative, Expression, Name, Power, Product, Transposed, written
from jaxnet.explaining.mathml import Shapes, equation, math, mathml

RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹ˡᴸ⁺⁻", "0123456789lL+−", strict=True))
LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉ᵢⱼₖ", "0123456789ijk", strict=True))
MARK = f"[{''.join(RAISED)}{''.join(LOWERED)}ᵀ]"
SYMBOL = rf"(?:out|[WzaxybCδBΣ]){MARK}*"
MATH = re.compile(
    rf"∂{SYMBOL}/∂{SYMBOL}|∇{SYMBOL}|(?<!\w)(?:[zaxybBΣ]{MARK}+|[WCδ]{MARK}*)(?:[WzaδB]{MARK}*)*(?![A-Za-z])"
)


@dataclass(frozen=True)
class Equal:
    """left = right."""

    left: Expression
    right: Expression


def formula(tree: Expression | Equal, shapes: Shapes | None = None) -> Markup:
    """A tree as MathML; `alttext` holds it as text, by which it is read back. shapes: written below its parts."""
    if isinstance(tree, Equal):
        element, said = equation(tree.left, tree.right, shapes), f"{written(tree.left)} = {written(tree.right)}"
    else:
        element, said = math(mathml(tree, shapes)), written(tree)
    return Markup(str(element).replace("<math", Markup('<math alttext="{}"').format(said), 1))


def typeset(text: str | Expression | Equal) -> Markup:
    """A text with its symbols as MathML: Wᵀδ, ∂C/∂x, ∇W¹, δᵢ; a tree whole."""
    if not isinstance(text, str):
        return formula(text)
    parts, at = Markup(""), 0
    for found in MATH.finditer(text):
        parts += escape(text[at : found.start()]) + inline(tree(found.group()))
        at = found.end()
    return parts + escape(text[at:])


def inline(of: Expression) -> Markup:
    """A tree within a line of text: a derivative in one line, ∂C/∂x, which as a fraction would be too small."""
    if not isinstance(of, Derivative) or of.of is None:
        return formula(of)
    sign, over = Markup('<mi mathvariant="normal">∂</mi>'), Markup('<mo lspace="0" rspace="0">/</mo>')
    element = math(sign, mathml(of.of), over, sign, mathml(of.by))
    return Markup(str(element).replace("<math", Markup('<math alttext="{}"').format(written(of)), 1))


def tree(text: str) -> Expression:
    """The tree of a symbol or of several in a row."""
    if text.startswith("∂"):
        of, by = text.removeprefix("∂").split("/∂")
        return Derivative(symbol(by), symbol(of))
    if text.startswith("∇"):
        return Derivative(symbol(text[1:]))
    factors = tuple(symbol(each) for each in re.findall(SYMBOL, text))
    return factors[0] if len(factors) == 1 else Product(factors)


def symbol(text: str) -> Expression:
    """W³ᵀ: a name with its superscript and subscript, transposed or inverted."""
    base = re.match(r"out|.", text)
    assert base is not None
    marks = text[base.end() :]
    inverted = base.group() == "W" and marks.endswith("⁻¹")
    marks = marks.removesuffix("⁻¹") if inverted else marks
    above = "".join(RAISED[each] for each in marks if each in RAISED)
    below = "".join(LOWERED[each] for each in marks if each in LOWERED)
    name = Name(base.group(), above, below)
    return Power(name, "−1") if inverted else Transposed(name) if "ᵀ" in marks else name
