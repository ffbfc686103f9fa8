"""IDX files, plain or gzipped: the format of MNIST and its kin (http://yann.lecun.com/exdb/mnist/)."""

import math
import struct
from pathlib import Path

import numpy as np

from jaxnet.training.data.dataset import DataError
from jaxnet.training.data.files import read_bytes

HOLDS = {1: "labels", 3: "pictures"}


def read_idx(path: Path, axes: int) -> np.ndarray:
    """The unsigned bytes of an IDX file with `axes` axes: 3 for pictures, 1 for labels.

    The file: 00 00, 08 (unsigned bytes), the number of axes, each axis's length as a big-endian uint32, the bytes.
    """
    content = read_bytes(path)
    magic, kind = bytes([0, 0, 8, axes]), HOLDS.get(axes, f"{axes} axes")
    if content[:4] != magic[: len(content)]:
        other = next(
            (f", which is a file of {name}" for n, name in HOLDS.items() if content[:4] == bytes([0, 0, 8, n])), ""
        )
        raise DataError(
            f"{path}: an IDX file of {kind} must begin with {magic.hex(' ')}, got {content[:4].hex(' ')}{other}"
        )
    start = 4 + 4 * axes
    if len(content) < start:
        raise DataError(f"{path}: is truncated: {len(content)} bytes, less than an IDX file's head of {start}")
    shape = struct.unpack(f">{axes}I", content[4:start])
    if len(content) != start + math.prod(shape):
        short = "is truncated" if len(content) < start + math.prod(shape) else "is too long"
        raise DataError(
            f"{path}: {short}: {start + math.prod(shape):,} bytes promised for shape {shape}, got {len(content):,}: "
            "fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
