"""The value of an equation by its text: a vector is a column, ⊙ and + take equal shapes, nothing is broadcast.

An equation of a sequence holds at each position: then every symbol that has the leading axes of the result stands for
its part there, aₜ, and the others for themselves. All positions are computed at once, along leading axes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from jaxnet.explaining import expressions as ex
from jaxnet.explaining.kinds import INDICES
from jaxnet.explaining.notation import ExplainError
from jaxnet.explaining.numbers import shape
from jaxnet.explaining.recording import FUNCTIONS
from jaxnet.explaining.transcription import EXPECTED, REDUCING, SEVERAL, SIGNS, at, rebuilt, transposed

Lead = tuple[int, ...]
AXES = {index: axes for axes, index in INDICES.items()} | {"i": 1}


class MisfitError(Exception):
    """Shapes that do not go together, or a function that is not known: an equation that has no value as it stands."""


def entrywise(name: str, slope: bool = False) -> Callable[[np.ndarray], np.ndarray]:
    """A function of `jax.nn` or `jax.numpy`, or its derivative, in float64."""
    found = getattr(jax.nn, name, None) or getattr(jax.numpy, name, None) or getattr(jax.lax, name)

    def of(values: np.ndarray) -> np.ndarray:
        with jax.enable_x64(True):
            run = jax.grad(lambda values: found(values).sum()) if slope else found
            return np.asarray(run(jax.numpy.asarray(values)))

    return of


NUMPY: dict[str, Callable] = {name: getattr(np, name) for name in ("exp", "sqrt", "tanh", "abs", "sign", "sin", "cos")}
NUMPY |= {"ln": np.log, "sigmoid": lambda z: 1 / (1 + np.exp(-z)), "relu": lambda z: np.maximum(z, 0)}
COMPARED: dict[str, Callable] = {sign: getattr(np, name) for name, sign in SIGNS.items()}
LISTED, REDUCED = ({name: getattr(np, name) for name in names} for names in (SEVERAL, REDUCING))


@dataclass(frozen=True)
class Values:
    """The values of symbols.

    forms: the same numbers in the other shapes that they have. fixed: the symbols that are the same at every position.
    rows: whether vectors are rows. indexed: the symbols of another step, whose index says which. broadcast: whether a
    vector meets every row of a matrix, and one number for each row its row, as in NumPy.
    """

    known: dict[ex.Expression, np.ndarray]
    fixed: frozenset[ex.Expression]
    rows: bool = False
    forms: dict[ex.Expression, list[np.ndarray]] = field(default_factory=dict)
    indexed: frozenset[ex.Expression] = frozenset()
    broadcast: bool = False

    def part(self, symbol: ex.Expression, lead: Lead) -> tuple[np.ndarray | None, int]:
        """The form in which a symbol stands for its part at each position, and how many of these axes it has.

        A mask of queries and keys has only the last of them, for every head. None and 0: it stands for itself.
        """
        if not lead or symbol in self.fixed:
            return None, 0
        found = [each for each in self.all_forms(symbol) if each.shape[: len(lead)] == lead]
        if found:
            return min(found, key=np.ndim), len(lead)
        value = self.known[symbol]
        return (value, value.ndim) if 2 <= value.ndim < len(lead) and value.shape == lead[-value.ndim :] else (None, 0)

    def by_groups(self, places: int, groups: int, channels: int) -> Values:
        """The same with the groups in front, of values of so many places, groups and channels in each."""
        shapes = ((places, groups, channels), (1, groups, 1))
        moved = {}
        for symbol in self.known:
            forms = [each for each in self.all_forms(symbol) if each.shape in shapes]
            moved[symbol] = np.moveaxis(forms[0], 1, 0) if forms else self.known[symbol]
        return replace(self, known=moved, forms={})

    def all_forms(self, symbol: ex.Expression) -> list[np.ndarray]:
        """A symbol's value in every shape that it has."""
        return [self.known[symbol], *self.forms.get(symbol, ())]

    def matrix(self, value: np.ndarray, axes: int = 0) -> np.ndarray:
        """An array as matrices: a vector as a column or a row, a number as 1×1, more axes than two as one vector."""
        lead, rest = value.shape[:axes], value.shape[axes:]
        if len(rest) == 2:
            return value
        return value.reshape(*lead, 1, -1) if self.rows else value.reshape(*lead, -1, 1)

    def of(self, expression: ex.Expression, lead: Lead = ()) -> np.ndarray:
        """The value of an expression at all positions. Raises `MisfitError` where it has none."""
        if expression in self.known:
            part, axes = self.part(expression, lead)
            if part is None:
                return self.matrix(self.known[expression])
            return self.matrix(part if axes == len(lead) else np.broadcast_to(part, lead), len(lead))
        match expression:
            case ex.Transposed(of):
                return self.of(of, lead).swapaxes(-1, -2)
            case ex.Product(factors, sign):
                join = matrix_product if sign == "" else lambda left, right: np.multiply(*self.fitting(left, right))
                return functools.reduce(join, (self.of(each, lead) for each in factors))
            case ex.Sum(terms):
                values = (self.of(each, lead) for each in terms)
                return functools.reduce(lambda left, right: np.add(*self.fitting(left, right)), values)
            case ex.Minus(of):
                return -1.0 * self.of(of, lead)
            case ex.Fraction(above, below):
                return np.divide(*self.fitting(self.of(above, lead), self.of(below, lead)))
            case ex.Power(of, exponent):
                return self.of(of, lead) ** float(exponent)
            case ex.Comparison(left, sign, right):
                return 1.0 * COMPARED[sign](*self.fitting(self.of(left, lead), self.of(right, lead)))
            case ex.BigSum(index, of):
                return self.over(index, of, lead, np.sum)
            case ex.Call(ex.Name(name, below=index), of) if name in REDUCED and not isinstance(of, ex.Listed):
                return self.over(index, of, lead, REDUCED[name])
            case ex.Call(function, of) if function == EXPECTED:
                return self.of(of, self.largest(of).shape[:1]).mean(0)
            case ex.Call(function, of):
                return self.called(function, of, lead)
            case ex.Listed(parts):
                values = [self.of(each, lead) for each in parts]
                values = [np.broadcast_to(each, (*lead, *each.shape[-2:])) for each in values]
                return np.concatenate(values, -1 if self.rows else -2)
            case ex.Entry(of, index):
                return self.rows_of(of, index, lead)
        raise MisfitError(f"{type(expression).__name__} has no value")

    def largest(self, expression: ex.Expression) -> np.ndarray:
        """The value with most axes among the symbols that differ from position to position."""
        return max(
            (self.known[each] for each in symbols(expression, self.known) if each not in self.fixed), key=np.ndim
        )

    def over(self, index: str, of: ex.Expression, lead: Lead, reduce: Callable) -> np.ndarray:
        """A sum or a mean: of all entries, or over the positions of an index."""
        if not index:
            return reduce(self.of(of, lead), axis=(-2, -1), keepdims=True)
        if lead:
            raise MisfitError("a sum over positions at each position")
        axes = AXES[index]
        inner = self.largest(of).shape[:axes]
        value = self.of(of, inner)
        if value.ndim == 2:
            value = np.broadcast_to(value, (*inner, *value.shape))
        return reduce(value, axis=tuple(range(axes)))

    def called(self, function: ex.Name, of: ex.Expression, lead: Lead) -> np.ndarray:
        """A function's value."""
        name = function.key or function.base
        if isinstance(of, ex.Listed):
            if name not in LISTED:
                raise MisfitError(f"{name} is not known")
            first, *others = (self.of(each, lead) for each in of.parts)
            values = [first, *(self.fitting(first, each)[1] for each in others)]
            return LISTED[name](*values)
        value = self.of(of, lead)
        if name in ("softmax", "log_softmax"):
            shares = softmax(value, -1 if value.shape[-1] > 1 else -2)
            return shares if name == "softmax" else np.log(shares)
        if name.endswith("'"):
            return entrywise(name.removesuffix("'"), slope=True)(value)
        if name not in NUMPY and name not in FUNCTIONS.values():
            raise MisfitError(f"{name} is not known")
        return NUMPY[name](value) if name in NUMPY else entrywise(name)(value)

    def fitting(self, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Two values of one shape, or of which one is a number, or is broadcast."""
        first, second = left.shape[-2:], right.shape[-2:]
        if first == second or (1, 1) in (first, second):
            return left, right
        if self.broadcast and second == (first[1], 1):
            return left, right.swapaxes(-1, -2)
        if self.broadcast and first == (second[1], 1):
            return left.swapaxes(-1, -2), right
        if self.broadcast and first[0] == second[0] and 1 in (first[1], second[1]):
            return left, right
        raise MisfitError("shapes differ")

    def rows_of(self, of: ex.Expression, index: ex.Expression, lead: Lead) -> np.ndarray:
        """W[i]: the row that an index names, as a vector; v[1…3]: entries of a vector."""
        if isinstance(index, ex.Words) and "…" in index.text:
            first, last = map(int, index.text.split("…"))
            return self.of(of, lead)[..., first - 1 : last, :]
        table, which = self.known.get(of), self.known.get(index)
        if table is None or which is None or not np.issubdtype(which.dtype, np.integer):
            raise MisfitError("an entry of what has no rows")
        if which.size and not -len(table) <= which.min() <= which.max() < len(table):
            raise ExplainError(
                f"{ex.written(index)} counts the entries of {ex.written(of)}, from 0 to {len(table) - 1}, got "
                f"{which.max()}: draw it among them, by --inputs with int32[]<{len(table)}"
            )
        return self.matrix(table[which], len(lead))

    def laid(self, expression: ex.Expression, lead: Lead) -> ex.Expression:
        """The expression with products in the order of the notation: x Wᵀ of a column x is W x."""
        match expression:
            case ex.Product((left, right), ""):
                left, right = self.laid(left, lead), self.laid(right, lead)
                first, second = self.of(left, lead).shape[-2:], self.of(right, lead).shape[-2:]
                before = not self.is_matrix(left, lead) and self.is_matrix(right, lead) and not self.rows
                if (first == (1, 1) and second[0] == 1 and before) or (
                    first[1] != second[0] and (1, 1) not in (first, second)
                ):  # one number before a matrix is a vector's one entry
                    if first[1] == 1 and first[0] == second[0]:
                        return ex.Product((transposed(right), left))
                    if second[0] == 1 and first[1] == second[1]:
                        return ex.Product((right, transposed(left)))
                return ex.Product((left, right))
            case ex.BigSum(index, of) if index and not lead:
                return replace(expression, of=self.laid(of, self.largest(of).shape[: AXES[index]]))
        return rebuilt(expression, lambda each: self.laid(each, lead)) if expression not in self.known else expression

    def is_matrix(self, of: ex.Expression, lead: Lead) -> bool:
        """Whether a symbol, or its transpose, is one matrix at all positions, and no vector."""
        symbol = of.of if isinstance(of, ex.Transposed) else of
        return symbol in self.known and self.known[symbol].ndim == 2 and self.part(symbol, lead)[0] is None

    def subscripted(self, expression: ex.Expression, lead: Lead, index: str) -> ex.Expression:
        """The expression with an index at every symbol that stands for its part at a position."""
        if expression in self.indexed:
            return expression
        if expression in self.known:
            _, axes = self.part(expression, lead)
            return at(expression, index if axes == len(lead) else index[-axes:]) if axes else expression
        match expression:
            case ex.Call(function) if function == EXPECTED:
                return expression
            case ex.BigSum(own, of) | ex.Call(ex.Name(below=own), of) if own in AXES and own:
                inner = self.largest(of).shape[: AXES[own]]
                return replace(expression, of=self.subscripted(of, inner, own))
        return rebuilt(expression, lambda each: self.subscripted(each, lead, index))


def symbols(expression: ex.Expression, known: Container[ex.Expression]) -> Iterator[Any]:
    """The symbols in an expression."""
    if expression in known:
        yield expression
    else:
        for each in expression.children():
            yield from symbols(each, known)


def softmax(z: np.ndarray, axis: int) -> np.ndarray:
    """exp(z) over its sum along an axis."""
    raised = np.exp(z - z.max(axis, keepdims=True))
    return raised / raised.sum(axis, keepdims=True)


def matrix_product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """A matrix product; a number scales."""
    if left.shape[-1] == right.shape[-2]:
        return left @ right
    if (1, 1) in (left.shape[-2:], right.shape[-2:]):
        return left * right
    raise MisfitError("a matrix product takes as many columns as rows")


# ------------------------------------------------------------------------------------------- shapes in words


def sizes_of(values: Values, right: ex.Expression, lead: Lead, value: np.ndarray) -> str:
    """The shapes of a matrix product in words, with how many times or terms; of other equations the result's."""
    over, inner = "", right
    if any(isinstance(each, ex.BigSum) for each in symbols(right, values.known)):
        return shape(value.shape)  # a product with indices: they say it
    if isinstance(right, ex.BigSum) and right.index:
        own = [each for each in symbols(right.of, values.known) if each not in values.fixed]
        lead = max((values.known[each] for each in own), key=np.ndim).shape[: AXES[right.index]]
        inner, over = right.of, f", {int(np.prod(lead))} terms"
    elif lead:
        over = f", {int(np.prod(lead))} times"
    product = first_product(inner)
    if product is None:
        own = shape(value.shape)
        return f"{own}{over}" if "terms" in over else own
    parts = [values.of(each, lead).shape[-2:] for each in product.factors]
    whole = [values.is_matrix(each, lead) for each in product.factors]  # a vector is a matrix of one row or column
    texts = [shape(tuple(n for n in each if n != 1 or keep)) for each, keep in zip(parts, whole, strict=True)]
    ends = ((parts[0][0], whole[0]), (parts[-1][1], whole[-1]))
    result = shape(tuple(n for n, keep in ends if n != 1 or keep))
    return f"{'·'.join(texts)} → {result}{over}"


def first_product(expression: ex.Expression) -> ex.Product | None:
    """The matrix product that an equation is, beside terms and factors of its entries."""
    match expression:
        case ex.Product(sign=""):
            return expression
        case ex.Product(factors=parts) | ex.Sum(terms=parts):
            return next((found for each in parts if (found := first_product(each)) is not None), None)
    return None
