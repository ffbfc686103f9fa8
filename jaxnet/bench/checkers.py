"""`jaxnet bench checkers`: mistakes and correct code through jaxnet's `check` and the checkers that people have."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.util import find_spec
from inspect import signature
from statistics import median
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np

from jaxnet.bench.measure import duration
from jaxnet.checking import check
from jaxnet.checking.corpus import CASES, RIGHT, Case, Right, recreated

SIZES = {"small": 0, "large": 2}
DTYPES = ("float32", "float64")
LIMIT = 30
"""Seconds that torch's gradcheck may take for one rule; without an answer by then the mistake counts as not caught."""


class Verdict(NamedTuple):
    """A checker's verdict on a rule: whether it is right, the arguments it calls wrong, and why.

    `leaves`: places of arguments; `cause`: words; `mended`: whether it gives a patch of the source that it has run and
    found right; `failed`: why it could not answer at all.
    """

    ok: bool
    leaves: frozenset[int] = frozenset()
    cause: str = ""
    mended: bool = False
    failed: str = ""


Checker = Callable[[Callable, tuple], Verdict]


# ------------------------------------------------------------------------------------------------------ the checkers


def by_jaxnet(rule: Callable, args: tuple) -> Verdict:
    """The default report, repair included."""
    report = check(rule, *args)
    names = [f"∂{name}" for name in signature(rule).parameters]
    places = frozenset(
        k for leaf in report.wrong if not leaf.forward for k, name in enumerate(names) if leaf.path == name
    )
    return Verdict(report.ok, places, report.cause, report.repair is not None and bool(report.repair.patch))


def moving(rule: Callable, args: tuple) -> tuple[Callable, list[jax.Array]]:
    """The rule as a function of the arrays that have a gradient, and those: others take no integers and no keys."""
    leaves, tree = jax.tree.flatten(args)
    where = [k for k, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]

    def function(*values):
        full = list(leaves)
        for k, value in zip(where, values, strict=True):
            full[k] = value
        return rule(*jax.tree.unflatten(tree, full))

    return function, [leaves[k] for k in where]


def by_check_grads(rule: Callable, args: tuple) -> Verdict:
    """`jax.test_util.check_grads` of the backward pass, with its own tolerances."""
    return by_assertion(partial(jax.test_util.check_grads, order=1, modes=("rev",)), rule, args)


def by_chex(rule: Callable, args: tuple) -> Verdict:
    """`chex.assert_numerical_grads` of the backward pass, with its own tolerances."""
    return by_assertion(partial(chex.assert_numerical_grads, order=1, modes=("rev",)), rule, args)


def by_assertion(checker: Callable, rule: Callable, args: tuple) -> Verdict:
    """A checker that raises AssertionError, which names neither leaf nor cause."""
    try:
        checker(*moving(rule, args))
    except AssertionError:
        return Verdict(False)
    return Verdict(True)


def by_gradcheck(rule: Callable, args: tuple) -> Verdict:
    """`torch.autograd.gradcheck` of the rule as a torch function; it names the input by its place.

    Raises `TimeoutError` after `LIMIT` seconds: it calls the rule twice for each number of its input.
    """
    import torch  # pyright: ignore[reportMissingImports]
    from torch.autograd.gradcheck import GradcheckError  # pyright: ignore[reportMissingImports]

    function, values = moving(rule, args)
    forward, pull = jax.jit(function), jax.jit(lambda values, g: jax.vjp(function, *values)[1](g))
    deadline = time.perf_counter() + LIMIT

    class Rule(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *tensors):
            if time.perf_counter() > deadline:
                raise TimeoutError(f"no answer within {LIMIT} s")
            ctx.save_for_backward(*tensors)
            return torch.from_numpy(np.array(forward(*map(to_jax, tensors))))

        @staticmethod
        def backward(ctx, *cotangents):
            if time.perf_counter() > deadline:
                raise TimeoutError(f"no answer within {LIMIT} s")
            grads = pull([*map(to_jax, ctx.saved_tensors)], to_jax(cotangents[0]))
            return tuple(torch.from_numpy(np.array(d)) for d in grads)

    def to_jax(tensor):
        return jax.device_put(tensor.detach().numpy())

    tensors = [torch.from_numpy(np.array(value)).requires_grad_() for value in values]
    try:
        torch.autograd.gradcheck(Rule.apply, tuple(tensors))
    except GradcheckError as error:
        said = re.search(r"with respect to input (\d+)", str(error))
        where = [k for k, leaf in enumerate(args) if jnp.issubdtype(getattr(leaf, "dtype", bool), jnp.inexact)]
        return Verdict(False, frozenset({where[int(said[1])]} if said and int(said[1]) < len(where) else ()))
    return Verdict(True)


CHECKERS: dict[str, Checker] = {
    "jaxnet check": by_jaxnet,
    "jax check_grads": by_check_grads,
    "chex assert_numerical_grads": by_chex,
    "torch gradcheck": by_gradcheck,
}
NEEDS = {"torch gradcheck": "torch"}


# -------------------------------------------------------------------------------------------------------- the tables


class CheckerRow(NamedTuple):
    """A checker's score in one dtype and size. Seconds are of one rule; names say which rules it got wrong."""

    checker: str
    dtype: str
    size: str
    mistakes: int = 0
    correct: int = 0
    missed: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()
    misplaced: tuple[str, ...] = ()
    unnamed: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    seconds: float = 0.0
    most_seconds: float = 0.0
    absent: str = ""

    def headings(self) -> tuple[str, ...]:
        """The headings."""
        return (
            "checker",
            "dtype",
            "size",
            "caught",
            "false alarms",
            "leaf named",
            "cause named",
            "seconds: median",
            "most",
        )

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        if self.absent:
            return self.checker, self.dtype, self.size, self.absent, "", "", "", "", ""
        of = f"/{self.mistakes}"
        return (
            self.checker,
            self.dtype,
            self.size,
            f"{self.mistakes - len(self.missed)}{of}",
            f"{len(self.alarms)}/{self.correct}",
            f"{self.mistakes - len(self.misplaced)}{of}",
            f"{self.mistakes - len(self.unnamed)}{of}",
            duration(self.seconds),
            duration(self.most_seconds),
        )


def rows(
    checkers: Iterable[str] = tuple(CHECKERS),
    dtypes: Iterable[str] = DTYPES,
    sizes: Iterable[str] = tuple(SIZES),
    cases: Sequence[Case] = CASES,
    right: Sequence[Right] = RIGHT,
) -> list[CheckerRow]:
    """All of `jaxnet bench checkers`, or a part of it: a row for each checker, dtype and size.

    The whole has one more row, of the rules that were recreated from public reports.
    """
    found = [row(name, dtype, size, cases, right) for name in checkers for dtype in dtypes for size in sizes]
    if cases is CASES:
        last = row("jaxnet check", "float32", "small", recreated.CASES, recreated.RIGHT)
        found.append(last._replace(checker="jaxnet check, recreated"))
    return found


def row(name: str, dtype: str, size: str, cases: Sequence[Case], right: Sequence[Right]) -> CheckerRow:
    """The score of one checker over mistakes and right rules."""
    needs = NEEDS.get(name)
    if needs and find_spec(needs) is None:
        return CheckerRow(name, dtype, size, absent=f"{needs} not installed")
    checker = CHECKERS[name]
    seconds: list[float] = []
    said: dict[str, Verdict] = {}
    jax.clear_caches()  # else each finds the programs of the one before it
    with jax.enable_x64(dtype == "float64"):
        trials = [(f"wrong: {case.name}", ruled(case), case.make_args) for case in cases]
        trials += [(f"right: {each.name}", each.rule, each.make_args) for each in right]
        for trial, rule, make_args in trials:
            args = make_args(SIZES[size], 0, jnp.dtype(dtype))
            said[trial] = timed(checker, rule, args, seconds)
    wrong = {case: said[f"wrong: {case.name}"] for case in cases}
    return CheckerRow(
        name,
        dtype,
        size,
        len(cases),
        len(right),
        missed=tuple(case.name for case, verdict in wrong.items() if verdict.ok),
        alarms=tuple(each.name for each in right if not said[f"right: {each.name}"].ok),
        misplaced=tuple(case.name for case, verdict in wrong.items() if verdict.leaves != places(case)),
        unnamed=tuple(
            case.name
            for case, verdict in wrong.items()
            if not (verdict.mended or (case.cause_words and case.named_by(verdict.cause)))
        ),
        failed=tuple(f"{trial}: {verdict.failed}" for trial, verdict in said.items() if verdict.failed),
        seconds=median(seconds),
        most_seconds=max(seconds),
    )


def ruled(case: Case) -> Callable:
    """A case of the corpus as a `jax.custom_vjp`."""
    rule = jax.custom_vjp(case.primal)
    rule.defvjp(*case.wrong_rule)
    return rule


def places(case: Case) -> frozenset[int]:
    """Which arguments' gradients are wrong."""
    return frozenset(int(leaf.strip("[]")) for leaf in case.wrong_leaves)


def timed(checker: Checker, rule: Callable, args: tuple, seconds: list[float]) -> Verdict:
    """A checker's verdict; one that raises is no verdict: neither caught nor an alarm."""
    jax.block_until_ready(jax.tree.leaves(args))
    start = time.perf_counter()
    try:
        verdict = checker(rule, args)
    except Exception as error:
        verdict = Verdict(True, failed=f"{type(error).__name__}: {error}".splitlines()[0])
    seconds.append(time.perf_counter() - start)
    return verdict
