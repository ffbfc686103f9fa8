"""A guided walk from the chain rule for one weight to the matrices of the backward pass, by a network's own numbers.

Its sentences stand in `templates/walk.txt.j2`; here are the symbols and numbers in them.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from jaxnet.explaining.derive import Derivation, chain_of
from jaxnet.explaining.drawing import drawing
from jaxnet.explaining.expressions import Transposed, written
from jaxnet.explaining.model import WhyTranspose
from jaxnet.explaining.notation import ExplainError, Notation
from jaxnet.explaining.notes import prime, slope
from jaxnet.explaining.numbers import one, vector
from jaxnet.explaining.observe import Observed
from jaxnet.explaining.template_files import template
from jaxnet.explaining.terminal import check_line
from jaxnet.explaining.why import NUDGE, entry, plus, some, weight

MOST = 4  # units whose sums are written out
MOST_PRODUCTS = 8  # written on the edges


@dataclass(frozen=True)
class WalkStep:
    """A step: its title, its sentences and equations, and the parts of the drawing that it lights.

    units: (item, index) as `Column.item` and `Unit.index` count them. edges: (item, index), with the product on each.
    """

    title: str
    lines: tuple[str, ...]
    units: tuple[tuple[int, int], ...] = ()
    edges: dict[tuple[int, int], str] = field(default_factory=dict)


def walk_steps(observed: Observed, derivation: Derivation, symbols: Notation) -> list[WalkStep]:
    """The steps of the walk, at the dense layer that the derivation explains.

    Raises `ExplainError` for a network without a dense layer.
    """
    if not derivation.why:
        raise ExplainError("--walk follows the error through a dense layer, and this network has none: try --step")
    text = template("walk.txt.j2").render(values(observed, derivation, symbols))
    found, columns = [], [column.item for column in drawing(chain_of(observed, symbols).places).columns]
    for each in text.removeprefix("## ").split("\n## "):
        heading, *lines = each.splitlines()
        title, _, shown = heading.partition(" | ")
        found.append(WalkStep(title, tuple(filter(None, lines)), *lit(shown, derivation.why[0], columns)))
    return found


def lit(shown: str, why: WhyTranspose, columns: list[int]) -> tuple[tuple, dict]:
    """The units and the edges that a step is about; none of a network that is not drawn."""
    if not columns or not shown:
        return (), {}
    above, below, u = why.item, columns[columns.index(why.item) - 1], why.nudge.unit
    (out, into), delta, W = why.shape, why.rows.delta, why.rows.W
    ups, downs = [(above, j) for j in range(out)], [(below, i) for i in range(into)]
    if shown == "output":
        return (ups[0],), {}
    if shown == "weight":
        return (ups[0], downs[u]), {(above, u): f"{one(float(delta[0]), 3)} × {one(why.paths.weight_input, 3)}"}
    if shown == "gate":
        return tuple(downs), {}
    to = [u] if shown == "paths" else range(into)
    sent = {(above, j * into + i): one(float(delta[j] * W[j, i]), 3) for i in to for j in range(out)}
    if shown == "weights" or len(sent) > MOST_PRODUCTS:
        sent = dict.fromkeys(sent, "")
    return (*ups, *(downs[i] for i in to)), sent


def walk_blocks(steps: list[WalkStep], width: int = 100) -> list[str]:
    """The steps as blocks of text."""
    blocks = []
    for i, step in enumerate(steps, 1):
        hang = ["    " if line.startswith("  ") else "" for line in step.lines]
        folded = [each for line, blank in zip(step.lines, hang, strict=True)
                  for each in textwrap.wrap(line, width, subsequent_indent=blank)]  # fmt: skip
        blocks.append("\n".join([f"{i} of {len(steps)}   {step.title}", *folded]))
    return blocks


def values(observed: Observed, derivation: Derivation, n: Notation) -> dict[str, Any]:
    """The names in the sentences: the symbols of a dense layer and of the activation below it, and their numbers."""
    why, chain = derivation.why[0], chain_of(observed, n)
    W, d, a, z = (written(each) for each in (why.W, why.delta, why.a, why.gives))
    (out, _), u, place = why.shape, why.nudge.unit, chain.places[why.item]
    delta, weights, inputs = why.rows.delta, why.rows.W, np.asarray(place.item.x, np.float64)
    entry_of = partial(weight, why, n.rows)
    below = chain.places[why.item - 1] if why.item else None
    gate = below is not None and below.kind == "activation"
    slopes = slope(below.item) if below is not None and gate else np.zeros(0)
    found = {
        "C": written(n.cost), "cost": observed.cost, "W": W, "WT": written(Transposed(why.W)), "d": d, "a": a, "z": z,
        "w11": entry_of(1, u + 1), "a1": entry(a, u + 1), "d1": entry(d, 1), "z1": entry(z, 1), "u": u, "out": out,
        "delta": delta, "weights": weights, "inputs": inputs, "why": why, "rows": n.rows, "NUDGE": NUDGE,
        "moved": why.paths.weight_moves,
        "gradient": written(n.gradient(n.param("W", place.number))), "outer": written(n.outer(why.delta, why.a)),
        "terms": some([f"{entry(d, j + 1)}{entry_of(j + 1, u + 1)}" for j in range(out)]),
        "products": some([one(float(term)) for term in why.paths.terms]).replace("+ −", "− "),
        "sums": [f"{some([f'{one(float(delta[j]))} × {one(float(weights[j, i]))}' for j in range(out)])} = "
                 f"{one(float(why.back[i]))}" for i in range(min(MOST, len(why.back)))],
        "more": len(why.back) - MOST, "line": "column" if n.rows else "row", "across": "row" if n.rows else "column",
        "line_of_example": "row" if n.rows else "column", "back_symbol": written(n.partial(place.takes)),
        "sent": written(n.sent_back(why.W, why.delta)), "back": vector(why.back), "check": check_line(derivation),
        "below": below, "gate": gate, "slopes": slopes, "off": int((slopes == 0).sum()),
        "one": lambda value: one(float(value)), "plus": plus, "vector": vector,
    }  # fmt: skip
    if below is not None and gate:
        found |= {"g": written(prime(below.item.layer)), "gate_z": written(below.takes),
                  "gate_a": written(below.gives), "error": written(n.delta(below.number))}  # fmt: skip
    return found
