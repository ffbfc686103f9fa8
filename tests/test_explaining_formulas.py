"""Formulas of one's own: how they are read, what fits, what is wrong with them, and what would be right."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxnet
from jaxnet.explaining import derive, notation, observe
from jaxnet.explaining.formulas import FormulaError, trial_lines, tried_on, try_formula
from jaxnet.explaining.formulas.parse import parse
from jaxnet.explaining.notation import ExplainError
from jaxnet.training.explain_target import config_subject

LISTED = json.loads((Path(__file__).parent / "formulas.json").read_text(encoding="utf-8"))
FORMULAS = [[*each, *("", "", "", "out-in", 1)[len(each) :]] for each in LISTED]
CONFIG = Path(__file__).parent.parent / "configs" / "two_three_two.toml"


@pytest.fixture(scope="module")
def tried():
    return trying(config_subject(CONFIG, batch=4))


def trying(subject, example=0):
    """What `--try` answers for a subject, by formula, notation and how W lies."""
    observed = observe(subject.net, subject.loss, subject.params, subject.xs[example], subject.ys[example])

    @cache
    def derived(numbering, weights, batch):
        symbols = notation(numbering=numbering, weights=weights)
        return tried_on(observed, derive(observed, symbols), symbols, (subject.xs, subject.ys) if batch else None)

    def of(text, weights="out-in", numbering=1, batch=False):
        return try_formula(text, derived(numbering, weights, batch))

    return of


def test_a_turned_sign_is_named_and_mended(tried):
    trial = tried("dz3 = y - a3")
    assert trial.repair.formula == "(a3 - y) * sigmoid'(z3)"
    assert trial.repair.changes == ("the sign: a3 - y, not y - a3", "sigmoid'(z3) was missing")
    assert "the sign is turned: it is −δ³" in tried("(y - a3) * s'(z3)").words[0]


def test_an_unknown_name_is_answered_in_one_line(tried):
    with pytest.raises(FormulaError, match="and with a layer's number W, b, z, a, delta") as raised:
        tried("qqq @ x", batch=True)
    assert len(str(raised.value).splitlines()[0]) < 150


@pytest.mark.parametrize(("text", "verdict", "quantity", "weights", "numbering"), FORMULAS)
def test_every_formula_of_the_list_has_its_verdict(tried, text, verdict, quantity, weights, numbering):
    """The page's box is held to the same list."""
    if verdict == "error":
        with pytest.raises(ExplainError):
            tried(text, weights, numbering)
        return
    trial = tried(text, weights, numbering)
    assert (trial.verdict, trial.quantity if verdict == "right" else quantity) == (verdict, quantity)


@pytest.mark.parametrize(
    ("text", "weights", "quantity", "said"),
    [
        ("dZ2 @ X.T / m", "out-in", "dW2", "mean cost"),
        ("1/m * dZ2 X.T", "out-in", "dW2", "mean cost"),
        ("1/m np.sum(dZ2, axis=1, keepdims=True)", "out-in", "db2", "mean cost"),
        ("(A3-Y)*s'(Z3)", "out-in", "dZ3", "each example"),
        ("W3.T @ dZ3", "out-in", "dA2", "each example"),
        ("X.T @ dZ2 / m", "in-out", "dW2", "mean cost"),
        ("X.T @ dZ2", "in-out", "dW2", "summed cost"),
        ("dZ3 @ W3.T", "in-out", "dA2", "each example"),
        ("dZ.sum(axis=0)", "in-out", "db3", "summed cost"),
    ],
)
def test_a_batch_in_both_layouts(tried, text, weights, quantity, said):
    for batch in (False, True):
        trial = tried(text, weights, batch=batch)
        assert (trial.verdict, trial.quantity) == ("right", quantity)
        assert said in trial.words[0]
    assert trial.value.shape == tried(text, weights).value.shape


def test_the_batch_is_that_of_the_data(tried):
    """The value shown is the gradient of the mean over the examples that were given."""
    subject = config_subject(CONFIG, batch=4)
    _, grads = jaxnet.backpropagate(subject.net, subject.loss, jaxnet.total)(subject.params, subject.xs, subject.ys)
    shown = tried("dZ2 @ X.T / m", batch=True).value
    np.testing.assert_allclose(shown, grads[0]["W"], rtol=1e-4, atol=1e-7)


def test_a_number_of_another_numbering_is_answered(tried):
    for text in ("dW1", "dW1 = delta2 @ x.T"):
        with pytest.raises(FormulaError, match="so the first dW is dW2; with --numbering 0 it is dW1"):
            tried(text)


def test_a_part_of_a_batch(tried):
    assert "it is that of example 1 alone" in tried("db3 = dZ3[:, 0]", batch=True).words[0]
    with pytest.raises(FormulaError, match=r"dZ3\[:, 9\] cannot be taken"):
        tried("dZ3[:, 9]", batch=True)


def test_right_at_this_example_by_chance(tried):
    """y is 0 or 1, so y·y is y; W²x is right at x = (1, 2) alone; where all is 0, five times it is as well."""
    assert "z² at this example by chance" in tried("W2 @ [1, 2] + b2").words[0]
    assert tried("W2 @ x + b2").words[0].startswith("right: this is z²")
    squared = tried("(a3-y*y)*a3*(1-a3)")
    assert squared.verdict == "value"
    assert squared.words[0].startswith("δ³ at this example by chance, and not at others: entry")
    subject = config_subject(CONFIG, batch=2)
    dead = replace(subject, params=jax.tree.map(lambda t: t * 0 - 1, subject.params))
    five = trying(dead)("5 * W2.T @ delta2")
    assert not np.any(five.value)
    assert five.words[0] == "the shapes fit, but the value is 5.0000 times ∂C/∂x"
    assert trying(dead)("W2.T @ delta2").verdict == "right"


def test_a_row_is_right_in_row_layout(tried):
    trial = tried("delta3.T @ W3")
    assert (trial.verdict, trial.quantity) == ("right", "da2")
    assert trial.words[0] == "right in row, or numerator, layout: its transpose is ∂C/∂a²"


@pytest.mark.parametrize("text", ["inv(W3) @ delta3", "pinv(W3) @ delta3"])
def test_the_inverse_is_answered(tried, text):
    trial = tried(text)
    assert trial.verdict == "value"
    assert "An inverse would undo the forward pass" in " ".join(trial.words)
    assert trial.repair.formula == "W3.T @ delta3"


def test_a_name_before_the_equals_sign_is_what_it_must_be(tried):
    trial = tried("dW2 = delta3 @ a2.T")
    assert trial.verdict == "value"
    assert trial.words[0].endswith("not dW2")
    assert tried("dW2 = delta2 @ x").repair.formula == "delta2 @ x.T"


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
    assert [f"  {size} is read as {name}" in lines for size, name in
            (("2×1", "delta3"), ("2×3", "W3"), ("3×1", "relu'(z2)"), ("1×2", "x.T"))] == [True] * 4  # fmt: skip
    assert tried("2x1 2x3 3x1 1x2").repair.formula == trial.repair.formula


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
        ("W2.T @ W3.T @ delta3", "W2.T @ (W3.T @ delta3 * relu'(z2))", "dx"),
        ("delta2 @ a2.T", "delta2 @ x.T", "dW2"),
        ("delta3 @ x.T", "delta3 @ a2.T", "dW3"),
        ("W3.T @ delta3 * a2 * (1 - a2)", "W3.T @ delta3 * relu'(z2)", "delta2"),
        ("(a3-y)*a3*(1-a3) @ W3 @ [1,1,1].T @ a1.T", "W3.T @ ((a3-y) * a3 * (1-a3)) * relu'(z2) @ a1.T", "dW2"),
        ("delta3 a2.T / 2", None, None),
    ],
)
def test_repairs_of_order_and_transposes(tried, text, repaired, quantity):
    trial = tried(text)
    assert trial.verdict in ("misfit", "value")
    if repaired is None:
        assert trial.repair is None
        return
    assert (trial.repair.formula, trial.repair.quantity) == (repaired, quantity)
    assert tried(repaired).quantity == quantity


@pytest.mark.parametrize(
    ("text", "quantity", "words"),
    [
        ("pinv(W3) @ delta3", "da2", "compared with ∂C/∂a², entry (1,1) is −3.5743; it should be −.0407"),
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
        ("dW7 = x", 0, "the network has no dW7"),
        ("[1, x]", 0, "a list holds numbers"),
        ("a3.sum(axis=7)", 0, "sum cannot be taken like this"),
        ("x = y = a3", 6, "before = stands the name"),
        ("lambda", 0, "lambda has no meaning"),
        ("W3[:1]", 0, "this has no meaning"),
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
