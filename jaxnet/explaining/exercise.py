"""An exercise: write the lines of the backward pass one by one, graded at the network's own numbers and at draws."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence

from jaxnet.explaining.expressions import formula, written
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


def exercise(tried: Tried, ask: Callable[[str], str] = input) -> Iterator[str]:
    """Asks for each line, grades the answers, and counts those that were right at once.

    ask: gives an answer to a prompt, and raises `EOFError` at the end. An empty answer shows the line.
    """
    lines, at_once = questions(tried), 0
    yield f"{len(lines)} lines of the backward pass. Answer with formulas. Enter shows a line, q ends."
    for i, line in enumerate(lines, 1):
        yield f"{i} of {len(lines)}   {written(line.left)} = ?   {shape(line.shape)}"
        for attempt in range(TRIES):
            try:
                answer = ask("  = ").strip()
            except EOFError:
                answer = "q"
            if answer.lower() == "q":
                yield f"{at_once} of {i - 1} right at once"
                return
            verdict, right = graded(answer, lines[i - 1 :], tried, attempt) if answer else (shown(line), True)
            yield f"  {verdict}"
            at_once += right and bool(answer) and attempt == 0
            if right:
                break
        else:
            yield f"  {shown(line)}"
    yield f"{at_once} of {len(lines)} right at once"


def shown(line: Line) -> str:
    """The line itself."""
    return f"It is {written(line.left)} = {written(line.right)}, or {formula(line.right)}."


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

    Where no change of the answer is right, the later hints are what the page remarks on the line.
    """
    if attempt == 0 or (trial.repair is None and not line.remarks):
        return trial.words[0]
    if trial.repair is None:
        return "; ".join(line.remarks)
    if attempt == 1:
        return trial.repair.changes[-1] if trial.repair.changes else "the brackets stand elsewhere"
    return f"nearest to it: {trial.repair.formula}"
