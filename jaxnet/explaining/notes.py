"""Written by hand, as no program knows it: the sentence beside an equation, its numbers, a few notations."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from jaxnet.explaining import expressions as ex
from jaxnet.explaining.expressions import Frozen
from jaxnet.explaining.kinds import is_activation, own_maker
from jaxnet.explaining.notation import Notation
from jaxnet.explaining.numbers import one
from jaxnet.explaining.observe import Item
from jaxnet.explaining.records import Record, Site
from jaxnet.explaining.source_lines import WrittenLine
from jaxnet.explaining.transcription import at
from jaxnet.factors import Factor, Outer
from jaxnet.layer import Layer
from jaxnet.layers.conv import Patches
from jaxnet.layers.embedding import Rows
from jaxnet.layers.windows import for_each_axis
from jaxnet.program.evaluate import quickly
from jaxnet.readings import product

# -------------------------------------------------------------------------------------- the sentence beside a line

BACK_IN_TIME = "from above, and from the step after it"
CONVOLVED = "over all places that the kernel sees at p"

REMARKS: dict[tuple[str, str], str] = {
    ("softmax", "dx"): "every a depends on every z of its row",
    ("dropout", "out"): "evaluation: nothing is dropped; while training x ⊙ m/(1−p), m 0 or 1",
    ("embedding", "out"): "a row of W for each token, as it stands",
    ("positional_embedding", "W"): "row t gets the error at t, rows beyond the sequence nothing",
    ("positional_embedding", "dx"): "a sum passes the error on",
    ("sinusoidal_positions", "out"): "s: sines and cosines of t, nothing to learn",
    ("rotary", "out"): "each pair turned by tθᵢ",
    ("rotary", "dx"): "turned back: here Rᵀ is R⁻¹",
    ("layer_norm", "g"): "ĝ: ∂C/∂x̂",
    ("group_norm", "mu"): "j: a group of channels, over all places",
    ("batch_norm", "sigma"): "evaluation: μ and v, the variance, are the population's, numbers like any others",
    ("batch_norm", "dx"): "while training μ and σ are the batch's own: then it loses its mean and its part along x̂",
    ("batch_norm in training", "mu"): "E: the mean over the examples i of the batch",
    ("batch_norm in training", "dx"): "every x moves μ and σ: so ∂C/∂x̂ loses its mean and its part along x̂",
    ("attention", "S"): "t: a query, s: a key; −∞ where t does not see s",
    ("attention", "P"): "softmax: each row sums to 1",
    ("attention", "turned"): "rotary positions: each pair turned by its position's angle, the error turned back",
    ("attention", "dS"): "softmax's Jacobian, row by row: each row sums to 0",
    ("attention", "dx"): "three ways back, by q, k and v, added",
    ("rnn", "d_h"): BACK_IN_TIME,
    ("lstm", "d_h"): BACK_IN_TIME,
    ("gru", "d_h"): "from above, by U, and by what of h stays",
    ("lstm", "z"): "gates i, f, g, o one after another",
    ("lstm", "c"): "kept by f, filled by i",
    ("lstm", "dc"): "along c it passes by f alone: no W between",
    ("lstm", "out"): "h₀ = c₀ = 0",
    ("rnn", "out"): "h₀ = 0",
    ("gru", "out"): "h₀ = 0",
    ("conv1d", "out"): CONVOLVED,
    ("conv2d", "out"): CONVOLVED,
    ("conv1d", "dx"): "a convolution again, the kernel flipped",
    ("conv2d", "dx"): "a convolution again, the kernel flipped",
    ("conv_transpose1d", "out"): "what falls on the same place is added",
    ("conv_transpose2d", "out"): "what falls on the same place is added",
    ("conv_transpose1d", "dx"): "a convolution: the same window, each Wₖ transposed",
    ("conv_transpose2d", "dx"): "a convolution: the same window, each Wₖ transposed",
    ("max_pool", "dx"): "to the winner alone",
    ("global_max_pool", "dx"): "to the winner alone",
    ("average_pool", "dx"): "spread evenly over the window",
    ("global_average_pool", "dx"): "spread evenly over all places",
    **{(layer, "U"): "one U at every step, so a sum over time" for layer in ("rnn", "lstm", "gru")},
}
"""By the maker of the layer, and by the line's gradient or variable."""


def remark_of(record: Record, name: str) -> str:
    """The sentence beside a line."""
    if name == "out" and record.kind == "leaf" and is_activation(record.layer):
        return units_off(record)
    training = " in training" if record.training else ""
    return REMARKS.get((record.word + training, name), "")


SHOWN_UNITS = 6


def units_off(of: Record) -> str:
    """Units of an activation that are off: zero, with zero slope, so that no error passes."""
    out = np.asarray(of.out)
    off = (out == 0) & (slope(of) == 0) if np.any(out == 0) else np.zeros(out.shape, bool)
    count = int(off.sum())
    if count == 0:
        return ""
    if out.ndim != 1:
        return f"{count:,} of {out.size:,} are off"
    if count == len(out):
        return "all units are off"
    if count > SHOWN_UNITS:
        return f"{count} of {len(out)} units are off"
    one = count == 1
    places = ", ".join(map(str, np.flatnonzero(off) + 1))
    return f"unit{'' if one else 's'} {places} {'is' if one else 'are'} off"


# ---------------------------------------------------------------------------------- numbers for a statement


def notes_of(record: Record, line: WrittenLine) -> tuple[str, ...]:
    """The lines below an equation."""
    if (of := NOTES.get((record.word, line.gives or line.name))) is not None:
        return (of(record, line),)
    told = line.gives == {"attention": "W_o", **dict.fromkeys(("rnn", "lstm", "gru"), "U")}.get(record.word, "W")
    return (
        many_paths(line.factor, "examples" if record.training else "positions")
        if line.factor is not None and (told or not record.word)
        else ()
    )


def sum_of(terms: Any, digits: int = 4) -> str:
    """.12 + .03 − .01 + … = .25."""
    terms = np.asarray(terms, np.float64).reshape(-1)
    terms = terms[np.argsort(-np.abs(terms), kind="stable")]
    texts = [one(float(each), digits) for each in terms[: len(terms) if len(terms) <= 4 else 3]]
    texts += ["…"] if len(terms) > 4 else []
    return f"{' + '.join(texts)} = {one(float(terms.sum()), digits)}".replace("+ −", "− ")


def many_paths(factor: Factor, places: str) -> tuple[str, ...]:
    """Why the gradient of a weight is a sum: it serves many positions, one path by each."""
    if isinstance(factor, Rows):
        return (rows_of(factor),)
    if isinstance(factor, Patches) and factor.groups == 1:
        with jax.enable_x64(True):
            factor = quickly(Patches.outer, (factor,))
    if not isinstance(factor, Outer) or np.ndim(factor.delta) < 2:
        return ()
    delta, a = (np.asarray(each).reshape(-1, np.shape(each)[-1]) for each in (factor.delta, factor.a))
    j, i = np.unravel_index(np.abs(delta.T @ a).argmax(), (delta.shape[1], a.shape[1]))
    said = f"a weight serves all {len(a)} {places}, one path by each"
    return (f"{said}; of the one with the largest gradient, the largest first: {sum_of(delta[:, j] * a[:, i])}",)


def rows_of(factor: Rows) -> str:
    """Which rows get an error, the one most often met among them."""
    tokens = np.asarray(factor.tokens).reshape(-1)
    delta = np.asarray(factor.delta).reshape(len(tokens), -1)
    ids, counts = np.unique(tokens, return_counts=True)
    most = int(ids[counts.argmax()])
    places = [int(i) + 1 for i in np.flatnonzero(tokens == most)]
    named = ", ".join(map(str, places[:4])) + (", …" if len(places) > 4 else "")
    return (
        f"{len(ids)} of {factor.rows} rows get an error, the others none; row {most} that of "
        f"position{'s' if len(places) > 1 else ''} {named}: {one(float(delta[tokens == most, 0].sum()))} in its first "
        "entry"
    )


def looks_at(record: Record, line: WrittenLine) -> str:
    """Where the last position of the first head looks."""
    row = line.value.reshape(-1, *line.value.shape[-2:])[0, -1]
    best = int(row.argmax())
    return f"in head 1 the last position takes most, {one(float(row[best]))} of the whole, from position {best + 1}"


def carried(record: Record, line: WrittenLine) -> str:
    """How the error's length changes back in time."""
    sizes = np.linalg.norm(line.value, axis=1)
    sizes = sizes if record.options.get("reverse") else sizes[::-1]
    said = ", ".join(one(float(each)) for each in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
    return f"back in time its length is {said} at the last, the middle and the first step"


def taken_off(record: Record, line: WrittenLine) -> str:
    """The part that is taken off the error, at the first position; nothing of it is left."""
    count = record.x.shape[-1]
    x, dx = (np.asarray(each, np.float64).reshape(-1, count)[0] for each in (record.x, record.dxs[0]))
    g = np.asarray(record.d_out, np.float64).reshape(-1, count)[0] * np.asarray(record.params["gamma"], np.float64)
    centred = record.word == "layer_norm"
    x_hat = (x - x.mean() if centred else x) / np.sqrt(((x - x.mean() * centred) ** 2).mean())
    along = f"{one(float((g * x_hat).mean()))} x̂"
    if not centred:
        return (
            f"stretching all x changes no x̂, so ĝ's part along x̂, {along}, is taken off: ⟨dx, x̂⟩ = {tiny(dx @ x_hat)}"
        )
    return (
        f"shifting or stretching all x changes no x̂, so ĝ's mean {one(float(g.mean()))} and its part along x̂, {along}, "
        f"are taken off: ⟨dx, 1⟩ = {tiny(dx.sum())}, ⟨dx, x̂⟩ = {tiny(dx @ x_hat)}"
    )


def tiny(value: Any) -> str:
    """0 but for ε and rounding: as a power of ten."""
    return "0" if value == 0 else f"{float(value):.0e}".replace("e-0", "e-").replace("-", "−")


NOTES: dict[tuple[str, str], Callable[[Record, WrittenLine], str]] = {
    ("attention", "P"): looks_at,
    **{(layer, "d_h"): carried for layer in ("rnn", "lstm", "gru")},
    **{(layer, "dx"): taken_off for layer in ("layer_norm", "rms_norm")},
}
"""By the maker, and by the line's gradient or variable."""

# ------------------------------------------------------------------------------------------------------- notations


class ByHand(Frozen):
    """Both equations of a layer whose source says them less well, and the lines below them."""

    out: tuple[ex.Expression, ex.Expression]
    dx: tuple[ex.Expression, ex.Expression]
    notes: tuple[str, ...] = ()
    back_notes: tuple[str, ...] = ()


def by_hand(site: Site) -> ByHand | None:
    """The equations of an activation, a pool, a rotation; None for a layer whose source says them."""
    record, layer = site.record, site.record.layer
    z, a, error, back = site.takes[0], site.gives, site.error, site.back[0]
    match record.word if record.kind == "leaf" else "":
        case "identity":
            return ByHand((a, z), (back, error))
        case "elementwise":
            of = ex.Call(named_function(layer), z)
            return ByHand((a, of), (back, ex.Product((error, ex.Call(prime(layer), z)), "⊙")))
        case "softmax" if np.ndim(record.out) == 1:  # the error times the whole Jacobian
            J, of = softmax_jacobian(a, site.notation), ex.Call(named_function(layer), z)
            return ByHand((a, of), (back, ex.Product((error, J) if site.notation.rows else (J, error))))
        case "rotary":  # pairs turned by their position, and turned back
            R = ex.Name("R", below="t")
            taken, gives, error, sent = (at(each, "t") for each in (z, a, error, back))
            return ByHand((gives, ex.Product((R, taken))), (sent, ex.Product((ex.Transposed(R), error))))
        case "max_pool" | "global_max_pool" | "average_pool":
            return pool(site)
    return None


def named_function(layer: Layer) -> ex.Name:
    """An activation's symbol: σ, relu, softmax."""
    name = layer.name.replace(" ", "_")
    return ex.Name("σ" if own_maker(layer) == "sigmoid" else name, key=name)


def prime(layer: Layer) -> ex.Name:
    """The symbol of its derivative."""
    name = named_function(layer)
    return ex.Name(f"{name.base}′", key=f"{name.key}'")


@lru_cache(maxsize=256)
def slope(of: Record | Item) -> np.ndarray:
    """g′ at an activation's input: its own backward of ones."""

    def at_ones(x, ones):
        return of.layer.backward(of.params, of.layer.forward(of.params, x)[1], ones, product)[0]

    return np.asarray(quickly(at_ones, (of.x, np.ones_like(of.out))))


def softmax_jacobian(a: ex.Name, notation: Notation) -> ex.Expression:
    """∂a/∂z of a softmax, diag(a) − a aᵀ: its own transpose."""
    return ex.Sum((ex.Call(ex.Name("diag"), a), ex.Minus(notation.outer(a, a))))


def pool(site: Site) -> ByHand:
    """The largest entry of a window, which gets the error; or the mean, whose error is spread evenly."""
    options, places, x = site.record.options, site.record.x.shape[:-1], np.asarray(site.record.x)
    window, stride, whole, place, position = places, places, True, "k", ""
    if "window" in options:
        window = for_each_axis("window", options["window"], len(places))
        stride = window if options["stride"] is None else for_each_axis("stride", options["stride"], len(places))
        whole, position = options["padding"] == "VALID", "p"
        place = f"{'' if stride[0] == 1 else stride[0]}p+k" if whole and len(set(stride)) == 1 else "p,k"
    taken, gives, sent = at(site.takes[0], place), at(site.gives, position), at(site.back[0], place)
    error, d, n = at(site.error, position), float(np.asarray(site.record.d_out).reshape(-1)[0]), math.prod(window)
    if "max" in site.record.word:
        first = x[tuple(slice(length) for length in window)][..., 0]
        won = ",".join(str(int(i) + 1) for i in np.unravel_index(first.argmax(), first.shape))
        said = f"({won}) won and gets all of {one(d)}, the others nothing"
        right, back = ex.Call(ex.Name("max", below="k"), taken), ex.Product((error, ex.Name("[k won]")))
    else:
        count = ex.Number(str(n) if whole else "nₚ")
        said = f"each of its {n} places gets {one(d)}/{n} = {one(d / n)}"
        right, back = ex.Fraction(ex.BigSum("k", taken), count), ex.Fraction(error, count)
        if any(step < length for step, length in zip(stride, window, strict=True)):
            back = ex.BigSum("p", back)
    return ByHand((gives, right), (sent, back), back_notes=(f"channel 1, first window: {said}",) if whole else ())
