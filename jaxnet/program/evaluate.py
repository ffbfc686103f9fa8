"""Evaluates a graph: traceable, with loops kept as loops. Everything that runs programs anew is one `Evaluation`.

An evaluation may keep values on the way. Kept values inside a loop come out stacked: over the steps of a scan or a
while loop, over the shards of a `shard_map`. A branch that did not run gives zeros, and is marked so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.program.calls import bind, scan_counts
from jaxnet.program.graph import Graph, Operation, graph_of

Kept = dict[tuple, Any]
"""Kept values, by (number of an operation or a value, kind of the kept value)."""
TURNS, RAN = "turns", "ran"
UNOPTIMISED: dict[str, Any] = {"xla_backend_optimization_level": "0"}
"""The compiler's options for a program that runs a few times."""


class Evaluation:
    """How a graph is evaluated; each method is meant to be changed by a subclass. By itself it changes nothing."""

    keeps = False  # whether `keep` is asked
    turns: dict[int, int] | None = None  # by a while loop's number, how often it runs at most; None: it is not known

    def value(self, value: Any) -> Any:
        """Each input, constant and result, before it is used."""
        return value

    def operation(self, operation: Operation, values: Sequence) -> Sequence:
        """The results of an operation without bodies."""
        return bind(operation.eqn, values)

    def opens(self, operation: Operation) -> bool:
        """Whether a rule, a loop or a solver is opened, or run as it stands."""
        return True

    def result(self, number: int, value: Any) -> Any:
        """A value of the graph, by its number, before others use it."""
        return value

    def keep(self, operation: Operation, values: Sequence, outs: Sequence) -> Kept:
        """The values to keep of an operation."""
        return {}

    def run(self, graph: Graph, args: Sequence) -> list:
        """The graph's outputs."""
        return self.body(graph, args)[0]

    def body(self, graph: Graph, args: Sequence) -> tuple[list, Kept]:
        """The outputs of a graph, and the kept values."""
        env = {number: self.value(value) for number, value in graph.constants.items()}
        env.update((n, self.result(n, self.value(a))) for n, a in zip(graph.inputs, args, strict=True))
        kept: Kept = {}
        for operation in graph.operations:
            values = [env[number] for number in operation.inputs]
            outs, inner = self.outcome(operation, values)
            outs = [self.result(n, self.value(out)) for n, out in zip(operation.outputs, outs, strict=True)]
            env.update(zip(operation.outputs, outs, strict=True))
            kept.update(inner)
            if self.keeps:
                kept.update(self.keep(operation, values, outs))
        return [env[number] for number in graph.outputs], kept

    def outcome(self, operation: Operation, values: Sequence) -> tuple[Sequence, Kept]:
        if not operation.bodies or not self.opens(operation):
            return self.operation(operation, values), {}
        return KINDS[operation.kind](self, operation, values)


def rule(how: Evaluation, operation: Operation, values: Sequence) -> tuple[Sequence, Kept]:
    """A rule's own program, its derivative left aside."""
    return how.body(operation.bodies[0], values)


def scan(how: Evaluation, operation: Operation, values: Sequence) -> tuple[Sequence, Kept]:
    """A scan over the opened body."""
    params = operation.eqn.params
    consts, carries = scan_counts(operation.eqn)

    def step(carry, xs):
        outs, kept = how.body(operation.bodies[0], [*values[:consts], *carry, *xs])
        return tuple(outs[:carries]), (tuple(outs[carries:]), kept)

    carry, (ys, kept) = jax.lax.scan(
        step,
        tuple(values[consts : consts + carries]),
        tuple(values[consts + carries :]),
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *ys], kept


def loop(how: Evaluation, operation: Operation, values: Sequence) -> tuple[Sequence, Kept]:
    """A while loop; where values are kept, as many steps as it takes at most, those after its end doing nothing."""
    a, b = operation.eqn.params["cond_nconsts"], operation.eqn.params["body_nconsts"]
    asked, fixed, carry = values[:a], values[a : a + b], tuple(values[a + b :])
    condition, body = operation.bodies

    def ask(carry):
        (on,), kept = how.body(condition, [*asked, *carry])
        return on, kept

    def step(carry):
        on, kept = ask(carry)
        outs, inner = how.body(body, [*fixed, *carry])
        return going_on(on, outs, carry), {**kept, **inner}

    if not how.keeps:
        return list(jax.lax.while_loop(lambda c: jnp.any(ask(c)[0]), lambda c: step(c)[0], carry)), {}
    if how.turns is None:
        return counted(operation, ask, step, carry)
    blank = blanks(jax.eval_shape(lambda c: step(c)[1], carry))

    def masked(carry, _):
        going = jnp.any(ask(carry)[0])
        carry, kept = jax.lax.cond(going, step, lambda c: (c, blank), carry)
        return carry, {**kept, (operation.number, RAN): going}

    carry, kept = jax.lax.scan(masked, carry, None, length=how.turns.get(operation.number, 0))
    return list(carry), kept


def counted(operation: Operation, ask: Callable, step: Callable, carry: tuple) -> tuple[Sequence, Kept]:
    """A while loop that counts its turns, and the turns of loops inside, its last condition included."""

    def larger(most, counts):
        return {
            key: jnp.maximum(count, jnp.max(counts[key])) if key in counts else count for key, count in most.items()
        }

    def once(state):
        carry, count, most = state
        carry, inner = step(carry)
        return carry, count + 1, larger(most, inner)

    shapes = jax.eval_shape(lambda c: step(c)[1], carry)
    most = {key: jnp.zeros((), shape.dtype) for key, shape in shapes.items()}
    carry, count, most = jax.lax.while_loop(
        lambda state: jnp.any(ask(state[0])[0]), once, (carry, jnp.zeros((), jnp.int32), most)
    )
    return list(carry), {**larger(most, ask(carry)[1]), (operation.number, TURNS): count}


def cond(how: Evaluation, operation: Operation, values: Sequence) -> tuple[Sequence, Kept]:
    """The chosen branch; those not chosen are kept as zeros."""
    if not how.keeps:
        branches = [lambda *v, body=body: tuple(how.body(body, v)[0]) for body in operation.bodies]
        return list(jax.lax.switch(values[0], branches, *values[1:])), {}
    shapes = [jax.eval_shape(lambda *v, body=body: how.body(body, v)[1], *values[1:]) for body in operation.bodies]

    def branch(i):
        def run(*v):
            outs, kept = how.body(operation.bodies[i], v)
            for j, shape in enumerate(shapes):
                kept = {**kept, **(blanks(shape) if j != i else {}), (operation.number, RAN, j): jnp.asarray(j == i)}
            return tuple(outs), kept

        return run

    outs, kept = jax.lax.switch(values[0], [branch(i) for i in range(len(operation.bodies))], *values[1:])
    return list(outs), kept if how.turns is not None else {k: v for k, v in kept.items() if k[1] == TURNS}


def shards(how: Evaluation, operation: Operation, values: Sequence) -> tuple[Sequence, Kept]:
    """The opened body on each shard; kept values are stacked over the shards."""
    params = operation.eqn.params
    axes = tuple(params["newly_manual_axes"])
    body = operation.bodies[0]

    def run(*values):
        outs, kept = how.body(body, values)
        return tuple(outs), jax.tree.map(lambda leaf: jnp.expand_dims(jnp.asarray(leaf), 0), kept)

    spec = jax.sharding.PartitionSpec(axes)
    mapped = jax.shard_map(
        run,
        mesh=params["mesh"],
        in_specs=tuple(params["in_specs"]),
        out_specs=(tuple(params["out_specs"]), spec),
        axis_names=set(axes),
        check_vma=params["check_vma"] and not how.keeps,  # blanks vary over no axis
    )
    outs, kept = mapped(*values)
    return list(outs), kept


def linear_solve(how: Evaluation, operation: Operation, values: Sequence) -> tuple[Sequence, Kept]:
    """A solver with its implicit derivative; where values are kept, its solution's own program."""
    lengths, jaxprs = operation.eqn.params["const_lengths"], operation.eqn.params["jaxprs"]
    bodies = dict(zip([f for f in jaxprs._fields if getattr(jaxprs, f) is not None], operation.bodies, strict=True))
    parts: dict[str, Sequence] = {}
    start = 0
    for name in lengths._fields:
        parts[name] = values[start : start + getattr(lengths, name)]
        start += getattr(lengths, name)
    b = tuple(values[start:])

    def opened(name: str) -> Callable:
        return lambda x: tuple(how.body(bodies[name], [*parts[name], *x])[0])

    if how.keeps:
        return how.body(bodies["solve"], [*parts["solve"], *b])
    transposed = (lambda _, x: opened("transpose_solve")(x)) if "transpose_solve" in bodies else None
    x = jax.lax.custom_linear_solve(opened("matvec"), b, lambda _, x: opened("solve")(x), transposed)
    return list(x), {}


KINDS: dict[str, Callable] = {
    "rule": rule,
    "scan": scan,
    "while": loop,
    "cond": cond,
    "shard_map": shards,
    "custom_linear_solve": linear_solve,
}


def going_on(on: Any, after: Sequence, before: Sequence) -> tuple:
    """A while loop's state after a step: `after`, or, where the condition is one for each example, each its own."""
    on = jnp.asarray(on)
    if not on.ndim:
        return tuple(after)
    masks = (jnp.broadcast_to(on.reshape(on.shape + (1,) * (a.ndim - on.ndim)), a.shape) for a in after)
    return tuple(jax.lax.select(mask, a, b) for mask, a, b in zip(masks, after, before, strict=True))


def blanks(shapes: Any) -> Any:
    """Zeros of these shapes, keys included."""
    return jax.tree.map(blank, shapes)


def blank(shape: Any) -> jax.Array:
    """Zeros of a shape and dtype; for keys, of their data."""
    if not jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
        return jnp.zeros(shape.shape, shape.dtype)
    data = jax.eval_shape(jax.random.key_data, shape)
    return jax.random.wrap_key_data(jnp.zeros(data.shape, data.dtype), impl=str(shape.dtype._impl.name))


class LongerLoops(Evaluation):
    """Runs each while loop on for as many turns again; rules, and operations without a loop, run as they stand."""

    def opens(self, operation: Operation) -> bool:
        """Only operations with a while loop inside."""
        return operation.kind == "while" or (operation.kind != "rule" and any(b.has("while") for b in operation.bodies))

    def outcome(self, operation: Operation, values: Sequence) -> tuple[Sequence, Kept]:
        if operation.kind != "while":
            return super().outcome(operation, values)
        a, b = operation.eqn.params["cond_nconsts"], operation.eqn.params["body_nconsts"]
        condition, body = operation.bodies

        def turn(carry):
            return tuple(self.body(body, [*values[a : a + b], *carry])[0])

        def going(state):
            return jnp.any(self.body(condition, [*values[:a], *state[0]])[0][0])

        carry, turns = jax.lax.while_loop(going, lambda s: (turn(s[0]), s[1] + 1), (tuple(values[a + b :]), 0))
        return list(jax.lax.fori_loop(0, turns, lambda _, carry: turn(carry), carry)), {}


def with_longer_loops(function: Callable) -> Callable:
    """The same function with each of its while loops run on for as many turns again.

    >>> import jax
    >>> from jaxnet.program import with_longer_loops
    >>> halved = lambda x: jax.lax.while_loop(lambda x: x > 1, lambda x: x / 2, x)
    >>> float(halved(4.0)), float(with_longer_loops(halved)(4.0))
    (1.0, 0.25)
    """

    def longer(*args):
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        outs = LongerLoops().run(graph_of(program), jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), outs)

    return longer


class Counting(Evaluation):
    """Counts the turns of while loops."""

    keeps = True


class Keeping(Evaluation):
    """Keeps values on the way; `turns` says how often each while loop runs."""

    keeps = True

    def __init__(self, turns: dict[int, int]):
        self.turns = turns


def turns_of(graph: Graph, args: Sequence) -> dict[int, int]:
    """By its number, how often each while loop of a graph runs at most."""
    if not graph.has("while"):
        return {}
    counts = quickly(lambda *args: Counting().body(graph, args)[1], args)
    return {number: int(np.max(count)) for (number, _), count in counts.items()}


def quickly(function: Callable, args: Sequence) -> Any:
    """`function(*args)`, compiled without optimisation: for programs that run once."""
    return jax.jit(function).lower(*args).compile(compiler_options=UNOPTIMISED)(*args)
