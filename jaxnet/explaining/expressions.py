"""Equations as small trees, and their forms: unicode text, formulas for `--try`, LaTeX and MathML.

A tree is made of the frozen dataclasses below, without brackets: these are set where an operand binds more loosely
than the operator around it (`binds`). `TEMPLATES` says how each node is written in each form.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, dataclass_transform


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Frozen:
    """Makes a frozen dataclass of each class below it."""

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True)(cls)


class EquationNode(Frozen):
    """A node of an equation."""

    def children(self) -> Iterator[Expression]:
        """The nodes right below."""
        for each in fields(self):
            value = getattr(self, each.name)
            yield from (part for part in (value if isinstance(value, tuple) else (value,))
                        if isinstance(part, EquationNode))  # fmt: skip

    def every(self) -> Iterator[Expression]:
        """The node and all below it."""
        yield self
        for each in self.children():
            yield from each.every()


Expression = EquationNode
"""One side of an equation."""


class Name(EquationNode):
    """A symbol: W³ is base "W", above "3"; a²₁ has below "1" too. `key`: its name in a formula, "W3"."""

    base: str
    above: str = ""
    below: str = ""
    key: str = ""


class Number(EquationNode):
    """A number as it is to be read: "½", "2", "−.0407"."""

    text: str


class Words(EquationNode):
    """Words within an equation: "diag(1, 0, 1)"."""

    text: str


class Power(EquationNode):
    """x², W⁻¹, or W⁺ (the pseudo-inverse), by its `exponent` "2", "−1" or "+"."""

    of: Expression
    exponent: str


class Transposed(EquationNode):
    """Wᵀ."""

    of: Expression


class Product(EquationNode):
    """Factors in a row. `sign`: "" for matrix products, "⊙" entry by entry, "·" between shapes or Jacobians, "×"."""

    factors: tuple[Expression, ...]
    sign: Literal["", "⊙", "·", "×"] = ""


class Sum(EquationNode):
    """Terms; a `Minus` among them is written with its sign."""

    terms: tuple[Expression, ...]


class Minus(EquationNode):
    """−term."""

    of: Expression


class Call(EquationNode):
    """relu(z²), σ′(z³)."""

    function: Name
    of: Expression


class Fraction(EquationNode):
    """above / below."""

    above: Expression
    below: Expression


class Derivative(EquationNode):
    """∂C/∂a²; ∇W³ where `of` is None; with `nabla` too ∇_{W³} J."""

    by: Expression
    of: Expression | None = None
    nabla: bool = False


class SquaredNorm(EquationNode):
    """‖a − y‖²."""

    of: Expression


class BigSum(EquationNode):
    """Σ over an index."""

    index: str
    of: Expression


class Listed(EquationNode):
    """(δᵢ, δ_f, δ_g): one after the other."""

    parts: tuple[Expression, ...]


class Entry(EquationNode):
    """W[xₜ]: the row that an index names."""

    of: Expression
    index: Expression


class Comparison(EquationNode):
    """h > 0: 1 where it holds, 0 elsewhere."""

    left: Expression
    sign: str
    right: Expression


LOOSE, PRODUCT, MATRIX_PRODUCT, TIGHT = range(4)


def binds(expression: Expression) -> int:
    """How tightly an expression holds together: a sum least, a symbol most."""
    match expression:
        case Sum() | Minus() | Comparison():
            return LOOSE
        case Product(sign="") | Fraction() | BigSum():
            return MATRIX_PRODUCT
        case Product():
            return PRODUCT
    return TIGHT


SUPERSCRIPTS = str.maketrans("0123456789+-−()TLlni.", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁽⁾ᵀᴸˡⁿⁱ·")
SUBSCRIPTS = str.maketrans("0123456789+-−()aehijklmnoprstuvx", "₀₁₂₃₄₅₆₇₈₉₊₋₋₍₎ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ")
RAISED = set("0123456789+-−()TLlni.")


def raised(text: str) -> str:
    """Text as superscripts where unicode has them, else as it is: ³, ⁽³⁾, [3]."""
    return text.translate(SUPERSCRIPTS) if set(text) <= RAISED else text


def lowered(text: str) -> str:
    """Digits, signs and the letters of indices as subscripts."""
    return text.translate(SUBSCRIPTS)


# ------------------------------------------------------------------------------------------------ the forms

FENCE = '<mo stretchy="false">{}</mo>'
TEMPLATES: dict[str, tuple[str, ...]] = {
    "Number": ("{text}", "{text}", "{text}", "<mn>{text}</mn>"),
    "Words": ("{text}", "", "{text}", "<mtext>{text}</mtext>"),
    "Transposed": ("{of:t}ᵀ", "{of:t}.T", r"{{{of:t}}}^\top", "<msup><mrow>{of:t}</mrow>{sign}</msup>"),
    "Power": ("{of:t}{sign}", "{of:t} ** {sign}", "{{{of:t}}}^{{{sign}}}", "<msup><mrow>{of:t}</mrow>{sign}</msup>"),
    "Power −1": ("{of:t}⁻¹", "inv({of})", "{{{of:t}}}^{{-1}}", "<msup><mrow>{of:t}</mrow>{sign}</msup>"),
    "Power +": ("{of:t}⁺", "pinv({of})", "{{{of:t}}}^+", "<msup><mrow>{of:t}</mrow>{sign}</msup>"),
    "Call": ("{function}({of})", "{function}({of})", r"{function}\left({of}\right)",
             f"{{function}}<mrow>{FENCE.format('(')}{{of}}{FENCE.format(')')}</mrow>"),
    "Call of several": ("{function}{of}",) * 4,
    "Root": ("√{of}", "sqrt({of})", r"\sqrt{{{of}}}", "<msqrt>{of}</msqrt>"),
    "Fraction": ("{above:m}/{below:t}", "({above}) / ({below})", r"\frac{{{above}}}{{{below}}}",
                 "<mfrac><mrow>{above}</mrow><mrow>{below}</mrow></mfrac>"),
    "Derivative": ("∂{of}/∂{by}", "d{by}", r"\frac{{\partial {of}}}{{\partial {by}}}",
                   "<mfrac><mrow><mrow>{d}{of}</mrow></mrow><mrow><mrow>{d}{by}</mrow></mrow></mfrac>"),
    "Nabla": ("∇{by}", "d{by}", r"\nabla {by}", "{nabla}{by}"),
    "Nabla of": ("∇_{by} {of}", "d{by}", r"\nabla_{{{by}}} {of}", "<msub>{nabla}<mrow>{by}</mrow></msub>{of}"),
    "SquaredNorm": ("‖{of}‖²", "sum(({of}) ** 2)", r"\left\lVert {of} \right\rVert^2",
                    f"<msup><mrow>{FENCE.format('‖')}{{of}}{FENCE.format('‖')}</mrow><mn>2</mn></msup>"),
    "BigSum": ("Σ {of:p}", "", r"\sum {of:p}", "<mo>∑</mo>{of:p}"),
    "BigSum over": ("Σ{index} {of:p}", "", r"\sum_{{{index}}} {of:p}",
                    "<munder><mo>∑</mo><mi>{index}</mi></munder>{of:p}"),
    "Entry": ("{of:t}[{index}]", "", "{of:t}[{index}]", f"{{of:t}}{FENCE.format('[')}{{index}}{FENCE.format(']')}"),
    "Comparison": ("{left} {sign} {right}", "", "{left} {sign} {right}", "{left}<mo>{sign}</mo>{right}"),
    "brackets": ("({text})", "({text})", r"\left({text}\right)",
                 f"<mrow>{FENCE.format('(')}{{text}}{FENCE.format(')')}</mrow>"),
}  # fmt: skip
"""How each node is written as text, formula, LaTeX and MathML; {of:t}: in brackets unless it binds tightly. ""
where a formula has no such node."""
LEAST = {"": LOOSE, "p": PRODUCT, "m": MATRIX_PRODUCT, "t": TIGHT}


def template_of(expression: Expression) -> str:
    """The row of `TEMPLATES` of a node."""
    match expression:
        case Power(_, "−1" | "+" as exponent):
            return f"Power {exponent}"
        case Call(Name("√"), Number()):
            return "Root"
        case Call(_, Listed()):
            return "Call of several"
        case Derivative(_, None):
            return "Nabla"
        case Derivative(nabla=True):
            return "Nabla of"
        case BigSum(index) if index:
            return "BigSum over"
    return type(expression).__name__


class AsText:
    """A way to write expressions: as text; the other forms override parts of it."""

    column = 0

    def row(self, expression: Expression) -> Any:
        """The expression written out. Raises `ValueError` for a node without such a form."""
        match expression:
            case Name():
                return self.name(expression)
            case Product(factors, sign):
                return self.product(factors, sign)
            case Sum(terms):
                return self.signed(terms)
            case Minus():
                return self.signed((expression,))
            case Listed(parts):
                return self.filled("brackets", text=self.sign(",").join(map(self.row, parts)))
        values = {each.name: getattr(expression, each.name) for each in fields(expression)}
        shown = {name: self.script(name, each) if isinstance(each, str) else Bracketed(self, each)
                 for name, each in values.items()}  # fmt: skip
        return self.filled(template_of(expression), **shown | self.signs(expression))

    def filled(self, template: str, **parts: Any) -> Any:
        text = TEMPLATES[template][self.column]
        if not text:
            raise ValueError(f"a {template.split()[0].lower()} has no form in a formula")
        return text.format_map(parts)

    def within(self, expression: Expression, least: int) -> Any:
        """An operand, in brackets where it binds more loosely than `least`."""
        text = self.row(expression)
        return self.filled("brackets", text=text) if binds(expression) < least else text

    def signs(self, expression: Expression) -> dict[str, Any]:
        """The signs that a template writes beside a node's own fields."""
        return {"sign": self.script("exponent", expression.exponent)} if isinstance(expression, Power) else {}

    def name(self, of: Name) -> Any:
        return f"{of.base}{raised(of.above)}{lowered(of.below)}"

    def script(self, field: str, text: str) -> str:
        return {"exponent": raised, "index": lowered}.get(field, str)(text)

    def sign(self, sign: str) -> Any:
        return f" {sign} " if sign not in ("", ",") else sign and ", "

    def product(self, factors: Sequence[Expression], sign: str) -> Any:
        least = MATRIX_PRODUCT if sign else TIGHT
        *first, last = factors  # a Σ reaches to the end of a product, so one that ends before is in brackets
        parts = [self.within(each, TIGHT if isinstance(each, BigSum) else least) for each in first]
        if self.column == 0 and not sign:  # ∂C/∂z xᵀ, whose x is no part of z's name
            parts = [
                f"{part} " if isinstance(each, Derivative) else part for part, each in zip(parts, first, strict=True)
            ]
        return self.sign(sign).join([*parts, self.within(last, least)])

    def signed(self, terms: Sequence[Expression]) -> Any:
        """A sum: as text without blanks about the signs where the terms are symbols, a³−y."""
        bare = [term.of if isinstance(term, Minus) else term for term in terms]
        blank = "" if self.column == 0 and all(isinstance(each, Name | Number) for each in bare) else " "
        text = ""
        for term, of in zip(terms, bare, strict=True):
            sign = self.script("", "−" if isinstance(term, Minus) else "+")
            text += f"{blank}{sign}{blank}" if text else sign.strip("+")
            text += self.within(of, PRODUCT)
        return text


class Bracketed:
    """A node's operand in a template: {of:t} is `within(of, TIGHT)`."""

    def __init__(self, form: AsText, of: Any):
        self.form, self.of = form, of

    def __format__(self, least: str) -> Any:
        return self.form.within(self.of, LEAST[least])

    __html_format__ = __format__


class AsFormula(AsText):
    """As `jaxnet explain --try` reads it: W3.T @ delta3 * relu'(z2), every operand in brackets that is no symbol."""

    column = 1

    def name(self, of: Name) -> str:
        if not of.key:
            raise ValueError(f"{of.base} has no name in a formula")
        return of.key

    def script(self, field: str, text: str) -> str:
        return {"½": "0.5"}.get(text, text.replace("−", "-"))

    def signs(self, expression: Expression) -> dict[str, Any]:
        called = (
            {"function": expression.function.key or expression.function.base} if isinstance(expression, Call) else {}
        )
        return super().signs(expression) | called

    def product(self, factors: Sequence[Expression], sign: str) -> str:
        numbers = all(isinstance(each, Number | Fraction) for each in factors[:-1])
        return (" * " if sign in ("⊙", "×") or numbers else " @ ").join(self.within(each, TIGHT) for each in factors)


class AsLatex(AsText):
    r"""LaTeX: `{W^{3}}^\top \delta^{3} \odot \mathrm{relu}'(z^{2})`."""

    column = 2

    def name(self, of: Name) -> str:
        base, _, own = of.base.rstrip("′").partition("_")
        text = commands(base)
        if base[-1:] in MARKS:
            text = f"\\{MARKS[base[-1]]}{{{commands(base[:-1])}}}"
        elif len(base) > 1 and base.isascii() and not (len(base) == 2 and base[0] == "d"):
            text = f"\\mathrm{{{base}}}"
        below = f"{own}{',' if own and of.below else ''}{of.below}"
        text += "'" * of.base.count("′") + (f"_{{{commands(below)}}}" if below else "")
        return text + (f"^{{{of.above}}}" if of.above else "")

    def script(self, field: str, text: str) -> str:
        return commands(text)

    def sign(self, sign: str) -> str:
        return ", " if sign == "," else f" {commands(sign)} "


MARKS = {"\u0302": "hat", "\u0304": "bar", "\u0303": "tilde"}
COMMANDS = {
    "σ": "\\sigma", "δ": "\\delta", "γ": "\\gamma", "β": "\\beta", "α": "\\alpha", "ε": "\\varepsilon", "μ": "\\mu",
    "λ": "\\lambda", "θ": "\\theta", "ρ": "\\rho", "τ": "\\tau", "φ": "\\varphi", "ω": "\\omega", "η": "\\eta",
    "⊙": "\\odot", "·": "\\cdot", "×": "\\times", "≥": "\\ge", "≤": "\\le", "≠": "\\ne", "−": "-", "∞": "\\infty",
    "½": "\\tfrac12", "ᵀ": "^\\top", "²": "^2", "√": "\\sqrt", "diag": "\\operatorname{diag}",
}  # fmt: skip


def commands(text: str) -> str:
    """Text with LaTeX's commands for its signs."""
    for sign, command in COMMANDS.items():
        text = text.replace(sign, f"{command} " if command[-1].isalpha() else command)
    return text.strip()


written, formula, latex = AsText().row, AsFormula().row, AsLatex().row
"""An expression as text, as a formula for `--try` and as LaTeX."""


def entry(symbol: Expression, *indices: int) -> Expression:
    """A symbol with subscripts, counted from 1; any other expression stays."""
    below = ("," if any(index > 9 for index in indices) else "").join(map(str, indices))
    return Name(symbol.base, symbol.above, below, symbol.key) if isinstance(symbol, Name) else symbol


def key_of(symbol: Expression) -> str:
    """The name of a symbol in a formula: dW3 of ∇W³; "" for other expressions."""
    if isinstance(symbol, Derivative):
        return f"d{key_of(symbol.by)}"
    return symbol.key if isinstance(symbol, Name) else ""
