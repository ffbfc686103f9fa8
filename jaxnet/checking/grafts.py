"""Autodiff's own values, written in the author's names, to stand in the place of an expression.

Autodiff's program runs on the same numbers as the rule's. Each of its values is looked up among those that a place has
names for. A value without a name is written as its operation, applied to that operation's inputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxnet.checking.alignment import Atom
from jaxnet.checking.edits import Scope
from jaxnet.checking.writer import Writer
from jaxnet.checking.written import (
    OtherShape,
)


def writer_at(scope: Scope, values: Sequence[dict[int, Any]], other: OtherShape | None) -> Writer:
    """The writer for a place of the author's source; `values` are the author's, with the place's own mended."""
    aligned, place = scope.aligned, scope.place
    steps = aligned.steps(place.number)

    def value(atom: Atom, point: int) -> np.ndarray | None:
        number = aligned.number(atom, place.operations[0])
        if number is None:
            found, inside = np.asarray(atom.fixed[point]), False
        elif number not in values[point]:
            return None
        else:
            found, inside = np.asarray(values[point][number]), bool(aligned.loops(number))
        if steps and not inside:
            return np.broadcast_to(found, (steps, *found.shape))
        return found if bool(steps) == inside else None

    names = []
    for atom in [*scope.atoms, *scope.borrowed, *scope.integers]:
        found = [value(atom, point) for point in range(len(values))]
        if all(each is not None for each in found):
            names.append((atom.text, tuple(atom.shape), found))
    modules = place.mark.source.modules
    lax = next((text if m is jax.lax else f"{text}.lax" for text, m in modules.items() if m in (jax, jax.lax)), "")
    lax = lax or ("" if "jax" in modules else "jax.lax")  # the patch imports it
    sizes = sizes_in(scope, other) if other is not None else []
    return Writer(aligned.reference, names, scope.numbers, sizes, other, steps, scope.jnp, lax)


def sizes_in(scope: Scope, other: OtherShape) -> list[tuple[str, float, float]]:
    """Sizes of the variables and products of them: text, size here, size at the other shape."""
    found: dict[tuple[float, float], str] = {}
    for text, atom, axis in scope.sizes:
        there = None if atom.place is None else other.shapes.get(atom.place.number)
        if there is not None and len(there) == len(atom.shape):
            found.setdefault((atom.shape[axis], there[axis]), text)
    for count in (2, 3):
        for some in itertools.combinations(list(found.items())[:8], count):
            n, m = (float(np.prod(each)) for each in zip(*(pair for pair, _ in some), strict=True))
            found.setdefault((n, m), " * ".join(text for _, text in some))
    return [(text, *pair) for pair, text in found.items()]
