"""A function's program, walked equation by equation: the custom rules in it, what reaches them, where a NaN arises."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun
from jax.extend.source_info_util import summarize

from jaxnet.lowering.op import op_name

CUSTOM = ("custom_vjp_call", "custom_jvp_call", "custom_vjp_call_jaxpr")
OPAQUE = ("pallas_call", "shard_map", "custom_partitioning")


def where(eqn) -> str:
    """file:line of the code that an equation comes from."""
    return summarize(eqn.source_info)


def inner(eqn) -> list[ClosedJaxpr]:
    """The programs inside an equation."""
    found = []
    for value in eqn.params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, ClosedJaxpr):
                found.append(each)
            elif isinstance(each, Jaxpr) and not each.constvars:  # else its constants are with whoever runs it
                found.append(ClosedJaxpr(each, ()))
    return found


def scan_counts(eqn) -> tuple[int, int]:
    """How many of a scan's inputs are the same in every step, and how many it carries; what follows is scanned."""
    if "num_carry" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    # jax 0.12 keeps how the inputs are divided as a tree of them
    consts, carry, _ = eqn.params["ft_in"].update(tuple(range(len(eqn.invars)))).unpack()
    return len(list(consts)), len(list(carry))


def equations(program: ClosedJaxpr) -> Iterator:
    """Every equation, those of inner programs included."""
    for eqn in program.jaxpr.eqns:
        yield eqn
        for sub in inner(eqn):
            yield from equations(sub)


def is_rule(eqn) -> bool:
    """Whether an equation is a custom rule; an operation of `jaxnet.lowering` is none."""
    return eqn.primitive.name in CUSTOM and op_name(eqn) is None


def has_custom(program: ClosedJaxpr) -> bool:
    """Whether a custom rule stands anywhere in a program."""
    return any(map(is_rule, equations(program)))


def float_dtypes(program: ClosedJaxpr) -> set:
    """The float dtypes that a program computes in; what it is given, and constants, are left out."""
    variables = [v for eqn in equations(program) for v in eqn.outvars]
    return {
        jnp.finfo(v.aval.dtype).dtype
        for v in variables
        if hasattr(v.aval, "dtype") and jnp.issubdtype(v.aval.dtype, jnp.inexact)
    }


@dataclass(frozen=True)
class Site:
    """A custom rule in a program, with the inputs that reach it."""

    name: str
    where: str
    function: Callable  # (*inputs) -> tuple of outputs, with the custom rule
    primal: Callable  # the same with the rule left aside
    inputs: tuple
    identity: int  # of the function that is its backward pass or its jvp
    path: str  # "scan step 3", "jit f": on the way from the outside

    @property
    def key(self) -> tuple:
        """The same for two uses of one rule at one place and shape."""
        return self.name, self.where, self.identity, tuple((np.shape(x), str(x.dtype)) for x in self.inputs)


def bind(eqn, values: Sequence) -> list:
    """An equation's results at other values."""
    params = eqn.params if not hasattr(eqn.primitive, "get_bind_params") else eqn.primitive.get_bind_params(eqn.params)
    out = eqn.primitive.bind(*values, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def body_of(eqn) -> ClosedJaxpr:
    """The program inside an equation that has one."""
    return inner(eqn)[0]


class Walk:
    """Evaluates a program. `custom(walk, eqn, values, path)` is asked at each rule, `seen(eqn, outs)` at each equation.

    Programs without anything to ask in them are run as they stand, unless `every` says to go into all.
    """

    def __init__(self, custom: Callable | None = None, seen: Callable | None = None, every: bool = False):
        self.custom, self.seen, self.every = custom, seen, every

    def run(self, program: ClosedJaxpr, args: Sequence, path: tuple[str, ...] = ()) -> list:
        """The program's results."""
        env: dict = {}

        def read(atom):
            return atom.val if isinstance(atom, Literal) else env[atom]

        env.update(zip(program.jaxpr.constvars, program.consts, strict=True))
        env.update(zip(program.jaxpr.invars, args, strict=True))
        for eqn in program.jaxpr.eqns:
            outs = self.equation(eqn, [read(atom) for atom in eqn.invars], path)
            if self.seen is not None:
                self.seen(eqn, outs)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in program.jaxpr.outvars]

    def equation(self, eqn, values: list, path: tuple[str, ...]) -> list:
        name = eqn.primitive.name
        if is_rule(eqn) and self.custom is not None:
            return self.custom(self, eqn, values, path)
        if name in OPAQUE or not (subs := inner(eqn)) or not (self.every or any(map(has_custom, subs))):
            return bind(eqn, values)
        if name == "scan":
            return self.scan(eqn, values, path)
        if name == "while":
            return self.loop(eqn, values, path)
        if name == "cond":
            index = int(values[0])
            return self.run(eqn.params["branches"][index], values[1:], (*path, f"branch {index}"))
        if len(subs) == 1 and len(subs[0].jaxpr.invars) == len(values):
            return self.run(subs[0], values, path)
        return bind(eqn, values)

    def scan(self, eqn, values, path) -> list:
        consts, carries = scan_counts(eqn)
        fixed, carry, xs = values[:consts], values[consts : consts + carries], values[consts + carries :]
        steps = range(eqn.params["length"])
        ys: list = []
        for t in reversed(steps) if eqn.params["reverse"] else steps:
            out = self.run(eqn.params["jaxpr"], [*fixed, *carry, *(x[t] for x in xs)], (*path, f"scan step {t}"))
            carry, y = out[:carries], out[carries:]
            ys.append(y)
        if eqn.params["reverse"]:
            ys.reverse()
        shapes = [v.aval for v in eqn.outvars[carries:]]
        stacked = (
            [jnp.stack(column) for column in zip(*ys, strict=True)]
            if ys
            else [jnp.zeros(a.shape, a.dtype) for a in shapes]
        )
        return [*carry, *stacked]

    def loop(self, eqn, values, path) -> list:
        condition, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
        a, b = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        asked, fixed, carry = values[:a], values[a : a + b], values[a + b :]
        step = 0
        while np.any(on := Walk().run(condition, [*asked, *carry])[0]):
            carry = going_on(on, self.run(body, [*fixed, *carry], (*path, f"while step {step}")), carry)
            step += 1
        return list(carry)


def going_on(on: Any, after: Sequence, before: Sequence) -> tuple:
    """What a step of a while loop hands on: `after`, and where the condition is one for each example, its own."""
    on = jnp.asarray(on)
    if not on.ndim:
        return tuple(after)
    kept = (jnp.broadcast_to(on.reshape(on.shape + (1,) * (a.ndim - on.ndim)), a.shape) for a in after)
    return tuple(jax.lax.select(k, a, b) for k, a, b in zip(kept, after, before, strict=True))


def while_loop(condition: Callable, body: Callable, carry: Sequence) -> tuple:
    """A while loop of a traced program, where a batched condition gives one truth for each example."""

    def step(carry):
        return going_on(condition(*carry), tuple(body(*carry)), carry)

    return jax.lax.while_loop(lambda carry: jnp.any(condition(*carry)), step, tuple(carry))


def identity(eqn) -> int:
    """The same number for two uses of one custom rule."""
    rule = eqn.params.get("bwd") or eqn.params.get("jvp_jaxpr_fun")
    return id(getattr(rule, "f", rule))


def name_and_place(eqn) -> tuple[str, str]:
    """The name of the function that carries a custom rule, and file:line of where it is defined."""
    program = eqn.params.get("call_jaxpr") or eqn.params["fun_jaxpr"]
    words = str(getattr(program.jaxpr.debug_info, "func_src_info", "") or "").split(" at ")
    return words[0] or "rule", words[1] if len(words) > 1 else where(eqn)


def at_dtypes(program: ClosedJaxpr) -> Callable:
    """A program as a function, in the dtypes that it was traced in, or in float64 where its inputs are."""

    def run(*inputs):
        from jaxnet.checking.widening import widened_program

        traced = all(x.dtype == v.aval.dtype for x, v in zip(inputs, program.jaxpr.invars, strict=True))
        return tuple((jaxpr_as_fun(program) if traced else widened_program(program))(*inputs))

    return run


def custom_sites(function: Callable, args: tuple, limit: int = 4096) -> list[Site]:
    """Every custom rule in `function(*args)`, at any depth, with the inputs that reach it there."""
    program = jax.make_jaxpr(function)(*args)
    sites: list[Site] = []

    def found(walk, eqn, values, path):
        name, place = name_and_place(eqn)
        program = eqn.params.get("call_jaxpr") or eqn.params["fun_jaxpr"]
        if len(sites) < limit:
            sites.append(
                Site(
                    name,
                    place,
                    lambda *inputs: tuple(bind(eqn, inputs)),
                    at_dtypes(program),
                    tuple(jnp.asarray(v) for v in values),
                    identity(eqn),
                    ", ".join(path),
                )
            )
        return walk.run(program, values, (*path, name)) if has_custom(program) else bind(eqn, values)

    if has_custom(program):
        Walk(custom=found).run(program, jax.tree.leaves(args))
    return sites


def without_rules(function: Callable) -> Callable:
    """The same function with every custom rule in it left aside, so that autodiff goes through its primal."""

    def plain(*args):
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        return jax.tree.unflatten(jax.tree.structure(shapes), inlined(program)(*jax.tree.leaves(args)))

    return plain


def as_branch(body: Callable) -> Callable:
    """A function that gives a tuple, for `jax.lax.switch`."""
    return lambda *values: tuple(body(*values))


def inlined(program: ClosedJaxpr) -> Callable:
    """A program as a function of its flat inputs, traceable, custom rules replaced by their primals at any depth."""

    def step(eqn, values):
        name, subs = eqn.primitive.name, inner(eqn)
        if name in OPAQUE or not (is_rule(eqn) or any(map(has_custom, subs))):
            return bind(eqn, values)
        if name == "scan":
            consts, carries = scan_counts(eqn)
            body, fixed = inlined(eqn.params["jaxpr"]), values[:consts]

            def one(carry, xs):
                out = body(*fixed, *carry, *xs)
                return tuple(out[:carries]), tuple(out[carries:])

            carry, ys = jax.lax.scan(
                one,
                tuple(values[consts : consts + carries]),
                tuple(values[consts + carries :]),
                length=eqn.params["length"],
                reverse=eqn.params["reverse"],
            )
            return [*carry, *ys]
        if name == "while":
            a, b = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
            condition, body = inlined(eqn.params["cond_jaxpr"]), inlined(eqn.params["body_jaxpr"])
            asked, fixed, carry = values[:a], values[a : a + b], values[a + b :]
            return list(while_loop(lambda *c: condition(*asked, *c)[0], lambda *c: body(*fixed, *c), carry))
        if name == "cond":
            branches = [as_branch(inlined(body)) for body in eqn.params["branches"]]
            return list(jax.lax.switch(values[0], branches, *values[1:]))
        return inlined(subs[0])(*values)

    def run(*args):
        env = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
        env.update(zip(program.jaxpr.invars, args, strict=True))

        def read(atom):
            return atom.val if isinstance(atom, Literal) else env[atom]

        for eqn in program.jaxpr.eqns:
            env.update(zip(eqn.outvars, step(eqn, [read(atom) for atom in eqn.invars]), strict=True))
        return [read(atom) for atom in program.jaxpr.outvars]

    return run


def first_not_finite(function: Callable, *args: Any) -> str | None:
    """The first term of `function(*args)` where a NaN or an infinity arises from finite numbers: operation and line."""
    found: list[str] = []

    def seen(eqn, outs):
        if found or not (kinds := {kind for out in outs if (kind := not_finite(out))}):
            return
        kind = "a NaN" if "NaN" in kinds else "an infinity"
        found.append(f"{kind} arises in `{eqn.primitive.name}` at {where(eqn)}")

    program = jax.make_jaxpr(function)(*args)
    flat = jax.tree.leaves(args)
    if any(not_finite(leaf) for leaf in flat):
        return "it stands in the inputs"
    Walk(seen=seen, custom=lambda walk, eqn, values, path: walk.run(body_of(eqn), values), every=True).run(
        program, flat
    )
    return found[0] if found else None


def not_finite(value) -> str:
    """ "NaN", "infinity" or nothing."""
    if not hasattr(value, "dtype") or not jnp.issubdtype(value.dtype, jnp.inexact):
        return ""
    host = np.asarray(value)
    host = host.astype(np.float32) if host.dtype.itemsize <= 2 else host
    return "NaN" if np.isnan(host).any() else "infinity" if np.isinf(host).any() else ""
