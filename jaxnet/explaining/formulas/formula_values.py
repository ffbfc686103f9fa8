"""A formula's value: vectors are columns n×1 (rows 1×n where W is (in, out)), nothing is broadcast.

Every value has a leading axis: the example that is shown, and draws at random beside it. So one pass says whether two
formulas are one, or agree at the example alone.
"""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.explaining.evaluation import softmax
from jaxnet.explaining.formulas.parse import MESSAGES, SLOPE, Formula, SideBySide, called, grammar
from jaxnet.explaining.numbers import shape
from jaxnet.layer import Layer
from jaxnet.layers import ACTIVATIONS, identity
from jaxnet.readings import product

Shape = tuple[int, ...]
NEAR = 2e-5  # of the largest entry: float32's values put together in float64


@dataclass(frozen=True)
class Symbols:
    """The names of a formula. values: arrays (draws, rows, columns), numbers (draws,).

    activations: of the z of each name, its layer. rows: whether vectors are rows. others: further names, of values.
    batch: the names that mean a batch. examples: which examples it has, in words.
    """

    values: dict[str, np.ndarray]
    activations: dict[str, Layer]
    rows: bool = False
    others: dict[str, str] = field(default_factory=dict)
    batch: frozenset[str] = frozenset()
    examples: str = ""

    @property
    def draws(self) -> int:
        """How many draws there are, the example that is shown among them."""
        return len(next(iter(self.values.values())))

    def key(self, name: str) -> str | None:
        """The network's own name: delta2 for dz2. None if the network has no such quantity."""
        known = {**{key: key for key in self.values}, **self.others}
        alike = [key for key in known if key.lower() == name.lower()]
        return known.get(name) or (known[alike[0]] if len(alike) == 1 else None)

    def missing(self, name: str) -> str:
        """Says that the network has no such quantity, with the names that come near."""
        if name in FUNCTIONS or name.removesuffix(SLOPE) in ACTIVATIONS:
            return f"the network has no {name}: {name} is a function: write {name}(…)"
        kind = name.rstrip("0123456789")
        above = f"{kind}{int(name[len(kind) :] or 0) + 1}"
        if name != kind and self.key(above) and self.others.get("a1") == "x":
            mend = f"the input is layer 1 here, so the first {kind} is {above}; with --numbering 0 it is {name}"
        elif near := difflib.get_close_matches(name, self.values, 3, 0.5):
            mend = f"did you mean {', '.join(near)}?"
        else:
            plain = [key for key in self.values if " " not in key and key not in self.batch]
            kinds = dict.fromkeys(key.rstrip("0123456789") for key in plain if key[-1].isdigit())
            several = f", of a batch {', '.join(sorted(self.batch)[:3])}, …" if self.batch else ""
            mend = (f"there are {', '.join(key for key in plain if not key[-1].isdigit())}, and with a layer's number "
                    f"{', '.join(kinds)}{several}")  # fmt: skip
        return f"the network has no {name}: {mend}"


class Misfit(Exception):  # noqa: N818 - no error of the program: the judge looks for it
    """Two shapes that do not go together, at an operator."""

    def __init__(self, node: ast.expr, sign: str, left: Shape, right: Shape, why: str):
        super().__init__(why)
        self.node, self.sign, self.left, self.right, self.why = node, sign, left, right, why


SIGNS: dict[type, tuple[str, str, Callable]] = {
    ast.Mult: ("*", "entry by entry (*)", np.multiply),
    ast.Div: ("/", "division", np.divide),
    ast.Add: ("+", "a sum", np.add),
    ast.Sub: ("-", "a difference", np.subtract),
    ast.Pow: ("**", "a power", np.power),
    ast.Gt: (">", "a comparison", np.greater),
    ast.Lt: ("<", "a comparison", np.less),
    ast.GtE: (">=", "a comparison", np.greater_equal),
    ast.LtE: ("<=", "a comparison", np.less_equal),
}


@dataclass(frozen=True)
class FormulaEvaluation:
    """A formula in a scope. A shape alone, 3×2, has the value NaN throughout."""

    formula: Formula
    scope: Symbols

    def of(self, node: ast.expr) -> np.ndarray:
        """The value of a part."""
        match node:
            case ast.Constant(int() | float() as value) if not isinstance(value, bool):
                return np.full(self.scope.draws, float(value))
            case ast.Name(name):
                return self.named(node, name)
            case ast.Attribute(of, "T"):
                value = self.of(of)
                return value if isinstance(of, ast.List | ast.Tuple) else transposed(value)
            case ast.UnaryOp(ast.USub() | ast.UAdd() as sign, of):
                return self.of(of) * (-1 if isinstance(sign, ast.USub) else 1)
            case ast.BinOp(left, ast.MatMult(), right):
                return self.times(node, self.of(left), self.of(right))
            case ast.BinOp(left, sign, right) if type(sign) in SIGNS:
                return self.joined(node, sign, self.of(left), self.of(right))
            case ast.Compare(left, [sign], [right]) if type(sign) in SIGNS:
                return self.joined(node, sign, self.of(left), self.of(right)).astype(np.float64)
            case ast.List(parts) | ast.Tuple(parts) if parts:
                return self.listed(node)
            case ast.Subscript(of, ast.Tuple([_, _] as parts)):
                return self.part(node, self.of(of), parts)
            case ast.Call(function, arguments, keywords):
                return self.called(node, function, arguments, keywords)
        raise self.formula.error(node, MESSAGES["meaning"].format("this"))

    def named(self, node: ast.expr, name: str) -> np.ndarray:
        """A quantity of the network."""
        key = self.scope.key(name)
        if key is not None:
            return self.scope.values[key]
        raise self.formula.error(node, self.scope.missing(name))

    def joined(self, node: ast.expr, sign: Any, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Two values entry by entry, of one shape or one of them a number."""
        text, said, function = SIGNS[type(sign)]
        if size(left) != size(right) and not (is_number(left) or is_number(right)):
            raise Misfit(node, text, size(left), size(right), f"{said} needs equal shapes")
        if size(left) != size(right):
            left, right = (number_like(left, right), right) if is_number(left) else (left, number_like(right, left))
        with np.errstate(all="ignore"):
            return np.where(np.isnan(left + right), np.nan, function(left, right))

    def times(self, node: ast.BinOp, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """left @ right; of a number and a matrix that stand side by side, their product."""
        if () in (size(left), size(right)):
            if isinstance(node.op, SideBySide):
                return self.joined(node, ast.Mult(), left, right)
            raise Misfit(node, "@", size(left), size(right), "@ takes matrices; numbers are multiplied by *")
        columns, rows = left.shape[2], right.shape[1]
        if columns != rows:
            raise Misfit(
                node, "@", size(left), size(right),
                f"{columns} column{'s' * (columns != 1)} on the left, {rows} row{'s' * (rows != 1)} on the right",
            )  # fmt: skip
        return left @ right

    def listed(self, node: ast.expr) -> np.ndarray:
        """Numbers: a vector as the notation lays it, (1, 1, 1)ᵀ and [1, 1, 1].T too, or a matrix of rows."""
        try:
            found = np.asarray(ast.literal_eval(node), np.float64)
        except (ValueError, TypeError):
            raise self.formula.error(node, "a list holds numbers: [1, 1, 1], or rows of equally many") from None
        found = self.laid(found[None, :, None], True, False) if found.ndim == 1 and self.scope.rows else found
        found = found[:, None] if found.ndim == 1 else found.reshape(found.shape[-2:])
        return np.broadcast_to(found, (self.scope.draws, *found.shape))

    def part(self, node: ast.expr, value: np.ndarray, parts: list[ast.expr]) -> np.ndarray:
        """A vector as a row, [None, :], or as a column, [:, None]; rows and columns, [:, 0] and [1:, :2]."""
        new = [isinstance(each, ast.Constant) and each.value is None for each in parts]
        if any(new):
            return self.laid(value, *new)
        try:
            taken = [ast.literal_eval(each) if not isinstance(each, ast.Slice) else
                     slice(*(bound and ast.literal_eval(bound) for bound in (each.lower, each.upper, each.step)))
                     for each in parts]  # fmt: skip
            rows, columns = ([each] if isinstance(each, int) else each for each in taken)
            return value[:, rows][:, :, columns]
        except (ValueError, IndexError) as fault:
            raise self.formula.error(node, f"{self.formula.source(node)} cannot be taken: {fault}") from None

    def laid(self, value: np.ndarray, row: bool, column: bool) -> np.ndarray:
        """A vector as a row, [None, :], or as a column, [:, None]; others stay."""
        if row == column or 1 not in size(value):
            return value
        return value.reshape(len(value), 1, -1) if row else value.reshape(len(value), -1, 1)

    # ------------------------------------------------------------------------------------------- functions

    def called(self, node: ast.Call, function: ast.expr, arguments: list[ast.expr], keywords: list) -> np.ndarray:
        """A function of its arguments, np.tanh(z), or a method of a value, a.sum(axis=0)."""
        name, error = called(function), self.formula.error
        if name == "Shape":
            return np.full((self.scope.draws, *(int(ast.literal_eval(each)) for each in arguments)), np.nan)
        if name == "astype":
            return self.of(arguments[0])
        options = {each.arg: each.value for each in keywords if each.arg not in (None, "keepdims")}
        if name in ("sum", "mean", "max", "reshape") or (name == "ones" and arguments):
            return self.resized(node, name, arguments, options)
        values = [self.of(part) for part in arguments]
        base, primes = name.replace(SLOPE, ""), name.count(SLOPE)
        if primes > 1:
            raise error(node, f"{base}' is the first derivative, and there is no second one")
        layer = self.activation(node, base, arguments)
        if layer is None and (base not in FUNCTIONS or primes):
            said = f"{base}'" if primes else base
            close = ", ".join(difflib.get_close_matches(base, [*ACTIVATIONS, *FUNCTIONS], 3, 0.6))
            known = "relu, relu' and other activations, exp, log, sum, mean, dot, outer and other names of NumPy's"
            mend = f"did you mean {close}?" if close else f"there are s and s' of a layer's own activation, {known}"
            raise error(node, f"there is no function {said}: {mend}")
        count, computed = (1, applied(layer, primes > 0)) if layer is not None else FUNCTIONS[base]
        if len(values) != count or options:
            raise error(node, f"{name.replace(SLOPE, chr(39))} takes {count}, got {len(values)} arguments")
        if base == "softmax":
            return softmax(values[0], 2 if self.scope.rows else 1)
        try:
            with np.errstate(all="ignore"):
                return computed(*values)
        except np.linalg.LinAlgError as fault:
            raise error(node, f"{name} of {shape(size(values[0]))}: {fault}") from None

    def resized(self, node: ast.Call, name: str, arguments: list[ast.expr], options: dict) -> np.ndarray:
        """sum, mean and max along an axis or of all, reshape and ones."""
        try:
            sizes = [ast.literal_eval(each) for each in arguments[name != "ones" :]]
            axis = ast.literal_eval(options["axis"]) if "axis" in options else (sizes or [None])[0]
            sizes = list(sizes[0]) if sizes and isinstance(sizes[0], tuple) else sizes
            if name == "ones":
                found = np.ones(sizes) if len(sizes) == 2 else np.ones((1, *sizes) if self.scope.rows else (*sizes, 1))
                return np.broadcast_to(found, (self.scope.draws, *found.shape))
            value = self.of(arguments[0])
            if name == "reshape":
                return value.reshape(len(value), *(sizes if len(sizes) == 2 else [*sizes, 1]))
            whole = tuple(range(1, value.ndim))
            return getattr(value, name)(axis=whole if axis is None else range(1, 3)[axis], keepdims=axis is not None)
        except (ValueError, TypeError, IndexError) as fault:
            raise self.formula.error(node, f"{name} cannot be taken like this: {fault}") from None

    def activation(self, node: ast.expr, base: str, arguments: list[ast.expr]) -> Layer | None:
        """The layer of an activation's name; s and g are that of the z it is taken of."""
        activations = self.scope.activations
        if base == "identity":
            return identity
        if base.rstrip("0123456789") not in ("s", "g"):
            own = {layer.name.replace(" ", "_"): layer for layer in activations.values()}
            return own.get(base, ACTIVATIONS.get(base))
        of = self.scope.key(arguments[0].id) if arguments and isinstance(arguments[0], ast.Name) else None
        of = None if of is None else of.lower()
        if of in activations:
            return activations[of]
        layers = {layer.name: layer for layer in activations.values()}
        if len(layers) == 1:
            return next(iter(layers.values()))
        names = ", ".join(layers) or "none"
        raise self.formula.error(
            node, f"{base} is the activation of the z that it is taken of ({', '.join(activations)}); this network "
            f"has {names}: name one",
        )  # fmt: skip


def size(value: np.ndarray) -> Shape:
    """The shape without the axis of the draws."""
    return value.shape[1:]


def is_number(value: np.ndarray) -> bool:
    """Whether a value is a number, or a matrix of one entry."""
    return value.size == len(value)


def number_like(value: np.ndarray, other: np.ndarray) -> np.ndarray:
    """A number with as many axes as another value; any other array stays."""
    return value.reshape(len(value), *[1] * (other.ndim - 1)) if is_number(value) else value


def transposed(value: np.ndarray) -> np.ndarray:
    """The transpose; a number stays."""
    return value if value.ndim == 1 else value.swapaxes(1, 2)


def inverse(W: np.ndarray) -> np.ndarray:
    """The inverse, or of a matrix that has none the pseudo-inverse, so that its product can be compared."""
    square = W.ndim == 3 and W.shape[1] == W.shape[2]
    return np.linalg.inv(W) if square and np.linalg.cond(W).max() < 1e12 else np.linalg.pinv(W)


FUNCTIONS: dict[str, tuple[int, Callable]] = {
    **{name: (1, getattr(np, name)) for name in ("exp", "log", "abs", "sign", "sqrt", "tanh", "square")},
    "ln": (1, np.log),
    "outer": (2, lambda u, v: u.reshape(len(u), -1, 1) * v.reshape(len(v), 1, -1)),
    "diag": (1, lambda v: v.reshape(len(v), -1, 1) * np.eye(v[0].size)),
    "inv": (1, inverse),
    "pinv": (1, np.linalg.pinv),
    "clip": (2, lambda e, t: np.clip(e, -number_like(t, e), number_like(t, e))),
    "top": (1, lambda v: np.eye(v[0].size)[v.reshape(len(v), -1).argmax(1)].reshape(v.shape)),
    "maximum": (2, lambda a, b: np.maximum(number_like(a, b), number_like(b, a))),
    "where": (3, lambda where, a, b: np.where(where, number_like(a, where), number_like(b, where))),
    **dict.fromkeys(("softmax", "asarray", "array", "copy", "int", "float", "astype"), (1, np.asarray)),
    **dict.fromkeys(("int32", "int64", "float32", "float64"), (1, np.asarray)),
    **dict.fromkeys(("sum", "mean", "max", "reshape", "ones"), (0, np.asarray)),
}
"""Functions besides the activations and their derivatives: the number of arguments, and the function."""


def applied(layer: Layer, slope: bool) -> Callable:
    """An activation, or its derivative by the layer's own backward, in float64."""

    def function(z: np.ndarray) -> np.ndarray:
        room = max(64, 4 ** math.ceil(math.log(max(z.size, 1), 4)))  # few lengths, each compiled once
        with jax.enable_x64(True):
            return np.asarray(entries_of(layer, slope)(np.resize(z, room)))[: z.size].reshape(z.shape)

    return function


@cache
def entries_of(layer: Layer, slope: bool) -> Callable:
    """An activation of a vector, or its derivative, compiled."""

    def function(z: jax.Array) -> jax.Array:
        a, saved = layer.forward((), z)
        return layer.backward((), saved, jnp.ones_like(a), product)[0] if slope else a

    return jax.jit(function)


def evaluate(formula: Formula, scope: Symbols) -> np.ndarray:
    """The value of a formula, (draws, rows, columns) or (draws,) of a number.

    Raises `FormulaError` for a formula without a meaning, `Misfit` where shapes do not fit.
    """
    return FormulaEvaluation(formula, scope).of(formula.tree)


def tables() -> dict[str, Any]:
    """The grammar, the functions with how many arguments they take, and the operators' names, for the page's script."""
    counts = {name: count for name, (count, _) in FUNCTIONS.items()}
    return grammar() | {"functions": counts, "signs": {sign: said for sign, said, _ in SIGNS.values()}, "near": NEAR}
