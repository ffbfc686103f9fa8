"""The subject of a check: a rule, its reference, and the leaves that have a gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Tree = Any


class CannotCheckError(ValueError):
    """The rule or its reference is missing, or does not run; the message says why, and how to mend it."""


def on_device(host: Any, dtype: Any = None) -> jax.Array:
    """Numbers as an array of jax's, converted by NumPy: `jnp.asarray` compiles a program for each shape and dtype."""
    return jax.device_put(np.asarray(host, dtype))


def is_array(leaf) -> bool:
    """Whether a leaf is an array, the shape of one, or a float; a bool or an int is not."""
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct | float | complex)


def why_passed_over(leaf) -> str | None:
    """Why a leaf has no gradient; None where it has one."""
    if leaf is None:
        return "None"
    if not is_array(leaf):
        return type(leaf).__name__
    dtype = jnp.result_type(leaf) if isinstance(leaf, float | complex) else leaf.dtype
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return "PRNG key"
    if dtype == jax.dtypes.float0:
        return "float0"
    return None if jnp.issubdtype(dtype, jnp.inexact) else f"{dtype}"


@dataclass(frozen=True)
class Leaves:
    """The leaves of a tree that have a gradient, by path; the others stay where they are."""

    everything: tuple
    treedef: Any
    where: tuple[int, ...]
    paths: tuple[str, ...]
    passed_over: dict[str, str] = field(default_factory=dict)
    static: frozenset[int] = frozenset()  # places that a compiled function must not take as arguments

    @property
    def values(self) -> tuple:
        """The leaves that have a gradient."""
        return tuple(self.everything[i] for i in self.where)

    def require(self) -> None:
        """Raises `CannotCheckError` where no leaf has a gradient."""
        if not self.where:
            why = ", ".join(f"{path} is {why}" for path, why in self.passed_over.items()) or "there are no inputs"
            raise CannotCheckError(f"no input has a gradient: {why}")

    @property
    def rest_where(self) -> tuple[int, ...]:
        """The places of arrays that have no gradient: targets, masks, keys."""
        others = (i for i in range(len(self.everything)) if i not in self.where and i not in self.static)
        return tuple(i for i in others if isinstance(self.everything[i], jax.Array | np.ndarray))

    @property
    def rest(self) -> tuple:
        """The arrays that have no gradient."""
        return tuple(self.everything[i] for i in self.rest_where)

    def tree(self, values: Sequence, rest: Sequence | None = None) -> Tree:
        """The whole tree with `values` in the places of the leaves with a gradient, `rest` in those of other arrays."""
        everything = list(self.everything)
        for i, value in zip(self.where, values, strict=True):
            everything[i] = value
        for i, value in zip(self.rest_where, rest, strict=True) if rest is not None else ():
            everything[i] = value
        return jax.tree.unflatten(self.treedef, everything)

    def zeros_elsewhere(self, values: Sequence) -> Tree:
        """A cotangent for the whole tree: `values`, and float0 zeros on the leaves that have no gradient."""
        everything = [leaf if leaf is None else np.zeros(np.shape(leaf), jax.dtypes.float0) for leaf in self.everything]
        for i, value in zip(self.where, values, strict=True):
            everything[i] = value
        return jax.tree.unflatten(self.treedef, everything)


def leaves_of(tree: Tree, fixed: Sequence[int] = ()) -> Leaves:
    """The leaves of `tree` that have a gradient. `fixed` are the places in a tuple of arguments that have none."""
    with_paths, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: leaf is None)
    where, paths, passed_over, everything = [], [], {}, []
    for i, (path, leaf) in enumerate(with_paths):
        name = jax.tree_util.keystr(path)
        why = (
            "no gradient is given for it" if path and getattr(path[0], "idx", None) in fixed else why_passed_over(leaf)
        )
        if why is None:
            where.append(i)
            paths.append(name)
            if isinstance(leaf, np.ndarray | np.generic):
                leaf = on_device(leaf)
            leaf = jnp.asarray(leaf) if isinstance(leaf, float | complex) else leaf
        else:
            passed_over[name] = why
        everything.append(leaf)
    return Leaves(tuple(everything), treedef, tuple(where), tuple(paths), passed_over)


@dataclass(frozen=True)
class Subject:
    """A rule in one form, whatever it was given as.

    - `run(args, d_out) -> out, grads`: the rule. args is the tuple of arguments, d_out has the structure of out (float0
      where an output has no gradient); grads is a tuple with one tree for each argument.
    - `primal(*args) -> out`: the function whose derivative it is; differentiable as the `mode` says.
    - `plain(*args) -> out`: the function called without differentiation, where that is another path through the code.
    - `mode`: "reverse", "forward" or "differences": how the reference is had.
    - `declared(args, d_out) -> grads`: the gradients that are meant, where these are not the derivative.
    - `tangents`: the rule gives tangents of out and not gradients of args (a jvp that cannot be transposed).
    """

    name: str
    args: tuple
    run: Callable[[tuple, Tree], tuple[Tree, tuple]]
    primal: Callable[..., Tree]
    plain: Callable[..., Tree] | None = None
    mode: str = "reverse"
    declared: Callable[[tuple, Tree], tuple] | None = None
    tangents: bool = False
    fixed: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    seed_one: bool = False  # the cotangent is 1: the rule gives gradients of a cost, and takes no cotangent
    transforms: bool = True  # the rule may be jitted, mapped and differentiated
    custom: Any = None  # the jax.custom_vjp or custom_jvp object, where there is one
    parts: tuple = ()  # the author's functions that give the gradients
    in_jax: Callable | None = None  # `run` with `jax.numpy` for `numpy`, where it calls NumPy: it may be traced
    notes: tuple[str, ...] = ()

    def label(self, path: str) -> str:
        """A leaf's path in the arguments' own names: `[0]['W']` is `params['W']` where the names are known."""
        for i, name in enumerate(self.names):
            if path == f"[{i}]" or path.startswith(f"[{i}][") or path.startswith(f"[{i}]."):
                return name + path[len(f"[{i}]") :]
        return path


def argument_names(function: Callable, count: int) -> tuple[str, ...]:
    """The names of a function's first arguments, where they are known and there are as many."""
    import inspect

    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return ()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return tuple(names[:count]) if len(names) >= count else ()


def name_of(thing: Any) -> str:
    """A name for a function or an object."""
    for attribute in ("__name__", "name"):
        if isinstance(found := getattr(thing, attribute, None), str):
            return found
    inner = getattr(thing, "func", None) or getattr(thing, "__wrapped__", None)
    return name_of(inner) if inner is not None else type(thing).__name__


def cast(tree: Tree, dtype) -> Tree:
    """`tree` with its float leaves in `dtype`, its complex leaves in the complex dtype of that width."""
    wide = jnp.dtype(dtype)
    complex_wide = jnp.complex128 if wide == jnp.float64 else jnp.complex64

    def leaf(value):
        if not hasattr(value, "dtype") or why_passed_over(value) is not None:
            return value
        to = complex_wide if jnp.issubdtype(value.dtype, jnp.complexfloating) else wide
        return jnp.asarray(value, to) if isinstance(value, Tracer) else on_device(value, to)

    return jax.tree.map(leaf, tree, is_leaf=lambda leaf: leaf is None)
