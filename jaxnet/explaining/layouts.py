"""Numerator and denominator layout of the chain of Jacobians, the tensor ∂z/∂W, and the cost of each order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np

from jaxnet.explaining.expressions import Call, Derivative, Name, Transposed, written
from jaxnet.explaining.lines import Chain, loss_slope, place_below
from jaxnet.explaining.model import Jacobian, Layouts, Order, Tensor
from jaxnet.explaining.notes import prime, slope, softmax_jacobian
from jaxnet.explaining.numbering import NumberedLayer
from jaxnet.explaining.writing import error_at

LARGEST_TENSOR = 64  # entries of ∂z/∂W, beyond which it is not shown


def layouts(chain: Chain, place: NumberedLayer) -> tuple[Layouts, ...]:
    """From the δ of a dense layer to that of the layer below, and from C all the way."""
    below = [each for each in chain.places[max(0, place.index - 1) : place.index]
             if each.kind in ("activation", "softmax")]  # fmt: skip
    delta = chain.notation.delta(place.number)
    start = Jacobian(delta, (1, len(place.item.d_out)), "cost")
    local = made(chain, [start, *(jacobian(chain, each) for each in [place, *below])], below or [place], False)
    whole = [*reversed([each for each in chain.places if each.index > place.index]), place, *below]
    if any(each.kind == "other" for each in whole):
        return (local,)
    out = int(np.prod(chain.places[-1].item.out.shape))
    first = Jacobian(loss_slope(chain), (1, out), "cost")
    return local, made(chain, [first, *(jacobian(chain, each) for each in whole)], below or [place], True)


def made(chain: Chain, factors: list[Jacobian], last: Sequence[NumberedLayer], whole: bool) -> Layouts:
    """Both layouts of a product of Jacobians."""
    row = tuple(
        Jacobian(Transposed(each.expression), each.shape, each.kind) if i == 0 and not chain.notation.rows else each
        for i, each in enumerate(factors)
    )
    column = tuple(turned(each, first=i == 0 and not chain.notation.rows) for i, each in enumerate(factors))[::-1]
    item = last[-1].item
    value = item.dx if item.dx is not None else np.zeros(item.x.shape)
    of = error_at(chain.notation, place_below(chain, last[-1]))
    n = int(np.prod(item.x.shape))
    return Layouts(of, whole, row, column, (1, n), (n, 1), value)


def turned(each: Jacobian, *, first: bool) -> Jacobian:
    """A Jacobian transposed: a diagonal one is its own transpose."""
    rows, columns = each.shape
    of = each.expression
    symbol = of if first or each.kind == "diagonal" else of.of if isinstance(of, Transposed) else Transposed(of)
    return Jacobian(symbol, (columns, rows), each.kind, each.diagonal)


def jacobian(chain: Chain, place: NumberedLayer) -> Jacobian:
    """∂out/∂in of one layer, of arrays as long vectors."""
    item, n_out, n_in = place.item, int(np.prod(place.item.out.shape)), int(np.prod(place.item.x.shape))
    if place.kind == "dense":
        W = chain.notation.param("W", place.number)
        return Jacobian(Transposed(W) if chain.notation.rows else W, (n_out, n_in), "W")  # ∂z/∂a is (out, in)
    if place.kind == "activation":
        diagonal = Call(Name("diag"), Call(prime(item.layer), place.takes))
        return Jacobian(diagonal, (n_out, n_in), "diagonal", slope(item))
    if place.kind == "softmax":
        return Jacobian(softmax_jacobian(place.gives, chain.notation), (n_out, n_in), "full")
    return Jacobian(Derivative(place.takes, place.gives), (n_out, n_in), "full")


def tensor(chain: Chain, place: NumberedLayer) -> Tensor | None:
    """∂z/∂W of a dense layer, entry (k, i, j) = a_j where k = i; None where it is too large to be seen."""
    item = place.item
    out, into = item.params["W"].shape
    if out * out * into > LARGEST_TENSOR:
        return None
    value = np.einsum("ki,j->kij", np.eye(out, dtype=item.x.dtype), item.x)
    collapsed = np.einsum("k,kij->ij", item.d_out, value)
    return Tensor(value, item.d_out, item.x, collapsed, chain.notation.number(place.number))


# -------------------------------------------------------------------------------------------------- order


def order(chain: Chain) -> Order | None:
    """The multiplications for ∂C/∂x from either end. None if another layer than dense multiplies."""
    dense = [place for place in chain.places if place.kind == "dense"]
    if not dense or any(place.kind in ("other", "softmax") for place in chain.places[: dense[-1].index]):
        return None
    widths = (dense[0].item.x.shape[0], *(place.item.out.shape[0] for place in dense))
    rows, delta = chain.notation.rows, chain.notation.delta(dense[-1].number)
    weights = [chain.notation.param("W", place.number) for place in reversed(dense)]
    names = [written(delta if rows else Transposed(delta)), *(written(Transposed(W) if rows else W) for W in weights)]
    return multiplications(widths, names)


def multiplications(widths: Sequence[int], names: Sequence[str] | None = None) -> Order:
    """The multiplications for ∂C/∂x of a chain of dense layers of these widths, input first; ⊙ not counted.

    names: of the factors, the row δᵀ first, then each W from the loss to the input.
    """
    *_, last = widths
    from_loss = sum(a * b for a, b in pairwise(widths))
    from_input = sum(widths[0] * a * b for a, b in pairwise(widths[1:])) + last * widths[0]
    symbols = list(names) if names else ["δᵀ", *(f"W{i}" for i in range(len(widths), 1, -1))]
    cheapest, bracketing = cheapest_order((1, *reversed(widths)), symbols)
    return Order(tuple(widths), from_loss, from_input, cheapest, bracketing)


def cheapest_order(sizes: Sequence[int], names: Sequence[str]) -> tuple[int, str]:
    """The least multiplications of a chain of matrices (sizes[i], sizes[i+1]), and the bracketing that needs them.

    Source: Cormen et al., Introduction to Algorithms, §15.2.
    """

    @cache
    def best(first: int, last: int) -> tuple[int, str]:
        if first == last:
            return 0, names[first]
        found = []
        for cut in range(first, last):
            (left, left_text), (right, right_text) = best(first, cut), best(cut + 1, last)
            cost = left + right + sizes[first] * sizes[cut + 1] * sizes[last + 1]
            found.append((cost, -cut, f"({left_text} {right_text})"))
        cost, _, text = min(found)
        return cost, text

    cost, text = best(0, len(names) - 1)
    return cost, text.removeprefix("(").removesuffix(")") if len(names) > 1 else text
