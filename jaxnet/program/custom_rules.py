"""Rules inside a function: where they are, the inputs that reach them, and the function without them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from jaxnet.program.calls import bind, equations, has_custom, hi_primitive, inner_programs, is_rule, source_words
from jaxnet.program.dependencies import dependents, differentiable, uses
from jaxnet.program.evaluate import Evaluation, Keeping, Kept, quickly, turns_of
from jaxnet.program.graph import Graph, Operation, graph_of
from jaxnet.program.nesting import Nested, nested
from jaxnet.program.widening import is_float, widened

INPUTS = "inputs"


class CannotOpenError(TypeError):
    """A rule stands inside a kernel or a reducer, which cannot be opened."""


@dataclass(frozen=True)
class RuleUse:
    """A rule in a program, with the inputs that reach it.

    - `function`: (*inputs) -> tuple of outputs, with the rule; `primal`: the same without any rule.
    - `identity`: of the function that is its backward pass or its jvp.
    - `path`: "scan step 3, f", from the outside.
    - `fixed`: the places of the inputs that do not depend on the function's arguments: no gradient goes to them.
    - `inside_rule`: it stands in another rule's forward pass, so nothing differentiates it there.
    """

    name: str
    where: str
    function: Callable
    primal: Callable
    arrays: tuple
    identity: int
    path: str
    fixed: tuple[int, ...]
    inside_rule: bool

    @property
    def inputs(self) -> tuple:
        """The inputs that reach the rule."""
        return tuple(jnp.asarray(x) for x in self.arrays)

    @property
    def key(self) -> tuple:
        """The same for two uses of one rule at one place and shape."""
        return self.name, self.where, self.identity, self.fixed, tuple((np.shape(x), str(x.dtype)) for x in self.arrays)


def has_rule(operation: Operation) -> bool:
    """Whether an operation is a rule, or has one inside."""
    return operation.kind == "rule" or any(body.has("rule") for body in operation.bodies)


class Reaching(Keeping):
    """Keeps the inputs of each rule."""

    def opens(self, operation: Operation) -> bool:
        """Only operations with a rule inside."""
        return any(body.has("rule") for body in operation.bodies)

    def keep(self, operation: Operation, values: Sequence, outs: Sequence) -> Kept:
        """A rule's inputs."""
        return {(operation.number, INPUTS): tuple(map(jnp.asarray, values))} if operation.kind == "rule" else {}


class WithoutRules(Evaluation):
    """Runs a rule's own program, so that autodiff goes through it. Operations without a rule inside run unchanged."""

    def opens(self, operation: Operation) -> bool:
        """Only rules, and operations with a rule inside."""
        return has_rule(operation)


def require_open(program: ClosedJaxpr) -> None:
    """Raises `CannotOpenError` where a rule stands inside a kernel, or a reducer."""
    for operation in graph_of(program).everything:
        if not operation.bodies:
            for each in inner_programs(operation.eqn):
                for eqn in filter(is_rule, equations(each)):
                    raise CannotOpenError(
                        f"a rule (`{eqn.primitive.name}`) stands inside `{operation.name}` at {operation.position}, "
                        "which cannot be opened: give `reference=`, a function without it"
                    )


def primal_of(graph: Graph) -> Callable:
    """A rule's own program, in the dtypes that it was traced in, or in float64 where its inputs are."""

    def run(*inputs):
        wide = any(hasattr(x, "dtype") and x.dtype in (jnp.float64, jnp.complex128) for x in inputs)
        return tuple(widened(graph)(*inputs) if wide else WithoutRules().run(graph, inputs))

    return run


def place_of(operation: Operation) -> str:
    """file:line of a rule's definition, or of its use where that is not known."""
    if operation.eqn.primitive.name == "call_hi_primitive":
        kind = type(hi_primitive(operation.eqn))
        try:
            return f"{inspect.getsourcefile(kind)}:{inspect.getsourcelines(kind)[1]}"
        except (OSError, TypeError):  # a class that was typed in at a prompt has no file
            return str(operation.position)
    words = source_words(ClosedJaxpr(jaxpr_of(operation), ())) if operation.eqn.params.get("call_jaxpr") else []
    return words[1] if len(words) > 1 else str(operation.position)


def jaxpr_of(operation: Operation) -> Any:
    """The jaxpr in a rule's equation, without its constants."""
    program = operation.eqn.params["call_jaxpr"]
    return getattr(program, "jaxpr", program)


def identity(eqn: Any) -> int:
    """The same number for two uses of one rule."""
    if eqn.primitive.name == "call_hi_primitive":
        return id(type(hi_primitive(eqn)))
    rule = eqn.params.get("bwd") or eqn.params.get("jvp_jaxpr_fun") or eqn.params.get("transpose_thunk")
    return id(getattr(rule, "f", rule))


def rules_inside(function: Callable, args: tuple, limit: int = 4096) -> list[RuleUse]:
    """Every rule in `function(*args)`, at any depth, with the inputs that reach it there; at most `limit`.

    Raises `UnknownPrimitiveError` for a primitive with programs inside that is not known, `CannotOpenError` for a rule
    inside a program that cannot be opened.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnet.program import rules_inside
    >>> [site.name for site in rules_inside(lambda x: 2 * jax.nn.relu(x), (jnp.ones(3),))]
    ['relu']
    """
    program = jax.make_jaxpr(function)(*args)
    if not has_custom(program):
        return []
    require_open(program)
    graph, flat = graph_of(program), jax.tree.leaves(args)
    floats = [n for n, aval in zip(graph.inputs, program.in_avals, strict=True) if is_float(aval)]
    moving = dependents(uses(graph.everything, differentiable), floats)
    reaching = Reaching(turns_of(graph, flat))
    kept = quickly(lambda *a: reaching.body(graph, a)[1], flat)
    sites: list[RuleUse] = []
    for each in nested(graph):
        operation = each.operation
        if (operation.number, INPUTS) not in kept:
            continue
        arrays = tuple(map(on_host, kept[operation.number, INPUTS]))
        shape = arrays[0].shape if arrays else ()
        for step in each.steps(kept, shape):
            if len(sites) == limit:
                return sites
            sites.append(
                RuleUse(
                    operation.name,
                    place_of(operation),
                    by_itself(each),
                    primal_of(operation.bodies[0]),
                    tuple(array[step] for array in arrays),
                    identity(operation.eqn),
                    ", ".join(each.path(step)),
                    tuple(i for i, number in enumerate(operation.inputs) if number not in moving),
                    any(outer.kind == "rule" for outer, _ in each.around),
                )
            )
    return sites


def by_itself(site: Nested) -> Callable:
    """(*inputs) -> tuple of outputs of a rule, as it runs in its place.

    JAX holds a rule inside `shard_map` to the types that it was traced with: values that vary over the mesh's axes. So
    it runs in the same mesh, on the same inputs in each shard, and the first shard's outputs count.
    """
    eqn = site.operation.eqn
    mapped = next((outer.eqn.params for outer, _ in reversed(site.around) if outer.kind == "shard_map"), None)
    if mapped is None or not mapped["check_vma"]:
        return lambda *inputs: tuple(bind(eqn, inputs))
    axes = tuple(mapped["newly_manual_axes"])

    def in_shard(*inputs):
        varying = [v.aval.mat.varying for v in eqn.invars]
        given = [jax.lax.pcast(x, tuple(a), to="varying") if a else x for x, a in zip(inputs, varying, strict=True)]
        return tuple(jnp.expand_dims(out, 0) for out in bind(eqn, given))

    everywhere, first = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec(axes)
    run = jax.shard_map(in_shard, mesh=mapped["mesh"], in_specs=everywhere, out_specs=first, axis_names=set(axes))
    return lambda *inputs: tuple(out[0] for out in run(*inputs))


def on_host(value: jax.Array) -> Any:
    """An array in host memory, where steps are cheap to take; keys as they are."""
    return value if jnp.issubdtype(value.dtype, jax.dtypes.extended) else np.asarray(value)


def without_rules(function: Callable) -> Callable:
    """The same function without any rule in it, so that autodiff goes through its own operations.

    Raises `CannotOpenError` where a rule stands inside a program that cannot be opened.

    >>> import jax
    >>> from jaxnet.program import without_rules
    >>> [eqn.primitive.name for eqn in jax.make_jaxpr(without_rules(jax.nn.relu))(1.0).eqns]
    ['max']
    """

    def plain(*args):
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        require_open(program)
        outs = WithoutRules().run(graph_of(program), jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), outs)

    return plain


def draws_numbers(program: ClosedJaxpr) -> bool:
    """Whether a program draws random numbers, or makes keys."""
    return any(eqn.primitive.name.startswith(("random_", "threefry", "rng_")) for eqn in equations(program))


def float_dtypes(program: ClosedJaxpr) -> set:
    """The float dtypes that a program computes in; inputs and constants are left out."""
    variables = [v for eqn in equations(program) for v in eqn.outvars]
    return {
        jnp.finfo(v.aval.dtype).dtype
        for v in variables
        if hasattr(v.aval, "dtype") and jnp.issubdtype(v.aval.dtype, jnp.inexact)
    }
