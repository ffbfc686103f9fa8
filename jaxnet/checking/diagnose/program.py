"""The reference's backward program as a tape: every operation with its value, replayable with some of them changed.

`jax.vjp` of the primal is traced once; its inner programs (scan, while, cond, jit, remat, custom rules) are put in
their place and evaluated in numpy. A change is planted at a site (an equation, whichever step of a scan it runs in),
and only what depends on it is evaluated anew.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.checking.diagnose import numeric
from jaxnet.checking.diagnose.recorder import Recorder
from jaxnet.checking.diagnose.source import Line
from jaxnet.checking.diagnose.tape import Tape


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
        recorder = Recorder(tape, self.limit)
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
        names = [
            p.name
            for p in inspect.signature(primal).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
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
