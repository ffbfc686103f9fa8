"""One process writes a run: others are told who does, and a run whose process died is free."""

import errno
import os
import time

import pytest

from jaxnet.training import lock, loop
from jaxnet.training.config import dump_toml
from jaxnet.training.lock import Lock, LockedError
from tests.runs import command, finished, killed, metrics, small, summary


def wait_for(path, process):
    """Until a file is there."""
    deadline = time.monotonic() + 90
    while not path.exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)


@pytest.fixture
def killed_run(tmp_path):
    """A run whose process was killed after its first checkpoint."""
    config = small("train.epochs=30", "train.steps_per_call=4", "checkpoint.every_seconds=0.0")
    (tmp_path / "small.toml").write_text(dump_toml(config))
    process = command("train", tmp_path / "small.toml", "--run-dir", tmp_path / "run")
    wait_for(tmp_path / "run" / "checkpoints.json", process)
    killed(process)
    return tmp_path / "run"


@pytest.mark.long
def test_of_two_resumes_one_trains(killed_run):
    both = [command("resume", killed_run) for _ in range(2)]
    ended = [finished(each) for each in both]
    assert sorted(status for status, _, _ in ended) == [0, 2]
    [(_, _, refused)] = [each for each in ended if each[0] == 2]
    [trained] = [each.pid for each in both if each.returncode == 0]
    assert f"{killed_run} is being written by process {trained} on " in refused
    assert "Traceback" not in refused
    assert [line["epoch"] for line in metrics(killed_run)] == list(range(1, 31))
    assert summary(killed_run)["status"] == "finished"


def test_a_resume_beside_a_train(tmp_path):
    (tmp_path / "small.toml").write_text(dump_toml(small("train.epochs=100000")))
    process = command("train", tmp_path / "small.toml", "--run-dir", tmp_path / "run")
    wait_for(tmp_path / "run" / "config.toml", process)
    with pytest.raises(LockedError, match=f"being written by process {process.pid} on .* since .*: wait until it ends"):
        loop.resume(tmp_path / "run", quiet=True)
    killed(process)
    Lock(tmp_path / "run").release()


def test_the_lock_ends_with_the_training(tmp_path):
    run = loop.train(small("train.epochs=1"), run_dir=tmp_path / "run", quiet=True)
    loop.resume(run, quiet=True)
    with pytest.raises(ValueError, match="must be at most"):
        loop.train(small("train.batch=5000"), run_dir=tmp_path / "other", quiet=True)
    Lock(run).release()


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    Lock(tmp_path).release()
