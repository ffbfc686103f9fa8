"""A config as something to check: its network with its loss, on a batch of the shape of its data."""

from pathlib import Path

import numpy as np

from jaxnet.checking.targets import Target, in_dtype
from jaxnet.training.build import build
from jaxnet.training.config import load_config
from jaxnet.training.data import load

BATCH = 5


def config_target(
    file: str | Path, *, inputs: str | None = None, dtype: str | None = None, data_dir: Path | None = None
) -> Target:
    """The network and the loss of a config, as `jaxnet.checking` takes them.

    Args:
        file: a TOML file. inputs: shapes of (xs, ys), instead of 5 random examples of the data's shape.
        dtype: instead of float32 (float64 where that is the config's precision), in shapes.
        data_dir: where the data lie, as `jaxnet train` takes it.
    """
    config = load_config(file)
    dataset = load(config.data, data_dir=data_dir)
    net, loss, _, example = build(config, dataset)
    wide = config.dtype.__name__
    x, y = dataset.train.x, dataset.train.y
    # Inputs are drawn about 0: of pixels that are 0 in every picture no gradient could be seen.
    xs = shapes(wide, example.shape) if np.issubdtype(example.dtype, np.floating) else ranged(x, wide)
    ys = shapes(f"{y.dtype}", y.shape[1:]) + f"<{dataset.classes}" if dataset.classes else ranged(y, wide)
    return Target(str(file), (net, loss), in_dtype((inputs or f"{xs}, {ys}",), dtype))


def shapes(dtype: str, shape: tuple[int, ...]) -> str:
    """A batch of examples of this shape, in the checker's words."""
    return f"{dtype}[{','.join(map(str, (BATCH, *shape)))}]"


def ranged(values: np.ndarray, wide: str) -> str:
    """A batch in the range of the data: tokens and targets may stand for no other numbers."""
    low, high = values.min(), values.max()
    if np.issubdtype(values.dtype, np.floating):
        return shapes(wide, values.shape[1:]) + (f">{low:g}<{high:g}" if low < high else "")
    return shapes(f"{values.dtype}", values.shape[1:]) + f">{low - 1}<{high + 1}"
