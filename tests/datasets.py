"""Small data sets in files, and a machine on which there are no others."""

import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from jaxnet.training.data import DataError, Dataset, load, pictures

REAL = os.environ.get("JAXNET_DATA")
FILES = tuple(pictures.MNIST)
SMALL = [8, 4, 5]  # a split of the files below: 12 training and 5 test pictures


@pytest.fixture(autouse=True)
def nothing_of_this_machine(monkeypatch, tmp_path):
    """No data but what a test makes, an empty cache, and no proxy in front of the loopback."""
    monkeypatch.delenv("JAXNET_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def idx(array) -> bytes:
    array = np.asarray(array, np.uint8)
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def small_mnist() -> dict[str, bytes]:
    """Four IDX files with pictures of 3×4 whose pixels tell their place, and labels that count up."""
    train = np.arange(12 * 12).reshape(12, 3, 4)
    return dict(zip(FILES, (idx(train), idx(np.arange(12) % 10), idx(train[:5] + 100), idx(range(5))), strict=True))


def write(folder: Path, files: dict[str, bytes], form=lambda name: name, pack=lambda content: content) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / form(name)).write_bytes(pack(content))
    return folder


def small(folder, **options) -> Dataset:
    return load({"name": "mnist", "split": SMALL, **options}, data_dir=folder)


def facts(data: Dataset) -> str:
    """The summary without the range of the numbers, which depends on what the shuffle put into train."""
    return re.sub(r" in \S+", "", data.summary())


def refused(match: str, spec, **options) -> str:
    """The message with which `load` refuses; `match` is plain text."""
    with pytest.raises(DataError, match=re.escape(match)) as error:
        load(spec, **options)
    return str(error.value)
