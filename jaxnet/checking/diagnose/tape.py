"""A backward program written down operation by operation, and replayed with some of them changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxnet.checking.diagnose import numeric
from jaxnet.checking.diagnose.source import Line

Site = tuple
"""Where an equation stands: its index, below it the index in the inner program, and so on."""


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
        self.memo: dict[Any, Any] = {}
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

    def replay(
        self, changes: Mapping[Site, Callable], inputs: Mapping[int, Any] | None = None, *, behind: bool = False
    ) -> dict[str, Any]:
        """The leaves that change with `changes[site](op, inputs, values)` giving the results at some sites.

        `inputs` are other values for some inputs of the program, by their number. With `behind` the forward pass goes
        on as it was: a value that is wrong is so for the backward pass alone, as one that was saved wrong.
        """
        parts = [self.affected(site) for site in changes]
        if inputs:
            parts.append(self.reached(frozenset(inputs)))
        order = parts[0] if len(parts) == 1 else sorted(set().union(*parts))
        dirty: dict[int, Any] = dict(inputs or {})
        values = self.values
        look = Looking(self, dirty)
        with np.errstate(all="ignore"):
            for k in order:
                op = self.ops[k]
                change = changes.get(op.site)
                if change is None and not any(i in dirty for i in op.inputs):
                    continue
                if behind and change is None and not self.forward.isdisjoint(op.outputs):
                    continue
                ins = [dirty[i] if i in dirty else values[i] for i in op.inputs]
                if change is None:
                    outs = op.run(ins)
                else:
                    look.op = op
                    outs = change(op, ins, look)
                for i, out in zip(op.outputs, outs, strict=True):
                    if out is not values[i]:
                        dirty[i] = out
        return {path: dirty[i] for path, i in self.leaves.items() if i in dirty}


class Looking:
    """What a change may look at: any value of the same step that was computed before."""

    def __init__(self, tape: Tape, dirty: dict[int, Any]):
        self.tape, self.dirty, self.op = tape, dirty, tape.ops[0]

    def number(self, where: tuple[Site | None, int]) -> int:
        """The number of the value at (site, output) in this step, or (None, number) for an input of the program."""
        site, out = where
        if site is None:
            return out
        at = self.tape.instances[site]
        depth = len(next(iter(at)))
        frame = self.op.frame[:depth]
        # outside of a loop, what its last step gave
        last = max(at.values()) if len(self.op.frame) < depth else None
        return self.tape.ops[at[frame] if last is None else last].outputs[out]

    def __call__(self, where: tuple[Site | None, int]) -> Any:
        """The value itself."""
        number = self.number(where)
        return self.dirty.get(number, self.tape.values[number])
