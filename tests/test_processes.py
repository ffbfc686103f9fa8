"""Several processes as one program: the numbers of one process, checkpoints for any count, and an end for all."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tomli_w

from jaxnet.devices import launch, processes
from jaxnet.training import loop
from jaxnet.training.config import load_config, make_config
from jaxnet.training.trained_network import restore
from tests.runs import DOCUMENT, ROOT, blobs, metrics, summary

RECIPE = {
    "data": "digits",
    "loss": "softmax_cross_entropy",
    "model": [{"dense": 32}, "tanh", {"dense": 10}],
    "mesh": {"data": 2, "fsdp": 2},
    "train": {"epochs": 2, "batch": 32, "optimizer": {"name": "adam", "learning_rate": 0.01}},
    "checkpoint": {"every_seconds": 0.0},
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The recipe's file."""
    file = tmp_path_factory.mktemp("recipe") / "two.toml"
    file.write_text(tomli_w.dumps(RECIPE))
    return file


def launched(*arguments):
    """`jaxnet launch` with two processes of two devices each."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    words = [sys.executable, "-m", "jaxnet", "launch", "--processes", "2", "--devices", "2", *map(str, arguments)]
    return subprocess.Popen(words, env=environment, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def together(recipe):
    """The folder of a run of two processes."""
    folder = recipe.parent / "together"
    process = launched("train", recipe, "--run-dir", folder)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.count("test 9") == 3, "the first process alone shows the rows and the result"
    return folder


def test_two_processes_train_as_one(together, recipe, tmp_path):
    alone = loop.train(load_config(recipe), run_dir=tmp_path / "alone", quiet=True)
    for ours, theirs in zip(metrics(together), metrics(alone), strict=True):
        for name in ("train_loss", "test_loss", "validation_accuracy", "delta_norms"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, err_msg=name)
    params = [restore(folder).params for folder in (together, alone)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *params)


def test_one_process_goes_on_with_their_checkpoint(together):
    loop.resume(together, overrides=["train.epochs=3"], quiet=True)
    assert len(metrics(together)) == 3
    assert summary(together)["status"] == "finished"


READER = """
import json, pathlib, sys
import numpy as np
from jaxnet.devices import processes
processes.join(sys.argv[1])
from jaxnet.training import loop, session
from jaxnet.training.config import make_config
seen, read = set(), session.Session.read
def counted(self, places):
    seen.update(np.ravel(places).tolist())
    return read(self, places)
session.Session.read = counted
loop.train(make_config(json.loads(sys.argv[2])), run_dir=pathlib.Path(sys.argv[3]), quiet=True)
print(json.dumps(sorted(seen)))
"""


@pytest.mark.long
def test_each_process_reads_its_own_rows_of_data_on_disk(tmp_path):
    data = blobs()
    for name, array in data.items():
        np.save(tmp_path / f"{name}.npy", array)
    train = {"epochs": 1, "shuffle": False, "batch": 10, "optimizer": {"name": "sgd", "learning_rate": 0.1}}
    config = DOCUMENT | {"data": f"{tmp_path}/", "train": train}
    alone = loop.train(make_config(config), run_dir=tmp_path / "alone", quiet=True)
    address = f"127.0.0.1:{launch.free_port()}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    arguments = json.dumps(config | {"mesh": {"data": 2}}), str(tmp_path / "run")
    running = [
        subprocess.Popen(
            [sys.executable, "-c", READER, f"{address},{i},2", *arguments],
            **{"env": environment, "cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True},
        )
        for i in range(2)
    ]
    told = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], told
    rest = set(range(100, 103))  # two devices do not divide the last batch, so both have it
    for i, (out, _) in enumerate(told):
        assert set(json.loads(out.splitlines()[-1])) == {at for at in range(100) if (at % 10 >= 5) == i} | rest
    for name in ("train_loss", "test_loss", "validation_accuracy"):
        np.testing.assert_allclose(metrics(tmp_path / "run")[0][name], metrics(alone)[0][name], rtol=1e-5)


@pytest.mark.long
def test_a_killed_process_ends_the_others_and_the_run_goes_on(recipe, tmp_path):
    folder = tmp_path / "run"
    process = launched("train", recipe, "train.epochs=2000", "--run-dir", folder)
    until = time.monotonic() + 240
    while not list(folder.glob("checkpoints/[0-9]*")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.2)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    _, second = sorted(map(int, children.stdout.split()))
    killed = time.monotonic()
    os.kill(second, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - killed < 60
    assert process.returncode in (128 + signal.SIGKILL, 128 + signal.SIGABRT)
    assert "process 1 ended with signal 9, so 0 cannot go on" in err or "Terminating process" in err
    done = len(metrics(folder))
    loop.resume(folder, overrides=[f"train.epochs={done + 2}"], quiet=True)
    assert summary(folder)["status"] == "finished"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("somewhere", "HOST:PORT,PROCESS,PROCESSES"),
        ("host:1,0", "HOST:PORT,PROCESS,PROCESSES"),
        ("host:1,2,2", "of 2 processes the last one is 1, got 2"),
    ],
)
def test_a_text_that_joins_nothing_is_refused(text, told):
    with pytest.raises(processes.ProcessError, match=told):
        processes.join(text)


def test_a_first_process_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(processes, "TIMEOUT", 1)
    port = launch.free_port()
    with pytest.raises(processes.ProcessError, match=f"must answer at 127.0.0.1:{port} within 1 s"):
        processes.join(f"127.0.0.1:{port},1,2")


def test_a_first_process_that_answers_is_found():
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert processes.answers(f"127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize(
    ("command", "count", "told"),
    [(["train"], 0, "--processes must be at least 1"), (["check"], 2, "launch runs train or resume, got check")],
)
def test_what_cannot_be_launched_is_refused(command, count, told):
    with pytest.raises(launch.LaunchError, match=told):
        launch.launch(command, count)


def test_one_failed_process_ends_those_that_wait(monkeypatch, capsys):
    monkeypatch.setattr(launch, "GRACE", 0.2)
    sleeping, failing = (
        subprocess.Popen([sys.executable, "-c", code])
        for code in ("import time; time.sleep(60)", "raise SystemExit(3)")
    )
    assert launch.watched([sleeping, failing]) == 3
    assert sleeping.returncode == -signal.SIGKILL
    assert "process 1 ended with status 3, so 0 cannot go on" in capsys.readouterr().err


def test_a_process_alone_agrees_with_itself():
    assert processes.writes()
    assert not processes.several()
    assert (processes.of_first(3), processes.largest(4)) == (3, 4)
