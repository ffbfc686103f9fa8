"""A rule's program beside autodiff's, on the same numbers: where the rule is wrong, and the effect of a change.

Both are traced in float64 and run in NumPy at several points. Every expression of the author's source is a place with
a value. A change there is run through what depends on it, and nothing else.
"""

from __future__ import annotations

import ast
import copy
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.checking import author
from jaxnet.checking.author import Mark
from jaxnet.checking.rules import differentiated, flat_gradients, pushed_forward
from jaxnet.checking.subject import Subject, leaves_of, on_device
from jaxnet.program import Graph, Operation, graph_of
from jaxnet.program.dependencies import Uses, dependents, passed_in, uses
from jaxnet.program.numpy_evaluation import NumpyEvaluation, Values, host

TOLERANCE = 1e-7  # relative to a gradient's largest entry, in float64
MOST_FUNCTIONS = 3  # of the primal, itself first
MOST_ENTRIES = 400  # of a value whose whole effect on the gradients is taken


@dataclass(frozen=True)
class Inputs:
    """Arguments and cotangent as flat arrays, and back."""

    subject: Subject
    args: tuple
    d_out: Any

    @cached_property
    def flat(self) -> list[np.ndarray]:
        """All arrays."""
        leaves = leaves_of(self.args, self.subject.fixed)
        return [host(leaf) for leaf in (*leaves.values, *leaves.rest, *self.seeds)]

    @cached_property
    def seeds(self) -> list:
        """The cotangent's arrays; for a rule of tangents, the tangents."""
        leaves = jax.tree.leaves(self.d_out)
        return [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]

    def outputs(self, args: tuple, out: Any, grads: Any) -> list:
        """The outputs and gradients that a rule gives at some arguments. Raises `ValueError` where one is missing."""
        outs = [leaf for leaf in jax.tree.leaves(out) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        if isinstance(self.subject.custom, jax.custom_jvp):
            return outs + [leaf for leaf in jax.tree.leaves(grads) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        found, problems = flat_gradients(leaves_of(args, self.subject.fixed), grads)
        if problems:
            raise ValueError(problems[0])
        return [*outs, *found]

    def called(self, run: Callable) -> list[np.ndarray]:
        """What a rule gives here, called as it is."""
        return [np.asarray(each) for each in self.outputs(self.args, *run(self.args, self.d_out))]

    def trace(self, run: Callable) -> Graph:
        """The program (arrays) -> outputs and gradients."""
        leaves = leaves_of(self.args, self.subject.fixed)
        n, m = len(leaves.values), len(leaves.rest)
        seeds, tree = jax.tree.flatten(self.d_out)

        def function(*flat):
            given = iter(flat[n + m :])
            d_out = [next(given) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf for leaf in seeds]
            args = leaves.tree(flat[:n], flat[n : n + m])
            return self.outputs(args, *run(args, jax.tree.unflatten(tree, d_out)))

        return graph_of(jax.make_jaxpr(function)(*self.flat))


def runs(subject: Subject) -> tuple[Callable, Callable]:
    """The rule and the reference, (args, cotangent) -> out, gradients; those of a `custom_jvp` give tangents."""
    if isinstance(subject.custom, jax.custom_jvp):
        return pushed_forward(subject.custom, subject.fixed), pushed_forward(subject.primal, subject.fixed)
    if subject.declared is not None:
        declared = subject.declared
        return subject.run, lambda args, d_out: (subject.primal(*args), declared(args, d_out))
    return subject.run, differentiated(subject.primal, subject.fixed)


def seeded(subject: Subject, points: Sequence[tuple]) -> list[tuple]:
    """Points: arguments, and a cotangent or, for a rule of tangents, random tangents."""
    if not isinstance(subject.custom, jax.custom_jvp):
        return list(points)
    rng = np.random.default_rng(0)

    def tangents(args: tuple) -> tuple:
        values = leaves_of(args, subject.fixed).values
        return tuple(on_device(rng.standard_normal(value.shape), value.dtype) for value in values)

    return [(args, tangents(args)) for args, _ in points]


@dataclass(eq=False)
class Execution:
    """A program run at several points: its inputs, its values by number, its outputs.

    Values inside a loop are stacked over its steps.
    """

    graph: Graph
    flat: list[list[np.ndarray]]
    values: list[Values]
    outputs: list[list[np.ndarray]]

    @classmethod
    def of(cls, graph: Graph, flat: Iterable[list]) -> Execution:
        """A program at some inputs."""
        execution = cls(graph, list(flat), [], [])
        for each in execution.flat:
            evaluation = NumpyEvaluation()
            execution.outputs.append([np.asarray(out) for out in evaluation.run(graph, each)])
            execution.values.append(evaluation.values)
        return execution

    def changed(self, point: int, changes: dict[int, Callable]) -> Values:
        """All values at a point, with changes."""
        evaluation = NumpyEvaluation(changes=changes)
        evaluation.keeping = True
        evaluation.run(self.graph, self.flat[point])
        return evaluation.values

    @cached_property
    def everything(self) -> tuple[Operation, ...]:
        """Every operation."""
        return tuple(self.graph.everything())

    @cached_property
    def made(self) -> dict[int, tuple[Operation, int]]:
        """By a value's number, the operation that gives it, and which of its results it is."""
        return {number: (each, k) for each in self.everything for k, number in enumerate(each.outputs)}

    @cached_property
    def constants(self) -> dict[int, Any]:
        """The constants, those of inner programs included."""
        graphs = [self.graph, *(body for operation in self.everything for body in operation.bodies)]
        return {number: value for graph in graphs for number, value in graph.constants.items()}

    @cached_property
    def around(self) -> dict[int, tuple[tuple[Operation, int], ...]]:
        """By a value's number, the operations that it stands in, from the outside, and in which of their bodies."""
        found: dict[int, tuple] = {}

        def walk(graph: Graph, around: tuple) -> None:
            found.update(dict.fromkeys(graph.inputs, around))
            for operation in graph.operations:
                found.update(dict.fromkeys(operation.outputs, around))
                for k, body in enumerate(operation.bodies):
                    walk(body, (*around, (operation, k)))

        walk(self.graph, ())
        return found

    def loops(self, number: int) -> tuple[Operation, ...]:
        """The loops that a value stands in, from the outside."""
        return tuple(each for each, _ in self.around.get(number, ()) if each.kind in ("scan", "while"))

    def steps(self, number: int) -> int:
        """How many steps the one scan has that a value stands in; 0 where there is none, −1 in any other loop."""
        around = self.loops(number)
        if [each.kind for each in around] == ["scan"]:
            return int(around[0].eqn.params["length"])
        return -1 if around else 0

    def as_run(self, number: int, steps: np.ndarray) -> np.ndarray:
        """The steps of an array that stands where a value does, in the order in which they run."""
        loops = self.loops(number)
        return steps[::-1] if loops and loops[-1].eqn.params.get("reverse", False) else steps

    @cached_property
    def same(self) -> dict[int, int]:
        """By a value's number, that of the value that a loop, a rule or the branch that runs takes in or hands on."""
        found: dict[int, int] = {}
        for operation in self.everything:
            if operation.kind == "scan":
                found.update(passed_in(operation))
            body = self.chosen(operation)
            if body is not None:
                found.update(
                    zip(body.inputs, operation.inputs[len(operation.inputs) - len(body.inputs) :], strict=True)
                )
                found.update(zip(operation.outputs, body.outputs, strict=True))
        return found

    def chosen(self, operation: Operation) -> Graph | None:
        """A rule's program, or the branch that runs at every point; else None."""
        if operation.kind == "rule":
            return operation.bodies[0]
        if operation.kind != "cond":
            return None
        number = operation.inputs[0]
        which = {int(np.max(values.get(number, self.constants.get(number, -1)))) for values in self.values}
        return operation.bodies[min(max(which.pop(), 0), len(operation.bodies) - 1)] if len(which) == 1 else None

    def known(self, number: int) -> int:
        """The number of a value as the operation that made it has it."""
        while number in self.same:
            number = self.same[number]
        return number

    @cached_property
    def floats(self) -> list[int]:
        """The different values of floating point, one number each."""
        found: dict[tuple, int] = {}
        for number in self.around:
            value = self.values[0].get(number)
            there = number not in self.same and all(number in values for values in self.values)
            if there and isinstance(value, np.ndarray | np.generic) and value.dtype.kind == "f":
                steps = self.steps(number)
                if steps >= 0:
                    found.setdefault((steps, value.shape, value.tobytes()), number)
        return list(found.values())

    @cached_property
    def uses(self) -> Uses:
        """By a value's number, those of the values that depend on it directly."""
        return uses(self.everything)

    def dependents(self, numbers: Iterable[int]) -> frozenset[int]:
        """The numbers of the values that depend on some, these included."""
        return dependents(self.uses, numbers)

    @cached_property
    def step_sizes(self) -> np.ndarray:
        """The sums of the absolute values of each array at each step of a loop, in order."""
        inside = [np.asarray(self.values[0][number]) for number in self.floats if self.steps(number)]
        return np.sort(np.concatenate([np.abs(v).reshape(len(v), -1).sum(1) for v in inside] or [np.zeros(0)]))

    def has_step(self, value: np.ndarray) -> bool:
        """Whether an array of this size is computed at some step of a loop."""
        size = float(np.sum(np.abs(value)))
        k = np.searchsorted(self.step_sizes, size * (1 - 1e-9))
        return bool(k < len(self.step_sizes) and self.step_sizes[k] <= size * (1 + 1e-9) + 1e-12)


def close(got: np.ndarray, right: np.ndarray, tolerance: float) -> bool:
    """Whether two arrays agree entry by entry, relative to the largest; NaN never is right."""
    if got.shape != right.shape:
        return False
    scale = float(np.max(np.abs(right), initial=0.0)) or 1.0
    return bool(np.all(np.abs(got - right) <= tolerance * scale))


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
    """What an expression may use: its text, and where its value stands, or its value at each point."""

    text: str
    shape: tuple[int, ...]
    place: MarkedPlace | None = None
    fixed: tuple = ()


def parsed(text: str) -> ast.expr:
    """An expression's tree."""
    return ast.parse(f"({text})", mode="eval").body


def fingerprint(values: Sequence) -> tuple:
    """What tells the values of an expression at several points from others."""
    return tuple((np.shape(value), np.asarray(value).tobytes()) for value in values)


@dataclass(frozen=True, eq=False)
class Expression:
    """An expression of the primal, with its value at each point and those of the primal's variables."""

    mark: Mark
    values: tuple
    variables: dict[str, tuple]

    def text_in(self, names: dict[tuple, str], assigned: dict[tuple, ast.expr]) -> str | None:
        """Its text in other names, by value; None where a variable has no value there."""
        renaming = Renaming(self, names, assigned)
        text = ast.unparse(renaming.visit(parsed(self.mark.text)))
        return None if renaming.missing or len(text) > 200 else text


class Renaming(ast.NodeTransformer):
    """Writes an expression of the primal in other names: a variable without one as what the primal assigns to it."""

    def __init__(self, of: Expression, names: dict[tuple, str], assigned: dict[tuple, ast.expr]):
        self.of, self.names, self.assigned = of, names, dict(assigned)
        self.missing = False

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id not in self.of.variables:
            return node
        name = self.names.get(self.of.variables[node.id])
        if name is not None:
            return parsed(name)
        value = self.assigned.pop((self.of.mark.path, node.id), None)  # once: it may be made of the same variable
        if value is None:
            self.missing = True
            return node
        renamed = self.visit(copy.deepcopy(value))
        self.assigned[self.of.mark.path, node.id] = value
        return renamed


@dataclass(frozen=True, eq=False)
class Primal:
    """The primal's own lines: its expressions with their values, and the numbers that others of them give, by text."""

    expressions: tuple[Expression, ...] = ()
    constants: dict[str, float] = field(default_factory=dict)

    @cached_property
    def names(self) -> dict[tuple, ast.expr]:
        """By function and name, what the primal assigns to a variable, where it does so once."""
        paths = {(each.mark.source.file, each.mark.node.lineno): each.mark.path for each in self.expressions}
        found: dict[tuple, list] = {}
        for source in {each.mark.source for each in self.expressions}:
            for node in ast.walk(source.tree):
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    path = paths.get((source.file, node.value.lineno))
                    found.setdefault((path, node.targets[0].id), []).append(node.value)
        return {key: values[0] for key, values in found.items() if len(values) == 1}

    @cached_property
    def numbers(self) -> dict[str, float]:
        """The numbers that the primal's lines name."""
        found = {}
        for each in self.expressions:
            for node in ast.walk(parsed(each.mark.text)):
                if (
                    isinstance(node, ast.Constant)
                    and isinstance(node.value, int | float)
                    and node.value not in (0, 1, -1)
                ):
                    found[repr(node.value)] = float(node.value)
        return found


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
        for operation in self.everything:
            mark = author.marked_by(operation)
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
        return {o.outputs[0]: o.inputs[0] for o in self.everything if author.marked_by(o) is not None}

    def seen_at(self, place: MarkedPlace, operation: Operation) -> int | None:
        """The number of a place's value as an operation would see it: the last before it, in the loops around it."""
        around = self.around[operation.outputs[0]]
        for each in reversed(place.operations):
            inside = self.around[each.outputs[0]]
            if each.number < operation.number and around[: len(inside)] == inside:
                return each.outputs[0]
        return None


class Effect:
    """What a change at a place does to the outputs that depend on it."""

    def __init__(self, aligned: Aligned, place: MarkedPlace, goal: Iterable[int]):
        self.aligned, self.place, self.goal = aligned, place, frozenset(goal)
        numbers = [operation.outputs[0] for operation in place.operations]
        self.changed = aligned.dependents(numbers)
        reached = [k for k, number in enumerate(aligned.graph.outputs) if number in self.changed]
        self.outputs = [k for k in reached if k in self.goal or k not in aligned.wrong]
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
            or any(each.number in self.marks for body in operation.bodies for each in body.everything())
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

        `value(v, u)`: what stands at the place, of what stood there and of the array's entry.
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

    Raises `ValueError` where a gradient is missing or has another shape, and whatever the user's functions raise.
    """
    inputs = [Inputs(subject, *point) for point in points]
    rule, reference = runs(subject)
    marks = author.marked(functions)
    with author.seeing(functions, marks) as seen:
        graph = inputs[0].trace(rule)
    flat = [each.flat for each in inputs]
    of_rule, other = Execution.of(graph, flat), Execution.of(inputs[0].trace(reference), flat)
    rough = any(v.dtype != np.float64 for vs in of_rule.outputs for v in vs if v.dtype.kind == "f")
    return Aligned(
        graph, flat, of_rule.values, of_rule.outputs, subject, inputs, other.outputs, 1e-3 if rough else TOLERANCE,
        other, primal_of(subject, inputs), marks.marks, seen.constants,
    )  # fmt: skip


def primal_of(subject: Subject, inputs: list[Inputs]) -> Primal:
    """The primal's own lines."""
    functions = author.functions_of(subject.primal, rules=False)[:MOST_FUNCTIONS]
    if not functions:
        return Primal()
    marks = author.marked(functions)

    with author.seeing(functions, marks) as seen:
        leaves = leaves_of(inputs[0].args, subject.fixed)
        n = len(leaves.values)

        def primal(*flat):
            return [
                leaf for leaf in jax.tree.leaves(subject.primal(*leaves.tree(flat[:n], flat[n:]))) if is_traced(leaf)
            ]

        count = n + len(leaves.rest)
        graph = graph_of(jax.make_jaxpr(primal)(*inputs[0].flat[:count]))
    values = Execution.of(graph, [each.flat[:count] for each in inputs]).values
    found: dict[int, tuple] = {}
    for operation in graph.operations:
        mark = author.marked_by(operation)
        if mark is not None and not mark[1]:
            found[mark[0]] = tuple(each[operation.outputs[0]] for each in values)
    named = {
        (marks.marks[k].text, marks.marks[k].path): v for k, v in found.items() if marks.marks[k].text.isidentifier()
    }
    expressions = []
    for k, value in found.items():
        mark = marks.marks[k]
        if mark.defines or mark.text.isidentifier() or np.asarray(value[0]).dtype.kind not in "fb":
            continue
        variables = {n: fingerprint(value) for (n, path), value in named.items() if path == mark.path}
        expressions.append(Expression(mark, value, variables))
    numbers = {marks.marks[k].text: np.asarray(value) for k, value in seen.constants.items()}
    constants = {text: float(v) for text, v in numbers.items() if not v.ndim and v.dtype.kind in "fiu"}
    return Primal(tuple(expressions), constants)


def is_traced(leaf: Any) -> bool:
    """Whether a leaf is an array."""
    return hasattr(leaf, "dtype")
