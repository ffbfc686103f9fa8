"""An author's operations as equations: `W.T @ delta * (h > 0)` is Wᵀδ ⊙ (h > 0).

A value becomes its symbol. One that has no symbol is written out: a helper's result as the expression that the helper
returns. Casts and new shapes of the same numbers are left out; functions of libraries are called by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from jaxnet.explaining import expressions as ex
from jaxnet.explaining.kinds import INDICES
from jaxnet.explaining.recording import FUNCTIONS, SAME, Array, RecordedOperation, Recording, arrays_in

KEYS = {"σ": "sigmoid", "√": "sqrt"}
SEVERAL = {"maximum": "max", "minimum": "min", "where": "where", "clip": "clip"}
SIGNS = {"greater": ">", "less": "<", "greater_equal": "≥", "less_equal": "≤", "equal": "=", "not_equal": "≠"}
REDUCING = {"sum", "mean", "var", "max", "min"}
FLIP = ex.Name("flip")
EXPECTED = ex.Name("E", key="E")


class UnwritableError(Exception):
    """An operation that has no equation here."""


@dataclass
class Transcription:
    """Equations of a recording's values. symbols: of values, by their numbers; more are added by whoever writes lines.

    numbers: the value of each `Number` that was written. products: of each product with indices its operands and
    the indices of these and of the result. letters: the indices of the axes of a value, those of one entry left out.
    firsts: of the first rows of a table, the table and how many. computed: a function's value, out of
    the values of all numbers. called: the names of functions of the author's that are not written out. by_rows: of a
    sum along the last axis, how many axes stand before it. of_each_row: of one entry of each row, which one.
    """

    recording: Recording
    symbols: dict[int, ex.Expression]
    numbers: dict[ex.Expression, float]
    fixed: set[ex.Expression]
    moved: dict[ex.Expression, tuple[ex.Expression, int]] = field(default_factory=dict)
    within: set[int] = field(default_factory=set)
    products: dict[ex.Expression, tuple[list[ex.Expression], list[str], str]] = field(default_factory=dict)
    letters: dict[ex.Expression, str] = field(default_factory=dict)
    firsts: dict[ex.Expression, tuple[ex.Expression, int]] = field(default_factory=dict)
    computed: dict[ex.Expression, Callable[[Callable], np.ndarray]] = field(default_factory=dict)
    called: dict[ex.Expression, str] = field(default_factory=dict)
    by_rows: dict[ex.Expression, int] = field(default_factory=dict)
    of_each_row: dict[ex.Expression, ex.Expression] = field(default_factory=dict)

    def line(self, ref: int) -> ex.Expression:
        """The expression of a value, also of one that has a symbol. Raises `UnwritableError` where it has none."""
        operation = self.recording.operations.get(ref)
        if operation is None or operation.part or ref in self.within:
            raise UnwritableError("a value that no operation gives")
        self.within.add(ref)
        try:
            return self.written(operation)
        except UnwritableError:
            return self.call(ref)
        finally:
            self.within.discard(ref)

    def value(self, value: Any) -> ex.Expression:
        """An array's symbol, or the expression that gives it."""
        ref = self.recording.number(value)
        if ref is None:
            raise UnwritableError("a value that no operation gives")
        return self.numbered(ref)

    def numbered(self, ref: int) -> ex.Expression:
        """The same for a value's number."""
        ref = self.recording.root(ref)
        if ref in self.symbols:
            return self.symbols[ref]
        if ref in self.recording.moved:
            of, steps = self.recording.moved[ref]
            return self.move(self.numbered(of), steps)
        return self.line(ref)

    def move(self, expression: Any, steps: int) -> Any:
        """An expression at a step before or after: hₜ₋₁."""
        if isinstance(expression, ex.Name | ex.Derivative) and expression in self.symbols.values():
            if expression in self.fixed:
                return expression
            moved = at(expression, f"t{'+' if steps > 0 else '−'}{abs(steps)}")
            self.moved[moved] = (expression, steps)
            return moved
        return rebuilt(expression, lambda each: self.move(each, steps))

    def number(self, value: float) -> ex.Expression:
        """A number, with powers of ten as such, and the root of another as that."""
        if isinstance(value, float) and value in self.recording.roots:
            return ex.Call(ex.Name("√", key="sqrt"), self.number(self.recording.roots[value]))
        exponent = round(math.log10(abs(value))) if value and math.isfinite(value) else 0
        text = f"{value:g}".replace("inf", "∞")
        if exponent <= -3 and math.isclose(value, 10.0**exponent):
            text = f"10{ex.raised(str(exponent))}"
        made = ex.Number(text.replace("-", "−"))
        self.numbers[made] = float(value)
        return made

    def of(self, operand: Any) -> ex.Expression:
        """An operand: an array's symbol or expression, or a number."""
        if isinstance(operand, Array):
            return self.numbered(operand.ref)
        if isinstance(operand, bool) or not isinstance(operand, int | float | np.number):
            raise UnwritableError(f"{type(operand).__name__} is no number")
        return self.number(operand if isinstance(operand, float) else int(operand))

    def written(self, operation: RecordedOperation) -> ex.Expression:
        """An operation's equation."""
        name, args, options = operation.name, operation.args, operation.options
        if name in SAME:
            return self.of(args[0])
        if name in REDUCING:
            return self.reduced(operation)
        if name in FUNCTIONS:
            function = FUNCTIONS[name]
            return ex.Call(ex.Name(function, key=KEYS.get(function, function)), self.of(args[0]))
        if name == "maximum" and len(args) == 2 and isinstance(args[1], int | float) and args[1] == 0:
            return ex.Call(ex.Name("relu", key="relu"), self.of(args[0]))
        if name in SEVERAL:
            return ex.Call(ex.Name(SEVERAL[name], key=name), ex.Listed(tuple(map(self.of, args))))
        if name in SIGNS:
            return ex.Comparison(self.of(args[0]), SIGNS[name], self.of(args[1]))
        match name, args:
            case (("matmul" | "dot"), (left, right)):
                return ex.Product((self.of(left), self.of(right)))
            case "multiply", (left, right):
                return times(self.of(left), self.of(right))
            case (("divide" | "true_divide"), (left, right)):
                return ex.Fraction(self.of(left), self.of(right))
            case (("add" | "subtract"), (left, right)):
                first, second = self.of(left), self.of(right)
                if self.numbers.get(second) == 0:
                    return first
                return ex.Sum((*terms(first), *(terms(second) if name == "add" else (ex.Minus(second),))))
            case "power", (of, int() | float() as exponent):
                return ex.Power(self.of(of), f"{exponent:g}")
            case "square", (of,):
                return ex.Power(self.of(of), "2")
            case "negative", (of,):
                return ex.Minus(self.of(of))
            case "rsqrt", (of,):
                return ex.Fraction(self.number(1), ex.Call(ex.Name("√", key="sqrt"), self.of(of)))
            case "logsumexp", (of, *_):
                return ex.Call(ex.Name("ln"), ex.BigSum("", ex.Call(ex.Name("exp"), self.of(of))))
            case "outer", (left, right):
                return ex.Product((self.of(left), transposed(self.of(right))))
            case ("transpose", (of,)) | ("swapaxes", (of, *_)):
                return transposed(self.of(of))
            case "concatenate", ([*parts], *_):
                return ex.Listed(tuple(map(self.of, parts)))
            case "pmean", (of, *_):  # over the examples of a batch
                return ex.Call(EXPECTED, self.of(of))
            case "flip", (of, *_):
                return ex.Call(FLIP, self.of(of))
            case "getitem", (of, index):
                return self.entry(of, index)
            case "einsum", (str(indices), *operands):
                return self.product(indices, operands)
            case "conv_general_dilated", (x, kernel, *_):
                return self.convolution(x, kernel, options, operation.ref)
        return self.named(operation)

    def entry(self, of: Array, index: Any) -> ex.Expression:
        """Rows or entries that an index names; of an index that only adds axes, or takes the only entry, the whole."""
        parts = index if isinstance(index, tuple) else (index,)
        if all(each is None or each is ... or each == slice(None) for each in parts if not isinstance(each, Array)):
            arrays = [each for each in parts if isinstance(each, Array)]
            if not arrays:
                return self.of(of)
            if len(arrays) == len(parts) == 2 and self.counts(arrays[0]):  # one of each row
                made = ex.Entry(self.of(of), ex.Name(f"t, {ex.written(which := self.of(arrays[1]))}"))
                self.of_each_row[made] = which
                self.computed[made] = lambda value: value(of.ref)[value(arrays[0].ref), value(arrays[1].ref)]
                return made
        elif parts == (0,) and of.shape[0] == 1:
            return self.of(of)
        elif isinstance(index, slice) and not index.start and not index.step:
            made = ex.Entry(self.of(of), ex.Words("t"))
            self.firsts[made] = (made.of, index.stop)
            return made
        return ex.Entry(self.of(of), self.of(index))

    def counts(self, index: Array) -> bool:
        """Whether an index is 0, 1, 2, … whatever the function is given."""
        value = self.recording.values[index.ref]
        return value.ndim == 1 and not self.recording.varies(index.ref) and np.array_equal(value, np.arange(len(value)))

    def named(self, operation: RecordedOperation) -> ex.Expression:
        """Another function of a library, by its name."""
        return self.by_name(operation.name, [each for each in operation.args if any(arrays_in(each))], operation.ref)

    def by_name(self, name: str, args: list, ref: int) -> ex.Expression:
        """A function by its name, whose value is the one that it gave."""
        of = [self.of(each) for each in args]
        if not of or not name or ref not in self.recording.values:
            raise UnwritableError(f"{name} has no equation")
        made = ex.Call(ex.Name(name), of[0] if len(of) == 1 else ex.Listed(tuple(of)))
        self.computed[made] = lambda value: value(ref)
        return made

    def known_by_value(self, made: ex.Expression, value: np.ndarray) -> ex.Expression:
        """A sum over axes that no symbol has: its value is the one that is given."""
        self.computed[made] = lambda _: value
        return made

    def call(self, ref: int) -> ex.Expression:
        """An author's function by its name: its own lines have no equation here."""
        name, args = self.recording.calls.get(ref, ("", ()))
        made = self.by_name(name, [each for each in arrays_in(args) if self.recording.varies(each.ref)], ref)
        self.called[made] = name
        return made

    def product(self, indices: str, operands: list[Array]) -> ex.Expression:
        """A product with indices, Σₜ PₜₛVₜ: `indices` as einsum has them; those of one entry are left out."""
        inputs, result = indices.replace(" ", "").split("->")
        factors, sizes = [self.of(each) for each in operands], {}
        for each, letters in zip(operands, inputs.split(","), strict=True):
            sizes |= dict(zip(letters, each.shape, strict=True))
        alone = {ord(letter): None for letter, size in sizes.items() if size == 1}
        own, result = inputs.translate(alone).split(","), result.translate(alone)
        if not all(isinstance(each, ex.Name | ex.Derivative) for each in factors):
            raise UnwritableError("a product with indices of what has no symbol")
        over = "".join(letter for letter in dict.fromkeys("".join(own)) if letter not in result)
        made: ex.Expression = ex.Product(tuple(at(each, letters) for each, letters in zip(factors, own, strict=True)))
        made = ex.BigSum(over, made) if over else made
        self.products[made] = (factors, own, result)
        self.letters |= dict(zip(factors, own, strict=True)) | {made: result}
        return made

    def convolution(self, x: Array, kernel: Array, options: dict[str, Any], ref: int) -> ex.Expression:
        """Σₖ Wₖ xₚ₊ₖ, or Σₖ Wₖ xₚ₋ₖ of a kernel that is flipped; of stride s, dilation d and padding l xₛₚ₊dₖ₋ₗ."""
        of = self.opened(kernel.ref)
        flipped = isinstance(of, ex.Call)
        of = of.of if isinstance(of, ex.Call) else of
        stride, spread = multiple(options.get("window_strides")), multiple(options.get("lhs_dilation"))
        dilation, before = options.get("rhs_dilation"), padding_before(options.get("padding"))
        if flipped and before:  # of the flipped window: its reach less the padding before
            numbers = options.get("dimension_numbers")
            letters = numbers[1] if isinstance(numbers, tuple) else ""
            sizes = [size for letter, size in zip(letters, kernel.shape, strict=False) if letter not in "IO"]
            reach = [(size - 1) * step for size, step in zip(sizes, dilation or [1] * len(sizes), strict=True)]
            before = [length - low for length, low in zip(reach, before, strict=False)]
        place = window_place(stride, multiple(dilation), before, flipped)
        place = f"({place})/{spread}" if spread else place
        made = ex.BigSum("k", ex.Product((at(of, "k"), at(self.of(x), place))))
        self.computed[made] = lambda value: value(ref)[0]
        return made

    def opened(self, ref: int) -> ex.Expression:
        """A kernel before its axes were put in a library's order: another one flipped, or with its channels exchanged,
        as that; else its symbol."""
        ref = self.recording.root(ref)
        made = self.recording.operations.get(ref)
        if made is not None and made.name in ("moveaxis", "transpose"):
            return self.opened(made.args[0].ref)
        if made is not None and made.name == "flip":
            return ex.Call(FLIP, self.opened(made.args[0].ref))
        if made is not None and made.name == "swapaxes":
            return transposed(self.opened(made.args[0].ref))
        return self.numbered(ref)

    def reduced(self, operation: RecordedOperation) -> ex.Expression:
        """A sum or a mean: of all entries, over leading axes by an index, or along the last axis."""
        (of, *rest), options, name = operation.args, operation.options, operation.name
        axes, rank, inner = options.get("axis", rest[0] if rest else None), len(of.shape), self.of(of)
        before = max((self.by_rows.get(each, 0) for each in inner.every()), default=0)
        if axes is None and before and name != "var":  # of each row first
            rows = summary(name, "", inner) if math.prod(of.shape[before:]) > 1 else inner
            return summary(name, INDICES.get(before, ""), rows)
        index = ""
        if axes is not None:
            axes = tuple(sorted(each % rank for each in (axes if isinstance(axes, tuple | list | range) else (axes,))))
            if "keepdims" not in options and all(of.shape[axis] == 1 for axis in axes):
                return inner
            if "keepdims" not in options and axes == tuple(range(len(axes))) and len(axes) < rank:
                index = INDICES.get(len(axes), "")
        made = summary(name, index, inner)
        if axes == (rank - 1,) and rank > 1:
            self.by_rows[made] = rank - 1
        return made


def summary(name: str, index: str, of: ex.Expression) -> ex.Expression:
    """Σ or another summary, mean, of all entries or over an index."""
    return ex.BigSum(index, of) if name == "sum" else ex.Call(ex.Name(name, below=index), of)


def padding_before(padding: Any) -> list[int]:
    """The padding before the first place, of each axis; nothing where it is given in words."""
    return [] if isinstance(padding, str | None) else [low for low, _ in padding]


def window_place(stride: str, dilation: str, before: list[int], flipped: bool = False) -> str:
    """The place that a window at p sees at its tap k, sp + dk − l; turned round p + l − dk. Without l where the axes
    differ."""
    padding = before[0] if before and len(set(before)) == 1 else 0
    if flipped:
        return f"{stride}p{f'{padding:+d}'.replace('-', '−') if padding else ''}−{dilation}k"
    return f"{stride}p+{dilation}k{f'{-padding:+d}'.replace('-', '−') if padding else ''}"


def multiple(steps: Any) -> str:
    """A stride or a dilation as a factor in an index: nothing for 1, or where the axes differ."""
    each = set(steps or (1,))
    return "" if each == {1} else str(each.pop()) if len(each) == 1 else ""


def at(symbol: ex.Expression, below: str) -> ex.Expression:
    """A symbol, or the error at it, with a subscript: a²ₚ, ∂C/∂a²ₚ."""
    match symbol:
        case ex.Name(below=own):
            return replace(symbol, below=f"{own}{',' if own and below else ''}{below}")
        case ex.Derivative(by):
            return replace(symbol, by=at(by, below))
        case ex.Transposed(of):
            return ex.Transposed(at(of, below))
    return symbol


def rebuilt(expression: Any, change: Callable[[Any], Any]) -> Any:
    """An expression with each of its parts changed, but for the name of a function."""
    if isinstance(expression, ex.Name):
        return expression
    made = {each.name: getattr(expression, each.name) for each in fields(expression)}
    for name, value in made.items():
        if isinstance(value, tuple):
            made[name] = tuple(map(change, value))
        elif isinstance(value, ex.Expression) and name != "function":
            made[name] = change(value)
    return type(expression)(**made)


def transposed(of: ex.Expression) -> ex.Expression:
    """Aᵀ; of Aᵀ it is A."""
    return of.of if isinstance(of, ex.Transposed) else ex.Transposed(of)


def times(left: ex.Expression, right: ex.Expression) -> ex.Expression:
    """Entry by entry; a number before a symbol by ×."""
    if isinstance(left, ex.Number) or isinstance(right, ex.Number):
        return ex.Product((left, right), "×")
    own = left.factors if isinstance(left, ex.Product) and left.sign == "⊙" else (left,)
    return ex.Product((*own, right), "⊙")


def terms(of: ex.Expression) -> tuple[ex.Expression, ...]:
    """The terms of a sum; of anything else it alone."""
    return of.terms if isinstance(of, ex.Sum) else (of,)
