"""A derivation in one notation as the page's template reads it: formulas, cells, and questions of each dense layer."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from markupsafe import Markup, escape

from jaxnet.explaining import cells
from jaxnet.explaining.answers import answers
from jaxnet.explaining.drawing import Drawing, drawing
from jaxnet.explaining.expressions import (
    Derivative,
    Expression,
    Name,
    Power,
    Product,
    Sum,
    Transposed,
    entry,
)
from jaxnet.explaining.guided_walk import WalkStep, walk_steps
from jaxnet.explaining.layouts import layouts, tensor
from jaxnet.explaining.lines import Chain, inside, oriented
from jaxnet.explaining.mathml import equation, math, mathml
from jaxnet.explaining.model import Answer, Batch, Derivation, Layouts, Line, NotationRow, Tensor, WhyTranspose
from jaxnet.explaining.notation import NOTATIONS, WHO, Notation
from jaxnet.explaining.notation_tables import notation_rows
from jaxnet.explaining.numbering import NumberedLayer
from jaxnet.explaining.numbers import LONGEST, number, one, shape, vector
from jaxnet.explaining.run_charts import RunCharts
from jaxnet.explaining.site import param_name
from jaxnet.explaining.terminal import given
from jaxnet.explaining.variants import varying
from jaxnet.explaining.whytext import check_line

MOST_ITEMS = 24  # layers of a network, beyond which the page keeps to the notation asked for
MOST_ASKED = 8  # dense layers to choose from


def m(*parts: Expression | str, block: bool = False) -> Markup:
    """A formula: expressions, and signs between them."""
    rows = [Markup("<mo>{}</mo>").format(each) if isinstance(each, str) else mathml(each) for each in parts]
    return varying(math(*rows, block=block))


def words(content: str) -> Markup:
    """Words that depend on the notation."""
    return varying(escape(content))


FUNCTIONS: dict[str, Any] = {
    "m": m, "words": words, "entry": entry, "shape": shape, "one": one, "number": number, "varying": varying,
    "T": Transposed, "Product": Product, "Derivative": Derivative,
    "who": [(name, WHO[name]) for name in NOTATIONS], "Name": Name,
    "transposes": Markup("(AB)ᵀ = BᵀAᵀ"),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Asked:
    """The questions about one dense layer."""

    place: NumberedLayer
    number: str
    why: WhyTranspose
    layouts: tuple[Layouts, ...]
    tensor: Tensor | None
    answers: tuple[Answer, ...]
    rows: tuple[NotationRow, ...]
    batch: Batch | None


@dataclass(frozen=True, eq=False)
class View:
    """A derivation in one notation, for the template."""

    d: Derivation
    chain: Chain
    digits: int
    spec: dict[str, Any] | None
    over: RunCharts | None

    @property
    def n(self) -> Notation:
        """The notation."""
        return self.chain.notation

    @cached_property
    def drawing(self) -> Drawing:
        """The network as units and edges."""
        return drawing(self.chain.places)

    @cached_property
    def asked(self) -> list[Asked]:
        """The dense layers with their questions; the chosen one first."""
        batches = {each.item: each for each in self.d.batch}
        found = []
        for why in self.d.why[:MOST_ASKED]:
            place = self.chain.places[why.item]
            number = self.n.number(place.number)
            found.append(
                Asked(
                    place, number, why, layouts(self.chain, place), tensor(self.chain, place),
                    answers(self.chain, place, why), notation_rows(place.number, self.n.weights), batches.get(why.item),
                )
            )  # fmt: skip
        return found

    @cached_property
    def walk(self) -> list[WalkStep]:
        """The walk through the dense layer that is asked about first; empty where there is none."""
        return walk_steps(self.chain.observed, self.d, self.n) if self.d.why else []

    @staticmethod
    def lights(step: WalkStep) -> str:
        """What a step lights, for the script: [[layer, unit], …] and [[layer, edge, product], …]."""
        return json.dumps([step.units, [(*edge, product) for edge, product in step.edges.items()]])

    @property
    def picker(self) -> list[Asked]:
        """The same in the order of the network."""
        return sorted(self.asked, key=lambda each: each.place.index)

    @property
    def dense(self) -> list[NumberedLayer]:
        """The dense layers whose numbers can be changed."""
        return [place for place in self.chain.places if place.kind == "dense"]

    @property
    def check(self) -> str:
        """How far all is from autodiff."""
        return check_line(self.d)

    @property
    def title(self) -> Markup:
        """The network in a line, no arrow torn from what stands on it."""
        parts = re.split(r"(—[^→]+→)", self.d.header.title)
        arrow = Markup('<span class="nowrap">{}</span>')
        return Markup("").join(arrow.format(part) if part.startswith("—") else escape(part) for part in parts)

    @property
    def cost(self) -> Markup:
        """C's equation."""
        return varying(equation(self.d.header.cost_left, self.d.header.cost_right))

    def given(self, values: np.ndarray) -> str:
        """An input with its given decimals."""
        return given(values, self.digits)

    def array(self, name: str, values: np.ndarray, digits: int = 0, **options: Any) -> Markup:
        """An array as cells."""
        return cells.array(name, values, digits or self.digits, **options)

    def brief(self, name: str, values: np.ndarray, digits: int = 0) -> Markup:
        """A vector within a sentence: cells, or of a long one its ends."""
        digits = digits or self.digits
        if len(values) <= LONGEST:
            return cells.array(name, values, digits)
        return Markup('<span class="ends">{}</span>').format(vector(values, digits))

    def gallery(self) -> list[tuple[str, list[tuple[Expression, Markup]]]]:
        """Heat maps of what each layer gives, of the error there, and of its parameters."""
        found: list[tuple[str, list[tuple[Expression, Markup]]]] = []
        for place in self.chain.places[:MOST_ITEMS]:
            within = inside(self.chain, place)
            for n, record in enumerate(within.records):
                if record.d_out is None or (len(within.records) > 1 and record.kind != "leaf"):
                    continue
                own = len(within.records) == 1
                maps = [
                    (within.gives(n), cells.heat(f"out.{place.index}" if own else "step", record.out)),
                    (within.error(n)[0], cells.heat(f"err.{place.index}" if own else "step", record.d_out)),
                ]
                for path, leaf in jax.tree_util.tree_leaves_with_path(record.params):
                    if np.size(leaf) > LONGEST:
                        symbol = param_name(self.n, path, within.number(n))
                        maps.append((symbol, cells.heat("param", np.asarray(leaf))))
                found.append((f"{record.within and f'{record.within}: '}{record.layer.name}", maps))
        return found

    def single(self, name: str, value: float, digits: int = 0) -> Markup:
        """One number."""
        return cells.single(name, value, digits or self.digits)

    def weights(self, name: str, values: np.ndarray, digits: int = 0) -> Markup:
        """A matrix as the notation lays it, of one that is kept as (out, in)."""
        laid = oriented(values, self.n)
        return varying(self.array(name, laid, digits, turned=self.n.rows))

    def marked(self, lines: Sequence[Line]) -> list[tuple[Line, str, str]]:
        """Lines with what stands above them: the block that begins there, and the layer."""
        found, before, block = [], ("", ""), ""
        for line in lines:
            begins = line.of and (line.layer, line.of) != before
            named = f"{line.layer} {line.of}" if begins else ""
            found.append((line, line.within if line.within != block else "", named))
            before, block = (line.layer, line.of), line.within
        return found

    def remarks(self, line: Line) -> list[tuple[str, str]]:
        """A line's remarks. off.1 and slopes.1 name those that the script writes anew."""
        activations = [place.index for place in self.chain.places if place.kind == "activation"] if self.live else []
        forward = line.ulp is None and line.item in activations
        if forward:  # of units that are off, which may be none now
            return [("; ".join(line.remarks), f"off.{line.item}")]
        slopes = f"slopes.{line.item + 1}" if line.item + 1 in activations else ""
        return [(remark, slopes if "′ = diag(" in remark else "") for remark in line.remarks]

    def equation(self, line: Line) -> Markup:
        """A line's equation, the shape of each factor below it."""
        return varying(equation(line.left, line.right, self.shapes(line)))

    def shapes(self, line: Line) -> dict[Expression, str]:
        """Shapes of the factors of a product, vectors as the rows or columns that they are there."""
        found: dict[Expression, str] = {line.left: self.as_matrix(line.shape, False)}
        product = line.right.terms[0] if isinstance(line.right, Sum) and line.kind == "z" else line.right
        if not isinstance(product, Product) or not line.factors:
            return found
        sizes = {factor.expression: factor.shape for factor in line.factors}
        for factor in product.factors:
            turned = isinstance(factor, Transposed) and factor not in sizes
            inner = factor.of if isinstance(factor, Transposed) and turned else factor
            if inner in sizes:
                found[factor] = self.as_matrix(sizes[inner], turned)
        return found

    def as_matrix(self, sizes: tuple[int, ...], turned: bool) -> str:
        """A vector's shape as that of a column, or of a row."""
        if len(sizes) != 1:
            return shape(sizes)
        return shape((1, *sizes) if turned != self.n.rows else (*sizes, 1))

    def value(self, line: Line) -> Markup:
        """A line's value."""
        digits = self.digits if line.ulp is not None else max(1, self.digits - 1)
        if line.kind == "dW" and self.chain.places[line.item].kind == "dense":
            grads: Any = self.chain.places[line.item].item.grads
            return self.weights(f"dW.{line.item}", grads["W"], digits)
        return varying(self.array(name_of_value(line, self.chain), line.value, digits))

    def quoted(self) -> list[Line]:
        """The lines that have a source, each layer of a name once."""
        found: dict[str, Line] = {}
        for line in self.d.forward:
            if line.quoted is not None and line.quoted.backward:
                found.setdefault(line.of.split(" at every")[0], line)
        return list(found.values())

    def ulps(self) -> list[Line]:
        """The lines that autodiff gives too."""
        return [line for line in self.d.backward if line.ulp is not None]

    def bars(self) -> Sequence[tuple[str, int, float]]:
        """The orders of ∂C/∂x, their products and their share of the largest."""
        order = self.d.order
        assert order is not None
        found = [("from the loss", order.from_loss), ("from the input", order.from_input)]
        if order.cheapest < min(order.from_loss, order.from_input):
            found.append(("cheapest", order.cheapest))
        most = max(count for _, count in found)
        return [(name, count, count / most) for name, count in found]

    @property
    def live(self) -> bool:
        """Whether the page computes the network by itself."""
        return self.spec is not None

    def column(self, name: str, values: np.ndarray) -> Markup:
        """A vector as a column."""
        return cells.group("mat", name, np.asarray(values)[:, None], self.digits, 2, ())

    def row(self, name: str, values: np.ndarray) -> Markup:
        """A vector as a row of cells."""
        return cells.group("mat", name, np.asarray(values)[None], self.digits, 2, ())

    def tensor_shape(self, asked: Asked) -> str:
        """The shape of ∂z/∂W in W's orientation."""
        assert asked.tensor is not None
        out, rows, columns = asked.tensor.value.shape
        return shape((out, columns, rows) if self.n.rows else (out, rows, columns))

    def slab(self, asked: Asked, k: int) -> Markup:
        """The entries of ∂z/∂W for one entry of z."""
        assert asked.tensor is not None
        laid = oriented(asked.tensor.value[k], self.n)
        return self.array(f"slab.{asked.place.index}.{k}", laid, least=0, turned=self.n.rows)

    def inverse(self, why: WhyTranspose) -> Product:
        """W⁻¹δ as the notation writes it."""
        turned = Power(why.W, "−1")
        return Product((why.delta, turned) if self.n.rows else (turned, why.delta))

    def weight(self, W: Expression, out: int, into: int) -> Expression:
        """An entry of W, counted from 1, its subscripts in W's orientation."""
        return entry(W, *((into, out) if self.n.rows else (out, into)))

    def choices(self) -> bool:
        """Whether another notation can be chosen."""
        return len(self.chain.places) <= MOST_ITEMS


def name_of_value(line: Line, chain: Chain) -> str:
    """The script's name of a line's value: out.0, err.0, db.0; grad.0 for gradients of other parameters."""
    if chain.places[line.item].kind == "other" and line.kind not in ("delta", "da"):
        return "step"
    if line.ulp is None:
        return f"out.{line.item}"
    if line.kind in ("delta", "da"):
        return f"err.{line.item}"
    return f"{line.kind}.{line.item}"
