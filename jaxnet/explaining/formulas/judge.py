"""Judges a formula: its shapes, the first misfit, and the network's quantity that it gives or should give."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxnet.explaining.derive import Derivation, chain_of
from jaxnet.explaining.expressions import Frozen, written
from jaxnet.explaining.formulas.formula_values import (
    FormulaEvaluation,
    Misfit,
    Shape,
    Symbols,
    is_number,
    size,
    transposed,
)
from jaxnet.explaining.formulas.nearest_formula import NearestFormula, repair
from jaxnet.explaining.formulas.parse import FormulaError, called, parse
from jaxnet.explaining.formulas.quantities import Quantity, at_the_example, capital, near, scope_of
from jaxnet.explaining.lines import Chain
from jaxnet.explaining.notation import Notation
from jaxnet.explaining.numbers import array_lines, one, shape
from jaxnet.explaining.observe import Observed


class Operand(NamedTuple):
    """A factor in the text of a formula, and its shape."""

    start: int
    end: int
    shape: Shape


class Fault(NamedTuple):
    """The first misfit: from where to where its operator's operands stand, their shapes, and why they do not fit."""

    start: int
    end: int
    operator: str
    left: Shape
    right: Shape
    why: str


class Trial(Frozen):
    """The verdict on a formula.

    verdict: "right", "value" (shapes fit, the value is none of the network's), "misfit", or "shapes" (only shapes
    were given, and they fit). quantity: the key of the quantity that it is, or was compared with.
    words: the sentence to print.
    """

    formula: str
    operands: tuple[Operand, ...]
    fault: Fault | None
    verdict: str
    quantity: str
    shape: Shape | None
    value: np.ndarray | None
    words: tuple[str, ...]
    repair: NearestFormula | None = None


def quantities_of(derivation: Derivation, scope: Symbols, batch: bool) -> list[Quantity]:
    """The network's quantities; of a formula that names a batch those of the batch."""
    found, cost = [], written(derivation.header.cost_left)
    symbol_of_error = "dz" if derivation.header.notation == "ng" else "δ"
    for line in (*derivation.backward, *derivation.forward):
        key, symbol, error = line.key, written(line.left), line.ulp is not None
        if not batch:
            said = f" ({line.rule})" if line.rule else ""
            found.append(Quantity(key, symbol, scope.values[key], error, said + ", as jax.grad has it" * error))
        elif (mean := scope.values.get(f"mean {key}")) is not None:
            summed = mean * scope.values["m"][:, None, None]
            before = f"1/m of it is that of the mean, unless 1/m stands on each {symbol_of_error} already"
            found.append(Quantity(key, symbol, mean, error, f" of the mean cost, 1/m Σ {cost}"))
            found.append(Quantity(key, symbol, summed, error, f" of the summed cost: {before}"))
        elif (name := capital(key)) in scope.batch:
            found.append(Quantity(name, name, scope.values[name], error, f", {symbol} of each example"))
    last = derivation.forward[-1]
    if (error_key := f"d{last.key}") in scope.values and not batch and all(each.key != error_key for each in found):
        found.append(Quantity(error_key, f"∂{cost}/∂{written(last.left)}", scope.values[error_key], True))
    return [*found, Quantity("C", cost, scope.values["mean C" if batch and "mean C" in scope.values else "C"])]


@dataclass(frozen=True, eq=False)
class Tried:
    """A derivation with its quantities at the example and at random draws."""

    derivation: Derivation
    scope: Symbols


def tried_on(
    observed: Observed, derivation: Derivation, notation: Notation, batch: tuple[Any, Any] | None = None
) -> Tried:
    """Prepares a derivation for formulas. batch: (xs, ys), the batch of X, Z2 and dZ2."""
    return Tried(derivation, scope_of(chain_of(observed, notation), derivation, batch))


def named_on_page(chain: Chain, derivation: Derivation) -> dict[str, Any]:
    """The quantities in the order in which a formula is compared with them, and their other names, for the page."""
    _, scope = at_the_example(chain, derivation)
    keys = [each.key for each in quantities_of(derivation, scope, False)]
    return {"keys": keys, "others": scope.others}


@np.errstate(all="ignore")
def try_formula(text: str, subject: Tried) -> Trial:
    """Judges a formula at a network's values.

    Raises `FormulaError` where it cannot be read, or names a quantity that the network does not have.
    """
    derivation, scope = subject.derivation, subject.scope
    formula = parse(text)
    evaluation, parts = FormulaEvaluation(formula, scope), list(ast.walk(formula.tree))
    names = [each.id for each in parts if isinstance(each, ast.Name)]
    keys = [scope.key(name) for name in names]
    batched = not scope.batch.isdisjoint(key for key in keys if key is not None)
    found = quantities_of(derivation, scope, batched)
    wanted = [each for each in found if not formula.target or each.key == scope.key(formula.target)]
    if not wanted:
        raise FormulaError(text, 0, scope.missing(formula.target), len(formula.target))
    words = [
        f"{name} is read as {key}"
        for name, key in dict.fromkeys(zip(names, keys, strict=True))
        if key and not name[-1].isdigit() and name[-1:] != key[-1:]
    ]
    words += [scope.examples] if batched and scope.examples else []
    inverted = {called(each.func) for each in parts if isinstance(each, ast.Call)} & {"inv", "pinv"}
    inverse = [each.answer for each in derivation.answers if inverted and each.key == "inverse"]
    try:
        value = evaluation.of(formula.tree)
    except Misfit as misfit:
        fault = Fault(*formula.span(misfit.node), misfit.sign, misfit.left, misfit.right, misfit.why)
        fix = repair(formula, scope, wanted, batched)
        return Trial(text, operands(evaluation), fault, "misfit", fix.quantity if fix else "", None, None,
                     (misfit.why, *words, *inverse), fix)  # fmt: skip

    def trial(verdict: str, key: str, said: Sequence[str], fix: NearestFormula | None = None) -> Trial:
        shown = None if verdict == "shapes" else np.asarray(value[0])
        return Trial(text, operands(evaluation), None, verdict, key, size(value), shown, tuple(said), fix)

    if "Shape" in names:
        like = ", ".join(each.key for each in found if size(each.value) == size(value)) or "nothing here"
        said = f"the shapes fit and give {shape(size(value))}, the shape of {like}"
        return trial("shapes", "", (said + ": whether the value is right they do not say", *words))
    right = next((each for each in [*wanted, *found] if near(value, each.value)), None)
    if right is not None and right in wanted:
        return trial("right", right.key, (f"right: this is {right.symbol}{right.said}", *words))
    fix = repair(formula, scope, wanted, batched)
    if right is not None:
        return trial("value", right.key, (f"the value is {right.symbol}, not {formula.target}", *words), fix)
    key, said, fine = wrong(value, wanted, fix, scope)
    return trial("right" if fine else "value", key, (said, *words, *inverse), None if fine else fix)


def operands(evaluation: FormulaEvaluation) -> tuple[Operand, ...]:
    """The operands of a formula that have a shape, each with it."""
    found: list[Operand] = []

    def walk(part: ast.expr) -> None:
        match part:
            case ast.BinOp(left, _, right) | ast.Compare(left, _, [right]):
                walk(left)
                walk(right)
            case ast.UnaryOp(_, of) | ast.Attribute(ast.BinOp() as of, "T"):
                walk(of)
            case ast.Constant():
                pass
            case _:
                try:
                    value = evaluation.of(part)
                except Misfit:
                    for each in ast.iter_child_nodes(part):
                        if isinstance(each, ast.expr) and not isinstance(each, ast.Name):
                            walk(each)
                else:
                    found.append(Operand(*evaluation.formula.span(part), size(value)))

    walk(evaluation.formula.tree)
    return tuple(found)


def wrong(
    value: np.ndarray, found: list[Quantity], mended: NearestFormula | None, scope: Symbols
) -> tuple[str, str, bool]:
    """The quantity that a value should be, the verdict in words, and whether only the layout differs."""
    for each in found:
        if value.ndim == 3 and near(transposed(value), each.value):
            vector = 1 in size(value)
            lies = "row, or numerator, layout" if value.shape[1] == 1 else "columns"
            said = f"right in {lies}: its transpose is {each.symbol}" if vector else (
                f"the value is {each.symbol} transposed, {shape(size(value))} for {shape(size(each.value))}"
            )  # fmt: skip
            return each.key, said, vector
        if size(value) == size(each.value) and near(value[:1], each.value[:1]) and np.any(each.value[0]):
            at = int(np.argmax([not near(value[i : i + 1], each.value[i : i + 1]) for i in range(len(value))]))
            said = f"{each.symbol} at this example by chance, and not at others: {apart(value[at], each.value[at])}"
            return each.key, said, False
        ratio = multiple(value, each.value)
        if ratio:
            times = (
                "the sign is turned: it is −"
                if near(np.ones(1), np.full(1, -ratio))
                else f"the value is {one(ratio)} times "
            )
            return each.key, f"the shapes fit, but {times}{each.symbol}", False
    for each in found:
        if each.backward and mended is None and (said := difference(value, each.value, scope)):
            return each.key, f"the shapes fit, but the value is not yet {each.symbol}: {said}", False
    alike = [each for each in found if size(each.value) == size(value)]
    alike = [each for each in alike if each.backward] or alike
    alike = [each for each in alike if mended is not None and each.key == mended.quantity] or alike
    if not alike:
        return "", f"the shapes fit and give {shape(size(value))}, the shape of none of the network's quantities", False
    best = max(alike, key=lambda each: cosine(value[0], each.value[0]))
    if not np.isfinite(value[0]).all():
        said = f"the shapes fit {best.symbol}'s, {shape(size(value))}, but the value is not finite"
        return best.key, said, False
    at = next((i for i in range(len(value)) if not near(value[i : i + 1], best.value[i : i + 1])), 0)
    other = "" if at == 0 else "at other numbers "
    said = f"the shapes fit, {shape(size(value))}, but the value is wrong: {other}compared with {best.symbol}, "
    return best.key, said + apart(value[at], best.value[at]), False


def multiple(value: np.ndarray, expected: np.ndarray) -> float:
    """The number that all of the expected value is multiplied by, the same at every draw; 0 for none."""
    if size(value) != size(expected) or is_number(value):
        return 0.0
    axes = tuple(range(1, value.ndim))
    below = np.nansum(expected * expected, axes)
    at = int(np.argmax(below))
    ratio = float(np.nansum(value[at] * expected[at]) / below[at]) if below[at] else 0.0
    return ratio if ratio and np.isfinite(ratio) and near(value / ratio, expected) else 0.0


def difference(value: np.ndarray, expected: np.ndarray, scope: Symbols) -> str:
    """Rows that are zero and should not be, or the quantity of the network that is to be added; nothing for another."""
    if value.shape != expected.shape or value.ndim != 3:
        return ""
    lost = np.asarray([not np.any(value[:, i]) and np.any(expected[:, i]) for i in range(value.shape[1])])
    kept = np.asarray([near(value[:, i : i + 1], expected[:, i : i + 1]) for i in range(value.shape[1])])
    if lost.any() and np.all(lost | kept):
        rows = ", ".join(str(i + 1) for i in np.flatnonzero(lost))
        return "it is zero" if lost.all() else f"row {rows} is zero"
    for key, other in scope.values.items():
        if key in scope.batch and other.ndim == 3 and (example := column(value, other, scope.rows)):
            return f"it is that of example {example} alone"
        if other.shape == value.shape and near(value * other, expected):
            return f"it is to be multiplied by {key}, entry by entry"
        if other.shape == value.shape and (ratio := multiple(expected - value, other)):
            amount = "" if near(np.abs([ratio]), np.ones(1)) else f"{one(abs(ratio))} times "
            return f"{amount}{key} is to be {'added' if ratio > 0 else 'subtracted'}"
    return ""


def column(value: np.ndarray, batch: np.ndarray, rows: bool) -> int:
    """The example, from 1, whose part of a batch a value is; 0 for none."""
    parts = np.split(batch, batch.shape[1 if rows else 2], 1 if rows else 2)
    return next((i for i, part in enumerate(parts, 1) if part.shape == value.shape and near(part, value)), 0)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The cosine between two arrays; 0 where one is 0."""
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.vdot(a, b) / lengths) if lengths and np.isfinite(lengths) else 0.0


def apart(value: np.ndarray, expected: np.ndarray) -> str:
    """How far a value is from the quantity that it has the shape of."""
    if value.size == 1:
        return f"it is {one(float(value.item()))}; it should be {one(float(expected.item()))}"
    at = np.unravel_index(int(np.argmax(np.abs(value - expected))), value.shape)
    place = ",".join(str(int(i) + 1) for i in at)
    angle = float(np.degrees(np.arccos(np.clip(cosine(value, expected), -1, 1))))
    said = f"entry ({place}) is {one(float(value[at]))}; it should be {one(float(expected[at]))}"
    return f"{said}, and the two are {angle:.0f}° apart" if angle >= 1 else said


# ------------------------------------------------------------------------------------------------- as text


def trial_lines(trial: Trial, digits: int, width: int) -> list[str]:
    """The formula, the shape under each factor, the first misfit or the verdict, and the repair."""
    found = [f"  {trial.formula}", *(f"  {line}" for line in labels(trial))]
    words = list(trial.words)
    if trial.fault is not None:
        found.append(f"  {' ' * trial.fault.start}{'~' * (trial.fault.end - trial.fault.start)}")
        sides = f"{shape(trial.fault.left)} {trial.fault.operator} {shape(trial.fault.right)}"
        words[0] = f"first misfit: {sides} does not fit: {trial.fault.why}"
    found += textwrap.wrap(words[0], width)
    if trial.value is not None:
        flat = trial.value.reshape(-1) if 1 in trial.value.shape else trial.value
        found += [f"  {line}" for line in array_lines(flat, digits, width)]
    found += [line for each in words[1:] for line in textwrap.wrap(each, width)]
    if trial.repair is not None:
        found.append(f"repair: {trial.repair.formula} = {trial.repair.symbol}")
        found += [f"  {change}" for change in trial.repair.changes]
    elif trial.verdict == "misfit":
        found.append("no order, transposition or ⊙ of these factors gives one of the network's quantities")
    return found


def labels(trial: Trial) -> list[str]:
    """The shape of each operand under its middle, on as many lines as they need."""
    rows: list[str] = []
    for operand in sorted(trial.operands):
        text = shape(operand.shape) if operand.shape else "number"
        start = max(0, (operand.start + operand.end - len(text)) // 2)
        for i, row in enumerate(rows):
            if len(row) < start:
                rows[i] = row.ljust(start) + text
                break
        else:
            rows.append(" " * start + text)
    return rows
