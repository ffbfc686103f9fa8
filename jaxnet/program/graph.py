"""A program as operations: calls put in their place, loops kept with the operations of their bodies."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jax.extend.core import ClosedJaxpr, Literal

from jaxnet.program.calls import LOOPS, cannot_open, opened
from jaxnet.program.positions import NOWHERE, Position, position_of

INNER_NAMES = {"scan": "scan", "while": "while", "shard_map": "shard_map", "custom_linear_solve": "solve"}


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation: values are numbers, the same in every body of its graph.

    - `kind`: "operation", "rule" (with a derivative of its own), "scan", "while", "cond", "shard_map" or
      "custom_linear_solve".
    - `name`: the primitive's, or that of a rule's function.
    - `inputs`, `outputs`: the numbers of its values; `bodies`: the programs inside.
    - `path`: the functions and loops around it, from the outside; `position`: in the source.
    - `closed`: why it cannot be opened, else empty.
    """

    number: int
    kind: str
    name: str
    eqn: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    bodies: tuple[Graph, ...]
    path: tuple[str, ...]
    position: Position
    closed: str


@dataclass(frozen=True, eq=False)
class Graph:
    """A program: its operations in order, its inputs, outputs and constants by number."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    constants: dict[int, Any]
    operations: tuple[Operation, ...]

    @cached_property
    def everything(self) -> tuple[Operation, ...]:
        """Every operation, those of inner bodies after the one that runs them."""
        found = []
        for operation in self.operations:
            found += [operation, *(each for body in operation.bodies for each in body.everything)]
        return tuple(found)

    @cached_property
    def made_by(self) -> dict[int, Operation]:
        """By a value's number, the operation that makes it; inputs and constants have none."""
        return {number: operation for operation in self.everything for number in operation.outputs}

    @cached_property
    def around(self) -> dict[int, tuple[tuple[Operation, int], ...]]:
        """By a value's number, the operations that it stands in, from the outside, and in which of their bodies."""
        found: dict[int, tuple] = dict.fromkeys(self.inputs, ())
        for operation in self.operations:
            found.update(dict.fromkeys(operation.outputs, ()))
            for i, body in enumerate(operation.bodies):
                found.update((number, ((operation, i), *inner)) for number, inner in body.around.items())
        return found

    @cached_property
    def all_constants(self) -> dict[int, Any]:
        """The constants, those of inner bodies included."""
        graphs = (self, *(body for operation in self.everything for body in operation.bodies))
        return {number: value for graph in graphs for number, value in graph.constants.items()}

    def has(self, kind: str) -> bool:
        """Whether an operation of this kind stands anywhere in it."""
        return any(operation.kind == kind for operation in self.everything)


class Builder:
    """Builds graphs; values and operations are counted over all of them."""

    def __init__(self) -> None:
        self.values, self.operations = itertools.count(), itertools.count()

    def graph(self, program: ClosedJaxpr, path: tuple[str, ...], outer: Position = NOWHERE) -> Graph:
        """A program as a graph of its own."""
        inputs = tuple(next(self.values) for _ in program.jaxpr.invars)
        constants: dict[int, Any] = {}
        operations: list[Operation] = []
        outputs = self.inline(program, inputs, constants, operations, path, outer)
        return Graph(inputs, tuple(outputs), constants, tuple(operations))

    def inline(self, program, inputs, constants, operations, path, outer) -> list[int]:
        """Puts a program's operations into `operations`; gives the numbers of its outputs."""
        env: dict = dict(zip(program.jaxpr.invars, inputs, strict=True))

        def constant(value) -> int:
            number = next(self.values)
            constants[number] = value
            return number

        def read(atom) -> int:
            return constant(atom.val) if isinstance(atom, Literal) else env[atom]

        env.update((v, constant(c)) for v, c in zip(program.jaxpr.constvars, program.consts, strict=True))
        for eqn in program.jaxpr.eqns:
            numbers = tuple(map(read, eqn.invars))
            own = position_of(eqn)
            position = own if own.file else outer
            found = opened(eqn)
            if found is not None and found.kind == "call":
                inner = (*path, found.name) if found.name else path
                outs = self.inline(found.programs[0], numbers, constants, operations, inner, position)
            else:
                outs = [next(self.values) for _ in eqn.outvars]
                kind = "operation" if found is None else found.kind
                name = found.name if found is not None and kind == "rule" else eqn.primitive.name
                bodies = tuple(
                    self.graph(body, (*path, inner_name(kind, name, i)), position)
                    for i, body in enumerate(found.programs if found is not None else ())
                )
                operations.append(
                    Operation(next(self.operations), kind, name, eqn, numbers, tuple(outs), bodies, path, position,
                              cannot_open(eqn))
                )  # fmt: skip
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in program.jaxpr.outvars]


def inner_name(kind: str, name: str, i: int) -> str:
    """A body's part of the path: "scan", "branch 1", the name of a rule's function."""
    if kind == "cond":
        return f"branch {i}"
    return INNER_NAMES[kind] if kind in LOOPS else name


def graph_of(program: ClosedJaxpr) -> Graph:
    """A traced program as a graph.

    Raises `UnknownPrimitiveError` for a primitive with programs inside that is not known.

    >>> import jax
    >>> [o.name for o in graph_of(jax.make_jaxpr(jax.jit(lambda x: 2 * x + 1))(1.0)).operations]
    ['mul', 'add']
    """
    return Builder().graph(program, ())
