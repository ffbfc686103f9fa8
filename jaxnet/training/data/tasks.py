"""Tasks made by a formula, for sequences: nothing to fetch."""

from collections.abc import Sequence

import numpy as np

from jaxnet.training.data.dataset import Dataset, cut, split_counts


def modular_addition(*, modulus: int = 31, split: Sequence[int | float] = (0.8, 0.1, 0.1), seed: int = 0) -> Dataset:
    """All sums a + b = c modulo p as sequences of three tokens: a, b, "=", with the target c at the last.

    x: (3,) tokens, the numbers 0 … p − 1 and p for "="; y: (3,), −1, the label to ignore, at the first two.
    The p² sums are shuffled by `seed` and split by counts or fractions.
    Source of the task: Power et al., Grokking, 2022, §3.
    """
    a, b = (t.reshape(-1) for t in np.meshgrid(np.arange(modulus), np.arange(modulus), indexing="ij"))
    x = np.stack([a, b, np.full_like(a, modulus)], axis=1).astype(np.int32)
    y = np.stack([np.full_like(a, -1), np.full_like(a, -1), (a + b) % modulus], axis=1).astype(np.int32)
    # RandomState's stream is frozen, a Generator's may change with NumPy's version, and a test set must not.
    order = np.random.RandomState(seed).permutation(len(x))
    parts = cut(x, y, split_counts("modular_addition", split, len(x)), order)
    return Dataset("modular_addition", *parts, classes=modulus, ignore=-1)
