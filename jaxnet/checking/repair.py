"""The smallest change of an author's own source that makes a wrong rule right.

Every edit of the grammar is tried at every expression that every wrong gradient depends on. A repair is one whose
changed source was itself run, and gave every gradient rightly in float64: at the point where the rule failed, on fresh
draws, and at another shape. The shortest is taken.
"""

from __future__ import annotations

import ast
import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from jaxnet.checking import author
from jaxnet.checking.alignment import Aligned, Effect, MarkedPlace, aligned
from jaxnet.checking.author import Change
from jaxnet.checking.differentiation import short
from jaxnet.checking.edits import EXACT, Edit, Scope, bracketed, distance, tidy
from jaxnet.checking.execution import Execution, Inputs, close, runs, seeded
from jaxnet.checking.grafts import writer_at
from jaxnet.checking.linear_edits import LinearEdits
from jaxnet.checking.marks import Mark, marked, seeing
from jaxnet.checking.patches import Found, Repair, as_repair, cause, kind_of, line_alone, shown
from jaxnet.checking.reference import in_float64
from jaxnet.checking.subject import Subject
from jaxnet.checking.text_changes import changes_of
from jaxnet.checking.written import CannotWriteError, OtherShape, plain

FRESH = (501, 502)
GRAFTS = {"replaced": lambda v, u: u, "added": lambda v, u: v + u, "taken": lambda v, u: v - u}
MOST_EQUAL, MOST_CONFIRMED, MOST_AT_A_PLACE = 3, 24, 24
AT_A_PLACE, IN_TURN = 0.25, 0.7  # of the time that is left: for one place, for edits that are run one by one
LONG = 10**6
SHORT, SEVERAL = 1.5, 3  # the cost of one token for another; no edit with two terms costs less than the second


class RepairSearch:
    """The search for the repair of one rule."""

    def __init__(self, subject: Subject, points: Sequence[tuple], elsewhere: Sequence[tuple], seconds: float):
        self.subject = subject
        self.end = self.until = time.process_time() + seconds
        self.located: MarkedPlace | None = None  # the first place at which autodiff's value makes a goal right
        self.functions = author.editable(subject)
        self.points, self.elsewhere = points, elsewhere
        self.effects: dict[tuple[int, ...], list[Effect]] = {}
        self.scopes: dict[int, Scope] = {}

    @property
    def late(self) -> bool:
        """Whether the time is up."""
        return time.process_time() > self.until

    @cached_property
    def aligned(self) -> Aligned:
        """The rule beside its reference."""
        return aligned(self.subject, self.points, self.functions)

    @cached_property
    def other(self) -> list[tuple[Inputs, list[np.ndarray]]]:
        """Another shape, and the right outputs there, where they are finite."""
        inputs = [Inputs(self.subject, *point) for point in self.elsewhere]
        _, reference = runs(self.subject)
        cases = [(each, Execution.of(each.trace(reference), [each.flat]).outputs[0]) for each in inputs]
        return [case for case in cases if all(np.all(np.isfinite(out)) for out in case[1])]

    @cached_property
    def other_shape(self) -> OtherShape | None:
        """Both programs at another shape; None where there is none."""
        if not self.elsewhere:
            return None
        rule, reference = runs(self.subject)
        there = Inputs(self.subject, *self.elsewhere[0])
        with seeing(self.functions, marked(self.functions)):
            graph = there.trace(rule)
        return OtherShape.of(graph, there.trace(reference))

    # ------------------------------------------------------------------------------------------------- candidates

    def places(self, goal: Sequence[int]) -> Iterator[Effect]:
        """The expressions on which every output of a goal depends; those of loops last, the likely ones first."""
        key = tuple(goal)
        if key not in self.effects:
            found = [Effect(self.aligned, each, goal) for each in self.aligned.places.values() if self.may_change(each)]
            found = [effect for effect in found if set(goal) <= set(effect.outputs)]
            inside = [effect for effect in found if self.aligned.steps(effect.place.number) > 0]
            outside = [effect for effect in found if effect not in inside]
            self.effects[key] = [*outside, *self.likely_first(inside)]
        yield from itertools.takewhile(lambda _: not self.late, self.effects[key])

    def may_change(self, place: MarkedPlace) -> bool:
        """Whether a place's value can be another."""
        aval = place.operations[0].eqn.outvars[0].aval
        fixed = place.path or (place.mark.defines and not self.can_define(place.mark))
        return not fixed and bool(np.issubdtype(aval.dtype, np.floating))

    def likely_first(self, effects: Sequence[Effect]) -> list[Effect]:
        """The places of a loop: those whose value autodiff has not, and those before the first of them, in turns.

        The loop is right in the steps before: only the step is looked at in which the first such value is.
        """
        numbers = [effect.place.number for effect in effects]
        values = [self.aligned.as_run(number, np.asarray(self.aligned.values[0][number])) for number in numbers]
        for t in range(max(map(len, values), default=0)):
            known = [t >= len(v) or self.aligned.reference.has_step(v[t]) for v in values]
            if not all(known):
                k = known.index(False) + 1
                unknown = [effect for effect, is_known in zip(effects, known, strict=True) if not is_known]
                before = [*reversed(effects[:k]), *reversed(effects[k:])]
                turns = itertools.chain.from_iterable(itertools.zip_longest(unknown, before))
                return list(dict.fromkeys(effect for effect in turns if effect is not None))
        return list(effects)

    def scope(self, place: MarkedPlace) -> Scope:
        """The values that may be used at a place."""
        return self.scopes.setdefault(place.number, Scope(self.aligned, place))

    @staticmethod
    def can_define(mark: Mark) -> bool:
        """Whether a statement that gives a variable another value can follow the one that defines it."""
        node = mark.node
        return isinstance(node, ast.stmt) and not (
            isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        )

    def found(self, goal: Sequence[int], most: float) -> list[Found]:
        """The edits that make a goal right at every point and cost at most so much, the shortest first."""
        hits: list[Found] = []
        others: list[Effect] = []
        linear: list[LinearEdits] = []
        for effect in self.places(goal):
            right = effect.linear
            if isinstance(right, tuple) and not effect.feeds_itself:
                linear.append(LinearEdits(self.scope(effect.place), effect, right))
                hits += self.exact(linear[-1].singles(), effect)
            elif right is not False:
                others.append(effect)
        for each in linear:
            if self.late or min((hit.cost for hit in hits), default=most) <= SEVERAL:
                break
            hits += self.exact(each.several(self.share(AT_A_PLACE)), each.effect)
        late = self.share(IN_TURN)
        best = min((hit.cost for hit in hits), default=most)
        edits = [(edit, each) for each in others if best > SHORT for edit in self.scope(each.place).singles(best)]
        for edit, effect in sorted(edits, key=lambda each: (each[0].cost, each[0].rank)):
            best = min((hit.cost for hit in hits), default=most)
            if late() or edit.cost > best or best <= SHORT:
                break
            if self.holds(edit, effect, first=0):
                hits.append(self.hit(edit, effect))
        if (best := min((hit.cost for hit in hits), default=most)) > SHORT:
            hits += self.found_in_text(goal, SHORT if hits else best)
        return sorted(hits, key=lambda hit: hit[:4])

    def share(self, part: float) -> Callable[[], bool]:
        """Whether a part of the time that is left now has passed."""
        now = time.process_time()
        until = now + part * (self.until - now)
        return lambda: time.process_time() > until

    def exact(self, edits: Iterable[Edit], effect: Effect, first: int = 1) -> list[Found]:
        """Those of some edits that are right at the points from `first` on; at most so many."""
        held = (edit for edit in edits if self.holds(edit, effect, first))
        return [self.hit(edit, effect) for edit in itertools.islice(held, MOST_AT_A_PLACE)]

    def holds(self, edit: Edit, effect: Effect, first: int = 1) -> bool:
        """Whether an edit makes the goal right at the points from `first` on."""
        numbers = {
            each.outputs[0]: [effect.seen(atom, each) for atom in edit.term.atoms] for each in effect.place.operations
        }

        def change(number: int, point: int) -> Callable:
            def value(values: dict) -> Any:
                given = [
                    atom.fixed[point] if at is None else values[at]
                    for atom, at in zip(edit.term.atoms, numbers[number], strict=True)
                ]
                return edit.term.value(values[number], *given)

            return value

        try:
            return all(
                effect.rights(point, {number: change(number, point) for number in numbers})
                for point in range(first, len(self.points))
            )
        except (ValueError, IndexError, KeyError, TypeError, np.linalg.LinAlgError):  # shapes that do not fit
            return False

    def hit(self, edit: Edit, effect: Effect) -> Found:
        """An edit as a change of the text."""
        mark, text = effect.place.mark, tidy(edit.text)
        start, end = mark.source.span(mark.node)
        before, cost = mark.text, 1 if edit.kind == "sign" else distance(mark.text, text)
        said = cause(replace(edit, text=text, what=tidy(edit.what)), before)
        operator = re.search(rb"[\w)\]] ?([+-]) ?$", mark.source.text[:start]) if edit.kind == "sign" else None
        if mark.defines:
            indent, statement = " " * mark.node.col_offset, f"{before} = {text}"
            start = end = mark.until or start
            text = f"\n{indent}{statement}" if mark.until else f"{statement}\n{indent}"
            cost += 2
        elif operator is not None:
            start, end = operator.span(1)
            before = operator[1].decode()
            text = "-" if before == "+" else "+"
        change = Change(mark.source, start, end, text)
        return Found(cost, edit.rank, len(effect.changed), len(text), change, before, said)

    @cached_property
    def in_text(self) -> list[Found]:
        """Changes of numbers, options and arguments, in the functions that ran, the shortest first."""
        ran = [mark for mark, _ in self.aligned.places] + list(self.aligned.seen)
        marks = [self.aligned.marks[number] for number in ran]
        functions = dict.fromkeys((mark.source.file, part) for mark in marks for part in mark.path)
        sources = {mark.source.file: mark.source for mark in marks}
        options: dict[Found, None] = {}
        for file, source in sources.items():
            for function in author.functions_in(file):
                if (file, author.number_of(function)) in functions:
                    options.update(dict.fromkeys(changes_of(source, function)))
        return sorted(options, key=lambda each: each[:4])

    def found_in_text(self, goal: Sequence[int], most: float) -> list[Found]:
        """The changes of the text that cost at most so much and are right: each is run as a program."""
        hits: list[Found] = []
        idle = [self.span(place.mark) for place in self.aligned.places.values() if not self.reaches(place, goal)]
        for option in self.in_text:
            if self.late or option.cost > most or (hits and option.cost > hits[0].cost):
                break
            source, start, end, _ = option.change
            inside = any(file == source.file and first <= start and end <= last for file, first, last in idle)
            if not inside and self.confirmed([option.change], goal, first_only=True):
                hits.append(option)
        return hits

    def reaches(self, place: MarkedPlace, goal: Sequence[int]) -> bool:
        """Whether every output of a goal depends on an expression; a statement may give other variables too."""
        changed = self.aligned.dependents([each.outputs[0] for each in place.operations])
        return place.mark.defines or all(self.aligned.graph.outputs[k] in changed for k in goal)

    @staticmethod
    def span(mark: Mark) -> tuple[str, int, int]:
        """An expression's file, and the bytes that it takes there."""
        return mark.source.file, *mark.source.span(mark.node)

    def grafts(self, goal: Sequence[int]) -> list[Found]:
        """Autodiff's values in the place of an expression, added to it or taken from it, the shortest first."""
        hits: list[Found] = []
        self.located, start = None, time.process_time()
        for effect in self.places(goal):
            steps = self.aligned.steps(effect.place.number)
            if len(effect.place.operations) > 1 or steps < 0:
                continue
            for k, (number, kind) in enumerate(self.grafted(effect)):
                if steps and not k:
                    edits = LinearEdits(self.scope(effect.place), effect, self.graft(effect, number, GRAFTS[kind], 0))
                    every = itertools.chain(edits.singles(), edits.several(self.share(AT_A_PLACE)))
                    hits += self.exact(every, effect, first=0)
                    if hits:
                        self.until = min(self.until, 2 * time.process_time() - start)  # as long again as this took
                hits += self.written(effect, number, kind)
                if self.located is None or effect.place.number < self.located.number:
                    self.located = effect.place
        return sorted(hits, key=lambda hit: hit[:4])

    def grafted(self, effect: Effect) -> Iterator[tuple[int, str]]:
        """The values of autodiff that make the goal right at a place, and how they stand there."""
        place, reference = effect.place, self.aligned.reference
        here = self.aligned.values[0][place.number]
        inside = bool(self.aligned.steps(place.number))
        alike = []
        for number in reference.floats:
            u = np.asarray(reference.values[0][number])
            if plain(u.shape) == plain(here.shape) and inside == bool(reference.steps(number)):
                alike.append((number, u.reshape(here.shape)))
        linear = (
            effect.linear if len(alike) * len(GRAFTS) > here.size else True
        )  # else it takes more runs than it saves
        for number, u in alike if linear is not False else ():
            for kind, function in GRAFTS.items():
                if isinstance(linear, tuple):
                    A, b = linear
                    new = function(here, u)
                    step = self.aligned.as_run(place.number, new - here)
                    if not np.max(np.abs(A @ step.ravel() - b), initial=0.0) <= EXACT * max(1.0, np.linalg.norm(b)):
                        continue
                if self.late:
                    return
                if self.right_with(effect, number, function):
                    yield number, kind

    def right_with(self, effect: Effect, number: int, function: Callable) -> bool:
        """Whether the goal is right with a value of autodiff at a place."""
        return all(
            effect.rights(point, self.graft(effect, number, function, point)) for point in range(len(self.points))
        )

    def graft(self, effect: Effect, number: int, function: Callable, point: int) -> dict[int, Callable]:
        """The change that puts a value of autodiff to a place."""
        array = np.asarray(self.aligned.reference.values[point][number])
        return effect.given(point, function, array.reshape(self.aligned.values[0][effect.place.number].shape))

    def written(self, effect: Effect, number: int, kind: str) -> Iterator[Found]:
        """A value of autodiff at a place, in the author's names."""
        place, values = effect.place, self.aligned.values
        if self.aligned.steps(place.number):  # the loop's carry is then right too
            values = [
                self.aligned.changed(point, self.graft(effect, number, GRAFTS[kind], point))
                for point in range(len(self.points))
            ]
        scope = self.scope(place)
        try:
            writer = writer_at(scope, values, self.other_shape)
            written = writer.write(number)
            text = writer.broadcast(written, scope.shape) if kind == "replaced" else written.text
        except CannotWriteError:
            return
        v = bracketed(scope.text)
        new = {"replaced": text, "added": f"{v} + {text}", "taken": f"{v} - {bracketed(text)}"}[kind]
        why, what = kind_of(scope.text, new)
        yield self.hit(Edit(distance(scope.text, new), new, why, what), effect)

    # --------------------------------------------------------------------------------------------------- the proof

    def confirmed(self, some: Iterable[Change], goal: Sequence[int], *, first_only: bool = False) -> bool:
        """Whether the changed source, run, gives the goal rightly, and whatever was right."""
        here, rule = self.aligned, runs(self.subject)[0]
        asked = [k for k in range(len(here.graph.outputs)) if k in goal or k not in here.wrong]
        cases = [(each, right) for each, right in zip(here.points, here.right, strict=True)]
        cases = cases[:1] if first_only else [*cases, *self.other]
        try:
            with author.changed(self.functions, [author.same_variables(shown(change)) for change in some]):
                graphs: dict[tuple, Any] = {}
                for inputs, right in cases:
                    shapes = tuple(x.shape for x in inputs.flat)
                    if shapes not in graphs:
                        graphs[shapes] = inputs.trace(rule)
                    outs = Execution.of(graphs[shapes], [inputs.flat]).outputs[0]
                    if not all(close(outs[k], right[k], here.tolerance) for k in asked):
                        return False
        except Exception:  # a changed source may raise anything: it is no repair
            return False
        return True

    def shortest(self, goal: Sequence[int], share: float) -> list[Found]:
        """The shortest edits that are proved, all as short as the first, found in a share of the time that is left."""
        now = time.process_time()
        self.until = now + share * (self.end - now)
        right = self.proved(self.grafts(goal), goal)
        return self.proved(self.found(goal, right[0].cost if right else LONG), goal) or right

    def proved(self, hits: Iterable[Found], goal: Sequence[int]) -> list[Found]:
        """The shortest of some edits that are proved, all as short as the first."""
        right: list[Found] = []
        seen: set[tuple] = set()
        for hit in hits:
            if (right and (hit.cost, hit.rank) > (right[0].cost, right[0].rank)) or len(right) > MOST_EQUAL:
                break
            key = shown(hit.change)[1:]
            if key not in seen and len(seen) < MOST_CONFIRMED:
                seen.add(key)
                if self.confirmed([hit.change], goal):
                    right.append(hit)
        return right

    def repair(self) -> Repair | None:
        """The repair: one edit, or one for each wrong gradient."""
        wrong = self.aligned.wrong
        if not self.functions or not wrong:
            return None
        whole = self.shortest(wrong, 0.5 if len(wrong) > 1 else 1.0)
        if whole:
            return as_repair([whole[0]], whole[1:])
        places = [self.located] if self.located is not None or len(wrong) == 1 else []
        apart: list[Found] = []
        for i, k in enumerate(wrong if len(wrong) > 1 else ()):
            alone = self.shortest([k], 1 / (len(wrong) - i))
            places += [] if self.located is None else [self.located]
            if not alone:
                return line_alone(places)
            apart += [] if any(alone[0].change == each.change for each in apart) else [alone[0]]
        if not apart:
            return line_alone(places)
        spans = sorted((each.change.source.file, each.change.start, each.change.end) for each in apart)
        if any(a[0] == b[0] and a[2] > b[1] for a, b in itertools.pairwise(spans)):
            return line_alone(places)
        right = self.confirmed([each.change for each in apart], wrong)
        return as_repair(apart, []) if right else line_alone(places)


# ------------------------------------------------------------------------------------------------------------ the words


def repair(
    subject: Subject,
    first: tuple[tuple, Any],
    draw: Callable[[int], tuple[tuple, Any]],
    redraw: Callable[[int], tuple[tuple, Any]] | None,
    *,
    seconds: float = 3.0,
) -> Repair | None:
    """The shortest change of a rule's source that makes it right.

    Args:
        subject: the rule; its functions have a source in a file.
        first: arguments and cotangent at which the rule is wrong.
        draw: (seed) -> fresh arguments and cotangent; `redraw` the same of another shape, None where there is none.
        seconds: the time to spend.

    Returns:
        The repair; None where no edit is right, or where there is no source.
    """
    fresh = [draw(seed) for seed in FRESH]
    elsewhere = [] if redraw is None else [redraw(FRESH[0])]

    def search(points: list, elsewhere: list) -> Repair | None:
        with np.errstate(all="ignore"):
            return RepairSearch(subject, seeded(subject, points), seeded(subject, elsewhere), seconds).repair()

    return in_float64(search, [first, *fresh], elsewhere)


def repaired(*args: Any, **options: Any) -> tuple[Repair | None, str]:
    """`repair`, and one line on why there is none where the search itself failed: a verdict never depends on it."""
    try:
        return repair(*args, **options), ""
    except Exception as error:  # the primal and the draws are the user's, and may raise anything
        return None, f"no repair was looked for: {short(error)}"
