"""A guided walk from the chain rule for one weight to the matrices of the backward pass, by a network's own numbers."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from functools import partial

import numpy as np

from jaxnet.explaining.derive import Derivation, chain_of
from jaxnet.explaining.expressions import Transposed, written
from jaxnet.explaining.notation import ExplainError, Notation
from jaxnet.explaining.notes import prime, slope
from jaxnet.explaining.numbers import one, vector
from jaxnet.explaining.observe import Observed
from jaxnet.explaining.why import NUDGE, cost_from
from jaxnet.explaining.whytext import check_line, plus, some
from jaxnet.explaining.whytext import entry as at
from jaxnet.explaining.whytext import weight as weight_of

Step = tuple[str, list[str]]  # its title; sentences, and calculations that begin with two blanks


def walk_steps(observed: Observed, derivation: Derivation, symbols: Notation, width: int = 100) -> list[str]:
    """The steps of the walk as blocks of text, at the dense layer that the derivation explains.

    Raises `ExplainError` for a network without a dense layer.
    """
    if not derivation.why:
        raise ExplainError("--walk follows the error through a dense layer, and this network has none: try --step")
    steps = [*around_the_layer(observed, derivation, symbols), *beyond_the_layer(observed, derivation, symbols)]
    blocks = []
    for i, (title, lines) in enumerate(steps, 1):
        folded = [
            each
            for line in lines
            for each in (textwrap.wrap(line, width, subsequent_indent="    " if line.startswith("  ") else ""))
        ]
        blocks.append("\n".join([f"{i} of {len(steps)}   {title}", *folded]))
    return blocks


def around_the_layer(observed: Observed, derivation: Derivation, n: Notation) -> list[Step]:
    """One weight, all weights, one unit, all units."""
    why, cost = derivation.why[0], written(n.cost)
    W, d, a, z = (written(each) for each in (why.W, why.delta, why.a, why.gives))
    (out, _), u = why.shape, why.nudge.unit
    delta, weights, inputs = why.rows.delta, why.rows.W, np.asarray(observed.items[why.item].x, np.float64)
    line, across = ("column", "row") if n.rows else ("row", "column")

    weight = partial(weight_of, why, n.rows)
    w11, a1, d1, z1 = weight(1, u + 1), at(a, u + 1), at(d, 1), at(z, 1)
    raised = weights.copy()
    raised[0, u] += NUDGE
    moved = cost_at(observed, why.item, raised) - cost_at(observed, why.item, weights)
    place = chain_of(observed, n).places[why.item]
    gradient, back = written(n.gradient(n.param("W", place.number))), written(n.partial(place.takes))
    terms = some([f"{at(d, j + 1)}{weight(j + 1, u + 1)}" for j in range(out)])
    products = some([one(float(term)) for term in why.paths.terms]).replace("+ −", "− ")
    sums = [
        f"  unit {i + 1}: {some([f'{one(float(delta[j]))} × {one(float(weights[j, i]))}' for j in range(out)])} = "
        f"{one(float(why.back[i]))}"
        for i in range(min(4, len(why.back)))
    ]
    more = [f"  … and {len(why.back) - 4} units more"] if len(why.back) > 4 else []
    return [
        ("What is asked", [
            f"The network gives the cost {cost} = {one(observed.cost)}. The backward pass asks of every number in it: "
            "if "
            f"this number moved a little, how would {cost} move? The answer for {z1} has a name of its own, {d1} = "
            f"∂{cost}/∂{z1} = {one(float(delta[0]))}: raise {z1} by .001, and {cost} moves by .001 × "
            f"{one(float(delta[0]))}.",
        ]),
        ("One weight, one path", [
            f"Take the weight {w11} = {one(float(weights[0, u]))}. It enters {z1} alone, multiplied by {a1} = "
            f"{one(float(inputs[u]))}. Raised by .001 it moves {z1} by .001 × {one(float(inputs[u]))}, and {z1} moves "
            f"{cost}. Rates along a path are multiplied, by the chain rule:",
            f"  ∂{cost}/∂{w11} = ∂{cost}/∂{z1} · ∂{z1}/∂{w11} = {d1} {a1} = {one(float(delta[0]))} × "
            f"{one(float(inputs[u]))} = {one(why.paths.weight_gradient)}",
            f"The network, run again with {w11} raised by .001: {cost} {plus(moved)}. The chain rule says {cost} "
            f"{plus(NUDGE * why.paths.weight_gradient)}.",
        ]),
        ("All weights", [
            "Each weight has one path, so its gradient is one product: the error where it leads to times the "
            "activation "
            f"where it comes from. All products in a table are the matrix {gradient} = "
            f"{written(n.outer(why.delta, why.a))}: {d} down, {a} across." if not n.rows else
            f"Each weight has one path, so its gradient is one product: the activation where it comes from times the "
            f"error where it leads to. All products in a table are the matrix {gradient} = "
            f"{written(n.outer(why.delta, why.a))}: {a} down, {d} across.",
        ]),
        ("One unit, several paths", [
            f"Now the unit {a1}. It enters every {z}ⱼ, each by a weight of its own: {out} "
            f"path{'s' if out > 1 else ''} to {cost}. Effects along several paths are added:",
            f"  ∂{cost}/∂{a1} = {terms} = {products} = {one(why.paths.total)}",
            f"The network, run again with {a1} raised by .001: {cost} {plus(why.nudge.cost_moves)}. The sum says "
            f"{cost} "
            f"{plus(why.nudge.predicted)}.",
        ]),
        (f"The sum runs along a {across}", [
            f"Forward, {z1} was a sum along {line} 1 of {W}. Backward, ∂{cost}/∂{a1} is a sum along {across} {u + 1} "
            "of "
            f"the same {W}: the weights that leave the unit. So for every unit:",
            *sums, *more,
        ]),
        ("All units: the transpose", [
            f"All these sums at once are one product. Its factor has the {across}s of {W} as its {line}s: that is "
            f"{written(Transposed(why.W))}, and nothing else is meant by it.",
            f"  {back} = {written(n.sent_back(why.W, why.delta))} = {vector(why.back)}",
        ]),
    ]  # fmt: skip


def beyond_the_layer(observed: Observed, derivation: Derivation, n: Notation) -> list[Step]:
    """The gate of the activation, the layer below, a batch, the other layout, and the rule for any layer."""
    why, chain = derivation.why[0], chain_of(observed, n)
    below = chain.places[why.item - 1] if why.item else None
    sent, back = written(n.sent_back(why.W, why.delta)), vector(why.back)
    found: list[Step] = []
    if below is not None and below.kind == "activation":
        z, g = written(below.takes), written(prime(below.item.layer))
        slopes = slope(below.item)
        error = written(n.delta(below.number))
        off = int((slopes == 0).sum())
        shut = f" {off} of {len(slopes)} slopes are 0: these units are off, and no error passes." if off else ""
        found.append((f"{g} is a gate", [
            f"Each {written(below.gives)}ᵢ depends on its own {z}ᵢ alone. So each entry of the error is multiplied by "
            "its "
            f"own slope, entry by entry: ⊙.{shut}",
            f"  {error} = {sent} ⊙ {g}({z}) = {back} ⊙ {vector(slopes)} = {vector(below.item.dx)}"
            if below.item.dx is not None else f"  {error} = {sent} ⊙ {g}({z})",
            f"{error} has the meaning that {written(why.delta)} had, one layer further back: the same steps begin "
            "anew.",
        ]))  # fmt: skip
    row, column = ("Aᵀ dZ", "dZ Wᵀ") if n.rows else ("dZ Aᵀ", "Wᵀ dZ")
    one_by_one = "row" if n.rows else "column"
    turned = f"{written(why.W)}{written(why.delta)}ᵀ" if n.rows else f"{written(why.delta)}ᵀ{written(why.W)}"
    above = "δˡ⁺¹(Wˡ⁺¹)ᵀ" if n.rows else "(Wˡ⁺¹)ᵀδˡ⁺¹"
    entry, outer = ("Wˡ⁺¹ᵢₖ", "(aˡ⁻¹)ᵀδˡ") if n.rows else ("Wˡ⁺¹ₖᵢ", "δˡ(aˡ⁻¹)ᵀ")
    found += [
        ("A batch", [
            f"With an example in each {one_by_one}, Z, A and dZ are matrices and the formulas stay: dA = {column}. A "
            "weight "
            f"now serves every example, one path by each, so its gradient is a sum over them: dW = 1/m {row}. --batch "
            "N "
            "shows it.",
        ]),
        ("The other layout", [
            f"Written as a {'column' if n.rows else 'row'}, the same error is "
            f"{turned}: transposing a product reverses it, (AB)ᵀ = "
            "BᵀAᵀ. The numbers are the same; which one is used is a convention.",
        ]),
        ("Any layer", [
            f"For layer l of any such network: ∂C/∂aˡᵢ = Σₖ {entry} δˡ⁺¹ₖ, one path by each unit k above; in one "
            f"product ∂C/∂aˡ = {above}. Then the four equations are:",
            f"  δˡ = {above} ⊙ g′(zˡ), at the end δᴸ = ∂C/∂aᴸ ⊙ g′(zᴸ)",
            f"  ∂C/∂Wˡ = {outer}   ∂C/∂bˡ = δˡ",
            f"Checked here: {check_line(derivation)}; an ulp is a unit in the last place of its largest entry.",
        ]),
    ]  # fmt: skip
    return found


def cost_at(observed: Observed, index: int, W: np.ndarray) -> float:
    """C with other weights in the dense layer of this index."""
    item = observed.items[index]
    changed = replace(item, params={**item.params, "W": W})
    items = (*observed.items[:index], changed, *observed.items[index + 1 :])
    return cost_from(replace(observed, items=items), index, [np.asarray(item.x, np.float64)])[0][0]
