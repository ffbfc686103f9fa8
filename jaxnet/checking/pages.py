"""Reports as one HTML page that needs nothing else: the tables, and heat maps of expected, got and difference."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib import resources

import numpy as np

from jaxnet.checking.compare import Leaf
from jaxnet.checking.report import Report
from jaxnet.checking.table import short, sized

MOST_PIXELS = 256  # a side of a heat map; larger arrays are shown by the largest entry of each tile


def page(reports: Sequence[Report]) -> str:
    """A self-contained page of one or several reports."""
    from jinja2 import Environment

    wrong = sum(not report.ok for report in reports)
    title = (
        f"{len(reports)} backward passes, {wrong} wrong" if len(reports) != 1 else f"Backward pass of {reports[0].name}"
    )
    template = Environment(autoescape=True, trim_blocks=True).from_string(
        resources.files("jaxnet.checking").joinpath("page.html").read_text(encoding="utf-8")
    )
    return template.render(title=title, reports=reports, maps=heat_maps, sized=sized, short=short)


def heat_maps(leaf: Leaf) -> list[tuple[str, str, float]]:
    """Name, image and range of the maps of expected, got and difference; the first two share a range."""
    assert leaf.arrays is not None
    got, expected = (np.nan_to_num(np.real(array)) for array in leaf.arrays)
    top = max(float(np.abs(got).max(initial=0)), float(np.abs(expected).max(initial=0)))
    off = float(np.abs(got - expected).max(initial=0))
    return [
        ("expected", image(expected, top), top),
        ("got", image(got, top), top),
        ("difference", image(got - expected, off), off),
    ]


def as_matrix(array: np.ndarray) -> np.ndarray:
    """An array as a matrix of at most `MOST_PIXELS` a side: leading axes stacked, of each tile the largest entry."""
    matrix = array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array.reshape(1, -1)
    for axis in (0, 1):
        step = -(-matrix.shape[axis] // MOST_PIXELS)
        if step > 1:
            pad = [(0, 0), (0, 0)]
            pad[axis] = (0, -matrix.shape[axis] % step)
            tiles = np.stack(
                np.split(np.pad(matrix, pad), range(step, matrix.shape[axis] + pad[axis][1], step), axis), axis
            )
            inner = axis + 1
            where = np.expand_dims(np.abs(tiles).argmax(inner), inner)
            matrix = np.take_along_axis(tiles, where, inner).squeeze(inner)
    return matrix


def image(array: np.ndarray, top: float) -> str:
    """A heat map as a PNG in a data URI: blue below zero, white at zero, red above."""
    from PIL import Image

    matrix = as_matrix(array) / (top or 1.0)
    low, high = np.clip(-matrix, 0, 1), np.clip(matrix, 0, 1)
    below, above = np.array([33, 102, 172]), np.array([178, 24, 43])
    colors = 255 - low[..., None] * (255 - below) - high[..., None] * (255 - above)
    buffer = io.BytesIO()
    Image.fromarray(colors.astype(np.uint8), "RGB").save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
