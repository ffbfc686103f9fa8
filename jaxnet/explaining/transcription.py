"""Lines of Python as equations: `W.T @ delta * (h > 0)` is Wᵀδ ⊙ (h > 0).

A name becomes the symbol of its value. What has no symbol is written out: a helper's result as the expression that the
helper returns. Casts and new shapes of the same numbers are left out; functions of libraries are called by name.
"""

from __future__ import annotations

import ast
import builtins
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np

from jaxnet.explaining.expressions import (
    BigSum,
    Call,
    Comparison,
    Entry,
    Expression,
    Fraction,
    Gradient,
    Listed,
    Minus,
    Name,
    Number,
    Partial,
    Power,
    Product,
    Sum,
    Transposed,
    Words,
    raised,
)
from jaxnet.explaining.recording import SAME, Assigned, Recording, Scope, is_array

FUNCTIONS = {"sigmoid": "σ", "logistic": "σ", "log": "ln", "sqrt": "√", "absolute": "abs", "erf": "erf"}
"""What a library's function is called in an equation, where not by its own name."""

ENTRYWISE = {"exp", "ln", "√", "tanh", "σ", "abs", "sign", "relu", "softplus", "silu", "gelu", "erf", "sin", "cos",
             "log1p", "expm1"}  # fmt: skip
REDUCING = {"sum", "mean", "var", "max", "min"}
KNOWN_FUNCTIONS = {*ENTRYWISE, "softmax", "logsumexp", "square", "negative", "rsqrt", "outer", "transpose", "where",
                   "maximum", "minimum", "clip"}  # fmt: skip
FLIP = Name("flip")
INDICES = {1: "t", 2: "p", 3: "q"}
"""The index of a sum, by how many axes it runs over."""


class UnwritableError(Exception):
    """A line of Python that has no equation here."""


@dataclass
class Transcription:
    """Equations of a recording's lines. symbols: of values, by their numbers; more are added by whoever writes lines.

    numbers: what each `Number` that was written is worth. products: of each product with indices its operands and
    the indices of these and of the result. letters: the indices of the axes of a value, those of one entry left out.
    firsts: of the first rows of a table, the table and how many. computed: of what a library's function gives its
    value, out of the values of all numbers.
    """

    recording: Recording
    symbols: dict[int, Expression]
    numbers: dict[Expression, float]
    fixed: set[Expression]
    moved: dict[Expression, tuple[Expression, int]] = field(default_factory=dict)
    within: set[int] = field(default_factory=set)
    products: dict[Expression, tuple[list[Expression], list[str], str]] = field(default_factory=dict)
    letters: dict[Expression, str] = field(default_factory=dict)
    firsts: dict[Expression, tuple[Expression, int]] = field(default_factory=dict)
    computed: dict[Expression, Callable[[Callable], np.ndarray]] = field(default_factory=dict)

    def line(self, line: Assigned) -> Expression:
        """The right side of a line. Raises `UnwritableError` where it has no equation."""
        if line.ref in self.within:
            raise UnwritableError("a value made of itself")
        self.within.add(line.ref)
        try:
            return self.of(line.node, line.scope, line.ref)
        finally:
            self.within.discard(line.ref)

    def value(self, value: Any) -> Expression:
        """A value's symbol, or the expression that gives it."""
        ref = self.recording.number(value)
        if ref is None:
            raise UnwritableError("a value that no line gives")
        return self.numbered(ref)

    def numbered(self, ref: int) -> Expression:
        """The same for a value's number."""
        if ref in self.symbols:
            return self.symbols[ref]
        if ref in self.recording.moved:
            of, steps = self.recording.moved[ref]
            return self.move(self.numbered(self.recording.root(of)), steps)
        for line in self.recording.lines:
            if line.ref == ref:
                return self.line(line)
        raise UnwritableError("a value that no line gives")

    def move(self, expression: Any, steps: int) -> Any:
        """An expression at a step before or after: hₜ₋₁."""
        if isinstance(expression, Name | Partial | Gradient) and expression in self.symbols.values():
            if expression in self.fixed:
                return expression
            moved = at(expression, f"t{'+' if steps > 0 else '−'}{abs(steps)}")
            self.moved[moved] = (expression, steps)
            return moved
        return rebuilt(expression, lambda each: self.move(each, steps))

    def number(self, value: float) -> Number:
        """A number, with powers of ten as such."""
        exponent = round(math.log10(abs(value))) if value and math.isfinite(value) else 0
        text = f"{value:g}".replace("inf", "∞")
        if exponent <= -3 and math.isclose(value, 10.0**exponent):
            text = f"10{raised(str(exponent))}"
        made = Number(text.replace("-", "−"))
        self.numbers[made] = float(value)
        return made

    def constant(self, value: Any) -> Expression:
        """What stands for a value that is known without its line: an array's symbol, or a number."""
        if is_array(value):
            return self.value(value)
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise UnwritableError(f"{type(value).__name__} is no number")
        return self.number(float(value))

    def of(self, node: ast.expr, scope: Scope, own: int = -1) -> Expression:
        """An expression of Python. own: the number of the value it gives, which has a symbol but is to be written."""
        match node:
            case ast.Constant(value):
                return self.constant(value)
            case ast.Name() | ast.Subscript() | ast.Attribute():
                return self.reference(node, scope)
            case ast.BinOp():
                return self.binary(node, scope)
            case ast.UnaryOp(op=ast.USub(), operand=of):
                return Minus(self.of(of, scope))
            case ast.Compare(left, [sign], [right]) if type(sign) in SIGNS:
                return Comparison(self.of(left, scope), SIGNS[type(sign)], self.of(right, scope))
            case ast.IfExp(test, body, orelse):
                return self.of(body if known(test, scope) else orelse, scope, own)
            case ast.Call():
                return self.call(node, scope, own)
        raise UnwritableError(f"{type(node).__name__} has no equation")

    def reference(self, node: ast.expr, scope: Scope) -> Expression:
        """A name, an entry of a tree, an array's transpose."""
        if isinstance(node, ast.Attribute) and node.attr in ("T", "mT"):
            return transposed(self.of(node.value, scope))
        try:
            return self.constant(known(node, scope))
        except LookupError:
            if not isinstance(node, ast.Subscript):
                raise UnwritableError(f"{ast.unparse(node)} is not known") from None
        if adds_axes(node.slice) or first_of_one(node, scope):
            return self.of(node.value, scope)
        if (
            isinstance(node.slice, ast.Slice)
            and node.slice.upper is not None
            and not (node.slice.lower or node.slice.step)
        ):
            table, count = self.of(node.value, scope), known(node.slice.upper, scope)
            made = Entry(table, Words("t"))
            self.firsts[made] = (table, count)
            return made
        return Entry(self.of(node.value, scope), self.of(node.slice, scope))

    def binary(self, node: ast.BinOp, scope: Scope) -> Expression:
        """A product, a sum, a quotient or a power; two numbers are one."""
        try:
            return self.constant(known(node, scope))
        except LookupError:
            pass
        if isinstance(node.op, ast.Pow):
            exponent = known(node.right, scope)
            return Power(self.of(node.left, scope), f"{exponent:g}")
        left, right = self.of(node.left, scope), self.of(node.right, scope)
        if self.numbers.get(right) == 0 and isinstance(node.op, ast.Add | ast.Sub):
            return left
        match node.op:
            case ast.MatMult():
                return Product((left, right))
            case ast.Mult():
                return times(left, right)
            case ast.Div():
                return Fraction(left, right)
            case ast.Add():
                return Sum((*terms(left), *terms(right)))
            case ast.Sub():
                return Sum((*terms(left), Minus(right)))
        raise UnwritableError(f"{type(node.op).__name__} has no equation")

    def call(self, node: ast.Call, scope: Scope, own: int) -> Expression:
        """A call: what a helper gives, or a library's function by name."""
        result = scope.result(node)
        ref = self.recording.number(result) if is_array(result) else None
        if ref is not None and ref != own and ref in self.symbols:
            return self.symbols[ref]
        if isinstance(result, int | float) and getattr(node.func, "attr", "") != "sqrt":
            return self.constant(result)
        if (rows := gathered(node)) is not None:
            return Entry(self.of(rows.value.value, scope), self.of(rows.slice, scope))
        name = called_name(node.func, scope)
        args: list[Any] = list(node.args)
        if isinstance(node.func, ast.Attribute) and not is_module(node.func.value, scope):  # a method of an array
            args = [node.func.value, *args]
        if name in SAME and args:
            return self.of(args[0], scope, own)
        inner = next((each for each in self.recording.lines if each.ref == ref), None)
        if inner is not None and inner.node is not node and ref not in self.within:
            return self.line(inner)  # a helper's result, as the helper writes it
        name = FUNCTIONS.get(name, name)
        keywords = {each.arg: each.value for each in node.keywords}
        return self.library(name, args, keywords, node, scope, result)

    def library(self, name: str, args: list, keywords: dict, node: ast.Call, scope: Scope, result: Any) -> Expression:
        """A library's function."""
        if name in REDUCING:
            return self.reduced(name, args, keywords, scope, result)
        if name == "concatenate" and isinstance(args[0], ast.List):
            return Listed(tuple(self.of(each, scope) for each in args[0].elts))
        if name == "flip":
            return Call(FLIP, self.of(args[0], scope))
        if name == "swapaxes":
            return transposed(self.of(args[0], scope))
        if name == "conv_general_dilated":
            return self.convolution(node, args, keywords, scope)
        if name == "einsum":
            return self.product(known(args[0], scope), args[1:], scope)
        if name in ("matmul", "dot", "multiply", "add", "subtract", "divide", "true_divide"):
            op = {"matmul": ast.MatMult, "dot": ast.MatMult, "multiply": ast.Mult, "add": ast.Add,
                  "subtract": ast.Sub}.get(name, ast.Div)  # fmt: skip
            return self.binary(ast.BinOp(args[0], op(), args[1]), scope)
        taken = args[:1] if name in ("softmax", "transpose", "logsumexp") else args
        if name not in KNOWN_FUNCTIONS:
            return self.named(name, args, scope, result)
        of = [self.of(each, scope) for each in taken]
        if name == "logsumexp":
            return Call(Name("ln"), BigSum("", Call(Name("exp"), of[0])))
        if name == "square":
            return Power(of[0], "2")
        if name == "negative":
            return Minus(of[0])
        if name == "rsqrt":
            return Fraction(self.number(1.0), Call(Name("√", key="sqrt"), of[0]))
        if name == "outer":
            return Product((of[0], transposed(of[1])))
        if name == "transpose" and len(args) == 1:
            return transposed(of[0])
        if name in (*ENTRYWISE, "softmax"):
            key = {"σ": "sigmoid", "√": "sqrt"}.get(name, name)
            return Call(Name(name, key=key), of[0])
        if name in ("where", "maximum", "minimum", "clip"):
            return Call(Name({"maximum": "max", "minimum": "min"}.get(name, name), key=name), Listed(tuple(of)))
        raise UnwritableError(f"{name or ast.unparse(node.func)} has no equation")

    def named(self, name: str, args: list[Any], scope: Scope, result: Any) -> Expression:
        """Another function of a library, by its name: its value is the one that it gave."""
        ref = self.recording.refs.get(id(result)) if is_array(result) else None
        if ref is None or ref not in self.recording.values or not name:
            raise UnwritableError(f"{name} has no equation")
        of = []
        for each in args:
            try:
                known(each, scope)
            except LookupError:
                of.append(self.of(each, scope))
            else:
                if is_array(known(each, scope)):
                    of.append(self.of(each, scope))
        if not of:
            raise UnwritableError(f"{name} of no array")
        made = Call(Name(name), of[0] if len(of) == 1 else Listed(tuple(of)))
        self.computed[made] = lambda value: value(ref)
        return made

    def product(self, indices: str, args: list[Any], scope: Scope) -> Expression:
        """A product with indices, Σₜ PₜₛVₜ: `indices` as einsum has them; those of one entry are left out."""
        inputs, result = indices.replace(" ", "").split("->")
        operands, sizes = [self.of(each, scope) for each in args], {}
        for each, letters in zip(args, inputs.split(","), strict=True):
            sizes |= dict(zip(letters, shape_of(each, scope), strict=True))
        alone = {ord(letter): None for letter, size in sizes.items() if size == 1}
        own, result = inputs.translate(alone).split(","), result.translate(alone)
        if not all(isinstance(each, Name | Partial | Gradient) for each in operands):
            raise UnwritableError("a product with indices of what has no symbol")
        over = "".join(letter for letter in dict.fromkeys("".join(own)) if letter not in result)
        made: Expression = Product(tuple(at(each, letters) for each, letters in zip(operands, own, strict=True)))
        made = BigSum(over, made) if over else made
        self.products[made] = (operands, own, result)
        self.letters |= dict(zip(operands, own, strict=True)) | {made: result}
        return made

    def convolution(self, node: ast.Call, args: list[Any], keywords: dict[str | None, Any], scope: Scope) -> Expression:
        """Σₖ Wₖ xₚ₊ₖ, or Σₖ Wₖ xₚ₋ₖ of a kernel that is flipped; of strides and dilations s and d xₛₚ₊ₖ."""
        x, kernel = self.of(args[0], scope), self.opened(self.of(unmoved(args[1]), scope))
        options = {name: known(value, scope) for name, value in keywords.items() if name is not None}
        options |= known(keywords[None], scope) if None in keywords else {}
        flipped = isinstance(kernel, Call)
        kernel = self.opened(kernel.of) if isinstance(kernel, Call) else kernel
        stride, spread = multiple(options.get("window_strides")), multiple(options.get("lhs_dilation"))
        reach = multiple(options.get("rhs_dilation"))
        place = f"{stride}p{'−' if flipped else '+'}{reach}k"
        if spread:
            place = f"({place})/{spread}"
        made = BigSum("k", Product((at(kernel, "k"), at(x, place))))
        ref = self.recording.refs[id(array_of(node, scope))]
        self.computed[made] = lambda value: value(ref)[0]
        return made

    def opened(self, expression: Expression) -> Expression:
        """A kernel that is another one flipped, or with its channels exchanged, as that; else as it is."""
        for line in self.recording.lines:
            if self.symbols.get(line.ref) == expression and isinstance(line.node, ast.Call):
                made = self.line(line)
                return (
                    made
                    if isinstance(made, Transposed) or (isinstance(made, Call) and made.function == FLIP)
                    else expression
                )
        return expression

    def reduced(self, name: str, args: list, keywords: dict, scope: Scope, result: Any) -> Expression:
        """A sum or a mean: of all entries, or over leading axes, by an index."""
        of = self.of(args[0], scope)
        axis = keywords.get("axis", args[1] if len(args) > 1 else None)
        axes = None if axis is None else known(axis, scope)
        axes = axes if axes is None else tuple(axes) if isinstance(axes, tuple | list | range) else (axes,)
        kept = "keepdims" in keywords
        rank = None if axes is None or result is None else result.ndim + (0 if kept else len(axes))
        index = ""
        if axes is not None and rank is not None and not kept:
            axes = tuple(sorted(each % rank for each in axes))
            if axes == tuple(range(len(axes))) and len(axes) < rank:
                index = INDICES.get(len(axes), "")
        if name == "sum":
            return BigSum(index, of)
        return Call(Name(name, below=index), of)


SIGNS = {ast.Gt: ">", ast.Lt: "<", ast.GtE: "≥", ast.LtE: "≤", ast.Eq: "=", ast.NotEq: "≠"}


def unmoved(node: Any) -> Any:
    """A kernel before its axes were put in the order that a library takes."""
    moves = isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("moveaxis", "transpose")
    return node.args[0] if moves else node


def multiple(steps: Any) -> str:
    """A stride or a dilation as a factor in an index: nothing for 1, or where the axes differ."""
    each = set(steps or (1,))
    return "" if each == {1} else str(each.pop()) if len(each) == 1 else ""


def gathered(node: ast.Call) -> Any:
    """W.at[i] of W.at[i].get(…): the rows that i names."""
    at_rows = node.func.value if isinstance(node.func, ast.Attribute) and node.func.attr == "get" else None
    is_at = isinstance(at_rows, ast.Subscript) and getattr(at_rows.value, "attr", "") == "at"
    return at_rows if is_at else None


def first_of_one(node: ast.Subscript, scope: Scope) -> bool:
    """Whether an index takes the only entry of an axis."""
    zero = isinstance(node.slice, ast.Constant) and node.slice.value == 0
    return zero and shape_of(node.value, scope)[0] == 1


def array_of(node: ast.expr, scope: Scope) -> Any:
    """The array that an expression is, as it was recorded. Raises `LookupError` where it was not."""
    value = scope.result(node) if isinstance(node, ast.Call) else known(node, scope)
    if not is_array(value):
        raise LookupError(ast.unparse(node))
    return value


def shape_of(node: ast.expr, scope: Scope) -> tuple[int, ...]:
    """The shape of an expression's value. Raises `LookupError` where it is not known."""
    return array_of(node, scope).shape


def at(symbol: Expression, below: str) -> Expression:
    """A symbol, or the error at it, with a subscript: a²ₚ, ∂C/∂a²ₚ."""
    match symbol:
        case Name(base, above, own, key):
            return Name(base, above, f"{own}{',' if own and below else ''}{below}", key)
        case Partial(of, by):
            return Partial(of, at(by, below))
        case Gradient(by, of):
            return Gradient(at(by, below), of)
        case Transposed(of):
            return Transposed(at(of, below))
    return symbol


def rebuilt(expression: Any, change: Callable[[Any], Any]) -> Any:
    """An expression with each of its parts changed."""
    if not is_dataclass(expression) or isinstance(expression, Name | Number):
        return expression
    made = {}
    for each in fields(expression):
        value = getattr(expression, each.name)
        if isinstance(value, tuple):
            made[each.name] = tuple(change(part) for part in value)
        elif is_dataclass(value) and each.name != "function":
            made[each.name] = change(value)
        else:
            made[each.name] = value
    return type(expression)(**made)


def transposed(of: Expression) -> Expression:
    """Aᵀ; of Aᵀ it is A."""
    return of.of if isinstance(of, Transposed) else Transposed(of)


def times(left: Expression, right: Expression) -> Expression:
    """Entry by entry; a number before a symbol by ×."""
    if isinstance(left, Number) or isinstance(right, Number):
        return Product((left, right), "×")
    own = left.factors if isinstance(left, Product) and left.sign == "⊙" else (left,)
    return Product((*own, right), "⊙")


def terms(of: Expression) -> tuple[Expression, ...]:
    """The terms of a sum; of anything else it alone."""
    return of.terms if isinstance(of, Sum) else (of,)


def adds_axes(index: ast.expr) -> bool:
    """Whether an index only adds axes, or takes all: [None], [:, None], [...]."""
    parts = index.elts if isinstance(index, ast.Tuple) else [index]
    return all(
        (isinstance(each, ast.Constant) and each.value in (None, ...))
        or (isinstance(each, ast.Slice) and each.lower is None and each.upper is None)
        for each in parts
    )


def called_name(node: ast.expr, scope: Scope) -> str:
    """The name of a function that is called: its own, whatever variable it stands in."""
    try:
        own = getattr(known(node, scope), "__name__", "")
    except LookupError:
        own = ""
    return own if own.isidentifier() else node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def is_module(node: ast.expr, scope: Scope) -> bool:
    """Whether an expression names a module, so that what follows is its function and no method."""
    try:
        return type(known(node, scope)).__name__ == "module"
    except LookupError:
        return False


def known(node: ast.expr, scope: Scope) -> Any:
    """What an expression is worth that computes with no array: a name, an entry of a tree, a shape.

    Raises `LookupError` for any other.
    """
    match node:
        case ast.Constant(value):
            return value
        case ast.Name(name):
            for names in (scope.names, scope.globals, vars(builtins)):
                if name in names:
                    return names[name]
            raise LookupError(name)
        case ast.Tuple(parts) | ast.List(parts):
            return tuple(known(each, scope) for each in parts)
        case ast.UnaryOp(op=ast.USub(), operand=of):
            return -unarrayed(known(of, scope))
        case ast.UnaryOp(op=ast.Not(), operand=of):
            return not unarrayed(known(of, scope))
        case ast.JoinedStr(parts):
            return "".join(
                str(known(each.value if isinstance(each, ast.FormattedValue) else each, scope)) for each in parts
            )
        case ast.Attribute(of, name):
            base = known(of, scope)
            if is_array(base) and name not in ("shape", "ndim", "dtype", "size"):
                raise LookupError(name)
            if not hasattr(base, name):
                raise LookupError(name)
            return getattr(base, name)
        case ast.Slice(low, high, step):
            return slice(*(None if each is None else known(each, scope) for each in (low, high, step)))
        case ast.Subscript(of, index):
            try:
                return unarrayed(known(of, scope))[known(index, scope)]
            except (TypeError, IndexError):
                raise LookupError(ast.unparse(node)) from None
        case ast.BinOp(left, op, right) if type(op) in ARITHMETIC:
            try:
                return ARITHMETIC[type(op)](unarrayed(known(left, scope)), unarrayed(known(right, scope)))
            except TypeError:
                raise LookupError(ast.unparse(node)) from None
        case ast.Compare(left, [op], [right]) if type(op) in COMPARED:
            both = known(left, scope), known(right, scope)
            return COMPARED[type(op)](*(both if isinstance(op, ast.Is | ast.IsNot) else map(unarrayed, both)))
        case ast.BoolOp(op, parts):
            values = (unarrayed(known(each, scope)) for each in parts)
            return all(values) if isinstance(op, ast.And) else any(values)
        case ast.IfExp(test, body, orelse):
            return known(body if known(test, scope) else orelse, scope)
        case ast.Call() if (given := scope.result(node)) is not None and not is_array(given):
            return given
        case ast.Call(func, args, []):
            f = known(func, scope)
            if f is isinstance:
                return f(*(known(each, scope) for each in args))
            values = [known(each, scope) for each in args]
            if f is len:
                return len(values[0])
            if getattr(f, "__module__", "") in ("builtins", "math"):
                return f(*map(unarrayed, values))
    raise LookupError(ast.unparse(node))


def unarrayed(value: Any) -> Any:
    """A value that is no array. Raises `LookupError` for one: its line is to be written."""
    if is_array(value):
        raise LookupError("an array")
    return value


ARITHMETIC: dict[type, Callable] = {
    ast.Add: lambda a, b: a + b, ast.Sub: lambda a, b: a - b, ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b, ast.FloorDiv: lambda a, b: a // b, ast.Mod: lambda a, b: a % b,
    ast.Pow: lambda a, b: a**b,
}  # fmt: skip
COMPARED: dict[type, Callable] = {
    ast.Is: lambda a, b: a is b, ast.IsNot: lambda a, b: a is not b, ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b, ast.Lt: lambda a, b: a < b, ast.Gt: lambda a, b: a > b,
    ast.LtE: lambda a, b: a <= b, ast.GtE: lambda a, b: a >= b,
}  # fmt: skip
