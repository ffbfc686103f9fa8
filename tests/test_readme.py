"""README keeps its word: every command in it runs, and the library example does what it says."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
SHELL = "".join(block for language, block in BLOCKS if language == "sh")
LINES = [line.partition("  #")[0].strip() for line in SHELL.splitlines()]
COMMANDS = [line for line in LINES if line.startswith(".venv/bin/jaxnet ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with the configs, in which one command after another is run."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


def command_line(command: str, folder: Path) -> subprocess.CompletedProcess:
    """A command of README, run in a folder, the checkout before what is installed."""
    words = [sys.executable, "-m", "jaxnet", *shlex.split(command)[1:]]
    # One device, as a reader has.
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    surroundings = kept | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(words, cwd=folder, env=surroundings, capture_output=True, text=True, timeout=300)


def run(command: str, folder: Path) -> str:
    """What a command of README prints; it must end well."""
    done = command_line(command, folder)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_first_two_commands_are_those_that_continuous_integration_runs():
    install_and_train, tests = LINES[:2]
    assert install_and_train.endswith(".venv/bin/jaxnet train configs/digits.toml")
    assert "pytest" in tests
    assert "head -n 2" in (ROOT / ".ci" / "run").read_text()


def test_every_line_is_a_command_that_some_test_runs():
    assert set(LINES[2:]) <= set(COMMANDS)
    assert len(COMMANDS) >= 6


def test_the_first_command_learns_the_digits(folder):
    printed = run(LINES[0].rpartition("&& ")[2], folder)
    assert "kept with" in printed
    assert "jaxnet report" in printed


def test_every_other_command_runs_in_order(folder):
    printed = [run(command, folder) for command in COMMANDS]
    assert all(printed)


EXAMPLES = [block for language, block in BLOCKS if language == "python"]


def test_the_library_example_runs(capsys):
    names: dict = {}
    import jax

    with jax.numpy_dtype_promotion("standard"):  # optax's Adam relies on it
        exec(compile(EXAMPLES[0], "README.md", "exec"), names)
    assert names["value"] < 0.5
    assert "dense 30: out (30,), δ (30,)" in capsys.readouterr().out
    assert {leaf.shape for leaf in jax.tree.leaves(names["norms"])} == {(128,)}


def test_the_wrong_layer_norm_is_found_out_as_printed(tmp_path):
    (tmp_path / "my_layer_norm.py").write_text(EXAMPLES[1])
    [shown] = [block for _, block in BLOCKS if block.startswith("$ jaxnet check")]
    command, table, *_ = shown.splitlines()
    done = command_line(command.removeprefix("$ "), tmp_path)
    assert done.returncode == 1, done.stderr
    assert table in done.stdout
    [cause] = [line for line in shown.splitlines() if line.startswith("cause")]
    assert cause in done.stdout
    assert "my_layer_norm.py:7   v = ((x - m) ** 2).mean(-1, keepdims=True)" in done.stdout


def test_every_link_leads_somewhere():
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
