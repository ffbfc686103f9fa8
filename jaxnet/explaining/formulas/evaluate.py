"""A formula's shapes and values: vectors are columns n×1 (rows 1×n where W is (in, out)), nothing is broadcast."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxnet.explaining.formulas.parse import FormulaError, Node
from jaxnet.explaining.numbers import shape
from jaxnet.layer import Layer
from jaxnet.layers import ACTIVATIONS, identity
from jaxnet.readings import product

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """A shape, () for a number, and its entries in float64 where they are known."""

    shape: Shape
    array: np.ndarray | None


@dataclass(frozen=True)
class Scope:
    """What a formula may name. values: quantities of the network. activations: of the z of each name, its layer."""

    values: dict[str, np.ndarray]
    activations: dict[str, Layer]


class Misfit(Exception):  # noqa: N818 - no error of the program, but what the judge looks for
    """Two shapes that do not go together, at an operator."""

    def __init__(self, node: Node, left: Shape, right: Shape, why: str):
        super().__init__(why)
        self.node, self.left, self.right, self.why = node, left, right, why


def known(entries: ArrayLike) -> Value:
    """A value of these entries."""
    array = np.asarray(entries, np.float64)
    return Value(array.shape, array)


def evaluate(node: Node, scope: Scope, text: str, seen: list[tuple[Node, Shape]]) -> Value:
    """The value of a part of a formula; adds each operand with its shape to `seen`.

    Raises `FormulaError` for a name that is none, `Misfit` where shapes do not fit.
    """
    match node.kind:
        case "number":
            return known(np.asarray(node.numbers[0]))
        case "shape":
            value = Value((int(node.numbers[0]), int(node.numbers[1])), None)
        case "name":
            value = named(node, scope, text)
        case "call":
            value = called(node, scope, text)
        case "transpose":
            inner: list[tuple[Node, Shape]] = []
            value = transposed(evaluate(node.parts[0], scope, text, inner))
            if node.parts[0].kind == "binary":
                seen += inner
                return value
        case "minus":
            of = evaluate(node.parts[0], scope, text, seen)
            return Value(of.shape, None) if of.array is None else known(-of.array)
        case _:
            left, right = (evaluate(part, scope, text, seen) for part in node.parts)
            return joined(node, left, right)
    seen.append((node, value.shape))
    return value


def transposed(value: Value) -> Value:
    """The transpose; a number stays."""
    return Value(value.shape[::-1], None) if value.array is None else known(value.array.T)


def named(node: Node, scope: Scope, text: str) -> Value:
    """A quantity of the network.

    Raises `FormulaError`, with what comes near.
    """
    if node.text in scope.values:
        return known(scope.values[node.text])
    near = difflib.get_close_matches(node.text, scope.values, 3, 0.5)
    names = ", ".join(near or scope.values)
    mend = f"did you mean {names}?" if near else f"there are {names}"
    if node.text.rstrip("'") in FUNCTIONS or node.text.rstrip("'") in ACTIVATIONS:
        mend = f"{node.text} is a function: write {node.text}(…)"
    raise FormulaError(text, node.start, f"the network has no {node.text}: {mend}", node.end)


def joined(node: Node, left: Value, right: Value) -> Value:
    """Two values with an operator between.

    Raises `Misfit`.
    """
    if node.text == "@":
        return matrix_product(node, left, right)
    single = [value for value in (left, right) if value.shape in ((), (1, 1))]
    if left.shape != right.shape and not single:
        what = {"*": "entry by entry (*)", "/": "division", "+": "a sum", "-": "a difference", "**": "a power"}[
            node.text
        ]
        raise Misfit(node, left.shape, right.shape, f"{what} needs equal shapes")
    result = left.shape if right.shape in ((), (1, 1)) else right.shape
    if left.array is None or right.array is None:
        return Value(result, None)
    a, b = (value.array if value.shape == result else np.asarray(value.array).reshape(()) for value in (left, right))
    with np.errstate(all="ignore"):
        return known({"*": np.multiply, "/": np.divide, "+": np.add, "-": np.subtract, "**": np.power}[node.text](a, b))


def matrix_product(node: Node, left: Value, right: Value) -> Value:
    """left @ right.

    Raises `Misfit`.
    """
    if () in (left.shape, right.shape):
        raise Misfit(node, left.shape, right.shape, "@ takes matrices; numbers are multiplied by *")
    if len(left.shape) != 2 or len(right.shape) != 2:
        raise Misfit(node, left.shape, right.shape, "@ takes matrices and vectors")
    if left.shape[1] != right.shape[0]:
        columns, rows = left.shape[1], right.shape[0]
        raise Misfit(
            node, left.shape, right.shape,
            f"{columns} column{'s' * (columns != 1)} on the left, {rows} row{'s' * (rows != 1)} on the right",
        )  # fmt: skip
    if left.array is None or right.array is None:
        return Value((left.shape[0], right.shape[1]), None)
    return known(left.array @ right.array)


# ----------------------------------------------------------------------------------------------- functions


def outer(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """u vᵀ of two vectors, columns or rows."""
    return np.outer(u.reshape(-1), v.reshape(-1))


def diag(v: np.ndarray) -> np.ndarray:
    """The diagonal matrix of a vector."""
    return np.diag(v.reshape(-1))


def top(v: np.ndarray) -> np.ndarray:
    """1 at the largest entry, 0 elsewhere."""
    return np.eye(v.size)[np.argmax(v)].reshape(v.shape)


FUNCTIONS: dict[str, tuple[int, Callable]] = {
    "outer": (2, outer),
    "diag": (1, diag),
    "inv": (1, np.linalg.inv),
    "pinv": (1, np.linalg.pinv),
    "exp": (1, np.exp),
    "ln": (1, np.log),
    "log": (1, np.log),
    "abs": (1, np.abs),
    "sign": (1, np.sign),
    "clip": (2, lambda e, t: np.clip(e, -t, t)),
    "top": (1, top),
    "sqrt": (1, np.sqrt),
    "sum": (1, np.sum),
    "softmax": (1, lambda z: np.exp(z - np.max(z)) / np.sum(np.exp(z - np.max(z)))),
}
"""Functions besides the activations and their derivatives: how many arguments, and what they do."""


def called(node: Node, scope: Scope, text: str) -> Value:
    """A function of its arguments.

    Raises `FormulaError` for one that there is not, or for arguments that it does not take.
    """
    inner: list[tuple[Node, Shape]] = []
    arguments = [evaluate(part, scope, text, inner) for part in node.parts]
    base, primes = node.text.rstrip("'"), len(node.text) - len(node.text.rstrip("'"))
    if primes > 1:
        raise FormulaError(text, node.start, f"{base}' is the first derivative, and there is no second one", node.end)
    layer = activation(node, base, scope, text)
    if layer is None and (base not in FUNCTIONS or primes):
        there = ", ".join(["s", *ACTIVATIONS, *FUNCTIONS])
        raise FormulaError(
            text, node.start, f"there is no function {node.text}: there are {there}, and s', relu', …", node.end
        )
    count, function = (1, applied(layer, primes)) if layer is not None else FUNCTIONS[base]
    if len(arguments) != count:
        raise FormulaError(text, node.start, f"{node.text} takes {count}, got {len(arguments)} arguments", node.end)
    arrays = [value.array for value in arguments]
    if any(array is None for array in arrays):
        return Value(arguments[0].shape, None)
    try:
        with np.errstate(all="ignore"):
            return known(function(*arrays))
    except np.linalg.LinAlgError as error:
        raise FormulaError(text, node.start, f"{node.text} of {shape(arguments[0].shape)}: {error}", node.end) from None


def activation(node: Node, base: str, scope: Scope, text: str) -> Layer | None:
    """The layer of an activation's name; s is that of the z it is taken of.

    Raises `FormulaError` for an s of something else where the network has several.
    """
    if base == "identity":
        return identity
    if base != "s":
        own = {layer.name.replace(" ", "_"): layer for layer in scope.activations.values()}
        return own.get(base, ACTIVATIONS.get(base))
    of = node.parts[0].text if node.parts and node.parts[0].kind == "name" else ""
    if of in scope.activations:
        return scope.activations[of]
    layers = {layer.name: layer for layer in scope.activations.values()}
    if len(layers) == 1:
        return next(iter(layers.values()))
    names = ", ".join(layers) or "none"
    raise FormulaError(
        text, node.start, f"s is the activation of the z that it is taken of ({', '.join(scope.activations)}); "
        f"this network has {names}: name one", node.end,
    )  # fmt: skip


def applied(layer: Layer, primes: int) -> Callable:
    """An activation, or its derivative by the layer's own backward."""

    def function(z: np.ndarray) -> np.ndarray:
        x = jnp.asarray(z, jnp.float32)
        a, saved = layer.forward((), x)
        return np.asarray(a if primes == 0 else layer.backward((), saved, jnp.ones_like(a), product)[0])

    return function
