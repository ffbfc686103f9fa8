"""The reference's backward program as a tape: every operation with its value, replayable with some of them changed.

`jax.vjp` of the primal is traced once; its inner programs (scan, while, cond, jit, remat, custom rules) are put in
their place and evaluated in numpy. A change is planted at a site (an equation, whichever step of a scan it runs in),
and only what depends on it is evaluated anew.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxnet.checking.diagnose import numeric
from jaxnet.checking.diagnose.source import Line, line_of

Site = tuple
"""Where an equation stands: its index, below it the index in the inner program, and so on."""

_INLINED = {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint", "custom_jvp_call",
            "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_lin"}  # fmt: skip
_REINDEXING = {"reshape", "squeeze", "expand_dims", "broadcast_in_dim"}


@dataclass(slots=True)
class Op:
    """One evaluated equation: `run` maps the values of `inputs` to those of `outputs`."""

    name: str
    run: Callable[[Sequence[Any]], list[Any]]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    params: Mapping[str, Any]
    site: Site
    frame: tuple[int, ...]
    line: Line
    eqn: Any = None


@dataclass
class Tape:
    """A backward program with all its values, in the order in which they were computed."""

    ops: list[Op] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    depends: list[bool] = field(default_factory=list)
    linear: list[bool] = field(default_factory=list)
    maker: dict[int, int] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    cotangents: list[int] = field(default_factory=list)
    leaves: dict[str, int] = field(default_factory=dict)
    args: dict[str, int] = field(default_factory=dict)
    outs: list[int] = field(default_factory=list)

    def add(self, value: Any, depends: bool = False, linear: bool = False) -> int:
        """A new value; returns its number."""
        self.values.append(value)
        self.depends.append(depends)
        self.linear.append(linear)
        return len(self.values) - 1

    def emit(self, name, run, inputs, params, site, frame, line, eqn=None) -> list[int]:
        """Evaluate one operation and write it down."""
        outs = [numeric.as_numpy(v) for v in run([self.values[i] for i in inputs])]
        depends = any(self.depends[i] for i in inputs)
        linear = any(self.linear[i] for i in inputs)
        numbers = [self.add(v, depends, linear and numeric.is_float(v)) for v in outs]
        self.ops.append(Op(name, run, tuple(inputs), tuple(numbers), params, site, frame, line, eqn))
        for n in numbers:
            self.maker[n] = len(self.ops) - 1
        return numbers

    def index(self) -> None:
        """Find which operations the leaves depend on, and the instances of each site."""
        needed = set(self.leaves.values())
        self.live: list[bool] = [False] * len(self.ops)
        for k in range(len(self.ops) - 1, -1, -1):
            if needed.intersection(self.ops[k].outputs):
                self.live[k] = True
                needed.update(self.ops[k].inputs)
        self.forward: set[int] = set(self.outs) | set(self.args.values())
        for op in reversed(self.ops):
            if not self.forward.isdisjoint(op.outputs):
                self.forward.update(op.inputs)
        self.instances: dict[Site, dict[tuple[int, ...], int]] = {}
        for k, op in enumerate(self.ops):
            self.instances.setdefault(op.site, {})[op.frame] = k
        self.uses: dict[int, list[int]] = {}
        for k, op in enumerate(self.ops):
            for i in op.inputs:
                self.uses.setdefault(i, []).append(k)
        self._affected: dict[Site, list[int]] = {}
        self._reached: dict[frozenset[int], list[int]] = {}

    def affected(self, site: Site) -> list[int]:
        """The live operations that depend on what happens at a site, that site's own included, in order."""
        if site not in self._affected:
            touched: set[int] = set()
            after = []
            first = min(self.instances.get(site, {(): len(self.ops)}).values())
            for k in range(first, len(self.ops)):
                op = self.ops[k]
                if self.live[k] and (op.site == site or not touched.isdisjoint(op.inputs)):
                    touched.update(op.outputs)
                    after.append(k)
            self._affected[site] = after
        return self._affected[site]

    def reached(self, numbers: frozenset[int]) -> list[int]:
        """The live operations that depend on these values, in order."""
        if numbers not in self._reached:
            touched, after = set(numbers), []
            for k, op in enumerate(self.ops):
                if self.live[k] and not touched.isdisjoint(op.inputs):
                    touched.update(op.outputs)
                    after.append(k)
            self._reached[numbers] = after
        return self._reached[numbers]

    def replay(self, changes: Mapping[Site, Callable], inputs: Mapping[int, Any] | None = None) -> dict[str, Any]:
        """The leaves that change with `changes[site](op, inputs, values)` giving the results at some sites.

        `inputs` are other values for some inputs of the program, by their number.
        """
        order = [self.affected(site) for site in changes]
        if inputs:
            order.append(self.reached(frozenset(inputs)))
        order = order[0] if len(order) == 1 else sorted(set().union(*order))
        dirty: dict[int, Any] = dict(inputs or {})
        values = self.values
        look = Looking(self, dirty)
        with np.errstate(all="ignore"):
            for k in order:
                op = self.ops[k]
                change = changes.get(op.site)
                if change is None and not any(i in dirty for i in op.inputs):
                    continue
                inputs = [dirty[i] if i in dirty else values[i] for i in op.inputs]
                if change is None:
                    outs = op.run(inputs)
                else:
                    look.op = op
                    outs = change(op, inputs, look)
                for i, out in zip(op.outputs, outs, strict=True):
                    if out is not values[i]:
                        dirty[i] = out
        return {path: dirty[i] for path, i in self.leaves.items() if i in dirty}


class Looking:
    """What a change may look at: any value of the same step that was computed before."""

    def __init__(self, tape: Tape, dirty: dict[int, Any]):
        self.tape, self.dirty, self.op = tape, dirty, tape.ops[0]

    def number(self, where: tuple[Site | None, int], shift: int = 0) -> int:
        """The number of the value at (site, output) in this step, or (None, number) for an input of the program."""
        site, out = where
        if site is None:
            return out
        depth = len(next(iter(self.tape.instances[site])))
        frame = self.op.frame[:depth]
        if shift:
            frame = (*frame[:-1], frame[-1] + shift)
        return self.tape.ops[self.tape.instances[site][frame]].outputs[out]

    def __call__(self, where: tuple[Site | None, int], shift: int = 0) -> Any:
        """The value itself."""
        number = self.number(where, shift)
        return self.dirty.get(number, self.tape.values[number])


class _Recorder:
    """Walks a program, and writes down each operation."""

    def __init__(self, tape: Tape, limit: int):
        self.tape, self.limit = tape, limit

    def program(self, jaxpr, consts: Sequence[int], args: Sequence[int], path: Site, frame, line: Line) -> list[int]:
        env: dict[Any, int] = {}
        env.update(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))

        def read(v):
            return self.tape.add(np.asarray(v.val, v.aval.dtype)) if isinstance(v, core.Literal) else env[v]

        for k, eqn in enumerate(jaxpr.eqns):
            if len(self.tape.ops) > self.limit:
                raise TooLong(f"the backward program runs more than {self.limit:,} operations")
            own = line_of(eqn)
            # a line of the user's inside an inner program is more telling than the line that called it
            outs = self.equation(eqn, [read(v) for v in eqn.invars], (*path, k), frame, own if own.file else line)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def closed(self, closed, args, path, frame, line) -> list[int]:
        if not hasattr(closed, "consts"):
            return self.program(closed, [], args, path, frame, line)
        consts = [self.tape.add(numeric.as_numpy(c)) for c in closed.consts]
        return self.program(closed.jaxpr, consts, args, path, frame, line)

    def equation(self, eqn, inputs: list[int], path: Site, frame, line: Line) -> list[int]:
        name, params, tape = eqn.primitive.name, eqn.params, self.tape
        inner = next((params[key] for key in ("call_jaxpr", "jaxpr", "fun_jaxpr") if key in params), None)
        depends = any(tape.depends[i] for i in inputs)
        if inner is not None or name == "cond":
            if not depends:
                return tape.emit(name, lambda vs: numeric.bind(eqn, vs), inputs, params, path, frame, line, eqn)
            if name in _INLINED:
                return self.closed(inner, inputs, path, frame, line)
            if name == "scan":
                return self.scan(eqn, inputs, path, frame, line)
            if name == "cond":
                index = int(np.clip(int(tape.values[inputs[0]]), 0, len(params["branches"]) - 1))
                return self.closed(params["branches"][index], inputs[1:], (*path, index), frame, line)
        if name == "while" and depends:
            return self.loop(eqn, inputs, path, frame, line)
        return self.plain(eqn, inputs, path, frame, line)

    def plain(self, eqn, inputs, path, frame, line) -> list[int]:
        """One equation; a sum whose axes only come back as ones is kept at its rank, so that it may go wrong."""
        tape, name = self.tape, eqn.primitive.name
        shape = np.shape(tape.values[inputs[0]]) if inputs else ()
        if name == "reduce_sum" and all(shape[a] == 1 for a in eqn.params["axes"]) and numeric.is_float(tape.values[inputs[0]]):
            new = tuple(n for a, n in enumerate(shape) if a not in eqn.params["axes"])
            return tape.emit("reshape", lambda vs: [np.reshape(vs[0], new)], inputs, {"new_sizes": new}, path, frame, line, eqn)
        if name in _REINDEXING and len(inputs) == 1:
            fused = self.fuse(eqn, inputs[0], path, frame, line)
            if fused is not None:
                return fused
        return tape.emit(name, numeric.evaluator(eqn), inputs, eqn.params, path, frame, line, eqn)

    def fuse(self, eqn, number: int, path, frame, line) -> list[int] | None:
        """sum then reshape to ones = a sum that keeps its axes; squeeze then broadcast = a broadcast."""
        tape = self.tape
        target = tuple(eqn.outvars[0].aval.shape)
        chain = number
        while chain in tape.maker and tape.ops[tape.maker[chain]].name in ("reshape", "squeeze", "keep", "expand"):
            op = tape.ops[tape.maker[chain]]
            if op.name == "expand":
                return None
            chain = op.inputs[0]
        made = tape.ops[tape.maker[chain]] if chain in tape.maker else None
        if made is not None and made.name == "reduce_sum":
            whole = np.shape(tape.values[made.inputs[0]])
            axes = made.params["axes"]
            if target == tuple(1 if a in axes else n for a, n in enumerate(whole)) and _placed(eqn, axes, len(whole)):
                run = lambda vs: [np.sum(vs[0], axis=tuple(axes), keepdims=True)]  # noqa: E731
                return tape.emit("reduce_keep", run, [made.inputs[0]], {"axes": axes}, made.site + ("keep",), frame, made.line, eqn)
        if eqn.primitive.name == "broadcast_in_dim" and chain != number:
            before = np.shape(tape.values[chain])
            if len(before) == len(target) and all(b in (1, t) for b, t in zip(before, target, strict=True)):
                kept = [a for a, b in enumerate(before) if b != 1]
                if [d for d, n in zip(eqn.params["broadcast_dimensions"], np.shape(tape.values[number]), strict=True) if n != 1] == kept:
                    run = lambda vs: [np.broadcast_to(vs[0], target)]  # noqa: E731
                    return tape.emit("expand", run, [chain], {"shape": target}, path, frame, line, eqn)
        return None

    def scan(self, eqn, inputs, path, frame, line) -> list[int]:
        params, tape = eqn.params, self.tape
        n_consts, n_carry, length = params["num_consts"], params["num_carry"], params["length"]
        consts, carry, xs = inputs[:n_consts], inputs[n_consts : n_consts + n_carry], inputs[n_consts + n_carry :]
        steps = range(length - 1, -1, -1) if params["reverse"] else range(length)
        collected: list[list[int]] = [[] for _ in range(len(eqn.outvars) - n_carry)]
        for nth, t in enumerate(steps):
            here = (*frame, t)
            if nth:
                carry = [
                    tape.emit("carry", lambda vs: list(vs), [c], {}, (*path, "carry", j), here, line, eqn)[0]
                    for j, c in enumerate(carry)
                ]
            sliced = [
                tape.emit("step", lambda vs, t=t: [vs[0][t]], [x], {"length": length}, (*path, "step", j), here, line, eqn)[0]
                for j, x in enumerate(xs)
            ]
            outs = self.closed(params["jaxpr"], [*consts, *carry, *sliced], (*path, "body"), here, line)
            carry = outs[:n_carry]
            for column, out in zip(collected, outs[n_carry:], strict=True):
                column.append(out)
        stacked = []
        for j, column in enumerate(collected):
            ordered = column[::-1] if params["reverse"] else column
            if not ordered:
                aval = eqn.outvars[n_carry + j].aval
                stacked.append(tape.add(np.zeros(aval.shape, aval.dtype)))
                continue
            site = (*path, "stack", j)
            stacked += tape.emit("stack", lambda vs: [np.stack(vs)], ordered, {}, site, frame, line, eqn)
        return [*carry, *stacked]

    def loop(self, eqn, inputs, path, frame, line) -> list[int]:
        params, tape = eqn.params, self.tape
        n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
        cond, body, carry = inputs[:n_cond], inputs[n_cond : n_cond + n_body], inputs[n_cond + n_body :]
        for t in range(self.limit):
            here = (*frame, t)
            go = self.closed(params["cond_jaxpr"], [*cond, *carry], (*path, "cond"), here, line)
            if not bool(tape.values[go[0]]):
                return list(carry)
            carry = self.closed(params["body_jaxpr"], [*body, *carry], (*path, "body"), here, line)
        raise TooLong(f"a while loop runs more than {self.limit:,} steps")


def _placed(eqn, axes, ndim: int) -> bool:
    """Whether a broadcast puts what a sum kept back at its own axes."""
    if eqn.primitive.name != "broadcast_in_dim":
        return True
    kept = [a for a in range(ndim) if a not in axes]
    given = [int(d) for d, n in zip(eqn.params["broadcast_dimensions"], eqn.invars[0].aval.shape, strict=True) if n != 1]
    return given == [a for a in kept if eqn.outvars[0].aval.shape[a] != 1]


class TooLong(ValueError):
    """The program is too long to be taken apart at this size."""


def widened(x: Any) -> Any:
    """x with half-precision numbers in float32, in which mutants are compared."""
    return x.astype(np.float32) if numeric.is_float(x) and jnp.dtype(x.dtype).itemsize < 4 else x


@dataclass(frozen=True)
class Program:
    """The reference's backward program, traced for these shapes; `at` evaluates it at given numbers."""

    closed: Any
    paths: tuple[str, ...]
    differentiable: tuple[bool, ...]
    out_float: tuple[bool, ...]
    labels: tuple[str, ...]
    limit: int

    def at(self, args: tuple, cotangent: Any) -> Tape:
        """The tape at these inputs and this cotangent."""
        tape = Tape()
        recorder = _Recorder(tape, self.limit)
        inputs = []
        for path, label, leaf in zip(self.paths, self.labels, jax.tree.leaves(args), strict=True):
            number = tape.add(numeric.as_numpy(widened(leaf)), depends=numeric.is_float(leaf))
            tape.args[path] = number
            tape.names[number] = label
            inputs.append(number)
        cts = [ct for ct, kept in zip(cotangent_leaves(cotangent), self.out_float, strict=True) if kept]
        for k, ct in enumerate(cts):
            number = tape.add(numeric.as_numpy(widened(ct)), depends=True, linear=True)
            tape.names[number] = "d_out" if len(cts) == 1 else f"d_out[{k}]"
            tape.cotangents.append(number)
            inputs.append(number)
        with np.errstate(all="ignore"):
            outs = recorder.closed(self.closed, inputs, (), (), Line())
        wanted = [path for path, kept in zip(self.paths, self.differentiable, strict=True) if kept]
        tape.leaves = dict(zip(wanted, outs, strict=False))
        tape.outs = outs[len(wanted) :]
        tape.index()
        return tape


def cotangent_leaves(cotangent: Any) -> list[Any]:
    """The leaves of a cotangent, with None as one."""
    return jax.tree.leaves(cotangent, is_leaf=lambda v: v is None)


def split(primal: Callable, args: tuple) -> tuple[Callable, list[Any], Callable[[list[Any]], tuple]]:
    """The primal as a function of its inexact leaves giving its inexact outputs; these leaves; and how to rebuild args."""
    leaves, tree = jax.tree.flatten(args)
    where = [k for k, leaf in enumerate(leaves) if numeric.is_float(leaf)]

    def rebuild(inexact):
        full = list(leaves)
        for k, leaf in zip(where, inexact, strict=True):
            full[k] = leaf
        return jax.tree.unflatten(tree, full)

    def function(inexact):
        return [out for out in jax.tree.leaves(primal(*rebuild(inexact))) if numeric.is_float(out)]

    return function, [leaves[k] for k in where], rebuild


def trace(primal: Callable, args: tuple, *, limit: int = 200_000) -> Program:
    """Trace the backward program of `primal` at the shapes of `args`.

    Raises whatever the primal raises when it is traced, and `ValueError` where no input can be differentiated.
    """
    args = jax.tree.map(lambda x: widened(jnp.asarray(x)) if numeric.is_float(x) else x, args)
    leaves, tree = jax.tree_util.tree_flatten_with_path(args)
    paths = tuple(jax.tree_util.keystr(path) for path, _ in leaves)
    inexact = tuple(numeric.is_float(leaf) for _, leaf in leaves)
    if not any(inexact):
        raise ValueError("the primal takes no floating-point input: there is nothing to differentiate")
    shapes = jax.tree.leaves(jax.eval_shape(primal, *args))
    out_float = tuple(jnp.issubdtype(s.dtype, jnp.inexact) for s in shapes)

    def backward(flat, cts):
        def forward(moving):
            full = iter(moving)
            whole = [next(full) if is_in else leaf for leaf, is_in in zip(flat, inexact, strict=True)]
            outs = jax.tree.leaves(primal(*jax.tree.unflatten(tree, whole)))
            return [out for out, kept in zip(outs, out_float, strict=True) if kept]

        moving = [leaf for leaf, is_in in zip(flat, inexact, strict=True) if is_in]
        outs, pull = jax.vjp(forward, moving)
        return pull(cts)[0], outs

    cts = [jax.ShapeDtypeStruct(s.shape, s.dtype) for s, kept in zip(shapes, out_float, strict=True) if kept]
    closed = jax.make_jaxpr(backward)([leaf for _, leaf in leaves], cts)
    return Program(closed, paths, inexact, out_float, labels(primal, args), limit)


def labels(primal: Callable, args: tuple) -> tuple[str, ...]:
    """A short name for each leaf of the arguments: the parameter's, else the last key of its path."""
    try:
        names = [p.name for p in inspect.signature(primal).parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    except (TypeError, ValueError):
        names = []
    found = []
    for path, _ in jax.tree_util.tree_flatten_with_path(args)[0]:
        position = path[0].idx
        base = names[position] if position < len(names) else f"arg{position}"
        keys = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path[1:]]
        found.append(base if not keys else keys[-1] if not keys[-1].isdigit() else f"{base}[{']['.join(keys)}]")
    duplicated = {name for name in found if found.count(name) > 1}
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(args)[0]]
    return tuple(path if name in duplicated else name for name, path in zip(found, paths, strict=True))
