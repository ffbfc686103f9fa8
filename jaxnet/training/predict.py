"""Predictions of a trained network for examples from a file: arrays, or a picture in the form of the training data.

Functions raise DataError for a file that does not fit the network.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from jaxnet import backprop
from jaxnet.training import devices
from jaxnet.training.build import split_name
from jaxnet.training.data import Dataset
from jaxnet.training.data.dataset import DataError, as_float32, as_numbers, check_finite
from jaxnet.training.data.files import read_arrays
from jaxnet.training.data.tables import csv_inputs
from jaxnet.training.program_cache import keep_compiled
from jaxnet.training.run_listing import table_of
from jaxnet.training.trained_network import NEWEST, CheckpointChoice, Trained, restore

ARRAYS = (".npy", ".npz", ".csv")
BRIGHT = 127.5
SHOWN = 10


class Prediction(NamedTuple):
    """A network's answers to some examples.

    outputs: (examples, …), as probabilities where the loss defines them. classes: (examples,) of the largest output;
    None without classes. kind: of the outputs: "probability", "output" or "value". notes: changes made to the file's
    numbers. names: of the classes, if they have any.
    """

    outputs: np.ndarray
    classes: np.ndarray | None
    kind: str
    notes: list[str]
    names: Sequence[str] | None = None

    def called(self, i: int) -> str:
        """A class by its name, or its number."""
        return self.names[i] if self.names is not None and i < len(self.names) else str(i)


def predict(
    folder: Path, file: Path, *, data_dir: Path | None = None, reading: CheckpointChoice = NEWEST
) -> Prediction:
    """The answers of a run's network to the examples in a file: .npy, .npz, .csv, or a picture.

    Raises DataError for a file that does not fit, and as `trained_network.restore` does for the run.
    """
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "is not there"
        raise DataError(f"{file} {what}: give a .npy, .npz or .csv file with examples, or a picture")
    keep_compiled()
    trained = restore(folder, data_dir=data_dir, reading=reading)
    dataset = trained.session.dataset
    x, notes = examples(file, dataset, split_name(trained.config.data)[1])
    with devices.precision(trained.config.precision):
        outputs, kind = answers(trained, trained.config.typed(x))
    classes = outputs.argmax(axis=-1) if trained.session.classified and outputs.ndim == 2 else None
    return Prediction(outputs, classes, kind if classes is not None else "value", notes, dataset.names)


def answers(trained: Trained, x: np.ndarray) -> tuple[np.ndarray, str]:
    """The network's outputs and their kind, see `Prediction`."""
    recipe = trained.session.recipe
    turn, kind = AS_PROBABILITIES.get(recipe.loss.name, (None, "output"))
    forward = backprop.predict(recipe.net)
    outputs = np.asarray(jax.jit(lambda params, x: (turn or (lambda z: z))(forward(params, x)))(trained.net_params, x))
    return outputs.astype(np.float64), kind


AS_PROBABILITIES = {
    "softmax_cross_entropy": (lambda z: jax.nn.softmax(z, axis=-1), "probability"),
    "binary_cross_entropy_on_logits": (jax.nn.sigmoid, "probability"),
    "binary_cross_entropy": (jnp.asarray, "probability"),
}
"""By loss: the function from outputs to probabilities. Outputs of other losses are shown as they are."""


# ------------------------------------------------------------------------------------------ examples


def examples(file: Path, dataset: Dataset, options: dict[str, Any]) -> tuple[np.ndarray, list[str]]:
    """The file's examples in the shape and the range of the training data, and notes of the changes."""
    if file.suffix.lower() not in ARRAYS:
        return from_picture(file, dataset)
    if file.suffix.lower() == ".csv":
        of_columns = {key: options[key] for key in ("target", "drop", "header") if key in options}
        width, name = math.prod(dataset.train.x.shape[1:]), "the inputs"
        array = csv_inputs(file, width, dataset.columns, **of_columns)
    else:
        array, name = read_array(file)
    notes = [f"{file}: {name} of shape {array.shape}, {array.dtype}"]
    wanted = dataset.train.x.shape[1:]
    array = as_numbers(f"{file}, {name}", array if array.ndim else array[None])
    x = shaped(array, wanted, dataset)
    if x is None:
        raise DataError(
            f"{file}, {name}: one example of {dataset.name} has shape {wanted}, got {array.shape}: "
            f"give an array of shape {wanted}, or (examples, {', '.join(map(str, wanted))})"
        )
    if not np.issubdtype(dataset.train.x.dtype, np.floating):
        return tokens(f"{file}, {name}", x, dataset), notes
    scale = options.get("scale") or (255 if x.dtype == np.uint8 else 1)
    if scale != 1:
        notes.append(f"divided by {scale:g}, as the training data were")
    x = as_float32(f"{file}, {name}", x, scale)
    low, high = float(dataset.train.x.min()), float(dataset.train.x.max())
    margin = 0.5 * (high - low) + 1e-6
    if x.min() < low - margin or x.max() > high + margin:
        notes.append(
            f"its numbers go from {x.min():.4g} to {x.max():.4g}, the training data's from {low:.4g} to {high:.4g}: "
            "scale them alike, or the answer means little"
        )
    return x, notes


def read_array(file: Path) -> tuple[np.ndarray, str]:
    """The array of an .npy file, or of an .npz file its x, its x_test or the only one there is, and its name."""
    held = read_arrays(file)
    if isinstance(held, np.ndarray):
        return held, "the array"
    name = next((name for name in ("x", "x_test") if name in held), None)
    if name is None and len(held) != 1:
        raise DataError(f"{file} must hold an array x, or one array alone, got {', '.join(held) or 'none'}")
    name = name or next(iter(held))
    return held[name], name


def shaped(array: np.ndarray, wanted: tuple[int, ...], dataset: Dataset) -> np.ndarray | None:
    """The array as (examples, *wanted), for one example or several, flat or as pictures; None where it is neither."""
    forms = [wanted, (math.prod(wanted),)]
    if dataset.picture is not None:
        forms += [dataset.picture, (*dataset.picture, 1)]
    for form in forms:
        if array.shape == form or (array.shape[1:] == form and len(array)):
            return array.reshape(-1, *wanted)
    return None


def tokens(where: str, x: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Whole numbers that the training data could have."""
    check_finite(where, x)
    low, high = int(dataset.train.x.min()), int(dataset.train.x.max())
    if (x != np.floor(x)).any() or x.min() < low or x.max() > high:
        raise DataError(f"{where}: must hold whole numbers from {low} to {high}, as the training data do")
    return x.astype(dataset.train.x.dtype)


# ------------------------------------------------------------------------------------------- pictures


def from_picture(file: Path, dataset: Dataset) -> tuple[np.ndarray, list[str]]:
    """A picture as the training data's: grey, on a dark background, of their size and in their range."""
    from PIL import Image, ImageOps

    wanted = dataset.train.x.shape[1:]
    if dataset.picture is None or math.prod(dataset.picture) != math.prod(wanted):
        raise DataError(
            f"{file}: {dataset.name} has no grey pictures but inputs of shape {wanted}: give them as .npy or .npz"
        )
    try:
        with Image.open(file) as opened:
            came = f"{opened.format} of {opened.width}×{opened.height}, {opened.mode}"
            picture = ImageOps.exif_transpose(opened)
            clear = picture.has_transparency_data
            if clear:
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
            grey = picture.convert("F" if picture.mode.startswith("I;16") or picture.mode in "IF" else "L")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{file} must be a picture (PNG, JPEG, …), .npy, .npz or .csv: {error}") from error
    pixels = np.asarray(grey, np.float32)
    if pixels.max() > 255:
        pixels = pixels * (255 / 65535)
    notes = [f"{file}: {came}" + (", transparent parts taken as white" if clear else "")]
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    background = float(np.median(border))
    if background > BRIGHT:
        pixels, background = 255 - pixels, 255 - background
        notes.append("inverted: its background is bright, that of the training data dark")
    height, width = dataset.picture
    if grey.width * height != grey.height * width:
        notes.append("background added at its sides")
    method = Image.Resampling.BOX if max(pixels.shape) > height else Image.Resampling.BILINEAR
    fill: Any = background  # Pillow takes a float for a picture of floats
    small = ImageOps.pad(Image.fromarray(pixels), (width, height), method, color=fill)
    low, high = float(dataset.train.x.min()), float(dataset.train.x.max())
    x = low + np.asarray(small, np.float32) / 255 * (high - low)
    notes.append(f"grey, {width}×{height}, from 0…255 to {low:g}…{high:g}")
    return x.reshape(1, *wanted), notes


# --------------------------------------------------------------------------------------------- tables


def prediction_table(prediction: Prediction) -> Table:
    """For one example its classes, likeliest first; for several a row each; for a regression the values."""
    outputs, classes, kind, *_ = prediction
    if classes is None:
        flat = outputs.reshape(len(outputs), -1)
        headings = ["example", *(f"value {i}" for i in range(flat.shape[1]))]
        return table_of(headings, 0, ([str(i), *(f"{value:.6g}" for value in row)] for i, row in enumerate(flat)))
    if len(outputs) == 1:
        [row] = outputs
        order = np.argsort(-row, kind="stable")[:SHOWN]
        return table_of(("class", kind), 0, ([prediction.called(i), number(row[i])] for i in order))
    rows = []
    for i, row in enumerate(outputs):
        first, *rest = np.argsort(-row, kind="stable")[:2]
        second = [prediction.called(rest[0]), number(row[rest[0]])] if rest else ["", ""]
        rows.append([str(i), prediction.called(first), number(row[first]), *second])
    return table_of(("example", "class", kind, "next", kind), 0, rows)


def number(value: float) -> str:
    """Four places."""
    return f"{value:.4f}"


def lines(prediction: Prediction) -> Sequence[str]:
    """The notes and, for one example, a line with its class."""
    said = list(prediction.notes)
    if prediction.classes is not None and len(prediction.classes) == 1:
        best = int(prediction.classes[0])
        said.append(f"class {prediction.called(best)} ({prediction.kind} {number(prediction.outputs[0][best])})")
    return said
