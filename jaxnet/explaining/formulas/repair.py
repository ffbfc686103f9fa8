"""The nearest formula that gives one of the network's quantities.

The factors of a product are joined anew one after the other: by @ from either side, transposed or not, or entry by
entry. Where no way of joining them gives a quantity of the network, one factor is replaced by another of its shape, or
one is added. Of all ways that are right the one with the fewest changes is offered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from itertools import product as combinations

import numpy as np

from jaxnet.explaining.expressions import written
from jaxnet.explaining.formulas.evaluate import Misfit, Scope, Shape, evaluate
from jaxnet.explaining.formulas.parse import FormulaError, Node
from jaxnet.explaining.model import Derivation
from jaxnet.explaining.numbers import shape as shape_text

MOST = 6  # factors; more are not put together anew
MOST_ENTRIES = 1 << 16  # of any product on the way
MOST_TRIES = 400  # of other factors put in
NEAR = 2e-5
SUM, PRODUCT, TIGHT = range(3)  # how a part's text binds


@dataclass(frozen=True)
class Repair:
    """A formula that is right: its text, the quantity that it gives, that one's symbol, and what was changed."""

    formula: str
    quantity: str
    symbol: str
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """A factor, or several joined: the text, how tightly it binds, shape, value, and the changes made."""

    text: str
    binds: int
    shape: Shape
    array: np.ndarray | None
    changes: tuple[str, ...] = ()
    cost: int = 0

    def operand(self, least: int) -> str:
        """The text, in brackets where it binds more loosely than `least`."""
        return f"({self.text})" if self.binds < least else self.text


Parts = list[tuple[str, Part]]  # each with the operator before it


@np.errstate(all="ignore")
def repair(node: Node, scope: Scope, text: str, derivation: Derivation) -> Repair | None:
    """The nearest right formula, or None where there is none.

    Of shapes alone, quantities of the network that have these shapes are put in.
    """
    parts = grouped(factors(node), scope, text)
    if parts is None or not 1 <= len(parts) <= MOST:
        return None
    targets = {line.key: scope.values[line.key] for line in derivation.backward}
    symbols = {line.key: written(line.left) for line in derivation.backward}
    words = vocabulary(scope)
    if any(part.array is None for _, part in parts):
        return named_shapes(parts, targets, symbols, words)
    found = nearest(parts, targets)
    apart = grouped(factors(node), scope, text, merged=False)
    if found is None and apart is not None and len(apart) <= MOST:
        found = min(
            (each for other in islice(varied(apart, words), MOST_TRIES) if (each := nearest(other, targets))),
            key=lambda each: each[0].cost,
            default=None,
        )
    if found is None or found[0].cost == 0:
        return None
    joined, key = found
    return Repair(joined.text, key, symbols[key], joined.changes)


def factors(node: Node) -> list[tuple[str, Node]]:
    """A product's factors, each with the operator before it."""
    if node.kind == "binary" and node.text in ("@", "*"):
        left, right = node.parts
        behind = factors(right)
        return [*factors(left), (node.text, behind[0][1]), *behind[1:]]
    return [("", node)]


def grouped(found: list[tuple[str, Node]], scope: Scope, text: str, merged: bool = True) -> Parts | None:
    """The factors with their values; where `merged`, those multiplied entry by entry at the beginning are one."""
    parts: Parts = []
    for operator, node in found:
        try:
            value = evaluate(node, scope, text, [])
        except (Misfit, FormulaError):
            return None
        own = text[node.start : node.end]
        sums = node.kind == "minus" or (node.kind == "binary" and node.text in "+-")
        binds = TIGHT if own.startswith("(") and own.endswith(")") else SUM if sums else TIGHT
        part = Part(own, PRODUCT if node.kind == "binary" and not sums else binds, value.shape, value.array)
        if (
            merged
            and operator == "*"
            and len(parts) == 1
            and part.shape == parts[0][1].shape
            and part.array is not None
        ):
            last = parts[0][1]
            if last.array is not None:
                words = f"{last.operand(PRODUCT)} * {part.operand(TIGHT)}"
                parts[0] = ("", Part(words, PRODUCT, part.shape, last.array * part.array))
                continue
        parts.append((operator, part))
    return parts


def nearest(parts: Parts, targets: dict[str, np.ndarray]) -> tuple[Part, str] | None:
    """The way of joining the factors with the fewest changes whose value is one of the targets, and which."""
    best: tuple[Part, str] | None = None
    limit = [np.inf]
    for joined in ways(parts, limit):
        key = next((key for key, expected in targets.items() if is_value(joined, expected)), None)
        if key is not None:
            best, limit[0] = (joined, key), joined.cost
    return best


def is_value(part: Part, expected: np.ndarray) -> bool:
    """Whether a part's value is this, and not all 0."""
    if part.array is None or part.shape != expected.shape:
        return False
    scale = float(np.abs(expected).max(initial=0))
    return scale > 0 and bool(np.all(np.abs(part.array - expected) <= NEAR * scale))


# ------------------------------------------------------------------------------------------------ joining


def ways(parts: Parts, limit: list[float]) -> Iterator[Part]:
    """Every way of joining the factors in their order, each from the left or the right.

    limit: what none may cost, which may fall meanwhile.
    """

    def join(so_far: Part, i: int) -> Iterator[Part]:
        if so_far.cost >= limit[0]:
            return
        if i == len(parts):
            yield so_far
            return
        for joined in pairs(so_far, *parts[i]):
            yield from join(joined, i + 1)

    first = parts[0][1]
    yield from join(first, 1)
    if len(first.shape) == 2:
        yield from join(replace(transposed(first), changes=(is_transposed(first),), cost=2), 1)


def pairs(left: Part, operator: str, right: Part) -> Iterator[Part]:
    """What two parts can be joined to."""
    changes, cost = (*left.changes, *right.changes), left.cost + right.cost
    if left.shape == right.shape or () in (left.shape, right.shape):
        text = f"{left.operand(PRODUCT)} * {right.operand(TIGHT)}"
        said = () if operator == "*" else (f"{right.text} goes in entry by entry: its Jacobian is diagonal",)
        array = None if left.array is None or right.array is None else left.array * right.array
        yield Part(text, PRODUCT, left.shape or right.shape, array, (*changes, *said), cost + (operator != "*"))
    for turned in (False, True):
        other = transposed(right) if turned else right
        for behind in (True, False):
            first, second = (left, other) if behind else (other, left)
            if not fits(first.shape, second.shape):
                continue
            said = [is_transposed(right)] if turned else []
            said += [] if behind else [f"{other.text} goes before what it multiplies"]
            said += [f"{right.text} is multiplied as a matrix"] if operator == "*" else []
            more = 2 * turned + 2 * (not behind) + (operator == "*")
            text = f"{first.operand(PRODUCT)} @ {second.operand(TIGHT)}"
            array = None if first.array is None or second.array is None else first.array @ second.array
            yield Part(text, PRODUCT, (first.shape[0], second.shape[1]), array, (*changes, *said), cost + more)


def fits(left: Shape, right: Shape) -> bool:
    """Whether two matrices can be multiplied, and are not too large to be tried."""
    if len(left) != 2 or len(right) != 2 or left[1] != right[0]:
        return False
    return left[0] * right[1] <= MOST_ENTRIES


def is_transposed(part: Part) -> str:
    """What is said of a factor that is transposed."""
    return f"{part.text} is transposed"


def transposed(part: Part) -> Part:
    """A factor transposed; a bare shape turned around."""
    text = part.operand(TIGHT)
    if part.array is None and "×" in text:
        text = shape_text(part.shape[::-1])
    else:
        text = text.removesuffix(".T") if text.endswith(".T") else f"{text}.T"
    turned = None if part.array is None else part.array.T
    return Part(text, TIGHT, part.shape[::-1], turned, part.changes, part.cost)


# ------------------------------------------------------------------------------------------ other factors


def vocabulary(scope: Scope) -> list[Part]:
    """What may be put in: slopes, δ, W and what goes in and out of layers, also transposed."""
    found = []
    for z, layer in scope.activations.items():
        name = layer.name.replace(" ", "_")
        found.append((f"{name}'({z})", applied_slope(scope, z)))
    keys = [key for key in scope.values if key[0] in "xaW" or key.startswith("delta")]
    keys.sort(key=lambda key: "dWax".index(key[0]))
    found += [(key, scope.values[key]) for key in keys if scope.values[key].ndim == 2]
    parts = [Part(text, TIGHT, value.shape, value) for text, value in found]
    return [each for part in parts for each in (part, transposed(part))]


def applied_slope(scope: Scope, z: str) -> np.ndarray:
    """g′(z) of a layer."""
    node = Node("call", "s'", 0, 0, (Node("name", z, 0, 0),))
    return np.asarray(evaluate(node, scope, z, []).array)


def varied(parts: Parts, words: Sequence[Part]) -> Iterator[Parts]:
    """The factors with one replaced by another of its shape, or one more."""
    for i, (operator, part) in enumerate(parts):
        for word in words:
            if len(parts) > 1 and word.shape == part.shape and word.text != part.text:
                said = f"{word.text} stands where {part.text} stood"
                cost = 4 + 2 * word.text.startswith("delta")  # rather what is missing than the answer itself
                yield [*parts[:i], (operator, replace(word, changes=(said,), cost=cost)), *parts[i + 1 :]]
    for i in range(1, len(parts) + 1):
        for word in words:
            added = replace(word, changes=(f"{word.text} was missing",), cost=4)
            for operator in ("*", "@"):
                yield [*parts[:i], (operator, added), *parts[i:]]


def named_shapes(
    parts: Parts, targets: dict[str, np.ndarray], symbols: dict[str, str], words: Sequence[Part]
) -> Repair | None:
    """Of shapes alone: the network's quantities that have them, joined so that they give one of its gradients."""
    choices = [[word for word in words if word.shape == part.shape] for _, part in parts]
    found: tuple[Part, str, str] | None = None
    for chosen in islice(combinations(*choices), MOST_TRIES):
        named = [(operator, word) for (operator, _), word in zip(parts, chosen, strict=True)]
        each = nearest(named, targets)
        if each is not None and (found is None or each[0].cost < found[0].cost):
            found = (*each, ", ".join(word.text for word in chosen))
    if found is None:
        return None
    joined, key, taken = found
    return Repair(joined.text, key, symbols[key], (f"read as {taken}", *joined.changes))
