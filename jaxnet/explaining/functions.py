"""Any JAX function of one number explained: its own lines forward, and the chain rule back through each of them.

The lines come from the function's source, or from its program where there is none. Each is differentiated by the rules
below, written out and evaluated from its text. Where there is no rule, the error goes back by the Jacobian of the whole
line. A line that does not give what `jax.grad` gives is shown by value alone.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.explaining.derive import checked
from jaxnet.explaining.evaluation import REDUCED, MisfitError
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
    written,
)  # fmt: skip
from jaxnet.explaining.model import Derivation, Header, Line
from jaxnet.explaining.notation import ExplainError, Notation
from jaxnet.explaining.numbers import shape
from jaxnet.explaining.recording import FUNCTIONS, Array, Recording
from jaxnet.explaining.records import BLOCK, Record, Site
from jaxnet.explaining.source_lines import LineWriter, recorded
from jaxnet.explaining.transcription import at, transposed
from jaxnet.layer import Layer, Passing

ONE = Number("1")
RULES = {"mean", *FUNCTIONS, *FUNCTIONS.values()}
"""The functions that have a rule here. Of a line with another its whole Jacobian is taken."""


@dataclass(frozen=True, eq=False)
class FunctionSubject:
    """A function of arrays that gives one number, and its arguments."""

    function: Callable
    args: tuple
    source: str
    seed: int


def derivation_of_function(subject: FunctionSubject, notation: Notation) -> Derivation:
    """The function's lines forward, and the derivative of its value by each of their values and each argument.

    Raises `ExplainError` for a function that does not give one number.
    """
    names, given = named_leaves(subject)
    leaves, structure = jax.tree.flatten(subject.args)

    def whole(params):
        return subject.function(
            *structure.unflatten([params.get(name, leaf) for name, leaf in zip(names, leaves, strict=True)])
        )

    try:
        out = jax.eval_shape(whole, given)
    except jax.errors.ConcretizationTypeError:
        raise ExplainError(
            f"{subject.source} must not branch on a value or make it a Python number: write jnp.where or jax.lax.cond"
        ) from None
    except (TypeError, ValueError) as error:
        said = str(error).splitlines()[0].rstrip(".")
        raise ExplainError(f"{subject.source} cannot be run at these inputs: {said}: give others to --inputs") from None
    if not hasattr(out, "shape") or out.shape or not jnp.issubdtype(out.dtype, jnp.inexact):
        gives = jax.tree.map(lambda each: f"{each.dtype}{list(each.shape)}", out)
        raise ExplainError(
            f"a function to be explained gives one number, {subject.source} gives {gives}: explain its sum or its loss"
        )

    def forward(params, x, key=None, train=False):
        return whole(params), None

    def backward(params, saved, d_out, read):
        return None, read.at(Passing(params, saved, d_out, None, ()))

    layer = Layer(subject.source, lambda key, x: given, forward, backward)
    value, d_out = jax.jit(whole)(given), np.ones((), out.dtype)
    record = Record("leaf", layer, (BLOCK,), given, (np.zeros(1, out.dtype),), np.asarray(value), d_out, (None,))
    recording = recorded(record)
    if recording is None:
        raise ExplainError(f"{subject.source} cannot be recorded: its lines failed when they were run in float64")
    given = {name: given[name] for name in names}
    floats = {name: leaf for name, leaf in given.items() if jnp.issubdtype(leaf.dtype, jnp.inexact)}
    with jax.enable_x64(True):
        wide = {name: jnp.asarray(leaf, jnp.float64) for name, leaf in floats.items()}
        exact = jax.device_get(jax.jit(jax.grad(lambda some: whole(given | some)))(wide))
    site = Site(record, notation, None, (Name("x"),), notation.cost, ONE, (ONE,))
    writer = LineWriter(site, recording)
    writer.fixed.clear()  # any argument may have the examples in front
    last_steps = name_last_steps(recording, writer.symbols)
    forward_lines = [line_of(each, subject.source) for each in writer.lines() if each.forward]
    backward_lines = tuple(Backwards(writer, exact, subject.source, last_steps).lines())
    header = Header(
        f"{subject.source}({', '.join(f'{name}: {shape(np.shape(leaf))}' for name, leaf in given.items())})",
        subject.source, "", notation.cost, Call(Name(subject.function.__name__), Name("…")), float(value),
        np.zeros(0), np.zeros(0), None, None, notation.name, "", notation.weights, str(out.dtype), subject.seed,
    )  # fmt: skip
    return Derivation(
        header, tuple(forward_lines), backward_lines, (), (), (), (), None, (), (), (), checked(backward_lines)
    )


def named_leaves(subject: FunctionSubject) -> tuple[list[str], dict[str, Any]]:
    """A name of each array among the arguments, its own key where no other has it; and the arrays by name."""
    words = inspect.signature(subject.function).parameters
    paths = [(word, *path) for word, arg in zip(words, subject.args, strict=False)
             for path, _ in jax.tree_util.tree_leaves_with_path(arg)]  # fmt: skip
    short = [str(getattr(path[-1], "key", getattr(path[-1], "idx", path[-1]))) for path in paths]
    full = [
        path[0] + "".join(f"_{getattr(each, 'key', getattr(each, 'idx', ''))}" for each in path[1:]) for path in paths
    ]
    names = [full[i] if short.count(each) > 1 or each.isdigit() else each for i, each in enumerate(short)]
    leaves = jax.tree.leaves(subject.args)
    return names, {name: np.asarray(leaf) for name, leaf in zip(names, leaves, strict=True)}


def line_of(each: Any, of: str) -> Line:
    """A line read off the source as a line of the derivation."""
    return Line(each.key, "step", 0, "", each.left, each.right, (), each.value.shape, each.value, sizes=each.sizes,
                of=of, remarks=(each.shown,) if each.shown else ())  # fmt: skip


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
        for ref in sorted(recording.operations, reverse=True):
            root = recording.root(ref)
            if root != ref or symbols.get(ref) is None:
                continue
            symbol = symbols[ref]
            if (before := self.step_before(symbol)) is not None:
                yield from self.recurrence(ref, before)
                continue
            if ref != recording.out and ref in recording.slopes:
                yield self.line(symbol, recording.slopes[ref])
            if symbol not in self.errors and ref not in recording.slopes:
                continue
            error, right = ONE if ref == recording.out else self.partial(symbol), self.writer.right(ref)
            if right is not None and has_rules(right, self.writer.values().known):
                self.through(right, error)
            elif ref != recording.out:
                self.by_jacobian(ref, error)
        for ref, (kind, path) in recording.given.items():
            if kind == "param" and path[-1].key in self.exact and ref in symbols:
                yield self.line(symbols[ref], self.exact[path[-1].key])

    def partial(self, symbol: Expression) -> Expression:
        """∂C/∂ of a symbol, whose value the following lines may name."""
        of = symbol.of if isinstance(symbol, Transposed) else symbol
        return self.writer.site.notation.partial(of)  # type: ignore[arg-type]  # what is transposed here is a name

    def line(self, symbol: Expression, value: np.ndarray) -> Line:
        """One line back: the sum over the ways, where its text gives the value."""
        left, terms = self.partial(symbol), self.errors.get(symbol, [])
        right = sum_of(terms)
        said, sizes, found = "", shape(value.shape), None
        for each in (right, BigSum(self.writer.site.record.index(1), right)) if terms else ():
            found = found or self.writer.at_positions(left, each, value, 0)
        if found is None:
            right, said = (
                Call(Name("jax.grad"), self.writer.site.notation.cost),
                "by jax.grad: a line that takes it has no rule here",
            )
            text = left
        else:
            text, right, sizes = found
        self.know(left, np.asarray(value))
        said = said or self.said.get(symbol, "")
        narrow = np.asarray(value, self.writer.site.record.out.dtype)
        return Line(f"d{getattr(symbol, 'key', '')}", "step", 0, "", text, right, (), value.shape, narrow, ulp=0.0,
                    sizes=sizes, of=self.of, remarks=(said,) if said else ())  # fmt: skip

    def add(self, symbol: Expression, error: Expression) -> None:
        """One more way by which a value moves C."""
        self.errors.setdefault(symbol, []).append(error)

    def through(self, right: Expression, error: Expression) -> None:
        """The error at a line's value sent back to the line's operands."""
        if self.size(right) == 1 < self.size(error):  # one number that moves every entry
            error = BigSum("", error)
        if right in self.writer.symbols.values() or right in self.writer.transcription.moved:
            self.add(right, error)
            return
        match right:
            case Sum(terms):
                for term in terms:
                    self.through(term, error)
            case Minus(of):
                self.through(of, Minus(error))
            case Transposed(of):
                self.through(of, Transposed(error))
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
                    self.through(below, Minus(Fraction(self.scaled(error, above), Power(below, "2"))))
            case Power(of, exponent):
                less = f"{float(exponent) - 1:g}"
                self.through(of, self.scaled(error, self.number(exponent), of if less == "1" else Power(of, less)))
            case SquaredNorm(of):
                self.through(of, self.scaled(error, self.number("2"), of))
            case BigSum(_, of):
                self.through(of, error)
            case Call(Name("softmax"), of):  # its Jacobian, row by row
                mean = BigSum("", self.scaled(right, error))
                self.through(of, self.scaled(right, Sum((error, Minus(mean)))))
            case Call(Name("mean"), of):
                self.through(of, self.scaled(Fraction(error, self.number(str(self.size(of) or 1)))))
            case Call(Name(name, key=key), of) if name not in REDUCED:
                slopes = {"exp": right, "ln": Fraction(self.number("1"), of)}
                self.through(
                    of, self.scaled(error, slopes.get(name, Call(Name(f"{name}′", key=f"{key or name}'"), of)))
                )

    def step_before(self, symbol: Expression) -> Expression | None:
        """hₜ₋₁, where the line of hₜ takes it."""
        moved = self.writer.transcription.moved
        return next((each for each, (of, steps) in moved.items() if of == symbol and steps == -1), None)

    def recurrence(self, ref: int, before: Expression) -> Iterator[Line]:
        """Back through a scan: the error at the last step, and that at each step from the one after it."""
        recording, symbols = self.writer.recording, self.writer.symbols
        symbol, right = symbols[ref], self.writer.right(ref)
        direct = np.array(recording.slopes.get(ref, np.zeros_like(recording.values[ref])))
        for last in (last for last, of in self.last_steps.items() if of == ref and last in recording.slopes):
            yield self.line(symbols[last], recording.slopes[last])
            direct[-1] += recording.slopes[last]
        if right is None or not has_rules(right, self.writer.values().known):
            return
        self.through(right, self.partial(symbol))
        sent, error = sum_of(self.errors[before]), direct
        for _ in direct:  # each round is right for one step more
            self.know(self.partial(symbol), error)
            back = self.writer.values().of(sent, direct.shape[:1]).reshape(direct.shape)
            error = direct + np.concatenate([back[1:], 0 * back[:1]])
        self.know(self.partial(symbol), error)
        if not np.any(direct[:-1]):
            back = self.writer.values().of(sent, direct.shape[:1]).reshape(direct.shape)
            yield replace(self.line(before, back), left=self.partial(before))

    def by_jacobian(self, ref: int, error: Expression) -> None:
        """The error sent back by the Jacobian of a whole line, where the rules do not reach: (∂s/∂x)ᵀ ∂C/∂s."""
        recording, symbols = self.writer.recording, self.writer.symbols
        for source, J in jacobians(recording, ref, set(symbols)).items():
            symbol = Derivative(symbols[source], symbols[ref])
            self.know(symbol, J)
            self.said[symbols[source]] = f"{written(symbol)}: {jacobian_in_words(J)}"
            self.add(symbols[source], Product((Transposed(Product((symbol,))), error)))

    def know(self, symbol: Expression, value: np.ndarray) -> None:
        """A value like any other from here on."""
        ref = -1 - len(self.writer.symbols)
        self.writer.symbols[ref], self.writer.recording.values[ref], self.writer.known = symbol, value, None

    def size(self, of: Expression) -> int:
        """How many entries an expression has; 0 where it has no value as a whole."""
        try:
            return self.writer.values().of(of).size
        except (MisfitError, ValueError):
            return 1 if of == ONE else 0

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


def name_last_steps(recording: Recording, symbols: dict[int, Expression]) -> dict[int, int]:
    """Gives the last value that a scan carries its symbol, h₄; the number of the steps' value by its own."""
    steps = [ref for ref in recording.operations if recording.stacked.get(ref) == 1 and ref in symbols]
    found = {}
    for last in recording.outside:
        for ref in steps:
            pairs = [(values[ref][-1], values[last]) for values in (recording.values, recording.others)]
            if all(np.array_equal(one, other) for one, other in pairs):
                found[last], symbols[last] = ref, at(symbols[ref], str(len(recording.values[ref])))
    return found


def sum_of(terms: list[Expression]) -> Expression:
    """A sum; of one term that term."""
    return terms[0] if len(terms) == 1 else Sum(tuple(terms))


def has_rules(of: Any, known: dict[Expression, np.ndarray]) -> bool:
    """Whether there is a rule for everything in an expression."""
    if isinstance(of, tuple):
        return all(has_rules(each, known) for each in of)
    if isinstance(of, Comparison | Entry | Listed):
        return False
    if isinstance(of, Call) and not {of.function.key, of.function.base} & RULES:
        return False
    if not is_dataclass(of) or of in known:
        return True
    return all(has_rules(getattr(of, each.name), known) for each in fields(of))


def jacobians(recording: Recording, ref: int, named: set[int]) -> dict[int, np.ndarray]:
    """∂/∂ of a line's value by the values with a symbol that it is made of, of arrays as vectors.

    Empty where it is made inside `vmap` or `scan`, whose operations cannot be run one by one.
    """
    wanted: dict[int, Any] = {}

    def run(of: int, values: dict[int, Any]) -> Any:
        of = recording.root(of)
        if of in values:
            return values[of]
        if (of in named and of != ref) or of not in recording.operations:
            return wanted.setdefault(of, recording.values[of])
        made = recording.operations[of]
        if made.part or recording.stacked.get(of):
            raise LookupError(made.name)
        take = partial(filled, values=lambda each: run(each, values))
        return jnp.asarray(
            function_named(made.name)(*map(take, made.args), **{k: take(v) for k, v in made.options.items()})
        )

    try:
        with jax.enable_x64(True):
            out = run(ref, {})
            found = {
                of: value for of, value in wanted.items() if of in named and jnp.issubdtype(value.dtype, jnp.inexact)
            }
            rows = {
                of: jax.jacrev(lambda value, of=of: run(ref, {of: value}))(jnp.asarray(value))
                for of, value in found.items()
            }
    except (LookupError, TypeError):  # an operation that is not known by its name and operands alone
        return {}
    return {of: np.asarray(each).reshape(out.size, -1) for of, each in rows.items()}


def filled(operand: Any, values: Callable[[int], Any]) -> Any:
    """An operand with the values of its arrays."""
    if isinstance(operand, Array):
        return values(operand.ref)
    return type(operand)(filled(each, values) for each in operand) if type(operand) in (tuple, list) else operand


def function_named(name: str) -> Callable:
    """A function of `jax.numpy`, `jax.nn` or `jax.lax`, or an operator.

    Raises `LookupError` for another.
    """
    for module in (operator if name == "getitem" else jnp, jax.nn, jax.lax):
        if hasattr(module, name):
            return getattr(module, name)
    raise LookupError(name)


def jacobian_in_words(J: np.ndarray) -> str:
    """A Jacobian in words."""
    ones = np.isin(J, (0, 1)).all()
    rows, columns = (np.count_nonzero(J, axis) for axis in (1, 0))
    if ones and (rows == 1).all() and J.shape[0] == J.shape[1] and (columns == 1).all():
        return "a permutation, each error goes back to where its entry came from"
    if ones and (rows == 1).all():
        return "each entry is one that was picked; where none was picked the error is 0"
    if J.shape[0] == J.shape[1] and not np.any(J - np.diag(np.diag(J))):
        return "diagonal, each entry by itself"
    if ones:
        return "a 1 wherever an entry is added"
    return f"{shape(J.shape)}, of the whole line"
