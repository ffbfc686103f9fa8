"""A possible cause, whatever it was found by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxnet.checking.diagnose.points import Point
from jaxnet.checking.diagnose.sizes import Name
from jaxnet.checking.diagnose.source import NOWHERE, Line
from jaxnet.checking.diagnose.words import Namer


@dataclass(frozen=True)
class Candidate:
    """A possible cause: what it would give at any point, how simple it is, and how it is said."""

    key: tuple
    cost: float
    predict: Callable[[Point], Mapping[str, Any]]
    say: Callable[[Namer], tuple[str, str]]
    line: Line = NOWHERE
    named: Named | None = None

    def confirmed(self, points: Sequence[Point]) -> Candidate:
        """The candidate with those names of its constant that hold at these points too."""
        return self if self.named is None else self.named.narrowed(self.named.holding(points))


@dataclass(frozen=True)
class Named:
    """A constant with its possible names: `best` is its value at a point, `narrowed` the candidate with fewer."""

    names: tuple[Name, ...]
    best: Callable[[Point], float]
    narrowed: Callable[[tuple[Name, ...]], Candidate]

    def holding(self, points: Sequence[Point]) -> tuple[Name, ...]:
        """The names that are worth the constant at all these points; all of them where none is.

        A plain number that is does not need a size for its name.
        """

        def holds(name: Name, point: Point) -> bool:
            return abs(name.value(point.args, point.cotangent) - self.best(point)) <= 1e-6 * abs(self.best(point))

        found = tuple(n for n in self.names if all(holds(n, p) for p in points)) or self.names
        return tuple(n for n in found if n.plain) or found
