"""The report as text, JSON and page; the command and its status; the pytest plugin."""

import itertools
import json
import re
from dataclasses import replace

import pytest
from markupsafe import escape

from jaxnet.checking import check
from jaxnet.checking.command import run
from jaxnet.checking.compare import Leaf
from jaxnet.checking.patches import Repair
from jaxnet.checking.report import as_matrix, page, remarks, unknown
from tests.checking.rules import layer_norm, layer_norm_reference, shapes

pytest_plugins = ["pytester"]
QUICK = {"seeds": 1, "also": False, "shapes": False, "diagnose": False, "precise": False}


def target():
    """What a user's module may hold: a function without arguments that returns (rule, args)."""
    return layer_norm("projection"), (shapes(),), QUICK


def right_target():
    return layer_norm(), shapes(), QUICK


@pytest.fixture(scope="module")
def wrong():
    return check(layer_norm("last block"), shapes(), **QUICK)


def test_the_table_names_leaf_entry_and_pattern(wrong):
    text = str(wrong)
    assert text.splitlines()[0].startswith("layer_norm: backward WRONG")
    row = r"∂x +\d\.\de-01 +\de-0\d +\.\d+ +\[\d,\d+\] +0 +-?[\d.]+ +WRONG  columns 8 on: the last block"
    assert re.search(row, text), text
    assert re.search(r"∂gamma .* ok", text)
    assert "cause" in text


def test_a_repair_is_printed_with_its_line_and_patch(wrong):
    patch = "- dx = r * g\n+ dx = r * (g - g.mean(-1))"
    repair = Repair("/there/norm.py", 12, "g", "g - g.mean(-1)", patch, "a term is missing in g: g.mean(-1)", ("+ or",))
    report = replace(wrong, repair=repair)
    lines = str(report).splitlines()
    assert report.cause == repair.cause
    assert "cause   a term is missing in g: g.mean(-1)" in lines
    assert "line    norm.py:12" in lines
    assert lines[lines.index("patch   - dx = r * g") + 1] == "        + dx = r * (g - g.mean(-1))"
    assert "or      + or" in lines
    assert json.loads(report.to_json())["repair"]["line"] == 12
    assert json.loads(report.to_json())["proof"] == report.proof
    html = page([report])
    assert "norm.py:12" in html
    assert report.proof.startswith("exact: ")
    assert escape(report.proof) in html
    guess = replace(report, repair=replace(repair, patch="", equal=()))
    assert guess.proof.startswith("a guess: ")
    assert f"        {guess.proof}" in str(guess).splitlines()
    assert escape(guess.proof) in page([guess])


def test_json(wrong):
    made = json.loads(wrong.to_json())
    assert made["ok"] is False
    assert made["name"] == "layer_norm"
    leaf = next(each for each in made["leaves"] if each["path"] == "∂x")
    assert leaf["verdict"] == "WRONG"
    assert leaf["error"] > 0.5
    assert leaf["index"][1] >= 8
    nan = json.loads(check(layer_norm("nan"), shapes(), **QUICK).to_json())
    assert next(each for each in nan["leaves"] if each["path"] == "∂x")["error"] == "inf"


def test_the_page_stands_alone(wrong):
    html = page([wrong])
    assert html.count("data:image/png;base64,") == 9
    assert "<script" not in html
    assert "http" not in html.replace("http-equiv", "")
    assert "columns 8 on" in html
    assert "axis 0: 0 to 3" in html
    assert "axis 1: 0 to " in html
    for heading, words in itertools.chain(*remarks(wrong)):
        assert f">{heading}<" in html
        assert escape(words) in html
    assert "prefers-color-scheme" in html


def test_a_large_map_keeps_the_largest_entry_of_each_tile():
    import numpy as np

    array = np.zeros((3, 1000, 700))
    array[2, 999, 650] = -7.0
    small = as_matrix(array)
    assert max(small.shape) <= 256
    assert small.min() == -7.0


def test_many_leaves_are_counted():
    report = check(layer_norm(), shapes(), **QUICK)
    many = tuple(replace(report.leaves[1], path=f"∂leaf {i}") for i in range(100))
    text = str(replace(report, leaves=many))
    assert "and 60 more leaves, 0 wrong" in text
    assert all(isinstance(leaf, Leaf) for leaf in many)


def test_wrong_leaves_without_a_cause_are_one_remark():
    leaves = check(layer_norm(), shapes(), **QUICK).leaves
    wrong = [replace(leaf, verdict="WRONG", cosine=0.5) for leaf in leaves]
    assert unknown([]) == []
    assert unknown(wrong[:1])[0].startswith(f"not known: {leaves[0].path} has cosine 0.500")
    assert unknown(wrong[:4])[0].startswith(f"not known for {leaves[0].path}, {leaves[1].path} and 2 more: the table")


def test_the_status_says_how_it_went(tmp_path, capsys):
    here = "tests.checking.test_check_command"
    assert run([f"{here}:right_target"], seeds=1) == 0
    assert "right_target: backward ok" in capsys.readouterr().out
    files = {"json_file": tmp_path / "r.json", "html_file": tmp_path / "r.html"}
    assert run([f"{here}:target"], **files) == 1
    made = json.loads(files["json_file"].read_text())
    assert made["ok"] is False
    assert made["reports"][0]["name"] == "target"
    assert "<html" in files["html_file"].read_text()
    assert "WRONG" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((["reluu"],), "Did you mean"),
        (([],), "name what to check"),
        ((["tests.checking.rules:layer_nrm"],), "did you mean layer_norm"),
        ((["tests.checking.rules:layer_norm_reference"],), "takes arguments x, "),
        ((["no.such.module:f"],), "cannot be imported"),
        ((["missing.py:f"],), "no file missing.py"),
    ],
)
def test_what_cannot_be_checked_is_status_2_and_no_traceback(arguments, words, capsys):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_inputs_and_a_reference_on_the_command_line(tmp_path, capsys):
    module = tmp_path / "mine.py"
    module.write_text("from tests.checking.rules import layer_norm, layer_norm_reference\nrule = layer_norm('sign')\n")
    found = run([f"{module}:rule"], inputs=shapes(), reference=f"{module}:layer_norm_reference", seeds=1)
    assert found == 1
    printed = capsys.readouterr().out
    assert "reference `layer_norm_reference`" in printed
    typed = f'"{module}:rule" --inputs "{shapes()}" --reference "{module}:layer_norm_reference" --seed 0'
    assert f"jaxnet check {typed}" in printed


def test_json_to_the_screen_is_nothing_but_json(capsys):
    assert run(["relu"], json_file="-", seeds=1, dtype="bfloat16") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["reports"][0]["at"].startswith("bfloat16")


def test_the_plugin_gives_the_table_and_takes_the_seed(pytester):
    pytester.makepyfile(
        """
        import jax, jax.numpy as jnp

        @jax.custom_vjp
        def f(x):
            return jnp.sin(x)
        f.defvjp(lambda x: (f(x), x), lambda x, g: (g * jnp.sin(x),))

        def test_f(assert_backward):
            assert_backward(f, "float32[3]", also=False, shapes=False, diagnose=False)
        """
    )
    options = ["-p", "jaxnet.checking.pytest_plugin", "--backprop-seed", "7", "--backprop-seeds", "1"]
    result = pytester.runpytest_inprocess(*options)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*f: backward WRONG*seed 7*", "*to repeat*--backprop-seed 7*"])


def test_the_reference_of_these_tests_is_the_rules_primal():
    assert check(layer_norm(), shapes(), reference=layer_norm_reference, **QUICK).ok
