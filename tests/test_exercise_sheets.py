"""Exercise sheets: the numbers are the network's, every sheet has its own, and the answers are right."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from jaxnet import cli
from jaxnet.explaining.expressions import written
from jaxnet.explaining.notation import ExplainError, notation
from jaxnet.explaining.observe import observe
from jaxnet.explaining.sheets import sheets
from jaxnet.training.explain_target import config_subject

CONFIG = Path(__file__).parent.parent / "configs" / "two_three_two.toml"


@pytest.fixture(scope="module")
def observed():
    subject = config_subject(CONFIG)
    return observe(subject.net, subject.loss, subject.params, subject.xs[0], subject.ys[0])


@pytest.fixture(scope="module")
def made(observed):
    return sheets(observed, notation(), 2, 5)


def given(sheet):
    return {written(symbol): np.asarray(values, np.float64) for symbol, values in sheet.given}


def answers(task):
    parts = list(task.answer)
    return {written(parts[i]): np.asarray(parts[i + 2]) for i in range(0, len(parts) - 2, 4)}


def test_the_answers_are_those_of_the_numbers_given(made):
    for sheet in made:
        numbers, (forward, shapes, line, backward, choice) = given(sheet), sheet.tasks
        z2 = numbers["W²"] @ numbers["x"] + numbers["b²"]
        a2 = np.maximum(z2, 0)
        a3 = 1 / (1 + np.exp(-(numbers["W³"] @ a2 + numbers["b³"])))
        delta3 = (a3 - numbers["y"]) * a3 * (1 - a3)
        delta2 = numbers["W³"].T @ delta3 * (z2 > 0)
        found = answers(forward) | answers(backward)
        for symbol, value in {"z²": z2, "a³": a3, "δ³": delta3, "δ²": delta2,
                              "∇W²": np.outer(delta2, numbers["x"])}.items():  # fmt: skip
            np.testing.assert_allclose(found[symbol], value, rtol=1e-5, atol=1e-6)
        letter = choice.answer[0]
        chosen = choice.question[choice.question.index(f"   {letter}: ") + 1]
        assert written(chosen) == "W³ᵀδ³"
        assert len(shapes.answer) == 16
        assert written(line.answer[0]) == written(line.question[1])


def test_every_sheet_has_numbers_of_its_own_and_a_seed_brings_them_back(observed, made):
    first, second = (given(sheet) for sheet in made)
    assert not np.array_equal(first["W²"], second["W²"])
    [again] = sheets(observed, notation(), 1, 6)
    assert np.array_equal(given(again)["W²"], second["W²"])


def test_a_network_that_nobody_computes_by_hand_is_refused():
    import jax
    import jax.numpy as jnp

    import jaxnet as j

    wide = j.serial(j.dense(9), j.relu, j.dense(2))
    params = j.initialize(wide, j.quadratic, jax.random.key(0), jnp.ones(2))
    with pytest.raises(ExplainError, match="at most 4 units"):
        sheets(observe(wide, j.quadratic, params, jnp.ones(2), jnp.ones(2)), notation(), 1, 0)


def run(*arguments):
    return CliRunner().invoke(cli.app, ["explain", str(CONFIG), *map(str, arguments)], prog_name="jaxnet")


def test_as_a_page_and_as_latex(tmp_path):
    page = tmp_path / "sheets.html"
    assert run("--sheet", 2, "--seed", 5, "--html", page).exit_code == 0
    text = page.read_text()
    assert text.count("<section>") == 4
    HTMLParser().feed(text)
    latex = run("--sheet", 1, "--seed", 5, "--latex").stdout
    assert latex.count("\\begin{enumerate}") == latex.count("\\end{enumerate}") == 2
    assert latex.count("{") == latex.count("}")
    assert "&amp;" not in latex
    refused = run("--sheet", 1)
    assert refused.exit_code == 2
    assert "--html FILE, or printed as LaTeX, --latex" in refused.output
