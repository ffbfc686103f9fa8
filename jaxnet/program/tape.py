"""A tape: every value that a function computes, with its line, its name and its dependencies; replay with changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet.program.dependencies import Uses, dependents, passed_in, uses
from jaxnet.program.evaluate import Evaluation, Keeping, Kept, quickly, turns_of
from jaxnet.program.graph import Graph, Operation, graph_of

VALUE = "value"
Change = Callable[[Any], Any] | Any


@dataclass(frozen=True, eq=False)
class Tape:
    """A recorded run. Each value has a number; `graph` holds the operations, `kept` the values.

    - `args`: the flat inputs; `out_tree`: the structure of the function's result.
    - Values inside a loop are stacked over its steps; a loop's constants are not. A branch that did not run has zeros.
    """

    graph: Graph
    args: tuple
    out_tree: Any
    kept: Kept

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Every operation, those inside a loop or a rule after the one that runs them."""
        return self.graph.everything

    @property
    def made_by(self) -> dict[int, Operation]:
        """The operation that makes each value; inputs and constants have none."""
        return self.graph.made_by

    @cached_property
    def same(self) -> dict[int, int]:
        """By the number of a value that a loop, branch or rule takes in unchanged, its number outside."""
        return dict(passed for operation in self.operations for passed in passed_in(operation))

    @cached_property
    def values(self) -> dict[int, Any]:
        """Every value by its number, constants included."""
        found = dict(self.graph.all_constants)
        found.update({key[0]: value for key, value in self.kept.items() if key[1] == VALUE})
        for inner, outer in self.same.items():  # outer ones come first
            if outer in found:
                found[inner] = found[outer]
        return found

    @property
    def result(self) -> Any:
        """The function's result."""
        return jax.tree.unflatten(self.out_tree, [self.values[number] for number in self.graph.outputs])

    @cached_property
    def names(self) -> dict[int, str]:
        """The name that its statement assigns to a value, for those that a statement assigns.

        Of operations on one expression that use each other (a mean is a sum and a quotient) the last has the name.
        """
        spans = {number: operation.position for number, operation in self.made_by.items()}
        inside = {n for o in self.operations for n in o.inputs if n in spans and spans[n] == o.position}
        found = {}
        for operation in self.operations:
            names = operation.position.names
            if len(names) == len(operation.outputs):
                found.update((n, name) for n, name in zip(operation.outputs, names, strict=True) if n not in inside)
        return found

    def dependents(self, number: int) -> frozenset[int]:
        """The numbers of the values that depend on one, itself included."""
        return dependents(self._uses, [number])

    @cached_property
    def _uses(self) -> Uses:
        return uses(self.operations)


class KeepingAll(Keeping):
    """Keeps every value, but not those that a body takes in unchanged."""

    def __init__(self, graph: Graph, turns: dict[int, int]):
        super().__init__(turns)
        self.passed = {inner for operation in graph.everything for inner, _ in passed_in(operation)}

    def body(self, graph: Graph, args: Sequence) -> tuple[list, Kept]:
        """The outputs of a graph; its inputs are kept too."""
        outs, kept = super().body(graph, args)
        given = {(n, VALUE): jnp.asarray(a) for n, a in zip(graph.inputs, args, strict=True) if n not in self.passed}
        return outs, {**given, **kept}

    def keep(self, operation: Operation, values: Sequence, outs: Sequence) -> Kept:
        """An operation's results."""
        return {(n, VALUE): jnp.asarray(out) for n, out in zip(operation.outputs, outs, strict=True)}


class Changing(Evaluation):
    """Runs a graph with some values changed."""

    def __init__(self, changes: Mapping[int, Change]):
        self.changes = changes

    def result(self, number: int, value: Any) -> Any:
        """The changed value, in the shape and dtype of the value that it replaces."""
        if number not in self.changes:
            return value
        change = self.changes[number]
        new = jnp.asarray(change(value) if callable(change) else change)
        return jnp.broadcast_to(new.astype(value.dtype), value.shape)


def record(function: Callable, *args: Any) -> Tape:
    """Records `function(*args)`: every value that it computes, by one program compiled without optimisation.

    - `args`: pytrees of arrays.

    A function with a while loop runs once more before, which counts the steps.
    Raises `UnknownPrimitiveError` for a primitive with programs inside that is not known.

    >>> import jax.numpy as jnp
    >>> from jaxnet.program import record
    >>> tape = record(lambda x: jnp.sum(x * x), jnp.asarray([1.0, 2.0]))
    >>> [(o.name, tape.values[o.outputs[0]].tolist()) for o in tape.operations]
    [('mul', [1.0, 4.0]), ('reduce_sum', 5.0)]
    """
    program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    graph, flat = graph_of(program), jax.tree.leaves(args)
    recording = KeepingAll(graph, turns_of(graph, flat))
    kept = quickly(lambda *flat: recording.body(graph, flat)[1], flat)
    return Tape(graph, tuple(flat), jax.tree.structure(shapes), kept)


def replay(tape: Tape, changes: Mapping[int, Change], *args: Any) -> Any:
    """The function's result with some values changed, at the tape's inputs or at others of the same shapes.

    - `changes`: by a value's number, a value in its place, or a function of it. A change inside a loop is made at
      each step. It can be traced: compiled, differentiated, vmapped.

    Raises `ValueError` for a number that no value of the tape has.

    >>> import jax.numpy as jnp
    >>> from jaxnet.program import record, replay
    >>> tape = record(lambda x: jnp.sum(x * x), jnp.asarray([1.0, 2.0]))
    >>> product = tape.operations[0].outputs[0]
    >>> float(replay(tape, {product: lambda value: 10 * value}))
    50.0
    """
    known = {*tape.made_by, *tape.graph.inputs, *(n for o in tape.operations for b in o.bodies for n in b.inputs)}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise ValueError(
            f"a change must be of an input or of an operation's result, and no value has the number {unknown[0]}: "
            "take it from `tape.operations[i].outputs`"
        )
    flat = jax.tree.leaves(args) if args else tape.args
    return jax.tree.unflatten(tape.out_tree, Changing(changes).run(tape.graph, flat))
