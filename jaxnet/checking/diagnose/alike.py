"""One mistake at every place of its kind: a loop in Python runs one line many times, and is wrong in all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from jaxnet.checking.diagnose.operators import structural
from jaxnet.checking.diagnose.scene import Mutant, Scene
from jaxnet.checking.diagnose.strangers import passed

MOST = 400
"""Places of one kind that are still changed together."""


def everywhere(scene: Scene) -> Iterator[Mutant]:
    """Each small mistake at all places where its line runs, and at all places of the whole that have its form."""
    found = list(chain(structural(scene), passed(scene)))
    for by_line in (True, False):
        groups: dict[tuple, list[Mutant]] = {}
        for mutant in found:
            groups.setdefault(_kind(scene, mutant, by_line), []).append(mutant)
        for kind, group in groups.items():
            sites = {mutant.site for mutant in group}
            if 1 < len(sites) <= MOST and len(sites) == len(group):
                yield _together(kind, group)


def _kind(scene: Scene, mutant: Mutant, by_line: bool) -> tuple:
    """The line and the operation at which a mutant is planted, and what it does there."""
    op = scene.tape.ops[scene.first[mutant.site]]
    what: tuple[Any, ...] = mutant.key[1:]
    if what[0] == "branch":
        # which branch the error takes says how a comparison was written, and nothing of its mask
        what = ("branch", scene.tape.linear[op.inputs[what[1]]])
    return (op.line if by_line else None, op.name, *map(str, what))


def _together(kind: tuple, group: Iterable[Mutant]) -> Mutant:
    group = list(group)
    first = min(group, key=lambda mutant: mutant.cost)
    changes = {site: change for mutant in group for site, change in mutant.changes.items()}

    def say(namer, c):
        cause, equation = first.say(namer, 0.0)
        where = "wherever its line runs" if kind[0] is not None else "at all places of this form"
        return f"{cause}; so at all {len(group)} places, {where}", equation

    return Mutant((first.site, "everywhere", kind), changes, first.cost + 0.3, say, first.site)
