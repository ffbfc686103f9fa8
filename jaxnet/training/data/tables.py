"""Files of one's own: .npz with arrays, .csv with columns."""

import csv
import math
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from jaxnet.registry import did_you_mean
from jaxnet.training.data.dataset import (
    DataError,
    Dataset,
    Split,
    as_float32,
    as_labels,
    as_numbers,
    check_split,
    count_classes,
    cut,
    shuffled,
    split_counts,
)

FRACTIONS = (0.7, 0.15, 0.15)
PARTS = ("train", "validation", "test")
KEYS = ("x", "y", *(f"{axis}_{part}" for part in PARTS for axis in "xy"))
LARGEST = float(np.finfo(np.float32).max)


def from_arrays(
    where: str,
    arrays: Mapping[str, Any],
    *,
    split: Sequence[int | float] | None = None,
    task: str = "classification",
    classes: int | None = None,
    flat: bool = False,
    scale: int | float | None = None,
    seed: int = 0,
) -> Dataset:
    """A data set of arrays x and y, or x_train, y_train, x_test, y_test and perhaps x_validation, y_validation.

    x: (examples, …), divided by `scale` (255 where it holds bytes, else 1); y: (examples,) labels, or with
    task="regression" (examples, …) numbers. x and y are shuffled by `seed`, a class spread evenly over the whole, and
    split by counts or fractions, 0.7/0.15/0.15 if none are given; arrays that come split stay as they are.
    flat: each example as one vector. classes: how many, else one more than the largest label.
    """
    named = split_names(where, arrays)
    if named and split is not None:
        raise DataError(f"{where}: comes as {', '.join(named)}, already split: take `split` out")

    def numbers(suffix: str) -> Split:
        x, y = as_numbers(f"{where}, x{suffix}", arrays[f"x{suffix}"]), arrays[f"y{suffix}"]
        if x.ndim < 2:
            raise DataError(
                f"{where}, x{suffix}: must have a row for each example, got shape {x.shape}: put x[:, None]"
            )
        x = as_float32(f"{where}, x{suffix}", x, scale or (255 if x.dtype == np.uint8 else 1))
        x = x.reshape(len(x), -1) if flat else x
        if task == "regression":
            return Split(x, as_float32(f"{where}, y{suffix}", y))
        y = as_labels(f"{where}, y{suffix}", y, classes)
        if y.ndim > 1:
            raise DataError(
                f"{where}, y{suffix}: class labels are one number for each example, got shape {y.shape}: "
                'take y.argmax(axis=1) of one-hot rows, y[:, 0] of a column, or put task = "regression"'
            )
        return Split(x, y)

    splits = [numbers(f"_{part}" if part else "") for part in named or ("",)]
    for part, here in zip(named or ("x and y",), splits, strict=True):
        check_split(f"{where}, {part}", here, splits[0].x.shape[1:])
    if task == "regression":
        if classes is not None:
            raise DataError(f'{where}: classes = {classes} has no meaning with task = "regression": take one out')
    else:
        classes = classes or count_classes(where, *(here.y for here in splits))
    if named:
        train, test = splits[0], splits[-1]
        validation = splits[1] if len(splits) == 3 else Split(train.x[:0], train.y[:0])
    else:
        x, y = splits[0]
        counts = split_counts(where, split if split is not None else FRACTIONS, len(y))
        order = shuffled(None if classes is None else y, len(y), seed)
        train, validation, test = cut(x, y, counts, order)
    return Dataset(Path(where).stem, train, validation, test, classes)


def split_names(where: str, arrays: Mapping[str, Any]) -> tuple[str, ...]:
    """The parts that come already split, () where there is one x and one y; other arrays may lie beside them."""
    came = list(arrays)
    for key in came:
        if key.startswith(("x_", "y_")) and key not in KEYS:
            raise DataError(f"{where}: does not know the array {key}: {did_you_mean(key, KEYS)}")
    named = tuple(part for part in PARTS if f"x_{part}" in came or f"y_{part}" in came)
    if named:
        due = [f"{axis}_{part}" for part in PARTS for axis in "xy" if part != "validation" or part in named]
    else:
        due = ["x", "y"]
    missing = [key for key in due if key not in came]
    if missing or (named and ("x" in came or "y" in came)):
        raise DataError(
            f"{where}: must hold the arrays x and y, or x_train, y_train, x_test, y_test and if there is one "
            f"x_validation, y_validation; got {', '.join(came) or 'none'}"
        )
    return named


def load_npz(path: Path, **options: Any) -> Dataset:
    """The arrays of an .npz file, as `from_arrays` takes them."""
    try:
        with path.open("rb") as file:  # np.load leaves a damaged archive that it opened by itself open
            archive = np.load(file, allow_pickle=False)
            arrays = {key: archive[key] for key in archive.files} if isinstance(archive, np.lib.npyio.NpzFile) else None
    except (OSError, ValueError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path}: cannot be read as .npz ({error}): write it with np.savez(path, x=…, y=…), arrays of numbers only"
        ) from error
    if arrays is None:
        raise DataError(f"{path}: holds a single array and is no .npz archive: write it with np.savez(path, x=…, y=…)")
    return from_arrays(str(path), arrays, **options)


# ----------------------------------------------------------------------------------------------- csv


def load_csv(path: Path, *, target: str | int = -1, header: bool | None = None, **options: Any) -> Dataset:
    """Numbers in columns separated by commas, one example on each line; the rest is as in `from_arrays`.

    target: the column of y, by its name in the header or its place (-1: the last); the others are x.
    header: whether the first line names the columns; if not said, it does where none of its cells is a number.
    """
    try:
        names, table = read_table(path, header)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: is no text in UTF-8 with comma-separated values ({error})") from error
    column = target_column(path, target, names, table.shape[1])
    return from_arrays(str(path), {"x": np.delete(table, column, axis=1), "y": table[:, column]}, **options)


def read_table(path: Path, header: bool | None) -> tuple[list[str] | None, np.ndarray]:
    """The column names if there are any, and the numbers below."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        first = next((row for row in csv.reader(file) if row), None)
        if first is None:
            raise DataError(f"{path}: holds no examples: the file is empty")
        if len(first) < 2:
            raise DataError(f"{path}: must have at least two columns, got 1: are they separated by commas?")
        names = [cell.strip() for cell in first] if has_header(path, first, header) else None
        if names is None:
            file.seek(0)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "loadtxt: input contained no data")
                table = np.loadtxt(file, delimiter=",", quotechar='"', comments=None, ndmin=2)
        except ValueError as error:
            blame(path, names, len(first), str(error))
    if table.size == 0:
        raise DataError(f"{path}: holds no examples, only a line of column names")
    if table.shape[1] != len(first) or not (np.abs(table) <= LARGEST).all():
        blame(path, names, len(first), "rows and names do not match")
    return names, table


def as_number(cell: str) -> float | None:
    """What a cell holds as a number, None where it is none."""
    try:
        return float(cell)
    except ValueError:
        return None


def has_header(path: Path, first: Sequence[str], header: bool | None) -> bool:
    """Whether the first line names the columns; refused where it may or may not."""
    if header is not None:
        return header
    texts = [as_number(cell) is None for cell in first]
    if any(texts) and not all(texts):
        at = texts.index(True)
        raise DataError(
            f"{path}, line 1: mixes numbers and text ({first[at]!r} in column {at + 1}): mend the cell, "
            "or say header = true if the line names the columns"
        )
    return all(texts)


def target_column(path: Path, target: str | int, names: list[str] | None, width: int) -> int:
    """The place of the target's column."""
    if isinstance(target, int):
        if not -width <= target < width:
            raise DataError(f"{path}: target = {target} must name one of {width} columns, from 0 or, backwards, -1")
        return target
    if names is None:
        raise DataError(f'{path}: has no line of column names, so target = "{target}" must be a column\'s number')
    if names.count(target) != 1:
        known = "there are several" if target in names else did_you_mean(target, names)
        raise DataError(f'{path}: target = "{target}" must name one column: {known}')
    return names.index(target)


def blame(path: Path, names: list[str] | None, width: int, otherwise: str) -> NoReturn:
    """Raise for the first cell that is no finite number or the first row that is too long or too short."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        rows: Iterator[list[str]] = (row for row in reader if row)
        if names is not None:
            next(rows)
        for row in rows:
            if len(row) != width:
                raise DataError(f"{path}, line {reader.line_num}: must have {width} columns, got {len(row)}")
            for i, cell in enumerate(row):
                value = as_number(cell)
                if value is None or not math.isfinite(value) or abs(value) > LARGEST:
                    place = f"column {i + 1}" + (f" ({names[i]})" if names else "")
                    came = repr(cell) if cell.strip() else "an empty cell"
                    raise DataError(
                        f"{path}, line {reader.line_num}, {place}: must be a finite number, got {came}: "
                        "number classes from 0, drop rows with gaps or fill them in"
                    )
    raise DataError(f"{path}: is no table of numbers ({otherwise})")
