"""A run's metrics as CSV, and in the files of TensorBoard, wandb and MLflow, written without a network."""

import csv
import json
import sqlite3
import struct
import sys
from io import StringIO

import pytest
from tensorboardX.proto.event_pb2 import Event

from jaxnet.training.run_folder import Run
from jaxnet.training.run_listing import read_run
from jaxnet.training.trackers import export, metrics_csv
from tests.runs import called, command, finished
from tests.test_reports import fake_run

NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")


@pytest.fixture
def run(tmp_path):
    folder = fake_run(tmp_path / "a run", layers=3)
    Run.open(folder).note(["a first try"], ["good"])
    return folder


def test_metrics_as_csv(run):
    record = read_run(run)
    rows = list(csv.DictReader(StringIO(metrics_csv(record))))
    assert len(rows) == len(record.metrics)
    for row, line in zip(rows, record.metrics, strict=True):
        assert list(row)[:2] == ["epoch", "step"]
        assert float(row["train_loss"]) == line["train_loss"]
        assert [float(row[f"delta_norms.{i}"]) for i in (1, 2, 3)] == line["delta_norms"]


def events(file):
    """The records of an event file: each has its length, a checksum, its bytes, a checksum."""
    content, place = file.read_bytes(), 0
    while place < len(content):
        [length] = struct.unpack_from("<Q", content, place)
        yield Event.FromString(content[place + 12 : place + 12 + length])
        place += length + 16


def test_tensorboard(run, tmp_path):
    found = called("metrics", run, "--to", "tensorboard", "--out", tmp_path / "out")
    assert (found.exit_code, found.stdout) == (0, f"{tmp_path / 'out'}\n"), found.stderr
    [file] = (tmp_path / "out").rglob("events*")
    found = {(each.step, value.tag): value.simple_value for each in events(file) for value in each.summary.value}
    for line in read_run(run).metrics:
        assert found[line["step"], "test_accuracy"] == pytest.approx(line["test_accuracy"])
        assert found[line["step"], "delta_norms/3"] == pytest.approx(line["delta_norms"][2])


@pytest.mark.peers
def test_wandb(run, tmp_path):
    pytest.importorskip("wandb", reason="wandb comes with the extra `peers`")
    status, _, err = finished(command("metrics", run, "--to", "wandb", "--out", tmp_path / "out", **NO_NETWORK))
    assert status == 0, err
    [file] = (tmp_path / "out").rglob("*.wandb")
    content = file.read_bytes()
    for line in read_run(run).metrics:
        assert json.dumps(line["test_accuracy"]).encode() in content
    assert all(each in content for each in (b"a run", b"a first try", b"good", b"delta_norms/3"))


@pytest.mark.peers
def test_mlflow(run, tmp_path):
    pytest.importorskip("mlflow", reason="mlflow comes with the extra `peers`")
    out = tmp_path / "out"
    status, _, err = finished(command("metrics", run, "--to", "mlflow", "--out", out, **NO_NETWORK))
    assert status == 0, err
    with sqlite3.connect(out / "mlflow.db") as database:
        rows = database.execute("select step, value from metrics where key = 'test_accuracy' order by step").fetchall()
        params = dict(database.execute("select key, value from params").fetchall())
        tags = dict(database.execute("select key, value from tags").fetchall())
    assert rows == [(line["step"], line["test_accuracy"]) for line in read_run(run).metrics]
    assert params["train.optimizer.learning_rate"] == "0.5"
    assert (tags["notes"], tags["good"], tags["mlflow.runName"]) == ("a first try", "", "a run")


def test_a_program_that_is_not_installed_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"there is no wandb: install jaxnet with its extra \[wandb\]"):
        export(read_run(run), "wandb")
    with pytest.raises(ValueError, match="--to must be csv, tensorboard, wandb, mlflow, got sheets"):
        export(read_run(run), "sheets")
