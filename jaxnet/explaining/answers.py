"""The questions that people ask about backpropagation, answered with the numbers of one dense layer."""

from __future__ import annotations

from jaxnet.explaining.expressions import Expression, Transposed, written
from jaxnet.explaining.lines import Chain, diagonal_entries, prime
from jaxnet.explaining.model import Answer, WhyTranspose
from jaxnet.explaining.numbering import NumberedLayer
from jaxnet.explaining.numbers import lowered_index, one, shape, vector


class Words:
    """The symbols and shapes of one layer, as the answers write them."""

    def __init__(self, chain: Chain, place: NumberedLayer, why: WhyTranspose):
        n = chain.notation
        self.chain, self.place, self.why, self.n = chain, place, why, n
        self.W, self.delta, self.a, self.z = (written(each) for each in (why.W, why.delta, why.a, why.gives))
        self.WT = written(Transposed(why.W))
        self.back = written(n.sent_back(why.W, why.delta))
        self.outer = written(n.outer(why.delta, why.a))
        self.error = written(n.partial(place.takes))
        self.gradient = written(n.gradient(n.param("W", place.number)))
        self.out, self.into = why.shape
        self.unit = why.nudge.unit + 1
        self.shape = why.shape[::-1] if n.rows else why.shape

    @property
    def line(self) -> str:
        """What of W makes one z: a row, or where W is (in, out) a column."""
        return "column" if self.n.rows else "row"

    def weight(self, unit_of_z: int, unit_of_a: int) -> str:
        """An entry of W, its subscripts in the order in which W lies."""
        return self.entry(self.W, *((unit_of_a, unit_of_z) if self.n.rows else (unit_of_z, unit_of_a)))

    def entry(self, symbol: Expression | str, *indices: int) -> str:
        """A symbol with subscripts counted from 1."""
        text = symbol if isinstance(symbol, str) else written(symbol)
        return f"{text}{lowered_index(*indices)}"


def answers(chain: Chain, place: NumberedLayer, why: WhyTranspose) -> tuple[Answer, ...]:
    """The ten questions and one more, each in a few lines."""
    w = Words(chain, place, why)
    asked = (
        inverse,
        operator,
        dimensions,
        columns,
        instead,
        no_sum,
        reverse,
        transposed_input,
        four_shapes,
        ones,
        link,
    )
    return tuple(each(w) for each in asked)


def inverse(w: Words) -> Answer:
    """Is it the inverse?"""
    sent = w.why.sent_back
    what = {
        "none": f"{w.W} is {shape(w.shape)} and has none; its pseudo-inverse",
        "singular": f"{w.W} is singular and has none; its pseudo-inverse",
        "inverse": f"{w.W}⁻¹",
    }[sent.inverse]
    return Answer(
        "inverse",
        f"Is {w.WT} the inverse of {w.W}?",
        f"No: {what} sends back {vector(sent.value, 2)}, {sent.angle:.0f}° from {w.back} = {vector(w.why.back)}. "
        "An inverse would undo the forward pass, the transpose asks how much each unit counts for the cost. "
        "They are one where W is orthogonal.",
    )


def operator(w: Words) -> Answer:
    """A differential operator on W?"""
    return Answer(
        "operator",
        f"Is {w.delta} (or ∇) a differential operator that acts on {w.W}?",
        f"No: {w.back} is numbers times numbers. The derivative has been taken: {w.z} is linear in {w.a}, "
        f"so ∂{w.z}/∂{w.a} is {w.W} itself.",
    )


def dimensions(w: Words) -> Answer:
    """Only a matter of dimensions?"""
    sent = w.why.sent_back
    other = "inverse" if sent.inverse == "inverse" else "pseudo-inverse"
    square = "; a square W fits untransposed too" if w.out == w.into else ""
    weight = one(float(w.why.rows.W[0, w.unit - 1]))
    return Answer(
        "dimensions",
        "Is the transpose only a matter of dimensions?",
        f"No: the {other} has the shape {shape(w.shape[::-1])} as well, and what it sends back is "
        f"{sent.angle:.0f}° away: a step of {sent.step:g} along it lowers {w.n.cost.base} by {one(sent.other_lowers)}, "
        f"along {w.back} by {one(sent.transpose_lowers)}{square}. Shapes cannot tell them apart, paths can: "
        f"{w.entry(w.a, w.unit)} reaches {w.entry(w.z, 1)} by {w.weight(1, w.unit)} = {weight}.",
    )


def columns(w: Words) -> Answer:
    """The column has little to do with the error that it collects: why exchange rows and columns?"""
    d, row = float(w.why.rows.delta[0]), w.why.rows.W[0]
    return Answer(
        "columns",
        f"A {'row' if w.n.rows else 'column'} of {w.W} has little to do with the error that it collects: "
        "why exchange rows and columns?",
        f"Nothing is exchanged: {w.entry(w.delta, 1)} = {one(d)} returns along the whole {w.line} 1 of {w.W}, "
        f"{vector(row, 4, 1)}, that made {w.entry(w.z, 1)}; each unit of {w.a} adds up what its own weights bring. "
        f"All {w.line}s, each scaled by its δ, added up are {w.back}.",
    )


def instead(w: Words) -> Answer:
    """Columns instead of rows?"""
    z, a, W, delta = w.z, w.a, w.W, w.delta
    if w.n.rows:
        return Answer(
            "instead",
            "Does the error use columns instead of rows?",
            f"Of the same {W}: forward the first subscript moves, {z}ⱼ = Σᵢ {a}ᵢ {W}ᵢⱼ; "
            f"backward the second, Σⱼ {W}ᵢⱼ {delta}ⱼ.",
        )
    return Answer(
        "instead",
        "Does the error use columns instead of rows?",
        f"Of the same {W}: forward the second subscript moves along a row, {z}ⱼ = Σᵢ {W}ⱼᵢ {a}ᵢ; backward the first "
        f"moves down a column, Σⱼ {W}ⱼᵢ {delta}ⱼ, since {a}ᵢ reaches every {z}ⱼ.",
    )


def no_sum(w: Words) -> Answer:
    """Why no sum in dW?"""
    p = w.why.paths
    return Answer(
        "no-sum",
        f"Why is there no sum in {w.gradient}?",
        f"A weight has one path: {w.weight(1, w.unit)} enters {w.entry(w.z, 1)} alone, so its gradient is "
        f"{w.entry(w.delta, 1)}{w.entry(w.a, w.unit)} = {one(p.weight_gradient)}. A unit has {w.out}: "
        f"{w.entry(w.a, w.unit)} enters every {w.z}ⱼ, so there the terms add to {one(p.total)}.",
    )


def reverse(w: Words) -> Answer:
    """Why transpose AND reverse?"""
    W, WT, delta = w.W, w.WT, w.delta
    if w.n.rows:
        W, WT = WT, W
        return Answer(
            "reverse",
            "Why transpose AND reverse the order?",
            f"It is one act: (AB)ᵀ = BᵀAᵀ. Here errors are rows, {delta}{W}, in the order of the chain; the same "
            f"numbers as a column are ({delta}{W})ᵀ = {WT}{delta}ᵀ. Both cost {w.out * w.into} multiplications.",
        )
    return Answer(
        "reverse",
        "Why transpose AND reverse the order?",
        f"It is one act: (AB)ᵀ = BᵀAᵀ. As a row the chain rule reads {delta}ᵀ{W}, in the order of the chain; the same "
        f"numbers as a column are ({delta}ᵀ{W})ᵀ = {WT}{delta}. Both cost {w.out * w.into} multiplications.",
    )


def transposed_input(w: Words) -> Answer:
    """Is a⁽²⁾ᵀ right?"""
    aT = written(Transposed(w.why.a))
    first, second = (w.into, w.out) if w.n.rows else (w.out, w.into)
    shapes = f"{first}×1·1×{second} → {first}×{second}"
    return Answer(
        "input",
        f"Is {aT} right?",
        f"Yes: {w.gradient} = {w.outer} is {shapes}, the shape of {w.W}; entry by entry δⱼaᵢ. "
        f"Without the transpose {w.out}×1·{w.into}×1 does not fit{'' if w.into != 1 else ' but by chance'}.",
    )


def four_shapes(w: Words) -> Answer:
    """What is wrong with 2×1·2×3·3×1·1×2?"""
    below = w.chain.places[w.place.index - 1] if w.place.index else None
    if below is None or below.kind != "activation":
        chain, mend = f"{w.out}×1·{w.out}×{w.into}", ""
    else:
        taken = len(below.item.x) if not below.index else len(w.chain.places[below.index - 1].item.x)
        chain = f"{w.out}×1·{w.out}×{w.into}·{w.into}×1·1×{taken}"
        mend = (
            f", and {written(prime(below.item))} is a diagonal {w.into}×{w.into}, or its column with ⊙: "
            f"({w.into}×{w.out}·{w.out}×1)⊙{w.into}×1·1×{taken} → {w.into}×{taken}"
        )
    return Answer(
        "shapes",
        f"What is wrong with {chain}?",
        f"The first product: {w.delta} {w.out}×1 ends in 1, {w.W} {w.out}×{w.into} begins with {w.out}. "
        f"{w.WT} goes before it, {w.into}×{w.out}·{w.out}×1{mend}.",
    )


def ones(w: Words) -> Answer:
    """Why (1,1,1)ᵀ?"""
    below = w.chain.places[w.place.index - 1] if w.place.index else None
    n = w.into if below is not None and below.kind == "activation" else w.out
    all_ones = f"({','.join('1' * n)})ᵀ" if n <= 6 else "(1,…,1)ᵀ"
    if below is not None and below.kind == "activation":
        z, slopes = written(below.takes), diagonal_entries(below.item)
        said = (
            f"{written(prime(below.item))}({z}) is no column of ones: {written(below.gives)}ᵢ depends on {z}ᵢ alone, "
            f"so the Jacobian is diag{slopes}, {n}×{n}, and multiplying by it is ⊙ with {slopes}ᵀ. "
            "Ones would say that every slope is 1."
        )
    else:
        said = f"∂{w.z}/∂b is the identity, {n}×{n}, no column of ones, so ∇b = {w.delta}."
    return Answer(
        "ones", f"Why {all_ones}?", said + " Ones do stand in a batch: ∇b = 1/m dZ (1,…,1)ᵀ adds its examples."
    )


def link(w: Words) -> Answer:
    """What links the error to the activations?"""
    return Answer(
        "link",
        "What links the error to the activations?",
        f"{w.delta} is taken at this example's forward values; {w.a} enters {w.gradient} = {w.outer}, not {w.back}.",
    )
