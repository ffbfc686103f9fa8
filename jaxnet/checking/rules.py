"""Turns every kind of rule (custom_vjp, custom_jvp, pair, function of gradients, function) into a `Subject`."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxnet.checking.author import is_library
from jaxnet.checking.host_functions import is_torch_function, on_host, torch_gradients, torch_primal
from jaxnet.checking.subject import (
    CannotCheckError,
    Leaves,
    Subject,
    Tree,
    argument_names,
    leaves_of,
    name_of,
)
from jaxnet.program import has_custom, without_rules

HERE = os.path.dirname(os.path.abspath(__file__))


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
        "forward": lambda values: jax.jvp(call, (values,), (values,)),
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
    """What a user's function raised: the type, the whole message, and the last line of theirs that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not is_library(f.filename) and os.path.dirname(f.filename) != HERE]
    at = f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""
    return f"{type(error).__name__}: {error.args[0] if isinstance(error, KeyError) and error.args else error}{at}"


def is_custom(rule: Any) -> bool:
    """Whether `rule` is a `jax.custom_vjp` or `jax.custom_jvp` function."""
    return isinstance(rule, jax.custom_vjp | jax.custom_jvp)


def subject_of(rule: Any, args: tuple, *, reference=None, intended=None, kwargs=None, name=None) -> Subject:
    """The rule in its one form. Raises `CannotCheckError` where there is nothing to compare."""
    kwargs = kwargs or {}
    if is_torch_function(rule):
        subject = of_torch(rule, args, reference)
    elif is_custom(rule):
        subject = of_custom(rule, args, reference, kwargs)
    elif isinstance(rule, tuple) and len(rule) == 2 and all(map(callable, rule)):
        subject = of_pair(rule, args, reference, kwargs)
    elif callable(rule):
        subject = of_function(partial(rule, **kwargs) if kwargs else rule, args, reference)
    else:
        raise CannotCheckError(
            "a rule is a layer, a loss, a custom_vjp or custom_jvp function, a torch.autograd.Function, a pair of "
            "functions or a function, "
            f"got {type(rule).__name__}"
        )
    changes: dict[str, Any] = {"name": name or subject.name}
    if intended is not None:
        changes["declared"] = declared_by(intended, subject)
        changes["notes"] = (*subject.notes, "held against the declared backward pass, not the derivative")
    return replace(subject, **changes)


def of_custom(rule: Any, args: tuple, reference: Callable | None, kwargs: dict) -> Subject:
    """A custom_vjp or custom_jvp function; its reference is `reference`, or autodiff of its primal."""
    places = (n + len(args) if n < 0 else n for n in rule.nondiff_argnums)
    fixed = tuple(sorted(n for n in places if n < len(args)))  # the others stand at their defaults
    function = partial(rule, **kwargs) if kwargs else rule
    primal = reference if reference is not None else partial(rule.__wrapped__, **kwargs)
    mode = mode_of(primal, args, fixed)
    notes = list(captured(rule, args, fixed))
    tangents = False
    if isinstance(rule, jax.custom_jvp):
        try:
            jax.eval_shape(lambda values: transposed(function, args, fixed, values), leaves_of(args, fixed).values)
        except Exception:  # a jvp may refuse to be transposed in any way: noted below
            tangents = True
            notes.append("its jvp cannot be transposed: tangents are compared, not gradients")
    subject = Subject(
        name_of(rule),
        args,
        pushed_forward(function, fixed) if tangents else differentiated(function, fixed),
        primal,
        plain=function,
        mode=mode,
        tangents=tangents,
        fixed=fixed,
        names=argument_names(rule.__wrapped__, len(args)),
        custom=rule,
        notes=tuple(notes),
    )
    alone = isinstance(rule, jax.custom_vjp) and rule.fwd is None  # `defremat` is the only derivative that it has
    return (recomputed(rule, subject) if alone else None) or subject


def recomputed(rule: Any, subject: Subject) -> Subject | None:
    """The rule as it runs under `jax.checkpoint`, where `defremat` gave it a forward pass that is run again; else None.

    fwd(*args) -> out, saved;  rem(saved, *args) -> out, saved₂;  bwd(saved₂, d_out) -> grads
    """
    if getattr(rule, "remat_rules", None) is None:
        return None
    forward, again, backward, logs = rule.remat_rules

    def run(args, d_out):
        static = [args[place] for place in subject.fixed]
        out, saved = again(forward(*args)[1], *args)
        grads = backward(*static, saved, d_out)
        given = iter(grads[0] if logs else grads)
        return out, tuple(None if i in subject.fixed else next(given) for i in range(len(args)))

    return replace(
        subject,
        name=f"{subject.name}, recomputed",
        run=run,
        plain=lambda *args: forward(*args)[0],
        custom=None,
        parts=(forward, again, backward),
    )


def transposed(function, args, fixed, values):
    """The gradient at a cotangent of ones: it fails where the rule's jvp cannot be transposed."""
    leaves = leaves_of(args, fixed)
    out, pull = jax.vjp(lambda values: function(*leaves.tree(values)), values)
    return pull(ones_for(out))


def captured(rule: Any, args: tuple, fixed: Sequence[int]) -> list[str]:
    """What a custom rule captures by closure, or takes as static where it is an array."""
    found = []
    for part in (rule.__wrapped__, getattr(rule, "fwd", None), getattr(rule, "bwd", None), getattr(rule, "jvp", None)):
        code = getattr(part, "__code__", None)
        for variable, cell in zip(
            getattr(code, "co_freevars", ()), getattr(part, "__closure__", None) or (), strict=True
        ):
            try:
                value = cell.cell_contents
            except ValueError:
                continue
            if isinstance(value, Tracer):
                found.append(
                    f"{name_of(part)} captures the traced value `{variable}` by closure: pass it as an argument"
                )
            elif isinstance(value, jax.Array | np.ndarray) and jnp.issubdtype(value.dtype, jnp.inexact):
                shape = f"{value.dtype}[{','.join(map(str, value.shape))}]"
                found.append(
                    f"{name_of(part)} captures the array `{variable}` {shape} by closure: no gradient flows to it; "
                    "pass it as an argument"
                )
    for place in fixed:
        if place < len(args) and any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(args[place])):
            found.append(
                f"argument {place} is in nondiff_argnums, but is an array: it fails as soon as it is traced "
                "(under jit, vmap or scan); take it out of nondiff_argnums and give back None or zeros for it"
            )
    return list(dict.fromkeys(found))


def of_pair(rule: tuple, args: tuple, reference: Callable | None, kwargs: dict) -> Subject:
    """(forward, backward), or (f, f_vjp): which of the two is found by trying on shapes."""
    first, second = (partial(part, **kwargs) if kwargs else part for part in rule)
    tried: list[str] = []
    for traced in (True, False):
        tried.clear()
        for convention in (saved_pair, pullback_pair, cotangent_first, cotangent_last):
            primal, run = convention(first, second)
            if not traced:
                primal, run = on_host(primal, args), on_host(run, (args,))
            call = primal if reference is None else for_jax(reference, args)
            try:
                out = abstract(call, *args)
                leaves = leaves_of(args)
                jax.eval_shape(lambda values, run=run, out=out: gradients_only(run, args, values, out), leaves.values)
            except Exception as error:
                tried.append(f"{convention.__doc__}: {short(error)}")
                continue
            names = argument_names(rule[0], len(args))
            mode = mode_of(call, args)
            return Subject(name_of(rule[0]), args, run, call, plain=primal, mode=mode, names=names, parts=tuple(rule))
    raise CannotCheckError("a pair must fit one of these on the given inputs:\n  " + "\n  ".join(tried))


def for_jax(function: Callable, args: tuple) -> Callable:
    """`function`; where JAX cannot trace it, but it runs on NumPy arrays, as a function that calls it."""
    try:
        abstract(function, *args)
    except Exception:  # the user's function may raise anything: it is called instead
        called = on_host(function, args)
        try:
            abstract(called, *args)
        except Exception:  # it raises either way: that is told where it is compared
            return function
        return called
    return function


def of_torch(rule: Any, args: tuple, reference: Callable | None) -> Subject:
    """A `torch.autograd.Function`; its `reference` is a function of JAX, or of PyTorch with PyTorch's derivative."""
    if reference is None:
        raise CannotCheckError(
            "a torch.autograd.Function is held against a function without it: give `reference=`, in JAX or in PyTorch"
        )
    try:
        abstract(reference, *args)
        primal = reference
    except Exception:  # it is no function of JAX's
        primal = torch_primal(reference, args)
    forward, run = torch_gradients(rule.apply)
    return Subject(
        name_of(rule),
        args,
        on_host(run, (args,)),
        primal,
        plain=on_host(forward, args),
        mode=mode_of(primal, args),
        names=argument_names(reference, len(args)),
    )


def gradients_only(run, args, values, out):
    """The arrays among a rule's gradients; raises where there are none at all."""
    _, grads = run(leaves_of(args).tree(values), ones_for(out))
    arrays = [leaf for leaf in jax.tree.leaves(grads) if hasattr(leaf, "dtype")]
    if not arrays:
        raise TypeError("it gives no gradients")
    return arrays


def as_tuple(grads: Tree, args: tuple) -> tuple:
    """Gradients as a tuple with one for each argument; one argument's may stand by itself."""
    if isinstance(grads, list):
        grads = tuple(grads)
    if len(args) == 1 and not (isinstance(grads, tuple) and len(grads) == 1 and not isinstance(args[0], tuple)):
        return (grads,)
    return grads if isinstance(grads, tuple) else (grads,)


def saved_pair(forward, backward):
    """forward(*args) -> out, saved and backward(saved, d_out) -> grads"""

    def run(args, d_out):
        out, saved = forward(*args)
        return out, as_tuple(backward(saved, d_out), args)

    return (lambda *args: forward(*args)[0]), run


def pullback_pair(f, f_vjp):
    """f(*args) -> out and f_vjp(*args) -> out, pullback"""

    def run(args, d_out):
        out, pullback = f_vjp(*args)
        return out, as_tuple(pullback(d_out), args)

    return f, run


def cotangent_first(f, f_vjp):
    """f(*args) -> out and f_vjp(d_out, *args) -> grads"""
    return f, lambda args, d_out: (f(*args), as_tuple(f_vjp(d_out, *args), args))


def cotangent_last(f, f_vjp):
    """f(*args) -> out and f_vjp(*args, d_out) -> grads"""
    return f, lambda args, d_out: (f(*args), as_tuple(f_vjp(*args, d_out), args))


def of_function(function: Callable, args: tuple, reference: Callable | None) -> Subject:
    """A function of gradients against a cost, a function against a reference, or one with custom rules inside."""
    if reference is not None and (subject := of_gradients(function, args, reference)) is not None:
        return subject
    try:
        leaves = leaves_of(args)
        program = jax.make_jaxpr(lambda values: only_arrays(function(*leaves.tree(values))))(leaves.values)
    except Exception as error:
        raise CannotCheckError(f"the function must run on these inputs, but it raises {raised(error)}") from error
    if reference is None and not has_custom(program):
        raise CannotCheckError(
            f"{name_of(function)} has no custom rule anywhere in it, so autodiff is all there is: "
            "give `reference=`, or the backward pass as a pair (forward, backward)"
        )
    primal = reference if reference is not None else inside_out(function)
    return Subject(
        name_of(function),
        args,
        differentiated(function),
        primal,
        plain=function,
        mode=mode_of(primal, args),
        names=argument_names(function, len(args)),
        parts=(function,),
    )


def inside_out(function: Callable) -> Callable:
    """`function` with its custom rules left aside, for arguments of which some are no arrays."""

    def primal(*args):
        leaves = leaves_of(args)
        return without_rules(lambda *values: function(*leaves.tree(values)))(*leaves.values)

    return primal


def of_gradients(function: Callable, args: tuple, cost: Callable) -> Subject | None:
    """A function that returns (value, grads) or grads of a scalar `cost`; None where its output is neither."""
    given_function, function, cost = function, for_jax(function, args), for_jax(cost, args)
    try:
        value, given = abstract(cost, *args), abstract(function, *args)
    except Exception as error:
        raise CannotCheckError(f"rule and reference must run on these inputs, one raises {raised(error)}") from error
    scalar = [leaf for leaf in jax.tree.leaves(value) if leaf.shape == () and jnp.issubdtype(leaf.dtype, jnp.inexact)]
    if len(jax.tree.leaves(value)) != 1 or not scalar or alike(given, value):
        return None
    if isinstance(given, list) and not isinstance(args[0], list):
        return of_gradients(lambda *args: tuple(function(*args)), args, cost)
    has_value = isinstance(given, tuple) and len(given) == 2 and alike(given[0], value)
    if has_value and which_arguments(given, args) == 2:  # two scalars: (value, gradient) or two gradients
        has_value = close(function(*args)[0], cost(*args))
    grads = given[1] if has_value else given
    count = which_arguments(grads, args)
    if count is None:
        return None

    def run(args, d_out):
        result = function(*args)
        out, grads = result if has_value else (cost(*args), result)
        return out, grads if count else (grads,)

    return Subject(
        name_of(given_function),
        args,
        run,
        cost,
        mode=mode_of(cost, args, range(max(count, 1), len(args))),
        fixed=tuple(range(max(count, 1), len(args))),
        names=argument_names(given_function, len(args)),
        parts=(given_function,),
        seed_one=True,
    )


def close(value: Any, other: Any) -> bool:
    """Whether two scalars are the same number but for rounding."""
    return bool(np.isclose(*(np.float64(jax.tree.leaves(each)[0]) for each in (value, other)), rtol=1e-2, atol=1e-6))


def alike(tree: Tree, other: Tree) -> bool:
    """Whether two trees have the same structure and shapes."""
    return jax.tree.structure(tree) == jax.tree.structure(other) and all(
        a.shape == b.shape for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    )


def which_arguments(grads: Tree, args: tuple) -> int | None:
    """How many first arguments a tree of gradients is for: 0 for the first by itself, n for a tuple of n; else None."""
    shapes = [jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), a) for a in args]
    if alike(grads, shapes[0]):
        return 0
    if isinstance(grads, tuple) and 0 < len(grads) <= len(args) and all(map(alike, grads, shapes[: len(grads)])):
        return len(grads)
    # A wrong shape in one leaf is a finding; which argument it is for is still clear by the structure.
    if jax.tree.structure(grads) == jax.tree.structure(shapes[0]):
        return 0
    if isinstance(grads, tuple) and 0 < len(grads) <= len(args):
        return len(grads) if jax.tree.structure(grads) == jax.tree.structure(tuple(shapes[: len(grads)])) else None
    return None


def declared_by(intended: Callable, subject: Subject) -> Callable[[tuple, Tree], tuple]:
    """The declared backward pass: of a stand-in with that derivative, or a function (*args, d_out) -> grads."""
    out = abstract(subject.primal, *subject.args)
    try:
        stands_in = alike(abstract(intended, *subject.args), out)
    except Exception:  # what does not run as a stand-in is tried as a backward pass
        stands_in = False
    if stands_in:
        return lambda args, d_out: differentiated(intended, subject.fixed)(args, d_out)[1]
    try:
        abstract(lambda *args: intended(*args, ones_for(out)), *subject.args)
    except Exception as error:
        raise CannotCheckError(
            "intended must be a function (*args) -> out whose derivative is the declared one, or "
            f"(*args, d_out) -> grads; called so it raises {raised(error)}"
        ) from error
    return lambda args, d_out: as_tuple(intended(*args, d_out), args)


def flat_gradients(leaves: Leaves, grads: Tree, label: Callable[[str], str] = str) -> tuple[list, list[str]]:
    """The gradients of the leaves that have one, in their order, and faults of structure, each leaf by its `label`."""
    found = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(grads, is_leaf=lambda leaf: leaf is None)[0]
    }
    problems, values = [], []
    for path, value in zip(leaves.paths, leaves.values, strict=True):
        got = found.get(path)
        if got is None and path in found:
            got = jnp.zeros(value.shape, value.dtype)  # None stands for zero, as in jax.custom_vjp
        if got is None:
            near = ", ".join(sorted(set(found) - set(leaves.paths) - set(leaves.passed_over))) or "nothing more"
            problems.append(f"no gradient for {label(path)} (the rule returns {near})")
        elif jnp.shape(got) != value.shape:
            problems.append(f"{label(path)} has shape {jnp.shape(got)}, its gradient must have {value.shape} as well: "
                            f"return it summed or reshaped to {value.shape}")  # fmt: skip
        elif jnp.result_type(got) != value.dtype:
            problems.append(f"{label(path)} is {value.dtype}, its gradient is {jnp.result_type(got)}: "
                            f"return it `.astype({value.dtype})`")  # fmt: skip
        values.append(None if got is None or jnp.shape(got) != value.shape else jnp.asarray(got))
    return values, problems
