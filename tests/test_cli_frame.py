"""The command: what it prints, and how it ends when the input is bad."""

import errno
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import jaxnet.training
from jaxnet import cli
from jaxnet.training.config import load_config

DIGITS = Path(__file__).parent.parent / "configs" / "digits.toml"


def jaxnet_(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(each) for each in arguments], prog_name="jaxnet")


def refused(message: str, *arguments: object) -> None:
    """Exit status 2, the message on stderr, nothing on stdout, no traceback."""
    result = jaxnet_(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture
def loop(monkeypatch):
    """A loop that notes how it is called, and raises what it is told to."""
    calls, fake = [], types.ModuleType("jaxnet.training.loop")

    def train(*arguments, **options):
        calls.append((arguments, options))
        if fake.raises is not None:  # pyright: ignore[reportAttributeAccessIssue]
            raise fake.raises  # pyright: ignore[reportAttributeAccessIssue]

    fake.__dict__.update(train=train, raises=None, calls=calls)
    monkeypatch.setitem(sys.modules, "jaxnet.training.loop", fake)
    monkeypatch.setattr(jaxnet.training, "loop", fake, raising=False)
    return fake


def test_print_shows_a_config_that_runs_again(tmp_path, loop):
    first = jaxnet_("train", DIGITS, "train.epochs=3", "model.0.dense=50", "--print")
    assert first.exit_code == 0
    assert not loop.calls
    again = tmp_path / "again.toml"
    again.write_text(first.stdout)
    assert load_config(again) == load_config(DIGITS, ["train.epochs=3", "model.0.dense=50"])
    assert jaxnet_("train", again, "--print").stdout == first.stdout


def test_train_hands_over_what_was_typed(tmp_path, loop):
    assert jaxnet_("train", DIGITS, "seed=7", "--runs-dir", tmp_path, "train.l2=1").exit_code == 0
    [((config,), options)] = loop.calls
    assert config == load_config(DIGITS, ["seed=7", "train.l2=1"])
    assert options == {
        "run_dir": None, "runs_dir": tmp_path, "data_dir": None, "overrides": ("seed=7", "train.l2=1")
    }  # fmt: skip
    jaxnet_("train", DIGITS, "--run-dir", tmp_path / "run", "--data-dir", "there")
    assert loop.calls[1][1] == {
        "run_dir": tmp_path / "run", "runs_dir": Path("runs"), "data_dir": Path("there"), "overrides": ()
    }  # fmt: skip


def test_schema_is_json_for_editors():
    result = jaxnet_("schema")
    assert result.exit_code == 0
    schema = json.loads(result.stdout)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert {"model", "train"} <= set(schema["properties"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.epocs=3"], 'train: unknown key "epocs": did you mean "epochs"?'),
        (["train.epochs=many"], 'train.epochs: must be a whole number, got "many"'),
        (["train.optimizer.name=adm"], 'did you mean "adam"?'),
        (["model=["], "the value of an override must be TOML"),
        (["nonsense"], "an override must be key=value"),
    ],
)
def test_bad_overrides(overrides, message, loop):
    refused(message, "train", DIGITS, *overrides)
    assert not loop.calls


def test_bad_files(tmp_path, loop):
    (tmp_path / "digits.toml").write_text("model = [")
    refused("must be TOML", "train", tmp_path / "digits.toml")
    refused('did you mean "', "train", tmp_path / "digit.toml")
    refused("Missing argument", "train")
    refused("No such option", "train", DIGITS, "--no-such-option")
    refused("No such command", "no-such-command")
    assert not loop.calls


def test_errors_of_ours_are_a_message(loop):
    from jaxnet.layer import ShapeError
    from jaxnet.training.data import DataError

    for error in (ShapeError("layer 1 of 3: dense 4 takes a vector"), DataError("x must be finite")):
        loop.raises = error
        refused(f"jaxnet: {error}", "train", DIGITS)


def test_a_full_disk_and_a_place_where_one_may_not_write(loop):
    loop.raises = OSError(errno.ENOSPC, "No space left on device", "runs/a/log.txt")
    refused("jaxnet: runs/a/log.txt: No space left on device: make room, or write elsewhere", "train", DIGITS)
    loop.raises = PermissionError(errno.EACCES, "Permission denied", "runs")
    refused("jaxnet: runs: Permission denied: choose a place where you may write", "train", DIGITS)


def test_an_interruption_is_130(loop):
    loop.raises = KeyboardInterrupt()
    assert jaxnet_("train", DIGITS).exit_code == 130
    loop.raises = SystemExit(143)
    assert jaxnet_("train", DIGITS).exit_code == 143


def test_a_mistake_of_jaxnet_s_own_is_not_called_bad_input(loop):
    loop.raises = ValueError("not one of ours")
    result = jaxnet_("train", DIGITS)
    assert result.exit_code == 1
    assert result.exception is loop.raises


def command(*arguments: str, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, "-m", "jaxnet", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        **options,
    )


def test_as_a_command(tmp_path):
    bad = command("train", "digit.toml", cwd=tmp_path)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "jaxnet: there is no config digit.toml: give the path of a TOML file\n"
    assert list(tmp_path.iterdir()) == []
    shown = command("--help")
    assert shown.returncode == 0
    assert "train" in shown.stdout
    assert "schema" in shown.stdout


def test_without_the_extra_it_says_what_to_install(tmp_path):
    (tmp_path / "typer.py").write_text("raise ModuleNotFoundError(\"No module named 'typer'\", name='typer')\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])}
    ended = subprocess.run(
        [sys.executable, "-c", "import jaxnet.cli"], capture_output=True, text=True, env=environment, timeout=60
    )
    assert ended.returncode == 2
    assert ended.stderr == "the jaxnet command needs typer: install jaxnet with its extra [experiments]\n"
