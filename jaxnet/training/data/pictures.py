"""Pictures: the digits of scikit-learn, MNIST from IDX files or public mirrors, and folders of picture files."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxnet.training.data.dataset import (
    DataError,
    Dataset,
    Split,
    as_float32,
    as_labels,
    as_numbers,
    cut,
    shuffled,
    split_counts,
)
from jaxnet.training.data.download import cache_folder, fetch, local
from jaxnet.training.data.idx import read_idx
from jaxnet.training.data.tables import from_arrays

# the four files and the SHA-256 of their uncompressed bytes: train pictures and labels, test pictures and labels
MNIST = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "http://yann.lecun.com/exdb/mnist/",
)
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
ADVICE = "Put the four files, plain or gzipped, into a folder and pass --data-dir FOLDER or set JAXNET_DATA to it."


def expanded(split: Split, pixels: int) -> Split:
    """The pictures, then the same moved by `pixels` up, down, left and right: five times as many, zeros move in.

    split: x (n, height, width, channels). Source: Nielsen, Neural Networks and Deep Learning, ch. 6.
    """
    x, y = split
    height, width = x.shape[1:3]
    room = np.pad(x, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))
    corners = ((1, 1), (2, 1), (0, 1), (1, 2), (1, 0))  # of the visible part, in steps of `pixels`
    moved = [room[:, i * pixels :, j * pixels :][:, :height, :width] for i, j in corners]
    return Split(np.concatenate(moved), np.tile(y, len(corners)))


def digits(*, split: Sequence[int | float] = (1197, 300, 300), flat: bool = True, expand: int = 0) -> Dataset:
    """scikit-learn's 1,797 handwritten digits of 8×8 pixels, over 16: (n, 64), or (n, 8, 8, 1) with flat=False.

    split: counts or fractions; the order is one fixed shuffle with the classes spread evenly, so the test set is
    always the same. expand: as `expanded` moves the training pictures; 0 for not at all.
    Source: UCI, Optical Recognition of Handwritten Digits (its test part).
    """
    folder = importlib.metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data")
    table = np.loadtxt(Path(str(folder)) / "digits.csv.gz", delimiter=",")  # load_digits imports SciPy: 1.2 s of CPU
    x, labels = table[:, :-1], table[:, -1]
    y = as_labels("digits", labels, 10)
    x = as_float32("digits", x, 16).reshape(-1, 8, 8, 1)
    train, *others = cut(x, y, split_counts("digits", split, len(y)), shuffled(y, len(y), seed=0))
    return Dataset("digits", *shaped([train, *others], flat, expand), classes=10, picture=(8, 8))


def shaped(parts: Sequence[Split], flat: bool, expand: int) -> list[Split]:
    """Training and other pictures, (n, height, width, 1): the first expanded if asked for, all flat if asked for."""
    train, *others = parts
    whole = [expanded(train, expand) if expand else train, *others]
    return [Split(x.reshape(len(x), -1), y) for x, y in whole] if flat else whole


def mnist(
    *,
    data_dir: str | Path | None = None,
    split: Sequence[int | float] = (50000, 10000, 10000),
    flat: bool = True,
    classes: int = 10,
    mirrors: Sequence[str] = MIRRORS,
    expand: int = 0,
) -> Dataset:
    """MNIST, or files of its kind: pixels over 255, (n, height·width), or (n, height, width, 1) with flat=False.

    Looked for in data_dir, then in `$JAXNET_DATA` (in either the four files, or a folder mnist/ with them), else
    downloaded into the cache. split: counts; train is the first of the training files' examples, validation the last
    (with the default as Nielsen's: 50,000 and 10,000 of the 60,000), test the first of the test files'. expand: as
    `expanded` moves the training pictures; 0 for not at all.
    """
    if not all(isinstance(part, int) for part in split) or split[0] < 1:
        raise DataError(f"mnist: split must be three counts such as [50000, 10000, 10000], got {list(split)}")
    holds = f"none of MNIST's files ({', '.join(MNIST)}), itself or in mnist/. {ADVICE}"
    files = local(data_dir, files_under, holds) or [
        fetch(name, sha256, [f"{m.rstrip('/')}/{name}.gz" for m in mirrors], cache_folder() / "mnist", advice=ADVICE)
        for name, sha256 in MNIST.items()
    ]
    train_x, train_y = pictures_and_labels(files[0], files[1], classes)
    test_x, test_y = pictures_and_labels(files[2], files[3], classes)
    if train_x.shape[1:] != test_x.shape[1:]:
        raise DataError(
            f"{files[2]}: pictures must be of one size, got {test_x.shape[1:]}, and {train_x.shape[1:]} in {files[0]}"
        )
    train, validation, test = (int(part) for part in split)
    for path, due, there in ((files[0], train + validation, len(train_y)), (files[2], test, len(test_y))):
        if due > there:
            raise DataError(f"{path}: split {list(split)} takes {due:,} examples of it, but there are {there:,}")

    height, width = train_x.shape[1:]

    def part(x: np.ndarray, y: np.ndarray) -> Split:
        return Split(np.divide(x[..., None], 255, dtype=np.float32), y)

    parts = [
        part(train_x[:train], train_y[:train]),
        part(train_x[len(train_x) - validation :], train_y[len(train_y) - validation :]),
        part(test_x[:test], test_y[:test]),
    ]
    return Dataset("mnist", *shaped(parts, flat, expand), classes=classes, picture=(height, width))


def pictures_and_labels(pictures: Path, labels: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of the pictures and the labels in two IDX files that belong together."""
    x, y = read_idx(pictures, 3), read_idx(labels, 1)
    if len(x) != len(y):
        raise DataError(f"{pictures} holds {len(x):,} pictures, but {labels} holds {len(y):,} labels: must be as many")
    return as_numbers(str(pictures), x), as_labels(str(labels), y, classes)


def picture_files(folder: Path) -> dict[str, list[Path]]:
    """The picture files in each folder inside, by its name."""
    inside = sorted(each for each in folder.iterdir() if each.is_dir())
    found = {each.name: sorted(file for file in each.iterdir() if file.suffix.lower() in SUFFIXES) for each in inside}
    return {name: files for name, files in found.items() if files}


def load_pictures(
    folder: Path, files: Mapping[str, Sequence[Path]], split: Sequence[int | float] | None = None
) -> Dataset:
    """Pictures of one size, those of a class in a folder of its name: pixels over 255, (n, height, width, 1 or 3).

    They are grey where the first one is. split: counts or fractions, 0.7/0.15/0.15 by default.
    """
    from PIL import Image

    pixels: list[np.ndarray] = []
    for file in (file for of_class in files.values() for file in of_class):
        try:
            with Image.open(file) as opened:
                grey = pixels[0].shape[-1] == 1 if pixels else opened.mode in ("1", "L")
                found = np.asarray(opened.convert("L" if grey else "RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{file}: must be a picture that can be read: {error}") from error
        pixels.append(found.reshape(*found.shape[:2], -1))
        if pixels[-1].shape != pixels[0].shape:
            (height, width), (due_height, due_width) = found.shape[:2], pixels[0].shape[:2]
            raise DataError(
                f"{file}: pictures must be of one size, got {width}×{height}, and {due_width}×{due_height} before: "
                "resize them"
            )
    labels = np.repeat(list(files), [len(of_class) for of_class in files.values()])
    arrays = {"x": np.stack(pixels), "y": labels}
    return from_arrays(str(folder), arrays, split=split, classes=list(files), channels="last")


def files_under(folder: Path) -> list[Path] | None:
    """The four files in a folder or its mnist/, None where there is not one, refused where some are missing."""
    for place in (folder, folder / "mnist"):
        found = {
            name: next(
                (
                    place / (form + end)
                    for form in (name, name.replace("-idx", ".idx"))
                    for end in ("", ".gz")
                    if (place / (form + end)).is_file()
                ),
                None,
            )
            for name in MNIST
        }
        files = [path for path in found.values() if path]
        if len(files) == len(MNIST):
            return files
        if files:
            missing = ", ".join(name for name, path in found.items() if path is None)
            raise DataError(f"{place}: of MNIST's four files these are missing, plain or gzipped: {missing}")
    return None
