"""The pictures of a page: an input, the rows of the first W, a convolution's window, attention's matrices.

Their numbers go into the page once, as the bytes of float32 arrays; the page's script draws them and computes the
products that it shows.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxnet.explaining.expressions import Expression, Frozen
from jaxnet.explaining.lines import Chain, inside
from jaxnet.explaining.numbering import NumberedLayer
from jaxnet.explaining.records import Record
from jaxnet.explaining.source_lines import recorded
from jaxnet.layers.conv import Patches

MOST_NUMBERS = 60_000  # on one page
MOST_ROWS = 32  # of W
MOST_POSITIONS = 32  # of a sequence, whose matrices are shown
MOST_TAPS = 7  # a side of a kernel


@dataclass(frozen=True)
class InputKind:
    """The kind of an input. picture: its (height, width); characters: token i is the i-th of these."""

    picture: tuple[int, int] | None = None
    characters: str | None = None


class PictureOf(Frozen):
    """A figure of a layer of the chain and the record inside it; data: the arrays that the script draws, by name."""

    kind: str
    item: int
    record: int
    data: dict[str, Any]


@dataclass
class Pictures:
    """The figures of a page, and the arrays that they show."""

    figures: list[PictureOf] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def put(self, kind: str, item: int, record: int, arrays: dict[str, Any], **data: Any) -> None:
        """Adds a figure, unless its numbers are too many."""
        new = {f"{name}.{item}.{record}": np.asarray(each, np.float32) for name, each in arrays.items()}
        if sum(each.size for each in (*self.arrays.values(), *new.values())) <= MOST_NUMBERS:
            self.arrays |= new
            data |= {"arrays": dict(zip(arrays, new, strict=True))}
            self.figures.append(PictureOf(kind, item, record, data))

    def encoded(self) -> dict[str, Any]:
        """For the script: of each array its shape and, in base64, its bytes."""
        arrays = {
            name: [each.shape, base64.b64encode(each.astype("<f4").tobytes()).decode()]
            for name, each in self.arrays.items()
        }
        return {"arrays": arrays, "figures": [{"kind": each.kind, **each.data} for each in self.figures]}


def pictures_of(chain: Chain, kind: InputKind) -> Pictures:
    """The pictures of a network at one example."""
    found, x = Pictures(), chain.observed.x
    sides = picture_sides(x, kind)
    if sides is not None:
        found.put("input", -1, 0, {"x": x.reshape(sides)})
    for place in chain.places:
        if place.kind == "dense" and place.index == 0 and sides is not None and x.ndim == 1 and sides[2] == 1:
            rows = rows_of(place)
            found.put("rows", 0, 0, rows, sides=sides[:2], shown=len(rows["W"]), of=len(place.item.out))
        for n, record in enumerate(inside(chain, place).records):
            for figure, arrays, data in figures_of(record, x, kind):
                found.put(figure, place.index, n, arrays, **data)
    return found


def picture_sides(x: np.ndarray, kind: InputKind) -> tuple[int, int, int] | None:
    """(height, width, channels) of an input that is a picture."""
    if kind.picture is not None and x.size % (kind.picture[0] * kind.picture[1]) == 0:
        return (*kind.picture, x.size // (kind.picture[0] * kind.picture[1]))
    return x.shape if x.ndim == 3 and x.shape[-1] in (1, 3) and np.issubdtype(x.dtype, np.floating) else None


def rows_of(place: NumberedLayer) -> dict[str, np.ndarray]:
    """The first rows of W, with their products with the input and the errors there."""
    item, most = place.item, slice(MOST_ROWS)
    found = {"W": item.params["W"][most], "z": item.out[most], "delta": item.d_out[most]}
    return found | ({"b": item.params["b"][most]} if "b" in item.params else {})


Found = tuple[str, dict[str, Any], dict[str, Any]]


def figures_of(record: Record, x: np.ndarray, kind: InputKind) -> Iterator[Found]:
    """The figures of a record: kind, arrays and data."""
    recording = recorded(record) if record.kind == "leaf" and record.d_out is not None else None
    if recording is None or record.training:
        return
    for factor in recording.factors.values():
        if isinstance(factor, Patches) and factor.groups == 1 and not factor.transposed and not record.positions:
            yield from convolution(record, factor)
    values = {name: recording.values[ref] for ref, name in recording.names.items() if ref in recording.values}
    if record.word == "attention" and {"P", "dS"} <= values.keys():
        yield attention(record, values["P"], values["dS"], x, kind)


def convolution(record: Record, factor: Patches) -> Iterator[Found]:
    """A convolution's window, over an image, or a sequence as an image of one row."""
    window, lead = factor.window, (1,) * (2 - len(factor.window.kernel))
    if len(window.kernel) > 2 or max(window.kernel) > MOST_TAPS:
        return
    W, d_out, dx = (np.asarray(each) for each in (record.params["W"], record.d_out, record.dxs[0]))
    arrays = {"a": record.x.reshape(*lead, *record.x.shape), "z": np.reshape(record.out, (*lead, *d_out.shape)),
              "W": W.reshape(len(W), *lead, *W.shape[1:]), "delta": d_out.reshape(*lead, *d_out.shape)}  # fmt: skip
    arrays |= {"b": record.params["b"]} if "b" in record.params else {}
    arrays |= {"da": dx.reshape(*lead, *dx.shape)} if record.dxs[0] is not None else {}
    zeros = (0,) * len(lead)
    yield "window", arrays, {
        "stride": (*lead, *window.stride), "dilation": (*lead, *window.dilation),
        "before": (*zeros, *(low for low, _ in window.padding)),
    }  # fmt: skip


def attention(record: Record, P: np.ndarray, dS: np.ndarray, x: np.ndarray, kind: InputKind) -> Found:
    """Attention's P and ∂C/∂S of each head, queries as rows and keys as columns, with the text's characters."""
    arrays = {name: of.reshape(-1, *of.shape[-2:])[:, :MOST_POSITIONS, :MOST_POSITIONS]
              for name, of in (("P", P), ("dS", dS))}  # fmt: skip
    count = P.shape[-1]
    labels = [str(i + 1) for i in range(count)]
    if kind.characters is not None and x.shape == (count,):
        labels = [kind.characters[token] for token in x]
    return "attention", arrays, {"labels": labels[:MOST_POSITIONS], "of": count}


def symbols_of(chain: Chain, figure: PictureOf) -> dict[str, Expression]:
    """The symbols of a figure's values."""
    if figure.item < 0:
        return {"x": chain.notation.a(0)}
    place, notation = chain.places[figure.item], chain.notation
    within, n = inside(chain, place), figure.record
    number = within.number(n)
    P, S = (notation.name_of(name, number) for name in "PS")
    taken = within.records[n].takes[0]
    return {
        "W": notation.param("W", number), "z": within.gives(n), "delta": within.error(n), "a": within.gives(taken),
        "da": within.error(taken), "P": P, "dS": notation.partial(S),
        "gradient": notation.gradient(notation.param("W", number)),
    }  # fmt: skip
