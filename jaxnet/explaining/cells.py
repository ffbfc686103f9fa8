"""Arrays on a page: cells that can be written anew, long ones shortened, large ones with a heat map beside.

A cell knows the array and the entry it shows (`data-a`, `data-ix`), so that the page's script may put another value in.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from markupsafe import Markup

from jaxnet.explaining.numbers import LONGEST, array_lines, entries, one, shape

SHORT = 4  # entries that stay in one line
WIDEST = 8  # rows or columns of a matrix that is shown whole
MOST_PIXELS = 192  # a side of a heat map; of larger arrays each tile is shown by its largest entry
GAP = 1  # pixels between the tiles of a montage
BELOW, ABOVE = (37, 110, 190), (206, 70, 50)
LEVELS = 31  # of each colour in a heat map: with fewer bits a page is half as large


def array(
    name: str, values: np.ndarray, digits: int, *, least: int = 2, indices: Sequence[int] = (), turned: bool = False
) -> Markup:
    """An array as cells, or where it is long its ends and a heat map.

    name: its name in the script. indices: which entries of that array `values` are, where they are not all of them.
    turned: `values` is that array transposed.
    """
    values = np.asarray(values)
    if values.ndim == 0:
        return single(name, float(values), digits)
    if turned:
        indices = np.arange(values.size).reshape(values.shape[::-1]).T.reshape(-1).tolist()
    if values.ndim == 1 and len(values) <= LONGEST:
        return group("vec", name, values, digits, least, indices)
    if values.ndim == 2 and max(values.shape) <= WIDEST:
        return group("mat", name, values, digits, least, indices)
    return large(name, values, digits)


def group(kind: str, name: str, values: np.ndarray, digits: int, least: int, indices: Sequence[int]) -> Markup:
    """Cells of one format."""
    texts, power = entries(values, digits, least)
    cells = Markup(" ").join(Markup('<span class="c">{}</span>').format(text) for text in texts)
    if kind == "vec":
        cells = Markup("(") + cells + Markup(")")
    columns = Markup(' style="--columns:{}"').format(values.shape[1]) if kind == "mat" else Markup("")
    kind += " short" if kind == "vec" and len(texts) <= SHORT else ""
    extra = Markup(' data-l="{}"').format(least) if least != 2 else Markup("")
    if indices:
        extra += Markup(' data-ix="{}"').format(",".join(map(str, indices)))
    return Markup(
        '<span class="{}" data-a="{}" data-d="{}"{}><span class="pow">{}</span><span class="cells"{}>{}</span></span>'
    ).format(kind, name, digits, extra, power, columns, cells)


def single(name: str, value: float, digits: int) -> Markup:
    """One number."""
    return Markup('<span class="n" data-n="{}" data-d="{}">{}</span>').format(name, digits, one(value, digits))


def large(name: str, values: np.ndarray, digits: int) -> Markup:
    """A long array: its ends as text, and a heat map of all entries."""
    lines = [line.replace("‖·‖ ", "‖·‖\N{NO-BREAK SPACE}") for line in array_lines(values, digits, 60)]
    text = Markup("\n").join(lines)
    return Markup('<span class="large"><span class="ends">{}</span>{}</span>').format(text, heat(name, values))


# ---------------------------------------------------------------------------------------------- heat maps


def heat(name: str, values: np.ndarray) -> Markup:
    """A heat map as an image: blue below zero, nothing at zero, red above, as strong as the entry is large."""
    wide = np.asarray(values, np.float64)
    pixels = montage(np.where(np.isfinite(wide), wide, 0))
    top = float(np.abs(pixels).max(initial=0))
    height, width = pixels.shape
    scale = max(1, min(8, 256 // max(width, height)))
    width, height = width * scale, max(height * scale, 10)
    said = f"heat map of {shape(np.shape(values))} numbers, the largest {one(top)}"
    return Markup(
        '<img class="heat" data-h="{}" src="{}" style="--w:{};--h:{}" alt="{}" title="{}">'
    ).format(name, data_uri(pixels, top), width, height, said, said)  # fmt: skip


def montage(values: np.ndarray) -> np.ndarray:
    """An array as a picture: a vector as a line, (height, width, channels) as its channels side by side."""
    if values.ndim <= 1:
        return reduced(values.reshape(1, -1))
    if values.ndim == 2:
        return reduced(values)
    if values.ndim == 3:
        return tiled(np.moveaxis(values, -1, 0))
    if values.ndim == 4:  # W of a convolution, (out, height, width, in)
        return tiled(np.moveaxis(values, -1, 1).reshape(-1, *values.shape[1:3]))
    return reduced(values.reshape(values.shape[0], -1))


def tiled(tiles: np.ndarray) -> np.ndarray:
    """Pictures (n, height, width) in rows beside each other, at most as many as there is room for."""
    tiles = np.stack([reduced(each) for each in tiles[:64]])
    n, height, width = tiles.shape
    columns = max(1, min(n, max(math.ceil(math.sqrt(n * 2)), 8), (256 + GAP) // (width + GAP)))
    rows = math.ceil(n / columns)
    page = np.zeros((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP))
    for i, each in enumerate(tiles):
        top, left = (i // columns) * (height + GAP), (i % columns) * (width + GAP)
        page[top : top + height, left : left + width] = each
    return page


def reduced(matrix: np.ndarray) -> np.ndarray:
    """A matrix of at most `MOST_PIXELS` a side, of each tile the entry of the largest size."""
    for axis in (0, 1):
        step = -(-matrix.shape[axis] // MOST_PIXELS)
        if step > 1:
            starts = range(0, matrix.shape[axis], step)
            high = np.maximum.reduceat(matrix, starts, axis)
            low = np.minimum.reduceat(matrix, starts, axis)
            matrix = np.where(high >= -low, high, low)
    return matrix


def data_uri(pixels: np.ndarray, top: float) -> str:
    """A PNG whose transparency is the size of each entry, so that it lies on light paper and on dark."""
    share = pixels / (top or 1.0)
    levels = LEVELS + np.round(LEVELS * np.sign(share) * np.abs(share) ** 0.7)
    return encoded(levels.astype(np.uint8).tobytes(), pixels.shape[1], pixels.shape[0])


@lru_cache(maxsize=512)
def encoded(levels: bytes, width: int, height: int) -> str:
    """Levels from most below zero to most above as PNG in a data URI; once for all notations."""
    from PIL import Image

    image, all_levels, buffer = Image.frombytes("P", (width, height), levels), range(2 * LEVELS + 1), io.BytesIO()
    image.putpalette([part for level in all_levels for part in (BELOW if level < LEVELS else ABOVE)])
    opaque = bytes(255 * abs(level - LEVELS) // LEVELS for level in all_levels)
    image.save(buffer, format="PNG", optimize=True, transparency=opaque)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
