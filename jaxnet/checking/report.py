"""The report of a check: as a table that names the leaf, the entry, the layer and the cause; as JSON; as a page."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from typing import Any

import numpy as np

from jaxnet.checking.compare import Leaf
from jaxnet.checking.patches import Repair
from jaxnet.checking.planting import Cause
from jaxnet.checking.properties import STRUCTURE, Property

MOST_ROWS = 40
MOST_PIXELS = 256  # a side of a heat map; larger arrays are shown by the largest entry of each tile


@dataclass(frozen=True)
class Report:
    """The result of a check. `ok` says whether the backward pass is right; printing gives the table.

    - `leaves`: one verdict for each output and each gradient (path, ok, error, index, got, expected, allowed, cosine).
    - `layer`: the first wrong layer; `cause`: the mistake, in words.
    - `repair`: the change of the author's source that makes it right.
    - `planted`: where there is no repair, the mistake in autodiff's program that gives the same gradients.
    - `inside`: the reports of custom rules found inside.
    """

    name: str
    where: str
    seed: int
    leaves: tuple[Leaf, ...] = ()
    properties: tuple[Property, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    passed_over: dict[str, str] = field(default_factory=dict)
    layer: str = ""
    planted: Cause | None = None
    repair: Repair | None = None
    blind: tuple[str, ...] | None = None
    inside: tuple[Report, ...] = ()
    reference: str = "autodiff of its primal"
    again: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    curve: tuple[tuple[float, float], ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, here or inside."""
        here = all(leaf.ok for leaf in self.leaves) and all(h.ok is not False for h in self.properties)
        return here and not self.problems and all(report.ok for report in self.inside)

    @property
    def wrong(self) -> tuple[Leaf, ...]:
        """The leaves that are wrong."""
        return tuple(leaf for leaf in self.leaves if not leaf.ok)

    @property
    def verdict(self) -> str:
        """The verdict: "ok", "imprecise" (right in float64, but precision is lost), or "WRONG"."""
        lost = self.wrong and all(leaf.verdict == "imprecise" for leaf in self.wrong)
        return "ok" if self.ok else "imprecise" if lost and replace(self, leaves=()).ok else "WRONG"

    @property
    def cause(self) -> str:
        """Why it is wrong, in words; empty where it is right."""
        if self.problems:
            return self.problems[0]
        if self.repair is not None and self.repair.patch:
            return self.repair.cause
        if (structure := next((h for h in self.properties if h.name == STRUCTURE and h.ok is False), None)) is not None:
            return structure.words
        if self.planted is not None and self.planted.exact:
            return self.planted.words
        if self.repair is not None:
            return self.repair.cause
        inside = [report for report in self.inside if not report.ok]
        if inside and (self.planted is None or len(inside) > 1):
            return "; ".join(f"{report.name}: {report.cause}" if len(inside) > 1 else report.cause for report in inside)
        if (failed := next((h for h in self.properties if h.ok is False), None)) and not self.wrong:
            return f"{failed.name}: {failed.words}"
        if self.wrong:
            found = [self.planted.words] if self.planted is not None else []
            explained = () if self.planted is None else self.planted.leaves
            left = [leaf for leaf in self.wrong if leaf.path not in explained]
            found += [words for leaf in left if (words := known(leaf))]
            return "; ".join([*found, *unknown([leaf for leaf in left if not known(leaf)])])
        return ""

    @property
    def proof(self) -> str:
        """How sure the cause is; empty where the wrong gradients are described and not explained."""
        if self.repair is not None and self.repair.patch:
            return "exact: the patched source was run, and every gradient is right, on fresh draws too"
        if self.planted is not None and self.planted.exact:
            return "exact: autodiff's gradient with this mistake is the rule's, on fresh draws too"
        if self.repair is not None:
            return "a guess: a gradient is right with autodiff's value at this line, and no edit of it was found"
        if self.planted is not None:
            return "a guess: this mistake gives some of the wrong gradients, not all"
        proofs = [report.proof for report in self.inside if not report.ok]
        return next((proof for proof in proofs if not proof.startswith("exact")), proofs[0] if proofs else "")

    @property
    def exact(self) -> bool:
        """Whether the cause is proved: it mends the gradients on fresh draws, or gives the rule's own."""
        return self.proof.startswith("exact")

    @property
    def line(self) -> str:
        """The line to change, or the primal's line that the mistake belongs to."""
        if self.repair is not None:
            return f"{os.path.basename(self.repair.file)}:{self.repair.line}"
        return "" if self.planted is None else self.planted.where

    def __str__(self) -> str:
        return table(self)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "name": self.name,
            "ok": self.ok,
            "verdict": self.verdict,
            "at": self.where,
            "seed": self.seed,
            "reference": self.reference,
            "layer": self.layer,
            "cause": self.cause,
            "exact": self.exact,
            "proof": self.proof,
            "line": self.line,
            "repair": None if self.repair is None else {k: v for k, v in asdict(self.repair).items() if k != "mended"},
            "others": [] if self.planted is None else list(self.planted.others),
            "leaves": [leaf_dict(leaf) for leaf in self.leaves],
            "passed_over": self.passed_over,
            "properties": [{"name": h.name, "ok": h.ok, "words": h.words} for h in self.properties],
            "problems": list(self.problems),
            "notes": list(self.notes),
            "cannot_tell": None if self.blind is None else list(self.blind),
            "inside": [report.to_dict() for report in self.inside],
            "seconds": {phase: round(spent, 3) for phase, spent in self.seconds.items()},
        }

    def to_json(self) -> str:
        """The report as JSON: per leaf its path, verdict, largest relative error and worst entry."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def to_html(self) -> str:
        """The report as one self-contained page, with a heat map of expected, got and difference for each leaf."""
        return page([self])


def number(value: complex) -> float | str:
    """A number that JSON can hold."""
    if isinstance(value, complex) and value.imag:
        return str(value)
    real = float(value.real)
    return real if np.isfinite(real) else str(real)


def leaf_dict(leaf: Leaf) -> dict[str, Any]:
    """A leaf's verdict as plain values."""
    return {
        "path": leaf.path,
        "verdict": leaf.verdict,
        "ok": leaf.ok,
        "forward": leaf.forward,
        "error": number(leaf.error),
        "allowed": number(leaf.allowed),
        "cosine": number(leaf.cosine),
        "index": list(leaf.index),
        "got": number(leaf.got),
        "expected": number(leaf.expected),
        "pattern": leaf.pattern,
        "at": leaf.dtype,
    }


def known(leaf: Leaf) -> str:
    """A wrong leaf by itself: it is zero, a multiple, transposed; empty where it is none of these."""
    if leaf.verdict == "imprecise":
        return f"{leaf.path} loses precision: right in float64, here {leaf.pattern} (error {sized(leaf.error)})"
    if leaf.arrays is not None:
        got, expected = leaf.arrays
        if not np.any(got):
            return f"{leaf.path} is zero"
        if got.ndim == 2 and got.shape[0] == got.shape[1] and np.allclose(got.T, expected, 1e-4, leaf.allowed):
            return f"{leaf.path} is transposed"
    many = leaf.arrays is None or leaf.arrays[1].size > 1  # one number is some multiple of any other
    if np.isfinite(leaf.ratio) and leaf.cosine > 0.9999 and abs(leaf.ratio - 1) > 1e-3 and (many or whole(leaf.ratio)):
        return f"{leaf.path} is {leaf.ratio:.4g} times what it should be"
    if leaf.cosine < -0.9999 and (many or whole(leaf.ratio)):
        return f"{leaf.path} has the wrong sign" + ("" if abs(leaf.ratio + 1) < 1e-3 else f", {-leaf.ratio:.4g} times")
    return ""


def whole(ratio: float) -> bool:
    """Whether a ratio or its inverse is a whole number."""
    return ratio != 0 and any(abs(each - round(each)) < 1e-3 * abs(each) for each in (ratio, 1 / ratio))


def unknown(leaves: list[Leaf]) -> list[str]:
    """The wrong leaves without a cause, in one remark: of a single one its angle and its worst entry."""
    if len(leaves) != 1:
        more = f" and {len(leaves) - 2} more" if len(leaves) > 2 else ""
        paths = ", ".join(leaf.path for leaf in leaves[:2])
        return [f"not known for {paths}{more}: the table has the worst entry of each"] if leaves else []
    [leaf] = leaves
    index = f"[{','.join(map(str, leaf.index))}]"
    return [
        f"not known: {leaf.path} has cosine {leaf.cosine:.3f} with what is expected; "
        f"worst at {index}, {leaf.got:.4g} for {leaf.expected:.4g}; {leaf.pattern}"
    ]


def table(report: Report) -> str:
    """The report's table and the remarks under it."""
    lines = [f"{report.name}: backward {report.verdict}".ljust(32) + f"   {report.where}   seed {report.seed}"]
    if report.leaves:
        lines += rows(report.leaves)
    lines.append("")
    for width, part in zip((8, 14), remarks(report), strict=True):
        for heading, words in part:
            first, *more = words.splitlines()
            lines += [f"{heading:{width}}{first}", *(" " * width + line for line in more)]
    for inner in report.inside:
        lines += ["", *("  " + line for line in (str(inner) if not inner.ok else summary(inner)).splitlines())]
    return "\n".join(lines).rstrip() + "\n"


def remarks(report: Report) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Under the table of leaves, in text and on the page: why it is wrong, then all else, as (heading, words)."""
    inside = [problem for inner in report.inside for problem in inner.problems]
    why = [("PROBLEM", problem) for problem in report.problems if problem not in inside]
    why += [("FAILED", f"{h.name}: {h.words}") for h in report.properties if h.ok is False]
    told = *report.problems, *(h.words for h in report.properties)
    if not report.ok:
        repair = report.repair
        patches = list(dict.fromkeys([repair.patch, *repair.equal])) if repair is not None else []
        others = report.planted.others if report.planted is not None and not any(patches) else ()
        why += [("layer", report.layer), ("cause", "" if report.cause in told else report.cause)]
        why += [*(("or", other) for other in others), ("line", report.line), ("patch", "".join(patches[:1]))]
        why += [("", report.proof), *(("or", patch) for patch in patches[1:])]
    held = ", ".join(h.name + (f" ({h.words})" if h.words else "") for h in report.properties if h.ok)
    blind = None if report.blind is None else clipped(report.blind, 6) or "nothing: every mutant differs here"
    rest = [
        ("also checked", held),
        *(("not asked", f"{h.name}: {h.words}") for h in report.properties if h.ok is None),
        ("cannot tell", blind),
        ("not checked", ", ".join(f"{path} ({why})" for path, why in report.passed_over.items())),
        ("reference", "" if report.reference == "autodiff of its primal" else report.reference),
        *(("note", note) for note in report.notes),
        ("step, change", ", ".join(f"{h:.0e} {c:.0e}" for h, c in report.curve)),
        ("to repeat", report.again),
    ]
    return [row for row in why if row[1]], [row for row in rest if row[1]]


def rows(leaves: tuple[Leaf, ...]) -> list[str]:
    """A line for each leaf; of many right ones a count."""
    shown = [leaf for leaf in leaves if not leaf.ok or leaf.verdict != "ok"]
    right = [leaf for leaf in leaves if leaf.verdict == "ok"]
    kept = {id(leaf) for leaf in [*shown[:MOST_ROWS], *right[: max(0, MOST_ROWS - len(shown))]]}
    width = max([10, *(len(leaf.path) for leaf in leaves if id(leaf) in kept)]) + 2
    lines = [f"  {'':{width}}{'error':9}{'allowed':9}{'cosine':8}{'worst':11}{'got':11}{'expected':11}".rstrip()]
    lines += [row(leaf, width) for leaf in leaves if id(leaf) in kept]
    if hidden := len(leaves) - len(kept):
        lines.append(f"  and {hidden} more leaves, {sum(not leaf.ok for leaf in leaves if id(leaf) not in kept)} wrong")
    return lines


def row(leaf: Leaf, width: int) -> str:
    """One leaf."""
    index = f"[{','.join(map(str, leaf.index))}]" if leaf.index else "[]"
    differs = leaf.verdict != "ok"
    cosine = f"{leaf.cosine:.3f}".replace("0.", ".", 1) if leaf.cosine < 0.9995 else "1"
    words = (
        leaf.verdict
        + (f"  {leaf.pattern}" if leaf.pattern else "")
        + (f"  at {leaf.dtype}" if leaf.dtype and differs else "")
    )
    if leaf.arrays is None:  # there is nothing to compare
        return f"  {leaf.path:{width}}{'':50}{words}"
    values = f"{short(leaf.got):11}{short(leaf.expected):11}" if differs else f"{'':22}"
    sizes = f"{sized(leaf.error):9}{sized(leaf.allowed):9}{cosine:8}"
    return f"  {leaf.path:{width}}{sizes}{index if differs else '':11}{values}{words}"


def sized(value: float) -> str:
    """A size: 0, or with one digit after the point."""
    return "0" if value == 0 else f"{value:.0e}" if value < 1e-2 else f"{value:.1e}"


def short(value: complex) -> str:
    """A number in four digits."""
    if isinstance(value, complex) and value.imag:
        return f"{value:.3g}"
    return f"{value.real:.4g}"


def clipped(words: tuple[str, ...], most: int, length: int = 160) -> str:
    """The first few of several remarks, none of them long; how many more there are."""
    shown = [each if len(each) <= length else each[: length - 1] + "…" for each in words[:most]]
    more = [f"and {len(words) - most} more"] if len(words) > most else []
    return "; ".join([*shown, *more])


def summary(report: Report) -> str:
    """A right report in one line."""
    worst = max((leaf.error for leaf in report.leaves if not leaf.forward), default=0.0)
    allowed = max((leaf.allowed for leaf in report.leaves if not leaf.forward), default=0.0)
    warned = "".join(f"   {note}" for note in report.notes if note.startswith("WARNING"))
    return f"{report.name}: ok   {report.where}   error {sized(worst)}, allowed {sized(allowed)}{warned}"


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
    return template.render(
        title=title, reports=reports, maps=heat_maps, axes=axes, remarks=remarks, sized=sized, short=short
    )


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


def axes(shape: tuple[int, ...]) -> tuple[str, str]:
    """The rows and the columns of a heat map, in words."""
    if len(shape) < 2:
        return "", f"entries 0 to {shape[0] - 1}" if shape else "one number"
    down = "axis 0" if len(shape) == 2 else f"axes 0 to {len(shape) - 2}, one after another"
    return f"{down}: 0 to {int(np.prod(shape[:-1])) - 1}", f"axis {len(shape) - 1}: 0 to {shape[-1] - 1}"


def as_matrix(array: np.ndarray) -> np.ndarray:
    """An array as a matrix of at most `MOST_PIXELS` a side: leading axes stacked, of each tile the largest entry."""
    matrix = array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array.reshape(1, -1)
    rows, columns = (max(1, -(-n // MOST_PIXELS)) for n in matrix.shape)
    padded = np.pad(matrix, [(0, -matrix.shape[0] % rows), (0, -matrix.shape[1] % columns)])
    high, wide = padded.shape[0] // rows, padded.shape[1] // columns
    tiles = padded.reshape(high, rows, wide, columns).swapaxes(1, 2).reshape(high, wide, rows * columns)
    return np.take_along_axis(tiles, np.abs(tiles).argmax(-1)[..., None], -1)[..., 0]


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
