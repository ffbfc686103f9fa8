"""`check`: whether a backward pass is right, and if not, where and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import jax

from jaxnet.checking import points
from jaxnet.checking.agreement import CheckOptions
from jaxnet.checking.host_functions import OnHost, is_torch_function
from jaxnet.checking.networks import check_network, is_network
from jaxnet.checking.numpy_functions import as_object
from jaxnet.checking.numpy_layers import kind_of_layer
from jaxnet.checking.numpy_rules import LayerRule, rule_of_layer
from jaxnet.checking.points import points_of
from jaxnet.checking.report import Report
from jaxnet.checking.rules import is_custom, subject_of
from jaxnet.checking.scripts import ScriptRule
from jaxnet.checking.verdict import check_subject


@contextmanager
def settings(args: Any) -> Iterator[None]:
    """Matmul precision at highest: no TF32, no bfloat16 units. Float64 on where inputs are in it, or there are none."""
    leaves = jax.tree.leaves(args, is_leaf=points.is_spec)
    wide = not leaves or any(str(getattr(leaf, "dtype", "")) in ("float64", "complex128") for leaf in leaves)
    with ExitStack() as stack:
        stack.enter_context(jax.default_matmul_precision("highest"))
        if wide:
            stack.enter_context(jax.enable_x64(True))
        yield


class Given(NamedTuple):
    """A rule with its arguments, as shapes and as drawn; of a script, the line of each gradient by its leaf."""

    rule: Any
    template: tuple
    drawn: Sequence
    in_numpy: bool
    lines: dict[str, tuple[int, str]]


def as_functions(rule: Any, template: tuple, drawn: Sequence) -> Given:
    """NumPy objects and scripts as functions, their parameters among the arguments; other rules as they are."""
    rule, drawn = as_object(rule, drawn)
    if isinstance(rule, ScriptRule):
        values = rule.values()
        return Given(rule.as_pair(), values, values, True, rule.lines())
    kind = kind_of_layer(rule, drawn)
    if not kind:
        return Given(rule, template, drawn, False, {})
    rule, inputs, params = rule_of_layer(rule, drawn, is_cost=kind == "cost")
    return Given(rule, (*template[: len(inputs)], *params), (*inputs, *params), True, {})


def check(
    rule: Any,
    *args: Any,
    reference: Callable | None = None,
    intended: Callable | None = None,
    seed: int = 0,
    seeds: int = 3,
    tolerance: float | None = None,
    precise: bool = True,
    also: bool = True,
    shapes: bool = True,
    inside: bool = True,
    diagnose: bool = True,
    adequacy: bool = False,
    budget: float = 10.0,
    kwargs: dict[str, Any] | None = None,
    name: str | None = None,
    again: str = "",
) -> Report:
    """Whether a backward pass is right: every entry of every leaf against autodiff of its primal.

    Args:
        rule: a `Layer`, a network, or a pair (network, `Loss`); a `jax.custom_vjp` or `jax.custom_jvp` function; a pair
            (forward, backward) or (f, f_vjp), in JAX or NumPy; an object with the methods `forward` and `backward`; a
            function that returns (value, grads) or grads of `reference`; or any function with custom rules inside.
        args: its arguments, pytrees of arrays; or shapes to draw them from, "float32[8,256], int32[8]<10".
        reference: the function that the rule is the derivative of; by default the rule's own primal. Kernels that
            autodiff cannot follow need one.
        intended: a declared deviation: a function with the intended derivative, or (*args, d_out) -> grads.
        seed, seeds: the first seed, and how many: each is another random cotangent, and other inputs where drawn.
        tolerance: relative to a leaf's largest entry, in place of the measured one.
        precise: run the rule in float64 too, where it can: small mistakes show that rounding would hide.
        also: try linearity, jit, vmap and repeated runs too.
        shapes: with drawn inputs, try other shapes and points (batch 1, odd, square, block edges, ties, small).
        inside: check the custom rules found inside, each at the inputs that reach it.
        diagnose: look for the cause of a mismatch, for up to `budget` seconds.
        adequacy: list the mistakes that this point could not have seen.
        kwargs: keyword arguments of the rule.

    Returns a `Report`. Raises `CannotCheckError` where there is nothing to compare, or nothing to compare it with.
    """
    options = CheckOptions(seed, seeds, tolerance, precise, also, shapes, inside, diagnose, adequacy, budget, again)
    template = points.expand(args, rule.nondiff_argnums if is_custom(rule) else ())
    with settings(template):
        if is_network(rule):
            return check_network(rule, template, options, name=name, reference=reference)
        drawn = points.draw(template, seed)
        given = Given(rule, template, drawn, False, {})
        if reference is None and not is_torch_function(rule):
            given = as_functions(rule, template, drawn)
        rule, template, drawn = given.rule, given.template, tuple(given.drawn)
        subject = subject_of(rule, drawn, reference=reference, intended=intended, kwargs=kwargs, name=name)
        named = "" if reference is None else f"reference `{getattr(reference, '__name__', 'given')}`"
        where = points_of(template)
        if given.in_numpy or isinstance(subject.run, OnHost):  # NumPy is written for its own rank
            where = replace(where, ranks=list)
        if tolerance is None and isinstance(rule, LayerRule) and rule.rounding:
            options = replace(options, tolerance=rule.rounding)
        report = check_subject(subject, where, replace(options, reference_name=named))
        first = sorted(given.lines[leaf.path] for leaf in report.wrong if leaf.path in given.lines)[:1]
        said = tuple(f"the first wrong gradient is {where}" for _, where in first)
        loose = () if tolerance == options.tolerance else ("WARNING: the tolerance",)  # one that nobody set
        return replace(report, notes=(*said, *(note for note in report.notes if not note.startswith(loose))))


def assert_backward(rule: Any, *args: Any, **options: Any) -> Report:
    """`check`, raising `AssertionError` with the report where the backward pass is wrong; else the report."""
    report = check(rule, *args, **options)
    if not report.ok:
        raise AssertionError("\n" + str(report))
    return report
