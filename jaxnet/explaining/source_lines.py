"""The equations of a layer read off its source: the author's own lines, each with its value.

Each line is written in the notation's symbols, evaluated from its text, and held against the value that the line gave;
one that does not agree is left out. What the layer itself gives is held against `jax.grad` too.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, singledispatch
from typing import Any

import jax
import numpy as np

from jaxnet.explaining import expressions as ex
from jaxnet.explaining.evaluation import AXES, Lead, MisfitError, Values, symbols
from jaxnet.explaining.notation import GREEK
from jaxnet.explaining.numbers import shape
from jaxnet.explaining.recording import OWN, Array, RecordedOperation, Recording, alike, close, record
from jaxnet.explaining.records import Record, Site, param_name, parameter
from jaxnet.explaining.transcription import Transcription, UnwritableError, at, multiple, padding_before, window_place
from jaxnet.explaining.ulp import largest, ulps
from jaxnet.factors import Factor, FactorSum, Outer, Plain
from jaxnet.layer import Untrained
from jaxnet.layers.conv import Patches
from jaxnet.layers.embedding import Rows


class WrittenLine(ex.Frozen):
    """A line as an equation.

    key: of its value in the derivation. gives: "out", "dx", a parameter's name, or "". name: the variable, or of a
    function by name that. shown: the part of the value that is shown, in words. factor: of a gradient.
    """

    key: str
    left: ex.Expression
    right: ex.Expression
    value: np.ndarray
    forward: bool
    gives: str = ""
    sizes: str = ""
    ulp: float | None = None
    name: str = ""
    shown: str = ""
    factor: Factor | None = None


@lru_cache(maxsize=64)
def recorded(record_: Record) -> Recording | None:
    """A leaf's lines at one example; None where it is no leaf of one array, or its source is not there."""
    if record_.kind != "leaf" or not record_.single or record_.layer.rebuild is not None:
        return None
    try:
        return record(record_.layer, record_.params, record_.x, record_.d_out, record_.positions, record_.training)
    except Exception as error:  # an author's program may do anything; the layer is then explained as a whole
        said = f"{record_.layer.name} is explained without the lines of its source, which failed: {error}"
        warnings.warn(said, stacklevel=2)
        return None


@lru_cache(maxsize=256)
def written_lines(site: Site) -> tuple[WrittenLine, ...]:
    """The lines of a record in a notation's symbols; none where they cannot be read off its source."""
    recording = recorded(site.record)
    if recording is None or recording.out not in recording.given.keys() | recording.operations.keys():
        return ()
    return tuple(LineWriter(site, recording).lines())


class LineWriter:
    """Writes a recording's lines in the symbols of a site."""

    def __init__(self, site: Site, recording: Recording):
        self.site, self.recording = site, recording
        self.rows = site.notation.rows
        self.fixed: set[ex.Expression] = set()
        self.tables: set[str] = set()  # parameters whose rows are taken, or added one by one
        self.error = -1
        self.names: dict[str, ex.Name] = {}
        self.differentiated: set[ex.Name] = set()
        self.symbols: dict[int, ex.Expression] = {}
        self.given()
        self.names = {recording.names[ref]: each for ref, each in self.symbols.items()
                      if ref in recording.names and isinstance(each, ex.Name)}  # fmt: skip
        self.named()
        shapes = {each.shape for each in recording.values.values() if each.ndim == 3}
        self.grouped = [of for of in shapes if (1, of[1], 1) in shapes and of[1] > 1]
        self.known: tuple[int, Values] | None = None
        self.transcription = Transcription(recording, self.symbols, {}, self.fixed)

    # ------------------------------------------------------------------------------------------- symbols

    def given(self) -> None:
        """Symbols of the layer's input, output and parameters."""
        site, recording = self.site, self.recording
        taken = {each for ref in recording.operations for each in recording.operands(ref)}
        self.symbols[recording.out] = site.gives
        if recording.dx >= 0:
            self.symbols[recording.dx] = site.back[0]
        by_rows = {recording.root(each.ref) for made in recording.operations.values() if made.name in ("getitem", "add")
                   for each in made.args[: 1 if made.name == "getitem" else 2] if isinstance(each, Array)}  # fmt: skip
        for ref, (kind, path) in recording.given.items():
            if kind == "param" and ref not in taken:
                continue
            if kind == "param":
                symbol = param_name(site.notation, path, site.number)
                self.fixed.add(symbol)
                if ref in by_rows:
                    self.tables.add(parameter(path))
                laid = self.turned(parameter(path), recording.values[ref])
                self.symbols[ref] = ex.Transposed(symbol) if laid else symbol
            else:
                self.symbols[ref] = site.takes[0] if kind == "x" else site.error
                self.error = ref

    def named(self) -> None:
        """Symbols of the values that the author named; none where the name then goes to a value made of it."""
        recording = self.recording
        params = {parameter(path) for kind, path in recording.given.values() if kind == "param"}
        for ref, made in recording.operations.items():
            name = recording.names.get(ref, "")
            if not made.forward and name.removeprefix("d").removeprefix("_") in params:
                continue  # a gradient: it has a line of its own
            root = recording.root(ref)
            if not name or root in self.symbols or root in recording.moved or self.rewritten(made):
                continue
            slope = None if made.forward or name.startswith("delta") else self.slope(ref, name)
            self.symbols[ref] = symbol = slope or self.symbol(name, made.forward)
            if recording.stacked.get(ref, 0) < self.site.record.positions:  # statistics of a batch
                self.fixed.add(symbol)
            if isinstance(symbol, ex.Name) and ref in recording.slopes:
                self.differentiated.add(symbol)

    def slope(self, ref: int, name: str) -> ex.Expression | None:
        """∂C/∂ of the forward value by which a backward value is the derivative, if it is one."""
        recording, found = self.recording, []
        for of, slope in recording.slopes.items():
            symbol = self.symbols.get(recording.root(of))
            value = recording.values.get(ref)
            if isinstance(symbol, ex.Name) and value is not None and value.size == slope.size:
                other = recording.others[ref].reshape(slope.shape)
                if alike(value.reshape(slope.shape), slope) and alike(other, recording.other_slopes[of]):
                    found.append((name.removeprefix("d_").removeprefix("d") == self.recording.names.get(of), symbol))
        return self.site.notation.partial(max(found, key=lambda each: each[0])[1]) if found else None

    def rewritten(self, operation: RecordedOperation) -> bool:
        """Whether the name says nothing of this value: the author gives it to another value that is made of this one,
        or it is a helper's, which is called several times."""
        recording, ref = self.recording, operation.ref
        name, deep = recording.names[ref], recording.depths[ref] > OWN
        if deep and name in NOTHING:
            return True
        out = recording.names.get(recording.out) or self.site.gives.base
        for other, made in recording.operations.items():
            if other == ref or made.forward != operation.forward or other not in recording.names | {recording.out: ""}:
                continue
            if deep and other not in recording.same and recording.lines.get(other) == recording.lines[ref]:
                return True
            if name == (out if other == recording.out else recording.names[other]) and ref in recording.made_of(other):
                return True
        return False

    def symbol(self, name: str, forward: bool) -> ex.Expression:
        """The symbol of a variable: dW is ∇W, d_g and dg are ∂C/∂g of a g of the forward pass."""
        notation = self.site.notation
        if not forward:
            for start in ("d_", "d", "delta_"):
                of = self.names.get(name.removeprefix(start)) if name.startswith(start) else None
                if of is not None and of not in self.differentiated and (start != "delta_" or notation.name == "ng"):
                    made = notation.partial(of)
                    return notation.partial(self.site.name(*self.spelled(name.removeprefix(start)))) if made in (
                        self.site.error, *self.symbols.values()) else made  # fmt: skip
        made = self.site.name(*self.spelled(name))
        while made in self.symbols.values() or made in self.fixed:  # another value of the same name
            made = ex.Name(f"{made.base}′", made.above, made.below, f"{made.key}_")
        if forward:
            self.names[name] = made
        return made

    def spelled(self, name: str) -> tuple[str, str]:
        """A variable's symbol, x̂ of x_hat, and its key."""
        base, *rest = name.strip("_").split("_")
        letter = LETTERS.get(base, base)
        if rest and rest[0] in MARKS:
            letter, rest = letter + MARKS[rest[0]], rest[1:]
        return "_".join([letter, *rest]), name

    # --------------------------------------------------------------------------------------------- lines

    def values(self) -> Values:
        """What the symbols are worth, and whatever was transcribed so far."""
        written = self.transcription
        count = sum(map(len, (written.products, written.firsts, written.computed, written.numbers, written.moved)))
        if self.known is None or self.known[0] != count:
            self.known = count, self.all_values()
        return self.known[1]

    def all_values(self) -> Values:
        """The same, computed."""
        recording = self.recording
        forms: dict[ex.Expression, list[np.ndarray]] = {}
        for ref, value in recording.values.items():
            symbol = self.symbols.get(root := recording.root(ref))
            if symbol is None or value.size != recording.values[root].size:
                continue
            if isinstance(symbol, ex.Transposed):
                symbol, value = symbol.of, value.T
            found = forms.setdefault(symbol, [])
            found.insert(0 if ref == root else len(found), value)
            if value.ndim > 2:
                found.append(value.squeeze())
        known = {symbol: found[0] for symbol, found in forms.items()}
        written = self.transcription
        for product, (operands, indices, result) in written.products.items():
            parts = [self.lettered(forms[each], len(letters)) for each, letters in zip(operands, indices, strict=True)]
            known[product] = np.einsum(f"{','.join(indices)}->{result}", *parts)
        for made, (table, count) in written.firsts.items():
            known[made] = known[table][:count]
        for made, compute in written.computed.items():
            known[made] = compute(recording.values.__getitem__)
            forms[made] = [known[made].squeeze()]
        known |= {number: np.asarray(worth) for number, worth in written.numbers.items()}
        known |= {symbol: moved(known[of], steps) for symbol, (of, steps) in written.moved.items() if of in known}
        indexed = frozenset(written.moved)
        return Values(known, frozenset(self.fixed) | frozenset(written.numbers), self.rows, forms, indexed)

    def lettered(self, forms: list[np.ndarray], axes: int) -> np.ndarray:
        """A value with so many axes, those of one entry left out."""
        return next((each for each in (form.squeeze() for form in forms) if each.ndim == axes), forms[0])

    def lines(self) -> list[WrittenLine]:
        """The lines whose text gives their value: forward, then backward, each gradient once its factors are there."""
        recording = self.recording
        self.indices()
        found: list[WrittenLine] = []
        waiting = dict(recording.factors)
        operations = recording.operations.values()
        arrived = set(recording.given) | {each.ref for each in operations if each.forward}
        if recording.out in recording.given:
            found += self.passed(recording.out, self.site.gives, self.site.takes[0], True)
        for each in sorted(operations, key=lambda each: not each.forward):
            if not each.forward:
                found += self.gradients(waiting, arrived)
            arrived.add(each.ref)
            found += self.line(each)
        found += self.gradients(waiting, None)
        found = self.used(found)
        if recording.dx in recording.given and self.site.record.dxs[0] is not None:
            found += self.passed(recording.dx, self.site.back[0], self.site.error, False)
        return found

    def used(self, lines: list[WrittenLine]) -> list[WrittenLine]:
        """The lines of the layer's results, and of values that another line takes, or whose error it takes."""

        def names(symbol: ex.Expression) -> set[ex.Expression]:
            return {symbol, self.site.notation.partial(symbol)} if isinstance(symbol, ex.Name) else {symbol}

        while True:
            taken = {self.plain(each) for line in lines for each in every(line.right)}
            for ref, made in self.recording.operations.items():  # of a part what it is a part of
                if made.part and ref not in self.recording.same and self.symbols.get(ref) in taken:
                    taken |= {self.symbols[each] for each in self.recording.made_of(ref) if each in self.symbols}
            left = [line for line in lines if line.gives or names(self.plain(line.left)) & taken]
            if len(left) == len(lines):
                return lines
            lines = left

    def plain(self, symbol: ex.Expression) -> ex.Expression:
        """A symbol without its index."""
        if isinstance(symbol, ex.Derivative):
            return replace(symbol, by=self.plain(symbol.by))
        return replace(symbol, below="") if isinstance(symbol, ex.Name) else symbol

    def indices(self) -> None:
        """Learns the indices of values from products: those of one shape in one line have the same."""
        letters = self.transcription.letters
        rights = {ref: right for ref in self.symbols if (right := self.right(ref)) is not None}
        known = self.values().known
        for _ in range(2):
            for ref, right in rights.items():
                found = [each for each in (self.symbols.get(ref), *symbols(right, known)) if each in known]
                for each in found:
                    sizes = known[each].squeeze().shape
                    alike = [
                        letters[other] for other in found if other in letters and known[other].squeeze().shape == sizes
                    ]
                    if alike and len(alike[0]) == len(sizes) > 1:
                        letters.setdefault(each, alike[0])

    def right(self, ref: int) -> ex.Expression | None:
        """The right side of a value's line; None where it has no equation."""
        with suppress(UnwritableError, LookupError):
            return self.transcription.line(ref)

    def passed(self, ref: int, left: ex.Expression, right: ex.Expression, forward: bool) -> list[WrittenLine]:
        """What is given as it came."""
        value, gives = self.recording.values[ref], "out" if forward else "dx"
        own = self.site.record.out if forward else self.site.record.dxs[0]
        if own.shape != value.shape:
            right, value = ex.Call(ex.Name("reshape"), right), value.reshape(own.shape)
        return [self.compared(WrittenLine("", left, right, value, forward, gives, shape(value.shape)))]

    def line(self, line: RecordedOperation) -> list[WrittenLine]:
        """A line as an equation; nothing where it has none, or where that is not its value."""
        left, value = self.symbols.get(line.ref), self.recording.values.get(line.ref)
        if left is None or value is None or not np.issubdtype(value.dtype, np.floating):
            return []
        gives = {self.recording.out: "out", self.recording.dx: "dx"}.get(line.ref, "")
        if gives and value.shape[:1] == (1,):  # without an axis that a library's function added
            value = value.reshape(np.shape(self.site.record.out if gives == "out" else self.site.record.dxs[0]))
        right = self.right(line.ref)
        if right is None or right == left:
            return []
        made = self.at_positions(left, right, value, self.recording.stacked.get(line.ref, 0))
        if made is None:
            return []
        left, right, sizes = made
        if value.ndim > 1 and value.shape[-1] == 1 and not gives:  # a number at each position
            sizes, value = sizes.removesuffix("×1"), value[..., 0]
        name, shown = self.recording.names.get(line.ref, ""), ""
        if right in self.transcription.called:
            name = self.transcription.called[right]
        letters = [each for each in self.transcription.letters.values() if len(each) == 3]
        index = self.transcription.letters.get(self.plain(left), "")
        heads = [letter for letter in index if letter != "t" and all(letter in each for each in letters)]
        axis = index.index(heads[0]) if heads else None
        if axis is not None and not gives and (part := value.squeeze()).ndim == len(index) == 3:  # one head of several
            shown, value = f"{index[axis]} = 1 of {part.shape[axis]}", np.take(part, 0, axis)
            sizes = shape(value.shape)
        return [self.compared(WrittenLine("", left, right, value, line.forward, gives, sizes, name=name, shown=shown))]

    def at_positions(
        self, left: ex.Expression, right: ex.Expression, value: np.ndarray, least: int
    ) -> tuple[ex.Expression, ex.Expression, str] | None:
        """Both sides with their subscripts and the shapes in words, as a whole or at each position; None where neither
        way of reading gives the value."""
        values, letters = self.values(), self.transcription.letters
        if any(each in letters for each in (left, *symbols(right, values.known))):
            value, least = value.squeeze(), 0
        whole = max(value.ndim - 1, 0)  # at each position first, where vectors stand for themselves
        indexed = any(each in self.transcription.products for each in symbols(right, values.known))
        least = value.ndim if indexed else least
        for axes in sorted(range(least, value.ndim + 1), key=lambda n: (n > whole, whole - n)):
            lead = value.shape[:axes]
            if (laid := self.gives(right, values, lead, value)) is not None:
                index = self.index(left, right, lead, values) if axes else ""
                text = values.subscripted(laid, lead, index)
                index = "" if right in self.transcription.called else index
                return at(left, index), text, sizes_of(values, laid, lead, value)
        for of in self.grouped:  # groups of channels, over all places
            if value.shape in (of, (1, of[1], 1)):
                groups, turned = values.by_groups(*of), np.moveaxis(value, 1, 0)
                if (laid := self.gives(right, groups, turned.shape[:1], turned)) is not None:
                    return at(left, "j"), groups.subscripted(laid, turned.shape[:1], "j"), shape(value.shape)
        return None

    def gives(self, right: ex.Expression, values: Values, lead: Lead, value: np.ndarray) -> ex.Expression | None:
        """The right side as it is laid out where its text gives the value; else None."""
        expected = values.matrix(value, len(lead))
        try:
            laid = values.laid(right, lead)
            got = values.of(laid, lead)
            got = np.broadcast_to(got, (*lead, *got.shape[-2:]))
        except (MisfitError, ValueError):
            return None
        return laid if got.shape == expected.shape and close(got, expected) else None

    def index(self, left: ex.Expression, right: ex.Expression, lead: Lead, values: Values) -> str:
        """The index of these first axes: the letters that a value has there, or t, p, q by their number."""
        if any(each in self.transcription.computed for each in symbols(right, values.known)):
            return "p"
        for each in (left, *symbols(right, values.known)):
            letters = self.transcription.letters.get(each, "")
            if (
                each in values.known
                and values.known[each].squeeze().shape[: len(lead)] == lead
                and len(letters) >= len(lead)
            ):
                return letters[: len(lead)]
        return self.site.record.index(len(lead))

    def gradients(self, waiting: dict[tuple, Factor], arrived: set[int] | None) -> list[WrittenLine]:
        """The gradients whose factors are all there; with None all that are left."""
        found = []
        for path, factor in list(waiting.items()):
            refs = [self.recording.number(each) for each in jax.tree.leaves(factor)]
            if arrived is not None and not all(ref in arrived for ref in refs):
                continue
            del waiting[path]
            found += self.gradient(path, factor)
        return found

    def gradient(self, path: tuple, factor: Factor) -> list[WrittenLine]:
        """∇ of one parameter."""
        name = parameter(path)
        symbol = param_name(self.site.notation, path, self.site.number)
        value = self.recording.grads[path]
        laid = value.T if self.turned(name, value) else value
        left = self.site.notation.gradient(symbol)
        try:
            right, index = gradient_of(factor, self, value)
            values = self.values()
            got = values.of(right)
        except (UnwritableError, MisfitError, LookupError, ValueError):
            return []
        beside = largest([self.recording.values.get(self.error, np.zeros(()))])
        if got.shape != values.matrix(laid).shape or not close(got, values.matrix(laid), beside):
            return []
        text = values.subscripted(right, (), "")
        known, sizes = self.recording.refs, sizes_of(values, right, (), value)
        factor = jax.tree.map(lambda leaf: self.recording.values[known[id(leaf)]], factor)
        return [self.compared(WrittenLine("", at(left, index), text, value, False, name, sizes, factor=factor))]

    def turned(self, name: str, value: np.ndarray) -> bool:
        """Whether a parameter or its gradient is shown as (in, out); a table's rows stay rows."""
        return self.rows and value.ndim == 2 and name not in self.tables

    def computed(self, made: ex.Expression, value: np.ndarray) -> ex.Expression:
        """A sum over axes that no symbol has: its value is the factor's own."""
        self.transcription.computed[made] = lambda _: value
        return made

    def compared(self, line: WrittenLine) -> WrittenLine:
        """A line with its key, its value in the layer's dtype, and its distance from equal values."""
        record = self.site.record
        dtype = np.asarray(record.out).dtype
        value, apart = line.value.astype(dtype), [0.0]
        beside = 0.0 if line.gives == "out" else largest([record.d_out, *jax.tree.leaves(record.grads)])
        for other in given_by(record, line.gives):
            value = value.reshape(np.shape(other))
            apart.append(ulps(value, other, beside))
            value = np.asarray(other) if len(apart) == 2 else value
        ulp = max(apart, key=lambda each: np.inf if np.isnan(each) else each)
        if line.factor is not None and self.turned(line.gives, value):
            value = value.T
        return replace(line, key=ex.key_of(line.left), value=value, ulp=ulp)


NOTHING = {"out", "result"}
"""Names that say nothing of a value inside a helper."""

MARKS = {"hat": "\u0302", "prime": "′", "bar": "\u0304", "tilde": "\u0303"}
LETTERS = GREEK | {
    "mu": "μ", "sigma": "σ", "lambda": "λ", "theta": "θ", "rho": "ρ", "tau": "τ", "phi": "φ", "omega": "ω", "eta": "η",
}  # fmt: skip
"""Greek letters and marks by the words of variables."""


def given_by(record: Record, gives: str) -> list[Any]:
    """The layer's own value and autodiff's: the same of a right layer."""
    known = {"": (), "out": (record.out,), "dx": (record.dxs[0], record.reference[1])}
    found = known[gives] if gives in known else [
        leaf for tree in (record.grads, record.reference[0])
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda each: isinstance(each, Untrained))
        if parameter(path) == gives and not isinstance(leaf, Untrained)
    ]  # fmt: skip
    return [each for each in found if each is not None]


def moved(value: np.ndarray, steps: int) -> np.ndarray:
    """Values of each step so many steps later; 0 where there is none."""
    found = np.roll(value, -steps, 0)
    found[slice(-steps, None) if steps > 0 else slice(-steps)] = 0
    return found


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
    texts = [shape(tuple(n for n in each if n != 1)) for each in parts]
    result = shape(tuple(n for n in (parts[0][0], parts[-1][1]) if n != 1))
    return f"{'·'.join(texts)} → {result}{over}"


def every(expression: ex.Expression) -> Iterator[ex.Expression]:
    """All parts of an expression."""
    yield expression
    for each in expression.children():
        yield from every(each)


def first_product(expression: ex.Expression) -> ex.Product | None:
    """The matrix product that an equation is, beside terms and factors of its entries."""
    match expression:
        case ex.Product(sign=""):
            return expression
        case ex.Product(factors=parts) | ex.Sum(terms=parts):
            return next((found for each in parts if (found := first_product(each)) is not None), None)
    return None


# --------------------------------------------------------------------------------------------- factors


@singledispatch
def gradient_of(factor: Factor, writer: LineWriter, grad: np.ndarray) -> tuple[ex.Expression, str]:
    """∇ of a parameter as its factor's equation, and the index of the parameter there."""
    raise UnwritableError(f"{type(factor).__name__} has no equation")


def summed(sums: int, of: ex.Expression, writer: LineWriter) -> ex.Expression:
    """Σ over leading axes, those of the positions among them."""
    axes = sums + writer.site.record.positions
    return ex.BigSum(writer.site.record.index(axes), of) if axes else of


@gradient_of.register
def _(factor: Outer, writer: LineWriter, grad: np.ndarray) -> tuple[ex.Expression, str]:
    delta, a = writer.transcription.value(factor.delta), writer.transcription.value(factor.a)
    return summed(factor.sums, writer.site.outer(delta, a), writer), ""


@gradient_of.register
def _(factor: Plain, writer: LineWriter, grad: np.ndarray) -> tuple[ex.Expression, str]:
    return summed(factor.sums, writer.transcription.value(factor.delta), writer), ""


@gradient_of.register
def _(factor: FactorSum, writer: LineWriter, grad: np.ndarray) -> tuple[ex.Expression, str]:
    return ex.Sum(tuple(gradient_of(use, writer, grad)[0] for use in factor.uses)), ""


@gradient_of.register
def _(factor: Rows, writer: LineWriter, grad: np.ndarray) -> tuple[ex.Expression, str]:
    index = "t" if np.ndim(factor.tokens) else ""
    delta, tokens = (at(writer.transcription.value(each), index) for each in (factor.delta, factor.tokens))
    outer = writer.site.outer(ex.Call(ex.Name("unit"), tokens), delta)
    return writer.computed(ex.BigSum(index, outer) if index else outer, grad), ""


@gradient_of.register
def _(factor: Patches, writer: LineWriter, grad: np.ndarray) -> tuple[ex.Expression, str]:
    window = factor.window
    before = padding_before(window.padding)
    place = window_place(multiple(window.stride), multiple(window.dilation), before)
    delta, a = writer.transcription.value(factor.delta), writer.transcription.value(factor.a)
    delta, a = (at(delta, place), at(a, "p")) if factor.transposed else (at(delta, "p"), at(a, place))
    return writer.computed(ex.BigSum("p", writer.site.outer(delta, a)), grad), "k"
