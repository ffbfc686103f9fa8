"""The mistakes that people make in backward passes: a right one beside its primal, and one change of its text for each.

`CASES` holds the mistakes in order: the first 55 in formulas as they are written by hand, the others in layers as
jaxnet has them. `RIGHT` holds the right backward passes, and a network: an alarm at one of them is false.
A wrong rule is a pair `(forward, backward)` as for `jax.custom_vjp`: `forward(*args) -> (out, saved)`, and
`backward(saved, cotangent) -> gradients`, one for each argument.
"""

from __future__ import annotations

import jax

from jaxnet.backprop import as_custom_vjp
from jaxnet.checking.corpus import (
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
from jaxnet.checking.corpus.case import Case, Right
from jaxnet.models import mlp

SUBJECTS = (
    dense_layers, losses, normalisation, sequences, images, convolutions, statistics, windows, heads, cells,
)  # fmt: skip

# (in, hidden, out, batch)
NETWORKS = ((12, 16, 5, 8), (64, 30, 10, 32), (784, 256, 10, 128))


def network_args(size, seed, dtype):
    """Parameters of a network, and a batch."""
    n, hidden, out, batch = NETWORKS[size]
    keys = jax.random.split(jax.random.key(seed), 2)
    x = jax.random.normal(keys[1], (batch, n), dtype)
    return mlp((hidden, hidden, out)).init(keys[0], x[0]), x


def network(params, x):
    """A relu network of jaxnet's, of the sizes of its parameters."""
    hidden, _, out = (len(p["b"]) for p in params if p)
    return as_custom_vjp(mlp((hidden, hidden, out)), batched=True)(params, x)


CASES: tuple[Case, ...] = tuple(
    sorted(
        (case for subject in SUBJECTS for case in subject.RULES.cases(subject.MISTAKES)),
        key=lambda case: int(case.name.split()[0]),
    )
)
RIGHT: tuple[Right, ...] = (
    *(rule.right() for subject in SUBJECTS for rule in subject.RULES.values()),
    Right("relu network", network, network_args),
)

__all__ = ["CASES", "RIGHT", "Case", "Right"]
