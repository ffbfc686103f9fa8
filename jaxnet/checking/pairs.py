"""Rules given as two functions, and functions of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from jaxnet.checking.differentiation import (
    abstract,
    mode_of,
    ones_for,
    short,
)
from jaxnet.checking.host_functions import on_host, torch_gradients, torch_primal
from jaxnet.checking.subject import (
    CannotCheckError,
    Subject,
    Tree,
    argument_names,
    leaves_of,
    name_of,
)


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
