"""A derivation in one notation as the page's template reads it: formulas, cells, and questions of each dense layer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from markupsafe import Markup, escape

from jaxnet.explaining import cells
from jaxnet.explaining.answers import answers
from jaxnet.explaining.drawing import Drawing, drawing
from jaxnet.explaining.expressions import Derivative, Expression, Name, Power, Product, Sum, Transposed, entry
from jaxnet.explaining.guided_walk import WalkStep, walk_steps
from jaxnet.explaining.history import RunCharts
from jaxnet.explaining.layouts import layouts, tensor
from jaxnet.explaining.lines import Chain, inside, oriented
from jaxnet.explaining.mathml import equation, math, mathml
from jaxnet.explaining.model import Derivation, Line, Tensor, WhyTranspose
from jaxnet.explaining.notation import NOTATIONS, WHO, Notation, notation_rows
from jaxnet.explaining.numbers import LONGEST, number, one, shape, vector
from jaxnet.explaining.page_pictures import PictureOf, Pictures, symbols_of
from jaxnet.explaining.records import param_name
from jaxnet.explaining.terminal import given, headed

OPEN, MIDDLE, CLOSE = "\x02", "\x01", "\x03"
SLOT = re.compile(f"{OPEN}([a-z]+){MIDDLE}(.*?){CLOSE}", re.DOTALL)


def varying(content: Markup | str, tag: str = "span") -> Markup:
    """A place whose content depends on the notation."""
    return Markup(OPEN + tag + MIDDLE + escape(content) + CLOSE)


def merged(bodies: Mapping[str, str], first: str) -> tuple[str, dict[str, Any]]:
    """The body of the first notation with its places numbered, and the contents of the others there.

    Raises `RuntimeError` where the bodies differ elsewhere: a template that does so is wrong.
    """
    skeletons = {SLOT.sub("", body) for body in bodies.values()}
    if len(skeletons) != 1:
        raise RuntimeError("the page differs between notations outside of the marked places")
    contents = {name: [found[1] for found in SLOT.findall(body)] for name, body in bodies.items()}
    differing = [i for i, each in enumerate(zip(*contents.values(), strict=True)) if len(set(each)) > 1]
    numbers = {i: n for n, i in enumerate(differing)}
    strings: dict[str, int] = {}
    variants = {
        name: [strings.setdefault(found[i], len(strings)) for i in differing] for name, found in contents.items()
    }
    count = iter(range(len(contents[first])))

    def put(found: re.Match[str]) -> str:
        tag, content = found.groups()
        number = numbers.get(next(count))
        return f"<{tag}{'' if number is None else f' data-s={number}'}>{content}</{tag}>"

    return SLOT.sub(put, bodies[first]), {"strings": list(strings), "of": variants}


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
    "marked": headed, "transposes": Markup("(AB)ᵀ = BᵀAᵀ"),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class FunctionView:
    """The lines of a function, for the template."""

    digits: int

    def remarks(self, line: Line) -> list[tuple[str, str]]:
        """A line's remarks; none is written anew by a script."""
        return [(remark, "") for remark in line.remarks]

    def equation(self, line: Line) -> Markup:
        """A line's equation."""
        return varying(equation(line.left, line.right))

    def value(self, line: Line) -> Markup:
        """A line's value."""
        return cells.array("step", line.value, self.digits)


@dataclass(frozen=True, eq=False)
class View:
    """A derivation in one notation, for the template."""

    d: Derivation
    chain: Chain
    digits: int
    spec: dict[str, Any] | None
    over: RunCharts | None
    pictures: Pictures

    def symbols(self, figure: PictureOf) -> dict[str, Expression]:
        """The symbols of a figure's values."""
        return symbols_of(self.chain, figure)

    @property
    def n(self) -> Notation:
        """The notation."""
        return self.chain.notation

    @cached_property
    def drawing(self) -> Drawing:
        """The network as units and edges."""
        return drawing(self.chain.places)

    @cached_property
    def asked(self) -> list[SimpleNamespace]:
        """The dense layers with their questions; the chosen one first."""
        batches, chain = {each.item: each for each in self.d.batch}, self.chain
        return [
            SimpleNamespace(
                place=place, number=self.n.number(place.number), why=why, layouts=layouts(chain, place),
                tensor=tensor(chain, place), answers=answers(chain, place, why), batch=batches.get(why.item),
                rows=notation_rows(place.number, self.n.weights),
            ) for why in self.d.why[:MOST_ASKED] for place in (chain.places[why.item],)
        ]  # fmt: skip

    @cached_property
    def walk(self) -> list[WalkStep]:
        """The walk through the dense layer that is asked about first; empty where there is none."""
        return walk_steps(self.chain.observed, self.d, self.n) if self.d.why else []

    @staticmethod
    def lights(step: WalkStep) -> str:
        """The units and edges lit by a step, for the script: [[layer, unit], …] and [[layer, edge, product], …]."""
        return json.dumps([step.units, [(*edge, product) for edge, product in step.edges.items()]])

    @property
    def title(self) -> Markup:
        """The network in a line, no arrow torn from its label."""
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
        """Heat maps of each layer's output, the error there, and its parameters."""
        found = []
        for place in self.chain.places[:MOST_ITEMS]:
            within = inside(self.chain, place)
            own = len(within.records) == 1
            for n, record in enumerate(within.records):
                if record.d_out is None or not (own or record.kind == "leaf"):
                    continue
                params = [(param_name(self.n, path, within.number(n)), "param", np.asarray(leaf)) for path, leaf
                          in jax.tree_util.tree_leaves_with_path(record.params) if np.size(leaf) > LONGEST]  # fmt: skip
                error = self.n.partial(within.gives(n)) if own and not place.is_z else within.error(n)
                maps = [(within.gives(n), f"out.{place.index}" if own else "step", record.out),
                        (error, f"err.{place.index}" if own else "step", record.d_out), *params]  # fmt: skip
                found.append((f"{record.within and f'{record.within}: '}{record.layer.name}",
                              [(symbol, cells.heat(name, of)) for symbol, name, of in maps]))  # fmt: skip
        return found

    def single(self, name: str, value: float, digits: int = 0) -> Markup:
        """One number."""
        return cells.single(name, value, digits or self.digits)

    def weights(self, name: str, values: np.ndarray, digits: int = 0) -> Markup:
        """A matrix as the notation lays it, of one that is kept as (out, in)."""
        laid = oriented(values, self.n)
        return varying(self.array(name, laid, digits, turned=self.n.rows))

    def remarks(self, line: Line) -> list[tuple[str, str]]:
        """A line's remarks. off.1 and slopes.1 name those that the script writes anew."""
        activations = [place.index for place in self.chain.places if place.kind == "activation"] if self.spec else []
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

    def bars(self) -> Sequence[tuple[str, int, float]]:
        """The orders of ∂C/∂x, their products and their share of the largest."""
        order = self.d.order
        assert order is not None
        found = [("from the loss", order.from_loss), ("from the input", order.from_input)]
        if order.cheapest < min(order.from_loss, order.from_input):
            found.append(("cheapest", order.cheapest))
        most = max(count for _, count in found)
        return [(name, count, count / most) for name, count in found]

    def laid(self, name: str, values: np.ndarray) -> Markup:
        """A matrix as cells, however large."""
        return cells.group("mat", name, np.asarray(values), self.digits, 2, ())

    def tensor_shape(self, of: Tensor) -> str:
        """The shape of ∂z/∂W in W's orientation."""
        out, rows, columns = of.value.shape
        return shape((out, columns, rows) if self.n.rows else (out, rows, columns))

    def slab(self, item: int, values: np.ndarray, k: int) -> Markup:
        """The entries of ∂z/∂W for one entry of z."""
        return self.array(f"slab.{item}.{k}", oriented(values, self.n), least=0, turned=self.n.rows)

    def inverse(self, why: WhyTranspose) -> Product:
        """W⁻¹δ as the notation writes it."""
        turned = Power(why.W, "−1")
        return Product((why.delta, turned) if self.n.rows else (turned, why.delta))

    def weight(self, W: Expression, out: int, into: int) -> Expression:
        """An entry of W, counted from 1, its subscripts in W's orientation."""
        return entry(W, *((into, out) if self.n.rows else (out, into)))


def name_of_value(line: Line, chain: Chain) -> str:
    """The script's name of a line's value: out.0, err.0, db.0; grad.0 for gradients of other parameters."""
    if chain.places[line.item].kind == "other" and line.kind not in ("delta", "da"):
        return "step"
    if line.ulp is None:
        return f"out.{line.item}"
    if line.kind in ("delta", "da"):
        return f"err.{line.item}"
    return f"{line.kind}.{line.item}"
