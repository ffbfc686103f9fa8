"""Files of bytes and arrays. Declared sizes are checked before memory is taken."""

import gzip
import math
import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError
from typing import IO

import numpy as np

from jaxnet.training.data.dataset import DataError

GZIP = b"\x1f\x8b"
MOST_BYTES = 1 << 30
"""The largest size of an unpacked file."""

UNREADABLE = (
    *(OSError, ValueError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error),
    *(SyntaxError, TokenError, TypeError, OverflowError, NotImplementedError, KeyError),
)
"""The errors of NumPy and zipfile for a damaged file."""


DAMAGED_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)


def unpacked(file: IO[bytes]) -> bytes:
    """The content of a gzipped file, up to one byte more than `MOST_BYTES`. Raises one of `DAMAGED_GZIP`."""
    with gzip.GzipFile(fileobj=file) as content:
        return content.read(MOST_BYTES + 1)


def read_bytes(path: Path) -> bytes:
    """The bytes of a file, unpacked where it is gzipped."""
    try:
        with path.open("rb") as file:
            packed = file.read(len(GZIP)) == GZIP
            file.seek(0)
            if not packed:
                return file.read()
            content = unpacked(file)
    except DAMAGED_GZIP as error:
        raise DataError(f"{path}: is damaged gzip ({error}): fetch it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(content) > MOST_BYTES:
        raise DataError(f"{path}: unpacks to more than {MOST_BYTES:,} bytes: unpack it by gunzip if it should")
    return content


def read_arrays(path: Path) -> dict[str, np.ndarray] | np.ndarray:
    """The arrays of an .npz file by name, or that of an .npy file."""
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                file.seek(0)
                check_promise(file, path.stat().st_size)
                file.seek(0)
                return np.lib.format.read_array(file, allow_pickle=False)
            file.seek(0)
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                unpacked = sum(each.file_size for each in members if each.compress_type != zipfile.ZIP_STORED)
                if unpacked > MOST_BYTES:
                    raise ValueError(f"it unpacks to {unpacked:,} bytes, more than {MOST_BYTES:,}")
                arrays = {}
                for each in members:
                    with archive.open(each) as member:
                        check_promise(member, each.file_size)
                    with archive.open(each) as member:
                        name = each.filename.removesuffix(".npy")
                        arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
                        member.read()  # to the end, where the checksum is compared
                return arrays
    except UNREADABLE as error:
        raise DataError(
            f"{path}: cannot be read as {path.suffix or 'arrays'} ({error}): write it with np.savez(path, x=…, y=…), "
            "arrays of numbers only"
        ) from error


def check_promise(file: IO[bytes], size: int) -> None:
    """Raises ValueError where the head of an .npy file of `size` bytes promises more numbers than it holds."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of .npy holds no plain numbers")
    head = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = head(file)
    promised = math.prod(shape) * dtype.itemsize
    if min((0, *shape)) < 0 or promised > size:
        raise ValueError(f"it promises numbers of shape {shape}, {promised:,} bytes, and has {size:,}")
