"""The whole check of one rule at some points: values, invariants, other points, rules inside, cause."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxnet.checking import points
from jaxnet.checking.adequacy import adequacy, grouped
from jaxnet.checking.agreement import (
    NOT_FINITE,
    CheckOptions,
    Findings,
    ask_differences,
    asks_finer,
    judge_elsewhere,
    judge_finer,
    judge_seeds,
    point,
)
from jaxnet.checking.author import arguments_at, functions_of
from jaxnet.checking.compare import Leaf, alignment, worst
from jaxnet.checking.differentiation import GradientFault, differentiated, mode_of, only_arrays, short
from jaxnet.checking.patches import Repair
from jaxnet.checking.planting import Cause, planted
from jaxnet.checking.points import Points, points_of
from jaxnet.checking.properties import STRUCTURE, Property, properties_of
from jaxnet.checking.reference import Runs, in_float64
from jaxnet.checking.repair import FRESH, repaired
from jaxnet.checking.report import Report
from jaxnet.checking.rounding import scale_of
from jaxnet.checking.rules import inside_out, is_custom, recomputed, subject_of
from jaxnet.checking.subject import CannotCheckError, Subject, leaves_of
from jaxnet.program import RuleUse, rules_inside

MOST_INSIDE = 64
REPAIR = 0.7  # of the budget, for the repair; where there is none, the rest is for a mistake in autodiff's program
BLIND, COARSE = 0.5, 5e-3  # relative to a leaf's largest entry: nothing is seen; a per cent may not be
KINK = "kink: at these entries the function has two slopes; the rule's value is one of them or between: not counted"
IMPLICIT = "jax/_src/lax/control_flow/solves.py"  # custom_root: its gradients are not those of its iterations


def check_subject(subject: Subject, where: Points, options: CheckOptions) -> Report:
    """The whole check of one rule at some points."""
    found = Findings(notes=list(subject.notes))
    args = where.draw(options.seed, "plain")
    runs = Runs.at(subject, args)
    if options.tolerance is not None and options.tolerance <= 0:
        raise CannotCheckError(f"tolerance must be positive, got {options.tolerance}")
    with found.phase("compare"):
        first = judge_seeds(runs, where, options, found)
    if first is not None:
        if asks_finer(options, *first[:2]):
            with found.phase("float64"):
                judge_finer(runs, where, options, found)
        with found.phase("differences"):
            autodiff = not ask_differences(runs, where, options, found)
        if options.also and all(leaf.ok for leaf in found.leaves):
            with found.phase("also checked"):
                smooth = autodiff and all(leaf.verdict != "kink" for leaf in found.leaves)
                found.properties += properties_of(runs, *first, smooth=smooth)
        if autodiff and options.shapes and where.fresh and all(leaf.ok for leaf in found.leaves):
            with found.phase("other points"):
                judge_elsewhere(runs, where, options, found)
    inside = []
    if options.inside:
        with found.phase("inside"):
            inside = check_inside(subject, where, options, found)
            if (again := recomputed(subject.custom, subject)) is not None:
                inside.append(check_subject(again, where, options))
    leaves = tuple(unlike(leaf, runs.faults.get(leaf.path.removeprefix("∂"))) for leaf in worst(found.leaves))
    found.notes += unseen(leaves, options, subject.mode)
    found.notes += [*divided(leaves, args), *fused(leaves, args), *summed(leaves, args)]
    found.notes += [KINK] * any(leaf.verdict == "kink" for leaf in leaves)
    if runs.faults:
        words = dict.fromkeys(fault.words for fault in runs.faults.values())
        found.properties.append(Property(STRUCTURE, False, "; ".join(words)))
    if any(fault.shape is None for fault in runs.faults.values()):  # then that is the cause
        found.witness = None
    report = Report(
        name=subject.name,
        where=where.words,
        seed=options.seed,
        leaves=leaves,
        properties=tuple(found.properties),
        problems=tuple(found.problems),
        notes=tuple(dict.fromkeys(found.notes)),
        passed_over={subject.label(path): why for path, why in leaves_of(args, subject.fixed).passed_over.items()},
        inside=tuple(inside),
        reference=reference_words(subject, options),
        again=options.again,
        seconds=found.seconds,
        curve=tuple(runs.curve),
    )
    return explained(report, subject, where, options, found)


def unseen(leaves: Sequence[Leaf], options: CheckOptions, mode: str) -> list[str]:
    """Where rounding allows so much that mistakes pass: leaves no larger than it, half precision by itself."""
    gradients = [leaf for leaf in leaves if not leaf.forward and leaf.ok]
    blind = [
        leaf.path
        for leaf in gradients
        if leaf.allowed >= BLIND and leaf.arrays is not None and scale_of(leaf.arrays[1]) > 0
    ]
    notes = []
    if blind:
        notes.append(
            f"WARNING: {', '.join(blind)} {'is' if len(blind) == 1 else 'are'} no larger than "
            f"{'finite differences are unsure of' if mode == 'differences' else 'what rounding allows'} here: "
            "a mistake in it would pass; take other inputs, or a finer dtype"
        )
    coarse = max((leaf.allowed for leaf in gradients if leaf.allowed < BLIND), default=0.0)
    if not options.precise and coarse > COARSE:
        notes.append(
            f"WARNING: in this dtype by itself, mistakes of up to {100 * coarse:.1g} % pass: leave `precise` on, or "
            "check in float32"
        )
    return notes


def unlike(leaf: Leaf, fault: GradientFault | None) -> Leaf:
    """A leaf whose gradient is missing or has another shape: that is said in place of numbers."""
    if fault is None or np.isfinite(leaf.error):
        return leaf
    return replace(leaf, pattern="no gradient" if fault.shape is None else f"its shape is {fault.shape}", arrays=None)


def divided(leaves: Sequence[Leaf], args: tuple) -> list[str]:
    """Where all gradients that have no axis of the examples are divided by their number, and the others are right."""
    lengths = {n for leaf in leaves_of(args).values for n in np.shape(leaf) if n > 1}
    gradients = [leaf for leaf in leaves if not leaf.forward and leaf.arrays is not None]
    wrong = [leaf for leaf in gradients if not leaf.ok]
    for n in lengths:
        of_parameters = [leaf for leaf in gradients if leaf.arrays is not None and n not in leaf.arrays[1].shape]
        if (
            0 < len(wrong) < len(gradients)
            and wrong == of_parameters
            and all(abs(leaf.ratio * n - 1) < 1e-3 for leaf in wrong)
        ):
            return [
                f"divided by {n}, unlike the others: {', '.join(leaf.path for leaf in wrong)}. If {n} is the number of "
                "examples, this is right behind a loss that is summed, and not averaged, over them"
            ]
    return []


def fused(leaves: Sequence[Leaf], args: tuple) -> list[str]:
    """Where a wrong gradient with respect to p is a multiple of p − target."""
    arrays, notes = [np.asarray(each) for each in jax.tree.leaves(args) if np.ndim(each)], []
    for leaf in leaves:
        got = np.zeros(0) if leaf.ok or leaf.arrays is None else leaf.arrays[0]
        rows = [p for p in arrays if p.shape == got.shape and p.dtype.kind == "f"]
        targets = [np.eye(got.shape[-1])[y] for y in arrays if y.dtype.kind in "iu" and y.shape == got.shape[:-1]]
        for difference in (p - y for p in rows for y in (*rows, *targets)):
            if np.any(difference) and abs(alignment(got, difference)[0] - 1) < 1e-6:
                notes.append(
                    f"{leaf.path} is a multiple of p − target: the gradient with respect to the logits z of a softmax "
                    "or sigmoid p(z). It is right if p(z) is not differentiated again"
                )
    return list(dict.fromkeys(notes))


def summed(leaves: Sequence[Leaf], args: tuple) -> list[str]:
    """Where every wrong gradient is as many times too large as an axis of the inputs has entries."""
    wrong = [leaf for leaf in leaves if not leaf.ok]
    for n in sorted({n for leaf in leaves_of(args).values for n in np.shape(leaf) if n > 1}) if wrong else ():
        if all(abs(leaf.ratio / n - 1) < 1e-3 and leaf.cosine > 0.9999 for leaf in wrong):
            paths = ", ".join(leaf.path for leaf in wrong)
            return [f"{n} times too large: {paths}. An axis of the inputs has {n} entries: 1/{n} may be forgotten"]
    return []


def reference_words(subject: Subject, options: CheckOptions) -> str:
    """The reference in words."""
    how = {
        "reverse": "autodiff of its primal",
        "forward": "forward mode, since reverse mode cannot go through its primal",
        "differences": "finite differences in float64: a second opinion only, since autodiff cannot follow the primal; "
        "give `reference=` for a proof",
    }[subject.mode]
    return (
        f"{options.reference_name}, {how}".replace("autodiff of its primal", "by autodiff")
        if options.reference_name
        else how
    )


def check_inside(subject: Subject, where: Points, options: CheckOptions, found: Findings) -> list[Report]:
    """Checks the custom rules inside a function at the inputs that reach them; at most three uses of each."""
    function = subject.custom.__wrapped__ if subject.custom is not None else subject.plain
    if function is None:
        return []
    right = all(leaf.ok for leaf in found.leaves)
    if right and subject.declared is not None:
        found.notes.append("rules inside are not checked one by one: the whole gives the declared backward pass")
        return []
    leaves = leaves_of(where.draw(options.seed, "plain"), subject.fixed)

    def call(*values):
        return runs_flat(function, leaves, values)

    try:
        sites = rules_inside(call, leaves.values)
    except Exception as error:
        if right:
            raise CannotCheckError(f"every rule inside must be found: {short(error)}") from error
        found.notes.append(f"the rules inside could not be followed: {short(error)}")
        return []
    groups: dict[tuple, list[RuleUse]] = {}
    for site in sites:
        if IMPLICIT in site.where:
            found.notes.append(f"{site.name} is differentiated implicitly: held in what surrounds it")
        else:
            groups.setdefault(site.key, []).append(site)
    if len(groups) > MOST_INSIDE:
        found.notes.append(f"of {len(groups)} custom rules inside, the first {MOST_INSIDE} are checked")
        groups = dict(list(groups.items())[:MOST_INSIDE])
    reports = []
    for group in groups.values():
        chosen = [group[i] for i in sorted({0, len(group) // 2, len(group) - 1})]
        each = [check_site(site, options) for site in chosen]
        bad = next((report for report in each if report is not None and not report.ok), None)
        bad = bad and (check_as_defined(chosen[each.index(bad)], function, bad, options) or bad)
        report = bad or next((report for report in each if report is not None), None)
        if report is None:
            continue
        if not report.ok and right and (group[0].inside_rule or right_without_rules(subject, where, options)):
            found.notes.append(
                f"WARNING: the rule {group[0].name} is wrong, but nothing differentiates it in the forward pass of the "
                f"rule around it; check it by itself ({group[0].where})"
            )
            continue
        uses = f"{len(group)} uses" if len(group) > 1 else "1 use"
        reports.append(replace(report, notes=(*report.notes, f"defined at {group[0].where}, {uses} found")))
    return reports


def runs_flat(function: Callable, leaves, values):
    """The arrays that a function gives."""
    return [leaf for leaf in jax.tree.leaves(function(*leaves.tree(values))) if hasattr(leaf, "dtype")]


def right_without_rules(subject: Subject, where: Points, options: CheckOptions) -> bool:
    """Whether a rule is the derivative of its primal, with the rules inside the primal left out."""
    if subject.custom is None:
        return False
    subject = replace(subject, primal=inside_out(subject.primal))
    few = replace(options, seeds=1, also=False, shapes=False, inside=False, diagnose=False, adequacy=False)
    return check_subject(subject, where, few).ok


def check_site(site: RuleUse, options: CheckOptions) -> Report | None:
    """One use of a custom rule; None where none of its inputs has a gradient."""
    names = arguments_at(site.where)
    subject = Subject(
        site.name,
        site.inputs,
        differentiated(site.function, site.fixed),
        site.primal,
        plain=site.function,
        fixed=site.fixed,
        names=names if len(names) == len(site.inputs) else (),  # an argument may be a tree of several inputs
    )
    try:
        subject = replace(subject, mode=site_mode(site))
        # The rule stands in a traced program, with its dtypes: it runs in these alone.
        inner = replace(
            options, precise=False, shapes=False, inside=False, adequacy=False, seeds=1, also=False, again=""
        )
        report = check_subject(subject, points_of(site.inputs), inner)
        if report.wrong:  # in float64 it shows whether precision alone is lost
            report = check_subject(subject, points_of(site.inputs), replace(inner, precise=True))
    except CannotCheckError:
        return None
    # A branch that is computed and not chosen may be NaN; one that is chosen makes the whole function NaN.
    if any(problem.startswith(NOT_FINITE) for problem in report.problems):
        return None
    return replace(report, layer="" if report.ok else " › ".join(part for part in (site.path, site.name) if part))


def check_as_defined(site: RuleUse, function: Callable, bad: Report, options: CheckOptions) -> Report | None:
    """A wrong rule inside, checked as its author wrote it: its lines can be mended. None where it is not found so."""
    spaces = [part.__globals__.values() for part in functions_of(function)]
    for rule in {id(each): each for space in spaces for each in space if is_custom(each)}.values():
        code = getattr(rule.__wrapped__, "__code__", None)
        if code is None or f"{code.co_filename}:{code.co_firstlineno}" != site.where:
            continue
        alone = replace(options, seeds=1, also=False, shapes=False, inside=False, adequacy=False, again="")
        try:
            report = check_subject(subject_of(rule, site.inputs), points_of(site.inputs), alone)
        except Exception:  # it may take trees or options, which are not known from the arrays that reach it
            return None
        return None if report.ok else replace(report, layer=bad.layer)
    return None


def site_mode(site: RuleUse) -> str:
    """How autodiff follows a rule's primal: in float64 too, where the rules inside it are opened."""
    mode = mode_of(site.primal, site.inputs, site.fixed)
    if mode != "reverse":
        return mode
    return in_float64(lambda *inputs: mode_of(site.primal, inputs, site.fixed), *site.inputs)


def explained(report: Report, subject: Subject, where: Points, options: CheckOptions, found: Findings) -> Report:
    """The report with layer, repair or cause, and adequacy."""
    changes: dict[str, Any] = {}
    wrong_inside = [inner for inner in report.inside if not inner.ok]
    if wrong_inside:
        changes["layer"] = ", ".join(inner.layer or inner.name for inner in wrong_inside)
    if len(wrong_inside) == 1:
        changes["planted"] = wrong_inside[0].planted
    if any(inner.exact for inner in wrong_inside):
        return replace(report, **changes)
    if found.witness is not None and options.diagnose and can_be_taken_apart(subject):
        with found.phase("repair"):
            changes["repair"], failure = repair_of(subject, options, found)
            changes["notes"] = (*report.notes, *([failure] if failure else []))
        mended = changes["repair"] is not None and changes["repair"].patch
        if not mended and not wrong_inside:
            with found.phase("cause"):
                try:
                    changes["planted"] = planted_in(subject, options, found)
                except Exception as error:  # whatever fails here costs the cause, never the verdict
                    changes["notes"] = (*changes["notes"], f"the cause could not be looked for: {short(error)}")
    if options.adequacy and report.ok and can_be_taken_apart(subject):
        args = where.draw(options.seed, "plain")
        runs = Runs.at(subject, args)
        _values, d_out = point(runs, where, options.seed)
        with found.phase("adequacy"):
            blind = adequacy(subject, args, runs.outs.zeros_elsewhere(d_out), budget=options.budget)
        changes["blind"] = grouped(blind)
    return replace(report, **changes)


def can_be_taken_apart(subject: Subject) -> bool:
    """Whether the reference has a backward program."""
    return subject.mode == "reverse" and not subject.tangents


def fresh_points(subject: Subject, there: Points) -> Callable[[int], tuple[tuple, Any]]:
    """(seed) -> fresh arguments and cotangent."""

    def at(seed: int) -> tuple[tuple, Any]:
        args = there.draw(seed, "plain")
        runs = Runs.at(replace(subject, args=args), args)
        values, d_out = point(runs, there, seed)
        values = values if there.fresh else points.alike(values, seed)
        return runs.leaves.tree(values), runs.outs.zeros_elsewhere(d_out)

    return at


def repair_of(subject: Subject, options: CheckOptions, found: Findings) -> tuple[Repair | None, str]:
    """The change of the author's source that makes every gradient right; in words why it could not be looked for."""
    assert found.witness is not None
    args, cotangent, where = found.witness
    seconds = REPAIR * options.budget
    small = first_drawn(subject, where.smaller(), options.seed)
    if small is not None:  # there more is tried in the same time; it is proved at the user's own shape
        draw, first = small
        found_there, _ = repaired(subject, first, draw, lambda seed: (args, cotangent), seconds=seconds)
        if found_there is not None and found_there.patch:
            return found_there, ""
    elsewhere = [there for _, there in where.elsewhere()] or [where]
    varied = [each for there in elsewhere for each in (with_other_options(there, subject.fixed), there)]
    other = first_drawn(subject, varied, FRESH[0])
    redraw = None if other is None else other[0]
    return repaired(subject, (args, cotangent), fresh_points(subject, where), redraw, seconds=seconds)


def with_other_options(there: Points, fixed: Sequence[int]) -> Points:
    """Points with smaller numbers among the arguments without a gradient: a patch must hold for every rate."""

    def other(leaf: Any) -> Any:
        return 0.8 * leaf if type(leaf) is float else leaf

    def draw(seed: int, how: str = "plain") -> tuple:
        return tuple(jax.tree.map(other, arg) if k in fixed else arg for k, arg in enumerate(there.draw(seed, how)))

    return replace(there, draw=draw)


def first_drawn(subject: Subject, places: Iterable[Points], seed: int) -> tuple[Callable, tuple] | None:
    """`fresh_points` at the first of some shapes that primal and rule take, and a point there; None where none is."""
    for there in places:
        draw = fresh_points(subject, there)
        try:
            point = draw(seed)
            if subject.transforms:
                in_float64(lambda *point: jax.eval_shape(lambda: only_arrays(subject.run(*point))), *point)
            return draw, point
        except Exception:  # the user's function may refuse a shape in any way
            continue
    return None


def planted_in(subject: Subject, options: CheckOptions, found: Findings) -> Cause | None:
    """The mistake in autodiff's program that gives the rule's gradients, at the first wrong point and fresh ones."""
    assert found.witness is not None
    args, cotangent, where = found.witness
    fresh = fresh_points(subject, where)
    return planted(subject, [(args, cotangent), *map(fresh, FRESH)], seconds=(1 - REPAIR) * options.budget)
