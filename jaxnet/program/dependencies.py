"""Dependencies: for each value of a graph, the values that depend on it, through loops, branches and rules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import jax.numpy as jnp

from jaxnet.program.calls import scan_counts
from jaxnet.program.graph import Operation

Uses = dict[int, set[int]]
"""By the number of a value, the numbers of those that depend on it directly."""


def passed_in(operation: Operation) -> Iterator[tuple[int, int]]:
    """(number inside, number outside) of each value that a body takes in unchanged."""
    if operation.kind == "rule":
        yield from zip(operation.bodies[0].inputs, operation.inputs, strict=True)
    elif operation.kind == "cond":
        for body in operation.bodies:
            yield from zip(body.inputs, operation.inputs[1:], strict=True)
    elif operation.kind == "scan":
        consts, _ = scan_counts(operation.eqn)
        yield from zip(operation.bodies[0].inputs[:consts], operation.inputs[:consts], strict=True)
    elif operation.kind == "while":
        a, b = operation.eqn.params["cond_nconsts"], operation.eqn.params["body_nconsts"]
        yield from zip(operation.bodies[0].inputs[:a], operation.inputs[:a], strict=True)
        yield from zip(operation.bodies[1].inputs[:b], operation.inputs[a : a + b], strict=True)


def dependencies(operation: Operation) -> Iterator[tuple[int, int]]:
    """(number, number of a value that depends on it) for each pair; a solver's values depend on all its inputs."""
    kind, inputs, outputs, bodies = operation.kind, operation.inputs, operation.outputs, operation.bodies
    if not bodies or kind == "custom_linear_solve":
        inner = [number for body in bodies for number in body.inputs]
        yield from ((i, o) for i in inputs for o in (*outputs, *inner))
        yield from ((i, o) for body in bodies for i in body.outputs for o in outputs)
        return
    yield from ((outer, inner) for inner, outer in passed_in(operation))
    if kind == "while":
        condition, body = bodies
        fixed = operation.eqn.params["cond_nconsts"], operation.eqn.params["body_nconsts"]
        for each, count in zip(bodies, fixed, strict=True):
            yield from zip(inputs[sum(fixed) :], each.inputs[count:], strict=True)
            yield from zip(body.outputs, each.inputs[count:], strict=True)
        yield from zip(inputs[sum(fixed) :], outputs, strict=True)
        yield from ((i, o) for i in condition.outputs for o in outputs)
        yield from zip(body.outputs, outputs, strict=True)
        return
    for body in bodies:
        yield from zip(body.outputs, outputs, strict=True)
    if kind == "cond":
        yield from ((inputs[0], o) for o in outputs)
    elif kind == "scan":
        consts, carries = scan_counts(operation.eqn)
        yield from zip(inputs[consts:], bodies[0].inputs[consts:], strict=True)
        yield from zip(bodies[0].outputs[:carries], bodies[0].inputs[consts : consts + carries], strict=True)
        yield from zip(inputs[consts : consts + carries], outputs[:carries], strict=True)
    elif kind == "shard_map":
        yield from zip(inputs, bodies[0].inputs, strict=True)


def differentiable(operation: Operation) -> Iterator[tuple[int, int]]:
    """The pairs of `dependencies` that a derivative follows; a rule's results have one with respect to each input."""
    if operation.kind == "rule":
        yield from ((i, o) for i in operation.inputs for o in operation.outputs)
    if operation.name == "stop_gradient":
        return
    whole = {
        number
        for number, variable in zip(operation.outputs, operation.eqn.outvars, strict=True)
        if not jnp.issubdtype(variable.aval.dtype, jnp.inexact)
    }
    yield from ((i, o) for i, o in dependencies(operation) if o not in whole)


def uses(operations: Iterable[Operation], pairs=dependencies) -> Uses:
    """The values that depend directly on each value, by `dependencies` or by `differentiable`."""
    found: Uses = {}
    for operation in operations:
        for one, other in pairs(operation):
            found.setdefault(one, set()).add(other)
    return found


def dependents(uses: Uses, numbers: Iterable[int]) -> frozenset[int]:
    """The numbers of the values that depend on some, these included.

    >>> sorted(dependents({0: {1}, 1: {3}, 2: {3}}, [0]))
    [0, 1, 3]
    """
    new = list(numbers)
    found = set(new)
    while new:
        fresh = uses.get(new.pop(), set()) - found
        found |= fresh
        new += fresh
    return frozenset(found)
