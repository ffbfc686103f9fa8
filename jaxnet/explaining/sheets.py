"""Exercise sheets for a class: the same questions, other numbers on every sheet, and the answers; HTML or LaTeX."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup, escape

from jaxnet.explaining.derive import Derivation
from jaxnet.explaining.exercise_tasks import drawn
from jaxnet.explaining.expressions import Expression, Frozen, Product, Transposed, latex
from jaxnet.explaining.mathml import math, mathml
from jaxnet.explaining.model import Line
from jaxnet.explaining.notation import Notation
from jaxnet.explaining.numbers import entries, one, shape
from jaxnet.explaining.observe import Observed

Part = str | Expression | np.ndarray
"""Of a sentence: words, a formula, or numbers."""


class Question(Frozen):
    """A question and its answer, each in parts."""

    question: tuple[Part, ...]
    answer: tuple[Part, ...]


class Sheet(Frozen):
    """The given symbols and numbers, and the tasks."""

    title: str
    given: tuple[tuple[Expression, np.ndarray], ...]
    tasks: tuple[Question, ...]


def sheets(observed: Observed, notation: Notation, count: int, seed: int) -> list[Sheet]:
    """So many sheets, each at numbers of its own with one decimal.

    Raises `ExplainError` for a network that is too wide to be computed by hand, or has other layers than dense ones.
    """
    return [sheet(observed, notation, seed + i, f"Sheet {i + 1} of {count}") for i in range(count)]


def sheet(observed: Observed, notation: Notation, seed: int, title: str) -> Sheet:
    """One sheet."""
    at = drawn(observed, notation, seed)
    return Sheet(f"{title}: {at.derivation.header.title}", at.given, tuple(tasks(at.derivation, notation, at.draw)))


def tasks(derivation: Derivation, notation: Notation, draw: np.random.Generator) -> list[Question]:
    """Forward, shapes, the backward lines as equations, the numbers, and which of four is right."""
    forward, backward = derivation.forward, derivation.backward
    why, asked = derivation.why[0], backward[int(draw.integers(1, len(backward)))]
    z = why.rows.delta @ why.rows.W  # Wᵀδ as numbers
    back = notation.sent_back(why.W, why.delta)
    wrong: list[Expression] = [Product(back.factors[::-1]), Product((why.W, why.delta)),
                               Product((Transposed(why.delta), Transposed(why.W)))]  # fmt: skip
    choices = [back, *(each for each in wrong if each != back)][:4]
    order = draw.permutation(len(choices))
    letters = "ABCD"
    listed = [part for i, at in enumerate(order) for part in (f"   {letters[i]}: ", choices[at])]
    symbols, errors = ([part for line in lines for part in (", ", line.left)][1:] for lines in (forward, backward))
    cost, sent = one(derivation.header.value), ", ".join(one(float(value)) for value in z)
    shapes = tuple(part for line in backward for part in (line.left, f": {shape(line.shape)}   "))
    return [
        Question(("Compute ", *symbols, " and the cost."), (*values(forward), f"cost {cost}")),
        Question(("Write down the shapes of ", *errors, "."), shapes),
        Question(("Write ", asked.left, " by what it is made from."), (asked.left, " = ", asked.right)),
        Question(("Compute ", *errors, "."), values(backward)),
        Question(("Which of these is the error at ", why.a, "?", *listed),
             (letters[int(np.argmin(order))], f": its entries are {sent}")),
    ]  # fmt: skip


def values(lines: tuple[Line, ...]) -> tuple[Part, ...]:
    """Each line's symbol and numbers."""
    return tuple(part for line in lines for part in (line.left, " = ", line.value, "   "))


# -------------------------------------------------------------------------------------------------- as a page, as LaTeX


def rows_of(numbers: np.ndarray) -> list[list[str]]:
    """An array's entries as a table, a vector as a column."""
    table = np.atleast_2d(numbers.T).T
    texts, power = entries(table, 4)
    rows = np.reshape(texts, table.shape).tolist()
    return [[power + cell if power else cell for cell in row] for row in rows]


def in_latex(part: Part) -> str:
    """A part of a sentence as LaTeX."""
    if isinstance(part, str):
        return part.replace("→", "$\\to$").replace("×", "$\\times$").replace("   ", "\\quad ")
    if isinstance(part, np.ndarray):
        rows = " \\\\ ".join(" & ".join(row) for row in rows_of(part)).replace("−", "-").replace("×", "\\times")
        return f"$\\begin{{pmatrix}} {rows} \\end{{pmatrix}}$"
    return f"${latex(part)}$"


def in_html(part: Part) -> Markup:
    """A part of a sentence as HTML."""
    if isinstance(part, str):
        return escape(part.replace("   ", "\N{EM SPACE}"))
    if isinstance(part, np.ndarray):
        cell, line, table = (Markup(text) for text in ("<mtd><mn>{}</mn></mtd>", "<mtr>{}</mtr>",
                                                       "<mo>(</mo><mtable>{}</mtable><mo>)</mo>"))  # fmt: skip
        rows = (Markup("").join(map(cell.format, row)) for row in rows_of(part))
        return math(table.format(Markup("").join(map(line.format, rows))))
    return math(mathml(part))
