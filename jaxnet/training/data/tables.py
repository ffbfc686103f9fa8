"""Your own files: .npz with arrays, .csv with columns.

Functions raise DataError where a file cannot be read, or its parts do not fit together.
"""

import csv
from array import ArrayType
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxnet.registry import did_you_mean
from jaxnet.training.data.dataset import (
    PARTS,
    DataError,
    Dataset,
    Split,
    as_float32,
    as_labels,
    as_numbers,
    check_class_count,
    check_split,
    cut,
    shuffled,
    split_counts,
)
from jaxnet.training.data.files import read_arrays

FRACTIONS = (0.7, 0.15, 0.15)
ALL_FOR_TRAINING = (1.0, 0.0, 0.0)  # leaves arrays that come split as they are
KEYS = ("x", "y", *(f"{axis}_{part}" for part in PARTS for axis in "xy"))
LARGEST = float(np.finfo(np.float32).max)


def from_arrays(
    where: str,
    arrays: Mapping[str, Any],
    *,
    split: Sequence[int | float] | None = None,
    task: str = "classification",
    classes: int | Sequence[str] | None = None,
    channels: str | None = None,
    flat: bool = False,
    scale: int | float | None = None,
    seed: int = 0,
) -> Dataset:
    """A data set of arrays x and y, or x_train, y_train, x_test, y_test and perhaps x_validation, y_validation.

    Args:
        x: (examples, …), divided by `scale` (255 where it holds bytes, else 1).
        y: (examples,) class labels, as `numbered` takes them; with task = "regression" numbers, (examples, outputs), or
            (examples,) for one output.
        split: counts or fractions, 0.7/0.15/0.15 by default: x and y are shuffled by `seed`, each class spread evenly,
            and cut. Arrays that come split stay as they are.
        classes: how many, or the names of the classes in order.
        channels: "first" for pictures of (channels, height, width), "last" for (height, width, channels). By default
            three axes of which the first is 1 or 3, and the others larger, are channels first.
        flat: each example as one vector.
    """
    named = split_names(where, arrays)
    if named and split not in (None, ALL_FOR_TRAINING):
        raise DataError(f"{where}: comes as {', '.join(named)}, already split: take `split` out")
    if task == "regression" and classes is not None:
        raise DataError(f'{where}: classes = {classes} has no meaning with task = "regression": take one out')
    suffixes = [f"_{part}" for part in named] if named else [""]
    xs, picture, notes = inputs(where, {f"x{suffix}": arrays[f"x{suffix}"] for suffix in suffixes}, channels, scale)
    if flat:
        xs = [x.reshape(len(x), -1) for x in xs]
    names = None
    if task == "regression":
        ys = [as_float32(f"{where}, y{suffix}", arrays[f"y{suffix}"]) for suffix in suffixes]
        ys = [y[:, None] if y.ndim == 1 else y for y in ys]
    else:
        ys, classes, names = numbered(where, {f"y{suffix}": arrays[f"y{suffix}"] for suffix in suffixes}, classes)
    splits = [Split(x, y) for x, y in zip(xs, ys, strict=True)]
    for part, here in zip(named or ("x and y",), splits, strict=True):
        check_split(f"{where}, {part}", here, splits[0].x.shape[1:])
    if named:
        train, test = splits[0], splits[-1]
        validation = splits[1] if len(splits) == 3 else Split(train.x[:0], train.y[:0])
    else:
        x, y = splits[0]
        counts = split_counts(where, split if split is not None else FRACTIONS, len(y))
        order = shuffled(None if classes is None else y, len(y), seed)
        train, validation, test = cut(x, y, counts, order)
    assert classes is None or isinstance(classes, int)
    return Dataset(Path(where).stem, train, validation, test, classes, picture=picture, names=names, notes=notes)


def inputs(
    where: str, arrays: Mapping[str, Any], channels: str | None, scale: int | float | None
) -> tuple[list[np.ndarray], tuple[int, int] | None, tuple[str, ...]]:
    """The arrays as float32 with channels last, the size of a grey picture if they are some, and notes of changes."""
    raw = {key: as_numbers(f"{where}, {key}", array) for key, array in arrays.items()}
    for key, x in raw.items():
        if x.ndim < 2:
            raise DataError(f"{where}, {key}: must have a row for each example, got shape {x.shape}: put x[:, None]")
    first, notes = next(iter(raw.values())), ()
    shape = came = first.shape[1:]
    if channels == "first" and len(shape) != 3:
        raise DataError(f'{where}: channels = "first" needs examples of three axes, got shape {shape}')
    if channels == "first" or (channels is None and channels_first(shape)):
        raw = {key: np.moveaxis(x, 1, -1) if x.ndim == 4 else x for key, x in raw.items()}
        shape = (*came[1:], came[0])
        notes = (f"pictures of shape {came} have their channels first: taken as {shape}",)
    picture = shape[:2] if first.dtype == np.uint8 and (len(shape) == 2 or shape[2:] == (1,)) else None
    scales = {key: scale or (255 if x.dtype == np.uint8 else 1) for key, x in raw.items()}
    return [as_float32(f"{where}, {key}", x, scales[key]) for key, x in raw.items()], picture, notes


def channels_first(shape: tuple[int, ...]) -> bool:
    """Whether one example is a picture of (channels, height, width)."""
    return len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) > 4


# -------------------------------------------------------------------------------------------- classes


def numbered(
    where: str, labels: Mapping[str, Any], classes: int | Sequence[str] | None
) -> tuple[list[np.ndarray], int, tuple[str, ...] | None]:
    """Class labels from 0 as int32, how many classes there are, and their names if they have any.

    Labels are whole numbers from 0, or text, or whole numbers from above 0: these two are names of classes, in order.
    classes: how many, or the names in order; by default those that there are.
    """
    arrays = {key: np.asarray(values) for key, values in labels.items()}
    for key, array in arrays.items():
        if array.dtype.kind == "S":
            arrays[key] = np.char.decode(array, "utf-8", "replace")
        if array.ndim > 1:
            raise DataError(
                f"{where}, {key}: class labels are one number for each example, got shape {array.shape}: "
                'take y.argmax(axis=1) of one-hot rows, y[:, 0] of a column, or put task = "regression"'
            )
    if not all(is_text(array) for array in arrays.values()):
        arrays = {key: as_labels(f"{where}, {key}", array) for key, array in arrays.items()}
        if not isinstance(classes, Sequence):
            largest = max(int(array.max()) for array in arrays.values())
            from_0 = any((array == 0).any() for array in arrays.values())
            if from_0 or (classes is not None and largest < classes):
                if classes is None:
                    classes = check_class_count(where, largest + 1, sum(map(len, arrays.values())))
                return [as_labels(f"{where}, {key}", array, classes) for key, array in arrays.items()], classes, None
    everything, places = np.unique(np.concatenate(list(arrays.values())), return_inverse=True)
    found = [str(name) for name in everything]
    if isinstance(classes, Sequence):
        names = list(classes)
        if strange := [name for name in found if name not in names]:
            raise DataError(f"{where}: {strange[0]!r} must be one of the classes {', '.join(names)}")
    else:
        wanted = check_class_count(where, len(found), len(places)) if classes is None else classes
        names = found if wanted == len(found) or is_text(everything) else [str(i + 1) for i in range(wanted)]
        if len(names) != wanted or not set(found) <= set(names):
            raise DataError(f"{where}: classes = {wanted}, but there are {len(found)}: {', '.join(found[:10])}")
    y = np.array([names.index(name) for name in found], np.int32)[places]
    ends = np.cumsum([len(array) for array in arrays.values()])[:-1]
    return np.split(y, ends), len(names), tuple(names)


def is_text(labels: np.ndarray) -> bool:
    """Whether labels are text."""
    return labels.dtype.kind == "U" or (labels.dtype.kind == "O" and all(isinstance(label, str) for label in labels))


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
    arrays = read_arrays(path)
    if isinstance(arrays, np.ndarray):
        raise DataError(f"{path}: holds a single array and is no .npz archive: write it with np.savez(path, x=…, y=…)")
    return from_arrays(str(path), arrays, **options)


# ----------------------------------------------------------------------------------------------- csv


class Columns(NamedTuple):
    """The columns of a table: their names if the file has them, how many, the target if any, and those left out."""

    names: list[str] | None
    width: int
    target: int | None
    dropped: frozenset[int]

    def title(self, i: int) -> str:
        """`column 2 (age)`."""
        return f"column {i + 1}" + (f" ({self.names[i]})" if self.names else "")

    def key(self, i: int) -> str:
        """How a config names the column: `"age"`, or its place."""
        unique = self.names and self.names[i] and self.names.count(self.names[i]) == 1
        return f'"{self.names[i]}"' if self.names and unique else str(i)

    def refused(self, path: Path, line: int, i: int, cell: str, must: str = "a finite number") -> DataError:
        """The error of a cell that is no number, or no class."""
        came, mend = repr(cell), "drop rows with gaps or fill them in"
        if not cell.strip():
            came = "an empty cell"
        elif i != self.target:
            mend = f"mend it, or leave the column out by drop = [{self.key(i)}]"
        return DataError(f"{path}, line {line}, {self.title(i)}: must be {must}, got {came}: {mend}")


def load_csv(
    path: Path,
    *,
    target: str | int = -1,
    drop: Sequence[str | int] = (),
    header: bool | None = None,
    task: str = "classification",
    **options: Any,
) -> Dataset:
    """Columns separated by commas, semicolons or tabs, an example a line: numbers, and a target (numbers or names).

    Args:
        target: the column of y, by its name in the header or its place (-1: the last).
        drop: columns to leave out, by name or place. The others are x.
        header: whether the first line names the columns; by default it does where no cell of x is a number.
        task and options: as in `from_arrays`.
    """
    columns, table, y = read_table(path, target, drop, header, task == "classification")
    kept = [i for i in range(columns.width) if i != columns.target and i not in columns.dropped]
    if not kept:
        raise DataError(f"{path}: every column but the target is left out by drop: keep one")
    notes = [
        f"{path}, {columns.title(i)} counts the rows: if it is no input, leave it out by drop = [{columns.key(i)}]"
        for i in kept
        if counts_rows(table[:, i])
    ]
    dataset = from_arrays(str(path), {"x": table[:, kept], "y": y}, task=task, **options)
    names = [columns.names[i] for i in kept] if columns.names else []
    different = tuple(names) if names and len(set(names)) == len(names) else None
    return replace(dataset, notes=(*notes, *dataset.notes), columns=different)


def places_of(where: str, names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """The place of each wanted column among the names of a table. Raises DataError where one is missing."""
    if missing := [name for name in wanted if name not in names]:
        raise DataError(
            f"{where}: must have the columns of the training data, {', '.join(wanted)}, in any order; "
            f"there is no {missing[0]} among {', '.join(names)}"
        )
    return [names.index(name) for name in wanted]


def in_columns(dataset: Dataset, wanted: Sequence[str]) -> Dataset:
    """A table with its columns in the order of the training data's; as it is where it names none."""
    if dataset.columns is None:
        return dataset
    places = places_of(dataset.name, dataset.columns, wanted)
    return dataset.each(lambda split: split._replace(x=split.x[:, places]), columns=tuple(wanted))


def csv_inputs(
    path: Path,
    width: int,
    names: Sequence[str] | None = None,
    *,
    target: str | int = -1,
    drop: Sequence[str | int] = (),
    header: bool | None = None,
) -> np.ndarray:
    """The inputs, (examples, width), in a table with the columns of the training data, with or without the target.

    names: of the training data's columns; a table with a line of names is read by them.
    target, drop, header: as in `load_csv`; columns to leave out may be missing.
    """
    with rows_of(path) as (_, rows):
        first = [cell.strip() for cell in next(rows, [])]
    if names and (all(as_number(cell) is None for cell in first) if header is None else header):
        places = places_of(str(path), first, names)
        others = [i for i in range(len(first)) if i not in places]
        return read_table(path, None, others, True, False)[1][:, places]
    left_out = [key for key in drop if isinstance(key, int) or key in first]
    if len(first) == width + len(left_out) + 1:
        left_out.append(target)
    columns, table, _ = read_table(path, None, left_out, header, False)
    return np.delete(table, list(columns.dropped), axis=1)


def counts_rows(column: np.ndarray) -> bool:
    """Whether a column is 0, 1, 2 … or 1, 2, 3 …"""
    return len(column) > 2 and column[0] in (0, 1) and bool((np.diff(column) == 1).all())


@contextmanager
def rows_of(path: Path) -> Iterator[tuple[Any, Iterator[list[str]]]]:
    """The reader of a table, for its line numbers, and its rows, without empty lines.

    Cells are separated by commas, semicolons or tabs, as most are in the first line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            separator = max(",;\t", key=file.readline().count)
            file.seek(0)
            reader = csv.reader(file, delimiter=separator)
            yield reader, (row for row in reader if row)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: is no text in UTF-8 with comma-separated values ({error})") from error


def read_table(
    path: Path, target: str | int | None, drop: Sequence[str | int], header: bool | None, classified: bool
) -> tuple[Columns, np.ndarray, np.ndarray]:
    """The columns, the numbers with 0 where a column is left out, and the target: numbers, or text if classified.

    target: None where there is none.
    """
    numbers, labels, lines = ArrayType("d"), [], ArrayType("q")
    with rows_of(path) as (reader, rows):
        first = next(rows, None)
        if first is None:
            raise DataError(f"{path}: holds no examples: the file is empty")
        if len(first) < 2 and target is not None:
            raise DataError(
                f"{path}: must have at least two columns, got 1: are they separated by commas, semicolons or tabs?"
            )
        columns = columns_of(path, first, target, drop, header)
        no_numbers = [*columns.dropped, *([columns.target] if classified and columns.target is not None else [])]
        for row in rows if columns.names is not None else chain([first], rows):
            if len(row) != columns.width:
                raise DataError(f"{path}, line {reader.line_num}: must have {columns.width} columns, got {len(row)}")
            if classified:
                labels.append(row[columns.target or 0].strip())
                lines.append(reader.line_num)
            for i in no_numbers:
                row[i] = "0"
            for i, value in enumerate(map(as_number, row)):
                if value is None:
                    raise columns.refused(path, reader.line_num, i, row[i])
                numbers.append(value)
            if classified and not labels[-1]:
                raise columns.refused(path, reader.line_num, columns.target or 0, "", "a class")
    if not numbers:
        raise DataError(f"{path}: holds no examples, only a line of column names")
    table = np.array(numbers).reshape(-1, columns.width)
    if not classified:
        return columns, table, table[:, columns.target or 0]
    different = {label: as_number(label) for label in labels}
    if all(value is None for value in different.values()):
        return columns, table, np.array(labels)
    for line, label in zip(lines, labels, strict=True):
        if different[label] is None:
            raise columns.refused(path, line, columns.target or 0, label)
    return columns, table, np.array([different[label] for label in labels])


def as_number(cell: str) -> float | None:
    """The number in a cell; None where it is none that is finite in float32."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if -LARGEST <= value <= LARGEST and "_" not in cell else None


def columns_of(
    path: Path, first: Sequence[str], target: str | int | None, drop: Sequence[str | int], header: bool | None
) -> Columns:
    """The columns of a table by its first line; refused where it may or may not name them."""
    keys = [key for key in (target, *drop) if key is not None]
    by_name = [key for key in keys if isinstance(key, str)]
    cells = [cell.strip() for cell in first]
    place = {key: column_place(path, key, [], len(first)) for key in keys if isinstance(key, int)}
    inputs = [i for i in range(len(first)) if i not in place.values()] or range(len(first))
    texts = [i for i in inputs if as_number(cells[i]) is None]
    if header is None and not by_name and 0 < len(texts) < len(inputs):
        raise DataError(
            f"{path}, line 1: mixes numbers and text ({cells[texts[0]]!r} in column {texts[0] + 1}): mend the cell, "
            "or say header = true if the line names the columns"
        )
    named = header if header is not None else bool(texts)
    if by_name and (not named or len(texts) < len(inputs)) and not header:
        raise DataError(
            f'{path}: has no line of column names, so "{by_name[0]}" must be a column\'s number, from 0, '
            "or say header = true"
        )
    names = cells if named else None
    places = {key: column_place(path, key, cells, len(first)) for key in keys}
    dropped = frozenset(places[key] for key in drop)
    columns = Columns(names, len(first), None if target is None else places[target], dropped)
    if columns.target is not None and columns.target in dropped:
        raise DataError(f"{path}: the target, {columns.title(columns.target)}, is in drop")
    return columns


def column_place(path: Path, key: str | int, names: list[str], width: int) -> int:
    """The place of a column that is named, or numbered from 0 or, backwards, -1."""
    if isinstance(key, int):
        if not -width <= key < width:
            raise DataError(f"{path}: column {key} must be one of {width} columns, from 0 or, backwards, -1")
        return key % width
    if names.count(key) != 1:
        known = "there are several" if key in names else did_you_mean(key, names)
        raise DataError(f'{path}: "{key}" must name one column: {known}')
    return names.index(key)
