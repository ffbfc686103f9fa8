"""What goes wrong while training: divergence, disks, folders. A message, exit status 2, and nothing lost."""

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from jaxnet.training import loop
from jaxnet.training.checkpoint import CheckpointError, CheckpointWriter
from jaxnet.training.config import ConfigError, dump_toml
from jaxnet.training.run_folder import Run, RunError
from jaxnet.training.trained_network import evaluate, restore
from tests.runs import ROOT, called, metrics, small, summary

NAN_AT = 57  # which example of the training set spoils a step


def spoiled():
    """Data whose numbers are finite, but one of which no float32 network takes."""
    from tests.runs import blobs

    data = blobs()
    data["x_train"][NAN_AT] = 3.4e38
    return data


def test_divergence_names_step_and_layer_and_keeps_the_last_good_state(tmp_path):
    config = small(
        "train.shuffle=false",
        "train.steps_per_call=2",
        data="tests.test_training_errors:spoiled",
        model=[{"dense": {"units": 4, "init": "nielsen"}}, "relu", {"dense": {"units": 3, "init": "nielsen"}}],
    )
    with pytest.raises(loop.DivergedError) as caught:
        loop.train(config, run_dir=tmp_path / "run", quiet=True)
    message = str(caught.value)
    assert "at step 6 (epoch 1)" in message, "the sixth batch of ten has example 57"
    assert f"first in the value of layer 1 of 3 (dense 4), in training example {NAN_AT}:" in message
    assert "the last good checkpoint is of step 4" in message
    assert summary(tmp_path / "run")["status"] == "diverged"
    trained = restore(tmp_path / "run")
    assert trained.step == 4
    assert all(np.isfinite(leaf).all() for node in trained.params if node for leaf in node.values())
    assert message in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("model", "where"),
    [
        (
            [{"dense": 4}, "tests.test_training_errors:bad_forward", {"dense": 3}],
            r"value of layer 2 of 3 \(bad value\), in all 10 examples of the batch",
        ),
        (
            [{"dense": 4}, "tests.test_training_errors:bad_backward", {"dense": 3}],
            r"the backward pass of layer 2 of 3 \(bad delta\), in all 10 examples of the batch",
        ),
    ],
)
def test_the_layer_is_found_forward_and_backward(tmp_path, model, where):
    with pytest.raises(loop.DivergedError, match=f"at step 1 .* {where}"):
        loop.train(small(model=model), run_dir=tmp_path / "run", quiet=True)


def _bad(name, forward, backward):
    from jaxnet.layer import leaf, no_params

    return leaf(name, no_params, forward, backward)


bad_forward = _bad("bad value", lambda p, x, key=None, train=False: (x / 0, ()), lambda p, s, d: (d, ()))
bad_backward = _bad("bad delta", lambda p, x, key=None, train=False: (x, ()), lambda p, s, d: (d / 0, ()))


def test_a_rate_too_high_diverges(tmp_path):
    config = small("train.optimizer.learning_rate=1e30", loss="mean_squared_error", model=[{"dense": 8}, {"dense": 3}])
    with pytest.raises(loop.DivergedError, match="lower the learning rate"):
        loop.train(config, run_dir=tmp_path / "run", quiet=True)


def test_one_of_several_seeds_diverges_alone(tmp_path, monkeypatch):
    from jaxnet.training.session import Session

    usual, calls = Session.steps, []

    def steps(self, call, state, order):
        calls.append(call)
        state, good, seconds = usual(self, call, state, order)
        return state, good & np.array([len(calls) < 3, True]), seconds

    monkeypatch.setattr(Session, "steps", steps)
    folders = loop.train_together(small(), [0, 1], runs_dir=tmp_path, quiet=True)
    assert [summary(folder)["status"] for folder in folders] == ["diverged", "finished"]
    assert [len(metrics(folder)) for folder in folders] == [1, 3]


def test_a_taken_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="must be a new or an empty folder"):
        loop.train(small(), run_dir=tmp_path / "run", quiet=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_an_empty_folder_will_do(tmp_path):
    (tmp_path / "run").mkdir()
    loop.train(small("train.epochs=1"), run_dir=tmp_path / "run", quiet=True)
    assert summary(tmp_path / "run")["status"] == "finished"


@pytest.mark.parametrize("place", ["file/run", "/proc/nowhere/run"])
def test_an_unwritable_place(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "small.toml").write_text(dump_toml(small()))
    found = called("train", tmp_path / "small.toml", "--run-dir", tmp_path / place)
    assert found.exit_code == 2
    assert "jaxnet: cannot write" in found.stderr
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_under_the_metrics(tmp_path, monkeypatch):
    """A real ENOSPC, after the first epoch; what was written stays, and the run goes on once there is room."""
    whole = loop.train(small(), run_dir=tmp_path / "whole", quiet=True)
    usual = Run.append

    def full(self, name, text):
        file = self.folder / name
        if name == "metrics.jsonl" and json.loads(text)["epoch"] == 2:
            saved = file.read_text()
            file.unlink()
            file.symlink_to("/dev/full")
            try:
                usual(self, name, text)
            finally:
                file.unlink()
                file.write_text(saved)
        usual(self, name, text)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "append", full)
        with pytest.raises(RunError, match="No space left on device"):
            loop.train(small("checkpoint.every_seconds=0.0"), run_dir=tmp_path / "run", quiet=True)
    assert len(metrics(tmp_path / "run")) == 1
    loop.resume(tmp_path / "run", quiet=True)
    assert metrics(tmp_path / "run") == metrics(whole)


def test_a_full_disk_under_a_checkpoint(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    usual = CheckpointWriter.list_files

    def full(self, step):
        if step == 22:
            raise OSError(errno.ENOSPC, "No space left on device")
        usual(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointWriter, "list_files", full)
        with pytest.raises(CheckpointError, match=r"step 22 could not be written .*No space left on device"):
            loop.train(small("checkpoint.every_seconds=0.0"), run_dir=folder, quiet=True)
    loop.resume(folder, quiet=True)
    assert summary(folder)["status"] == "finished"


def test_files_that_may_not_grow(tmp_path):
    """A real limit on the size of files, in a process: a message, status 2, and it goes on afterwards."""
    config = small("train.epochs=4", "checkpoint.every_seconds=0.0", model=[{"dense": 60_000}, "tanh", {"dense": 3}])
    (tmp_path / "small.toml").write_text(dump_toml(config))
    line = f"{sys.executable} -m jaxnet train {tmp_path}/small.toml --run-dir {tmp_path}/run"
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 1000; exec {line}"],
        cwd=ROOT,
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "could not be written" in done.stderr
    assert "then resume" in done.stderr
    assert "Traceback" not in done.stderr
    loop.resume(tmp_path / "run", quiet=True)
    assert summary(tmp_path / "run")["status"] == "finished"


@pytest.mark.parametrize("arguments", [["resume"], ["eval"]])
def test_a_folder_that_is_no_run(tmp_path, arguments):
    found = called(*arguments, tmp_path)
    assert (found.exit_code, found.stdout) == (2, "")
    assert "is not a run: it has no config.toml" in found.stderr


def test_more_devices_than_there_are(tmp_path):
    with pytest.raises(ConfigError, match=r"mesh\.data = 10: takes at most as many devices as there are, 8 .* got 10"):
        loop.train(small("mesh.data=10"), run_dir=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists(), "nothing is written for a run that cannot begin"


def test_evaluation_of_a_run_without_checkpoint(tmp_path):
    import shutil

    folder = loop.train(small("train.epochs=1"), run_dir=tmp_path / "run", quiet=True)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(RunError, match="has no checkpoint yet"):
        evaluate(folder)
