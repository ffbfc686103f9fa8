"""Data sets, and the checks of their numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

PARTS = ("train", "validation", "test")


class DataError(ValueError):
    """Data that cannot be used. The message has the requirement, the value given, and the repair."""


class Split(NamedTuple):
    """Examples and their targets.

    x: (examples, …), float32 (int32 for tokens).
    y: (examples,) int32 class labels, or (examples, …) float32 targets of a regression.
    """

    x: np.ndarray
    y: np.ndarray


class Text(NamedTuple):
    """A text to be cut into windows.

    tokens: (characters,) int32, those to train on in a row. characters: token i stands for the i-th of these.
    """

    tokens: np.ndarray
    characters: str


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits of one kind of data; validation and test may be empty, train may not.

    classes: how many classes the labels count, or None where y is a regression's target.
    ignore: the label that does not count; None where every label counts.
    names: of the classes; None where they are their numbers.
    notes: for the user: changes made to the data, and likely mistakes in them.
    picture: (height, width) of one example where x is a picture, flat or not.
    text: where x are windows of a text; training then shifts them in each epoch.
    on_disk: whether the training examples stay on disk.
    columns: the names of the inputs of a table with different ones; other tables are read by them.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int | None
    picture: tuple[int, int] | None = None
    text: Text | None = None
    ignore: int | None = None
    names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    on_disk: bool = False
    columns: tuple[str, ...] | None = None

    @property
    def splits(self) -> dict[str, Split]:
        """Train, validation and test by name."""
        return {part: getattr(self, part) for part in PARTS}

    def each(self, change: Callable[[Split], Split], **others: Any) -> "Dataset":
        """The data set with every split changed. others: other fields changed too."""
        return replace(self, **{part: change(split) for part, split in self.splits.items()}, **others)

    def summary(self) -> str:
        """One line: `mnist  50,000 / 10,000 / 10,000  28×28 in 0…1  10 classes`; of a text the unit of the losses."""
        if self.text is not None:
            sizes = " / ".join(f"{split.y.size:,}" for split in self.splits.values())
            windows = f"{sizes} characters by {self.train.x.shape[1]}"
            return f"{self.name}  {windows}  {self.classes} different  losses in nats a character"
        sizes = " / ".join(f"{len(split.y):,}" for split in self.splits.values())
        x, y = self.train
        shape = self.picture or x.shape[1:]
        what = "×".join(map(str, shape)) if len(shape) > 1 else plural(int(np.prod(shape)), "number")
        if self.classes is None:
            kind = plural(int(np.prod(y.shape[1:])), "target")
        else:
            some = f": {self.names[0]} … {self.names[-1]}" if self.names else ""
            kind = plural(self.classes, "class", "classes") + some
        range_ = "on disk" if self.on_disk else f"in {x.min():.4g}…{x.max():.4g}"
        return f"{self.name}  {sizes}  {what} {range_}  {kind}"

    def as_picture(self, x: np.ndarray) -> np.ndarray | None:
        """One example as (height, width, 1 or 3); None where it is no picture."""
        if self.picture is not None:
            return x.reshape(*self.picture, -1)
        return x if x.ndim == 3 and x.shape[-1] in (1, 3) else None


def plural(n: int, one: str, many: str | None = None) -> str:
    """`1 target`, `2 targets`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


# ------------------------------------------------------------------------------------------- numbers


def as_numbers(where: str, values: Any) -> np.ndarray:
    """The values as an array of real numbers, not empty."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise DataError(f"{where}: must hold real numbers, got dtype {array.dtype}")
    if array.ndim == 0:
        raise DataError(f"{where}: the first axis must count the examples, got a single number")
    if array.size == 0:
        raise DataError(f"{where}: holds no examples, got shape {array.shape}: an empty data set trains nothing")
    return array


def check_finite(where: str, array: np.ndarray) -> None:
    """Raises DataError with the place of the first NaN or infinity."""
    finite = np.isfinite(array)
    if finite.all():
        return
    at = np.unravel_index(int(np.argmin(finite)), array.shape)
    place = f"row {at[0]}"
    if len(at) > 1:
        place += f", column {at[1]}" if len(at) == 2 else f", place {tuple(map(int, at[1:]))}"
    count = plural(int((~finite).sum()), "such number")
    raise DataError(
        f"{where}: every number must be finite in float32, got {array[at]} in {place}, counting from 0 ({count}): "
        "drop these rows or fill them in"
    )


def as_float32(where: str, values: Any, scale: int | float = 1) -> np.ndarray:
    """The values over `scale`, as finite float32."""
    array = as_numbers(where, values)
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
        if scale != 1:
            array /= np.float32(scale)
    check_finite(where, array)
    return array


def as_labels(where: str, values: Any, classes: int | None = None, ignore: int | None = None) -> np.ndarray:
    """Class labels as int32: whole numbers from 0 to below `classes`, or `ignore`."""
    array = as_numbers(where, values)
    check_finite(where, array)
    outside = array < 0 if classes is None else (array < 0) | (array >= classes)
    if ignore is not None:
        outside &= array != ignore
    for bad, rule in (
        (array != np.floor(array), 'be whole numbers or text; for a regression put task = "regression"'),
        (outside, "not be negative" if classes is None else f"go from 0 to {classes - 1}"),
    ):
        if bad.any():
            at = np.unravel_index(int(np.argmax(bad)), bad.shape)
            raise DataError(f"{where}: class labels must {rule}; got {array[at]} at example {at[0]}, counting from 0")
    return array.astype(np.int32)


def check_class_count(where: str, classes: int, examples: int) -> int:
    """The number of classes; refused if there are too few examples for it."""
    if classes > max(examples, 2) or (classes > 20 and 3 * classes > examples):
        raise DataError(
            f"{where}: {classes:,} classes are too many for {examples:,} examples: number the classes from 0, "
            f'put classes = {classes} if there are so many, or task = "regression" if these are no classes'
        )
    return classes


def check_split(where: str, split: Split, shape: tuple[int, ...]) -> Split:
    """Raise where x and y are of different lengths, or one example is not of the training set's shape."""
    if len(split.x) != len(split.y):
        raise DataError(
            f"{where}: x and y must be of one length, got {len(split.x):,} examples and {len(split.y):,} targets"
        )
    if split.x.shape[1:] != shape:
        raise DataError(f"{where}: one example has shape {split.x.shape[1:]}, in the training set {shape}")
    return split


# --------------------------------------------------------------------------------------------- splits


def split_counts(where: str, split: Sequence[int | float], n: int) -> tuple[int, int, int]:
    """How many of n examples go to train, validation and test, of three counts or three fractions.

    Fractions are rounded for validation and test; train has the rest where they add up to 1.
    """
    if all(isinstance(part, int) for part in split):
        train, validation, test = (int(part) for part in split)
        if train + validation + test > n:
            raise DataError(
                f"{where}: split {list(split)} takes {train + validation + test:,} examples, but there are {n:,}"
            )
    else:
        if sum(split) > 1 + 1e-9:
            raise DataError(f"{where}: the fractions of split {list(split)} add up to {sum(split):g}, more than 1")
        validation, test = (max(1, round(part * n)) if part else 0 for part in split[1:])
        train = n - validation - test if sum(split) > 1 - 1e-9 else int(split[0] * n)
    if train < 1:
        raise DataError(f"{where}: split {list(split)} of {plural(n, 'example')} leaves none to train on")
    return train, validation, test


def shuffled(labels: np.ndarray | None, n: int, seed: int) -> np.ndarray:
    """An order of n examples; every stretch of it holds the classes in nearly their shares.

    Each class is shuffled and then spread evenly over the whole; without labels it is a plain shuffle.
    """
    # RandomState's stream is frozen, a Generator's may change with NumPy's version, and a test set must not.
    order = np.random.RandomState(seed).permutation(n)
    if labels is None:
        return order
    share = np.empty(n)
    for label in np.unique(labels):
        members = np.flatnonzero(labels[order] == label)
        share[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(share, kind="stable")]


def cut(x: np.ndarray, y: np.ndarray, counts: Sequence[int], order: np.ndarray) -> tuple[Split, Split, Split]:
    """Train, validation and test, one after the other along `order`."""
    ends = np.cumsum(counts)
    train, validation, test = (
        Split(x[order[end - count : end]], y[order[end - count : end]]) for end, count in zip(ends, counts, strict=True)
    )
    return train, validation, test
