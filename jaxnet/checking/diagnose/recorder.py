"""From a traced program to a tape: inner programs are put in their place, every equation evaluated in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend import core

from jaxnet.checking.diagnose import numeric
from jaxnet.checking.diagnose.source import Line, line_of
from jaxnet.checking.diagnose.tape import Site, Tape
from jaxnet.program.calls import scan_counts

_INLINED = {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint", "custom_jvp_call",
            "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_lin"}  # fmt: skip


_REINDEXING = {"reshape", "squeeze", "expand_dims", "broadcast_in_dim"}


class Recorder:
    """Walks a program, and writes down each operation."""

    def __init__(self, tape: Tape, limit: int):
        self.tape, self.limit = tape, limit

    def program(self, jaxpr, consts: Sequence[int], args: Sequence[int], path: Site, frame, line: Line) -> list[int]:
        env: dict[Any, int] = {}
        env.update(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))

        def read(v: Any) -> Any:
            return (
                self.tape.add(np.asarray(v.val, getattr(v.aval, "dtype", None)))
                if isinstance(v, core.Literal)
                else env[v]
            )

        for k, eqn in enumerate(jaxpr.eqns):
            if len(self.tape.ops) > self.limit:
                raise TooLongError(f"the backward program runs more than {self.limit:,} operations")
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
        if (
            name == "reduce_sum"
            and all(shape[a] == 1 for a in eqn.params["axes"])
            and numeric.is_float(tape.values[inputs[0]])
        ):
            new = tuple(n for a, n in enumerate(shape) if a not in eqn.params["axes"])
            return tape.emit(
                "reshape", lambda vs: [np.reshape(vs[0], new)], inputs, {"new_sizes": new}, path, frame, line, eqn
            )
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
                return tape.emit(
                    "reduce_keep", lambda vs: [np.sum(vs[0], axis=tuple(axes), keepdims=True)], [made.inputs[0]],
                    {"axes": axes}, (*made.site, "keep"), frame, made.line, eqn,
                )  # fmt: skip
        if eqn.primitive.name == "broadcast_in_dim" and chain != number:
            before = np.shape(tape.values[chain])
            if len(before) == len(target) and all(b in (1, t) for b, t in zip(before, target, strict=True)):
                kept = [a for a, b in enumerate(before) if b != 1]
                if [
                    d
                    for d, n in zip(eqn.params["broadcast_dimensions"], np.shape(tape.values[number]), strict=True)
                    if n != 1
                ] == kept:
                    return tape.emit(
                        "expand", lambda vs: [np.broadcast_to(vs[0], target)], [chain], {"shape": target}, path, frame,
                        line, eqn,
                    )  # fmt: skip
        return None

    def scan(self, eqn, inputs, path, frame, line) -> list[int]:
        params, tape = eqn.params, self.tape
        (n_consts, n_carry), length = scan_counts(eqn), params["length"]
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
                tape.emit(
                    "step", lambda vs, t=t: [vs[0][t]], [x], {"length": length}, (*path, "step", j), here, line, eqn
                )[0]
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
            on = np.asarray(tape.values[go[0]])
            if not on.any():
                return list(carry)
            after = self.closed(params["body_jaxpr"], [*body, *carry], (*path, "body"), here, line)
            carry = self.those_on(eqn, go[0], after, carry, (*path, "on"), here, line) if on.ndim else after
        raise TooLongError(f"a while loop runs more than {self.limit:,} steps")

    def those_on(self, eqn, on: int, after, before, path, frame, line) -> list[int]:
        """What a step hands on where the condition is one for each example: those that are done stay as they are."""

        def run(values):
            which, old, new = values
            return [np.where(which.reshape(which.shape + (1,) * (new.ndim - which.ndim)), new, old)]

        return [
            self.tape.emit("keep", run, [on, old, new], {}, (*path, j), frame, line, eqn)[0]
            for j, (old, new) in enumerate(zip(before, after, strict=True))
        ]


def _placed(eqn, axes, ndim: int) -> bool:
    """Whether a broadcast puts what a sum kept back at its own axes."""
    if eqn.primitive.name != "broadcast_in_dim":
        return True
    kept = [a for a in range(ndim) if a not in axes]
    given = [
        int(d) for d, n in zip(eqn.params["broadcast_dimensions"], eqn.invars[0].aval.shape, strict=True) if n != 1
    ]
    return given == [a for a in kept if eqn.outvars[0].aval.shape[a] != 1]


class TooLongError(ValueError):
    """The program is too long to be taken apart at this size."""
