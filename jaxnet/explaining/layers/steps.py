"""What a kind of layer gives: its equations in order, each with the program that computes it.

A kind is a function `(Site) -> Equations`. Of each step the equation is a tree of symbols and `of` is the same in
NumPy's words, one beside the other; `evaluate` runs them in float64, holds what the layer gives against them, and them
against `jax.grad`. So a wrong equation is seen like a wrong backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxnet.explaining.expressions import Expression, Name, Product, Sum, Transposed
from jaxnet.explaining.layers.opening import Record
from jaxnet.explaining.notation import Notation, Number


class Values:
    """The values so far, by key, as attributes; `np` is NumPy, or `jax.numpy` where jax.grad goes through."""

    def __init__(self, module: Any, known: dict[str, Any], probes: dict[str, Any] | None = None):
        self.np, self.known, self.probes = module, known, probes or {}
        self.done: dict[Any, Any] = {}

    def __getattr__(self, key: str) -> Any:
        try:
            return self.known[key]
        except KeyError:
            raise AttributeError(key) from None

    def joint(self, of: Callable[[Values], dict[str, Any]]) -> dict[str, Any]:
        """What a function gives of several keys at once; computed once."""
        if of not in self.done:
            self.done[of] = of(self)
        return self.done[of]


@dataclass(frozen=True)
class Step:
    """One equation of a layer.

    key: of its value among the layer's; of a derivative "d" before the key of what it is by. gives: what of the layer
    it must equal: "out", "dx", or a parameter's name for its gradient; "" for what only stands between. sizes: its
    shapes in words. shown: what of the value is shown. probed: False where `of` adds its probes itself.
    for_dx: it serves what is sent back alone. by: the key of what it is the derivative by, where its own does not say
    so. notes: lines
    below it, made of all values.
    """

    key: str
    left: Expression
    right: Expression
    of: Callable[[Values], Any]
    gives: str = ""
    sizes: str = ""
    remark: str = ""
    shown: Callable[[np.ndarray], np.ndarray] = lambda value: value
    probed: bool = True
    for_dx: bool = False
    by: str = ""
    notes: Callable[[Values], Sequence[str]] = lambda v: ()


@dataclass(frozen=True)
class Equations:
    """A layer's steps, forward and backward. options: numbers that the steps take beside the parameters.

    numbers: how many the largest quantities have together; beyond a bound they are not computed once more.
    """

    forward: tuple[Step, ...]
    backward: tuple[Step, ...]
    options: dict[str, Any] = field(default_factory=dict)
    numbers: int = 0


@dataclass(frozen=True, eq=False)
class Site:
    """Where a layer stands: what it is, and the symbols of what it takes and gives.

    takes: what it takes. gives: what it gives. error: ∂C/∂gives. back: the left side of what it sends back.
    """

    record: Record
    notation: Notation
    number: Number
    takes: tuple[Name, ...]
    gives: Name
    error: Expression
    back: tuple[Expression, ...]

    @property
    def options(self) -> dict[str, Any]:
        """What the layer was made with."""
        return self.record.options

    def name(self, base: str, key: str, below: str = "") -> Name:
        """A symbol of this layer."""
        made = self.notation.name_of(base, self.number, key)
        return Name(made.base, made.above, below, made.key)

    def param(self, name: str, below: str = "") -> Name:
        """A parameter."""
        made = self.notation.param(name, self.number)
        return Name(made.base, made.above, below, made.key)

    def grad(self, name: str) -> Expression:
        """∇ of a parameter."""
        return self.notation.gradient(self.param(name))

    def partial(self, of: Name) -> Expression:
        """∂C/∂ of something inside."""
        return self.notation.partial(of)

    def times(self, W: Expression, a: Expression) -> Product:
        """W a, or a W of rows."""
        return Product((a, W) if self.notation.rows else (W, a))

    def back_through(self, W: Expression, error: Expression) -> Product:
        """Wᵀ δ, or δ Wᵀ of rows."""
        turned = Transposed(W)
        return Product((error, turned) if self.notation.rows else (turned, error))

    def affine(self, W: Expression, a: Expression, b: Expression | None) -> Expression:
        """W a + b."""
        return self.notation.affine(W, a, b)

    def affine_of(self, product: Expression, b: Expression) -> Expression:
        """A product or a sum, and b."""
        return Sum((product, b))

    def outer(self, error: Expression, a: Expression) -> Product:
        """δ aᵀ."""
        return self.notation.outer(error, a)

    def matrix(self, out: int, into: int, back: bool = False) -> str:
        """The shapes of W a, or `back` of Wᵀ δ."""
        rows, columns = (into, out) if back else (out, into)
        if self.notation.rows:
            return f"{columns}·{columns}×{rows} → {rows}"
        return f"{rows}×{columns}·{columns} → {rows}"

    def outer_sizes(self, out: int, into: int) -> str:
        """The shapes of δ aᵀ."""
        left, right = (into, out) if self.notation.rows else (out, into)
        return f"{left}·{right} → {left}×{right}"


Kind = Callable[[Site], Equations]


def at(symbol: Expression, below: str) -> Expression:
    """A symbol, or the error at it, with a subscript: a²ₚ, ∂C/∂a²ₚ."""
    from jaxnet.explaining.expressions import Gradient, Partial

    match symbol:
        case Name(base, above, _, key):
            return Name(base, above, below, key)
        case Partial(of, by):
            return Partial(of, at(by, below))
        case Gradient(by, of):
            return Gradient(at(by, below), of)
    return symbol


def summed_to(values: Any, axes: int) -> Any:
    """The sum over the first axes."""
    return values.sum(tuple(range(axes))) if axes else values
