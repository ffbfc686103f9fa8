"""The one table of the primitives that hold programs: how each is opened, and why some cannot be.

A primitive with programs inside that is not in the table raises `UnknownPrimitiveError`, which names it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxnet.lowering.op import op_name

CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "eval_jaxpr": "call_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_vmap_call": "call",
    "custom_partitioning": "call",
    "compute_on": "jaxpr",
    "xla_metadata_call": "jaxpr",
}
"""Primitives that run one program on their inputs, with the parameter that holds it."""

RULES = {
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "linear_call": "callee",
    "call_hi_primitive": "",
}
"""The same with a derivative of their own; a hi-primitive holds no program, and is opened by its `expand`."""

LOOPS = {
    "scan": ("jaxpr",),
    "while": ("cond_jaxpr", "body_jaxpr"),
    "cond": ("branches",),
    "shard_map": ("jaxpr",),
    "custom_linear_solve": ("jaxprs",),
}
"""Primitives that run their programs many times, by choice, on shards, or inside a solver."""

OPERANDS = {
    "reduce", "reduce_window", "scatter", "scatter-add", "scatter-mul", "scatter-min", "scatter-max", "scatter-sub",
    "scatter_add", "scatter_mul", "scatter_min", "scatter_max", "scatter_sub", "select_and_scatter", "sort",
    "select_and_gather_add",
}  # fmt: skip
"""Primitives whose programs combine two entries of their inputs: operands, never calls."""

REFERENCES = {"new_ref", "get", "swap", "addupdate", "freeze", "run_state", "mutable_array", "ref_get", "core_map",
              "box_get", "box_set", "new_box", "run_scoped", "free_ref", "ref_addupdate", "for"}  # fmt: skip
CALLBACKS = {"pure_callback", "io_callback", "debug_callback", "debug_print", "callback", "outside_call"}
KERNELS = {"pallas_call", "mpmd_map", "custom_fusion"}


class UnknownPrimitiveError(TypeError):
    """A primitive with programs inside that the table does not hold."""


@dataclass(frozen=True)
class Opened:
    """A program that an equation runs: `kind` is "call", "rule", or one of `LOOPS`; `name` is that of the function."""

    kind: str
    programs: tuple[ClosedJaxpr, ...]
    name: str = ""


def cannot_open(eqn: Any) -> str:
    """Why an equation cannot be opened, in words; nothing where it can, or where there is nothing to open."""
    name = eqn.primitive.name
    if name in CALLBACKS:
        return f"`{name}` calls Python on the host"
    if name in REFERENCES:
        return f"`{name}` uses a mutable reference"
    if name in KERNELS:
        return f"`{name}` is a kernel"
    return ""


def as_closed(program: Any) -> ClosedJaxpr:
    """A program with its constants; where they are not beside it, they become its first inputs."""
    if isinstance(program, ClosedJaxpr):
        return program
    if program.constvars:
        names = program.debug_info._replace(arg_names=None)
        inputs = [*program.constvars, *program.invars]
        program = program.replace(constvars=[], invars=inputs, debug_info=names)
    return ClosedJaxpr(program, ())


def programs_in(value: Any) -> Iterator[ClosedJaxpr]:
    """The programs in a parameter: it is one, or a tuple of them."""
    for each in value if isinstance(value, tuple | list) else (value,):
        if isinstance(each, ClosedJaxpr | Jaxpr):
            yield as_closed(each)


def inner_programs(eqn: Any) -> list[ClosedJaxpr]:
    """Every program in an equation's parameters, whatever it is for."""
    found = [program for value in eqn.params.values() for program in programs_in(value)]
    return [expanded(eqn)] if eqn.primitive.name == "call_hi_primitive" else found


def opened(eqn: Any) -> Opened | None:
    """The program that an equation runs; None for an operation that runs none.

    Raises `UnknownPrimitiveError` for a primitive with programs inside that the table does not hold.

    >>> import jax
    >>> opened(jax.make_jaxpr(jax.jit(lambda x: 2 * x))(1.0).eqns[0]).kind
    'call'
    """
    name = eqn.primitive.name
    if name == "call_hi_primitive":
        return Opened("rule", (expanded(eqn),), type(hi_primitive(eqn)).__name__)
    if name in RULES:
        program = as_closed(eqn.params[RULES[name]])
        operation = op_name(eqn)
        kind = "rule" if operation is None else "call"
        return Opened(kind, (program,), operation or function_name(program) or "rule")
    if name in CALLS:
        program = as_closed(eqn.params[CALLS[name]])
        return Opened("call", (program,), str(eqn.params.get("name") or function_name(program)))
    if name in LOOPS:
        programs = [program for key in LOOPS[name] for program in programs_in(eqn.params[key])]
        return Opened(name, tuple(programs))
    if inner_programs(eqn) and name not in OPERANDS and not cannot_open(eqn):
        raise UnknownPrimitiveError(
            f"every primitive with programs inside must be known, `{name}` is not (its parameters: "
            f"{', '.join(eqn.params)}): add it to the table in jaxnet/program/calls.py"
        )
    return None


def hi_primitive(eqn: Any) -> Any:
    """The hi-primitive that an equation calls."""
    return eqn.params["_prim"]


def expanded(eqn: Any) -> ClosedJaxpr:
    """The program of a hi-primitive, by its `expand`."""
    primitive = hi_primitive(eqn)

    def run(*leaves):
        return jax.tree.leaves(primitive.expand(*jax.tree.unflatten(primitive.in_tree, leaves)))

    return jax.make_jaxpr(run)(*(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars))


def source_words(program: ClosedJaxpr) -> list[str]:
    """The name of the traced function and the place of its definition, as JAX keeps them."""
    return str(getattr(program.jaxpr.debug_info, "func_src_info", "") or "").split(" at ")


def function_name(program: ClosedJaxpr) -> str:
    """The name of the function that a program was traced from."""
    return source_words(program)[0]


def scan_counts(eqn: Any) -> tuple[int, int]:
    """The number of a scan's inputs that are constant, and of those that are carried; the others are scanned."""
    if "num_carry" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    # jax 0.12 keeps the division of the inputs as a tree.
    consts, carry, _ = eqn.params["ft_in"].update(tuple(range(len(eqn.invars)))).unpack()
    return len(list(consts)), len(list(carry))


def bind(eqn: Any, values: Any) -> list:
    """An equation's results at other values."""
    params = eqn.params if not hasattr(eqn.primitive, "get_bind_params") else eqn.primitive.get_bind_params(eqn.params)
    out = eqn.primitive.bind(*values, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def equations(program: ClosedJaxpr) -> Iterator:
    """Every equation of a program, those of the programs inside included."""
    for eqn in program.jaxpr.eqns:
        yield eqn
        for inner in inner_programs(eqn):
            yield from equations(inner)


def is_rule(eqn: Any) -> bool:
    """Whether an equation has a derivative of its own; an operation of `jaxnet.lowering` does not count."""
    return eqn.primitive.name in RULES and op_name(eqn) is None


def has_custom(program: ClosedJaxpr) -> bool:
    """Whether a rule stands anywhere in a program."""
    return any(map(is_rule, equations(program)))
