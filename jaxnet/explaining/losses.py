"""The losses as equations: of their value, and of their derivative by the network's output."""

from __future__ import annotations

from collections.abc import Callable

from jaxnet.explaining.expressions import (
    BigSum,
    Call,
    Expression,
    Fraction,
    Minus,
    Name,
    Number,
    Product,
    SquaredNorm,
    Sum,
)

Formula = Callable[[Expression, Expression, int], Expression]


def less(a: Expression, y: Expression) -> Sum:
    """a − y."""
    return Sum((a, Minus(y)))


def called(name: str, *of: Expression) -> Call:
    """name(…)."""
    return Call(Name(name), of[0])


def logarithms(a: Expression, y: Expression, d: int) -> Expression:
    """−Σ y ln a + (1 − y) ln(1 − a)."""
    one = Number("1")
    terms = Sum(
        (
            Product((y, called("ln", a)), "⊙"),
            Product((Sum((one, Minus(y))), called("ln", Sum((one, Minus(a))))), "⊙"),
        )
    )
    return Minus(BigSum("", terms))


def logits(z: Expression, y: Expression, d: int) -> Expression:
    """The same of σ(z)."""
    return logarithms(Call(Name("σ", key="sigmoid"), z), y, d)


VALUES: dict[str, Formula] = {
    "quadratic": lambda a, y, d: Product((Number("½"), SquaredNorm(less(a, y))), ""),
    "mean_squared_error": lambda a, y, d: Fraction(SquaredNorm(less(a, y)), Number(str(d))),
    "mean_absolute_error": lambda a, y, d: Fraction(BigSum("", called("abs", less(a, y))), Number(str(d))),
    "huber": lambda a, y, d: Fraction(BigSum("", called("h", less(a, y))), Number(str(d))),
    "binary_cross_entropy": logarithms,
    "binary_cross_entropy_on_logits": logits,
    "softmax_cross_entropy": lambda z, y, d: Minus(BigSum("", Product((y, called("ln", called("softmax", z))), "⊙"))),
}
"""C as an equation, by the loss's name; of an output, its target, and how many features there are."""

SLOPES: dict[str, Formula] = {
    "quadratic": lambda a, y, d: less(a, y),
    "mean_squared_error": lambda a, y, d: Fraction(Product((Number("2"), less(a, y)), "×"), Number(str(d))),
    "mean_absolute_error": lambda a, y, d: Fraction(called("sign", less(a, y)), Number(str(d))),
    "binary_cross_entropy": lambda a, y, d: Fraction(less(a, y), Product((a, Sum((Number("1"), Minus(a)))), "⊙")),
    "binary_cross_entropy_on_logits": lambda z, y, d: less(Call(Name("σ", key="sigmoid"), z), y),
    "softmax_cross_entropy": lambda z, y, d: less(Call(Name("softmax", key="softmax"), z), y),
}
"""∂C/∂out as an equation."""


def over_terms(expression: Expression, terms: float) -> Expression:
    """The mean over the terms (tokens) that count."""
    return expression if terms == 1 else Fraction(expression, Number(f"{terms:g}"))


def value_of(loss: str, out: Expression, y: Expression, features: int, terms: float = 1) -> Expression:
    """C's right side; for a loss not in the table its name."""
    return over_terms(VALUES[loss](out, y, features), terms) if loss in VALUES else Call(Name(loss), out)


def slope_of(
    loss: str, out: Expression, y: Expression, features: int, terms: float = 1, one_hot: bool = True
) -> Expression | None:
    """∂C/∂out's right side; None for a loss not in the table. one_hot: whether the target's entries add up to 1."""
    if loss not in SLOPES:
        return None
    if loss == "softmax_cross_entropy" and not one_hot:
        scaled = Product((called("sum", y), Call(Name("softmax", key="softmax"), out)), "×")
        return over_terms(Sum((scaled, Minus(y))), terms)
    return over_terms(SLOPES[loss](out, y, features), terms)
