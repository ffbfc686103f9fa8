"""The report of one check: a table that names the leaf, the entry, the layer and the cause."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxnet.checking.compare import Leaf
from jaxnet.checking.held import Held


@dataclass(frozen=True)
class Report:
    """What a check found. `ok` says whether the backward pass is right; printing gives the table.

    `leaves`: one verdict for each output and each gradient (path, ok, error, index, got, expected, allowed, cosine).
    `layer`, `cause`, `equation`: the first wrong layer, why, and the equation mended; empty where nothing is wrong or
    nothing is known. `inside`: the reports of custom rules found inside.
    """

    name: str
    where: str
    seed: int
    leaves: tuple[Leaf, ...] = ()
    held: tuple[Held, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    passed_over: dict[str, str] = field(default_factory=dict)
    layer: str = ""
    diagnosis: Any = None
    blind: tuple[str, ...] | None = None
    inside: tuple[Report, ...] = ()
    reference: str = "autodiff of its primal"
    again: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    curve: tuple[tuple[float, float], ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, here or inside."""
        here = all(leaf.ok for leaf in self.leaves) and all(h.ok is not False for h in self.held)
        return here and not self.problems and all(report.ok for report in self.inside)

    @property
    def wrong(self) -> tuple[Leaf, ...]:
        """The leaves that are wrong."""
        return tuple(leaf for leaf in self.leaves if not leaf.ok)

    @property
    def best(self) -> Any:
        """The best explanation, or None."""
        return None if self.diagnosis is None else self.diagnosis.best

    @property
    def cause(self) -> str:
        """Why it is wrong, in words; empty where it is right."""
        if self.problems:
            return self.problems[0]
        if self.best is not None:
            return self.best.cause
        if (failed := next((h for h in self.held if h.ok is False), None)) and not self.wrong:
            return f"{failed.name}: {failed.words}"
        if self.diagnosis is not None and self.diagnosis.known:
            return self.diagnosis.known
        if self.wrong:
            return known(self.wrong)
        return next((report.cause for report in self.inside if not report.ok), "")

    @property
    def equation(self) -> str:
        """The equation mended, where it is known."""
        if self.best is not None:
            return self.best.equation
        return next((report.equation for report in self.inside if not report.ok and report.equation), "")

    def __str__(self) -> str:
        from jaxnet.checking.table import table

        return table(self)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "name": self.name,
            "ok": self.ok,
            "at": self.where,
            "seed": self.seed,
            "reference": self.reference,
            "layer": self.layer,
            "cause": self.cause,
            "equation": self.equation,
            "line": "" if self.best is None else self.best.where,
            "others": [] if self.diagnosis is None else [other.cause for other in self.diagnosis.others],
            "leaves": [leaf_dict(leaf) for leaf in self.leaves],
            "passed_over": self.passed_over,
            "held": [{"name": h.name, "ok": h.ok, "words": h.words} for h in self.held],
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
        from jaxnet.checking.pages import page

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


def known(wrong: tuple[Leaf, ...]) -> str:
    """What is known of wrong leaves when no explanation fits."""
    leaf = max(wrong, key=lambda each: each.error)
    if np.isfinite(leaf.ratio) and leaf.cosine > 0.9999 and abs(leaf.ratio - 1) > 1e-3:
        return f"{leaf.path} is {leaf.ratio:.4g} times what it should be"
    if leaf.cosine < -0.9999:
        return f"{leaf.path} has the wrong sign, {abs(leaf.ratio):.4g} times as long"
    index = f"[{','.join(map(str, leaf.index))}]"
    return (
        f"not known: {leaf.path} has cosine {leaf.cosine:.3f} with what is expected; "
        f"worst at {index}, {leaf.got:.4g} for {leaf.expected:.4g}; {leaf.pattern}"
    )
