"""Equations as MathML: one more writer over the trees of `expressions`, of the form of `written`."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from jaxnet.explaining.expressions import (
    MATRIX_PRODUCT,
    PRODUCT,
    TIGHT,
    BigSum,
    Call,
    Comparison,
    Entry,
    Expression,
    Fraction,
    Gradient,
    Inverse,
    Listed,
    Minus,
    Name,
    Number,
    Partial,
    Power,
    Product,
    SquaredNorm,
    Sum,
    Transposed,
    Words,
    binds,
)

Shapes = Mapping[Expression, str]


def mathml(expression: Expression, shapes: Shapes | None = None) -> Markup:
    """The expression within a row of MathML. shapes: what is set below a part of it: {Name("W", "3"): "2×3"}."""
    return Writer(shapes or {}).row(expression)


def math(*rows: Markup, block: bool = False) -> Markup:
    """A whole formula of some rows; block: with large fractions."""
    style = Markup(' displaystyle="true"') if block else Markup("")
    return Markup("<math{}><mrow>{}</mrow></math>").format(style, Markup("").join(rows))


def equation(left: Expression, right: Expression, shapes: Shapes | None = None) -> Markup:
    """left = right, with shapes below where they are given."""
    writer = Writer(shapes or {})
    return math(writer.row(left), Markup("<mo>=</mo>"), writer.row(right), block=True)


def entry(symbol: Expression, *indices: int) -> Expression:
    """A symbol with subscripts, counted from 1; of what is no name, the subscripted whole."""
    below = ("," if any(index > 9 for index in indices) else "").join(map(str, indices))
    if isinstance(symbol, Name):
        return Name(symbol.base, symbol.above, below, symbol.key)
    return symbol


class Writer:
    """Writes expressions, setting shapes below those that have one."""

    def __init__(self, shapes: Shapes):
        self.shapes = shapes

    def row(self, expression: Expression) -> Markup:
        """The expression, with its shape below."""
        text = self.bare(expression)
        if expression not in self.shapes:
            return text
        below = Markup('<mtext class="shape">{}</mtext>').format(self.shapes[expression])
        return Markup("<munder>{}{}</munder>").format(Markup("<mrow>{}</mrow>").format(text), below)

    def within(self, expression: Expression, least: int) -> Markup:
        """An operand, in brackets where it binds more loosely than `least`."""
        text = self.row(expression)
        return bracketed(text) if binds(expression) < least else text

    def bare(self, expression: Expression) -> Markup:
        """The expression without a shape of its own."""
        match expression:
            case Name():
                return name(expression)
            case Number(text):
                return Markup("<mn>{}</mn>").format(text)
            case Words(text):
                return Markup("<mtext>{}</mtext>").format(text)
            case Transposed(of):
                return self.raised(of, Markup('<mi mathvariant="normal">T</mi>'))
            case Inverse(of, pseudo):
                return self.raised(of, Markup("<mo>+</mo>" if pseudo else "<mrow><mo>−</mo><mn>1</mn></mrow>"))
            case Product(factors, sign):
                between = Markup("<mo>{}</mo>").format(sign) if sign else Markup('<mspace width="0.12em"></mspace>')
                least = MATRIX_PRODUCT if sign else TIGHT
                return between.join(self.within(factor, least) for factor in factors)
            case Sum(terms):
                return self.signed(terms)
            case Minus(of):
                return Markup('<mo form="prefix">−</mo>') + self.within(of, PRODUCT)
            case Call(function, Listed() as of):
                return name(function) + self.row(of)
            case Call(function, of):
                return name(function) + bracketed(self.row(of))
            case Fraction(above, below):
                return fraction(self.row(above), self.row(below))
            case Partial(of, by):
                return fraction(partial(self.row(of)), partial(self.row(by)))
            case Gradient(by, of):
                return self.gradient(by, of)
            case SquaredNorm(of):
                inside = Markup('<mrow><mo stretchy="false">‖</mo>{}<mo stretchy="false">‖</mo></mrow>')
                return Markup("<msup>{}<mn>2</mn></msup>").format(inside.format(self.row(of)))
            case BigSum(index, of):
                sign = Markup("<munder><mo>∑</mo><mi>{}</mi></munder>").format(index) if index else Markup("<mo>∑</mo>")
                return sign + self.within(of, PRODUCT)
            case Listed(parts):
                return bracketed(Markup("<mo>,</mo>").join(map(self.row, parts)))
            case Entry(of, index):
                inside = Markup('<mo stretchy="false">[</mo>{}<mo stretchy="false">]</mo>').format(self.row(index))
                return self.row(of) + inside
            case Power(of, exponent):
                return self.raised(of, Markup("<mn>{}</mn>").format(exponent))
            case Comparison(left, sign, right):
                return self.row(left) + Markup("<mo>{}</mo>").format(sign) + self.row(right)

    def raised(self, of: Expression, sign: Markup) -> Markup:
        """An expression with a sign above it, beside a number that stands there already: W³ᵀ."""
        if isinstance(of, Name) and of.above:
            above = Markup('<mrow>{}<mspace width="0.08em"></mspace>{}</mrow>').format(upper(of.above), sign)
            return scripted(of, above)
        return Markup("<msup><mrow>{}</mrow>{}</msup>").format(self.within(of, TIGHT), sign)

    def signed(self, terms: tuple[Expression, ...]) -> Markup:
        """A sum with its signs."""
        text = Markup("")
        for term in terms:
            minus, of = (True, term.of) if isinstance(term, Minus) else (False, term)
            if text or minus:
                form = "infix" if text else "prefix"
                text += Markup('<mo form="{}">{}</mo>').format(form, "−" if minus else "+")
            text += self.within(of, PRODUCT)
        return text

    def gradient(self, by: Expression, of: Expression | None) -> Markup:
        """∇W, or ∇_W J."""
        if of is None:
            return Markup('<mi mathvariant="normal">∇</mi>') + self.row(by)
        sign = Markup('<msub><mi mathvariant="normal">∇</mi><mrow>{}</mrow></msub>').format(self.row(by))
        return sign + self.row(of)


def name(symbol: Name) -> Markup:
    """A symbol with what stands above and below it."""
    return scripted(symbol, upper(symbol.above) if symbol.above else None)


def scripted(symbol: Name, above: Markup | None) -> Markup:
    """A symbol's letters with a superscript and its subscript; what has a key is found by it on the page."""
    base, _, own = symbol.base.partition("_")
    below = lower(f"{own}{',' if own and symbol.below else ''}{symbol.below}")
    key = Markup(' data-k="{}"').format(symbol.key) if symbol.key else Markup("")
    if above is not None and below is not None:
        return Markup("<msubsup{}>{}{}{}</msubsup>").format(key, letters(base), below, above)
    if above is not None:
        return Markup("<msup{}>{}{}</msup>").format(key, letters(base), above)
    if below is not None:
        return Markup("<msub{}>{}{}</msub>").format(key, letters(base), below)
    return Markup("<mrow{}>{}</mrow>").format(key, letters(base)) if key else letters(base)


def lower(text: str) -> Markup | None:
    """A subscript: a number, or letters and signs. None if empty."""
    if not text:
        return None
    return Markup("<mn>{}</mn>" if text.replace(",", "").isdigit() else "<mi>{}</mi>").format(text)


def letters(base: str) -> Markup:
    """A symbol's own letters: one in italics, dz as two of them, relu and σ′ as they are."""
    if len(base) == 2 and base[0] == "d":
        return Markup("<mrow><mi>d</mi><mi>{}</mi></mrow>").format(base[1])
    if base.endswith("′"):
        inner = Markup("<mi>{}</mi>").format(base[:-1])
        return Markup("<mrow>{}<mo lspace='0' rspace='0'>′</mo></mrow>").format(inner)
    if len(base) == 2 and not base.isascii():  # x̂, δᵁ
        return Markup("<mi>{}</mi>").format(base)
    if " " in base or len(base) > 8:
        return Markup("<mtext>{}</mtext>").format(base)
    return Markup("<mi>{}</mi>").format(base)


def upper(text: str) -> Markup:
    """A layer's number above a symbol: 3, 3.2, (3), [3]."""
    if text.replace(".", "").isdigit():
        return Markup("<mn>{}</mn>").format(text)
    return Markup("<mtext>{}</mtext>").format(text)


def bracketed(text: Markup) -> Markup:
    """(text)."""
    return Markup('<mrow><mo stretchy="false">(</mo>{}<mo stretchy="false">)</mo></mrow>').format(text)


def partial(text: Markup) -> Markup:
    """∂text."""
    return Markup('<mrow><mi mathvariant="normal">∂</mi>{}</mrow>').format(text)


def fraction(above: Markup, below: Markup) -> Markup:
    """above over below."""
    return Markup("<mfrac><mrow>{}</mrow><mrow>{}</mrow></mfrac>").format(above, below)
