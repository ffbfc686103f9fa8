"""The equations of a layer read off its source: the author's own lines, each with its value.

Each line is written in the notation's symbols, evaluated from its text, and held against the value that the line gave;
one that does not agree is left out. The layer's own results are held against `jax.grad` too.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from jaxnet.explaining import expressions as ex
from jaxnet.explaining.evaluation import Lead, MisfitError, Values, sizes_of, symbols
from jaxnet.explaining.factor_equations import gradient_of
from jaxnet.explaining.line_symbols import LineSymbols
from jaxnet.explaining.notation import ExplainError
from jaxnet.explaining.numbers import shape
from jaxnet.explaining.recorder import record
from jaxnet.explaining.recording import RecordedOperation, Recording, close
from jaxnet.explaining.records import Record, Site, param_name, parameter
from jaxnet.explaining.transcription import Transcription, UnwritableError, at
from jaxnet.explaining.ulp import largest, ulps
from jaxnet.factors import Factor
from jaxnet.layer import Untrained


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
def recorded(record_: Record, by_steps: bool = False) -> Recording | None:
    """A leaf's lines at one example; None where it is no leaf of one array, or its source is not there.

    by_steps: whether the slopes at a scan's steps are wanted.
    """
    if record_.kind != "leaf" or not record_.single or record_.layer.rebuild is not None:
        return None
    try:
        return record(
            record_.layer, record_.params, record_.x, record_.d_out, record_.positions, record_.training, by_steps
        )
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
        self.chosen = LineSymbols(site, recording)
        self.symbols, self.fixed = self.chosen.symbols, self.chosen.fixed
        shapes = {each.shape for each in recording.values.values() if each.ndim == 3}
        self.grouped = [of for of in shapes if (1, of[1], 1) in shapes and of[1] > 1]
        self.known: tuple[int, Values] | None = None
        self.as_written = False  # whether arrays stand whole first, and are broadcast, as in the author's lines
        self.transcription = Transcription(recording, self.symbols, {}, self.fixed)

    # --------------------------------------------------------------------------------------------- lines

    def values(self) -> Values:
        """The values of the symbols and of all lines transcribed so far."""
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
        fixed, rows = frozenset(self.fixed) | frozenset(written.numbers), self.site.notation.rows
        return Values(known, fixed, rows, forms, indexed, self.as_written)

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
            taken = {self.plain(each) for line in lines for each in line.right.every()}
            for ref, made in self.recording.operations.items():  # of a part, the whole
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

    @property
    def stepped(self) -> dict[ex.Expression, int]:
        """The symbols of values that a scan or `vmap` has at each step, and over how many of these."""
        root = self.recording.root
        return {self.symbols[root(ref)]: axes for ref, axes in self.recording.stacked.items()
                if axes and root(ref) in self.symbols}  # fmt: skip

    def bare(self, symbol: ex.Expression) -> ex.Expression:
        """A symbol without its step; of ∂C/∂h that of h."""
        symbol = self.transcription.moved.get(symbol, (symbol, 0))[0]
        return self.bare(symbol.by) if isinstance(symbol, ex.Derivative) else symbol

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
        """The line of an output that is passed on unchanged."""
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
        if not gives:
            value, shown = self.one_head(self.transcription.letters.get(self.plain(left), ""), value)
            sizes = shape(value.shape) if shown else sizes
        return [self.compared(WrittenLine("", left, right, value, line.forward, gives, sizes, name=name, shown=shown))]

    def one_head(self, index: str, value: np.ndarray) -> tuple[np.ndarray, str]:
        """Of a value with indices the matrix of the first head, and of its group, and these in words."""
        letters, part, taken = self.transcription.letters.values(), value.squeeze(), []
        longest = max(map(len, letters), default=0)
        heads = [each for each in index if each != "t" and all(each in of for of in letters if len(of) == longest)]
        if part.ndim != len(index):
            return value, ""
        for each in heads[: max(part.ndim - 2, 0)]:
            axis = index.index(each)
            taken.append(f"{each} = 1 of {part.shape[axis]}")
            index, part = index.replace(each, ""), np.take(part, 0, axis)
        return (part, ", ".join(taken)) if taken else (value, "")

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
        if self.as_written:
            whole = max(
                (self.stepped.get(self.bare(each), 0) for each in (left, *symbols(right, values.known))), default=0
            )
        for axes in sorted(range(least, value.ndim + 1), key=lambda n: (n > whole, abs(whole - n))):
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
        except ExplainError:  # an input that no line could take
            raise
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
        laid = value.T if self.chosen.turned(name, value) else value
        left = self.site.notation.gradient(symbol)
        try:
            right, index = gradient_of(factor, self.transcription, self.site, value)
            values = self.values()
            got = values.of(right)
        except (UnwritableError, MisfitError, LookupError, ValueError):
            return []
        beside = largest([self.recording.values.get(self.chosen.error, np.zeros(()))])
        if got.shape != values.matrix(laid).shape or not close(got, values.matrix(laid), beside):
            return []
        text = values.subscripted(right, (), "")
        known, sizes = self.recording.refs, sizes_of(values, right, (), value)
        factor = jax.tree.map(lambda leaf: self.recording.values[known[id(leaf)]], factor)
        return [self.compared(WrittenLine("", at(left, index), text, value, False, name, sizes, factor=factor))]

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
        if line.factor is not None and self.chosen.turned(line.gives, value):
            value = value.T
        return replace(line, key=ex.key_of(line.left), value=value, ulp=ulp)


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
