"""Evaluates a graph in NumPy, operation by operation: nothing is compiled, so thousands of short runs take a second.

Loops run step by step, and only the branch that is chosen runs. An operation that the table does not hold is bound in
JAX, which compiles it once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from jaxnet.program.calls import UnknownPrimitiveError, bind, scan_counts
from jaxnet.program.evaluate import Evaluation, Kept
from jaxnet.program.graph import Graph, Operation, graph_of

Values = dict[int, Any]
MOST_STEPS = 100_000
CALL = 2000  # entries that NumPy computes in the time of a call


def host(value: Any) -> Any:
    """A value as a NumPy array; keys stay as they are."""
    dtype = getattr(value, "dtype", None)
    return value if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.extended) else np.asarray(value)


class NumpyEvaluation(Evaluation):
    """Runs a graph in NumPy.

    - `values`: every value by its number: the present one while a graph runs, stacked over the steps after a loop.
    - `changes`: by a value's number, a function of `values` that gives the value in its place, at each step of a loop.
    """

    def __init__(self, values: Mapping[int, Any] | None = None, changes: Mapping[int, Callable] | None = None):
        self.values: Values = dict(values or {})
        self.changes = changes or {}
        self.keeping = not self.changes

    def body(self, graph: Graph, args: Sequence) -> tuple[list, Kept]:
        """The outputs of a graph."""
        values, changes = self.values, self.changes
        values.update(constants_of(graph))
        for number, value in zip(graph.inputs, args, strict=True):
            self.put(number, value if isinstance(value, np.ndarray) else host(value))
        for operation in graph.operations:
            given = [values[number] for number in operation.inputs]
            plain = operation.kind == "operation"
            outs = self.operation(operation, given) if plain else self.outcome(operation, given)[0]
            for number, out in zip(operation.outputs, outs, strict=True):
                if number in changes:
                    self.put(number, out)
                else:
                    values[number] = out
        return [values[number] for number in graph.outputs], {}

    def put(self, number: int, value: Any) -> None:
        """Keeps a value, changed where there is a change."""
        self.values[number] = value
        if number in self.changes:
            new = np.asarray(self.changes[number](self.values))
            self.values[number] = np.broadcast_to(
                new.astype(value.dtype, casting="same_kind", copy=False), np.shape(value)
            )

    def operation(self, operation: Operation, values: Sequence) -> Sequence:
        """The results of an operation without bodies."""
        function = NUMPY.get(operation.name)
        if function is not None:
            out = function(operation.eqn.params, *values)
            if out is not None:
                return out if isinstance(out, list) else (out,)
        return [host(out) for out in bind(operation.eqn, [jnp.asarray(v) for v in values])]

    def outcome(self, operation: Operation, values: Sequence) -> tuple[Sequence, Kept]:
        kind = operation.kind
        if kind == "scan":
            return self.scan(operation, values), {}
        if kind == "while":
            return self.loop(operation, values), {}
        if kind == "cond":
            branch = int(np.clip(int(values[0]), 0, len(operation.bodies) - 1))
            return self.body(operation.bodies[branch], values[1:])
        if kind == "rule":
            return self.body(operation.bodies[0], values)
        return self.operation(operation, values), {}

    def scan(self, operation: Operation, values: Sequence) -> list:
        """A scan, step by step."""
        params = operation.eqn.params
        consts, carries = scan_counts(operation.eqn)
        fixed, carry, xs = values[:consts], list(values[consts : consts + carries]), values[consts + carries :]
        length, stacked = params["length"], []
        kept: dict[int, list] = {}
        order = range(length - 1, -1, -1) if params["reverse"] else range(length)
        for t in order:
            outs, _ = self.body(operation.bodies[0], [*fixed, *carry, *(x[t] for x in xs)])
            carry, ys = list(outs[:carries]), outs[carries:]
            stacked.append(ys)
            self.keep_step(operation.bodies[0], kept)
        if params["reverse"]:
            stacked.reverse()
        self.stack(kept, reverse=params["reverse"])
        shapes = [v.aval for v in operation.eqn.outvars[carries:]]
        ys = [
            np.stack([step[k] for step in stacked]) if stacked else np.zeros(shape.shape, shape.dtype)
            for k, shape in enumerate(shapes)
        ]
        return [*carry, *ys]

    def loop(self, operation: Operation, values: Sequence) -> list:
        """A while loop, step by step."""
        a, b = operation.eqn.params["cond_nconsts"], operation.eqn.params["body_nconsts"]
        condition, body = operation.bodies
        carry, kept = list(values[a + b :]), {}
        for _ in range(MOST_STEPS):
            (on,), _ = self.body(condition, [*values[:a], *carry])
            if not np.any(on):
                break
            outs, _ = self.body(body, [*values[a : a + b], *carry])
            carry = [np.where(on.reshape(on.shape + (1,) * (o.ndim - on.ndim)), o, c) if np.ndim(on) else o
                     for o, c in zip(outs, carry, strict=True)]  # fmt: skip
            self.keep_step(body, kept)
        self.stack(kept, reverse=False)
        return carry

    def keep_step(self, body: Graph, kept: dict[int, list]) -> None:
        """Keeps the values of a step."""
        if self.keeping:
            for number in numbers_in(body):
                if number in self.values:
                    kept.setdefault(number, []).append(self.values[number])

    def stack(self, kept: dict[int, list], *, reverse: bool) -> None:
        """The results of the steps, stacked in the order of the sequence."""
        for number, steps in kept.items():
            if isinstance(steps[0], np.ndarray | np.generic):
                self.values[number] = np.stack(steps[::-1] if reverse else steps)


def in_numpy(program: ClosedJaxpr, most: float) -> Callable[..., list] | None:
    """A traced program as a function of its flat inputs, in NumPy; None where it computes more entries than `most`."""
    try:
        graph = graph_of(program)
    except UnknownPrimitiveError:
        return None
    if work(graph) > most:
        return None

    def run(*args: Any) -> list:
        evaluation = NumpyEvaluation()
        evaluation.keeping = False
        with np.errstate(all="ignore"):
            return evaluation.run(graph, args)

    return run


def work(graph: Graph) -> float:
    """The entries that a graph computes; infinite where an operation, a dtype or an empty array is left to JAX."""
    total = 0.0
    for operation in graph.operations:
        eqn, kind = operation.eqn, operation.kind
        if kind == "scan":
            total += eqn.params["length"] * work(operation.bodies[0])
        elif kind in ("rule", "cond"):
            total += max(map(work, operation.bodies))
        elif operation.name not in NUMPY or not all(is_plain(v.aval) for v in (*eqn.invars, *eqn.outvars)):
            return np.inf
        else:
            total += CALL + max(v.aval.size for v in (*eqn.invars, *eqn.outvars))
        if operation.name == "dot_general":
            (left, _), _ = eqn.params["dimension_numbers"]
            total += eqn.outvars[0].aval.size * np.prod([eqn.invars[0].aval.shape[axis] for axis in left]) / 8
    return total


def is_plain(aval: Any) -> bool:
    """Whether an array has entries, in a dtype that NumPy computes in as JAX does."""
    dtype = getattr(aval, "dtype", None)
    if dtype is None or jnp.issubdtype(dtype, jax.dtypes.extended) or dtype == jax.dtypes.float0 or not aval.size:
        return False
    return not jnp.issubdtype(dtype, jnp.inexact) or np.dtype(dtype).itemsize >= 4


@lru_cache(maxsize=256)
def numbers_in(graph: Graph) -> tuple[int, ...]:
    """The numbers of a body's values: its inputs, and all that its operations give."""
    return (*graph.inputs, *(n for operation in graph.everything for n in operation.outputs))


@lru_cache(maxsize=1024)
def constants_of(graph: Graph) -> Values:
    """A graph's constants in NumPy."""
    return {number: host(value) for number, value in graph.constants.items()}


def broadcast(params: dict, a: Any, *dynamic: Any) -> Any:
    """broadcast_in_dim"""
    if dynamic:
        return None
    shape = [1] * len(params["shape"])
    for axis, n in zip(params["broadcast_dimensions"], a.shape, strict=True):
        shape[axis] = n
    return np.broadcast_to(np.reshape(a, shape), params["shape"])


def dot_general(params: dict, a: Any, b: Any) -> Any:
    """dot_general"""
    (left, right), (left_batch, right_batch) = params["dimension_numbers"]
    wide = params["preferred_element_type"]
    if wide is not None:
        a, b = (x.astype(wide, copy=False) for x in (a, b))
    if not left_batch:
        return np.asarray(np.tensordot(a, b, (left, right)))
    rows = [i for i in range(a.ndim) if i not in (*left_batch, *left)]
    columns = [j for j in range(b.ndim) if j not in (*right_batch, *right)]
    a, b = a.transpose(*left_batch, *rows, *left), b.transpose(*right_batch, *right, *columns)
    n, m = len(left_batch), len(left)
    batch, free = a.shape[:n], (*a.shape[n : a.ndim - m], *b.shape[n + m :])
    inner = int(np.prod(a.shape[a.ndim - m :]))
    return (a.reshape(*batch, -1, inner) @ b.reshape(*batch, inner, -1)).reshape(*batch, *free)


def select(params: dict, which: Any, *cases: Any) -> Any:
    """select_n of two cases"""
    return np.where(which, cases[1], cases[0]) if len(cases) == 2 and which.dtype == bool else None


def quotient(params: dict, a: Any, b: Any) -> Any:
    """div of floats"""
    return a / b if a.dtype.kind in "fc" else None


def power(params: dict, a: Any) -> Any:
    """integer_pow"""
    y = params["y"]
    return a**y if y >= 0 else 1 / a**-y


def slice_of(params: dict, a: Any) -> Any:
    """slice"""
    strides = params["strides"] or (1,) * a.ndim
    return a[tuple(map(slice, params["start_indices"], params["limit_indices"], strides))]


def split(params: dict, a: Any) -> list:
    """split"""
    return np.split(a, np.cumsum(params["sizes"])[:-1], params["axis"])


def padded(params: dict, a: Any, fill: Any) -> Any:
    """pad, between the entries too; a negative width takes entries away"""
    low, high, inside = np.array(params["padding_config"]).reshape(a.ndim, 3).T
    spread = a.shape + np.maximum(np.array(a.shape) - 1, 0) * inside
    first = np.maximum(low, 0)
    out = np.full(first + spread + np.maximum(high, 0), fill, a.dtype)
    out[tuple(map(slice, first, first + spread, inside + 1))] = a
    return out[tuple(map(slice, np.maximum(-low, 0), out.shape - np.maximum(-high, 0)))]


def window(a: Any, sizes: Any, starts: Any) -> tuple[slice, ...]:
    """The slices of a dynamic slice; one that would leave the array is moved inside."""
    low = [min(max(int(start), 0), n - size) for start, n, size in zip(starts, a.shape, sizes, strict=True)]
    return tuple(slice(start, start + size) for start, size in zip(low, sizes, strict=True))


def updated(params: dict, a: Any, part: Any, *starts: Any) -> Any:
    """dynamic_update_slice"""
    out = np.array(a)
    out[window(a, part.shape, starts)] = part
    return out


def converted(params: dict, a: Any) -> Any:
    """convert_element_type; keys and bits stay with JAX"""
    if jnp.issubdtype(params["new_dtype"], jax.dtypes.extended) or a.dtype.kind == "c":
        return None
    return np.asarray(a).astype(params["new_dtype"])


def iota(params: dict, *dynamic: Any) -> Any:
    """iota"""
    shape, axis = params["shape"], params["dimension"]
    if dynamic:
        return None
    column = np.arange(shape[axis], dtype=params["dtype"]).reshape([-1 if k == axis else 1 for k in range(len(shape))])
    return np.broadcast_to(column, shape)


NUMPY: dict[str, Callable] = {
    **{
        name: lambda params, *xs, function=function: function(*xs)
        for name, function in {
            "add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative,
            "exp": np.exp, "log": np.log, "log1p": np.log1p, "expm1": np.expm1, "tanh": np.tanh, "sin": np.sin,
            "cos": np.cos, "sqrt": np.sqrt, "sign": np.sign, "abs": np.abs, "max": np.maximum, "min": np.minimum,
            "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
            "ge": np.greater_equal, "and": np.bitwise_and, "or": np.bitwise_or, "not": np.invert,
            "is_finite": np.isfinite, "square": np.square, "stop_gradient": np.asarray,
            "copy": np.asarray, "copy_p": np.asarray, "real": np.real, "imag": np.imag, "conj": np.conj,
        }.items()
    },
    "name": lambda params, a: a,
    "optimization_barrier": lambda params, *xs: list(xs),
    "one_minus_square": lambda params, a: 1 - a * a,
    "rsqrt": lambda params, a: 1 / np.sqrt(a),
    "logistic": lambda params, a: 1 / (1 + np.exp(-a)),
    "integer_pow": power,
    "div": quotient,
    "select_n": select,
    "transpose": lambda params, a: np.transpose(a, params["permutation"]),
    "reshape": lambda params, a: np.reshape(a, params["new_sizes"]),
    "squeeze": lambda params, a: np.squeeze(a, tuple(params["dimensions"])),
    "broadcast_in_dim": broadcast,
    "reduce_sum": lambda params, a: np.sum(a, tuple(params["axes"]), dtype=a.dtype),
    "reduce_max": lambda params, a: np.max(a, tuple(params["axes"])),
    "reduce_min": lambda params, a: np.min(a, tuple(params["axes"])),
    "dot_general": dot_general,
    "concatenate": lambda params, *xs: np.concatenate(xs, params["dimension"]),
    "rev": lambda params, a: np.flip(a, tuple(params["dimensions"])),
    "slice": slice_of,
    "convert_element_type": converted,
    "split": split,
    "pad": padded,
    "dynamic_slice": lambda params, a, *starts: a[window(a, params["slice_sizes"], starts)],
    "dynamic_update_slice": updated,
    "iota": iota,
}  # fmt: skip
