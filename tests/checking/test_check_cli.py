"""`jaxnet check`: configs, names and one's own objects, and how it ends."""

import json
import time

import numpy as np
import pytest
from typer.testing import CliRunner

import jaxnet as j
from jaxnet import cli
from jaxnet.checking import command
from jaxnet.training.check_target import config_target, ranged

HERE = "tests.checking.test_check_cli"
RECIPE = 'data = "digits"\nloss = "softmax_cross_entropy"\nmodel = [{layers}]\n[train]\nbatch = 8\n'
TRAIN = 'epochs = 1\noptimizer = { name = "sgd", learning_rate = 0.1 }\n'


def checked(*arguments):
    return CliRunner().invoke(cli.app, ["check", *map(str, arguments)], prog_name="jaxnet")


def recipe(folder, layers):
    file = folder / "recipe.toml"
    file.write_text(RECIPE.format(layers=layers) + TRAIN)
    return file


def bent_tanh():
    """A layer with twice its dx."""
    right = j.tanh
    return right._replace(name="bent", backward=lambda *a: (2 * right.backward(*a)[0], right.backward(*a)[1]))


def bent():
    return bent_tanh(), "float32[3]", {"also": False, "shapes": False, "diagnose": False}


def test_a_config_is_checked_at_the_shape_of_its_data(tmp_path):
    file = recipe(tmp_path, "{ dense = 10 }")
    result = checked(file, "--seeds", 1, "--json", tmp_path / "report.json")
    assert result.exit_code == 0, result.output
    [report] = json.loads((tmp_path / "report.json").read_text())["reports"]
    assert report["at"] == "float32[5,64] int32[5]"
    assert "∂params[0]['W']" in [leaf["path"] for leaf in report["leaves"]]
    assert f'jaxnet check "{file}" --seed 0' in result.stdout


def test_a_wrong_layer_in_a_config_is_status_1(tmp_path):
    result = checked(recipe(tmp_path, f'{{ dense = 10 }}, "{HERE}:bent_tanh"'), "--seeds", 1)
    assert result.exit_code == 1
    assert "layer 2 of 2 › bent" in result.stdout


def test_targets_stay_in_the_range_of_the_data(tmp_path):
    numbers = np.linspace(-1, 1, 120, dtype=np.float32).reshape(40, 3)
    np.savez(tmp_path / "own.npz", x=numbers, y=np.arange(40)[:, None] / 40)
    file = tmp_path / "own.toml"
    data = f'data = {{ name = "{tmp_path}/own.npz", task = "regression", split = [40, 0, 0] }}\nprecision = "float64"\n'
    file.write_text(f'{data}loss = "quadratic"\nmodel = [{{ dense = 1 }}]\n[train]\nbatch = 8\n{TRAIN}')
    assert config_target(file).args == ("float64[5,3], float64[5,1]>0<0.975",)
    [other] = config_target(file, inputs="float32[2,3], float32[2,1]", dtype="bfloat16").args
    assert other == "bfloat16[2,3], bfloat16[2,1]"


def test_tokens_stay_in_the_range_of_the_data():
    assert ranged(np.array([[3, 9]], np.int32), "float32") == "int32[5,2]>2<10"


def test_a_name_and_an_object():
    result = checked("identity", f"{HERE}:bent", "--seeds", 1)
    assert result.exit_code == 1
    assert "identity: backward ok" in result.stdout
    assert "bent: backward WRONG" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name what to check"),
        (["no-such.toml"], "there is no config no-such.toml"),
        (["rellu"], "Did you mean relu"),
        (["no.such.module:f"], "cannot be imported"),
        (["identity", "--dtype", "floaty"], "inputs are dtypes with shapes"),
        (["identity", "--reference", "nothing"], "a reference is given as module:function"),
        (["jax.numpy:dot", "--inputs", "float32[2,3], float32[5]"], "it raises TypeError"),
        (["identity", "--json", "/no/such/folder/r.json", "--seeds", "1"], "cannot be written"),
        (["identity", "--seeds", "0"], "--seeds"),
    ],
)
def test_nonsense_is_status_2_and_no_traceback(arguments, words):
    result = checked(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.output


def test_a_config_that_could_not_be_trained_is_status_2(tmp_path):
    result = checked(recipe(tmp_path, '"no_such_layer", { dense = 10 }'))
    assert result.exit_code == 2
    assert result.stderr.startswith("jaxnet: ")
    assert "no_such_layer" in result.stderr


OWN = """
import sys
import numpy as np
from {beside} import slope

def square(x):
    return x * x, x

def square_back(dout, x):
    print("in the backward pass")
    return dout * slope(x)

def leaving(dout, x):
    sys.exit(3)
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "slope_beside.py").write_text("def slope(x):\n    return 2 * x\n")
    file = tmp_path / "own_rule.py"
    file.write_text(OWN.format(beside="slope_beside"))
    return file


def test_a_file_may_import_the_one_beside_it_and_print(own):
    result = checked(f"{own}:square,square_back", "--inputs", "float32[3]", "--json", "-", "--seeds", 1)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["ok"]
    assert "in the backward pass" in result.stderr


def test_a_rule_that_ends_the_program_or_asks_for_too_much_is_not_checked(own):
    result = checked(f"{own}:square,leaving", "--inputs", "float32[3]", "--seeds", 1)
    assert result.exit_code == 2
    assert "SystemExit: 3" in result.stderr
    assert "own_rule.py:14" in result.stderr
    result = checked(f"{own}:square,square_back", "--inputs", "float32[3000000,3000000]")
    assert result.exit_code == 2
    assert "arrays must fit into memory" in result.stderr


def test_a_reference_is_a_function_of_a_file_too(own):
    result = checked("jax.numpy:square", "--inputs", "float32[3]", "--reference", f"{own}:nothing")
    assert result.exit_code == 2
    assert f"{own} has no 'nothing'" in result.stderr


def test_a_long_check_says_on_a_terminal_that_it_is_at_work(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with command.told("slow", 0.01):
        time.sleep(0.3)
    with command.told("quick", 60):
        pass
    assert capsys.readouterr().err == "slow: still at work after 0.01 s; --seeds 1 takes less time\n"
