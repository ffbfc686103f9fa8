"""A derivation as frozen dataclasses of symbols, shapes and numbers. They know no renderer.

Everything is made by `derive`; every array is NumPy's, in the dtype in which the network computed it. `to_dict` turns
any of these into plain values for JSON.
"""

from __future__ import annotations

import dataclasses
from dataclasses import field
from html import escape
from typing import Any, Literal

import numpy as np

from jaxnet.explaining.expressions import Expression, Frozen, written

Shape = tuple[int, ...]


class EquationFactor(Frozen):
    """One factor of an equation, and its shape as the equation takes it: a vector is (n,), δ aᵀ is (out,)·(in,).

    value: as the equation takes it; not in JSON, where other lines have it.
    """

    expression: Expression
    shape: Shape
    value: np.ndarray = field(metadata={"json": False})


class Quoted(Frozen):
    """Lines of the source: the layer's equations (its module's docstring) and its backward, and where they stand."""

    equations: str
    forward: str
    backward: str
    where: str


class Line(Frozen):
    """One equation with its value.

    key: its value's name in a formula: z2, a2, delta3, dW3, db3, da2. kind: "z", "a", "delta", "dW", "db",
    "da", or "layer" for one that stands for a layer without equations of its own. item: the layer's index among the
    network's leaf and composed layers, from 0; −1 for the loss. layer: its number as written. left, right: the
    equation. factors: the right side's, where it is a product. shape, value: of the result. remarks: "unit 2 is off".
    ulp: the distance from autodiff's value, in units of the last place of the array's largest entry; None forward of
    the values that autodiff knows. rule: "BP2" and its like.

    Of a layer of several steps besides: of: the layer, as it stands above its lines. within: the
    block that it stands in. sizes: the shapes in words. notes: lines below it. quoted: its source, at the step that
    gives the layer's own output. opaque: the source is all there is.
    aside: left out where there is little room. gives: "out", "dx", or the parameter whose gradient it is, where the
    layer is an item of the chain.
    """

    key: str
    kind: str
    item: int
    layer: str
    left: Expression
    right: Expression
    factors: tuple[EquationFactor, ...]
    shape: Shape
    value: np.ndarray
    remarks: tuple[str, ...] = ()
    ulp: float | None = None
    rule: str = ""
    sizes: str = ""
    notes: tuple[str, ...] = ()
    of: str = ""
    within: str = ""
    quoted: Quoted | None = None
    opaque: bool = False
    aside: bool = False
    gives: str = ""


class DrawnLayer(Frozen):
    """One layer of the network as drawn: W and b of a dense one; the output and δ of each.

    kind: "dense", "activation", "loss", or "other". number: as written. name: the layer's own. activation: that of
    the layer that follows a dense one, "" where none does.
    """

    item: int
    kind: str
    name: str
    number: str
    shape: Shape
    out: np.ndarray
    delta: np.ndarray
    params: dict[str, np.ndarray] = field(default_factory=dict)
    grads: dict[str, np.ndarray] = field(default_factory=dict)


class Header(Frozen):
    """The network, the example and the cost that are derived.

    title: "2 → 3 relu → 2 sigmoid". source: the config or object it came from. cost: its equation's two sides. value:
    C. example: its index in the data, None for one given. y: the target as the equations take it, one-hot where it
    came as a class, which is then `target`. numbering: in words.
    """

    title: str
    source: str
    loss: str
    cost_left: Expression
    cost_right: Expression
    value: float
    x: np.ndarray
    y: np.ndarray
    target: int | None
    example: int | None
    notation: str
    numbering: str
    weights: str
    dtype: str
    seed: int | None = None


# ---------------------------------------------------------------------------------------------- questions


class Nudge(Frozen):
    """Ask the network: a unit of a, from 0, is raised by `by`; z moves by `dz` = by × the column of W.

    cost_moves: by how much C did, run forward again. predicted: by × the unit's entry of Wᵀδ.
    """

    unit: int
    by: float
    dz: np.ndarray
    column: np.ndarray
    cost_moves: float
    predicted: float


class Paths(Frozen):
    """Count the paths: from one unit of a there are as many as W has rows, from one weight only one, so no sum."""

    unit: int
    terms: np.ndarray  # δ_j W_ji, one for each row j
    total: float
    weight: tuple[int, int]
    weight_gradient: float  # δ_j a_i
    weight_delta: float
    weight_input: float
    weight_moves: float  # C, where that weight is raised by a thousandth


class WholeRows(Frozen):
    """Whole rows: Wᵀδ = Σ_j δ_j · (row j of W)."""

    delta: np.ndarray
    W: np.ndarray
    scaled: np.ndarray  # (out, in): δ_j × row j
    total: np.ndarray


class SentBack(Frozen):
    """The vector that W⁻¹ or the pseudo-inverse would send back instead of Wᵀδ.

    inverse: "none" (W is not square), "singular", or "inverse"; `value` is W⁻¹δ, or W⁺δ where there is no inverse.
    angle: to Wᵀδ, in degrees; NaN where one of them is 0. step: the length by which a is moved against each;
    transpose_lowers, other_lowers: by how much C falls then.
    """

    inverse: Literal["none", "singular", "inverse"]
    value: np.ndarray
    angle: float
    step: float
    transpose_lowers: float
    other_lowers: float


class Orthogonal(Frozen):
    """Where W is orthogonal the two are equal: Q, the nearest such matrix to W, with Qᵀδ and Q⁻¹δ (Q⁺δ)."""

    Q: np.ndarray
    transposed: np.ndarray
    inverted: np.ndarray
    difference: float


class Adjoint(Frozen):
    """⟨δ, W v⟩ = ⟨Wᵀδ, v⟩ at a v drawn at random."""

    v: np.ndarray
    left: float
    right: float


class WhyTranspose(Frozen):
    """Why Wᵀ at one dense layer, in the order of asking.

    back: the error sent back, Wᵀδ. units: of δ, W, Wᵀδ and W⁻¹δ. gives: the symbol of z, a: of W's input.
    """

    item: int
    layer: str
    W: Expression
    delta: Expression
    a: Expression
    gives: Expression
    shape: Shape
    back: np.ndarray
    nudge: Nudge
    paths: Paths
    rows: WholeRows
    sent_back: SentBack
    orthogonal: Orthogonal
    adjoint: Adjoint
    units: tuple[tuple[str, str], ...]


class Answer(Frozen):
    """A question that people ask, and its answer with this network's numbers. key: one word for it."""

    key: str
    question: str
    answer: str


class Jacobian(Frozen):
    """A Jacobian of the chain, rows by outputs: symbol, shape and kind ("W", "diagonal", "cost", "full")."""

    expression: Expression
    shape: Shape
    kind: str
    diagonal: np.ndarray | None = None


class Layouts(Frozen):
    """The same derivative in row (numerator) and column (denominator) layout: Jacobians in order.

    of: the derivative. value: its entries, the same in both. whole: whether the chain goes from C itself, or from the
    δ of the layer above.
    """

    of: Expression
    whole: bool
    row: tuple[Jacobian, ...]
    column: tuple[Jacobian, ...]
    row_shape: Shape
    column_shape: Shape
    value: np.ndarray


class Tensor(Frozen):
    """∂z/∂W, (out, out, in): entry (k, i, j) is a_j where k = i, else 0; δ contracted with its first axis is δ aᵀ."""

    value: np.ndarray
    delta: np.ndarray
    a: np.ndarray
    collapsed: np.ndarray
    layer: str


class Order(Frozen):
    """Multiplications for ∂C/∂x of the chain of matrices, ⊙ not counted.

    widths: of the layers, input first. from_loss, from_input: vector-first from the loss, matrix-first from the
    input. cheapest: the least of all orders, and its bracketing.
    """

    widths: tuple[int, ...]
    from_loss: int
    from_input: int
    cheapest: int
    bracketing: str


class Batch(Frozen):
    """Of one dense layer over m examples: dZ Aᵀ is the sum of the outer products, before which 1/m stands."""

    item: int
    layer: str
    m: int
    examples: tuple[int, ...]
    deltas: np.ndarray  # (m, out), each example's own, without 1/m
    inputs: np.ndarray  # (m, in)
    outers: np.ndarray  # (shown, out, in)
    gradient: np.ndarray  # 1/m dZ Aᵀ, the network's own
    summed: np.ndarray  # 1/m Σ of the outer products
    ulp: float


class NotationRow(Frozen):
    """One quantity: its meaning, and its name in each notation."""

    what: str
    names: dict[str, str]


class SumLoop(Frozen):
    """A sum of a dense layer as a loop; `moving` is the summed subscript, "" where there is no sum."""

    direction: Literal["forward", "backward", "gradient"]
    text: str
    moving: str
    code: str


class Checked(Frozen):
    """How far all values are from autodiff's: the largest distance in units of the last place, and by key."""

    worst: float
    by_key: dict[str, float]
    allowed: float
    ok: bool


class Derivation(Frozen):
    """The backward pass of one network at one example."""

    header: Header
    forward: tuple[Line, ...]
    backward: tuple[Line, ...]
    layers: tuple[DrawnLayer, ...]
    why: tuple[WhyTranspose, ...]
    layouts: tuple[Layouts, ...]
    tensors: tuple[Tensor, ...]
    order: Order | None
    answers: tuple[Answer, ...]
    notations: tuple[NotationRow, ...]
    loops: tuple[SumLoop, ...]
    checked: Checked
    batch: tuple[Batch, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The derivation as plain values for JSON."""
        return to_dict(self)

    def _repr_html_(self) -> str:
        """A table for notebooks: the equations, their shapes, and their values."""
        cells = [
            (f"{written(line.left)} = {written(line.right)}", "×".join(map(str, line.shape)),
             np.array2string(line.value, precision=4, threshold=12, edgeitems=2))
            for line in (*self.forward, *self.backward)
        ]  # fmt: skip
        rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in cells)
        return f"<table><caption>{escape(self.header.title)}</caption>{rows}</table>"


def to_dict(thing: Any) -> Any:
    """Dataclasses as tables with their `kind` ("type" where they have a kind of their own), arrays as nested lists."""
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        shown = [each.name for each in dataclasses.fields(thing) if each.metadata.get("json", True)]
        return {"type": type(thing).__name__} | {name: to_dict(getattr(thing, name)) for name in shown}
    if isinstance(thing, np.ndarray | np.generic):
        return to_dict(np.asarray(thing).tolist())
    if isinstance(thing, dict):
        return {str(key): to_dict(value) for key, value in thing.items()}
    if isinstance(thing, tuple | list):
        return [to_dict(each) for each in thing]
    return str(thing) if isinstance(thing, float) and not np.isfinite(thing) else thing  # JSON has no infinity
