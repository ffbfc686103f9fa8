"""A rule at points: in its own dtype at every seed, in a finer one, and at other kinds of points and shapes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.checking import points
from jaxnet.checking.compare import Leaf, compare, drift
from jaxnet.checking.differentiation import raised, short
from jaxnet.checking.kinks import kinked
from jaxnet.checking.points import Points
from jaxnet.checking.properties import Property
from jaxnet.checking.reference import Runs, WidenedFunction, in_float64, widened
from jaxnet.checking.rounding import Exact, coarsest, exact_at, scale_of, unit_of
from jaxnet.checking.subject import CannotCheckError, Tree, leaves_of
from jaxnet.program import first_not_finite, float_dtypes
from jaxnet.program.evaluate import UNOPTIMISED

MOST_ASKED = 256  # numbers that finite differences are taken in
SLACK = 32  # times the allowed rounding that a rule which is right in float64 may lose
DIFFERENCES_SECONDS = 6.0  # of the processor's time, after which no further seed is held against differences
ELSEWHERE_SECONDS = 6.0  # of the processor's time
TIED = "ties", "zeros", "bounds"  # kinds of points at which many branches are open at once
NOT_FINITE = "not finite in the reference itself"


@dataclass(frozen=True)
class CheckOptions:
    """How a check is run."""

    seed: int = 0
    seeds: int = 3
    tolerance: float | None = None
    precise: bool = True
    also: bool = True
    shapes: bool = True
    inside: bool = True
    diagnose: bool = True
    adequacy: bool = False
    budget: float = 10.0
    again: str = ""
    reference_name: str = ""


@dataclass
class Findings:
    """The findings so far."""

    leaves: list[Leaf] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    properties: list[Property] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    seeds: int = 0  # how many were drawn
    witness: tuple[tuple, Tree, Points] | None = None  # arguments and cotangent of the first wrong point, and its kin

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Notes the seconds that something took."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def point(runs: Runs, where: Points, seed: int, how: str = "plain") -> tuple[tuple, tuple]:
    """Values of the leaves with a gradient, and a random cotangent; at odd seeds its entries are positive."""
    args = where.draw(seed, how)
    values, shapes = leaves_of(args, runs.subject.fixed).values, runs.seed_shapes()
    if runs.subject.seed_one:
        return values, tuple(jnp.ones(s.shape, s.dtype) for s in shapes)
    return values, points.random_like(shapes, seed, positive=seed % 2 == 1)


def inside_unit(runs: Runs, values: Sequence, seed: Sequence) -> float | None:
    """The coarsest unit that the rule computes in at these dtypes; None where it does not run.

    A rule that is widened rounds nowhere: then it is the reference's, that may name a dtype.
    """
    for which in ("rule", "expected"):
        function = runs.function(which, values, seed)
        try:
            program = jax.make_jaxpr(function)(list(values), list(seed), runs.leaves.rest)
        except Exception:  # the user's rule may raise anything; its failure is told where it is compared
            return None
        if not isinstance(function, WidenedFunction):
            break
    else:
        return unit_of(jnp.float64)
    return max((unit_of(dtype) for dtype in float_dtypes(program)), default=unit_of(jnp.float64))


def judge_seeds(runs: Runs, where: Points, options: CheckOptions, found: Findings) -> tuple | None:
    """Compares the rule in its own dtype at every seed. Returns the first point and its gradients, or None."""
    first = None
    values, d_out = point(runs, where, options.seed)
    own = coarsest([*values, *d_out])
    unit = max(own, inside_unit(runs, values, d_out) or own)
    coarse = unit > unit_of(jnp.bfloat16)
    if coarse:
        unit = own
    elif unit > own:
        found.notes.append(f"the rule rounds to {unit_name(unit)} inside, and is held to that")
    end = time.process_time() + DIFFERENCES_SECONDS
    for seed in range(options.seed, options.seed + options.seeds):
        if found.seeds and runs.subject.mode == "differences" and time.process_time() > end:
            found.notes.append(f"no time for more than {found.seeds} of {options.seeds} seeds: give `reference=`")
            break
        found.seeds += 1
        at = runs.moved(where.draw(seed, "plain"))
        values, d_out = point(at, where, seed)
        try:
            got = at.run("rule", values, d_out)
        except Exception as error:
            if not raised_under_jit(at, values, d_out, error, found):
                return None
            runs.subject = replace(runs.subject, transforms=False)
            at = runs.moved(where.draw(seed, "plain"))
            got = at.run("rule", values, d_out)
        exact = exact_at(at, values, d_out, unit)
        inside_domain(at, values, got[0], exact.out)
        leaves = judge(at, values, d_out, got, exact, unit, options)
        if first is None:
            first = (values, d_out, got[1], allowing(exact, options.tolerance))
            not_finite_anywhere(at, values, d_out, exact, found)
            plain_forward(at, values, exact, options, found)
            loose_tolerance(options, exact, found)
        note(found, leaves, at, values, d_out, where)
    if coarse and not all(leaf.ok for leaf in found.leaves):
        found.witness = None
        found.problems.append(
            "could not be judged: the rule rounds to a float of 8 bits or fewer inside, where autodiff's derivative is "
            "no reference; give `intended=`, the function or the backward pass that is meant"
        )
    return first


def ask_differences(runs: Runs, where: Points, options: CheckOptions, found: Findings) -> bool:
    """Asks finite differences in float64 where rule and autodiff disagree; whether they agree with the rule alone.

    Autodiff follows a primal step by step: through bisection, whose steps only compare, it gives zero; some of its own
    derivatives are wrong or NaN at single points.
    """
    subject = runs.subject
    wrong = {leaf.path for leaf in found.leaves if not leaf.ok}
    unlike = wrong | {leaf.path for leaf in found.leaves if leaf.verdict == "kink"}
    size = sum(value.size for value in runs.leaves.values)
    if (
        not unlike
        or not wrong <= {leaf.path for leaf in found.leaves if not leaf.forward and np.isfinite(leaf.got)}
        or any(not problem.startswith(NOT_FINITE) for problem in found.problems)
        or subject.mode == "differences"
        or subject.tangents
        or subject.declared is not None
        or size > MOST_ASKED
        or any(np.iscomplexobj(value) for value in runs.leaves.values)
    ):
        return False
    agree = {"rule": set(unlike), "autodiff": set(unlike)}
    for seed in range(options.seed, options.seed + options.seeds):
        at = runs.moved(where.draw(seed, "plain"))
        values, d_out = point(at, where, seed)
        _, got = at.run("rule", values, d_out)
        _, autodiff = in_float64(lambda v, s, at=at: at.run("expected", v, s), values, d_out)
        _, differences = in_float64(at.differences, values, d_out)
        unsure = 8 * min(change for _, change in at.curve)
        for path, g, a, d in zip(at.labels(), got, autodiff, differences, strict=True):
            allowed = (1e-6 + 64 * coarsest([*values, *d_out])) * scale_of(d) + unsure
            for who, each, within in (("rule", g, allowed), ("autodiff", a, 10 * allowed)):
                if not np.max(np.abs(each - d), initial=0) <= within:  # NaN too
                    agree[who].discard(path)
        if not agree["rule"]:  # no other point can make it right
            break
    for path in sorted(unlike):
        words = {
            (True, False): "the rule agrees with finite differences, autodiff of the primal does not",
            (False, True): "autodiff agrees with finite differences, the rule does not",
            (False, False): "finite differences agree with neither the rule nor autodiff",
            (True, True): "finite differences cannot tell the rule from autodiff",
        }[path in agree["rule"], path in agree["autodiff"]]
        if path in wrong | agree["rule"]:
            found.notes.append(f"{path}: {words}")
    right = agree["rule"] - agree["autodiff"]
    if not right or not wrong <= right:
        runs.curve.clear()
        return False
    found.leaves = [replace(leaf, verdict="differences") if leaf.path in right else leaf for leaf in found.leaves]
    found.notes += found.problems
    found.problems, found.witness = [], None
    return True


def inside_domain(runs: Runs, values: Sequence, got: Sequence, expected: Sequence) -> None:
    """Raises `CannotCheckError` where the rule's outputs and the reference's are not finite at the same entries."""
    if any((~np.isfinite(g) & ~np.isfinite(e)).any() for g, e in zip(got, expected, strict=True)):
        raise CannotCheckError(
            f"the outputs must be finite, but {first_term(runs, values)}: give inputs from the function's domain, "
            'as "float32[5,4]>0", "float32[5,4]>0<1", "float32[5,4] probabilities" or "float32[5,4] one-hot"'
        )


def first_term(runs: Runs, values: Sequence) -> str:
    """The first operation in which a NaN or an infinity arises on the way to the outputs."""
    term = first_not_finite(lambda v: runs.subject.primal(*runs.args(v)), list(values))
    return term or "they are NaN or infinite"


def not_finite_anywhere(runs: Runs, values, d_out, exact: Exact, found: Findings) -> None:
    """A NaN or an infinity in the reference itself is a failure, and its first term is named."""
    if all(np.isfinite(a).all() for a in [*exact.out, *exact.grads]):
        return
    if all(np.isfinite(a).all() for a in exact.out):
        term = first_not_finite(lambda v, s: runs.expected(v, s), list(values), list(d_out))
    else:
        term = first_term(runs, values)
    found.problems.append(f"{NOT_FINITE}: {term or 'only in float64'}")


def plain_forward(runs: Runs, values, exact: Exact, options: CheckOptions, found: Findings) -> None:
    """The function gives the same output with and without differentiation."""
    if runs.subject.plain is None or not runs.subject.transforms:
        return
    plain = runs.subject.plain
    try:
        out = jax.jit(lambda v: runs.flat_out(plain(*runs.args(v))), compiler_options=UNOPTIMISED)(list(values))
    except Exception as error:
        found.problems.append(f"called without differentiation, the rule raises {raised(error)}")
        return
    for path, g, e, allowed in zip(runs.outs.paths, out, exact.out, exact.out_allowed, strict=True):
        leaf = compare(f"primal{path}", widened(g), e, allowed, options.tolerance, forward=True)
        if not leaf.ok:
            found.leaves.append(leaf)


def loose_tolerance(options: CheckOptions, exact: Exact, found: Findings) -> None:
    """A tolerance looser than rounding asks for is a warning."""
    if options.tolerance is None:
        return
    needed = max(
        (
            a / s
            for a, g in zip(exact.grads_allowed, exact.grads, strict=True)
            if (s := float(np.max(np.abs(g), initial=0)))
        ),
        default=0.0,
    )
    if options.tolerance > needed > 0:
        found.notes.append(
            f"WARNING: the tolerance of {options.tolerance:g} is looser than the {needed:.0e} that rounding asks for"
        )


def raised_under_jit(runs: Runs, values, d_out, error: Exception, found: Findings) -> bool:
    """Notes why the rule does not run; True where it does without jit."""
    try:
        runs.rule(list(values), list(d_out))
    except Exception as plainly:
        found.problems.append(f"the rule raises {raised(plainly)}")
        return False
    found.properties.append(Property("jit", False, f"the rule runs eagerly, but under jit it raises {short(error)}"))
    return True


def unit_name(unit: float) -> str:
    """The dtype with a unit in the last place."""
    return next(
        name for name in ("float8_e4m3fn", "bfloat16", "float16", "float32", "float64") if unit_of(name) <= unit
    )


def judge(
    runs: Runs, values, d_out, got, exact: Exact, unit: float, options: CheckOptions, *, finer: float = 0.0,
    ties: bool = False, dtype: str = "",
) -> list[Leaf]:  # fmt: skip
    """Compares outputs and gradients with the exact ones. `finer`: the least relative error that is allowed."""
    got_out, got_grads = got
    leaves = []
    outs = ["forward" if path == "" else f"forward{path}" for path in runs.outs.paths]
    for path, g, e, allowed in zip(outs, got_out, exact.out, exact.out_allowed, strict=True):
        limit = max(allowed, finer * float(np.max(np.abs(e), initial=0.0)))
        leaves.append(compare(path, g, e, limit, options.tolerance, forward=True, dtype=dtype))
    limits = [
        max(a, finer * float(np.max(np.abs(e), initial=0.0)))
        for a, e in zip(exact.grads_allowed, exact.grads, strict=True)
    ]
    found = [
        compare(path, g, e, limit, options.tolerance, dtype=dtype)
        for path, g, e, limit in zip(runs.labels(), got_grads, exact.grads, limits, strict=True)
    ]
    wrong = [i for i, leaf in enumerate(found) if not leaf.ok and np.isfinite(leaf.error)]
    granted = kinked(runs, values, d_out, got_grads, exact, wrong, unit, ties)
    found = [replace(leaf, verdict="kink") if i in granted else leaf for i, leaf in enumerate(found)]
    if unit > 1e-4:
        _, own = runs.run("expected", values, d_out)
        found = [drift(leaf, ratio_of(o, e), unit) for leaf, o, e in zip(found, own, exact.grads, strict=True)]
    return leaves + found


def ratio_of(own: np.ndarray, exact: np.ndarray) -> float:
    """How long the reference's own gradient in this dtype is along the exact one."""
    below = float(np.vdot(exact, exact).real)
    return float(np.vdot(exact, own).real) / below if below else 1.0


def note(found: Findings, leaves: list[Leaf], runs: Runs, values: Sequence, d_out: Sequence, there: Points) -> None:
    """Keeps the verdicts of one point, and the first wrong point, for the cause."""
    found.leaves += leaves
    wrong = any(not leaf.ok and not leaf.forward for leaf in leaves)
    if wrong and found.witness is None and not runs.subject.tangents:
        found.witness = runs.leaves.tree(values), runs.outs.zeros_elsewhere(d_out), there


def asks_finer(options: CheckOptions, values: Sequence, d_out: Sequence) -> bool:
    """Whether a finer dtype is asked, or there is none: in float64 only how far a little rounding goes is asked."""
    return options.precise or coarsest([*values, *d_out]) <= unit_of(jnp.float64)


def allowing(exact: Exact, tolerance: float | None) -> Exact:
    """The reference, with no less allowed than a tolerance that the user set."""
    if tolerance is None:
        return exact
    pairs = zip(exact.grads_allowed, exact.grads, strict=True)
    return replace(exact, grads_allowed=[max(allowed, tolerance * scale_of(grad)) for allowed, grad in pairs])


def judge_finer(runs: Runs, where: Points, options: CheckOptions, found: Findings) -> None:
    """The rule in float64 (or float32, for one in half precision that casts to it): mistakes that rounding would hide.

    Where it is right there, an error a little above the limit of the user's dtype is loss of precision only.
    """
    values, d_out = point(runs, where, options.seed)
    own = coarsest([*values, *d_out])
    if own <= unit_of(jnp.float64):
        inner, slack = own, 4.0
    else:
        inner = in_float64(lambda v, s: inside_unit(runs, v, s), values, d_out)
        slack = SLACK if inner is not None and inner < own < 1e-4 else 4.0
    if inner is None or inner >= own:
        why = "does not run there" if inner is None else f"rounds to {unit_name(inner)} inside"
        if own > unit_of(jnp.float64):
            found.notes.append(f"not run in float64: the rule {why}")
        if inner is None or all(leaf.ok for leaf in found.leaves):
            return
        at = runs.moved(where.draw(options.seed, "plain"))
        if not right_unrounded(at, *point(at, where, options.seed), inner, options):
            return
    else:
        # A constant in the rule may be given to the user's dtype only: finer than that nothing is asked.
        finer, finer_leaves = (4 * own if own < 1e-4 else own / 8), []
        for seed in range(options.seed, options.seed + found.seeds):
            at = runs.moved(where.draw(seed, "plain"))
            values, d_out = point(at, where, seed)
            try:
                leaves = in_float64(lambda v, s, at=at: finer_leaves_at(at, v, s, inner, finer, options), values, d_out)
            except Exception as error:  # a program that is traced in float64 may still not compile or run
                found.notes.append(f"not run in float64: the rule raises {short(error)}")
                return
            finer_leaves += leaves
            note(found, [leaf for leaf in leaves if not leaf.ok], at, values, d_out, where)
        if any(not leaf.ok for leaf in finer_leaves):
            return
    found.leaves = [imprecise(leaf, slack, own, options) for leaf in found.leaves]
    if all(leaf.verdict != "WRONG" for leaf in found.leaves):
        found.witness = None


def right_unrounded(runs: Runs, values: Sequence, d_out: Sequence, unit: float, options: CheckOptions) -> bool:
    """Whether the rule's own program is right with every float in it widened, so that it rounds nowhere inside."""
    unrounded = runs.widened_function(runs.rule, runs.seed_shapes())
    if unrounded is None:
        return False

    def leaves(values, d_out):
        got = tuple([widened(x) for x in part] for part in unrounded(values, d_out, runs.leaves.rest))
        return judge(runs, values, d_out, got, exact_at(runs, values, d_out, unit), unit, options)

    return all(leaf.ok for leaf in in_float64(leaves, values, d_out))


def finer_leaves_at(runs: Runs, values, d_out, unit: float, finer: float, options: CheckOptions) -> list[Leaf]:
    """The verdicts of the rule in a finer dtype at one point."""
    got = runs.run("rule", values, d_out)
    exact = exact_at(runs, values, d_out, unit)
    # A tolerance that the user set is for the user's dtype: here it makes looser, and never stricter.
    finer, options = max(finer, options.tolerance or 0.0), replace(options, tolerance=None)
    return judge(runs, values, d_out, got, exact, unit, options, finer=finer, dtype=unit_name(unit))


def imprecise(leaf: Leaf, slack: float, unit: float, options: CheckOptions) -> Leaf:
    """A wrong leaf where the algebra is known to be right: within `slack` it is allowed, beyond it is imprecise."""
    if leaf.ok or not np.isfinite(leaf.error):
        return leaf
    slack = 1.0 if options.tolerance is not None else slack
    near = leaf.error <= min(slack * leaf.allowed, 0.25) and leaf.cosine >= (0.999 if unit < 1e-4 else 0.98)
    words = f"{leaf.error / leaf.allowed:.1f} times what rounding allows" if leaf.allowed else ""
    return replace(leaf, verdict="ok" if near else "imprecise", pattern=words)


def judge_elsewhere(runs: Runs, where: Points, options: CheckOptions, found: Findings) -> None:
    """Small inputs, ties, rows of zeros and of equal entries, other shapes and ranks, while time lasts.

    At a rank that a rule may not be meant for, and at the bounds of its inputs, a wrong leaf is a warning.
    """
    kinds = ("small inputs", "small"), ("inputs with ties", "ties"), ("a row of zeros", "zeros")
    places = [(how, where, kind, found) for how, kind in kinds]
    places += [(how, there, "plain", found) for how, there in where.elsewhere()]
    places += [(how, there, "plain", Findings(seconds=found.seconds)) for how, there in where.ranks()]
    places += [("the bounds of the inputs", where, "bounds", Findings(seconds=found.seconds))] * where.bounded
    end = time.process_time() + ELSEWHERE_SECONDS
    tried, left = [], []
    for how, there, kind, kept in places:
        if time.process_time() > end:
            left.append(how)
        elif judge_there(runs, how, there, kind, options, kept):
            wrong = [leaf.path for leaf in kept.leaves if not leaf.ok] if kept is not found else []
            if wrong:
                found.notes.append(
                    f"WARNING: at {how} ({there.words}), which rule and reference take, {', '.join(wrong)} is wrong"
                )
            else:
                tried.append(how)
    for words, those in (("also at", tried), ("no time for", left)):
        if those:
            found.notes.append(f"{words}: {', '.join(dict.fromkeys(those))}")


def judge_there(runs: Runs, how: str, there: Points, kind: str, options: CheckOptions, found: Findings) -> bool:
    """The rule at another kind of point; False where the reference does not take it, or is not finite there."""
    seed = options.seed + 1000
    try:
        args = there.draw(seed, kind)
        runs = runs.moved(args)
        values, d_out = point(runs, there, seed, kind)
        unit = coarsest([*values, *d_out])
        exact = exact_at(runs, values, d_out, unit, still=kind in TIED)
    except Exception:  # the reference itself does not take this shape: nothing to hold the rule to
        return False
    if not all(np.isfinite(a).all() for a in [*exact.out, *exact.grads]):
        return False
    try:
        got = runs.run("rule", values, d_out)
    except Exception as error:
        found.notes.append(f"{how} ({there.words}): the reference runs, the rule raises {short(error)}")
        return False
    leaves = judge(runs, values, d_out, got, exact, unit, options, ties=kind in TIED, dtype=f"{how}, {there.words}")
    if known_right(found) and not all(leaf.ok for leaf in leaves):
        rounded = [imprecise(leaf, SLACK if unit < 1e-4 else 4.0, unit, options) for leaf in leaves]
        if all(leaf.ok for leaf in rounded) or right_unrounded(runs, values, d_out, unit_of(jnp.float64), options):
            leaves = rounded
    note(found, leaves, runs, values, d_out, there)
    return True


def known_right(found: Findings) -> bool:
    """Whether the rule was right in float64."""
    return "float64" in found.seconds and all(leaf.ok for leaf in found.leaves)
