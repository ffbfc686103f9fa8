"""A function's derivative by JAX: in reverse mode, in forward mode, and the gradients as a flat list."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnet.checking.author import is_library
from jaxnet.checking.subject import (
    CannotCheckError,
    Leaves,
    Tree,
    leaves_of,
)


def abstract(function: Callable, *args) -> Any:
    """Shapes and dtypes of `function(*args)`; arguments that are no arrays stay as they are."""
    leaves = leaves_of(args)
    return jax.eval_shape(lambda values: only_arrays(function(*leaves.tree(values))), leaves.values)


def only_arrays(tree: Tree) -> Tree:
    """A tree without the leaves that tracing cannot give out (functions, strings)."""
    return jax.tree.map(lambda leaf: leaf if hasattr(leaf, "dtype") or isinstance(leaf, float | int) else None, tree)


def differentiated(function: Callable, fixed: Sequence[int] = ()) -> Callable[[tuple, Tree], tuple[Tree, tuple]]:
    """(args, d_out) -> out, gradients, by `jax.vjp`; a leaf without a gradient gets float0 or itself."""

    def run(args, d_out):
        leaves = leaves_of(args, fixed)
        out, pull = jax.vjp(lambda values: function(*leaves.tree(values)), leaves.values)
        return out, leaves.tree(pull(d_out)[0])

    return run


def pushed_forward(function: Callable, fixed: Sequence[int] = ()) -> Callable[[tuple, Tree], tuple[Tree, Tree]]:
    """(args, tangents of the leaves with a gradient) -> out, d_out, by `jax.jvp`."""

    def run(args, tangents):
        leaves = leaves_of(args, fixed)
        return jax.jvp(lambda values: function(*leaves.tree(values)), (leaves.values,), (tuple(tangents),))

    return run


def ones_for(out: Tree) -> Tree:
    """A cotangent of ones for outputs of these shapes."""
    leaves = leaves_of(out)
    return leaves.zeros_elsewhere([jnp.ones(leaf.shape, leaf.dtype) for leaf in leaves.values])


def mode_of(primal: Callable, args: tuple, fixed: Sequence[int] = ()) -> str:
    """ "reverse" where `jax.vjp` goes through `primal`, "forward" where `jax.jvp` does, else "differences"."""
    leaves = leaves_of(args, fixed)
    leaves.require()

    def call(values):
        return primal(*leaves.tree(values))

    try:
        out = jax.eval_shape(call, leaves.values)
    except Exception as error:
        raise CannotCheckError(f"the reference must run on these inputs, but it raises {raised(error)}") from error
    modes: dict[str, Callable] = {
        "reverse": lambda values: jax.vjp(call, values)[1](ones_for(out)),
        # Mapped, as it is asked: by itself, forward mode of a custom_vjp is refused only when it is compiled.
        "forward": lambda values: jax.vmap(lambda tangents: jax.jvp(call, (values,), (tangents,)))(
            jax.tree.map(lambda value: value[None], values)
        ),
    }
    for mode, differentiate in modes.items():
        try:
            jax.eval_shape(differentiate, leaves.values)
        except Exception:  # the user's function may refuse a mode in any way: the next is tried
            continue
        return mode
    return "differences"


def short(error: BaseException) -> str:
    """An exception in one line."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:200]}"


def raised(error: BaseException) -> str:
    """An error of a user's function: the type, the whole message, and the last line of theirs that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not is_library(f.filename)]
    at = f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""
    return f"{type(error).__name__}: {error.args[0] if isinstance(error, KeyError) and error.args else error}{at}"


def transposed(function, args, fixed, values):
    """The gradient at a cotangent of ones: it fails where the rule's jvp cannot be transposed."""
    leaves = leaves_of(args, fixed)
    out, pull = jax.vjp(lambda values: function(*leaves.tree(values)), values)
    return pull(ones_for(out))


class GradientFault(NamedTuple):
    """A fault in a gradient's structure: in words, and the gradient's shape where that is wrong."""

    words: str
    shape: tuple[int, ...] | None = None


def flat_gradients(
    leaves: Leaves, grads: Tree, label: Callable[[str], str] = str, unfit: Callable[[Any, Any], Any] = lambda g, v: None
) -> tuple[list, dict[str, GradientFault]]:
    """The gradients of the leaves that have one, in their order, and faults of structure by the leaf's `label`.

    Where a gradient is missing, None; where its shape is wrong, `unfit(gradient, value)`.
    """
    found = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(grads, is_leaf=lambda leaf: leaf is None)[0]
    }
    faults, values = {}, []
    for path, value in zip(leaves.paths, leaves.values, strict=True):
        got, name = found.get(path), label(path)
        if got is None and path in found:
            got = jnp.zeros(value.shape, value.dtype)  # None stands for zero, as in jax.custom_vjp
        if got is None:
            near = ", ".join(sorted(set(found) - set(leaves.paths) - set(leaves.passed_over))) or "nothing more"
            faults[name] = GradientFault(f"no gradient for {name} (the rule returns {near})")
        elif (shape := jnp.shape(got)) != value.shape:
            faults[name] = GradientFault(
                f"the gradient of {name} has shape {shape}; it must have {name}'s, {value.shape}: sum or reshape it",
                shape,
            )
            got = unfit(got, value)
        elif jnp.result_type(got) != value.dtype:
            words = f"{name} is {value.dtype}, its gradient is {jnp.result_type(got)}: return it"
            faults[name] = GradientFault(f"{words} `.astype({value.dtype})`")
        values.append(None if got is None else jnp.asarray(got))
    unlike = {name: value.shape for name, value in zip(map(label, leaves.paths), leaves.values, strict=True)
              if name in faults and faults[name].shape is not None}  # fmt: skip
    if len(unlike) > 1 and sorted(unlike.values()) == sorted(faults[name].shape or () for name in unlike):
        words = f"the gradients of {', '.join(unlike)} are exchanged: return them in the order of the arguments"
        faults |= {name: GradientFault(words, faults[name].shape) for name in unlike}
    return values, faults
