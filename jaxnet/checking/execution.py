"""A program run at several points: its inputs, its values by number, its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.checking.differentiation import differentiated, flat_gradients, pushed_forward
from jaxnet.checking.subject import Subject, leaves_of, on_device
from jaxnet.program import Graph, Operation, graph_of
from jaxnet.program.dependencies import Uses, dependents, passed_in, uses
from jaxnet.program.numpy_evaluation import NumpyEvaluation, Values, host


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
        """The outputs and gradients that a rule gives at some arguments. Raises `ValueError` where one is missing.

        A gradient of another shape than its argument's is NaN.
        """
        outs = [leaf for leaf in jax.tree.leaves(out) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        if isinstance(self.subject.custom, jax.custom_jvp):
            return outs + [leaf for leaf in jax.tree.leaves(grads) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        found, faults = flat_gradients(leaves_of(args, self.subject.fixed), grads, unfit=not_a_number)
        if any(each is None for each in found):
            raise ValueError(next(iter(faults.values())).words)
        return [*outs, *found]

    def called(self, run: Callable) -> list[np.ndarray]:
        """The gradients of a rule here, called as it is."""
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


def not_a_number(gradient: Any, value: Any) -> jax.Array:
    """NaN of a value's shape that depends on a gradient of another shape."""
    return jnp.full(value.shape, jnp.nan, value.dtype) * jnp.sum(gradient).astype(value.dtype)


def runs(subject: Subject) -> tuple[Callable, Callable]:
    """The rule and the reference, (args, cotangent) -> out, gradients; those of a `custom_jvp` give tangents."""
    if isinstance(subject.custom, jax.custom_jvp):
        return pushed_forward(subject.custom, subject.fixed), pushed_forward(subject.primal, subject.fixed)
    rule = subject.in_jax or subject.run
    if subject.declared is not None:
        declared = subject.declared
        return rule, lambda args, d_out: (subject.primal(*args), declared(args, d_out))
    return rule, differentiated(subject.primal, subject.fixed)


def seeded(subject: Subject, points: Sequence[tuple]) -> list[tuple]:
    """Points: arguments, and a cotangent or, for a rule of tangents, random tangents."""
    if not isinstance(subject.custom, jax.custom_jvp):
        return list(points)
    rng = np.random.default_rng(0)

    def tangents(args: tuple) -> tuple:
        values = leaves_of(args, subject.fixed).values
        return tuple(on_device(rng.standard_normal(value.shape), value.dtype) for value in values)

    return [(args, tangents(args)) for args, _ in points]


def near(subject: Subject, points: Sequence[tuple]) -> list[tuple]:
    """The first point, and for each of the others one near it, with the other's cotangent."""
    first, *others = points
    leaves, rng = leaves_of(first[0], subject.fixed), np.random.default_rng(0)

    def moved(value: Any) -> jax.Array:
        return on_device(np.asarray(value) * rng.uniform(0.95, 1.05, np.shape(value)), value.dtype)

    return [first, *((leaves.tree([moved(value) for value in leaves.values]), d_out) for _, d_out in others)]


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

    def loops(self, number: int) -> tuple[Operation, ...]:
        """The loops that a value stands in, from the outside."""
        return tuple(each for each, _ in self.graph.around.get(number, ()) if each.kind in ("scan", "while"))

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
        for operation in self.graph.everything:
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
        which = {int(np.max(values.get(number, self.graph.all_constants.get(number, -1)))) for values in self.values}
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
        for number in self.graph.around:
            value = self.values[0].get(number)
            there = number not in self.same and all(number in values for values in self.values)
            if there and isinstance(value, np.ndarray | np.generic) and value.dtype.kind == "f":
                steps = self.steps(number)
                if steps >= 0:
                    found.setdefault((steps, value.shape, self.bits(number)), number)
        return list(found.values())

    def bits(self, number: int) -> tuple[bytes, ...]:
        """A value at every point: two that are equal at one may differ at another."""
        return tuple(np.asarray(values.get(number, 0.0)).tobytes() for values in self.values)

    @cached_property
    def uses(self) -> Uses:
        """By a value's number, those of the values that depend on it directly."""
        return uses(self.graph.everything)

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


def is_traced(leaf: Any) -> bool:
    """Whether a leaf is an array."""
    return hasattr(leaf, "dtype")
