"""The exercise: right answers pass, and common mistakes of dense networks are named."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxnet
from jaxnet.explaining import derive, notation, observe
from jaxnet.explaining.exercise import asked_lines, exercise, graded, questions
from jaxnet.explaining.expressions import formula
from jaxnet.explaining.formulas import tried_on, try_formula
from jaxnet.explaining.notation import ExplainError
from jaxnet.layers import dense, gelu, leaky_relu, relu, sigmoid, silu, softmax, tanh
from jaxnet.losses import binary_cross_entropy, mean_squared_error, quadratic, softmax_cross_entropy


@cache
def tried(activation, last=None, loss=quadratic):
    """A network of square layers, where a wrong transpose fits."""
    net = jaxnet.serial(dense(3), activation, dense(3), *((last,) if last else ()))
    params = jaxnet.initialize(net, loss, jax.random.key(0), np.zeros(3, np.float32))
    x = np.array([0.3, -0.7, 1.1], np.float32)
    y = np.asarray(0) if loss is softmax_cross_entropy else np.array([0.2, 0.9, 0.4], np.float32)
    observed = observe(net, loss, params, x, y)
    return tried_on(observed, derive(observed), notation())


def answered(*answers, activation=sigmoid):
    """All that the exercise says to these answers."""
    given = iter(answers)

    def ask(prompt):
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None

    return list(exercise(asked_lines(tried(activation, activation)), ask=ask))


def test_an_answer_may_say_what_it_is():
    line = questions(tried(sigmoid, sigmoid))[0]
    said = answered(f"{line.key} = {formula(line.right)}")
    assert said[2].strip().startswith("Right")
    other = answered(f"dW2 = {formula(line.right)}")
    assert f"this line is {line.key}, not dW2" in other[2]


def test_the_lines_themselves_are_right():
    lines = questions(tried(sigmoid, sigmoid))
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


PLAIN = (sigmoid, sigmoid)
MISTAKES = {
    "W for its transpose": (PLAIN, "da2", "W3 @ delta3", "W3 is transposed"),
    "the inverse": (PLAIN, "da2", "inv(W3) @ delta3", "W3.T stands where inv(W3) stood"),
    "the sign of W": (PLAIN, "da2", "sign(W3).T @ delta3", "W3.T stands where sign(W3).T stood"),
    "another matrix": (PLAIN, "da2", "[[1, 2, 3], [2, 1, 0], [0, 1, 1]].T @ delta3", "W3.T stands where [[1, 2, 3]"),
    "the slope at a": (PLAIN, "delta2", "W3.T @ delta3 * s'(a2)", "sigmoid'(z2) stands where s'(a2) stood"),
    "the slope left out": (PLAIN, "delta2", "W3.T @ delta3", "sigmoid'(z2) was missing"),
    "half of the slope": (PLAIN, "delta2", "W3.T @ delta3 * a2", "sigmoid'(z2) stands where a2 stood"),
    "z for a": (PLAIN, "dW3", "delta3 @ z2.T", "a2.T stands where z2.T stood"),
    "the gradient transposed": (PLAIN, "dW3", "a2 @ delta3.T", "delta3 goes before what it multiplies"),
    "the sum for the mean": (PLAIN, "dW3", "dZ3 @ A2.T", "of the summed cost: 1/m of it is that of the mean"),
    "the mean twice": (PLAIN, "db3", "mean(dZ3, axis=1) / m", "the value is .2500 times ∇b³"),
    "the first example alone": (PLAIN, "db3", "dZ3[:, 0]", "it is that of example 1 alone"),
    "no gradient of the bias": (PLAIN, "db3", "0 * delta3", "it is zero"),
    "cross-entropy without the class": ((sigmoid, None, softmax_cross_entropy), "delta3", "softmax(z3)",
                                        "y is to be subtracted"),
    "the sign": (PLAIN, "delta3", "(y-a3) * s'(z3)", "the sign is turned: it is −δ³"),
    "a slope too much": ((sigmoid, sigmoid, binary_cross_entropy), "delta3", "(a3-y) * s'(z3)", "s'(z3) should not be"),
    "the diagonal of softmax": ((sigmoid, softmax), "delta3", "a3*(1-a3)*(a3-y)", "every a depends on every z"),
    "the error left out": (PLAIN, "delta2", "s'(z2)", "it is to be multiplied by da2"),
    "the slope of the cost left out": (PLAIN, "delta3", "a3*(1-a3)", "it is to be multiplied by da3"),
    "a regulariser": (PLAIN, "dW3", "delta3 @ a2.T + .1*W3", ".1000 times W3 is to be subtracted"),
    "a factor of the cost": ((sigmoid, sigmoid, mean_squared_error), "delta3", "(a3-y) * s'(z3)", "1.5000 times δ³"),
    "a row of zeros": (PLAIN, "dW3", "(delta3*[0,1,1]) @ a2.T", "the factor [0,1,1] should not be there"),
    "an entry of zero": (PLAIN, "db3", "[0,1,1] * delta3", "row 1 is zero"),
    "one percent too large": (PLAIN, "dW2", "1.01 * delta2 @ x.T", "1.0100 times ∇W²"),
    "no error for the input": (PLAIN, "dx", "0 * x", "it is zero"),
    "tanh without its square": ((tanh, tanh), "delta2", "da2 * (1-a2)", "tanh'(z2) stands where (1-a2)"),
    "gelu without its bend": ((gelu, sigmoid), "delta2", "da2 * (gelu(z2)/z2)", "gelu'(z2) stands where (gelu(z2)/z2)"),
    "relu by the error": ((relu, sigmoid), "delta2", "da2 * (da2>0)", "relu'(z2) stands where (da2>0) stood"),
    "the leak left out": ((leaky_relu(slope=0.1), sigmoid), "delta2", "da2 * (z2>0)", "g'(z2) stands where (z2>0)"),
    "half of silu's slope": ((silu, sigmoid), "delta2", "da2 * sigmoid(z2)", "silu'(z2) stands where sigmoid(z2)"),
}  # fmt: skip
"""The mistakes of `docs/read.md`, each entered as an answer: network, line, answer, and what names the mistake."""

OTHERS = {
    "the slope of another function": ((tanh, tanh), "delta2", "W3.T @ delta3 * a2*(1-a2)",
                                      "tanh'(z2) stands where a2 * (1-a2)"),
    "a layer off": (PLAIN, "dW2", "delta2 @ a2.T", "x.T stands where a2.T stood"),
    "twice the error": (PLAIN, "delta3", "2 * (a3-y) * s'(z3)", "2.0000 times δ³"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES | OTHERS)
def test_mistakes_are_named(name):
    network, key, answer, said = (MISTAKES | OTHERS)[name]
    subject = tried(*network)
    if "Z" in answer:  # of a batch, which the exercise does not ask about
        assert said in try_formula(f"{key} = {answer}", subject).words[0]
        return
    lines = questions(subject)
    first = next(i for i, line in enumerate(lines) if line.key == key)
    hints = [graded(answer, lines[first:], subject, attempt) for attempt in range(3)]
    assert not any(right for _, right in hints)
    assert any(said in hint for hint, _ in hints), hints


def test_the_documentation_counts_them():
    text = (Path(__file__).parent.parent / "docs" / "read.md").read_text()
    assert f"{len(MISTAKES)} common mistakes of dense networks" in text


def test_a_network_without_formulas_has_no_exercise():
    empty = replace(tried(sigmoid, sigmoid), derivation=replace(tried(sigmoid, sigmoid).derivation, backward=()))
    with pytest.raises(ExplainError, match="--exercise asks for formulas"):
        asked_lines(empty)
