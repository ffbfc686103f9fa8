"""An exercise: write the lines of the backward pass one by one, graded at the network's own numbers and at draws."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Sequence

from jaxnet.explaining.expressions import Frozen, formula, written
from jaxnet.explaining.formulas import FormulaError, Trial, Tried, try_formula
from jaxnet.explaining.formulas.parse import parse
from jaxnet.explaining.model import Line
from jaxnet.explaining.notation import ExplainError
from jaxnet.explaining.numbers import shape

TRIES = 3  # at each line: then it is shown


def questions(tried: Tried) -> list[Line]:
    """The backward lines that have a formula, from the loss."""
    found = []
    for line in tried.derivation.backward:
        try:
            formula(line.right)
        except ValueError:
            continue
        if not line.of:
            found.append(line)
    if not found:
        raise ExplainError("--exercise asks for formulas of dense layers and activations, and this network has none")
    return found


class Asked(Frozen):
    """A question, the lines below it, its solution, and a judge of an answer at an attempt.

    judge: gives the verdict, and whether the answer is right; None where it is no answer.
    """

    question: str
    solution: str
    judge: Callable[[str, int], tuple[str, bool | None]]
    below: tuple[str, ...] = ()


Part = tuple[Iterable[str], Sequence[Asked]]
"""The lines above some questions, and the questions."""


def exercise(*parts: Part, ask: Callable[[str], str] = input) -> Iterator[str]:
    """Asks the questions of each part, grades the answers, and counts those that were right at once. q ends all.

    ask: gives an answer to a prompt, and raises `EOFError` at the end. An empty answer shows the solution.
    """
    for above, questions in parts:
        at_once = 0
        yield from above
        for i, each in enumerate(questions, 1):
            yield f"{i} of {len(questions)}   {each.question}"
            yield from each.below
            attempt = 0
            while attempt < TRIES:
                try:
                    answer = ask("  = ").strip()
                except EOFError:
                    yield ""
                    answer = "q"
                if answer.lower() == "q":
                    yield f"{at_once} of {i - 1} right at once"
                    return
                said, right = each.judge(answer, attempt) if answer else (each.solution, True)
                yield f"  {said}"
                at_once += bool(right and answer) and attempt == 0
                attempt += right is not None
                if right:
                    break
            else:
                yield f"  {each.solution}"
        yield f"{at_once} of {len(questions)} right at once"


def asked_lines(tried: Tried) -> Part:
    """The lines of the backward pass, to be answered with formulas."""
    lines = questions(tried)
    found = [
        Asked(f"{written(line.left)} = ?   {shape(line.shape)}",
              f"It is {written(line.left)} = {written(line.right)}, or {formula(line.right)}.",
              lambda answer, attempt, i=i: graded(answer, lines[i:], tried, attempt))
        for i, line in enumerate(lines)
    ]  # fmt: skip
    return [f"{len(lines)} lines of the backward pass. Answer with formulas. Enter shows a line, q ends."], found


def graded(answer: str, lines: Sequence[Line], tried: Tried, attempt: int) -> tuple[str, bool]:
    """The verdict on an answer to the first of these lines, and whether it is right. The others are not yet known."""
    line = lines[0]
    try:
        parsed = parse(answer)
        if parsed.target and tried.scope.key(parsed.target) != line.key:
            return f"this line is {line.key}, not {parsed.target}", False
        trial = try_formula(answer if parsed.target else f"{line.key} = {answer}", tried)
    except FormulaError as error:
        return str(error).splitlines()[0], False
    names = {tried.scope.key(each.id) for each in ast.walk(parsed.tree) if isinstance(each, ast.Name)}
    unknown = [each.key for each in lines if each.key in names]
    if unknown:
        return f"{unknown[0]} is not yet known here: write {line.key} by what it is made from", False
    if trial.verdict == "right":
        return f"Right{line.rule and f': {line.rule}'}.", True
    return hint(trial, line, attempt), False


def hint(trial: Trial, line: Line, attempt: int) -> str:
    """The first hint is about shapes and values, the second names the change, the third gives the formula.

    Where no change of the answer is right, the later hints are the page's remarks on the line.
    """
    if attempt == 0 or (trial.repair is None and not line.remarks):
        return trial.words[0]
    if trial.repair is None:
        return "; ".join(line.remarks)
    if attempt == 1:
        return trial.repair.changes[-1] if trial.repair.changes else "the brackets stand elsewhere"
    return f"nearest to it: {trial.repair.formula}"
