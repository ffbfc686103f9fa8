"""Formulas of one's own: how they are read, what fits, what is wrong with them, and what would be right."""

from pathlib import Path

import numpy as np
import pytest

from jaxnet.explaining import derive, notation, observe
from jaxnet.explaining.formulas import FormulaError, try_formula
from jaxnet.explaining.formulas.parse import parse
from jaxnet.explaining.formulas.text import trial_lines
from jaxnet.training.explain_target import config_subject

CONFIG = Path(__file__).parent.parent / "configs" / "two_three_two.toml"


@pytest.fixture(scope="module")
def tried():
    subject = config_subject(CONFIG)
    observed = observe(subject.net, subject.loss, subject.params, subject.xs[0], subject.ys[0])
    derivations = {weights: derive(observed, notation(weights=weights)) for weights in ("out-in", "in-out")}

    def of(text, weights="out-in"):
        return try_formula(text, observed, derivations[weights], notation(weights=weights))

    return of


@pytest.mark.parametrize(
    ("text", "quantity"),
    [
        ("W2 @ x + b2", "z2"),
        ("relu(W2 @ x + b2)", "a2"),
        ("s(z3)", "a3"),
        ("½ * sum((a3-y)**2)", "C"),
        ("(a3-y)*a3*(1-a3)", "delta3"),
        ("(a3-y) * s'(z3)", "delta3"),
        ("delta3 @ a2.T", "dW3"),
        ("outer(delta3, a2)", "dW3"),
        ("W3.T @ delta3", "da2"),
        ("(delta3.T @ W3).T", "da2"),
        ("W³ᵀ @ δ³ ⊙ relu′(z²)", "delta2"),
        ("diag(relu'(z2)) @ W3.T @ diag(s'(z3)) @ (a3 − y)", "delta2"),
        ("W3.T @ ((a3-y)*a3*(1-a3)) * s'(z2) @ x.T", "dW2"),
        ("-(-∇W2)", "dW2"),
        ("∂C/∂a2 * 1", "da2"),
        ("-2 * -delta3 ** 2 / 2 / delta3", "delta3"),
    ],
)
def test_right_formulas(tried, text, quantity):
    trial = tried(text)
    assert (trial.verdict, trial.quantity) == ("right", quantity)
    assert trial.words[0].startswith("right: this is ")


def test_rows_where_w_is_in_out(tried):
    assert tried("delta3 @ W3.T * s'(z2)", "in-out").quantity == "delta2"
    assert tried("W3.T @ delta3", "in-out").verdict == "misfit"


def test_the_four_shapes(tried):
    trial = tried("2×1 · 2×3 · 3×1 · 1×2")
    assert (trial.fault.left, trial.fault.right) == ((2, 1), (2, 3))
    assert trial.fault.why == "1 column on the left, 2 rows on the right"
    assert trial.repair.formula == "W3.T @ delta3 * relu'(z2) @ x.T"
    assert trial.repair.quantity == "dW2"
    lines = trial_lines(trial, 4, 80)
    assert lines[:2] == ["  2×1 · 2×3 · 3×1 · 1×2", "  2×1   2×3   3×1   1×2"]
    assert lines[3] == "first misfit: 2×1 @ 2×3 does not fit: 1 column on the left, 2 rows on the right"
    assert "  read as delta3, W3, relu'(z2), x.T" in lines


def test_shapes_that_fit_say_no_more_than_that(tried):
    trial = tried("3x2 @ 2x1")
    assert (trial.verdict, trial.shape) == ("shapes", (3, 1))
    assert "whether the value is right they do not say" in trial.words[0]


@pytest.mark.parametrize(
    ("text", "repaired", "quantity"),
    [
        ("(a3-y)*a3*(1-a3) @ W3 @ s'(z2) @ x.T", "W3.T @ ((a3-y) * a3 * (1-a3)) * s'(z2) @ x.T", "dW2"),
        ("delta3 @ a2", "delta3 @ a2.T", "dW3"),
        ("W3 @ delta3", "W3.T @ delta3", "da2"),
        ("W3.T @ delta3 @ relu'(z2)", "W3.T @ delta3 * relu'(z2)", "delta2"),
        ("x @ delta2.T", "delta2 @ x.T", "dW2"),
    ],
)
def test_repairs_of_order_and_transposes(tried, text, repaired, quantity):
    trial = tried(text)
    assert trial.verdict in ("misfit", "value")
    assert (trial.repair.formula, trial.repair.quantity) == (repaired, quantity)
    assert tried(repaired).quantity == quantity


@pytest.mark.parametrize(
    ("text", "quantity", "words"),
    [
        ("pinv(W3) @ delta3", "da2", "compared with ∂C/∂a², entry (1,1) is −3.5743 for −.0407, cosine .035"),
        ("2 * delta3", "delta3", "2.0000 times δ³"),
        ("y - a3", "", ""),
        ("delta2 * 0 + delta2 * W2", "", ""),
        ("x @ delta2.T", "dW2", "∇W² transposed, 2×3 for 3×2"),
        ("(a3-y)*relu'(z3)", "delta3", "compared with δ³"),
        ("exp(1000 * W3 ** 0)", "dW3", "not finite"),
    ],
)
def test_where_the_value_is_wrong(tried, text, quantity, words):
    trial = tried(text)
    assert trial.verdict in ("value", "misfit")
    if quantity:
        assert trial.quantity == quantity
        assert words in trial.words[0]


def test_what_stood_in_the_place_of_the_transpose(tried):
    assert tried("pinv(W3) @ delta3").repair.formula == "W3.T @ delta3"
    assert tried("(a3-y)*relu'(z3)").repair.formula == "(a3-y) * sigmoid'(z3)"


@pytest.mark.parametrize(
    ("text", "at", "words"),
    [
        ("W4 @ x", 0, "the network has no W4: did you mean W3, W2"),
        ("W3 delta3", 3, "between two factors stands @"),
        ("W3 @ (x", 7, "a bracket is open"),
        ("W3 @ ", 5, "ends where a factor should follow"),
        ("a3 ; y", 3, "has no meaning"),
        ("a3 - * y", 5, "stands where a factor should"),
        ("a3) * y", 2, "where the formula should end"),
        ("s''(z2)", 0, "no second one"),
        ("s(x)", 0, "name one"),
        ("tan(x)", 0, "there is no function tan"),
        ("outer(x)", 0, "takes 2, got 1"),
        ("relu * x", 0, "relu is a function"),
        ("inv(W3)", 0, "inv of 2×3"),
        ("__import__", 0, "has no meaning"),
        ("(" * 70 + "x" + ")" * 70, 60, "60 deep"),
    ],
)
def test_the_caret_stands_at_the_place(tried, text, at, words):
    with pytest.raises(FormulaError) as error:
        tried(text)
    message = str(error.value).splitlines()
    assert words in message[0]
    assert message[1] == f"  {text}"
    assert message[2].index("^") == 2 + at


@pytest.mark.parametrize("text", ["", "   ", "x" * 2001])
def test_nothing_and_too_much(text):
    with pytest.raises(ValueError, match="formula"):
        parse(text)


def test_misfits_other_than_of_products(tried):
    assert tried("z2 + z3").fault.why == "a sum needs equal shapes"
    assert tried("W3 @ 2").fault.why == "@ takes matrices; numbers are multiplied by *"
    assert tried("relu'(z2) * W3").fault.why == "entry by entry (*) needs equal shapes"


def test_labels_do_not_overlap(tried):
    trial = tried("(a3-y)*a3*(1-a3) @ W3 @ s'(z2) @ x.T")
    _, *labels = trial_lines(trial, 4, 100)[:3]
    assert labels == ["  2×1   2×1   2×1   2×3    3×1     1×2", "     2×1"]
    assert np.all([len(each.shape) == 2 for each in trial.operands])
