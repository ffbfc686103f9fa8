"""The mistakes that people make in backward passes, each planted into a rule beside its primal.

`CASES` holds them in order: the first 55 in formulas as they are written by hand, the others in layers as jaxnet has
them. A rule is a pair `(forward, backward)` as for `jax.custom_vjp`:
`forward(*args) -> (out, saved)`, and `backward(saved, cotangent) -> gradients`, one for each argument. Everything else
in it is right.
"""

from jaxnet.checking.corpus import (
    activations,
    cells,
    convolutions,
    dense_layers,
    heads,
    images,
    losses,
    normalisation,
    sequences,
    statistics,
    windows,
)
from jaxnet.checking.corpus.case import Case

CASES: tuple[Case, ...] = (
    *dense_layers.CASES,
    *losses.CASES,
    *normalisation.CASES,
    *sequences.CASES,
    *activations.CASES,
    *images.CASES,
    *convolutions.CASES,
    *statistics.CASES,
    *windows.CASES,
    *heads.CASES,
    *cells.CASES,
)

__all__ = ["CASES", "Case"]
