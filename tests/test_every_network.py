"""Every network of `tests.problems`, in every implementation and under every reading, against autodiff."""

import jax.numpy as jnp
import pytest

from tests.implementations import check_against_autodiff, check_one_by_one, check_precision, one_of_each
from tests.problems import COMBINATORS, IMAGE_LAYERS, LAYERS, MODELS, REGISTERED, SEQUENCE_LAYERS

EVERY = [*LAYERS, *IMAGE_LAYERS, *SEQUENCE_LAYERS, *COMBINATORS, *MODELS, *REGISTERED]
LARGE = [p for p in IMAGE_LAYERS + SEQUENCE_LAYERS
         if p.id.split("-")[0] in ("conv1d", "conv_transpose2d", "max_pool", "average_pool", "attention_grouped_rotary",
                                   "gated")]  # fmt: skip
ONE_OF_EACH = one_of_each(LAYERS + COMBINATORS + MODELS) + one_of_each(LARGE)
"""One shape of each small network, and of the kinds of large layers."""
FIRST = one_of_each(EVERY)
"""One shape of each network; the others are long."""


@pytest.mark.parametrize(
    "problem", [pytest.param(p, id=p.id, marks=() if p in FIRST else pytest.mark.long) for p in EVERY]
)
def test_a_network_agrees_with_autodiff(problem, x64):
    """In float64. One shape of each network also in bfloat16, and of each layer one by one, uncompiled."""
    check_against_autodiff(problem)
    if problem in ONE_OF_EACH:
        check_precision(problem, jnp.bfloat16)
    if problem in ONE_OF_EACH and problem.net.rebuild is None:
        check_one_by_one(problem)


@pytest.mark.slow
@pytest.mark.parametrize("problem", ONE_OF_EACH, ids=lambda p: p.id)
def test_float32_is_as_exact_as_autodiffs(problem, x64):
    """The narrower dtype shows every cast that is missing."""
    check_precision(problem, jnp.float32)
