"""The tables between notations, and the two loops of the sum."""

from __future__ import annotations

from dataclasses import replace

from jaxnet.explaining.expressions import Expression, Transposed, written
from jaxnet.explaining.model import NotationRow, SumLoop
from jaxnet.explaining.notation import NOTATIONS, Notation, notation


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
    above: Expression = n.param("W", layer + 1)
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
        "BP2, one layer back": f"{written(n.delta(layer))} = {written(n.sent_back(above, n.delta(layer + 1)))} ⊙ "
        f"σ′({written(n.z(layer))})",
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
