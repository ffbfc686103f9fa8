"""A layer's own forward and backward, run with each operation of the author's source kept, and its value.

The code of `marked_source` calls a recorder in place of each operator, call, index and assignment. It runs the
operation and keeps what it took, what it gave, and the name that the line assigns. Functions that they call are opened
likewise, those of libraries are not. Inside `jax.vmap` and `jax.lax.scan` the values come back with the axis that these
add.
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxnet.explaining.marked_source import OPERATORS, RECORDER, author_function, recording_code
from jaxnet.explaining.program_operations import from_program
from jaxnet.explaining.recording import (
    FUNCTIONS,
    OWN,
    SAME,
    Array,
    RecordedOperation,
    Recording,
    arrays_in,
    is_array,
    is_float,
    link,
)
from jaxnet.factors import is_factor
from jaxnet.layer import EXAMPLES, Layer, Reading, Tree
from jaxnet.lowering import plain_forms

CAPTURE = Reading(lambda passing: passing, out_axes=0)


class Recorder:
    """Runs functions and keeps their operations in a `Recording`."""

    def __init__(self, by_steps: bool = False):
        self.recording = Recording()
        self.alive: list[Any] = []
        self.arrays: list[dict[int, Any]] = [{}]
        self.forward = True
        self.opened: dict[int, Callable] = {}
        self.depth = 0
        self.probed: list[tuple[int, Any]] = []
        self.probes: Sequence[Any] | None = None
        self.by_steps = by_steps  # whether values at a scan's steps have probes too
        self.in_step: list[tuple[int, Any]] = []
        self.step_probes: Sequence[Any] = ()
        self.counts: list[int] = []  # of probes in each scan

    def ref(self, value: Any) -> int:
        """The number of an array, a new one for a new array."""
        known = self.recording.refs
        if id(value) not in known:
            known[id(value)] = len(self.alive)
            self.alive.append(value)
            if self.forward:
                self.recording.early.add(known[id(value)])
            self.arrays[-1][known[id(value)]] = value
        return known[id(value)]

    def root(self, value: Any) -> int:
        """The number of the value that an array was before its dtype or shape was changed."""
        return self.recording.root(self.ref(value))

    def numbered(self, operands: Any) -> Any:
        """Operands with an `Array` in the place of each array."""
        if is_array(operands):
            return Array(self.ref(operands), operands.shape)
        if type(operands) in (tuple, list):
            return type(operands)(map(self.numbered, operands))
        return operands

    # ------------------------------------------------------------------------------- called by the author's functions

    slice = staticmethod(slice)

    def operator(self, kind: str, *operands: Any) -> Any:
        """An operator of Python."""
        name, run = OPERATORS[kind]
        return self.kept(name, run(*operands), operands, {})

    def method(self, of: Any, name: str, *args: Any, **options: Any) -> Any:
        """A method of an array, or any other function that is an attribute."""
        if is_array(of):
            return self.kept(name, getattr(of, name)(*args, **options), (of, *args), options)
        found = getattr(of, name)
        if name == "get" and is_array(rows := getattr(of, "array", None)):  # W.at[i].get(…)
            return self.kept("getitem", found(*args, **options), (rows, getattr(of, "index", None)), {})
        return self.call(found, *args, **options)

    def call(self, f: Any, *args: Any, **options: Any) -> Any:
        """A call: of an opened function, or of a library's."""
        inner = self.opens(f)
        if inner is not f or getattr(f, "__module__", "") == __name__:
            self.depth += 1
            result = inner(*args, **options)
            self.depth -= 1
            if is_array(result):
                self.recording.calls.setdefault(self.root(result), (getattr(f, "__name__", ""), self.numbered(args)))
            return result
        result = f(*args, **options)
        if f is math.sqrt:
            self.recording.roots[result] = args[0]
        return self.kept(getattr(f, "__name__", ""), result, args, options)

    def kept(self, name: str, result: Any, args: tuple, options: dict[str, Any]) -> Any:
        """The result of an operation, kept where it is an array, or several."""
        several, taken = isinstance(result, tuple | list), self.numbered(args)
        chosen = {key: self.numbered(each) for key, each in options.items()}
        for each in result if several else (result,):
            constant = name in FUNCTIONS and np.shape(each) == ()  # √4
            if is_array(each) and id(each) not in self.recording.refs and (constant or any(arrays_in((taken, chosen)))):
                ref = self.ref(each)
                self.recording.operations[ref] = RecordedOperation(ref, name, taken, chosen, self.forward, several)
                if name in SAME and is_array(args[0]) and each.size == args[0].size:
                    self.recording.same[ref] = self.ref(args[0])
        return result

    def assigned(self, names: Any, line: tuple, value: Any) -> Any:
        """A value is assigned to a name, or its parts to several."""
        if isinstance(value, Iterator):
            value = tuple(value)
        for name, part in named_parts(names, value):
            self.named(name, line, part)
        return type(value)(map(self.probe, value)) if type(value) in (tuple, list) else self.probe(value)

    def named(self, name: str, line: tuple, value: Any) -> None:
        """The name of a value: the layer's own for it, or else that of the innermost function."""
        if not is_array(value):
            return
        recording, ref = self.recording, self.root(value)
        depth = min(self.depth, OWN + 1)
        if ref not in recording.operations and self.forward:
            recording.outside[ref] = (name, depth, (*line, name))
        if (ref in recording.operations and recording.operations[ref].forward == self.forward
                and depth < recording.depths.get(ref, OWN + 2)):  # fmt: skip
            recording.names[ref], recording.depths[ref], recording.lines[ref] = name, depth, (*line, name)

    def probe(self, value: Any) -> Any:
        """A forward value that a line names, with its probe added, a zero by which the cost is differentiated."""
        if not self.forward or not isinstance(value, jax.Array) or not is_float(value):
            return value  # an array of NumPy is a constant
        if len(self.arrays) > 1:
            self.in_step.append((self.root(value), jax.typeof(value)))
            return value + self.step_probes[len(self.in_step) - 1] if self.step_probes else value
        self.probed.append((self.root(value), jax.typeof(value)))
        return value if self.probes is None else value + self.probes[len(self.probed) - 1]

    # ------------------------------------------------------------------------------------------- functions that are run

    def nested(self, f: Callable) -> Callable:
        """A function that gives the values kept while it runs beside its own."""

        def run(*args, **kwargs):
            self.arrays.append({})
            try:
                result = f(*args, **kwargs)
                return result, self.arrays[-1]
            finally:
                self.arrays.pop()

        return run

    def keep(self, arrays: dict[int, Any]) -> None:
        """Values of an inner function, with one axis more."""
        for ref, value in arrays.items():
            self.arrays[-1][ref] = value
            self.recording.stacked[ref] = self.recording.stacked.get(ref, 0) + 1

    def vmap(self, f: Callable, in_axes: Any = 0, out_axes: Any = 0, **options: Any) -> Callable:
        """`jax.vmap` of an opened function."""

        def mapped(*args):
            run = self.nested(self.opens(f))
            result, arrays = jax.vmap(run, in_axes, (out_axes, 0), **options)(*args)
            self.keep(arrays)
            return result

        return mapped

    def scan(self, f: Callable, init: Any, xs: Any = None, *args: Any, **options: Any) -> Any:
        """`jax.lax.scan` of an opened function."""
        inner, probed = self.opens(f), self.by_steps and self.forward and len(self.arrays) == 1
        given: Sequence[Any] = ()

        def probing(carry, x):
            carry, y = inner(carry, x)
            return jax.tree.map(self.probe, carry), y

        run = self.nested(probing if probed else inner)
        if probed and self.probes is not None:
            given = self.probes[len(self.probed) : len(self.probed) + self.counts.pop(0)]

        def step(carry, each):
            x, self.step_probes = each
            self.in_step = []
            (carry, y), arrays = run(carry, x)
            self.step_probes = ()
            return carry, (y, arrays)

        carry, (ys, arrays) = jax.lax.scan(step, init, (xs, given), *args, **options)
        if probed:
            steps = [len(each) for each in jax.tree.leaves(arrays)][:1]
            self.probed += [(ref, jax.ShapeDtypeStruct((*steps, *of.shape), of.dtype)) for ref, of in self.in_step]
            self.counts.append(len(self.in_step))
        self.keep(arrays)
        return carry, ys

    def opens(self, f: Any) -> Callable:
        """The function to be called in another's place: opened, where its source is the author's."""
        if f is jax.vmap:
            return self.vmap
        if f is jax.lax.scan:
            return self.scan
        if f is jax.lax.optimization_barrier:
            return lambda operand: operand
        if isinstance(f, functools.partial):
            return functools.partial(self.opens(f.func), *f.args, **f.keywords)
        if isinstance(f, types.MethodType):
            inner = self.opens(f.__func__)
            return f if inner is f.__func__ else types.MethodType(inner, f.__self__)
        plain = author_function(f)
        if plain is None or plain.__module__ == __name__:
            return f
        if id(plain) not in self.opened:
            code = recording_code(plain.__code__)
            if code is not None:
                self.opened[id(plain)] = self.recording_function(plain, code)
            else:  # a function of the layer itself is then read off its program
                own = self.depth < OWN
                self.opened[id(plain)] = from_program(plain, self.kept, tuple(FUNCTIONS)) if own else f
            self.alive.append(plain)
        return self.opened[id(plain)]

    def recording_function(self, function: types.FunctionType, code: types.CodeType) -> Callable:
        """A function with the code that calls this recorder."""
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        cells[RECORDER] = types.CellType(self)
        closure = tuple(cells[name] for name in code.co_freevars)
        made = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
        made.__kwdefaults__ = function.__kwdefaults__
        return made


def named_parts(names: Any, value: Any) -> Iterator[tuple[str, Any]]:
    """The names of a target, `z` or `(a, b)`, each with its value."""
    if isinstance(names, str):
        yield names, value
    elif isinstance(names, tuple) and isinstance(value, tuple | list):
        for each, part in zip(names, value, strict=False):
            yield from named_parts(each, part)


# -------------------------------------------------------------------------------------------------- a layer


def record(
    layer: Layer, params: Tree, x: Any, d_out: Any, positions: int = 0, training: bool = False, by_steps: bool = False
) -> Recording:
    """A layer's operations at one example, in float64.

    positions: how many leading axes of x the layer is applied along; the values then have them in front. training:
    whether the first of these are the examples of a batch in training. by_steps: whether the slopes of values at a
    scan's steps are wanted.
    """
    with jax.enable_x64(True), plain_forms():
        wide = jax.tree.map(in_float64, (params, x, d_out))
        leaves, structure = jax.tree.flatten(jax.tree.map(jax.typeof, wide))
        run, plan = compiled(layer, positions, training, by_steps, tuple(leaves), structure)
        values, grads, slopes = jax.device_get(run(*wide))
        others, _, other_slopes = jax.device_get(run(elsewhere(wide[0], 1), wide[1], elsewhere(wide[2], 2)))
    summed = (np.asarray(value).sum(tuple(range(positions))) for value in grads)
    recording = replace(
        plan, values=values, slopes=slopes, others=others, other_slopes=other_slopes, same=dict(plan.same), moved={},
        names=dict(plan.names), depths=dict(plan.depths), lines=dict(plan.lines),
        stacked={ref: plan.stacked.get(ref, 0) + positions for ref in values},
        grads=dict(zip(plan.factors, summed, strict=True)),
    )  # fmt: skip
    if training:  # statistics of the batch are one for all examples
        same = [ref for ref, value in values.items() if len(value) > 1 and (value == value[:1]).all()
                and (others[ref] == others[ref][:1]).all()]  # fmt: skip
        for ref in same:
            values[ref], others[ref], recording.stacked[ref] = values[ref][0], others[ref][0], positions - 1
    link(recording)
    for ref, (kind, _) in recording.given.items():
        if kind == "param" and recording.stacked[ref]:  # a parameter is one for all positions
            value = recording.values[ref]
            recording.values[ref] = value.reshape(-1, *value.shape[recording.stacked[ref] :])[0]
            recording.stacked[ref] = 0
    return recording


@functools.lru_cache(maxsize=64)
def compiled(
    layer: Layer, positions: int, training: bool, by_steps: bool, types_of: tuple, structure: Any
) -> tuple[Callable, Recording]:
    """The program that gives all values of a layer, without optimisation, and the recording that lacks these values."""
    made: list[Recording] = []

    def one(params, x, d_out):
        recorder = Recorder(by_steps)
        recording = recorder.recording
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            recording.given[recorder.ref(leaf)] = ("param", path)
        recording.given[recorder.ref(x)] = ("x", ())
        out, saved = recorder.opens(layer.forward)(params, x, None, training)
        recording.out = recorder.ref(out)
        recorder.forward = False
        recording.given.setdefault(recorder.ref(d_out), ("d_out", ()))
        dx, passing = recorder.opens(layer.backward)(params, saved, d_out, CAPTURE)
        recording.dx = recorder.ref(dx) if is_array(dx) else -1
        leaves = jax.tree_util.tree_leaves_with_path(passing.factors, is_leaf=is_factor)
        recording.factors = {path: factor for path, factor in leaves if is_factor(factor)}
        for leaf in jax.tree.leaves(list(recording.factors.values())):
            recorder.ref(leaf)

        def cost(probes):  # ⟨out, d_out⟩
            again = Recorder(by_steps)
            again.probes, again.counts = probes, list(recorder.counts)
            return jax.numpy.vdot(again.opens(layer.forward)(params, x, None, training)[0], d_out)

        slopes = jax.grad(cost)([jax.numpy.zeros(each.shape, each.dtype) for _, each in recorder.probed])
        made.append(recording)
        return (
            recorder.arrays[-1],
            [each.multiply() for each in recording.factors.values()],
            {ref: slope for (ref, _), slope in reversed([*zip(recorder.probed, slopes, strict=True)])},
        )

    run = one
    for i in range(positions):
        examples = EXAMPLES if training and i == positions - 1 else None
        run = jax.vmap(run, (None, 0, 0), axis_name=examples)
    lowered = jax.jit(run).lower(*jax.tree.unflatten(structure, types_of))
    return lowered.compile({"xla_backend_optimization_level": "0"}), made[-1]


def elsewhere(tree: Tree, seed: int) -> Tree:
    """The same tree with other floats, near by."""
    draw = np.random.default_rng(seed)

    def near(value):
        return value * draw.uniform(1, 1.5, value.shape) + draw.uniform(0, 0.5, value.shape)

    return jax.tree.map(lambda value: near(np.asarray(value)) if is_float(value) else value, tree)


def in_float64(value: Any) -> Any:
    """A float in float64; an integer stays."""
    value = np.asarray(value)
    return value.astype(np.float64) if is_float(value) else value
