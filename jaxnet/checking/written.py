"""An expression as text: its shape, the layout of its axes, and its form without a sign."""

from __future__ import annotations

import ast
import itertools
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from jaxnet.checking.edits import bracketed
from jaxnet.program import Graph

SAME = 1e-9


class CannotWriteError(ValueError):
    """A value that has no name, and that no expression of the grammar gives."""


@dataclass(frozen=True)
class Written:
    """An expression whose value, broadcast, is the one that is meant; `shape` is the expression's own.

    `base`: the expression before axes of length 1 are removed or added; `kept`: with the axes kept, for a sum.
    `value`: that of a number; `count`: how many entries a sum has.
    """

    text: str
    shape: tuple[int, ...] = ()
    base: Written | None = None
    kept: Written | None = None
    value: float | None = None
    count: float = 0.0

    def laid_out(self, wanted: tuple[int, ...]) -> Written | None:
        """The same with axes of length 1 added or dropped; None where that does not give the shape."""
        if self.shape == wanted:
            return self
        if self.kept is not None and self.kept.shape == wanted:
            return self.kept
        base = self.base or self
        text = indexed(base.text, base.shape, wanted)
        return None if text is None else Written(text, wanted, base, count=self.count)

    def as_mean(self) -> Written:
        """A sum divided by how many entries it has."""
        text = ".mean(".join(self.text.rsplit(".sum(", 1))
        return replace(
            self,
            text=text,
            count=0.0,
            base=None if self.base is None else self.base.as_mean(),
            kept=None if self.kept is None else self.kept.as_mean(),
        )


@dataclass(frozen=True)
class OtherShape:
    """Both programs at another shape: the shapes of the author's values, and autodiff's constants, by number."""

    shapes: dict[int, tuple[int, ...]]
    constants: dict[int, Any]

    @classmethod
    def of(cls, author: Graph, reference: Graph) -> OtherShape:
        """Two traced programs."""
        shapes = {
            number: tuple(getattr(variable.aval, "shape", ()))
            for operation in author.everything
            for number, variable in zip(operation.outputs, operation.eqn.outvars, strict=True)
        }
        return cls(shapes, {number: v for number, v in reference.all_constants.items() if not np.ndim(v)})


def indexed(text: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> str | None:
    """An array with axes of length 1 added or dropped; None where that does not give the shape."""
    if shape == wanted:
        return text
    i, parts = 0, []
    for n in wanted:
        while i < len(shape) and shape[i] == 1 != n:
            parts.append("0")
            i += 1
        if i < len(shape) and shape[i] == n:
            parts.append(":")
            i += 1
        elif n == 1:
            parts.append("None")
        else:
            return None
    if any(n != 1 for n in shape[i:]):
        return None
    parts += ["0"] * (len(shape) - i)
    while parts and parts[-1] == ":":
        parts.pop()
    leading = len(list(itertools.takewhile(lambda part: part == ":", parts)))
    if leading > 1:
        parts = ["...", *parts[leading:]]
    return f"{bracketed(text)}[{', '.join(parts)}]" if parts else text


def plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the axes of length 1."""
    return tuple(n for n in shape if n != 1)


@lru_cache(maxsize=10_000)
def factor(text: str) -> str:
    """An expression as a factor."""
    node = ast.parse(text, mode="eval").body
    plain = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div | ast.Pow)
    return text if plain else bracketed(text)


@lru_cache(maxsize=10_000)
def term(text: str) -> str:
    """An expression after a minus."""
    node = ast.parse(text, mode="eval").body
    return text if isinstance(node, ast.BinOp) and not isinstance(node.op, ast.Add | ast.Sub) else bracketed(text)


def negated(text: str) -> str:
    """An expression with the other sign."""
    bare = text.removeprefix("-")
    return bare if text.startswith("-") and factor(bare) == bare else f"-{factor(text)}"


def total(value: Any) -> float:
    """A number that tells a value from others, whatever its layout and sign."""
    value = np.asarray(value)
    return float(np.sum(np.abs(value), where=np.isfinite(value))) if value.dtype.kind in "fbiu" else np.nan


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays are one value; NaN is none."""
    scale = float(np.max(np.abs(other), initial=0.0)) if other.dtype.kind != "b" else 1.0
    return bool(np.all(np.abs(1.0 * one - 1.0 * other) <= SAME * scale)) if np.isfinite(scale) else False
