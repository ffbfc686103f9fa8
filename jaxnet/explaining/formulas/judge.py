"""Is a formula right? Its shapes, the first misfit, and which of the network's quantities it is or should be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxnet.explaining.derive import Derivation, chain_of
from jaxnet.explaining.expressions import written
from jaxnet.explaining.formulas.evaluate import Misfit, Scope, Shape, Value, evaluate
from jaxnet.explaining.formulas.parse import Node, parse
from jaxnet.explaining.formulas.repair import Repair, repair
from jaxnet.explaining.formulas.scope import scope_of
from jaxnet.explaining.model import Line
from jaxnet.explaining.notation import Notation
from jaxnet.explaining.numbers import one, shape
from jaxnet.explaining.observe import Observed

NEAR = 2e-5  # of the largest entry: float32's values put together in float64


@dataclass(frozen=True)
class Operand:
    """A factor in the text of a formula, and its shape."""

    start: int
    end: int
    shape: Shape


@dataclass(frozen=True)
class Fault:
    """The first misfit: from where to where its operator's operands stand, their shapes, and why they do not fit."""

    start: int
    end: int
    operator: str
    left: Shape
    right: Shape
    why: str


@dataclass(frozen=True)
class Trial:
    """What is known of a formula.

    verdict: "right", "value" (shapes fit, the value is none of the network's), "misfit", or "shapes" (only shapes
    were given, and they fit). quantity: the line that it is, or was compared with. words: what is told of it.
    """

    formula: str
    operands: tuple[Operand, ...]
    fault: Fault | None
    verdict: str
    quantity: str
    shape: Shape | None
    value: np.ndarray | None
    words: tuple[str, ...]
    repair: Repair | None = None


def try_formula(text: str, observed: Observed, derivation: Derivation, notation: Notation) -> Trial:
    """What a formula of one's own gives at this network's values.

    Raises `FormulaError` where it cannot be read, or names what the network does not have.
    """
    chain = chain_of(observed, notation)
    scope = scope_of(chain, derivation)
    node = parse(text)
    seen: list[tuple[Node, Shape]] = []
    lines = (*derivation.backward, *derivation.forward)
    try:
        value = evaluate(node, scope, text, seen)
    except Misfit as misfit:
        found = repair(node, scope, text, derivation)
        fault = Fault(
            misfit.node.parts[0].start,
            misfit.node.parts[1].end,
            misfit.node.text,
            misfit.left,
            misfit.right,
            misfit.why,
        )
        rest = operands(node, scope, text)
        words = (misfit.why,)
        return Trial(text, rest, fault, "misfit", found.quantity if found else "", None, None, words, found)
    shapes = tuple(Operand(each.start, each.end, size) for each, size in seen)
    if value.array is None:
        return of_shapes(text, shapes, value, lines, scope)
    right = rightly(text, shapes, value, lines, scope, derivation)
    if right is not None:
        return right
    return wrongly(text, shapes, value, lines, scope, repair(node, scope, text, derivation), derivation)


def operands(node: Node, scope: Scope, text: str) -> tuple[Operand, ...]:
    """All operands of a formula that does not fit together, each with its shape."""
    seen: list[tuple[Node, Shape]] = []

    def walk(part: Node) -> None:
        if part.kind in ("binary", "minus"):
            for each in part.parts:
                walk(each)
            return
        try:
            evaluate(part, scope, text, seen)
        except Misfit:
            for each in part.parts:
                walk(each)

    walk(node)
    return tuple(Operand(each.start, each.end, size) for each, size in seen)


def of_shapes(text: str, shapes: tuple[Operand, ...], value: Value, lines: tuple[Line, ...], scope: Scope) -> Trial:
    """Shapes alone, which fit."""
    like = [line.key for line in lines if scope.values[line.key].shape == value.shape]
    said = f"the shapes fit and give {shape(value.shape)}, the shape of {', '.join(like) or 'nothing here'}"
    return Trial(
        text, shapes, None, "shapes", "", value.shape, None, (f"{said}: whether the value is right they do not say",)
    )


def quantities_of(lines: tuple[Line, ...], scope: Scope, derivation: Derivation) -> dict[str, tuple[str, np.ndarray]]:
    """The network's quantities by key: symbol and value."""
    found = {line.key: (written(line.left), scope.values[line.key]) for line in lines}
    return found | {"C": (written(derivation.header.cost_left), scope.values["C"])}


def rightly(
    text: str, shapes: tuple[Operand, ...], value: Value, lines: tuple[Line, ...], scope: Scope, derivation: Derivation
) -> Trial | None:
    """A formula that gives one of the network's quantities; None for any other."""
    array = np.asarray(value.array)
    for key, (symbol, expected) in quantities_of(lines, scope, derivation).items():
        if same(array, expected):
            rule = next((line.rule for line in lines if line.key == key and line.rule), "")
            backward = any(line.key == key and line.ulp is not None for line in lines)
            known_as = f" ({rule})" if rule else ""
            said = f"right: this is {symbol}{known_as}{', as jax.grad has it' if backward else ''}"
            return Trial(text, shapes, None, "right", key, value.shape, array, (said,))
    return None


def wrongly(
    text: str, shapes: tuple[Operand, ...], value: Value, lines: tuple[Line, ...], scope: Scope, mended: Repair | None,
    derivation: Derivation,
) -> Trial:  # fmt: skip
    """A formula whose shapes fit and whose value is none of the network's, against the one that it should be."""
    array = np.asarray(value.array)
    quantities = quantities_of(lines, scope, derivation)
    for key, (symbol, expected) in quantities.items():
        told = nearly(array, expected, symbol)
        if told:
            return Trial(text, shapes, None, "value", key, value.shape, array, (told,), mended)
    alike = {key: each for key, each in quantities.items() if each[1].shape == array.shape}
    errors = {line.key for line in lines if line.ulp is not None}
    alike = {key: each for key, each in alike.items() if key in errors} or alike
    if mended is not None and mended.quantity in alike:
        alike = {mended.quantity: alike[mended.quantity]}
    if not alike:
        said = f"the shapes fit and give {shape(value.shape)}, the shape of none of the network's quantities"
        return Trial(text, shapes, None, "value", "", value.shape, array, (said,), mended)
    key = max(alike, key=lambda each: cosine(array, alike[each][1]))
    symbol, expected = alike[key]
    return Trial(text, shapes, None, "value", key, value.shape, array, (apart(array, expected, symbol),), mended)


def same(array: np.ndarray, expected: np.ndarray) -> bool:
    """Whether two arrays are one but for float32's rounding."""
    if array.shape != expected.shape and not (array.size == expected.size == 1):
        return False
    scale = float(np.abs(expected).max(initial=0))
    return bool(np.all(np.abs(array.reshape(expected.shape) - expected) <= NEAR * max(scale, 1e-30)))


def nearly(array: np.ndarray, expected: np.ndarray, symbol: str) -> str:
    """A quantity that the value is a multiple of, or the transpose of."""
    if array.ndim == 2 and array.shape != expected.shape and same(array.T, expected):
        return f"the value is {symbol} transposed, {shape(array.shape)} for {shape(expected.shape)}"
    if array.shape == expected.shape and array.size > 1 and np.any(expected):
        ratio = float(np.vdot(expected, array) / np.vdot(expected, expected))
        if ratio and same(array / ratio, expected):
            return f"the shapes fit, but the value is {one(ratio)} times {symbol}"
    return ""


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The cosine between two arrays; 0 where one is 0."""
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.vdot(a, b) / lengths) if lengths and np.isfinite(lengths) else 0.0


def apart(array: np.ndarray, expected: np.ndarray, symbol: str) -> str:
    """How far a value is from the quantity that it has the shape of."""
    if not np.isfinite(array).all():
        return f"the shapes fit {symbol}'s, {shape(array.shape)}, but the value is not finite"
    difference = np.abs(array - expected)
    at = np.unravel_index(int(np.argmax(difference)), array.shape)
    place = ",".join(str(int(i) + 1) for i in at)
    return (
        f"the shapes fit, {shape(array.shape)}, but the value is wrong: compared with {symbol}, entry ({place}) is "
        f"{one(float(array[at]))} for {one(float(expected[at]))}, cosine {one(cosine(array, expected), 3)}"
    )
