"""The losses as equations: of their value, and of their derivative by the network's output."""

from __future__ import annotations

from collections.abc import Callable

from jaxnet.explaining import expressions as ex
from jaxnet.layer import Loss

Expression = ex.Expression
Formula = Callable[[Expression, Expression, int], Expression]
ONE = ex.Number("1")


def less(a: Expression, y: Expression) -> ex.Sum:
    """a − y."""
    return ex.Sum((a, ex.Minus(y)))


def call(name: str, of: Expression, key: str = "") -> ex.Call:
    """name(…)."""
    return ex.Call(ex.Name(name, key=key), of)


def over(of: Expression, n: float) -> ex.Fraction:
    """A mean: over the features, or over the terms (tokens) that count."""
    return ex.Fraction(of, ex.Number(f"{n:g}"))


def logarithms(a: Expression, y: Expression, d: int) -> Expression:
    """−Σ y ln a + (1 − y) ln(1 − a)."""
    off = ex.Product((less(ONE, y), call("ln", less(ONE, a))), "⊙")
    return ex.Minus(ex.BigSum("", ex.Sum((ex.Product((y, call("ln", a)), "⊙"), off))))


def hinge(z: Expression, y: Expression) -> Expression:
    """z + 1 − y: its largest entry is the rival."""
    return ex.Sum((z, ONE, ex.Minus(y)))


VALUES: dict[str, Formula] = {
    "quadratic": lambda a, y, d: ex.Product((ex.Number("½"), ex.SquaredNorm(less(a, y))), ""),
    "mean_squared_error": lambda a, y, d: over(ex.SquaredNorm(less(a, y)), d),
    "mean_absolute_error": lambda a, y, d: over(ex.BigSum("", call("abs", less(a, y))), d),
    "huber": lambda a, y, d: over(ex.BigSum("", call("h", less(a, y))), d),
    "multiclass_hinge": lambda z, y, d: less(call("max", hinge(z, y)), ex.Product((ex.Transposed(y), z))),
    "binary_cross_entropy": logarithms,
    "binary_cross_entropy_on_logits": lambda z, y, d: logarithms(call("σ", z, "sigmoid"), y, d),
    "softmax_cross_entropy": lambda z, y, d: ex.Minus(
        ex.BigSum("", ex.Product((y, call("ln", call("softmax", z))), "⊙"))
    ),
}
"""C as an equation, by the maker of the loss; of an output, its target, and how many features there are."""
SLOPES: dict[str, Formula] = {
    "quadratic": lambda a, y, d: less(a, y),
    "mean_squared_error": lambda a, y, d: over(ex.Product((ex.Number("2"), less(a, y)), "×"), d),
    "mean_absolute_error": lambda a, y, d: over(call("sign", less(a, y)), d),
    "binary_cross_entropy": lambda a, y, d: ex.Fraction(less(a, y), ex.Product((a, less(ONE, a)), "⊙")),
    "binary_cross_entropy_on_logits": lambda z, y, d: less(call("σ", z, "sigmoid"), y),
    "softmax_cross_entropy": lambda z, y, d: less(call("softmax", z, "softmax"), y),
    "multiclass_hinge": lambda z, y, d: less(call("top", hinge(z, y), "top"), y),
}
"""∂C/∂out as an equation."""


def made_by(loss: Loss) -> str:
    """The maker of a loss, of one that ignores a class that of the loss within; nothing of one that none made."""
    while loss.made is not None and loss.made.maker == "ignoring":
        loss = loss.made.options["loss"]
    return loss.made.maker if loss.made is not None else ""


SAYS: dict[str, str] = {
    "huber": "h(e) = ½e² up to |e| = {t}, {beyond} beyond; its slope is e held within ±{t}",
    "softmax_cross_entropy": "softmax's Jacobian turns −y/p, the slope by p, into p − y",
    "multiclass_hinge": "top: 1 at the largest entry, the rival; where that is the class itself there is no error",
}
"""A sentence beside a loss; {t} is Huber's threshold, {beyond} h beyond it."""


def said_of(loss: Loss) -> tuple[str, ...]:
    """The sentence beside a loss."""
    made = made_by(loss)
    if made not in SAYS:
        return ()
    t = float(loss.made.options["threshold"]) if made == "huber" and loss.made else 1.0
    beyond = f"{'' if t == 1 else f'{t:g}'}|e| − {t * t / 2:g}"
    return (SAYS[made].format(t=f"{t:g}", beyond=beyond),)


def value_of(loss: Loss, out: Expression, y: Expression, features: int, terms: float = 1) -> Expression:
    """C's right side; for a loss not in the table its name."""
    if (made := made_by(loss)) not in VALUES:
        return ex.Call(ex.Name(loss.name), out)
    value = VALUES[made](out, y, features)
    return value if terms == 1 else over(value, terms)


def slope_of(
    loss: Loss, out: Expression, y: Expression, features: int, terms: float = 1, one_hot: bool = True
) -> Expression | None:
    """∂C/∂out's right side; None for a loss not in the table. one_hot: whether the target's entries add up to 1."""
    made = made_by(loss)
    if made == "huber" and loss.made is not None:
        limit = ex.Number(f"{float(loss.made.options['threshold']):g}")
        slope: Expression = over(call("clip", ex.Listed((less(out, y), limit)), "clip"), features)
    elif made == "softmax_cross_entropy" and not one_hot:
        slope = less(ex.Product((call("sum", y), call("softmax", out, "softmax")), "×"), y)
    elif made in SLOPES:
        slope = SLOPES[made](out, y, features)
    else:
        return None
    return slope if terms == 1 else over(slope, terms)
