"""Every command in the tables of the guide to running works as it stands there, on a small run."""

import re
import shlex

import numpy as np
import pytest

from jaxnet.training import loop
from jaxnet.training.config import make_config
from tests.runs import called
from tests.test_readme import PAGES, ROOT, blocks

COMMANDS = re.findall(r"^\| `jaxnet (.*?)` \|", PAGES["docs/run.md"], flags=re.MULTILINE)
ASIDES = re.findall(r"`(--to \w+)`", PAGES["docs/run.md"])
ELSEWHERE = {"watch RUN": "tests/test_reports.py"}  # serves until it is interrupted
OF_TEXT = {"sample"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with a config, a run of it, a run of a text, examples, and the search of the guide."""
    folder = tmp_path_factory.mktemp("guide")
    (folder / "configs").mkdir()
    text = re.sub(r"^epochs .*", "epochs = 3", (ROOT / "configs" / "digits.toml").read_text(), flags=re.MULTILINE)
    (folder / "configs" / "digits.toml").write_text(text)
    search = next(block for block in blocks("docs/run.md", "toml") if "halving" in block)
    (folder / "FILE.toml").write_text(search.replace("trials = 4", "trials = 2"))
    np.save(folder / "FILE", np.zeros((2, 64)))
    (folder / "letters.txt").write_text("abcd" * 100)
    language = {
        "data": {"name": str(folder / "letters.txt"), "window": 10},
        "model": {"name": "char_lstm", "vocab": 4, "width": 4},
        "loss": "softmax_cross_entropy",
        "train": {"epochs": 1, "optimizer": {"name": "sgd", "learning_rate": 0.1}},
    }
    loop.train(make_config(language), run_dir=folder / "text", quiet=True)
    return folder


def run(line: str) -> None:
    answer = "y\n" if line.startswith("delete") else ""
    found = called(*shlex.split(line), answer=answer)
    assert found.exit_code == 0, (line, found.output)


@pytest.mark.long
def test_every_command_of_the_tables_runs(folder, monkeypatch):
    assert len(COMMANDS) > 12
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    run("train configs/digits.toml train.epochs=2 --run-dir runs/first")
    for line in COMMANDS:
        if line in ELSEWHERE:
            assert "watching.server" in (ROOT / ELSEWHERE[line]).read_text()
            continue
        of = "text" if line.split()[0] in OF_TEXT else "runs/first"
        line = line.replace("RUN", of).replace("CONFIG", "configs/digits.toml").replace(" FILE", " FILE.npy")
        run(line.replace("FILE.npy.toml", "FILE.toml").replace("TEXT", "ab"))
    assert (folder / "sweep.png").exists()
    assert not (folder / "runs" / "first").exists()


def test_programs_that_metrics_are_written_for_are_named():
    assert [line.split()[1] for line in ASIDES] == ["tensorboard", "wandb", "mlflow"]
