"""The chain rule through the lines of a function, the last first.

Each line is differentiated by the rules below; where there is none, the error goes back by the Jacobian of the whole
line. A line whose value is not `jax.grad`'s is shown by value alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np

from jaxnet.explaining.evaluation import AXES, MisfitError
from jaxnet.explaining.expressions import (
    BigSum,
    Call,
    Comparison,
    Derivative,
    Entry,
    Expression,
    Fraction,
    Listed,
    Minus,
    Name,
    Number,
    Power,
    Product,
    SquaredNorm,
    Sum,
    Transposed,
    Words,
    written,
)  # fmt: skip
from jaxnet.explaining.line_jacobians import jacobian_in_words, jacobians
from jaxnet.explaining.model import Line
from jaxnet.explaining.numbers import shape
from jaxnet.explaining.recording import FUNCTIONS, close
from jaxnet.explaining.source_lines import LineWriter
from jaxnet.explaining.transcription import rebuilt, transposed
from jaxnet.explaining.transcription import terms as terms_of

ONE = Number("1")
RULES = {"mean", "max", "min", *FUNCTIONS, *FUNCTIONS.values()}
"""The functions that have a rule here. Of a line with another its whole Jacobian is taken."""


class Backwards:
    """The chain rule through the lines of a recording, the last first."""

    def __init__(self, writer: LineWriter, exact: dict[str, np.ndarray], of: str, last_steps: dict[int, int]):
        self.writer, self.exact, self.of, self.last_steps = writer, exact, of, last_steps
        self.errors: dict[Expression, list[Expression]] = {}
        self.said: dict[Expression, str] = {}

    def lines(self) -> Iterator[Line]:
        """∂C/∂ of each value that a line names and has a float, and of each argument."""
        recording, symbols = self.writer.recording, self.writer.symbols
        self.add(symbols[recording.out], ONE)
        carried: dict[int, Expression] = {}
        for ref in sorted(recording.operations, reverse=True):
            root = recording.root(ref)
            if root != ref or symbols.get(ref) is None:
                continue
            symbol = symbols[ref]
            self.join_parts(ref)
            if (before := self.step_before(symbol)) is not None and ref in recording.slopes:
                yield from (
                    self.line(symbols[last], recording.slopes[last])
                    for last, of in self.last_steps.items()
                    if of == ref and last in recording.slopes and symbols[last] in self.errors
                )
                self.know(self.partial(symbol), recording.slopes[ref])
                carried[ref] = before
            elif ref != recording.out and ref in recording.slopes and recording.varies(ref):
                yield self.line(symbol, recording.slopes[ref])
            if symbol not in self.errors and ref not in recording.slopes:
                continue
            error, right = ONE if ref == recording.out else self.partial(symbol), self.writer.right(ref)
            if right is not None and has_rules(right, self.writer.values().known):
                self.through(right, error, symbol)
            elif ref != recording.out:
                self.by_jacobian(ref, error)
        yield from itertools.starmap(self.carried, carried.items())
        for ref, (kind, path) in recording.given.items():
            if kind == "param" and path[-1].key in self.exact and ref in symbols:
                yield self.line(symbols[ref], self.exact[path[-1].key])

    def join_parts(self, ref: int) -> None:
        """The error at a value that is split: those of its parts, one after the other."""
        recording, symbols = self.writer.recording, self.writer.symbols
        made = recording.operations[ref]
        parts = [each for each, other in recording.operations.items() if other.part and other.args == made.args]
        if made.part and made.name == "split" and ref == parts[0] and all(each in symbols for each in parts):
            whole = symbols.get(recording.root(made.args[0].ref))
            if whole is not None and all(symbols[each] in self.errors for each in parts):
                self.add(whole, Listed(tuple(self.partial(symbols[each]) for each in parts)))

    def partial(self, symbol: Expression) -> Expression:
        """∂C/∂ of a symbol, whose value the following lines may name."""
        of = symbol.of if isinstance(symbol, Transposed) else symbol
        return self.writer.site.notation.partial(of)  # type: ignore[arg-type]  # only names are transposed here

    def line(self, symbol: Expression, value: np.ndarray) -> Line:
        """One line back: the sum over the ways, where its text gives the value."""
        return self.line_of(symbol, self.errors.get(symbol, []), value)

    def line_of(self, symbol: Expression, terms: list[Expression], value: np.ndarray) -> Line:
        """The same of a sum of these terms."""
        left, right = self.partial(symbol), sum_of(terms)
        said, sizes, found = "", shape(value.shape), None
        index, outer = self.writer.site.record.index(1), as_outer(right)
        for each in (outer, right, BigSum(index, right), BigSum(index, outer)) if terms else ():
            found = found or self.writer.at_positions(left, each, value, 0)
        if found is None:
            right, said = (
                Call(Name("jax.grad"), self.writer.site.notation.cost),
                "by jax.grad: a line that takes it has no rule here",
            )
            text = left
        else:
            text, right, sizes = found
            sizes = shape(value.shape) if right in self.writer.values().known else sizes
        self.know(left, np.asarray(value))
        said = said or self.said.get(symbol, "")
        narrow = np.asarray(value, self.writer.site.record.out.dtype)
        return Line(f"d{getattr(symbol, 'key', '')}", "step", 0, "", text, right, (), value.shape, narrow, ulp=0.0,
                    sizes=sizes, of=self.of, remarks=(said,) if said else ())  # fmt: skip

    def add(self, symbol: Expression, error: Expression) -> None:
        """One more way by which a value moves C."""
        self.errors.setdefault(symbol, []).append(error)

    def through(self, right: Expression, error: Expression, symbol: Expression | None = None) -> None:
        """The error at a line's value sent back to the line's operands. symbol: of the value, where it has one."""
        if 0 < self.numbers_in(right) < self.size(error):  # one number that moves every entry, or those of its row
            error = BigSum("", error)
        if right in self.writer.symbols.values() or right in self.writer.transcription.moved:
            self.add(right, error)
            return
        match right:
            case Sum(terms):
                for term in terms:
                    self.through(term, error)
            case Minus(of):
                self.through(of, negative(error))
            case Transposed(of):
                self.through(of, turned(error))
            case Product((left, other), ""):
                self.through(left, product(error, transposed(other)))
                self.through(other, product(transposed(left), error))
            case Product(factors):
                for i, each in enumerate(factors):
                    if not isinstance(each, Number):
                        self.through(each, self.scaled(error, *factors[:i], *factors[i + 1 :]))
            case Fraction(above, below):
                self.through(above, Fraction(error, below))
                if not isinstance(below, Number):
                    self.through(below, negative(Fraction(self.scaled(error, above), Power(below, "2"))))
            case Power(of, exponent):
                less = f"{float(exponent) - 1:g}"
                self.through(of, self.scaled(error, self.number(exponent), of if less == "1" else Power(of, less)))
            case SquaredNorm(of):
                self.through(of, self.scaled(error, self.number("2"), of))
            case BigSum(_, of):
                self.through(of, error)
            case Listed(parts):
                ends = list(itertools.accumulate(map(self.entries, parts)))
                for part, end in zip(parts, ends, strict=True):
                    self.through(part, Entry(error, Words(f"{end - self.entries(part) + 1}…{end}")))
            case Entry():
                self.through_entry(right, error)
            case Call(function, of):
                self.through_function(function, of, error, symbol or right)

    def through_entry(self, right: Entry, error: Expression) -> None:
        """The same through entries that an index names."""
        table, which = self.writer.values().known[right.of], right.index
        of_row = self.writer.transcription.of_each_row.get(right)
        if of_row is not None or table.ndim == 1:
            self.through(right.of, self.scaled(error, self.onehot(of_row or which, table.shape[-1])))
        else:
            self.through(right.of, product(transposed(self.onehot(which, len(table))), error))

    def through_function(self, function: Name, of: Expression, error: Expression, gives: Expression) -> None:
        """The same through a function. gives: its value."""
        match function.base, of:
            case "softmax", _:  # its Jacobian, row by row
                mean = BigSum("", self.scaled(gives, error))
                self.through(of, self.scaled(gives, Sum((error, Minus(mean)))))
            case "log_softmax", _:
                softmax = Call(Name("softmax", key="softmax"), of)
                shares = softmax if isinstance(gives, Call) else Call(Name("exp"), gives)
                self.through(of, Sum((error, Minus(self.scaled(shares, BigSum("", error))))))
            case "mean", _:
                self.through(of, self.scaled(Fraction(error, self.number(str(self.count(Call(function, of)))))))
            case (("max" | "min"), Listed((left, other))):
                sign = ">" if function.base == "max" else "<"
                self.through(left, self.scaled(error, Comparison(left, sign, other)))
                self.through(other, self.scaled(error, Comparison(other, sign, left)))
            case (("max" | "min"), _):
                self.through(of, self.scaled(error, Comparison(of, "=", gives)))
            case "where", Listed((condition, left, other)):
                self.through(left, self.scaled(error, condition))
                self.through(other, self.scaled(error, Sum((self.number("1"), Minus(condition)))))
            case name, _:
                slopes = {"exp": gives, "ln": Fraction(self.number("1"), of)}
                prime = Call(Name(f"{name}′", key=f"{function.key or name}'"), of)
                self.through(of, self.scaled(error, slopes.get(name, prime)))

    def step_before(self, symbol: Expression) -> Expression | None:
        """hₜ₋₁, where a line takes it."""
        moved = self.writer.transcription.moved
        return next((each for each, (of, steps) in moved.items() if of == symbol and steps == -1), None)

    def carried(self, ref: int, before: Expression) -> Line:
        """The error at a value that a scan carries: from its own step, and from the step after it."""
        symbol, slopes = self.writer.symbols[ref], self.writer.recording.slopes[ref]
        sent = sum_of(self.errors.pop(before)) if before in self.errors else None
        if sent is not None and symbol not in self.errors:  # the last step alone is taken elsewhere
            with suppress(MisfitError, ValueError):
                back = self.writer.values().of(sent, slopes.shape[:1]).reshape(slopes.shape)
                if close(back[1:], slopes[:-1]):
                    found = replace(self.line_of(symbol, [sent], back), left=self.partial(before))
                    self.know(self.partial(symbol), slopes)
                    return found
        if sent is not None:
            self.add(symbol, self.step_after(sent))
        return self.line(symbol, slopes)

    def step_after(self, of: Expression) -> Expression:
        """An expression at the next step: hₜ of hₜ₋₁, xₜ₊₁ of xₜ."""
        written = self.writer.transcription
        if of in written.moved:
            return written.moved[of][0]
        if self.writer.bare(of) in self.writer.stepped:
            return written.move(of, 1)
        return rebuilt(of, self.step_after)

    def by_jacobian(self, ref: int, error: Expression) -> None:
        """The error sent back by the Jacobian of a whole line, where the rules do not reach: (∂s/∂x)ᵀ ∂C/∂s."""
        recording, symbols = self.writer.recording, self.writer.symbols
        for source, J in jacobians(recording, ref, set(symbols)).items():
            symbol, value = Derivative(symbols[source], symbols[ref]), recording.values[source]
            self.know(symbol, J)
            made, as_vectors = Product((Transposed(Product((symbol,))), error)), ""
            if value.ndim > 1 or recording.values[ref].ndim > 1:
                with suppress(MisfitError, ValueError):
                    self.know(made, (J.T @ self.writer.values().of(error).ravel()).reshape(value.shape))
                    as_vectors = "; arrays as vectors"
            self.said[symbols[source]] = f"{written(symbol)}: {jacobian_in_words(J)}{as_vectors}"
            self.add(symbols[source], made)

    def know(self, symbol: Expression, value: np.ndarray) -> None:
        """A value like any other from here on."""
        ref = -1 - len(self.writer.symbols)
        self.writer.symbols[ref], self.writer.recording.values[ref], self.writer.known = symbol, value, None

    def onehot(self, index: Expression, entries: int) -> Expression:
        """1 at the entry that an index names, 0 elsewhere."""
        made = Call(Name("onehot"), index)
        self.know(made, np.eye(entries)[self.writer.values().known[index]])
        return made

    def entries(self, of: Expression) -> int:
        """How many entries a vector has, at one step."""
        value = self.writer.values().known[of]
        return value.shape[-1] if value.ndim else 1

    def size(self, of: Expression) -> int:
        """How many entries an expression has; 0 where it has no value as a whole."""
        try:
            return self.writer.values().of(of).size
        except (MisfitError, ValueError):
            return 1 if of == ONE else 0

    def count(self, mean: Call) -> int:
        """How many entries a mean is taken over: all, those of a row, or the positions of an index."""
        sizes = self.writer.values().largest(mean.of).shape
        if mean in self.writer.transcription.by_rows:
            return sizes[-1]
        return math.prod(sizes[: AXES[mean.function.below]]) if mean.function.below else self.size(mean.of) or 1

    def numbers_in(self, right: Expression) -> int:
        """How many numbers an operand is, one for all entries or one for each row; 0 for vectors and matrices."""
        values, by_rows = self.writer.values(), self.writer.transcription.by_rows
        if right in by_rows:
            return math.prod(values.largest(right).shape[: by_rows[right]])
        if right in values.known and values.known[right].ndim > 1 and values.known[right].shape[-1] == 1:
            return values.known[right].size
        return int(self.size(right) == 1)

    def scaled(self, *factors: Expression) -> Expression:
        """A product entry by entry, its numbers multiplied into one: 2 × (A−Y)/15."""
        above, below, rest = 1.0, 1.0, []
        for each in factors:
            while isinstance(each, Minus | Fraction):
                if isinstance(each, Minus):
                    above, each = -above, each.of
                elif isinstance(each.below, Number):
                    below, each = below * float(each.below.text), each.above
                else:
                    break
            parts = each.factors if isinstance(each, Product) and each.sign in ("⊙", "×") else (each,)
            for part in parts:
                if isinstance(part, Number):
                    above *= self.writer.transcription.numbers.get(part, 1.0)
                else:
                    rest.append(part)
        sign, above = above < 0, abs(above)
        if above and below % above == 0:
            above, below = 1.0, below / above
        made: Expression = Product(tuple(rest), "⊙") if len(rest) > 1 else rest[0] if rest else ONE
        if above != 1:
            made = self.number(f"{above:g}") if made == ONE else Product((self.number(f"{above:g}"), made), "×")
        made = made if below == 1 else Fraction(made, self.number(f"{below:g}"))
        return Minus(made) if sign else made

    def number(self, text: str) -> Number:
        """A number that the evaluation knows."""
        self.writer.transcription.numbers[Number(text)] = float(text)
        return Number(text)


def product(left: Expression, right: Expression) -> Expression:
    """A matrix product; 1 is left out."""
    return right if left == ONE else left if right == ONE else Product((left, right))


def negative(of: Expression) -> Expression:
    """−of; of a fraction with a minus above the fraction without it."""
    match of:
        case Minus(inner):
            return inner
        case Fraction(Minus(above), below):
            return Fraction(above, below)
    return Minus(of)


def turned(of: Expression) -> Expression:
    """The transpose; of a matrix product that of its factors, in reverse."""
    if isinstance(of, Product) and not of.sign:
        return Product(tuple(map(turned, reversed(of.factors))))
    return transposed(of)


def as_outer(of: Expression) -> Expression:
    """AᵀE read at each position, where A and E are columns: A Eᵀ, with its signs and numbers."""
    match of:
        case Product((Transposed(left), right), ""):
            return Product((left, transposed(right)))
        case Sum(terms):
            return Sum(tuple(map(as_outer, terms)))
        case Minus(inner):
            return Minus(as_outer(inner))
        case Fraction(above, below):
            return Fraction(as_outer(above), below)
    return of


def sum_of(terms: list[Expression]) -> Expression:
    """A sum; of one term that term."""
    return terms[0] if len(terms) == 1 else Sum(tuple(each for term in terms for each in terms_of(term)))


def has_rules(of: Any, known: dict[Expression, np.ndarray]) -> bool:
    """Whether there is a rule for everything in an expression."""
    if isinstance(of, tuple):
        return all(has_rules(each, known) for each in of)
    match of:
        case Call(Name("where"), Listed((_, *parts))) | Call(Name("max" | "min"), Listed(parts)):
            return len(parts) == 2 and all(has_rules(each, known) for each in parts)
        case Entry(table, index):
            return table in known and (of in known or index in known)
        case Listed(parts):
            return all(each in known for each in parts)
        case Comparison():
            return False
    if isinstance(of, Call) and not {of.function.key, of.function.base} & RULES:
        return False
    if not is_dataclass(of) or of in known:
        return True
    return all(has_rules(getattr(of, each.name), known) for each in fields(of))
