"""README and the guides keep their word: every command in them runs, and every example does what it says."""

import json
import re
import shlex
from contextlib import chdir, contextmanager
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn import datasets
from typer.testing import Result

from tests.runs import ROOT, called

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


@contextmanager
def lenient():
    """JAX's own promotion of dtypes and ranks, as readers have it; optax's Adam relies on it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@cache
def run(command: str, folder: Path) -> Result:
    """A command of a page, run in a folder: once, wherever it stands."""
    program, *words = shlex.split(command)
    assert program.endswith("jaxnet"), f"no test runs {command!r}"
    with chdir(folder), pytest.MonkeyPatch.context() as patch, lenient():
        patch.setenv("PYTHONPATH", str(ROOT))
        return called(*words)


def succeeds(command: str, folder: Path) -> str:
    """The output of a command; its exit status must be 0."""
    found = run(command, folder)
    assert found.exit_code == 0, f"{command}\n{found.output}"
    return found.stdout


def test_the_first_two_commands_are_those_that_continuous_integration_runs():
    assert INSTALL_AND_TRAIN.endswith(".venv/bin/jaxnet train configs/digits.toml")
    assert "pytest" in TESTS
    assert "head -n 2" in (ROOT / ".ci" / "run").read_text()


def test_the_front_page_is_two_screens():
    assert len(PAGES["README.md"].splitlines()) <= 110


def test_the_first_command_learns_the_digits(folder):
    printed = succeeds(INSTALL_AND_TRAIN.rpartition("&& ")[2], folder)
    assert "kept with" in printed
    assert "jaxnet report" in printed


QUICK = ("README.md", "docs/check.md", "docs/change.md")


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=() if page in QUICK else pytest.mark.long) for page in PAGES if COMMANDS[page]],
)
def test_every_other_command_of_a_page_runs_in_order(page, folder):
    for block in blocks(page, "python"):
        if named := re.match(r"# (\w+\.py)$", block, flags=re.MULTILINE):  # a file that a command reads
            (folder / named[1]).write_text(block)
    for command in COMMANDS[page]:
        assert command.startswith(".venv/bin/jaxnet ")
        succeeds(command, folder)


def run_example(page: str) -> dict:
    """The names that a page's Python blocks define, run one after another."""
    names: dict = {"__name__": "example"}
    with lenient():
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
    shown, _of_numpy = [block for block in blocks(page, "") if block.startswith("$ jaxnet check")]
    command, table, *_ = shown.splitlines()
    done = run(command.removeprefix("$ "), tmp_path)
    assert done.exit_code == 1, done.output
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
    succeeds("jaxnet train diabetes.toml --run-dir run", tmp_path)
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
