"""Finds a mistake in autodiff's own backward pass that gives the rule's gradients: for rules that no patch mends.

One value of autodiff's program is changed at a time: scaled, transposed, replaced by another value, joined with one. A
mistake is a cause only if the gradients are then the rule's own, at the point where it failed and on fresh draws.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnet.checking.alignment import Aligned, Effect, MarkedPlace
from jaxnet.checking.author import is_library
from jaxnet.checking.execution import Execution, Inputs, close, runs, seeded
from jaxnet.checking.primal import Primal, primal_of
from jaxnet.checking.reference import in_float64
from jaxnet.checking.subject import Subject, leaves_of
from jaxnet.checking.writer import Writer
from jaxnet.checking.written import CannotWriteError
from jaxnet.program import Operation
from jaxnet.program.numpy_evaluation import NumpyEvaluation, Values

EXACT = 1e-6
MOST_OTHERS = 3
LONGEST = 90  # letters of a value in a cause
SMALL = 1e-2  # constants below it are taken for an ε
MISSING = {"mul": "factor", "div": "factor", "add": "term", "add_any": "term", "sub": "term"}
ALONE = {"sub": np.negative, "div": np.reciprocal}
"""The operation's result when its first operand is left out."""
JOINED: tuple[tuple[int, Callable, str], ...] = (
    (4, lambda v, w: w, "{w} stands in the place of {v}"),
    (5, lambda v, w: v + w, "{w} is added to {v}"),
    (5, lambda v, w: v - w, "{w} is taken from {v}"),
    (5, lambda v, w: v * w, "{v} has the factor {w} too much"),
    (5, lambda v, w: v / w, "{v} is divided by {w}"),
)


@dataclass(frozen=True)
class Cause:
    """A mistake that gives the rule's gradients.

    `words`: the mistake; `where`: the primal's line that it belongs to; `exact`: whether it gives every wrong gradient
    on fresh draws too, else `leaves` are those that it gives; `others`: mistakes as simple that give the same.
    """

    words: str
    where: str = ""
    exact: bool = True
    others: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ()


class Plant(NamedTuple):
    """A mistake, ordered by whether it changes wrong gradients beside its goal, its cost, and whether it is forward.

    `length`: of `words`; `where`: the primal's line.
    """

    beside: bool
    cost: int
    rank: int
    length: int
    words: str
    where: str


class Names:
    """Names for the values of a reference: arguments, cotangent, the primal's expressions, and combinations of them."""

    def __init__(self, execution: Execution, subject: Subject, points: list[Inputs]):
        self.execution, self.subject, self.points = execution, subject, points
        leaves = leaves_of(points[0].args, subject.fixed)
        self.labels = [subject.label(path) for path in leaves.paths]
        self.seeds = execution.graph.inputs[len(points[0].flat) - len(points[0].seeds) :]

    @cached_property
    def flowing(self) -> frozenset[int]:
        """The values that depend on the cotangent."""
        return self.execution.dependents(self.seeds)

    @cached_property
    def known(self) -> list[tuple[str, list[np.ndarray]]]:
        """Names with their values, the primal's expressions last, the shortest first."""
        flat, first = self.execution.flat, len(self.execution.graph.inputs) - len(self.seeds)
        seeds = ["d_out"] if len(self.seeds) == 1 else [f"d_out[{k}]" for k in range(len(self.seeds))]
        found = [(name, [each[k] for each in flat]) for k, name in [*enumerate(self.labels), *enumerate(seeds, first)]]
        expressions = sorted(primal_of(self.subject, self.points).expressions, key=lambda each: len(each.mark.text))
        return [*found, *((each.mark.text, list(map(np.asarray, each.values))) for each in expressions)]

    @cached_property
    def sizes(self) -> dict[float, str]:
        """Sizes by their number, in words."""
        found: dict[float, str] = {}
        for name, values in self.known:
            for axis, n in enumerate(np.shape(values[0])):
                if n > 2 and name.isidentifier():
                    found.setdefault(float(n), f"{name}.shape[{axis}]")
        return found

    @cached_property
    def writer(self) -> Writer:
        """Writes a value in the names."""
        names = [(text, np.shape(values[0]), values) for text, values in self.known]
        return Writer(self.execution, names, [(text, n) for n, text in self.sizes.items()], longest=LONGEST)

    def of(self, number: int) -> str:
        """A value in words: an output, a name, an expression of the primal, or the line that it comes from."""
        outputs = self.execution.graph.outputs
        if number in outputs:
            return self.of_output(outputs.index(number))
        try:
            return self.writer.write(number).text
        except CannotWriteError:
            return f"the gradient through {self.line(number)[1]}"

    def said(self, words: str, number: int) -> str:
        """A mistake in words: `{v}` stands for the value of a number, `{7}` for that of number 7."""
        return re.sub(r"\{(\w+)\}", lambda found: self.of(number if found[1] == "v" else int(found[1])), words)

    def of_output(self, k: int) -> str:
        """A gradient by its argument, or the output."""
        first = len(self.execution.graph.outputs) - len(self.labels)
        return f"∂{self.labels[k - first]}" if k >= first else "the output"

    def line(self, number: int) -> tuple[str, str]:
        """The line of the primal that a value comes from, and its text."""
        operation = self.execution.graph.made_by.get(number)
        file = "" if operation is None else operation.position.file
        if operation is None or is_library(file):
            return "", "the primal"
        position = operation.position
        return f"{os.path.basename(position.file)}:{position.line}", position.segment

    def slips(self, operation: Operation) -> Iterator[tuple[int, Callable, str]]:
        """The usual mistakes at an operation: (value left out or transposed, function of all values, words).

        A factor or a term is left out, or a square matrix is transposed; `said` fills in the names.
        """
        execution, inputs, (number, *_) = self.execution, operation.inputs, operation.outputs

        def shape(each: int) -> tuple[int, ...]:
            return np.shape(execution.values[0].get(each, execution.graph.all_constants.get(each, 0.0)))

        for k, lost in enumerate(inputs if operation.name in MISSING and len(inputs) == 2 else ()):
            kept = inputs[1 - k]
            alone = ALONE.get(operation.name, np.asarray) if k == 0 else np.asarray
            if shape(kept) == shape(number) or not shape(lost):
                value = execution.graph.all_constants.get(lost, 0.0)
                small = not np.ndim(value) and 0 < abs(value) < SMALL
                what = f"ε = {value:g}" if small else f"the {MISSING[operation.name]} {{{lost}}}"
                yield lost, lambda values, kept=kept, f=alone: f(values[kept]), f"{what} is missing in {{v}}"
        for matrix in inputs if operation.name == "dot_general" else ():
            if len(shape(matrix)) == 2 and len(set(shape(matrix))) == 1:

                def transposed(values: Values, matrix: int = matrix) -> Any:
                    given = [values[n].T if n == matrix else values[n] for n in inputs]
                    return NumpyEvaluation().operation(operation, given)[0]

                yield matrix, transposed, f"{{{matrix}}} is transposed in {{v}}"


class Planting:
    """The search for the mistake in autodiff's program of one rule."""

    def __init__(self, subject: Subject, points: Sequence[tuple], seconds: float):
        self.subject, self.until = subject, time.process_time() + seconds
        inputs = [Inputs(subject, *point) for point in points]
        self.rule, reference = runs(subject)
        right = Execution.of(inputs[0].trace(reference), [each.flat for each in inputs])
        given = [each.called(self.rule) for each in inputs]
        rough = any(v.dtype not in (np.float64, np.complex128) for vs in given for v in vs)
        self.aligned = Aligned(
            right.graph, right.flat, right.values, right.outputs, subject, inputs, given, 1e-3 if rough else 1e-6,
            right, Primal(),
        )  # fmt: skip
        self.names = Names(right, subject, inputs)

    @cached_property
    def operations(self) -> list[Operation]:
        """The operations whose value may be wrong: of floating point, in the order of the program."""
        return [
            o
            for o in self.aligned.graph.everything
            if o.kind == "operation" and len(o.outputs) == 1 and self.kind(o.outputs[0]) in ("f", "c")
        ]

    def kind(self, number: int) -> str:
        """The kind of a value's entries."""
        value = self.aligned.values[0].get(number)
        return value.dtype.kind if isinstance(value, np.ndarray | np.generic) else ""

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
                    said = self.names.said(words, number)
                    if number in self.aligned.graph.outputs and cost == 1:
                        said = said.replace("the term ", "").replace("is missing", "is zero")
                    yield Plant(
                        not effect.alone, cost, int(number not in self.names.flowing), len(said), said,
                        self.names.line(number)[0],
                    )  # fmt: skip

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
        inside = bool(self.aligned.loops(number))
        linear = True if inside else effect.linear
        if linear is False:
            return
        here, values = np.asarray(self.aligned.values[0][number]), self.aligned.values[0]
        A, b = linear if isinstance(linear, tuple) and here.dtype.kind == "f" else (None, None)
        every = [self.scaled(c) for c in ((0.0, -1.0, 2.0, 0.5) if inside else self.scales(A, b, here))]
        every += [(2, lambda v, values, f=f: f(values), words) for _, f, words in self.names.slips(operation)]
        for cost, function, words in [*every, *(() if inside else self.whole(number, here))]:
            if A is not None and b is not None:
                off = A @ np.ravel(function(here, values) - here) - b
                if not np.max(np.abs(off), initial=0.0) <= EXACT * max(1.0, np.linalg.norm(b)):
                    continue
            yield cost, function, words

    def scales(self, A: Any, b: Any, here: np.ndarray) -> Iterator[float]:
        """The numbers by which a value may be multiplied: the one that the linear map gives, where there is one."""
        if A is None:
            yield from (0.0, -1.0, 2.0, 0.5, *self.names.sizes, *(1 / n for n in self.names.sizes))
        elif np.any(Av := A @ here.ravel()):
            yield 1 + float(b @ Av) / float(Av @ Av)

    def whole(self, number: int, here: np.ndarray) -> Iterator[tuple[int, Callable, str]]:
        """An array in another order, and another value in its place or beside it."""
        if here.ndim >= 2 and here.shape[-1] == here.shape[-2]:
            yield 2, lambda v, values: np.swapaxes(v, -1, -2), "{v} is transposed"
        for axis in range(here.ndim):
            yield 3, lambda v, values, axis=axis: np.flip(v, axis), "{v} is in the opposite order"
            for by in (1, -1):
                yield 4, lambda v, values, axis=axis, by=by: np.roll(v, by, axis), "{v} is shifted by one"
            yield 4, lambda v, values, axis=axis: v.mean(axis, keepdims=True), "{v} is its mean"
        later = self.aligned.dependents([number])
        for other, value in self.candidates:
            if value.shape == here.shape and other not in later:
                for cost, function, words in JOINED:
                    yield cost, lambda v, values, f=function, w=other: f(v, np.reshape(values[w], v.shape)), \
                        words.replace("{w}", f"{{{other}}}")  # fmt: skip

    def scaled(self, c: float) -> tuple[int, Callable, str]:
        """A value times a number, in words."""
        sizes = self.names.sizes.items()
        missing = {n: f"1/{text}" for n, text in sizes} | {1 / n: text for n, text in sizes}
        text = next((text for n, text in missing.items() if abs(c / n - 1) < EXACT), None)
        if text is not None:
            return 3, lambda v, values: c * v, f"the factor {text} is missing in {{v}}"
        cost, words = 3 if c in (2.0, 0.5) else 6, f"{{v}} is {c:.6g} times what it should be"
        if abs(c) < EXACT:
            c, cost, words = 0.0, 1, "the term {v} is missing"
        elif abs(c + 1) < EXACT:
            c, cost, words = -1.0, 1, "{v} has the wrong sign"
        return cost, lambda v, values: c * v, words

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

    def beside(self, goal: Sequence[int]) -> Iterator[Plant]:
        """The rule's gradients at cotangent 0, where taking them away makes the gradients right."""
        still = [
            replace(each, d_out=jax.tree.map(np.zeros_like, each.d_out)).called(self.rule)
            for each in self.aligned.points
        ]
        for k in goal:
            mine = [(right[k], given[k], zero[k]) for right, given, zero in
                    zip(self.aligned.outputs, self.aligned.right, still, strict=True)]  # fmt: skip
            if not all(
                np.any(zero) and close(given - zero, right, self.aligned.tolerance) for right, given, zero in mine
            ):
                return
        names = ", ".join(map(self.names.of_output, goal))
        yield Plant(
            False, 1, 0, 0, f"{names}: a term beside the cotangent is added (at cotangent 0 it is there too)", ""
        )

    def cause(self) -> Cause | None:
        """The simplest mistake for all wrong gradients; else one for each, exact where none changes another's."""
        wrong = self.aligned.wrong
        whole = sorted(self.plants(wrong), key=lambda plant: plant[:4]) if wrong else []
        if whole:
            same = [plant.words for plant in whole[1:] if plant.cost == whole[0].cost and plant.words != whole[0].words]
            return Cause(whole[0].words, whole[0].where, True, tuple(dict.fromkeys(same))[:MOST_OTHERS])
        apart = [min(self.plants([k]), key=lambda plant: plant[:4], default=None) for k in wrong if len(wrong) > 1]
        known = {k: plant for k, plant in zip(wrong, apart, strict=False) if plant is not None}
        if not known:
            return None
        words = "; and ".join(dict.fromkeys(plant.words for plant in known.values()))
        where = next(iter(known.values())).where
        exact = len(known) == len(wrong) and not any(plant.beside for plant in known.values())
        return Cause(words, where, exact, (), tuple(map(self.names.of_output, known)))


def planted(subject: Subject, points: Sequence[tuple], *, seconds: float = 3.0) -> Cause | None:
    """The mistake in autodiff's program that gives a rule's own gradients at some points; None where none is found.

    Args:
        subject: the rule; its reference has a backward program.
        points: pairs (arguments, cotangent); the rule is wrong at the first.
        seconds: the time to spend.
    """

    def search(points: list) -> Cause | None:
        with np.errstate(all="ignore"):
            return Planting(subject, seeded(subject, points), seconds).cause()

    return in_float64(search, list(points))
