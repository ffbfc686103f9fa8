"""Tasks about a network's backward pass, at numbers of their own, each with the table of its answers.

The wrong answers are the lines' own formulas with a mistake planted. Their hints are the checker's, the vague first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain

import jax
import numpy as np

from jaxnet.explaining.derive import Derivation, derive
from jaxnet.explaining.exercise import TRIES, Asked, Part, hint, questions
from jaxnet.explaining.expressions import Expression, Frozen, Name, entry, formula, written
from jaxnet.explaining.formulas import Tried, tried_on, try_formula
from jaxnet.explaining.lines import oriented
from jaxnet.explaining.model import Line
from jaxnet.explaining.notation import ExplainError, Notation
from jaxnet.explaining.numbers import array_lines, one, shape
from jaxnet.explaining.observe import Observed, observe

WIDEST = 4  # units of a layer that is computed by hand
CHOICES = 4
SEEDS = 16  # among which is one where units are on and errors are not 0
MISTAKES = (
    (r"W(\d*)\.T", r"W\1"),  # W for its transpose
    (r" \* \w+'\(\w+\)$", ""),  # the slope left out
    (r" \* \w+'\(z(\d*)\)$", r" * a\1"),  # half of the slope
    (r"a(\d+)\.T", r"z\1.T"),  # z for a
    (r"^(\w+) @ (\w+)\.T$", r"\2 @ \1.T"),  # the gradient transposed
    (r"^(\w+)\.T @ (\w+)$", r"\2.T @ \1"),
    (r"\((\w+) - (\w+)\)", r"(\2 - \1)"),  # the sign
    (r"'\(z(\d*)\)$", r"'(a\1)"),  # the slope at a
    (r"^(.*)$", r"2 * (\1)"),  # twice the value
)
"""Mistakes to plant in a formula: a pattern, and the wrong text in its place."""


class GradedAnswer(Frozen):
    """A choice or a value, and the hints that it gets, the vague first; the right one gets none."""

    text: str
    hints: tuple[str, ...] = ()
    value: np.ndarray | None = None


class ExerciseTask(Frozen):
    """A question and the table of its answers.

    shape: of the numbers to be filled in; () where an answer is chosen. hints: for numbers that no answer has.
    solution: the right answer.
    """

    question: str
    answers: tuple[GradedAnswer, ...]
    solution: str
    shape: tuple[int, ...] = ()
    hints: tuple[str, ...] = ()


class ExerciseTasks(Frozen):
    """The network and its cost in a line, the given symbols and numbers, and the tasks."""

    network: str
    given: tuple[tuple[Expression, np.ndarray], ...]
    tasks: tuple[ExerciseTask, ...]


class Mistake(Frozen):
    """A formula with a mistake, its value where its shapes fit, and the hints to it."""

    formula: str
    value: np.ndarray | None
    hints: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Drawn:
    """A network at numbers with one decimal. draw: the generator that chooses among its tasks."""

    observed: Observed
    derivation: Derivation
    notation: Notation
    draw: np.random.Generator

    @property
    def given(self) -> tuple[tuple[Expression, np.ndarray], ...]:
        """x, y and the parameters, as the notation lays them."""
        found: list[tuple[Expression, np.ndarray]] = [(Name("x"), self.derivation.header.x),
                                                      (Name("y"), np.asarray(self.derivation.header.y))]  # fmt: skip
        for place in self.derivation.layers:
            number = int(place.number) - self.notation.first
            found += [(self.notation.param(name, number), oriented(p, self.notation) if np.ndim(p) == 2 else p)
                      for name, p in place.params.items() if place.kind == "dense"]  # fmt: skip
        return tuple(found)


def by_hand(derivation: Derivation) -> bool:
    """Whether a network can be computed by hand: dense layers and activations of few units."""
    widths = [derivation.header.x.size, *(each.out.size for each in derivation.layers)]
    return bool(derivation.why) and all(each.kind != "other" for each in derivation.layers) and max(widths) <= WIDEST


def drawn(observed: Observed, notation: Notation, seed: int) -> Drawn:
    """A network at numbers that are drawn from a seed.

    Raises `ExplainError` for a network that is too wide to be computed by hand, or has other layers than dense ones.
    """
    draw = np.random.default_rng(seed)
    params = jax.tree.map(lambda p: np.round(draw.uniform(-0.6, 1, p.shape), 1).astype(p.dtype), observed.params)
    x = draw.integers(1, 4, observed.x.shape).astype(observed.x.dtype)
    other = observe(observed.net, observed.loss, params, x, observed.y)
    derivation = derive(other, notation, asked=1)
    if not by_hand(derivation):
        raise ExplainError(f"an exercise takes dense layers of at most {WIDEST} units, which are computed by hand")
    return Drawn(other, derivation, notation, draw)


def telling(at: Drawn) -> bool:
    """Whether every error has an entry that is not 0."""
    return all(np.abs(line.value).max() > 0.02 for line in at.derivation.backward)


def tasks_of(observed: Observed, notation: Notation, seed: int) -> ExerciseTasks:
    """The tasks, at the first seed from this one on where every error has an entry that is not 0.

    Raises `ExplainError` as `drawn` does.
    """
    draws = (drawn(observed, notation, each) for each in range(seed, seed + SEEDS))
    at = next(filter(telling, draws), None) or drawn(observed, notation, seed)
    tried = tried_on(at.observed, at.derivation, notation)
    forward = tuple((line.left, line.value) for line in at.derivation.forward)
    header = at.derivation.header
    network = f"{header.title}   {written(header.cost_left)} = {written(header.cost_right)}"
    return ExerciseTasks(network, (*at.given, *forward), tuple(made(at, tried)))


def made(at: Drawn, tried: Tried) -> Iterator[ExerciseTask]:
    """Sign, shape, numbers, a missing line, the wrong line of four, and the planted mistake."""
    lines = [line for line in questions(tried) if line.kind != "db"]
    gradients = [line for line in lines if line.kind == "dW"]
    errors = [line for line in lines if line.kind == "delta"]
    if not errors or not gradients or gradients[0].item != at.derivation.why[0].item:
        return  # lines without formulas
    wrong = {line.key: list(mistakes(line, tried)) for line in lines}
    yield sign(gradients[0], at)
    yield sizes(gradients[-1])
    for line in (errors[-1], gradients[0]):
        yield numbers(line, wrong[line.key], lines)
    yield missing(errors[-1], wrong[errors[-1].key], at.draw)
    for line, said, told in ((gradients[0], "Which of these lines is wrong?", in_code),
                             (errors[-1], "One of these lines is computed by a wrong formula, the others are right. "
                                          "Which?", in_numbers)):  # fmt: skip
        planted = [each for each in wrong[line.key] if misleads(each, line)]
        if planted:
            of = lines[-CHOICES:] if line in lines[-CHOICES:] else lines[:CHOICES]
            yield among(of, line, planted[at.draw.integers(len(planted))], said, told)


def mistakes(line: Line, tried: Tried) -> Iterator[Mistake]:
    """The line's formula with one mistake each; those that are no mistake here are left out."""
    right = formula(line.right)
    for text in dict.fromkeys(re.sub(pattern, put, right, count=1) for pattern, put in MISTAKES):
        trial = try_formula(f"{line.key} = {text}", tried)
        if trial.verdict != "right":
            hints = dict.fromkeys(hint(trial, line, attempt) for attempt in range(TRIES))
            yield Mistake(text, trial.value, tuple(hints))


def near(value: np.ndarray, right: np.ndarray) -> bool:
    """Whether numbers, rounded by hand, are these: within 2 % of the largest."""
    return bool(np.all(np.abs(np.ravel(value) - np.ravel(right)) <= tolerance(right)))


def tolerance(right: np.ndarray) -> float:
    """By how much a number that is computed by hand may be off."""
    return 0.02 * float(np.abs(right).max(initial=0)) + 0.0006


def misleads(mistake: Mistake, line: Line) -> bool:
    """Whether a mistake gives a value of the right size that is another."""
    return mistake.value is not None and mistake.value.size == line.value.size and not near(mistake.value, line.value)


def in_words(line: Line) -> str:
    """The line in symbols."""
    return f"{written(line.left)} = {written(line.right)}"


def in_code(line: Line, planted: Mistake | None = None) -> str:
    """The line as a formula, or with a mistake."""
    return f"{line.key} = {planted.formula if planted else formula(line.right)}"


def in_numbers(line: Line, planted: Mistake | None = None) -> str:
    """The line's values, or those of a mistake."""
    value = line.value if planted is None or planted.value is None else planted.value.reshape(line.value.shape)
    return f"{written(line.left)} = {' '.join(array_lines(value, 3, 200))}"


def sign(line: Line, at: Drawn) -> ExerciseTask:
    """Whether C rises where a weight is raised."""
    places = np.argwhere(np.abs(line.value) > tolerance(line.value))
    row, column = (int(each) for each in places[at.draw.integers(len(places))])
    out, into = (column, row) if at.notation.rows else (row, column)
    why, cost, value = at.derivation.why[0], written(at.notation.cost), float(line.value[row, column])
    weight = written(entry(why.W, row + 1, column + 1))
    product = f"{written(entry(why.delta, out + 1))} × {written(entry(why.a, into + 1))}"
    rises = f"The gradient is {product} = {one(value)}: {cost} {'rises' if value > 0 else 'falls'}."
    hints = ("A weight has one path: its gradient is δ where it leads to, times the activation where it comes from.",
             f"Look at the signs of the two factors of {product}.", rises)  # fmt: skip
    answers = [GradedAnswer(f"{cost} {verb}", () if right else hints)
               for verb, right in (("rises", value > 0), ("falls", value < 0), ("stays", False))]  # fmt: skip
    return ExerciseTask(f"{weight} is raised a little. What does {cost} do?", tuple(answers), rises)


def sizes(line: Line) -> ExerciseTask:
    """The shape of a gradient."""
    rows, columns = line.shape
    said = f"{in_words(line)} is {shape(line.shape)}."
    hints = ("A gradient has the shape of the parameter.", "One number for each weight, laid as W is.", said)
    found = dict.fromkeys(map(shape, ((rows, columns), (columns, rows), (rows, rows), (columns, 1), (rows, 1))))
    answers = [GradedAnswer(each, () if each == shape(line.shape) else hints) for each in list(found)[:CHOICES]]
    return ExerciseTask(
        f"What is the shape of {written(line.left)}?", tuple(sorted(answers, key=lambda each: each.text)), said
    )


def numbers(line: Line, wrong: list[Mistake], lines: list[Line]) -> ExerciseTask:
    """Numbers to be filled in; the lines before are given."""
    before = [each for each in lines[: lines.index(line)] if each.kind == "delta"]
    known = f"{in_numbers(before[-1])}. " if before and line.kind == "delta" else ""
    if line.kind == "dW":
        delta = next(each for each in lines if each.kind == "delta" and each.item == line.item)
        known = f"{in_numbers(delta)}. "
    values = [GradedAnswer(each.formula, each.hints, each.value.reshape(line.shape))
              for each in wrong if each.value is not None and misleads(each, line)]  # fmt: skip
    parts = sorted(set(re.findall(r"\b[A-Za-z]+\d*\b", formula(line.right))) - {"T"})
    hints = (f"It is made of {', '.join(parts)}.", f"{in_words(line)}.", f"{in_numbers(line)}.")
    right = GradedAnswer(formula(line.right), (), line.value)
    return ExerciseTask(f"{known}Fill in {written(line.left)}.", (right, *values), hints[1], line.shape, hints)


def missing(line: Line, wrong: list[Mistake], draw: np.random.Generator) -> ExerciseTask:
    """The formula of a line, among wrong ones."""
    found = [GradedAnswer(formula(line.right)), *(GradedAnswer(each.formula, each.hints) for each in wrong)][:CHOICES]
    answers = tuple(found[i] for i in draw.permutation(len(found)))
    return ExerciseTask(f"A line of the backward pass is missing: {line.key} = ?", answers, in_words(line))


def among(lines: list[Line], line: Line, planted: Mistake, question: str, told: Callable[..., str]) -> ExerciseTask:
    """Lines, one of them with a mistake."""
    cause = f"{written(line.left)} is wrong: it was computed as {planted.formula}. Right is {in_words(line)}."
    answers = tuple(
        GradedAnswer(told(each, planted)) if each is line else
        GradedAnswer(told(each), (f"This line is right: {in_words(each)}.", f"Look at {written(line.left)}.", cause))
        for each in lines
    )  # fmt: skip
    return ExerciseTask(question, answers, cause)


def table(task: ExerciseTask) -> dict[str, object]:
    """A task's answers as the page's script takes them."""
    answers = [
        {"hints": each.hints}
        | ({} if each.value is None else {"value": np.ravel(each.value).tolist(), "off": tolerance(each.value)})
        for each in task.answers
    ]
    return {"answers": answers, "hints": task.hints, "solution": task.solution}


# ------------------------------------------------------------------------------------------------- grading

LETTERS = "ABCDEFGH"


def judged(task: ExerciseTask, text: str, attempt: int) -> tuple[str, bool | None]:
    """The verdict on an answer, a letter or numbers, and whether it is right; None where it is no such answer.

    exercise.js does the same on a page.
    """
    if not task.shape:
        at = LETTERS.find(text.upper()) if len(text) == 1 else -1
        if not 0 <= at < len(task.answers):
            return f"answer with a letter from A to {LETTERS[len(task.answers) - 1]}, got {text}", None
        return verdict(task, task.answers[at], attempt)
    found = re.findall(r"[-+]?\d*\.?\d+(?:e[-+]?\d+)?", text.replace("−", "-"))
    right, given = task.answers[0].value, np.asarray(found, np.float64)
    if right is None or given.size != right.size:
        return f"answer with {right.size if right is not None else 0} numbers, got {given.size}", None
    known = next((each for each in task.answers if each.value is not None and near(given, each.value)), None)
    if known is not None:
        return verdict(task, known, attempt)
    count = int((np.abs(given - right.ravel()) <= tolerance(right)).sum())
    return f"{count} of {right.size} numbers are right. {task.hints[min(attempt, len(task.hints) - 1)]}", False


def verdict(task: ExerciseTask, answer: GradedAnswer, attempt: int) -> tuple[str, bool]:
    """The verdict on an answer of the table."""
    if not answer.hints:
        return f"Right. {task.solution}", True
    return answer.hints[min(attempt, len(answer.hints) - 1)], False


def beside(head: str, lines: list[str]) -> Iterator[str]:
    """Lines under one another, behind the first one's head."""
    yield from (f"{head if i == 0 else ' ' * len(head)}{line}" for i, line in enumerate(lines))


def asked_tasks(tasks: ExerciseTasks) -> Part:
    """The tasks for a terminal, below the given numbers."""
    given = (beside(f"{written(symbol)} = ", array_lines(value, 3, 40)) for symbol, value in tasks.given)
    return [tasks.network, *chain.from_iterable(given)], [
        Asked(task.question, task.solution, partial(judged, task),
              () if task.shape else tuple(f"  {LETTERS[k]}  {each.text}" for k, each in enumerate(task.answers)))
        for task in tasks.tasks
    ]  # fmt: skip
