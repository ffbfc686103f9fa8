"""`jaxnet explain`: what it prints of configs, runs, names and objects, and how it ends when the input is bad."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import jaxnet as j
from jaxnet import cli
from jaxnet.explaining.command import bold, walk
from jaxnet.training import loop
from jaxnet.training.config import load_config

CONFIG = Path(__file__).parent.parent / "configs" / "two_three_two.toml"
HERE = "tests.test_explain_cli"


def explained(*arguments, **env):
    return CliRunner().invoke(
        cli.app, ["explain", *map(str, arguments)], prog_name="jaxnet", env={"COLUMNS": "110"} | env
    )


def own():
    """A network of one's own."""
    return (j.serial(j.dense(3), j.tanh, j.dense(2)), j.softmax_cross_entropy), "float32[4,5], int32[4]<2"


def test_a_config():
    result = explained(CONFIG, "--batch", 2, "--more")
    assert result.exit_code == 0, result.output
    assert "∂C/∂a² = W³ᵀδ³           3×2·2 → 3   (−.0407 −.1768  .1361)" in result.stdout
    assert "1/m Σ δaᵀ = 1/m dZ Aᵀ   2×2·2×3 → 2×3" in result.stdout
    assert "δ² from C" in result.stdout
    assert "∂z/∂W is 2×2×3" in result.stdout


def test_a_batch_of_rows():
    """Examples as rows: dW = Aᵀ dZ and dA = dZ Wᵀ, with the sizes of rows; 1/m is said to stand where it does."""
    text = " ".join(explained(CONFIG, "--batch", 4, "--weights", "in-out").stdout.split())
    assert "1/m Σ aᵀδ = 1/m Aᵀ dZ 3×4·4×2 → 3×2" in text
    assert "dA = dZ Wᵀ 4×2·2×3 → 4×3, of all examples at once db = 1/m Σ of the rows of dZ" in text
    assert "Each δ here is of Cₓ; 1/m stands once, before the sum" in text
    columns = " ".join(explained(CONFIG, "--batch", 4).stdout.split())
    assert "1/m Σ δaᵀ = 1/m dZ Aᵀ 2×4·4×3 → 2×3" in columns
    assert "dA = Wᵀ dZ 3×2·2×4 → 3×4" in columns


def test_a_small_error_keeps_its_power_of_ten():
    """Every sum and product that is shown holds in its own figures."""
    text = explained(CONFIG, "model.2.dense.biases=[6.0,-6.0]").stdout
    assert "= −.635 − .122 = −.758, all × 10⁻⁵" in text
    assert "that made its z (δ and products × 10⁻⁵):" in text
    assert "−3.177 × ( .2  .9 −.7) = ( −.635 −2.859  2.224)" in text
    assert ".0000" not in text.split("count paths")[1].split("not W")[0]


def test_a_layer_alone_says_what_x_and_y_are():
    text = " ".join(explained("layer_norm", "--seed", 3).stdout.split())
    assert "x, y and the parameters are drawn at random, seed 3; y is a target for what the layer gives" in text


def test_steps_questions_table_and_formula():
    steps = explained(CONFIG, "--step")
    assert "12 of 12   backward   layer 1" in steps.stdout
    assert '--try "W3.T @ delta3"' in steps.stdout
    walked = explained(CONFIG, "--walk").stdout
    assert "1 of 10   What is asked" in walked
    assert "C − .0000407. The sum says C − .0000407." in walked
    assert "Why is there no sum in ∇W³?" in explained(CONFIG, "--questions").stdout
    table = explained(CONFIG, "--table", "--notation", "ng", "--weights", "in-out").stdout
    assert "dW[2] = a[1]ᵀdz[2]" in table
    assert "j moves" in table
    tried = explained(CONFIG, "--try", "delta3 @ a2")
    assert tried.exit_code == 0
    assert "repair: delta3 @ a2.T = ∇W³" in tried.stdout


def test_shapes_without_numbers():
    lines = explained(CONFIG, "--shapes").stdout.splitlines()
    assert "  z² = W²x + b²            3×2·2 → 3" in lines
    assert "  ∇W² = δ²xᵀ               3·2 → 3×2" in lines
    assert not any("." in line for line in lines)


def test_formulas_one_after_the_other():
    """`--try -` reads them from standard input; one that cannot be read does not end it."""
    given = "W3.T @ delta3\nW4 @ x\ndelta3 @ a2.T\n"
    result = CliRunner().invoke(cli.app, ["explain", str(CONFIG), "--try", "-"], input=given, prog_name="jaxnet")
    assert result.exit_code == 0, result.output
    verdicts = [line for line in result.stdout.splitlines() if line.startswith(("right", "the network"))]
    assert [line.split(":")[0] for line in verdicts] == ["right", "the network has no W4", "right"]


@pytest.mark.parametrize("words", [["explain", str(CONFIG), "--exercise"], ["exercise", str(CONFIG)]])
def test_the_exercise_grades_answers_and_q_ends_it(words):
    given = "C\nB\n" + 6 * "\n" + "(a3-y)*s'(z3)\ndelta3 @ a2\ndelta3 @ a2.T\nq\n"
    result = CliRunner().invoke(cli.app, words, input=given, prog_name="jaxnet")
    assert result.exit_code == 0, result.output
    assert "A weight has one path" in result.stdout
    assert "2 of 8   ∇W⁽³⁾ = ?   2×3" in result.stdout
    assert result.stdout.count("Right: BP") == 2
    assert result.stdout.rstrip().endswith("1 of 2 right at once")
    ended = CliRunner().invoke(cli.app, words, input="q\n", prog_name="jaxnet")
    assert ended.stdout.rstrip().endswith("0 of 0 right at once")
    assert "lines of the backward pass" not in ended.stdout


def test_json_holds_what_is_printed(tmp_path):
    found = json.loads(explained(CONFIG, "--json", "-").stdout)
    assert found["type"] == "Derivation"
    lines = {line["key"]: line for line in found["backward"]}
    np.testing.assert_allclose(lines["da2"]["value"], [-0.0407, -0.1768, 0.1361], atol=5e-5)
    assert explained(CONFIG, "--json", tmp_path / "d.json").exit_code == 0
    assert json.loads((tmp_path / "d.json").read_text()) == found


def test_another_example_seed_layer_and_digits():
    text = explained(CONFIG, "--example", 3, "--layer", 2, "--digits", 2).stdout
    assert "Why W²ᵀ?" in text
    assert "x = (−2.3, 1.72)" in text
    assert "(−.04 −.18  .14)" not in text
    random = [explained("dense", "--seed", seed).stdout for seed in (1, 2)]
    assert random[0] != random[1]


def test_an_object_of_ones_own():
    result = explained(f"{HERE}:own", "--example", 2, "--notation", "cs229")
    assert result.exit_code == 0, result.output
    assert "5 → 3 tanh → 2" in result.stdout
    assert "δ⁽³⁾ = softmax(z⁽³⁾) − y" in result.stdout


def test_a_run_shows_how_it_moved(tmp_path):
    config = load_config(CONFIG, ("train.epochs=2", "monitor.delta_norms=true"))
    loop.train(config, run_dir=tmp_path / "run", overrides=())
    result = explained(tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "parameters of step 40, after epoch 2" in result.stdout
    assert "W3 moved" in result.stdout
    assert "mean ‖δ‖ 2" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines() if line.startswith("     0      0") or "  40  " in line]
    assert rows[0][2] == ".4170"
    assert explained(tmp_path / "run", "--seed", 1).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such.toml"], "there is no config no-such.toml"),
        (["rellu"], "Did you mean relu"),
        (["my_file.py"], "there is no file my_file.py"),
        (["no.such.module:f"], "cannot be imported"),
        (["jax.numpy:dot", "--inputs", "float32[2,3]"], "cannot be run at these inputs"),
        (["jax.numpy:sin", "--inputs", "float32[3]"], "gives one number"),
        (["dense", "train.epochs=1"], "only a config takes KEY=VALUE"),
        ([CONFIG, "--example", "200"], "--example must be from 0 to 199"),
        ([CONFIG, "--example", "-1"], "--example must be from 0"),
        ([CONFIG, "--batch", "0"], "--batch must be from 1 to 200"),
        ([CONFIG, "--layer", "9"], "one of 2, 3; there is no layer 9"),
        ([CONFIG, "--digits", "0"], "--digits must be from 1 to 12"),
        ([CONFIG, "--notation", "latin"], "nielsen, ng, cs229"),
        ([CONFIG, "--numbering", "3"], "as 0 or as 1"),
        ([CONFIG, "--weights", "flat"], "out-in or in-out"),
        ([CONFIG, "--inputs", "float32[3]"], "leave --inputs out"),
        ([CONFIG, "--try", "W3 @@ x"], "^"),
        ([CONFIG, "--json", "/no/such/folder/d.json"], "cannot be written"),
        ([CONFIG, "model.0.dense.units=4"], "jaxnet: "),
    ],
)
def test_nonsense_is_status_2_and_no_traceback(arguments, words):
    result = explained(*arguments)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert "Traceback" not in result.output


def test_walking_waits_on_a_terminal_alone(capsys, monkeypatch):
    walk(["one", "two"])
    assert capsys.readouterr().out == "one\n\ntwo\n"
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    answers = iter(["", "q"])
    walk(["one", "two", "three"], lambda prompt: next(answers))
    assert capsys.readouterr().out == "one\ntwo\n"


def test_headings_are_bold():
    assert bold("ORDER   12") == "\033[1mORDER\033[0m   12"
    assert bold("  z² = W²x") == "  z² = W²x"
