"""README and the guides keep their word: every command in them runs, and every example does what it says."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn import datasets

ROOT = Path(__file__).parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))
}


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    return [block for its, block in found if its == language]


LINES = {
    page: [line.partition("  #")[0].strip() for block in blocks(page, "sh") for line in block.splitlines()]
    for page in PAGES
}
INSTALL_AND_TRAIN, TESTS, *_ = LINES["README.md"]
COMMANDS = {page: [line for line in LINES[page] if line not in (INSTALL_AND_TRAIN, TESTS)] for page in PAGES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with the configs; the commands run there one after another."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


def command_line(command: str, folder: Path) -> subprocess.CompletedProcess:
    """A command of a page, run in a folder, with this checkout before any installed package."""
    words = [sys.executable, "-m", "jaxnet", *shlex.split(command)[1:]]
    # One device, as a reader has.
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    surroundings = kept | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(words, cwd=folder, env=surroundings, capture_output=True, text=True, timeout=300)


def run(command: str, folder: Path) -> str:
    """The output of a command; its exit status must be 0."""
    assert command.startswith(".venv/bin/jaxnet "), f"no test runs {command!r}"
    done = command_line(command, folder)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_first_two_commands_are_those_that_continuous_integration_runs():
    assert INSTALL_AND_TRAIN.endswith(".venv/bin/jaxnet train configs/digits.toml")
    assert "pytest" in TESTS
    assert "head -n 2" in (ROOT / ".ci" / "run").read_text()


def test_the_front_page_is_two_screens():
    assert len(PAGES["README.md"].splitlines()) <= 110


def test_the_first_command_learns_the_digits(folder):
    printed = run(INSTALL_AND_TRAIN.rpartition("&& ")[2], folder)
    assert "kept with" in printed
    assert "jaxnet report" in printed


@pytest.mark.parametrize("page", [page for page in PAGES if COMMANDS[page]])
def test_every_other_command_of_a_page_runs_in_order(page, folder):
    for block in blocks(page, "python"):
        if named := re.match(r"# (\w+\.py)$", block, flags=re.MULTILINE):  # a file that a command reads
            (folder / named[1]).write_text(block)
    assert all(run(command, folder) for command in COMMANDS[page])


def run_example(page: str) -> dict:
    """The names that a page's Python blocks define, run one after another."""
    names: dict = {}
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam relies on it
        exec(compile("\n".join(blocks(page, "python")), page, "exec"), names)
    return names


def test_the_example_of_the_front_page_runs():
    names = run_example("README.md")
    assert names["value"] > 0
    assert len(names["steps"]) == 3
    assert {leaf.shape for leaf in jax.tree.leaves(names["norms"])} == {(128,)}


def test_the_example_of_changing_runs(capsys):
    names = run_example("docs/change.md")
    assert names["value"] < 0.5
    assert "dense 30: out (30,), δ (30,)" in capsys.readouterr().out
    assert {leaf.shape for leaf in jax.tree.leaves(names["norms"])} == {(128,)}


def test_the_example_of_a_pipeline_runs():
    names = run_example("docs/devices.md")
    assert jax.tree.structure(names["grads"]) == jax.tree.structure(names["params"])


def test_the_wrong_layer_norm_is_found_out_as_printed(tmp_path):
    page = "docs/check.md"
    (tmp_path / "my_layer_norm.py").write_text(blocks(page, "python")[0])
    [shown] = [block for block in blocks(page, "") if block.startswith("$ jaxnet check")]
    command, table, *_ = shown.splitlines()
    done = command_line(command.removeprefix("$ "), tmp_path)
    assert done.returncode == 1, done.stderr
    assert table in done.stdout
    [cause] = [line for line in shown.splitlines() if line.startswith("cause")]
    assert cause in done.stdout
    [patched] = [line for line in shown.splitlines() if "+ return dx - xh" in line]
    assert patched in done.stdout


def test_the_regression_of_the_guide_trains(tmp_path):
    [config] = [block for block in blocks("docs/run.md", "toml") if "diabetes.csv" in block]
    (tmp_path / "diabetes.toml").write_text(config)
    table = datasets.load_diabetes()
    target = (table.target - table.target.mean()) / table.target.std()
    rows = np.column_stack([np.arange(len(target)), table.data, target])
    np.savetxt(
        tmp_path / "diabetes.csv", rows, delimiter=",", comments="", header=f"row,{','.join(table.feature_names)},y"
    )
    done = command_line("jaxnet train diabetes.toml --run-dir run", tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert found["test_loss"] < 0.4  # half the target's variance is 0.5


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    targets = re.findall(r"\]\(([^)#:]+)\)", PAGES[page])
    assert [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()] == []


def test_the_example_of_readings_runs():
    names = run_example("docs/readings.md")
    assert names["norms"]["blocks"].shape == (32,)
    assert names["grads"]["E"].shape == (8, 4)
