"""Equations as MathML, for pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from jaxnet.explaining import expressions as ex

Shapes = Mapping[ex.Expression, str]
MATHML_SIGNS = {"T": '<mi mathvariant="normal">T</mi>', "+": "<mo>+</mo>", "−1": "<mrow><mo>−</mo><mn>1</mn></mrow>",
                "d": '<mi mathvariant="normal">∂</mi>', "nabla": '<mi mathvariant="normal">∇</mi>'}  # fmt: skip


class AsMathML(ex.AsText):
    """A row of MathML. shapes: texts below parts of it: {Name("W", "3"): "2×3"}."""

    column = 3

    def __init__(self, shapes: Shapes | None = None):
        self.shapes = shapes or {}

    def row(self, expression: ex.Expression) -> Markup:
        of = expression.of if isinstance(expression, ex.Power | ex.Transposed) else None
        if isinstance(of, ex.Name) and of.above:  # beside the number that stands there already: W³ᵀ
            space = Markup('<mrow>{}<mspace width="0.08em"></mspace>{}</mrow>')
            text = scripted(of, space.format(upper(of.above), self.signs(expression)["sign"]))
        else:
            text = super().row(expression)
        if expression not in self.shapes:
            return text
        below = Markup('<mtext class="shape">{}</mtext>').format(self.shapes[expression])
        return Markup("<munder><mrow>{}</mrow>{}</munder>").format(text, below)

    def filled(self, template: str, **parts: Any) -> Markup:
        return Markup(ex.TEMPLATES[template][3]).format_map(parts)

    def signs(self, expression: ex.Expression) -> dict[str, Any]:
        exponent = expression.exponent if isinstance(expression, ex.Power) else "T"
        signs = {name: Markup(each) for name, each in MATHML_SIGNS.items()}
        return signs | ({} if isinstance(expression, ex.Comparison) else
                        {"sign": signs.get(exponent, Markup("<mn>{}</mn>").format(exponent))})  # fmt: skip

    def script(self, field: str, text: str) -> str:
        return text

    def name(self, of: ex.Name) -> Markup:
        return scripted(of, upper(of.above) if of.above else None)

    def sign(self, sign: str) -> Markup:
        return Markup("<mo>{}</mo>").format(sign) if sign else Markup('<mspace width="0.12em"></mspace>')

    def signed(self, terms: Sequence[ex.Expression]) -> Markup:
        text = Markup("")
        for term in terms:
            minus, of = (True, term.of) if isinstance(term, ex.Minus) else (False, term)
            if text or minus:
                form = "infix" if text else "prefix"
                text += Markup('<mo form="{}">{}</mo>').format(form, "−" if minus else "+")
            text += self.within(of, ex.PRODUCT)
        return text


def scripted(symbol: ex.Name, above: Markup | None) -> Markup:
    """A symbol's letters with a superscript and its subscript; the page finds it by its key."""
    base, _, own = symbol.base.partition("_")
    below = f"{own}{',' if own and symbol.below else ''}{symbol.below}"
    kind = {(True, True): "msubsup", (True, False): "msup", (False, True): "msub"}.get((above is not None, bool(below)))
    key = Markup(' data-k="{}"').format(symbol.key) if symbol.key else Markup("")
    if kind is None and not key:
        return letters(base)
    lower = Markup("<mn>{}</mn>" if below.replace(",", "").isdigit() else "<mi>{}</mi>").format(below)
    parts = letters(base) + (lower if below else Markup("")) + (above or Markup(""))
    return Markup("<{0}{1}>{2}</{0}>").format(kind or "mrow", key, parts)


def letters(base: str) -> Markup:
    """A symbol's own letters: one in italics, dz as two of them, relu and σ′ as they are."""
    if len(base) == 2 and base[0] == "d":
        return Markup("<mrow><mi>d</mi><mi>{}</mi></mrow>").format(base[1])
    if base.endswith("′"):
        return Markup("<mrow><mi>{}</mi><mo lspace='0' rspace='0'>′</mo></mrow>").format(base[:-1])
    text = len(base) > 8 or " " in base
    return Markup("<mtext>{}</mtext>" if text else "<mi>{}</mi>").format(base)


def upper(text: str) -> Markup:
    """A layer's number above a symbol: 3, 3.2, (3), [3]."""
    return Markup("<mn>{}</mn>" if text.replace(".", "").isdigit() else "<mtext>{}</mtext>").format(text)


def mathml(expression: ex.Expression, shapes: Shapes | None = None) -> Markup:
    """The expression as MathML, with `shapes` below its parts."""
    return AsMathML(shapes).row(expression)


def math(*rows: Markup, block: bool = False) -> Markup:
    """A whole formula of some rows; block: with large fractions."""
    style = Markup(' displaystyle="true"') if block else Markup("")
    return Markup("<math{}><mrow>{}</mrow></math>").format(style, Markup("").join(rows))


def equation(left: ex.Expression, right: ex.Expression, shapes: Shapes | None = None) -> Markup:
    """left = right as MathML, with shapes below where they are given."""
    writer = AsMathML(shapes)
    return math(writer.row(left), Markup("<mo>=</mo>"), writer.row(right), block=True)
