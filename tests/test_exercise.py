"""The exercise: right answers pass, and common mistakes of dense networks are named."""

from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest

import jaxnet
from jaxnet.explaining import derive, notation, observe
from jaxnet.explaining.exercise import exercise, graded, questions
from jaxnet.explaining.expressions import formula
from jaxnet.explaining.formulas import tried_on
from jaxnet.explaining.notation import ExplainError
from jaxnet.layers import dense, sigmoid, tanh
from jaxnet.losses import quadratic


@cache
def tried(activation):
    """A network of square layers, where a wrong transpose fits."""
    net = jaxnet.serial(dense(3), activation, dense(3), activation)
    params = jaxnet.initialize(net, quadratic, jax.random.key(0), np.zeros(3, np.float32))
    x, y = np.array([0.3, -0.7, 1.1], np.float32), np.array([0.2, 0.9, 0.4], np.float32)
    observed = observe(net, quadratic, params, x, y)
    return tried_on(observed, derive(observed), notation())


def answered(*answers, activation=sigmoid):
    """All that the exercise says to these answers."""
    given = iter(answers)

    def ask(prompt):
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None

    return list(exercise(tried(activation), ask))


def test_the_lines_themselves_are_right():
    lines = questions(tried(sigmoid))
    said = answered(*(formula(line.right) for line in lines))
    assert said[-1] == f"{len(lines)} of {len(lines)} right at once"
    assert sum(line.startswith("  Right") for line in said) == len(lines) == 8


def test_hints_go_from_the_shape_to_the_formula():
    said = answered("", "a2 @ delta3.T", "a2 @ delta3.T", "a2 @ delta3.T")
    assert said[2] == "  It is δ³ = (a³−y) ⊙ σ′(z³), or (a3 - y) * sigmoid'(z3)."
    assert said[4:8] == [
        "  the value is ∇W³ transposed, 3×3 for 3×3",
        "  delta3 goes before what it multiplies",
        "  nearest to it: delta3 @ a2.T",
        "  It is ∇W³ = δ³a²ᵀ, or delta3 @ a2.T.",
    ]
    assert said[-1] == "0 of 2 right at once"


def test_the_answer_is_not_taken_for_itself():
    said = answered("delta3", "db3", "(a3-y) * s'(z3)")
    assert said[2] == "  delta3 is not yet known here: write delta3 by what it is made from"
    assert said[3].startswith("  db3 is not yet known here")
    assert said[4] == "  Right: BP1."
    assert said[-1] == "0 of 1 right at once", "it was the third try"


def test_nonsense_is_told_and_does_not_end_it():
    said = answered("W3 @@ x", "W9", "q")
    assert "stands where a factor should" in said[2]
    assert "the network has no W9" in said[3]
    assert said[-1] == "0 of 0 right at once"


MISTAKES = {
    "W for its transpose": (sigmoid, "da2", "W3 @ delta3", "W3 is transposed"),
    "the inverse": (sigmoid, "da2", "inv(W3) @ delta3", "W3.T stands where inv(W3) stood"),
    "the sign of W": (sigmoid, "da2", "sign(W3).T @ delta3", "W3.T stands where sign(W3).T stood"),
    "the slope at a": (sigmoid, "delta2", "W3.T @ delta3 * s'(a2)", "sigmoid'(z2) stands where s'(a2) stood"),
    "the slope left out": (sigmoid, "delta2", "W3.T @ delta3", "sigmoid'(z2) was missing"),
    "half of the slope": (sigmoid, "delta2", "W3.T @ delta3 * a2", "sigmoid'(z2) stands where a2 stood"),
    "the slope of another function": (
        tanh,
        "delta2",
        "W3.T @ delta3 * a2*(1-a2)",
        "tanh'(z2) stands where a2 * (1-a2)",
    ),
    "the slope of tanh without its square": (tanh, "delta2", "W3.T @ delta3 * (1-a2)", "tanh'(z2) stands where (1-a2)"),
    "z for a": (sigmoid, "dW3", "delta3 @ z2.T", "a2.T stands where z2.T stood"),
    "the gradient transposed": (sigmoid, "dW3", "a2 @ delta3.T", "goes before what it multiplies"),
    "a layer off": (sigmoid, "dW2", "delta2 @ a2.T", "x.T stands where a2.T stood"),
    "the sign": (sigmoid, "delta3", "(y-a3) * s'(z3)", "−1.0000 times δ³"),
    "twice the error": (sigmoid, "delta3", "2 * (a3-y) * s'(z3)", "2.0000 times δ³"),
    "one percent too large": (sigmoid, "dW2", "1.01 * delta2 @ x.T", "1.0100 times ∇W²"),
    "the target left out": (sigmoid, "delta3", "a3 * s'(z3)", "wrong"),
    "no error for the input": (sigmoid, "dx", "0 * x", "wrong"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    activation, key, answer, said = MISTAKES[name]
    subject = tried(activation)
    lines = questions(subject)
    first = next(i for i, line in enumerate(lines) if line.key == key)
    hints = [graded(answer, lines[first:], subject, attempt) for attempt in range(3)]
    assert not any(right for _, right in hints)
    assert any(said in hint for hint, _ in hints), hints


def test_a_network_without_formulas_has_no_exercise():
    empty = replace(tried(sigmoid), derivation=replace(tried(sigmoid).derivation, backward=()))
    with pytest.raises(ExplainError, match="--exercise asks for formulas"):
        list(exercise(empty, lambda prompt: ""))
