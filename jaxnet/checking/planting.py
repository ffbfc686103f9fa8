"""What mistake in autodiff's own backward pass gives the rule's gradients: for rules that no change of a source mends.

One value of autodiff's program is changed at a time: scaled, transposed, replaced by another value, joined with one. A
mistake is a cause only if the gradients are then the rule's own, at the point where it failed and on fresh draws.
"""

from __future__ import annotations

import linecache
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnet.checking.alignment import Aligned, Effect, Execution, Inputs, MarkedPlace, close, primal_expressions, runs
from jaxnet.checking.grafts import CannotWriteError, Writer
from jaxnet.checking.reference import in_float64
from jaxnet.checking.rules import flat_gradients
from jaxnet.checking.subject import Subject, leaves_of
from jaxnet.program import Operation

EXACT = 1e-6
MOST_OTHERS = 3
LONGEST = 90  # letters of a value in a cause
MISSING = {"mul": "factor", "add": "term", "add_any": "term"}
JOINED: dict[str, tuple[int, Callable, str]] = {
    "replaced": (4, lambda v, w: w, "{w} stands in the place of {v}"),
    "added": (5, lambda v, w: v + w, "{w} is added to {v}"),
    "taken": (5, lambda v, w: v - w, "{w} is taken from {v}"),
    "times": (5, lambda v, w: v * w, "{v} has the factor {w} too much"),
    "over": (5, lambda v, w: v / w, "{v} is divided by {w}"),
}


@dataclass(frozen=True)
class Cause:
    """A mistake that gives the rule's gradients.

    `words`: what it is; `where`: the primal's line that it belongs to; `exact`: whether it gives every wrong gradient
    on fresh draws too, else `leaves` are those that it gives; `others`: mistakes as simple that give the same.
    """

    words: str
    where: str = ""
    exact: bool = True
    others: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ()


class Plant(NamedTuple):
    """A mistake: its cost, whether it stands in the forward pass, its length, in words, the primal's line."""

    cost: int
    rank: int
    length: int
    words: str
    where: str


class Planting:
    """The search for the mistake in autodiff's program of one rule."""

    def __init__(self, subject: Subject, points: Sequence[tuple], seconds: float):
        self.subject, self.until = subject, time.process_time() + seconds
        inputs = [Inputs(subject, *point) for point in points]
        rule, reference = runs(subject)
        right = Execution.of(inputs[0].trace(reference), [each.flat for each in inputs])
        given = [rule_outputs(subject, rule, each) for each in inputs]
        rough = any(v.dtype not in (np.float64, np.complex128) for vs in given for v in vs)
        self.aligned = Aligned(
            right.graph, right.flat, right.values, right.outputs, subject, inputs, given, 1e-3 if rough else 1e-6,
            right, primal_expressions(subject, inputs),
        )  # fmt: skip
        self.rule = rule

    @cached_property
    def names(self) -> list[tuple[str, list[np.ndarray]]]:
        """Arguments, cotangent and the primal's expressions, with their values, the shortest first."""
        here = self.aligned
        leaves = leaves_of(here.points[0].args, self.subject.fixed)
        labels = [self.subject.label(path) for path in leaves.paths]
        found = [(label, [each.flat[k] for each in here.points]) for k, label in enumerate(labels)]
        seeds = len(here.points[0].seeds)
        start = len(here.points[0].flat) - seeds
        found += [
            ("d_out" if seeds == 1 else f"d_out[{k}]", [each.flat[start + k] for each in here.points])
            for k in range(seeds)
        ]
        expressions = sorted(here.primal, key=lambda each: len(each.mark.text))
        return [*found, *((each.mark.text, list(map(np.asarray, each.values))) for each in expressions)]

    @cached_property
    def sizes(self) -> dict[float, str]:
        """Sizes by their number, in words."""
        found: dict[float, str] = {}
        for name, values in self.names:
            for axis, n in enumerate(np.shape(values[0])):
                if n > 2 and name.isidentifier():
                    found.setdefault(float(n), f"{name}.shape[{axis}]")
        return found

    @cached_property
    def operations(self) -> list[Operation]:
        """The operations whose value may be wrong: of floating point, in the order of the program."""
        return [
            o
            for o in self.aligned.everything
            if o.kind == "operation" and len(o.outputs) == 1 and self.kind(o.outputs[0]) in ("f", "c")
        ]

    @cached_property
    def flowing(self) -> set[int]:
        """The values that depend on the cotangent."""
        seeds = len(self.aligned.points[0].seeds)
        return self.aligned.dependents(self.aligned.graph.inputs[-seeds:] if seeds else ())

    def kind(self, number: int) -> str:
        """What a value's entries are."""
        value = self.aligned.values[0].get(number)
        return value.dtype.kind if isinstance(value, np.ndarray | np.generic) else ""

    def name(self, number: int) -> str:
        """A value in words: an output, a name, an expression of the primal, or the line that it comes from."""
        if number in self.aligned.graph.outputs:
            return self.name_of_output(self.aligned.graph.outputs.index(number))
        try:
            return self.writer.write(number).text
        except CannotWriteError:
            return f"what flows back through {self.line(number)[1]}"

    @cached_property
    def writer(self) -> Writer:
        """Writes a value in the names."""
        names = [(text, np.shape(values[0]), values) for text, values in self.names]
        return Writer(self.aligned, names, [(text, n) for n, text in self.sizes.items()], longest=LONGEST)

    def name_of_output(self, k: int) -> str:
        """A gradient by its argument, or the output."""
        first = len(self.aligned.graph.outputs) - len(self.labels)
        return f"∂{self.labels[k - first]}" if k >= first else "the output"

    @cached_property
    def labels(self) -> list[str]:
        """The arguments that have a gradient."""
        return [self.subject.label(path) for path in leaves_of(self.aligned.points[0].args, self.subject.fixed).paths]

    def line(self, number: int) -> tuple[str, str]:
        """The line of the primal that a value comes from, and its text."""
        for operation in self.aligned.everything:
            if number in operation.outputs and operation.position.file:
                position = operation.position
                text = linecache.getline(position.file, position.line)
                same = position.line == position.end_line
                part = text.encode()[position.column : position.end_column].decode() if same else text.strip()
                return f"{os.path.basename(position.file)}:{position.line}", part
        return "", "the primal"

    # ------------------------------------------------------------------------------------------------------ the search

    def plants(self, goal: Sequence[int]) -> Iterator[Plant]:
        """The mistakes that give the rule's gradients."""
        yield from self.beside(goal)
        for operation in reversed(self.operations):
            if time.process_time() > self.until:
                return
            effect = Effect(self.aligned, MarkedPlace(mark=None, operations=[operation]), goal)  # pyright: ignore
            if not set(goal) <= set(effect.outputs):
                continue
            for cost, change, words in self.changes(operation, effect):
                if all(self.gives(effect, point, operation, change) for point in range(len(self.aligned.points))):
                    number = operation.outputs[0]
                    said = words.format(v=self.name(number))
                    if number in self.aligned.graph.outputs and cost == 1:
                        said = said.replace("the term ", "").replace("is missing", "is zero")
                    yield Plant(cost, int(number not in self.flowing), len(said), said, self.line(number)[0])

    def gives(self, effect: Effect, point: int, operation: Operation, change: Callable) -> bool:
        """Whether a change of an operation's value gives the rule's gradients."""
        number = operation.outputs[0]

        def changed(values: dict) -> Any:
            return change(values[number], values)

        try:
            return effect.rights(point, {number: changed})
        except (ValueError, IndexError, TypeError):  # shapes that do not fit
            return False

    def changes(self, operation: Operation, effect: Effect) -> Iterator[tuple[int, Callable, str]]:
        """Changes of a value that may give the rule's gradients: cost, function of (value, all values), words."""
        number = operation.outputs[0]
        if self.aligned.loops(number):
            yield from self.inside_a_loop(operation)
            return
        linear = effect.linear
        if linear is False:
            return
        here = np.asarray(self.aligned.values[0][number])
        A, b = linear if isinstance(linear, tuple) else (None, None)
        if A is not None and b is not None and here.dtype.kind == "f":
            Av = A @ here.ravel()
            size = float(Av @ Av)
            if size and np.max(np.abs(b - (b @ Av) / size * Av), initial=0.0) <= EXACT * max(1.0, np.linalg.norm(b)):
                yield self.scaled(1 + float(b @ Av) / size)
        else:
            for c in (0.0, -1.0, 2.0, 0.5, *self.sizes, *(1 / n for n in self.sizes)):
                yield self.scaled(c)
        for axes in [(-1, -2)] if here.ndim >= 2 and here.shape[-1] == here.shape[-2] else []:
            yield 2, lambda v, values, axes=axes: np.swapaxes(v, *axes), "{v} is transposed"
        for axis in range(here.ndim):
            yield 3, lambda v, values, axis=axis: np.flip(v, axis), "{v} is in the opposite order"
            for by in (1, -1):
                yield 4, lambda v, values, axis=axis, by=by: np.roll(v, by, axis), "{v} is shifted by one"
            yield 4, lambda v, values, axis=axis: v.mean(axis, keepdims=True), "{v} is its mean"
        parts = set(operation.inputs)
        for other in self.others(number, here, A, b):
            for cost, function, words in self.joined(operation, other, here, A, b, parts):
                yield cost, lambda v, values, f=function, w=other: f(v, np.asarray(values[w]).reshape(v.shape)), words

    def inside_a_loop(self, operation: Operation) -> Iterator[tuple[int, Callable, str]]:
        """Changes of a value at every step of a loop: a sign, a number, a factor or a term that is missing."""
        number, loops = operation.outputs[0], self.aligned.loops
        for c in (0.0, -1.0, 2.0, 0.5):
            yield self.scaled(c)
        for part in operation.inputs if operation.name in MISSING else ():
            if loops(part) == loops(number) and part in self.aligned.values[0]:
                missing = [n for n in operation.inputs if n != part]
                if missing and np.shape(self.aligned.values[0][part]) == np.shape(self.aligned.values[0][number]):
                    what = f"the {MISSING[operation.name]} {self.name(missing[0])} is missing in {{v}}"
                    yield 2, lambda v, values, part=part: values[part], what

    def scaled(self, c: float) -> tuple[int, Callable, str]:
        """A value times a number, in words."""
        missing = {n: f"1/{text}" for n, text in self.sizes.items()} | {1 / n: text for n, text in self.sizes.items()}
        text = next((text for n, text in missing.items() if abs(c / n - 1) < EXACT), None)
        if text is not None:
            return 3, lambda v, values: c * v, f"the factor {text} is missing in {{v}}"
        cost, words = 3 if c in (2.0, 0.5) else 6, f"{{v}} is {c:.6g} times what it should be"
        if abs(c) < EXACT:
            c, cost, words = 0.0, 1, "the term {v} is missing"
        elif abs(c + 1) < EXACT:
            c, cost, words = -1.0, 1, "{v} has the wrong sign"
        return cost, lambda v, values: c * v, words

    def others(self, number: int, here: np.ndarray, A: Any, b: Any) -> list[int]:
        """Values of the same shape, of whatever the program has before."""
        return [
            each
            for each, value in self.candidates
            if each != number and value.shape == here.shape and each not in self.aligned.dependents([number])
        ]

    @cached_property
    def candidates(self) -> list[tuple[int, np.ndarray]]:
        """The different values of floating point: numbers and arrays at the first point."""
        found: dict[tuple, tuple[int, np.ndarray]] = {}
        graph, values = self.aligned.graph, self.aligned.values[0]
        for number in [*graph.inputs, *(n for o in graph.operations for n in o.outputs)]:
            if self.kind(number) in ("f", "c"):
                value = np.asarray(values[number])
                found.setdefault((value.shape, value.tobytes()), (number, value))
        return list(found.values())

    def joined(self, operation, other: int, here: np.ndarray, A: Any, b: Any, parts: set[int]) -> Iterator[tuple]:
        """How another value may stand in the place of one or beside it; by the linear map alone, where there is one."""
        w = np.asarray(self.aligned.values[0][other])
        for kind, (cost, function, words) in JOINED.items():
            if A is not None:
                new = np.asarray(function(here, w))
                if not np.all(np.isfinite(new)):
                    continue
                off = A @ (new - here).ravel() - b
                if np.max(np.abs(off), initial=0.0) > EXACT * max(1.0, np.linalg.norm(b)):
                    continue
            missing = [n for n in operation.inputs if n != other]
            if (
                kind == "replaced"
                and other in parts
                and len(missing) == 1
                and operation.name in ("mul", "add_any", "add")
            ):
                what = "factor" if operation.name == "mul" else "term"
                yield 2, function, f"the {what} {self.name(missing[0])} is missing in {{v}}"
            else:
                yield cost, function, words.replace("{w}", self.name(other))

    def beside(self, goal: Sequence[int]) -> Iterator[Plant]:
        """What the rule gives at cotangent 0, where taking it away makes the gradients right."""
        still = [
            rule_outputs(self.subject, self.rule, replace(each, d_out=jax.tree.map(np.zeros_like, each.d_out)))
            for each in self.aligned.points
        ]
        for k in goal:
            mine = [(right[k], given[k], zero[k]) for right, given, zero in
                    zip(self.aligned.outputs, self.aligned.right, still, strict=True)]  # fmt: skip
            if not all(
                np.any(zero) and close(given - zero, right, self.aligned.tolerance) for right, given, zero in mine
            ):
                return
        names = ", ".join(map(self.name_of_output, goal))
        yield Plant(1, 0, 0, f"{names}: a term beside the cotangent is added (at cotangent 0 it is there too)", "")

    def cause(self) -> Cause | None:
        """The simplest mistake for all wrong gradients; else one for each."""
        wrong = self.aligned.wrong
        whole = sorted(self.plants(wrong), key=lambda plant: plant[:3]) if wrong else []
        if whole:
            same = [plant.words for plant in whole[1:] if plant.cost == whole[0].cost and plant.words != whole[0].words]
            return Cause(whole[0].words, whole[0].where, True, tuple(dict.fromkeys(same))[:MOST_OTHERS])
        apart = [min(self.plants([k]), key=lambda plant: plant[:3], default=None) for k in wrong if len(wrong) > 1]
        known = {k: plant for k, plant in zip(wrong, apart, strict=False) if plant is not None}
        if not known:
            return None
        words = "; and ".join(dict.fromkeys(plant.words for plant in known.values()))
        where = next(iter(known.values())).where
        return Cause(words, where, len(known) == len(wrong), (), tuple(map(self.name_of_output, known)))


def rule_outputs(subject: Subject, rule: Callable, inputs: Inputs) -> list[np.ndarray]:
    """What a rule gives, called as it is: its outputs and gradients."""
    out, grads = rule(inputs.args, inputs.d_out)
    outs = [leaf for leaf in jax.tree.leaves(out) if np.issubdtype(leaf.dtype, np.inexact)]
    if isinstance(subject.custom, jax.custom_jvp):
        found: list = [leaf for leaf in jax.tree.leaves(grads) if np.issubdtype(leaf.dtype, np.inexact)]
    else:
        found, problems = flat_gradients(leaves_of(inputs.args, subject.fixed), grads)
        if problems:
            raise ValueError(problems[0])
    return [np.asarray(each) for each in (*outs, *found)]


def planted(subject: Subject, points: Sequence[tuple], *, seconds: float = 3.0) -> Cause | None:
    """The mistake in autodiff's program that gives what a rule gives at some points; None where none is found.

    Args:
        subject: the rule; its reference has a backward program.
        points: pairs (arguments, cotangent); the rule is wrong at the first.
        seconds: the time to spend.
    """

    def search(points: list) -> Cause | None:
        with np.errstate(all="ignore"):
            return Planting(subject, points, seconds).cause()

    return in_float64(search, list(points))
