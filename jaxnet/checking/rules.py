"""Turns every kind of rule (custom_vjp, custom_jvp, pair, function of gradients, function) into a `Subject`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxnet.checking.differentiation import (
    abstract,
    differentiated,
    mode_of,
    ones_for,
    only_arrays,
    pushed_forward,
    raised,
    transposed,
)
from jaxnet.checking.held_arrays import matched
from jaxnet.checking.host_functions import is_torch_function
from jaxnet.checking.numpy_layers import names_returned
from jaxnet.checking.numpy_rules import LayerRule
from jaxnet.checking.pairs import as_tuple, for_jax, of_pair, of_torch, traced_in_jax
from jaxnet.checking.subject import (
    CannotCheckError,
    Subject,
    Tree,
    argument_names,
    is_array,
    leaves_of,
    name_of,
    why_passed_over,
)
from jaxnet.program import has_custom, without_rules


def is_custom(rule: Any) -> bool:
    """Whether `rule` is a `jax.custom_vjp` or `jax.custom_jvp` function."""
    return isinstance(rule, jax.custom_vjp | jax.custom_jvp)


def subject_of(rule: Any, args: tuple, *, reference=None, intended=None, kwargs=None, name=None) -> Subject:
    """The rule in its one form. Raises `CannotCheckError` where there is nothing to compare."""
    kwargs = kwargs or {}
    if isinstance(rule, LayerRule):
        subject = replace(of_pair(rule.pair, args, reference, kwargs), fixed=rule.fixed, notes=rule.notes)
    elif is_torch_function(rule):
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
    if not defined(rule):
        how = "defvjp(forward, backward)" if isinstance(rule, jax.custom_vjp) else "defjvp(jvp)"
        raise CannotCheckError(f"{name_of(rule)} must have a derivative to be checked, and has none: call its {how}")
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


def defined(rule: Any) -> bool:
    """Whether a custom_vjp or custom_jvp function was given its derivative."""
    if isinstance(rule, jax.custom_jvp):
        return rule.jvp is not None
    return rule.fwd is not None or getattr(rule, "remat_rules", None) is not None


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


def captured(rule: Any, args: tuple, fixed: Sequence[int]) -> list[str]:
    """The arrays that a custom rule captures by closure or takes as static."""
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


def of_function(function: Callable, args: tuple, reference: Callable | None) -> Subject:
    """A function of gradients against a cost, a function against a reference, or one with custom rules inside."""
    if reference is not None and (subject := of_gradients(function, args, reference)) is not None:
        return subject
    if reference is None and (subject := of_cost_and_gradients(function, args)) is not None:
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


def of_gradients(
    function: Callable, args: tuple, cost: Callable, fixed: tuple[int, ...] | None = None
) -> Subject | None:
    """A function that returns (value, grads) or grads of a scalar `cost`; None where its output is neither.

    `fixed`: the arguments for which it gives None, where these are known; else it is for the first ones.
    """
    given_function, function, cost = function, for_jax(function, args, traced=False), for_jax(cost, args)
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
    count = which_arguments(grads, args) if fixed is None else len(args)
    if count is None:
        return None
    fixed = tuple(range(max(count, 1), len(args))) if fixed is None else fixed

    def run(args, d_out, function=function):
        result = function(*args)
        out, grads = result if has_value else (cost(*args), result)
        return out, grads if count else (grads,)

    own = partial(run, function=given_function)
    traced = None if function is given_function else traced_in_jax(own, (given_function,), cost, args)
    return Subject(
        name_of(given_function),
        args,
        run,
        cost,
        mode=mode_of(cost, args, fixed),
        fixed=fixed,
        names=argument_names(given_function, len(args)),
        parts=(given_function,),
        in_jax=traced,
        seed_one=True,
    )


def of_cost_and_gradients(function: Callable, args: tuple) -> Subject | None:
    """A function that returns its cost and the gradients of it: (cost, grads) or (cost, dx, dW …); else None."""
    try:
        given = abstract(for_jax(function, args), *args)
    except Exception:  # it is told why, where it is run as a rule
        return None
    if not isinstance(given, tuple) or len(given) < 2:
        return None

    places = places_of(function, given[1:], args)

    @wraps(function)
    def in_two(*args):
        cost, *grads = function(*args)
        if places is not None:
            by_place = dict(zip(places, grads, strict=True))
            return cost, tuple(by_place.get(k) for k in range(len(args)))
        return cost, grads[0] if len(grads) == 1 else tuple(grads)

    others = [k for k, arg in enumerate(args) if why_passed_over(arg) is None and k not in (places or ())]
    fixed = None if places is None else tuple(others)
    return of_gradients(in_two, args, lambda *args: function(*args)[0], fixed)


def places_of(function: Callable, grads: Sequence, args: tuple) -> list[int] | None:
    """For which arguments the gradients are that a function returns after its cost, by their names and shapes.

    None where they are those of the first arguments in order, or where their names and shapes do not tell.
    """
    names, called = argument_names(function, len(args)), names_returned(function)[1:]
    if not names or not all(is_array(leaf) for leaf in (*grads, *args)):
        return None
    called = called if len(called) == len(grads) and all(called) else [str(k) for k in range(len(grads))]
    fits = [np.shape(grad) == np.shape(arg) for grad, arg in zip(grads, args, strict=False)]
    wanted = {name: shape_of(arg) for name, arg in zip(names, args, strict=True) if why_passed_over(arg) is None}
    found = matched(wanted, {name: shape_of(grad) for name, grad in zip(called, grads, strict=True)})
    by_gradient = {gradient: name for name, gradient in found.items()}
    if all(fits) or not all(name in by_gradient for name in called):
        return None
    return [names.index(by_gradient[name]) for name in called]


def shape_of(leaf: Any) -> np.ndarray:
    """An array of the shape of a leaf, without numbers of its own."""
    return np.broadcast_to(np.float64(0), leaf.shape if hasattr(leaf, "shape") else ())


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
    except Exception:  # a function that does not run as a stand-in is tried as a backward pass
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
