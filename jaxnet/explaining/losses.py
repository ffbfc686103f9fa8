"""The losses as equations: of their value, and of their derivative by the network's output."""

from __future__ import annotations

from collections.abc import Callable

from jaxnet.explaining.expressions import (
    BigSum,
    Call,
    Expression,
    Fraction,
    Listed,
    Minus,
    Name,
    Number,
    Product,
    SquaredNorm,
    Sum,
    Transposed,
)  # fmt: skip
from jaxnet.layer import Loss

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
    "multiclass_hinge": lambda z, y, d: Sum(
        (Call(Name("max"), Sum((z, Number("1"), Minus(y)))), Minus(Product((Transposed(y), z))))
    ),
    "binary_cross_entropy": logarithms,
    "binary_cross_entropy_on_logits": logits,
    "softmax_cross_entropy": lambda z, y, d: Minus(BigSum("", Product((y, called("ln", called("softmax", z))), "⊙"))),
}
"""C as an equation, by the maker of the loss; of an output, its target, and how many features there are."""


def made_by(loss: Loss) -> str:
    """The maker of a loss, of one that ignores a class that of the loss within; nothing of one that none made."""
    while loss.made is not None and loss.made.maker == "ignoring":
        loss = loss.made.options["loss"]
    return loss.made.maker if loss.made is not None else ""


def threshold(loss: Loss) -> float:
    """Huber's threshold."""
    assert loss.made is not None
    return float(loss.made.options["threshold"])


def top(of: Expression) -> Call:
    """1 at the largest entry, 0 elsewhere."""
    return Call(Name("top", key="top"), of)


SLOPES: dict[str, Formula] = {
    "quadratic": lambda a, y, d: less(a, y),
    "mean_squared_error": lambda a, y, d: Fraction(Product((Number("2"), less(a, y)), "×"), Number(str(d))),
    "mean_absolute_error": lambda a, y, d: Fraction(called("sign", less(a, y)), Number(str(d))),
    "binary_cross_entropy": lambda a, y, d: Fraction(less(a, y), Product((a, Sum((Number("1"), Minus(a)))), "⊙")),
    "binary_cross_entropy_on_logits": lambda z, y, d: less(Call(Name("σ", key="sigmoid"), z), y),
    "softmax_cross_entropy": lambda z, y, d: less(Call(Name("softmax", key="softmax"), z), y),
    "multiclass_hinge": lambda z, y, d: less(top(Sum((z, Number("1"), Minus(y)))), y),
}
"""∂C/∂out as an equation."""


def over_terms(expression: Expression, terms: float) -> Expression:
    """The mean over the terms (tokens) that count."""
    return expression if terms == 1 else Fraction(expression, Number(f"{terms:g}"))


SAYS: dict[str, str] = {
    "huber": "h(e) = ½e² up to |e| = {t}, {beyond} beyond; its slope is e held within ±{t}",
    "softmax_cross_entropy": "softmax's Jacobian turns −y/p, the slope by p, into p − y",
    "multiclass_hinge": "top: 1 at the largest entry, the rival; where that is the class itself there is no error",
}
"""What is to be said of a loss; {t} is Huber's threshold, {beyond} what h is from there on."""


def said_of(loss: Loss) -> tuple[str, ...]:
    """What there is to say of a loss."""
    made = made_by(loss)
    if made not in SAYS:
        return ()
    t = threshold(loss) if made == "huber" else 1.0
    beyond = f"{'' if t == 1 else f'{t:g}'}|e| − {t * t / 2:g}"
    return (SAYS[made].format(t=f"{t:g}", beyond=beyond),)


def value_of(loss: Loss, out: Expression, y: Expression, features: int, terms: float = 1) -> Expression:
    """C's right side; for a loss not in the table its name."""
    if (made := made_by(loss)) not in VALUES:
        return Call(Name(loss.name), out)
    return over_terms(VALUES[made](out, y, features), terms)


def slope_of(
    loss: Loss, out: Expression, y: Expression, features: int, terms: float = 1, one_hot: bool = True
) -> Expression | None:
    """∂C/∂out's right side; None for a loss not in the table. one_hot: whether the target's entries add up to 1."""
    made = made_by(loss)
    if made == "huber":
        clipped = Call(Name("clip", key="clip"), Listed((less(out, y), Number(f"{threshold(loss):g}"))))
        return over_terms(Fraction(clipped, Number(str(features))), terms)
    if made not in SLOPES:
        return None
    if made == "softmax_cross_entropy" and not one_hot:
        scaled = Product((called("sum", y), Call(Name("softmax", key="softmax"), out)), "×")
        return over_terms(Sum((scaled, Minus(y))), terms)
    return over_terms(SLOPES[made](out, y, features), terms)
