"""Data larger than memory: a folder with .npy arrays or with text files. Training examples are read when needed.

Functions raise DataError for a file that cannot be read, or holds other arrays than it must.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxnet.training.data.dataset import PARTS, DataError, Dataset, Split, as_labels, check_split
from jaxnet.training.data.download import cache_folder, cannot_write
from jaxnet.training.data.files import UNREADABLE
from jaxnet.training.data.pictures import load_pictures, picture_files
from jaxnet.training.data.text import SPLIT, WINDOW, encode, from_tokens

PIECE = 1 << 20  # rows or characters that are looked at together
AHEAD = 2  # calls whose examples are read while another computes


def load_folder(
    path: Path, *, task: str | None = None, window: int | None = None, split: Sequence[int | float] | None = None
) -> Dataset:
    """The arrays of a folder, x_train.npy and so on, its .txt files in the order of their names as one text, or its
    pictures, each in a folder of its class's name (`load_pictures`; these do not stay on disk).

    Validation and test sets must fit in memory. task: as for .npz; window, split: as for .txt.
    """
    shards = sorted(path.glob("*.txt"))
    if (path / "x_train.npy").is_file():
        if window is not None or split is not None:
            raise DataError(f"{path}: holds arrays, which take no window and no split: take them out")
        return load_arrays(path, task or "classification")
    if not shards and (files := picture_files(path)):
        if task is not None or window is not None:
            raise DataError(f"{path}: holds pictures, which take no task and no window: take them out")
        return load_pictures(path, files, split)
    if not shards:
        raise DataError(
            f"{path}: must hold x_train.npy and y_train.npy, .txt files, or folders of pictures, one for each class, "
            "got none of them"
        )
    if task is not None:
        raise DataError(f"{path}: holds a text, which takes no task: take it out")
    return load_shards(path, shards, window or WINDOW, split or SPLIT)


def load_arrays(folder: Path, task: str) -> Dataset:
    """x_train.npy, y_train.npy and so on. x: (examples, …) float32 or int32; y: int32, or float32 to regress."""
    kinds = {"x": ("float32", "int32"), "y": ("float32",) if task == "regression" else ("int32",)}

    def array(axis: str, part: str) -> np.ndarray:
        file = folder / f"{axis}_{part}.npy"
        try:
            found = np.load(file, mmap_mode="r" if part == "train" else None, allow_pickle=False)
        except UNREADABLE as error:
            raise DataError(f"{file}: must be an array that can be read: {error}") from error
        if found.ndim < 1 + (axis == "x") or str(found.dtype) not in kinds[axis] or not len(found):
            wanted = f"an array of {' or '.join(kinds[axis])} with a row for each example"
            raise DataError(f"{file}: must be {wanted}, got {found.dtype} of shape {found.shape}: convert it")
        for start in range(0, len(found), PIECE):
            finite = np.isfinite(found[start : start + PIECE])
            if not finite.all():
                row = start + np.argwhere(~finite)[0][0]
                raise DataError(f"{file}: every number must be finite, got another in row {row:,}: mend it")
        return found[:, None] if task == "regression" and axis == "y" and found.ndim == 1 else found

    splits = {}
    for part in PARTS:
        there = part == "train" or any((folder / f"{axis}_{part}.npy").exists() for axis in "xy")
        x, y = (array(axis, part) for axis in "xy") if there else (t[:0] for t in splits["train"])
        first = splits["train"].x if splits else x
        splits[part] = check_split(f"{folder}, {part}", Split(x, y), first.shape[1:])
    classes = None if task == "regression" else 1 + max(int(each.y.max()) for each in splits.values() if len(each.y))
    for part, each in splits.items():
        if classes and len(each.y):
            as_labels(f"{folder}, the least of y_{part}", each.y.min()[None], classes)
    return Dataset(folder.name, **splits, classes=classes, on_disk=True)


def load_shards(
    folder: Path, files: Sequence[Path], window: int = WINDOW, split: Sequence[int | float] = SPLIT
) -> Dataset:
    """Text files as one text. Its tokens are kept in a file of the cache folder, 4 bytes for each character."""
    digest, known, count = hashlib.sha256(), set(), 0
    for piece in pieces(files):
        digest.update(piece.encode())
        known |= set(piece)
        count += len(piece)
    characters = "".join(sorted(known))
    kept = cache_folder() / "tokens" / f"{digest.hexdigest()}.npy"
    if count and not kept.is_file():
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            handle, new = tempfile.mkstemp(dir=kept.parent)
            os.close(handle)
            tokens, place = np.lib.format.open_memmap(new, "w+", np.dtype(np.int32), (count,)), 0
            for piece in pieces(files):
                tokens[place : place + len(piece)] = encode(piece, characters)
                place += len(piece)
            tokens.flush()
            os.replace(new, kept)
        except OSError as error:
            raise cannot_write(kept, error) from error
    tokens = np.load(kept, mmap_mode="r") if count else np.zeros(0, np.int32)
    return replace(from_tokens(str(folder), tokens, characters, window=window, split=split), on_disk=True)


def pieces(files: Sequence[Path]) -> Iterator[str]:
    """The text of some files, piece by piece."""
    for path in files:
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                while piece := file.read(PIECE):
                    yield piece
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: must be a text in UTF-8 that can be read: {error}") from error


class ReadAhead:
    """The examples of an epoch's calls, read from disk by grain's threads before they are needed.

    examples: (places) -> x and y. order: the epoch's, of all places. places: those that this process reads, for each
    call. calls: of each its start, count and batch.
    """

    def __init__(
        self,
        examples: Callable[[np.ndarray], Split],
        order: np.ndarray,
        places: Sequence[np.ndarray],
        calls: Sequence[Any],
    ):
        try:
            import grain
        except ModuleNotFoundError:
            raise DataError("data on disk need grain: install jaxnet with its extra [grain]") from None
        self.order, self.calls, self.next = order, list(calls), -1
        self.options = grain.ReadOptions(num_threads=AHEAD, prefetch_buffer_size=AHEAD)
        self.source = grain.MapDataset.source(places).map(examples)

    def of(self, call: Any) -> Split:
        """The examples of a call. Those of the calls after it are read meanwhile."""
        i = self.calls.index(call)
        if i != self.next:
            self.read = iter(self.source[i:].to_iter_dataset(self.options))
        self.next = i + 1
        return next(self.read)
