"""The notations of Nielsen, Ng and CS229: symbols, the number of the first layer, and the orientation of W."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from jaxnet.explaining.expressions import Derivative, Expression, Frozen, Name, Product, Sum, Transposed, written
from jaxnet.explaining.model import NotationRow, SumLoop

NOTATIONS = ("nielsen", "ng", "cs229")
WEIGHTS = ("out-in", "in-out")
FIRST = {"nielsen": 1, "ng": 0, "cs229": 1}  # the number of the input in each
Number = int | tuple[int, int] | None  # a layer's, from the input as 0; of one inside another, both; None: no layer
WHO = {"nielsen": "Nielsen", "ng": "Ng", "cs229": "CS229"}


class ExplainError(ValueError):
    """Something that cannot be explained; the message states the rule, the value received and the repair."""


class Notation(Frozen):
    """How quantities are written. Layers are counted here from the input as 0; `first` is the number it is written by.

    weights: "out-in", z = W a + b of columns; "in-out", z = a W + b of rows. bracketed: whether a layer's number stands
    in brackets where it would else look like a power: a⁽³⁾ for a³.
    """

    name: Literal["nielsen", "ng", "cs229"] = "nielsen"
    first: int = 1
    weights: Literal["out-in", "in-out"] = "out-in"
    bracketed: bool = False

    @property
    def rows(self) -> bool:
        """Whether vectors are rows, since W is (in, out)."""
        return self.weights == "in-out"

    def number(self, layer: Number) -> str:
        """A layer's number as written; 3.2 of the second one inside the third."""
        if layer is None:
            return ""
        return str(layer + self.first) if isinstance(layer, int) else f"{layer[0] + self.first}.{layer[1]}"

    def above(self, layer: Number) -> str:
        """A layer's number as it stands at a symbol."""
        number = self.number(layer)
        marked = {"nielsen": f"({number})" if self.bracketed else number, "ng": f"[{number}]", "cs229": f"({number})"}
        return marked[self.name] if number else ""

    def name_of(self, base: str, layer: Number, key: str = "") -> Name:
        """A symbol of a layer."""
        if layer is None:  # W1 of a function is W₁
            letters = base.rstrip("0123456789")
            return Name(letters, below=base[len(letters) :], key=key or base)
        return Name(base, self.above(layer), key=f"{key or base}{self.number(layer).replace('.', '_')}")

    def z(self, layer: Number) -> Name:
        """z of a layer."""
        return self.name_of("z", layer)

    def a(self, layer: Number) -> Name:
        """a of a layer; of the input x."""
        return self.name_of("a", layer) if layer else Name("x", key="x")

    def param(self, name: str, layer: Number) -> Name:
        """A parameter: W, b, γ, …"""
        return self.name_of(GREEK.get(name, name), layer, name)

    @property
    def cost(self) -> Name:
        """C, or J."""
        return Name("C" if self.name == "nielsen" else "J", key="C")

    @property
    def target(self) -> Name:
        """y."""
        return Name("y", key="y")

    def delta(self, layer: Number) -> Expression:
        """∂C/∂z of a layer."""
        if self.name == "ng":
            return self.name_of("dz", layer, "delta")
        return self.name_of("δ", layer, "delta")

    def gradient(self, of: Name) -> Expression:
        """∂C of a parameter."""
        if self.name == "ng":
            return Name(f"d{of.base}", of.above, key=f"d{of.key}")
        return Derivative(of, self.cost if self.name == "cs229" else None, nabla=True)

    def partial(self, by: Name) -> Expression:
        """∂C/∂a of an activation, or of the input."""
        if self.name == "ng":
            return Name(f"d{by.base}", by.above, key=f"d{by.key}")
        return Derivative(by, self.cost, nabla=self.name == "cs229")

    def affine(self, W: Expression, a: Expression, b: Expression | None) -> Expression:
        """W a + b, or a W + b."""
        product = Product((a, W) if self.rows else (W, a))
        return product if b is None else Sum((product, b))

    def sent_back(self, W: Expression, delta: Expression) -> Product:
        """Wᵀ δ, or δ Wᵀ."""
        return Product((delta, Transposed(W)) if self.rows else (Transposed(W), delta))

    def outer(self, delta: Expression, a: Expression) -> Product:
        """δ aᵀ, or aᵀ δ."""
        return Product((Transposed(a), delta) if self.rows else (delta, Transposed(a)))

    def described(self) -> str:
        """Where layers are counted from, in words."""
        own = FIRST[self.name] == self.first
        return f"{WHO[self.name]}'s {'numbering' if own else 'symbols'}: input is layer {self.first}"


NIELSEN = Notation()
"""The default."""

GREEK = {"gamma": "γ", "beta": "β", "alpha": "α", "delta": "δ", "epsilon": "ε",
         "mean": "μ", "variance": "v"}  # fmt: skip


def notation(name: str = "nielsen", numbering: int | None = None, weights: str = "out-in") -> Notation:
    """A notation by name; `numbering`: the input's number, 0 or 1, by default the notation's own.

    Raises `ExplainError` for a name, a number or an orientation that is none.
    """
    if name not in NOTATIONS:
        raise ExplainError(f"a notation is one of {', '.join(NOTATIONS)}, got {name!r}")
    if weights not in WEIGHTS:
        raise ExplainError(f"W lies {' or '.join(WEIGHTS)}, got {weights!r}")
    if numbering not in (None, 0, 1):
        raise ExplainError(f"layers are numbered from the input as 0 or as 1, got {numbering}")
    return Notation(name, FIRST[name] if numbering is None else numbering, weights)  # type: ignore[arg-type]  # as checked above


def notation_rows(layer: int, weights: str) -> tuple[NotationRow, ...]:
    """One dense layer's quantities as Nielsen, Ng and CS229 write them, each with its own numbering.

    layer: from the input as 0. weights: how W lies.
    """
    each = {name: notation(name, weights=weights) for name in NOTATIONS}
    described = {name: rows_of(n, layer) for name, n in each.items()}
    return tuple(
        NotationRow(what, {name: described[name][what] for name in NOTATIONS}) for what in described[NOTATIONS[0]]
    )


def rows_of(n: Notation, layer: int) -> dict[str, str]:
    """The quantities of a layer in one notation."""
    W, delta, a = n.param("W", layer), n.delta(layer), n.a(layer - 1)
    back = max(layer - 1, 1)
    above: Expression = n.param("W", back + 1)
    mean = "1/m " if n.name == "ng" else ""
    batch = {
        "nielsen": written(n.gradient(W)) + " = 1/m Σₓ " + written(n.outer(delta, a)),
        "ng": f"{written(n.gradient(W))} = {mean}" + capital(n, layer),
        "cs229": written(n.gradient(W)) + " = 1/m Σᵢ " + written(n.outer(delta, a)),
    }[n.name]
    return {
        "the input": f"layer {n.first}",
        "weighted input": written(n.z(layer)),
        "activation": written(n.a(layer)),
        "error, ∂C/∂z": written(delta),
        "∂C/∂a": written(n.partial(n.a(layer))),
        "BP1, at the end": f"{written(n.delta(layer))} = {written(n.partial(n.a(layer)))} ⊙ σ′({written(n.z(layer))})",
        "BP2, one layer back": f"{written(n.delta(back))} = {written(n.sent_back(above, n.delta(back + 1)))} ⊙ "
        f"σ′({written(n.z(back))})",
        "BP3, biases": f"{written(n.gradient(n.param('b', layer)))} = {written(delta)}",
        "BP4, weights": f"{written(n.gradient(W))} = {written(n.outer(delta, a))}",
        "over a batch": batch,
    }


def capital(n: Notation, layer: int) -> str:
    """dZ Aᵀ: a column for each example."""
    dZ, A = replace(n.name_of("dZ", layer)), n.name_of("A", layer - 1) if layer > 1 else n.a(0)
    A = replace(A, base="X") if layer <= 1 else A
    return f"{written(Transposed(A))} {written(dZ)}" if n.rows else f"{written(dZ)} {written(Transposed(A))}"


def loops(weights: str) -> tuple[SumLoop, ...]:
    """Both sums of a dense layer as loops: the same W[i, j], and the other subscript moves."""
    if weights == "in-out":
        return (
            SumLoop("forward", "zⱼ = Σᵢ aᵢ Wᵢⱼ + bⱼ", "i", "for j: for i: z[j] += a[i] * W[i, j]"),
            SumLoop("backward", "(∂C/∂a)ᵢ = Σⱼ Wᵢⱼ δⱼ", "j", "for i: for j: da[i] += W[i, j] * delta[j]"),
            SumLoop("gradient", "(∇W)ᵢⱼ = aᵢ δⱼ", "", "for i: for j: dW[i, j] = a[i] * delta[j]"),
        )
    return (
        SumLoop("forward", "zⱼ = Σᵢ Wⱼᵢ aᵢ + bⱼ", "i", "for j: for i: z[j] += W[j, i] * a[i]"),
        SumLoop("backward", "(∂C/∂a)ᵢ = Σⱼ Wⱼᵢ δⱼ", "j", "for i: for j: da[i] += W[j, i] * delta[j]"),
        SumLoop("gradient", "(∇W)ⱼᵢ = δⱼ aᵢ", "", "for j: for i: dW[j, i] = delta[j] * a[i]"),
    )
