"""What may be mutated: the sites of a backward program, what stands at each, and what could stand there instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxnet.checking.diagnose import numeric
from jaxnet.checking.diagnose.tape import Looking, Op, Site, Tape
from jaxnet.checking.diagnose.words import Namer

Change = Callable[[Op, Sequence[Any], Looking], list[Any]]
Where = tuple[Site | None, int]


@dataclass(frozen=True)
class Mutant:
    """One small mistake: what happens at some sites instead, how simple it is, and how it is said.

    `graded(c)` is there where a number is to be fitted: "scale" gives a term the factor c (`changes` takes it away),
    "add" adds c times a donor to an operand (`changes` puts the donor in its place). `say(namer, c)` gives the words
    and the right equation. With `behind`, what changes is so for the backward pass alone.
    """

    key: tuple
    changes: Mapping[Site, Change]
    cost: float
    say: Callable[[Namer, float], tuple[str, str]]
    site: Site
    fit: str = ""
    graded: Callable[[float], Mapping[Site, Change]] | None = None
    behind: bool = False

    def gives(self, tape: Tape, c: float | None = None) -> dict[str, Any]:
        """The leaves that the mistake changes on a tape, with its number where it has one."""
        changes = self.changes if c is None or self.graded is None else self.graded(c)
        return tape.replay(changes, behind=self.behind)


class Donor(NamedTuple):
    """A value that could stand in another's place."""

    where: Where
    number: int


MERGES = {"add", "add_any", "sub", "concatenate"}


class Scene:
    """The live sites of a tape, each by its first instance, and the values that can be seen from there."""

    def __init__(self, tape: Tape):
        self.tape = tape
        self.first: dict[Site, int] = {site: min(at.values()) for site, at in tape.instances.items()}
        self.sites = [
            (site, tape.ops[k])
            for site, k in sorted(self.first.items(), key=lambda item: item[1])
            if tape.live[k] and any(tape.depends[i] for i in tape.ops[k].inputs)
        ]
        self.by_shape: dict[tuple[int, ...], list[tuple[int, Donor]]] = {}
        firsts = set(self.first.values())
        for n in (*tape.args.values(), *tape.cotangents):
            self._offer(-1, Donor((None, n), n))
        for k, op in enumerate(tape.ops):
            if k in firsts and op.name not in ("expand", "reshape", "broadcast_in_dim", "copy", "convert_element_type"):
                for j, n in enumerate(op.outputs):
                    self._offer(k, Donor((op.site, j), n))

    def _offer(self, k: int, donor: Donor) -> None:
        value = self.tape.values[donor.number]
        if numeric.is_float(value) and self.tape.depends[donor.number]:
            self.by_shape.setdefault(np.shape(value), []).append((k, donor))

    def linear(self) -> Iterator[tuple[Site, Op]]:
        """The sites that the cotangent passes, the last ones first."""
        tape = self.tape
        return ((site, op) for site, op in reversed(self.sites) if any(tape.linear[i] for i in op.inputs))

    def residual(self) -> Iterator[tuple[Site, Op]]:
        """The sites that it does not pass: what the backward pass multiplies it with."""
        tape = self.tape
        return ((site, op) for site, op in reversed(self.sites) if not any(tape.linear[i] for i in op.inputs))

    def donors(self, op: Op, operand: int, *, linear: bool, transposed: bool = False) -> Iterator[Donor]:
        """Values of the operand's shape that are known when the operation runs, the nearest first."""
        value = self.tape.values[operand]
        shape = np.shape(value)
        shape = (*shape[:-2], shape[-1], shape[-2]) if transposed else shape
        here, seen = self.first[op.site], [] if transposed else [value]
        for k, donor in reversed(self.by_shape.get(shape, [])):
            if k >= here or self.tape.linear[donor.number] is not linear:
                continue
            depth = len(self.tape.ops[k].frame) if k >= 0 else 0
            candidate = self.tape.values[self.here(donor, op)]
            if depth > len(op.frame) or not np.any(candidate):
                continue
            if any(candidate is v or np.array_equal(candidate, v) for v in seen):
                continue
            seen.append(candidate)
            yield Donor(donor.where, self.here(donor, op))

    def here(self, donor: Donor, op: Op) -> int:
        """The number of a donor in the step in which the operation runs; its first one where it has none there."""
        site, out = donor.where
        if site is None:
            return out
        at = self.tape.instances[site]
        k = at.get(op.frame[: len(next(iter(at)))])
        return donor.number if k is None else self.tape.ops[k].outputs[out]

    def split(self, op: Op) -> tuple[int, int] | None:
        """The positions of the operand that the cotangent reached and of the other, where there is one each."""
        if len(op.inputs) != 2:
            return None
        moving = [j for j, i in enumerate(op.inputs) if self.tape.linear[i]]
        return (moving[0], 1 - moving[0]) if len(moving) == 1 else None


def on_operand(j: int, function: Callable[[Op, Any, Looking], Any]) -> Change:
    """The operation with one operand changed."""
    return lambda op, ins, look: op.run([*ins[:j], function(op, ins[j], look), *ins[j + 1 :]])


def on_output(function: Callable[[Op, Any, Looking], Any]) -> Change:
    """The operation with its results changed."""
    return lambda op, ins, look: [function(op, out, look) for out in op.run(ins)]


def replaced(function: Callable[[Op, Sequence[Any], Looking], Any]) -> Change:
    """Something else in the operation's place, of the same shape."""

    def change(op, ins, look):
        out = function(op, ins, look)
        shape = np.shape(look.tape.values[op.outputs[0]])
        return [out if np.shape(out) == shape else np.broadcast_to(out, np.broadcast_shapes(np.shape(out), shape))]

    return change


def swapped(x: Any) -> Any:
    """The last two axes exchanged."""
    return np.swapaxes(x, -1, -2)


def shifted(x: Any, axis: int, by: int, *, circular: bool) -> Any:
    """x moved along an axis, with zeros coming in or the other end."""
    if circular:
        return np.roll(x, by, axis)
    out = np.zeros_like(x)
    n = x.shape[axis]
    source = [slice(None)] * x.ndim
    target = [slice(None)] * x.ndim
    source[axis] = slice(max(0, -by), n - max(0, by))
    target[axis] = slice(max(0, by), n - max(0, -by))
    out[tuple(target)] = x[tuple(source)]
    return out


def square(x: Any) -> bool:
    """Whether the last two axes can be exchanged in place, to another effect."""
    return np.ndim(x) >= 2 and np.shape(x)[-1] == np.shape(x)[-2] > 1


def planted(site: Site, kind: tuple, change: Change, cost: float, say: Callable) -> Mutant:
    """The mutant with one change at one site."""
    return Mutant((site, *kind), {site: change}, cost, say, site)


def says(op: Op, words: str):
    """Words in which {0} is the operation's first operand and {1} what it gives."""

    def say(namer, c):
        right = namer.operation(op, op.inputs, 6)[0]
        return words.format(*(namer.expr(i, 5) for i in op.inputs[:1]), right), right

    return say


def operand(site: Site, op: Op, j: int, kind: str, function: Callable[[Any], Any], words: str, cost: float) -> Mutant:
    """The mutant with one operand changed; in its words {0} is that operand."""

    def say(namer, c):
        right = namer.operation(op, op.inputs, 5)[0]
        name = namer.expr(op.inputs[j], 4).removesuffix(".T")
        return words.format(name if name.isidentifier() else f"[{name}]") + f" in {right}", right

    return planted(site, (kind, j), on_operand(j, lambda op, x, look: function(x)), cost, say)
