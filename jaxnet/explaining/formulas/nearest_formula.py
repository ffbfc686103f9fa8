"""The nearest formula that gives one of the network's quantities.

The factors of a product are joined anew, neighbours first: by @ from either side, transposed or not, or entry by entry.
A factor may be replaced by another, one may be missing anywhere, and the first or the last may be too much. Each change
has a cost, and of all formulas that are right at every draw the one that costs least is offered.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from jaxnet.explaining.expressions import Frozen
from jaxnet.explaining.formulas.formula_values import (
    FormulaEvaluation,
    Misfit,
    Shape,
    Symbols,
    number_like,
    size,
    transposed,
)
from jaxnet.explaining.formulas.parse import Formula, FormulaError, parse
from jaxnet.explaining.formulas.quantities import Quantity, near

MOST = 6  # factors; more are not put together anew
MOST_ENTRIES = 1 << 16  # of any product on the way
MOST_PARTS = 30  # of the same factors and shape
STAGES = ((3, False), (6, True), (9, False))  # the most that all changes may cost, and whether a factor may be missing
TURNED, BEHIND, OTHER_PRODUCT, OTHER_FACTOR, MISSING, TOO_MUCH, THE_ERROR = 2, 2, 1, 4, 4, 5, 2
SUM, PRODUCT, TIGHT = range(3)  # how a part's text binds


class NearestFormula(Frozen):
    """A formula that is right: its text, the quantity that it gives, its symbol, and the changes."""

    formula: str
    quantity: str
    symbol: str
    changes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Part:
    """A factor, or several joined: text, how tightly it binds, value, the changes made, and their cost."""

    text: str
    binds: int
    value: np.ndarray
    changes: tuple[str, ...] = ()
    cost: int = 0

    def operand(self, least: int) -> str:
        """The text, in brackets where it binds more loosely than `least`."""
        return f"({self.text})" if self.binds < least else self.text

    @cached_property
    def size(self) -> Shape:
        """The shape."""
        return size(self.value)


@np.errstate(all="ignore")
def repair(
    formula: Formula, scope: Symbols, quantities: Sequence[Quantity], batch: bool = False
) -> NearestFormula | None:
    """The nearest right formula, or None where there is none.

    Of shapes alone, quantities of the network that have these shapes are put in.
    """
    evaluation = FormulaEvaluation(formula, scope)
    tree, form, factor = stripped(evaluation)
    found = factors(tree)
    if not 1 <= len(found) <= MOST:
        return None
    targets = [each for each in quantities if each.backward and np.any(each.value)]
    words = vocabulary(scope, batch)
    try:
        own = [list(choices(evaluation, node, words, len(found) > 1)) for _, node in found]
    except (Misfit, FormulaError):
        return None
    sizes_alone = any(isinstance(each, ast.Name) and each.id == "Shape" for each in ast.walk(tree))
    for limit, missing in STAGES:
        for part in joined(own, [sign for sign, _ in found], words, limit, missing and not sizes_alone):
            value = part.value * (factor if part.value.ndim == 1 else factor[:, None, None])
            key = next((each for each in targets if near(value, each.value)), None)
            if key is not None and part.cost and part.text not in {word.text for word in words}:
                return NearestFormula(form.format(part.operand(PRODUCT)), key.key, key.symbol, part.changes)
    return None


def stripped(evaluation: FormulaEvaluation) -> tuple[ast.expr, str, np.ndarray]:
    """A formula without the sign and the numbers around it, the text around it, and the number that they make."""
    tree, form, factor = evaluation.formula.tree, "{}", np.ones(evaluation.scope.draws)
    while True:
        match tree:
            case ast.UnaryOp(ast.USub(), of):
                tree, form, factor = of, form.format("-{}"), -factor
            case ast.BinOp(left, ast.Div(), ast.Constant() | ast.Name() as right) if size(evaluation.of(right)) == ():
                form = form.format(f"{{}} / {evaluation.formula.source(right)}")
                tree, factor = left, factor / evaluation.of(right)
            case _:
                return tree, form, factor


def factors(node: ast.expr) -> list[tuple[str, ast.expr]]:
    """A product's factors, each with the operator before it."""
    match node:
        case ast.BinOp(left, ast.MatMult() | ast.Mult() as sign, right):
            first, *rest = factors(right)
            return [*factors(left), ("@" if isinstance(sign, ast.MatMult) else "*", first[1]), *rest]
    return [("", node)]


def choices(evaluation: FormulaEvaluation, node: ast.expr, words: Sequence[Part], among: bool) -> Iterator[Part]:
    """A factor, and its replacements. A formula of one factor has none."""
    formula, scope = evaluation.formula, evaluation.scope
    value, text = evaluation.of(node), formula.source(node)
    if np.isnan(value).all():  # a shape alone
        for word in words:
            if word.size == size(value):
                yield replace(word, changes=(f"{text} is read as {word.text}",))
        return
    sums = isinstance(node, ast.UnaryOp | ast.Compare) or (
        isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub)
    )
    own = Part(text, SUM if sums else PRODUCT if isinstance(node, ast.BinOp) else TIGHT, value)
    yield own
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub):
        text = f"{formula.source(node.right)} - {formula.source(node.left)}"
        if isinstance(node.right, ast.Name | ast.Constant):
            yield Part(text, SUM, -value, (f"the sign: {text}, not {own.text}",), TURNED)
    if not among:
        return
    inner = node.value if isinstance(node, ast.Attribute) else node
    family = scope.key(inner.id) if isinstance(inner, ast.Name) else None
    for word in words:
        kin = family is not None and kind(word.text.removesuffix(".T")) == kind(family)
        turned = word.text.endswith(".T") == (inner is not node)
        if word.text != text and (word.size == size(value) or (kin and turned)):
            cost = OTHER_FACTOR + THE_ERROR * word.text.startswith("d")  # a missing factor is likelier
            yield replace(word, changes=(f"{word.text} stands where {own.operand(TIGHT)} stood",), cost=cost)


def kind(key: str) -> str:
    """The kind of a quantity without its layer. x is an activation."""
    return key.rstrip("0123456789_").replace("x", "a").replace("X", "A")


def vocabulary(scope: Symbols, batch: bool) -> list[Part]:
    """The factors to be put in: slopes, δ, W, inputs and activations, plain and transposed."""
    texts = []
    for z, layer in scope.activations.items():
        z = z.capitalize() if batch else z
        texts.append(f"{layer.name if layer.name.isidentifier() else 'g'}'({z})")
    names = [key for key in scope.values if " " not in key and scope.values[key].ndim == 3]
    errors, inputs = ("dZ", "XA") if batch else ("delta", "xa")
    texts += [key for key in names if key.startswith(errors)]
    texts += [key for key in names if key[0] == "W"] + [key for key in names if key[0] in inputs]
    parts = [Part(text, TIGHT, FormulaEvaluation(made, scope).of(made.tree)) for text in texts if (made := parse(text))]
    return [each for part in parts for each in (part, turned(part))]


# ------------------------------------------------------------------------------------------------ joining


def joined(
    own: Sequence[Sequence[Part]], signs: Sequence[str], words: Sequence[Part], limit: int, missing: bool
) -> list[Part]:
    """All factors joined, the cheapest first, at most for `limit`. missing: whether a factor may be put in."""
    count = len(own)
    table: dict[tuple[int, int], list[Part]] = {}
    for length in range(1, count + 1):
        for i in range(count - length + 1):
            j = i + length
            if length == 1:
                found = list(own[i])
            else:
                found = [
                    part
                    for cut in range(j - 1, i, -1)
                    for left in table[i, cut]
                    for right in table[cut, j]
                    if left.cost + right.cost <= limit
                    for part in pairs(left, signs[cut], right, limit)
                ]
                ends = ((own[j - 1], table[i, j - 1]), (own[i], table[i + 1, j]))
                found += [without(part, end[0].text) for end, parts in ends if end for part in parts]
            if missing:
                found = [*found, *(new for part in found if part.cost + MISSING <= limit for new in more(part, words))]
            if length == 2 < count:
                found = [*found, *other_slopes(own[i][0], own[i + 1][0], words)]
            within = [each for each in found if each.cost <= limit]
            table[i, j] = cheapest(within) if length < count else sorted(within, key=lambda each: each.cost)
    return table[0, count]


def cheapest(parts: Iterable[Part]) -> list[Part]:
    """Of the parts with one value the cheapest, and of these the cheapest ones of each shape."""
    best: dict[tuple, Part] = {}
    for part in parts:
        top = float(np.abs(part.value).max(initial=0)) or 1.0
        power = 10.0 ** np.floor(np.log10(top)) if np.isfinite(top) else 1.0
        key = (part.value.shape, power, np.round(part.value / power, 5).tobytes())
        if key not in best or part.cost < best[key].cost:
            best[key] = part
    found: dict[Shape, list[Part]] = {}
    for part in sorted(best.values(), key=lambda each: each.cost):
        found.setdefault(part.size, []).append(part)
    return sorted((each for parts in found.values() for each in parts[:MOST_PARTS]), key=lambda each: each.cost)


def pairs(left: Part, sign: str, right: Part, limit: int) -> Iterator[Part]:
    """All products of two parts."""
    number = () in (left.size, right.size)
    if left.size == right.size or number:
        said = () if sign == "*" or number else (f"{right.text} goes in entry by entry: its Jacobian is diagonal",)
        if left.cost + right.cost + len(said) * OTHER_PRODUCT <= limit:
            yield entrywise(left, right, said, len(said) * OTHER_PRODUCT)
    other = (f"{right.text} is multiplied as a matrix",) if sign == "*" else ()
    for first, second, behind in ((left, right, False), (right, left, True)):
        for flips in ((), (first,), (second,), (first, second)):
            rows, columns = (each.size[::-1] if each in flips else each.size for each in (first, second))
            price = TURNED * len(flips) + BEHIND * behind + OTHER_PRODUCT * len(other)
            if fits(rows, columns) and left.cost + right.cost + price <= limit:
                a, b = (turned(each) if each in flips else each for each in (first, second))
                said = [f"{each.text} is transposed" for each in flips]
                said += [f"{a.text} goes before what it multiplies"] if behind else []
                yield product_of(a, b, (*said, *other), price)


def more(part: Part, words: Sequence[Part]) -> Iterator[Part]:
    """A part with one more factor."""
    for word in words:
        price = MISSING + ("'" not in word.text) + THE_ERROR * word.text.startswith("d")
        said = (f"{word.text} was missing",)
        if word.size == part.size:
            yield entrywise(part, word, said, price)
        if fits(part.size, word.size):
            yield product_of(part, word, said, price)
        if fits(word.size, part.size):
            yield product_of(word, part, said, price)


def without(part: Part, end: str) -> Part:
    """A part of whose product one end was left away."""
    return replace(part, changes=(*part.changes, f"the factor {end} should not be there"), cost=part.cost + TOO_MUCH)


def other_slopes(left: Part, right: Part, words: Sequence[Part]) -> Iterator[Part]:
    """A slope in place of two factors: a (1 − a) is the slope of another function."""
    for word in words:
        if "'" in word.text and left.size == right.size == word.size:
            said = f"{word.text} stands where {left.operand(PRODUCT)} * {right.operand(TIGHT)} stood"
            yield replace(word, changes=(said,), cost=OTHER_FACTOR + 1)


def entrywise(left: Part, right: Part, said: Iterable[str], price: int) -> Part:
    """left * right."""
    text = f"{left.operand(PRODUCT)} * {right.operand(TIGHT)}"
    a, b = left.value, right.value
    a, b = (number_like(a, b), b) if a.ndim < b.ndim else (a, number_like(b, a) if b.ndim < a.ndim else b)
    return Part(text, PRODUCT, a * b, (*left.changes, *right.changes, *said), left.cost + right.cost + price)


def product_of(left: Part, right: Part, said: Iterable[str], price: int) -> Part:
    """left @ right."""
    text = f"{left.operand(PRODUCT)} @ {right.operand(TIGHT)}"
    changes = (*left.changes, *right.changes, *said)
    return Part(text, PRODUCT, left.value @ right.value, changes, left.cost + right.cost + price)


def fits(left: Shape, right: Shape) -> bool:
    """Whether two matrices can be multiplied, and are not too large to be tried."""
    return len(left) == len(right) == 2 and left[1] == right[0] and left[0] * right[1] <= MOST_ENTRIES


def turned(part: Part) -> Part:
    """A part transposed."""
    text = part.operand(TIGHT)
    text = text.removesuffix(".T") if text.endswith(".T") else f"{text}.T"
    return replace(part, text=text, binds=TIGHT, value=transposed(part.value))
