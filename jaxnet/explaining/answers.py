"""The questions that people ask about backpropagation, answered with the numbers of one dense layer."""

from __future__ import annotations

from functools import partial

from jaxnet.explaining.expressions import Transposed, written
from jaxnet.explaining.lines import Chain, diagonal_entries
from jaxnet.explaining.model import Answer, WhyTranspose
from jaxnet.explaining.notes import prime
from jaxnet.explaining.numbering import NumberedLayer
from jaxnet.explaining.numbers import one, shape, vector
from jaxnet.explaining.whytext import entry
from jaxnet.explaining.whytext import weight as weight_of


def answers(chain: Chain, place: NumberedLayer, why: WhyTranspose) -> tuple[Answer, ...]:
    """The questions, each answered in a few lines."""
    n, sent, paths, rows = chain.notation, why.sent_back, why.paths, chain.notation.rows
    W, delta, a, z = (written(each) for each in (why.W, why.delta, why.a, why.gives))
    WT, aT, back = written(Transposed(why.W)), written(Transposed(why.a)), written(n.sent_back(why.W, why.delta))
    outer, gradient = written(n.outer(why.delta, why.a)), written(n.gradient(n.param("W", place.number)))
    (out, into), unit = why.shape, why.nudge.unit + 1
    laid = why.shape[::-1] if rows else why.shape
    line, across = ("column", "row") if rows else ("row", "column")
    below = chain.places[place.index - 1] if place.index else None
    below = below if below is not None and below.kind == "activation" else None

    weight = partial(weight_of, why, rows)
    a_unit, d1, z1 = entry(a, unit), entry(delta, 1), entry(z, 1)
    has = {
        "none": f"{W} is {shape(laid)} and has none; its pseudo-inverse",
        "singular": f"{W} is singular and has none; its pseudo-inverse",
        "inverse": f"{W}⁻¹",
    }[sent.inverse]
    other = "inverse" if sent.inverse == "inverse" else "pseudo-inverse"
    moving = (
        f"forward the first subscript moves, {z}ⱼ = Σᵢ {a}ᵢ {W}ᵢⱼ; backward the second, Σⱼ {W}ᵢⱼ {delta}ⱼ."
        if rows
        else f"forward the second subscript moves along a row, {z}ⱼ = Σᵢ {W}ⱼᵢ {a}ᵢ; backward the first moves down a "
        f"column, Σⱼ {W}ⱼᵢ {delta}ⱼ, since {a}ᵢ reaches every {z}ⱼ."
    )
    in_order, as_column = (f"{delta}{WT}", f"{W}{delta}ᵀ") if rows else (f"{delta}ᵀ{W}", f"{WT}{delta}")
    reads = f"Here errors are rows, {in_order}" if rows else f"As a row the chain rule reads {in_order}"
    chance = "" if into != 1 else " but by chance"
    sizes = "×".join(map(str, laid))
    close = " It comes close here: the rows of a wide W are nearly orthogonal and equally long." * (sent.angle < 45)
    asked = [
        ("inverse", f"Is {WT} the inverse of {W}?",
         f"No: {has} sends back {vector(sent.value, 2)}, {sent.angle:.0f}° from {back} = {vector(why.back)}. An "
         "inverse would undo the forward pass, the transpose asks how much each unit counts for the cost. They are one "
         f"where W is orthogonal.{close}"),
        ("operator", f"Is {delta} (or ∇) a differential operator that acts on {W}?",
         f"No: {back} is numbers times numbers. The derivative has been taken: {z} is linear in {a}, so ∂{z}/∂{a} is "
         f"{W} itself."),
        ("dimensions", "Is the transpose only a matter of dimensions?",
         f"No: the {other} has the shape {shape(laid[::-1])} as well, and what it sends back is {sent.angle:.0f}° "
         f"away: a step of {sent.step:g} along it lowers {n.cost.base} by {one(sent.other_lowers)}, along {back} by "
         f"{one(sent.transpose_lowers)}{'; a square W fits untransposed too' if out == into else ''}. Shapes cannot "
         f"tell them apart, paths can: {a_unit} reaches {z1} by {weight(1, unit)} = "
         f"{one(float(why.rows.W[0, unit - 1]))}."),
        ("columns", f"A {across} of {W} has little to do with the error that it collects: why exchange rows and "
         "columns?",
         f"Nothing is exchanged: {d1} = {one(float(why.rows.delta[0]))} returns along the whole {line} 1 of {W}, "
         f"{vector(why.rows.W[0], 4, 1)}, that made {z1}; each unit of {a} adds up what its own weights bring. All "
         f"{line}s, each scaled by its δ, added up are {back}."),
        ("instead", "Does the error use columns instead of rows?", f"Of the same {W}: {moving}"),
        ("no-sum", f"Why is there no sum in {gradient}?",
         f"A weight has one path: {weight(1, unit)} enters {z1} alone, so its gradient is {d1}{a_unit} = "
         f"{one(paths.weight_gradient)}. A unit has {out}: {a_unit} enters every {z}ⱼ, so there the terms add to "
         f"{one(paths.total)}."),
        ("reverse", "Why transpose AND reverse the order?",
         f"It is one act: (AB)ᵀ = BᵀAᵀ. {reads}, in the order of the chain; the same numbers as a column are "
         f"({in_order})ᵀ = {as_column}. Both cost {out * into} multiplications."),
        ("input", f"Is {aT} right?",
         f"Yes: {gradient} = {outer} is {laid[0]}×1·1×{laid[1]} → {sizes}, the shape of {W}; entry by entry δⱼaᵢ. "
         f"Without the transpose {out}×1·{into}×1 does not fit{chance}."),
        four_shapes(chain, below, (delta, W, WT), why.shape),
        ones(chain, below, (delta, z), why.shape),
        ("link", "What links the error to the activations?",
         f"{delta} is taken at this example's forward values; {a} enters {gradient} = {outer}, not {back}."),
        ("blame", "Does a unit with a high activation deserve more of the blame?",
         f"Its weights do: {gradient} = {outer} grows with {a}. The unit itself does not: {back} holds no {a}, there a "
         f"unit counts by its weights alone; {a_unit} enters with {weight(1, unit)} whatever its value."),
        ("subscripts", "Is it Wᵢⱼ or Wⱼᵢ?",
         f"Both are used. Here the {'second' if rows else 'first'} subscript is the unit that a weight leads to: z "
         f"sums over the {'first' if rows else 'second'} subscript, the error over the other. Who exchanges them "
         "stores W transposed, and every formula with it."),
        ("forward-transposed", "Some write z = Wᵀa. Does the error then go back by W?",
         f"Yes: where W is stored as {into}×{out} with columns, z = Wᵀa and the error goes back as Wδ. One of the two "
         "directions always has the transpose; how W is stored says which."),
        ("layouts", "Is this numerator or denominator layout?",
         f"{'Numerator' if rows else 'Denominator'} layout: the error is a {'row' if rows else 'column'}, of the shape "
         f"of what it is the derivative by. Numerator layout writes ∂z/∂a as {out}×{into} and errors as rows, in the "
         "order of the chain; denominator layout writes each transposed, and so in reverse."),
    ]  # fmt: skip
    return tuple(Answer(*each) for each in asked)


def four_shapes(
    chain: Chain, below: NumberedLayer | None, symbols: tuple[str, str, str], sizes: tuple[int, ...]
) -> tuple[str, str, str]:
    """What is wrong with 2×1·2×3·3×1·1×2? below: the activation below the layer."""
    (delta, W, WT), (out, into) = symbols, sizes
    product, mend = f"{out}×1·{out}×{into}", ""
    if below is not None:
        taken = len(chain.places[max(0, below.index - 1)].item.x)
        product += f"·{into}×1·1×{taken}"
        mend = (
            f", and {written(prime(below.item.layer))} is a diagonal {into}×{into}, or its column with ⊙: "
            f"({into}×{out}·{out}×1)⊙{into}×1·1×{taken} → {into}×{taken}"
        )
    said = f"The first product: {delta} {out}×1 ends in 1, {W} {out}×{into} begins with {out}. "
    return "shapes", f"What is wrong with {product}?", f"{said}{WT} goes before it, {into}×{out}·{out}×1{mend}."


def ones(
    chain: Chain, below: NumberedLayer | None, symbols: tuple[str, str], sizes: tuple[int, ...]
) -> tuple[str, str, str]:
    """Why (1,1,1)ᵀ? below: the activation below the layer."""
    (delta, z), (out, into) = symbols, sizes
    n = out if below is None else into
    said = f"∂{z}/∂b is the identity, {n}×{n}, no column of ones, so ∇b = {delta}."
    if below is not None:
        taken, slopes, g_prime = written(below.takes), diagonal_entries(below.item), written(prime(below.item.layer))
        said = (
            f"{g_prime}({taken}) is no column of ones: {written(below.gives)}ᵢ depends on {taken}ᵢ "
            f"alone, so the Jacobian is diag{slopes}, {n}×{n}, and multiplying by it is ⊙ with {slopes}ᵀ. Ones would "
            "say that every slope is 1."
        )
    said += " Ones do stand in a batch: ∇b = 1/m dZ (1,…,1)ᵀ adds its examples."
    return "ones", f"Why {'(' + ','.join('1' * n) + ')ᵀ' if n <= 6 else '(1,…,1)ᵀ'}?", said
