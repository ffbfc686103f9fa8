"""A rule's program beside autodiff's, on the same numbers: where the rule is wrong, and the effect of a change.

Both are traced in float64 and run in NumPy at several points. Every expression of the author's source is a place with
a value. After a change only the operations that depend on it run again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from jaxnet.checking.execution import Execution, Inputs, close, near, runs
from jaxnet.checking.marks import Mark, marked, marked_by, seeing
from jaxnet.checking.primal import Primal, primal_of
from jaxnet.checking.subject import Subject
from jaxnet.program import Graph, Operation
from jaxnet.program.numpy_evaluation import NumpyEvaluation, Values

TOLERANCE = 1e-7  # relative to a gradient's largest entry, in float64
MOST_ENTRIES = 400  # of a value whose whole effect on the gradients is taken


@dataclass(eq=False)
class MarkedPlace:
    """An expression of the author's source: its mark, and the operations that mark its value each time it ran."""

    mark: Mark
    path: str = ""
    operations: list[Operation] = field(default_factory=list)

    @property
    def number(self) -> int:
        """The number of its first value."""
        return self.operations[0].outputs[0]


@dataclass(frozen=True, eq=False)
class Atom:
    """A value that an expression may use: its text, and its place, or its value at each point."""

    text: str
    shape: tuple[int, ...]
    place: MarkedPlace | None = None
    fixed: tuple = ()


@dataclass(eq=False)
class Aligned(Execution):
    """A rule's program at several points, beside the right outputs there and autodiff's program.

    - `places`: the expressions that have a value, in the order in which they ran.
    - `seen`: the constants that expressions gave, by the number of the mark.
    - `wrong`: which outputs are wrong.
    """

    subject: Subject
    points: list[Inputs]
    right: list[list[np.ndarray]]
    tolerance: float
    reference: Execution
    primal: Primal
    marks: list[Mark] = field(default_factory=list)
    seen: dict[int, Any] = field(default_factory=dict)

    @cached_property
    def wrong(self) -> tuple[int, ...]:
        """The outputs that are wrong at some point."""
        pairs = [
            [close(a, b, self.tolerance) for a, b in zip(got, right, strict=True)]
            for got, right in zip(self.outputs, self.right, strict=True)
        ]
        return tuple(k for k in range(len(self.graph.outputs)) if not all(each[k] for each in pairs))

    @cached_property
    def places(self) -> dict[tuple[int, str], MarkedPlace]:
        """By mark and path of the leaf, where the values of an expression stand."""
        found: dict[tuple[int, str], MarkedPlace] = {}
        for operation in self.graph.everything:
            mark = marked_by(operation)
            if mark is not None and operation.outputs[0] in self.values[0]:  # not in a branch that does not run
                place = found.setdefault(mark, MarkedPlace(self.marks[mark[0]], mark[1]))
                place.operations.append(operation)
        return found

    def number(self, atom: Atom, operation: Operation) -> int | None:
        """The number of an atom's value for an operation; None for one that stands in no program of the rule."""
        if atom.place is None:
            return None
        number = self.seen_at(atom.place, operation)
        return atom.place.number if number is None else number  # a variable of a statement that comes later

    @cached_property
    def given(self) -> dict[int, int]:
        """By the number of a marked value, that of the value that the mark was given."""
        return {o.outputs[0]: o.inputs[0] for o in self.graph.everything if marked_by(o) is not None}

    def seen_at(self, place: MarkedPlace, operation: Operation) -> int | None:
        """The number of a place's value as an operation would see it: the last before it, in the loops around it."""
        around = self.graph.around[operation.outputs[0]]
        for each in reversed(place.operations):
            inside = self.graph.around[each.outputs[0]]
            if each.number < operation.number and around[: len(inside)] == inside:
                return each.outputs[0]
        return None


class Effect:
    """The effect of a change at a place on the outputs that depend on it."""

    def __init__(self, aligned: Aligned, place: MarkedPlace, goal: Iterable[int]):
        self.aligned, self.place, self.goal = aligned, place, frozenset(goal)
        numbers = [operation.outputs[0] for operation in place.operations]
        self.changed = aligned.dependents(numbers)
        reached = [k for k, number in enumerate(aligned.graph.outputs) if number in self.changed]
        self.outputs = [k for k in reached if k in self.goal or k not in aligned.wrong]
        self.alone = len(self.outputs) == len(reached)  # no other wrong output depends on the place
        self.marks = {operation.number for operation in place.operations}
        operations = tuple(filter(self.touched, aligned.graph.operations))
        self.kept = {operation.outputs[0] for operation in place.operations}
        made = {number for operation in operations for number in operation.outputs}
        whole = self.without_marks(Graph((), aligned.graph.outputs, {}, operations))
        needed = dict.fromkeys(self.free(whole) - made)
        self.graph = Graph(tuple(needed), whole.outputs, {}, whole.operations)

    def touched(self, operation: Operation) -> bool:
        """Whether an operation depends on the place, or has it inside."""
        return bool(
            operation.number in self.marks
            or self.changed.intersection(operation.inputs)
            or any(each.number in self.marks for body in operation.bodies for each in body.everything)
        )

    def number(self, number: int) -> int:
        """The number of a value with every mark but the place's taken away."""
        given = self.aligned.given
        while number in given and number not in self.kept:
            number = given[number]
        return number

    def without_marks(self, graph: Graph) -> Graph:
        """A graph with the place's marks alone."""
        operations = []
        for each in graph.operations:
            if each.outputs and each.outputs[0] in self.aligned.given and each.outputs[0] not in self.kept:
                continue
            bodies = tuple(map(self.without_marks, each.bodies))
            operations.append(replace(each, inputs=tuple(map(self.number, each.inputs)), bodies=bodies))
        return Graph(graph.inputs, tuple(map(self.number, graph.outputs)), graph.constants, tuple(operations))

    def free(self, graph: Graph) -> set[int]:
        """The numbers that a graph's operations and outputs use and do not make."""
        made = {number for operation in graph.operations for number in operation.outputs}
        used = {number for operation in graph.operations for number in operation.inputs}
        return (used | set(graph.outputs)) - made

    def run(self, point: int, changes: dict[int, Callable]) -> list[np.ndarray]:
        """The outputs that depend on the place, with changes."""
        values = self.aligned.values[point]
        with_changes = NumpyEvaluation(values, changes)
        outs = with_changes.run(self.graph, [values[number] for number in self.graph.inputs])
        return [np.asarray(outs[k]) for k in self.outputs]

    def seen(self, atom: Atom, operation: Operation) -> int | None:
        """The number of an atom's value for an operation, in this graph."""
        number = self.aligned.number(atom, operation)
        return None if number is None else self.number(number)

    def calls(self, atoms: Sequence[Atom], graft: dict[int, Callable]) -> list[list[np.ndarray]]:
        """At the first point, each time that the expression runs: its value, that with a graft, the atoms' values."""
        found: list[list[np.ndarray]] = []

        def noting(operation: Operation) -> Callable:
            numbers = [self.seen(atom, operation) for atom in atoms]

            def note(values: Values) -> np.ndarray:
                v = values[operation.outputs[0]]
                new = graft[operation.outputs[0]](values) if graft else v
                others = [
                    atom.fixed[0] if number is None else values[number]
                    for atom, number in zip(atoms, numbers, strict=True)
                ]
                found.append([np.asarray(each) for each in (v, new, *others)])
                return new

            return note

        self.run(0, {each.outputs[0]: noting(each) for each in self.place.operations})
        return found

    def given(self, point: int, value: Callable[[Any, Any], Any], array: np.ndarray) -> dict[int, Callable]:
        """The change that gives the place an array, or in a loop the array's entry for each step.

        `value(v, u)`: the new value, from the old one v and the array's entry u.
        """
        (operation,) = self.place.operations
        number = operation.outputs[0]
        once = not self.aligned.loops(number)
        steps = itertools.repeat(array) if once else iter(self.aligned.as_run(number, array))
        return {number: lambda values: value(values[number], next(steps))}

    def at(self, point: int, vector: np.ndarray) -> np.ndarray:
        """The outputs as one vector, with other values at the place, one after another for each time that it runs."""
        start = 0

        def given(operation: Operation) -> Callable:
            def take(values: Values) -> np.ndarray:
                nonlocal start
                v = values[operation.outputs[0]]
                start += v.size
                return vector[start - v.size : start].reshape(v.shape)

            return take

        outs = self.run(point, {each.outputs[0]: given(each) for each in self.place.operations})
        return np.concatenate([out.ravel() for out in outs])

    def wanted(self, point: int) -> np.ndarray:
        """The right outputs as one vector."""
        return np.concatenate([self.aligned.right[point][k].ravel() for k in self.outputs])

    @cached_property
    def weight(self) -> np.ndarray:
        """One over the size of each output, for each entry of the vector."""
        parts = [self.aligned.right[0][k] for k in self.outputs]
        scales = [float(np.max(np.abs(part), initial=0.0)) or 1.0 for part in parts]
        return np.concatenate([np.full(part.size, 1 / scale) for part, scale in zip(parts, scales, strict=True)])

    @cached_property
    def feeds_itself(self) -> bool:
        """Whether the place's value depends on its value at an earlier step or call."""
        return any(number in self.changed for each in self.place.operations for number in each.inputs)

    @cached_property
    def linear(self) -> tuple[np.ndarray, np.ndarray] | bool:
        """A and b, where the outputs are right for exactly the values c with A (c − v) = b.

        False where no value makes the outputs right; True where that is not known: the outputs are not linear in the
        value, or it is large.
        """
        v = np.concatenate([call[0].ravel() for call in self.calls((), {})])
        if v.size > MOST_ENTRIES or v.dtype.kind != "f" or not np.all(np.isfinite(v)):
            return True
        rng = np.random.default_rng(0)
        one, other = (rng.standard_normal(v.shape) for _ in range(2))
        here, first, second, both = (self.at(0, v + d) for d in (0 * v, one, other, one + other))
        twice = self.at(0, v + 2 * one)
        weight = self.weight
        if not np.all(np.isfinite(first)):
            return True
        size = float(np.max(np.abs(weight * (first - here)), initial=0.0)) + 1e-30
        bends = np.abs(weight * np.stack([both - first - second + here, twice - 2 * first + here]))
        if not np.all(bends <= 1e-9 * size + 1e-12):
            return True
        J = np.stack([weight * (self.at(0, v + step) - here) for step in np.eye(v.size)], 1)
        D = weight * (self.wanted(0) - here)
        if not np.all(np.isfinite(J)) or not np.all(np.isfinite(D)):
            return True
        U, S, Vt = np.linalg.svd(J, full_matrices=False)
        rank = int(np.sum(1e-9 * S[0] < S)) if S.size and S[0] else 0
        U, S, Vt = U[:, :rank], S[:rank], Vt[:rank]
        b = U.T @ D
        if np.max(np.abs(D - U @ b), initial=0.0) > 1e-6:
            return False
        return S[:, None] * Vt, b

    def rights(self, point: int, changes: dict[int, Callable]) -> bool:
        """Whether a change makes the outputs of the goal right, and leaves the right ones right."""
        right, tolerance = self.aligned.right[point], self.aligned.tolerance
        return all(
            close(out, right[k], tolerance) for k, out in zip(self.outputs, self.run(point, changes), strict=True)
        )


def aligned(subject: Subject, points: Sequence[tuple[tuple, Any]], functions: list) -> Aligned:
    """A rule and its reference at some points, in the precision that is switched on.

    - `functions`: those of the rule whose expressions are its places.

    Where the reference is not finite at a later point, all later ones are near the first.
    Raises `ValueError` where a gradient is missing or has another shape, and whatever the user's functions raise.
    """
    inputs = [Inputs(subject, *point) for point in points]
    rule, reference = runs(subject)
    marks = marked(functions)
    with seeing(functions, marks) as seen:
        graph = inputs[0].trace(rule)
    program, flat = inputs[0].trace(reference), [each.flat for each in inputs]
    other = Execution.of(program, flat)
    finite = [all(np.all(np.isfinite(out)) for out in outs) for outs in other.outputs]
    if finite[0] and not all(finite):
        inputs = [Inputs(subject, *point) for point in near(subject, points)]
        flat = [each.flat for each in inputs]
        other = Execution.of(program, flat)
    of_rule = Execution.of(graph, flat)
    rough = any(v.dtype != np.float64 for vs in of_rule.outputs for v in vs if v.dtype.kind == "f")
    return Aligned(
        graph, flat, of_rule.values, of_rule.outputs, subject, inputs, other.outputs, 1e-3 if rough else TOLERANCE,
        other, primal_of(subject, inputs), marks.marks, seen.constants,
    )  # fmt: skip
