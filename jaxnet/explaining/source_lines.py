"""The equations of a layer read off its source: the author's own lines, each with its value.

Each line is written in the notation's symbols, evaluated from its text, and held against the value that the line gave;
one that does not agree is left out. What the layer itself gives is held against `jax.grad` too.
"""

from __future__ import annotations

import ast
import warnings
from dataclasses import dataclass
from functools import lru_cache, singledispatch
from typing import Any

import jax
import numpy as np

from jaxnet.explaining.evaluation import MisfitError, Values, at, symbols
from jaxnet.explaining.expressions import BigSum, Expression, Gradient, Name, Partial, Product, Sum, Transposed
from jaxnet.explaining.layers.evaluate import largest
from jaxnet.explaining.layers.opening import Record
from jaxnet.explaining.layers.steps import Site
from jaxnet.explaining.notation import GREEK, Notation, Number
from jaxnet.explaining.numbers import shape
from jaxnet.explaining.recording import Assigned, Recording, record
from jaxnet.explaining.transcription import INDICES, Transcription, UnwritableError
from jaxnet.explaining.ulp import ulps
from jaxnet.factors import Factor, Outer, Plain
from jaxnet.factors import Sum as Uses
from jaxnet.layer import Untrained

CLOSE = 1e-9  # of the largest entry: rounding of sums in another order, in float64


@dataclass(frozen=True)
class Written:
    """A line as an equation. key: of its value in the derivation. gives: "out", "dx", a parameter's name, or ""."""

    key: str
    left: Expression
    right: Expression
    value: np.ndarray
    forward: bool
    gives: str = ""
    sizes: str = ""
    ulp: float | None = None


def readable(record: Record) -> bool:
    """Whether a layer's equations can be read off its source, forward and backward."""
    recording = recorded(record)
    return recording is not None and any(line.ref == recording.out for line in recording.lines)


@lru_cache(maxsize=64)
def recorded(record_: Record) -> Recording | None:
    """A leaf's lines at one example; None where it is no leaf of one array, or its source is not there."""
    if record_.kind != "leaf" or len(record_.xs) != 1 or record_.layer.rebuild is not None:
        return None
    try:
        return record(record_.layer, record_.params, record_.x, record_.d_out, record_.positions)
    except Exception as error:  # an author's program may do anything; the layer is then explained as a whole
        said = f"{record_.layer.name} is explained without the lines of its source, which failed: {error}"
        warnings.warn(said, stacklevel=2)
        return None


def written_lines(site: Site) -> list[Written]:
    """The lines of a record in a notation's symbols."""
    recording = recorded(site.record)
    assert recording is not None
    return Writer(site, recording).lines()


class Writer:
    """Writes a recording's lines in the symbols of a site."""

    def __init__(self, site: Site, recording: Recording):
        self.site, self.recording = site, recording
        self.rows = site.notation.rows
        self.fixed: set[Expression] = set()
        self.names: dict[str, Name] = {}
        self.symbols: dict[int, Expression] = {}
        self.given()
        self.named()
        self.transcription = Transcription(recording, self.symbols, {})

    # ------------------------------------------------------------------------------------------- symbols

    def given(self) -> None:
        """Symbols of what the layer takes and gives, and of its parameters."""
        site, recording = self.site, self.recording
        self.symbols[recording.out] = site.gives
        if recording.dx >= 0:
            self.symbols[recording.dx] = site.back[0]
        for ref, (kind, path) in recording.given.items():
            if kind == "param":
                symbol = param_name(site.notation, path, site.number)
                self.fixed.add(symbol)
                laid = self.rows and recording.values[ref].ndim == 2
                self.symbols[ref] = Transposed(symbol) if laid else symbol
            else:
                self.symbols[ref] = site.takes[0] if kind == "x" else site.error

    def named(self) -> None:
        """Symbols of what the author named; not of a value that its name's next value is made of."""
        for line in self.recording.lines:
            if not line.name or line.ref in self.symbols or self.rewritten(line):
                continue
            self.symbols[line.ref] = self.symbol(self.recording.names.get(line.ref, line.name), line.forward)

    def rewritten(self, line: Assigned) -> bool:
        """Whether the author gives the name to another value that is made of this one."""
        return any(
            other is not line and other.name == line.name and other.scope.calls is line.scope.calls
            and any(isinstance(each, ast.Name) and each.id == line.name for each in ast.walk(other.node))
            and other.scope.names.get(line.name) is not None
            and self.recording.number(other.scope.names[line.name]) == line.ref
            for other in self.recording.lines
        )  # fmt: skip

    def symbol(self, name: str, forward: bool) -> Expression:
        """The symbol of a variable: dW is ∇W, d_g and dg are ∂C/∂g of a g of the forward pass."""
        notation = self.site.notation
        if not forward:
            for start in ("d_", "d", "delta_"):
                of = self.names.get(name.removeprefix(start)) if name.startswith(start) else None
                if of is not None and (start != "delta_" or notation.name == "ng"):
                    return notation.partial(of)
        base, *rest = name.strip("_").split("_")
        letter = LETTERS.get(base, base)
        if rest and rest[0] in MARKS:
            letter, rest = letter + MARKS[rest[0]], rest[1:]
        made = self.site.name("_".join([letter, *rest]), name)
        while made in self.symbols.values() or made in self.fixed:  # another value of the same name
            made = Name(f"{made.base}′", made.above, made.below, f"{made.key}_")
        if forward:
            self.names[name] = made
        return made

    # --------------------------------------------------------------------------------------------- lines

    def values(self) -> Values:
        """What the symbols are worth."""
        known: dict[Expression, np.ndarray] = {}
        for ref, symbol in self.symbols.items():
            value = self.recording.values.get(ref)
            if value is not None:
                if isinstance(symbol, Transposed):
                    symbol, value = symbol.of, value.T
                known[symbol] = value
        known |= {number: np.asarray(worth) for number, worth in self.transcription.numbers.items()}
        return Values(known, frozenset(self.fixed) | frozenset(self.transcription.numbers), self.rows)

    def lines(self) -> list[Written]:
        """The lines whose text gives their value: forward, then backward, each gradient once its factors are there."""
        recording = self.recording
        found: list[Written] = []
        waiting = dict(recording.factors)
        arrived = set(recording.given) | {line.ref for line in recording.lines if line.forward}
        if recording.out in recording.given:
            found += self.passed(recording.out, self.site.gives, self.site.takes[0], True)
        for line in sorted(recording.lines, key=lambda each: not each.forward):
            if not line.forward:
                found += self.gradients(waiting, arrived)
            arrived.add(line.ref)
            found += self.line(line)
        found += self.gradients(waiting, None)
        if recording.dx in recording.given and self.site.record.dxs[0] is not None:
            found += self.passed(recording.dx, self.site.back[0], self.site.error, False)
        return found

    def passed(self, ref: int, left: Expression, right: Expression, forward: bool) -> list[Written]:
        """What is given as it came."""
        value = self.recording.values[ref]
        return [self.held(Written("", left, right, value, forward, "out" if forward else "dx", shape(value.shape)))]

    def line(self, line: Assigned) -> list[Written]:
        """A line as an equation; nothing where it has none, or where that is not its value."""
        left, value = self.symbols.get(line.ref), self.recording.values.get(line.ref)
        if left is None or value is None or not np.issubdtype(value.dtype, np.floating):
            return []
        gives = {self.recording.out: "out", self.recording.dx: "dx"}.get(line.ref, "")
        try:
            right = self.transcription.line(line)
        except (UnwritableError, LookupError):
            return []
        if right == left:
            return []
        made = self.at_positions(left, right, value, self.recording.stacked.get(line.ref, 0))
        return [] if made is None else [self.held(Written("", *made[:2], value, line.forward, gives, made[2]))]

    def at_positions(
        self, left: Expression, right: Expression, value: np.ndarray, least: int
    ) -> tuple[Expression, Expression, str] | None:
        """Both sides with their subscripts and the shapes in words, as a whole or at each position; None where neither
        way of reading gives the value."""
        values = self.values()
        for axes in range(least, value.ndim + (value.ndim > 0)):
            lead, index = value.shape[:axes], INDICES.get(axes, "")
            expected = values.matrix(value, axes)
            try:
                laid = values.laid(right, lead)
                got = values.of(laid, lead)
                got = np.broadcast_to(got, (*lead, *got.shape[-2:]))
            except (MisfitError, ValueError):
                continue
            if got.shape == expected.shape and close(got, expected):
                text = values.subscripted(laid, lead, index) if axes else values.subscripted(laid, (), "")
                sizes = sizes_of(values, laid, lead, value)
                return (at(left, index) if axes else left), text, sizes
        return None

    def gradients(self, waiting: dict[tuple, Factor], arrived: set[int] | None) -> list[Written]:
        """The gradients whose factors are all there; with None all that are left."""
        found = []
        for path, factor in list(waiting.items()):
            refs = [self.recording.number(each) for each in jax.tree.leaves(factor)]
            if arrived is not None and not all(ref in arrived for ref in refs):
                continue
            del waiting[path]
            found += self.gradient(path, factor)
        return found

    def gradient(self, path: tuple, factor: Factor) -> list[Written]:
        """∇ of one parameter."""
        name = parameter(path)
        symbol = param_name(self.site.notation, path, self.site.number)
        value = self.recording.grads[path]
        laid = value.T if self.rows and value.ndim == 2 else value
        left = self.site.notation.gradient(symbol)
        try:
            right = gradient_of(factor, self)
            values = self.values()
            got = values.of(right)
        except (UnwritableError, MisfitError, LookupError, ValueError):
            return []
        if got.shape != values.matrix(laid).shape or not close(got, values.matrix(laid)):
            return []
        text = values.subscripted(right, (), "")
        return [self.held(Written("", left, text, value, False, name, sizes_of(values, right, (), value)))]

    def held(self, line: Written) -> Written:
        """A line with its key, its value in the layer's dtype, and how far that is from what must be the same."""
        record = self.site.record
        dtype = np.asarray(record.out).dtype
        value, apart = line.value.astype(dtype), [0.0]
        beside = 0.0 if line.gives == "out" else largest([record.d_out, *jax.tree.leaves(record.grads)])
        for other in given_by(record, line.gives):
            apart.append(ulps(value, other, beside))
            value = np.asarray(other) if len(apart) == 2 else value
        return Written(key_of(line.left), line.left, line.right, value, line.forward, line.gives, line.sizes,
                       max(apart, key=lambda each: np.inf if np.isnan(each) else each))  # fmt: skip


MARKS = {"hat": "\u0302", "prime": "′", "bar": "\u0304", "tilde": "\u0303"}
LETTERS = GREEK | {
    "mu": "μ", "sigma": "σ", "lambda": "λ", "theta": "θ", "rho": "ρ", "tau": "τ", "phi": "φ", "omega": "ω", "eta": "η",
    "variance": "σ²",
}  # fmt: skip
"""Greek letters and marks by the words of variables."""


def words(path: tuple) -> list[str]:
    """The words of a parameter's path."""
    return [str(getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", entry)))) for entry in path] or ["p"]


def parameter(path: tuple) -> str:
    """A parameter's name: the words of its path."""
    return "_".join(words(path))


def param_name(notation: Notation, path: tuple, number: Number) -> Name:
    """The symbol of a parameter: its own name, after the words of the path that leads to it."""
    *before, own = words(path)
    base = notation.param(own, number)
    return Name(base.base, base.above, " ".join(before), "_".join([base.key, *before])) if before else base


def given_by(record: Record, gives: str) -> list[Any]:
    """What the layer itself gives, and what autodiff does: the same of a right layer."""
    if gives == "":
        return []
    if gives == "out":
        return [record.out]
    if gives == "dx":
        return [record.dxs[0], *([] if record.reference[1] is None else [record.reference[1]])]
    found = []
    for tree in (record.grads, record.reference[0]):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda each: isinstance(each, Untrained)):
            if parameter(path) == gives and not isinstance(leaf, Untrained):
                found.append(leaf)
    return found


def close(got: np.ndarray, expected: np.ndarray) -> bool:
    """Whether two arrays are the same but for rounding."""
    scale = float(np.abs(expected[np.isfinite(expected)]).max(initial=0))
    return bool(np.allclose(got, expected, rtol=CLOSE, atol=CLOSE * (scale or 1), equal_nan=True))


def key_of(symbol: Expression) -> str:
    """What formulas call a value."""
    match symbol:
        case Name(key=key):
            return key
        case Partial(by=by) | Gradient(by=by):
            return f"d{key_of(by)}"
    return ""


def sizes_of(values: Values, right: Expression, lead: tuple[int, ...], value: np.ndarray) -> str:
    """The shapes of a matrix product in words, with how many times or terms; of other equations the result's."""
    over, inner = "", right
    if isinstance(right, BigSum) and right.index:
        largest = max((values.known[each] for each in symbols_in(right.of, values)), key=np.ndim)
        axes = next(axes for axes, index in INDICES.items() if index == right.index)
        lead, inner, over = largest.shape[:axes], right.of, f", {int(np.prod(largest.shape[:axes]))} terms"
    elif lead:
        over = f", {int(np.prod(lead))} times"
    product = first_product(inner)
    if product is None:
        own = shape(value.shape)
        return f"{own}{over}" if "terms" in over else own
    parts = [values.of(each, lead).shape[-2:] for each in product.factors]
    texts = [shape(tuple(n for n in each if n != 1)) for each in parts]
    result = shape(tuple(n for n in (parts[0][0], parts[-1][1]) if n != 1))
    return f"{'·'.join(texts)} → {result}{over}"


def symbols_in(expression: Expression, values: Values) -> list[Expression]:
    """The symbols of an expression that may differ from position to position."""
    return [each for each in symbols(expression, values.known) if each not in values.fixed]


def first_product(expression: Expression) -> Product | None:
    """The matrix product that an equation is, beside terms and factors of its entries."""
    match expression:
        case Product(sign=""):
            return expression
        case Product(factors=parts) | Sum(terms=parts):
            return next((found for each in parts if (found := first_product(each)) is not None), None)
    return None


# --------------------------------------------------------------------------------------------- factors


@singledispatch
def gradient_of(factor: Factor, writer: Writer) -> Expression:
    """∇ of a parameter as its factor's equation."""
    raise UnwritableError(f"{type(factor).__name__} has no equation")


def summed(sums: int, of: Expression, writer: Writer) -> Expression:
    """Σ over leading axes, those of the positions among them."""
    axes = sums + writer.site.record.positions
    return BigSum(INDICES[axes], of) if axes else of


@gradient_of.register
def _(factor: Outer, writer: Writer) -> Expression:
    delta, a = writer.transcription.value(factor.delta), writer.transcription.value(factor.a)
    return summed(factor.sums, writer.site.outer(delta, a), writer)


@gradient_of.register
def _(factor: Plain, writer: Writer) -> Expression:
    return summed(factor.sums, writer.transcription.value(factor.delta), writer)


@gradient_of.register
def _(factor: Uses, writer: Writer) -> Expression:
    return Sum(tuple(gradient_of(use, writer) for use in factor.uses))
