"""The mistakes that people make in backward passes, 55 of them, each planted into a rule beside its primal.

`CASES` holds them in order. A rule is a pair `(forward, backward)` as for `jax.custom_vjp`:
`forward(*args) -> (out, saved)`, and `backward(saved, cotangent) -> gradients`, one for each argument. Everything else
in it is right.
"""

from jaxnet.checking.corpus import activations, dense_layers, images, losses, normalisation, sequences
from jaxnet.checking.corpus.case import Case

CASES: tuple[Case, ...] = (
    *dense_layers.CASES,
    *losses.CASES,
    *normalisation.CASES,
    *sequences.CASES,
    *activations.CASES,
    *images.CASES,
)

__all__ = ["CASES", "Case"]
