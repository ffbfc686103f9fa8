"""What is asked of a diagnosis, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Explanation:
    """One cause that explains some wrong leaves, with its evidence."""

    cause: str
    equation: str
    where: str
    leaves: tuple[str, ...]
    residual: float
    exact: bool
    evidence: str


@dataclass(frozen=True)
class Diagnosis:
    """The best explanation, those that fit equally, and what is known where none fits."""

    best: Explanation | None
    others: tuple[Explanation, ...]
    tried: int
    seconds: float
    known: str


@dataclass(frozen=True)
class Problem:
    """A rule found wrong: the reference's primal, the rule, where it was seen, and how to draw anew.

    `draw(seed)` gives fresh (args, cotangent) of the same shapes, `redraw(seed)` of another; None where there is none.
    `wrong` are `keystr` paths into the tuple of arguments, such as "[0]['W']"; `tolerance` is relative.
    """

    primal: Callable[..., Any]
    backward: Callable[[tuple, Any], tuple]
    args: tuple
    cotangent: Any
    draw: Callable[[int], tuple[tuple, Any]] | None
    redraw: Callable[[int], tuple[tuple, Any]] | None
    wrong: tuple[str, ...]
    tolerance: float
