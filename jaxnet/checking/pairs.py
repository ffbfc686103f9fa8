"""Rules given as two functions, and functions of PyTorch."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxnet.checking import points
from jaxnet.checking.differentiation import (
    abstract,
    flat_gradients,
    mode_of,
    ones_for,
    raised,
)
from jaxnet.checking.host_functions import (
    in_jax,
    is_data,
    on_host,
    slope_along,
    torch_gradients,
    torch_primal,
    with_same_draws,
)
from jaxnet.checking.subject import (
    CannotCheckError,
    Subject,
    Tree,
    argument_names,
    is_array,
    leaves_of,
    name_of,
)

COTANGENT = re.compile(r"d_?([a-z]|out\w*|ut|values|next_?\w*)|g|ct|\w*grad\w*|delta\w*|cotangent\w*|upstream\w*", re.I)


def of_pair(rule: tuple, args: tuple, reference: Callable | None, kwargs: dict) -> Subject:
    """(forward, backward), or (f, f_vjp): which of the two is found by trying on shapes."""
    first, second = (partial(part, **kwargs) if kwargs else part for part in rule)
    tried: dict[str, list[str]] = {}  # by why it does not run
    for traced in (True, False):
        tried.clear()
        found = []
        for convention in JAX_CONVENTIONS if traced else (*JAX_CONVENTIONS, *NUMPY_CONVENTIONS):
            primal, own = map(with_same_draws, convention(first, second))
            run = own if traced else on_host(own, (args,))
            call = for_jax(primal if reference is None else reference, args)
            if (why := why_not(run, call, args)) is not None:
                tried.setdefault(why, []).append(convention.__doc__ or "")
            else:
                found.append((primal if traced else on_host(primal, args), call, run, own, convention))
        if found:
            plain, call, run, own, _ = found[0] if len(found) == 1 else likeliest(found, args, second)
            return Subject(
                name_of(rule[0]), args, run, call, plain=plain, mode=mode_of(call, args),
                fixed=options_in(args, run, call),
                names=argument_names(rule[0], len(args)), parts=tuple(rule),
                in_jax=None if traced else traced_in_jax(own, rule, call, args),
            )  # fmt: skip
    if len(tried) == 1:
        raise CannotCheckError(
            f"a pair must run on the given inputs, but {name_of(rule[0])} raises {next(iter(tried))}"
        )
    said = [line for why, forms in tried.items() for line in (*forms, f"  raises {why}")]
    raise CannotCheckError("a pair must fit one of these on the given inputs:\n  " + "\n  ".join(said))


def likeliest(found: list[tuple], args: tuple, backward: Callable) -> tuple:
    """Of several ways to read a pair the first that is right; where none is, the one with most signs for it."""
    right = next((each for each in found if is_right(args, each[0], each[2])), None)
    names = [bool(COTANGENT.fullmatch(name)) for name in argument_names(backward, 2)]

    def signs(each: tuple) -> tuple[bool, ...]:
        primal, call, run, _, convention = each
        named = convention in ((saved_last, cotangent_first) if names == [True, False] else ())
        return gives_shapes(args, call, run), is_homogeneous(args, primal, run), named

    return right or max(found, key=signs)


def why_not(run: Callable, call: Callable, args: tuple) -> str | None:
    """Why a rule and its primal do not run on the shapes of some arguments; None where they do."""
    try:
        out = abstract(call, *args)
        jax.eval_shape(lambda values: gradients_only(run, args, values, out), leaves_of(args).values)
    except Exception as error:  # the user's functions may raise anything
        return raised(error)
    return None


def traced_in_jax(run: Callable, parts: tuple, call: Callable, args: tuple) -> Callable | None:
    """A rule of NumPy as one that JAX traces; None where it cannot be: it writes into arrays, say."""
    run = in_jax(run, parts)
    return run if why_not(run, call, args) is None else None


def gives_shapes(args: tuple, call: Callable, run: Callable) -> bool:
    """Whether every gradient has the shape of its argument."""
    leaves, out = leaves_of(args), abstract(call, *args)
    fits: list[bool] = []

    def shapes(values):
        flat, _ = flat_gradients(leaves, run(leaves.tree(values), ones_for(out))[1])
        fits.append(all(grad is not None for grad in flat))

    jax.eval_shape(shapes, leaves.values)
    return fits[0]


def is_homogeneous(args: tuple, primal: Callable, run: Callable) -> bool:
    """Whether twice the cotangent gives twice the gradients. It does not where cotangent and saved are exchanged."""
    try:
        out = leaves_of(primal(*args))
        d_out = points.random_like(out.values, 0)
        one, two = (run(args, out.zeros_elsewhere([k * d for d in d_out]))[1] for k in (1, 2))
    except Exception:  # the user's functions may raise anything: that is told where they are compared
        return False
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return all(np.allclose(2 * np.asarray(a), b, 1e-3, 1e-6) for a, b in pairs if is_array(b) and is_data(b))


@jax.enable_x64(True)
def is_right(args: tuple, primal: Callable, run: Callable) -> bool:
    """Whether a rule gives the derivative along one random direction, but for a thousandth."""
    leaves = leaves_of(args)
    if any(np.iscomplexobj(value) for value in leaves.values):
        return False
    rng = points.generator(0, 505)
    values = [np.asarray(value, np.float64) for value in leaves.values]
    directions = [rng.standard_normal(value.shape) for value in values]
    try:
        outs = [np.asarray(out) for out in leaves_of(primal(*leaves.tree(values))).values]
        d_outs = [rng.standard_normal(out.shape) for out in outs]
        _, grads = run(leaves.tree(values), leaves_of(primal(*args)).zeros_elsewhere(d_outs))
        flat, _ = flat_gradients(leaves, grads)
        got = sum(np.sum(np.asarray(g) * v) for g, v in zip(flat, directions, strict=True) if g is not None)
        moving = [v * (g is not None) for g, v in zip(flat, directions, strict=True)]

        def cost(at: Sequence) -> Any:
            outs = leaves_of(primal(*leaves.tree(at))).values
            return sum(np.sum(d * np.asarray(o)) for d, o in zip(d_outs, outs, strict=True))

        expected = slope_along(cost, values, moving)
    except Exception:  # the user's functions may raise anything: that is told where they are compared
        return False
    return bool(0 < abs(got) >= 1e3 * abs(got - expected))


def options_in(args: tuple, run: Callable, primal: Callable) -> tuple[int, ...]:
    """The places of arguments without an array (a rate, a dict of options) that a rule gives no gradient for."""
    leaves, out, given = leaves_of(args), abstract(primal, *args), []

    def call(values):
        given.extend(grad is not None for grad in run(leaves.tree(values), ones_for(out))[1])

    jax.eval_shape(call, leaves.values)
    without = [k for k, arg in enumerate(args) if not any(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(arg))]
    return tuple(k for k in without if k >= len(given) or not given[k])


def for_jax(function: Callable, args: tuple, *, traced: bool = True) -> Callable:
    """`function`; where JAX cannot trace it, with `jax.numpy` for `numpy`, else as a function that calls it.

    `traced`: whether it may run in `jax.numpy`.
    """
    for way in (lambda: function, *([lambda: in_jax(function, (function,))] if traced else ()),
                lambda: on_host(function, args)):  # fmt: skip
        try:
            abstract(found := way(), *args)
        except Exception:  # the user's function may raise anything: the next way is tried
            continue
        return found
    return function  # it raises in every way: that is told where it is compared


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
    grads = grads if isinstance(grads, tuple) else (grads,)
    places = [k for k, arg in enumerate(args) if leaves_of((arg,)).where]
    if len(grads) < len(args) and len(grads) == len(places):  # none for labels
        given = dict(zip(places, grads, strict=True))
        return tuple(given.get(k) for k in range(len(args)))
    return grads


def saved_first(forward, backward):
    """forward(*args) -> out, saved and backward(saved, d_out) -> grads"""

    def run(args, d_out):
        out, saved = forward(*args)
        return out, as_tuple(backward(saved, d_out), args)

    return (lambda *args: forward(*args)[0]), run


def saved_last(forward, backward):
    """forward(*args) -> out, saved and backward(d_out, saved) -> grads"""
    return saved_first(forward, lambda saved, d_out: backward(d_out, saved))


def saved_of_several(forward, backward):
    """forward(*args) -> *outs, saved and backward(*d_outs, saved) -> grads"""

    def run(args, d_outs):
        *outs, saved = forward(*args)
        return tuple(outs), as_tuple(backward(*d_outs, saved), args)

    return (lambda *args: tuple(forward(*args)[:-1])), run


def output_last(f, f_vjp):
    """f(*args) -> out and f_vjp(d_out, out) -> grads"""

    def run(args, d_out):
        out = f(*args)
        return out, as_tuple(f_vjp(d_out, out), args)

    return f, run


def derivative(f, f_prime):
    """f(x) -> out and f_prime(x) -> the derivative, entry by entry"""

    def run(args, d_out):
        out = f(*args)
        slopes = f_prime(*args)
        if np.shape(slopes) != np.shape(out):
            raise TypeError(f"a derivative has the shape of the output, {np.shape(out)}, got {np.shape(slopes)}")
        return out, (d_out * slopes,)

    return f, run


def derivative_of_output(f, f_prime):
    """f(x) -> out and f_prime(out) -> the derivative, entry by entry"""
    return f, lambda args, d_out: (out := f(*args), (d_out * f_prime(out),))


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


JAX_CONVENTIONS = saved_first, saved_last, pullback_pair, cotangent_first, cotangent_last
NUMPY_CONVENTIONS = saved_of_several, output_last, derivative, derivative_of_output
