"""Equations as small trees, from which text, MathML and formulas for `--try` are made.

A tree is made of the frozen dataclasses below. A renderer is one function over them: `written` here gives unicode
text, `formula` what `jaxnet explain --try` reads. Brackets are nowhere in the trees: a renderer sets them where an
operand binds more loosely than what stands around it (`binds`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Name:
    """A symbol: W³ is base "W", above "3"; a²₁ has below "1" too. `key`: what a formula calls it, "W3"."""

    base: str
    above: str = ""
    below: str = ""
    key: str = ""


@dataclass(frozen=True)
class Number:
    """A number as it is to be read: "½", "2", "−.0407"."""

    text: str


@dataclass(frozen=True)
class Words:
    """Words within an equation: "diag(1, 0, 1)"."""

    text: str


@dataclass(frozen=True)
class Transposed:
    """Wᵀ."""

    of: Expression


@dataclass(frozen=True)
class Inverse:
    """W⁻¹, or where `pseudo` W⁺."""

    of: Expression
    pseudo: bool = False


@dataclass(frozen=True)
class Product:
    """Factors in a row. `sign`: "" for matrix products, "⊙" entry by entry, "·" between shapes or Jacobians, "×"."""

    factors: tuple[Expression, ...]
    sign: Literal["", "⊙", "·", "×"] = ""


@dataclass(frozen=True)
class Sum:
    """Terms; a `Minus` among them is written with its sign."""

    terms: tuple[Expression, ...]


@dataclass(frozen=True)
class Minus:
    """−term."""

    of: Expression


@dataclass(frozen=True)
class Call:
    """relu(z²), σ′(z³)."""

    function: Name
    of: Expression


@dataclass(frozen=True)
class Fraction:
    """above / below."""

    above: Expression
    below: Expression


@dataclass(frozen=True)
class Partial:
    """∂C/∂a²: the derivative of `of` by `by`."""

    of: Expression
    by: Expression


@dataclass(frozen=True)
class Gradient:
    """∇W³; with `of`, the cost, written below: ∇_{W³} J."""

    by: Expression
    of: Expression | None = None


@dataclass(frozen=True)
class SquaredNorm:
    """‖a − y‖²."""

    of: Expression


@dataclass(frozen=True)
class BigSum:
    """Σ over an index."""

    index: str
    of: Expression


@dataclass(frozen=True)
class Listed:
    """(δᵢ, δ_f, δ_g): one after the other."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True)
class Entry:
    """W[xₜ]: the row that an index names."""

    of: Expression
    index: Expression


@dataclass(frozen=True)
class Power:
    """x²."""

    of: Expression
    exponent: str


@dataclass(frozen=True)
class Comparison:
    """h > 0: 1 where it holds, 0 elsewhere."""

    left: Expression
    sign: str
    right: Expression


Expression = (
    Name
    | Number
    | Words
    | Transposed
    | Inverse
    | Product
    | Sum
    | Minus
    | Call
    | Fraction
    | Partial
    | Gradient
    | SquaredNorm
    | BigSum
    | Listed
    | Entry
    | Power
    | Comparison
)

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


def within(expression: Expression, least: int) -> str:
    """The text of an operand, in brackets where it binds more loosely than `least`."""
    text = written(expression)
    return f"({text})" if binds(expression) < least else text


def written(expression: Expression) -> str:
    """The expression as one line of unicode: `W³ᵀδ³ ⊙ relu′(z²)`."""
    match expression:
        case Name(base, above, below):
            return f"{base}{raised(above)}{lowered(below)}"
        case Number(text) | Words(text):
            return text
        case Transposed(of):
            return f"{within(of, TIGHT)}ᵀ"
        case Inverse(of, pseudo):
            return f"{within(of, TIGHT)}{'⁺' if pseudo else '⁻¹'}"
        case Product(factors, sign):
            least = MATRIX_PRODUCT if sign else TIGHT
            return (f" {sign} " if sign else "").join(within(factor, least) for factor in factors)
        case Sum(terms):
            return signed(terms)
        case Minus(of):
            return f"−{within(of, PRODUCT)}"
        case Call(function, Listed(parts)):
            return f"{written(function)}({', '.join(map(written, parts))})"
        case Call(Name("√"), Number() as of):
            return f"√{written(of)}"
        case Call(function, of):
            return f"{written(function)}({written(of)})"
        case Fraction(above, below):
            return f"{within(above, MATRIX_PRODUCT)}/{within(below, TIGHT)}"
        case Partial(of, by):
            return f"∂{written(of)}/∂{written(by)}"
        case Gradient(by, of):
            return f"∇{written(by)}" if of is None else f"∇_{written(by)} {written(of)}"
        case SquaredNorm(of):
            return f"‖{written(of)}‖²"
        case BigSum(index, of):
            return f"Σ{lowered(index)} {within(of, PRODUCT)}"
        case Listed(parts):
            return f"({', '.join(map(written, parts))})"
        case Entry(of, index):
            return f"{written(of)}[{written(index)}]"
        case Power(of, exponent):
            return f"{within(of, TIGHT)}{raised(exponent)}"
        case Comparison(left, sign, right):
            return f"{within(left, LOOSE)} {sign} {within(right, LOOSE)}"


def signed(terms: tuple[Expression, ...]) -> str:
    """A sum: without blanks about the signs where the terms are symbols, a³−y."""
    symbols = all(isinstance(term.of if isinstance(term, Minus) else term, Name | Number) for term in terms)
    blank = "" if symbols else " "
    text = ""
    for term in terms:
        minus, of = (True, term.of) if isinstance(term, Minus) else (False, term)
        sign = ("−" if minus else "+") if text else ("−" if minus else "")
        text += f"{blank}{sign}{blank}{within(of, PRODUCT)}" if text else f"{sign}{within(of, PRODUCT)}"
    return text


def formula(expression: Expression) -> str:
    """The expression as `jaxnet explain --try` reads it: `W3.T @ delta3 * relu'(z2)` with brackets everywhere.

    Raises `ValueError` for a symbol that has no name there.
    """
    match expression:
        case Name(base, key=key):
            if not key:
                raise ValueError(f"{base} has no name in a formula")
            return key
        case Number(text):
            return {"½": "0.5"}.get(text, text.replace("−", "-"))
        case Transposed(of):
            return f"({formula(of)}).T" if binds(of) < TIGHT else f"{formula(of)}.T"
        case Inverse(of, pseudo):
            return f"{'pinv' if pseudo else 'inv'}({formula(of)})"
        case Product(factors, sign):
            parts = [f"({formula(each)})" if binds(each) < TIGHT else formula(each) for each in factors]
            numbers = all(isinstance(each, Number | Fraction) for each in factors[:-1])
            return (" * " if sign in ("⊙", "×") or numbers else " @ ").join(parts)
        case Sum(terms):
            return added([(isinstance(term, Minus), term.of if isinstance(term, Minus) else term) for term in terms])
        case Minus(of):
            return f"-({formula(of)})"
        case Call(function, Listed(parts)):
            return f"{function.key or function.base}({', '.join(map(formula, parts))})"
        case Call(function, of):
            return f"{function.key or function.base}({formula(of)})"
        case Fraction(above, below):
            return f"({formula(above)}) / ({formula(below)})"
        case Partial(by=by) | Gradient(by=by):
            return f"d{formula(by)}"
        case SquaredNorm(of):
            return f"sum(({formula(of)}) ** 2)"
        case Power(of, exponent):
            return f"{formula(of)} ** {exponent}" if binds(of) == TIGHT else f"({formula(of)}) ** {exponent}"
        case _:
            raise ValueError(f"{written(expression)} has no form in a formula")


def added(terms: list[tuple[bool, Expression]]) -> str:
    """A sum's formula, of terms each with whether it is subtracted."""
    text = ""
    for minus, term in terms:
        part = f"({formula(term)})" if binds(term) < PRODUCT else formula(term)
        if text:
            text += f" {'-' if minus else '+'} {part}"
        else:
            text = f"-{part}" if minus else part
    return text
