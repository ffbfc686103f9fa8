"""Data small enough to follow by hand, made by a formula."""

import numpy as np

from jaxnet.training.data import Dataset
from jaxnet.training.data.dataset import cut


def wedge(train: int = 200, validation: int = 100, test: int = 100, seed: int = 0) -> Dataset:
    """Points of the plane in two classes: class 0 above the wedge x₂ = |x₁|, class 1 below it.

    The first training example is x = (1, 2) of class 0, so y = (1, 0) one-hot. Coordinates are multiples of 1/100 in
    [−3, 3]; none lies on the wedge.
    """
    count = train + validation + test
    # RandomState's stream is frozen, a Generator's may change with NumPy's version.
    hundredths = np.random.RandomState(seed).randint(-300, 301, size=(2 * count + 20, 2))
    off = hundredths[hundredths[:, 1] != abs(hundredths[:, 0])][:count]
    x = (off / 100).astype(np.float32)
    x[0] = 1, 2
    y = (x[:, 1] < abs(x[:, 0])).astype(np.int32)
    return Dataset("wedge", *cut(x, y, (train, validation, test), np.arange(count)), classes=2)
