"""Whole runs of small configs: what a run's folder holds, and that its numbers are those of the step."""

import json
import subprocess
import tomllib

import jax
import numpy as np
import pytest

from jaxnet.backprop import predict
from jaxnet.training import devices, loop
from jaxnet.training.checkpoint import leaves_sha256
from jaxnet.training.config import load_config
from jaxnet.training.data import load
from jaxnet.training.session import Session
from jaxnet.training.trained_network import evaluate, restore
from tests.runs import metrics, small, summary

MONITORS = {"mean_delta": 20, "gradient_norms": True, "update_ratios": True, "train_accuracy": True}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with every monitor on, and what it said."""
    folder = tmp_path_factory.mktemp("runs")
    return loop.train(small(monitor=MONITORS, tensorboard=True), runs_dir=folder, overrides=["train.epochs=3"])


def test_the_folder_holds_what_was_run(run):
    assert run.name.startswith("small-train.epochs=3-")
    assert len(run.name.rpartition("-")[2]) == 8
    config = load_config(run / "config.toml")
    assert config == small(monitor=MONITORS, tensorboard=True)
    environment = json.loads((run / "environment.json").read_text())
    assert environment["versions"]["jax"] == jax.__version__
    assert environment["seed"] == 0
    assert environment["platform"] == "cpu"
    revision = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if revision.returncode == 0:
        assert environment["git_revision"] == revision.stdout.strip()
        assert (run / "source.patch").exists()
    assert list((run / "tensorboard").glob("events*"))
    assert "small" not in [path.name for path in run.parent.iterdir()], "nothing half made is left"


def test_metrics_have_a_line_for_each_epoch(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 11), (2, 22), (3, 33)]
    for line in lines:
        assert list(line) == sorted(line)
        for name in ("delta_norms", "mean_delta_norms", "gradient_norms", "update_ratios"):
            assert len(line[name]) == 2, "a number for each layer with parameters"
            assert all(value > 0 for value in line[name])
        assert 0 <= line["test_accuracy"] <= 1
        assert {"train_loss", "train_accuracy", "validation_loss", "examples_per_second", "seconds"} <= set(line)
    assert lines[-1]["train_loss"] < 0.7 * lines[0]["train_loss"]


def test_the_summary_is_of_the_last_and_the_best_epoch(run):
    lines, found = metrics(run), summary(run)
    assert found["status"] == "finished"
    assert found["epochs"] == 3
    for split in ("validation", "test"):
        accuracies = [line[f"{split}_accuracy"] for line in lines]
        assert found[f"{split}_accuracy"] == accuracies[-1]
        assert found[f"best_{split}_accuracy"] == max(accuracies)
    assert lines[found["best_epoch"] - 1]["test_accuracy"] == found["best_test_accuracy"]


def test_a_trained_network_comes_back(run):
    trained = restore(run)
    assert (trained.step, trained.epoch) == (33, 3)
    assert leaves_sha256(trained.params) == summary(run)["params_sha256"]
    test = load("tests.runs:blobs").test
    out = predict(trained.session.recipe.net)(trained.params, test.x)
    accuracy = float(np.mean(np.asarray(out).argmax(-1) == test.y))
    assert accuracy == summary(run)["test_accuracy"] == evaluate(run)["test_accuracy"]
    np.testing.assert_allclose(evaluate(run)["test_loss"], summary(run)["test_loss"], rtol=1e-6)


def test_evaluation_on_other_data(run, tmp_path):
    test = load("tests.runs:blobs").test
    np.savez(tmp_path / "other.npz", x=test.x[:7], y=test.y[:7])
    table = {"name": str(tmp_path / "other.npz"), "split": [7, 0, 0], "classes": 3}
    found = evaluate(run, data=table)
    out = predict(restore(run).session.recipe.net)(restore(run).params, test.x[:7])
    assert found["test_accuracy"] == float(np.mean(np.asarray(out).argmax(-1) == test.y[:7]))


def test_the_same_config_gives_the_same_bits_in_another_folder(run, tmp_path):
    again = loop.train(load_config(run / "config.toml"), runs_dir=run.parent, overrides=["train.epochs=3"], quiet=True)
    assert again.name == f"{run.name}-2"
    assert summary(again)["params_sha256"] == summary(run)["params_sha256"]
    assert metrics(again) == metrics(run)


@pytest.mark.parametrize("override", ["seed=1", "train.shuffle=false", "train.chunks=2", "train.l2=1.0"])
def test_what_a_config_says_is_done(run, tmp_path, override):
    if override == "train.chunks=2":  # the same gradient, summed in another order
        other = loop.train(small("train.chunks=2", monitor=MONITORS), run_dir=tmp_path / "r", quiet=True)
        ours, theirs = metrics(run)[-1], metrics(other)[-1]
        np.testing.assert_allclose(ours["train_loss"], theirs["train_loss"], rtol=1e-4)
        return
    other = loop.train(small(override, "train.epochs=1"), run_dir=tmp_path / "r", quiet=True)
    assert metrics(other)[0]["train_loss"] != metrics(run)[0]["train_loss"]


def test_calls_of_any_length_give_the_same_numbers(run, tmp_path):
    other = loop.train(small("train.steps_per_call=3", monitor=MONITORS), run_dir=tmp_path / "r", quiet=True)
    for ours, theirs in zip(metrics(run), metrics(other), strict=True):
        np.testing.assert_allclose(ours["train_loss"], theirs["train_loss"], rtol=1e-5)


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_precisions(run, tmp_path, precision):
    other = loop.train(small(f"precision={precision}"), run_dir=tmp_path / "r", quiet=True)
    kinds = {leaf.dtype for leaf in jax.tree.leaves(restore(other).params)}
    assert kinds == {np.dtype("float64" if precision == "float64" else "float32")}
    first = metrics(run)[-1]["train_loss"]
    assert abs(metrics(other)[-1]["train_loss"] - first) < 0.2 + 0.2 * first
    assert not jax.config.jax_enable_x64


def test_seeds_together_equal_those_alone(tmp_path):
    folders = loop.train_together(small(), [0, 5], runs_dir=tmp_path, overrides=["a=1"], quiet=True)
    assert [folder.name.split("-")[1] for folder in folders] == ["a=1,seed=0", "a=1,seed=5"]
    alone = loop.train(small("seed=5"), run_dir=tmp_path / "alone", quiet=True)
    for ours, theirs in zip(metrics(folders[1]), metrics(alone), strict=True):
        np.testing.assert_allclose(ours["train_loss"], theirs["train_loss"], rtol=1e-5)
        np.testing.assert_allclose(ours["delta_norms"], theirs["delta_norms"], rtol=1e-4)
    assert metrics(folders[0])[0]["train_loss"] != metrics(folders[1])[0]["train_loss"]
    trained = [restore(folder).params for folder in (folders[1], tmp_path / "alone")]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *trained)
    assert tomllib.loads((folders[1] / "config.toml").read_text())["seed"] == 5


def test_the_order_is_of_seed_and_epoch():
    dataset = load("tests.runs:blobs")
    one, other = Session(small(), dataset), Session(small("seed=1"), dataset)
    orders = [np.asarray(session.order(epoch)) for session in (one, other) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(103)) for order in orders)
    assert len({order.tobytes() for order in orders}) == 4
    assert (np.asarray(one.order(1)) == orders[1]).all()


def test_no_epochs_only_evaluate(tmp_path):
    folder = loop.train(small("train.epochs=0"), run_dir=tmp_path / "r", quiet=True)
    assert metrics(folder) == []
    assert 0 <= summary(folder)["test_accuracy"] <= 1


def test_what_is_said(capsys, tmp_path):
    promise = {"test_accuracy": 0.5, "published": 0.97, "within": 0.1}
    folder = loop.train(small(promise=promise), run_dir=tmp_path / "r")
    said = capsys.readouterr().out.splitlines()
    assert said == (folder / "log.txt").read_text().splitlines()
    assert "103 / 40 / 40" in said[0]
    assert "dense 8, tanh, dense 3 | 75 parameters" in said[0]
    assert str(folder) in said[1]
    for epoch, line in enumerate(said[2:5], 1):
        assert line.startswith(f"{epoch}/3  loss ")
        assert "validation" in line
        assert "‖δ‖" in line
        assert "examples/s" in line
    assert "test" in said[5]
    assert "promised test accuracy 50.00 ± 10 %, published 97.00 %: kept" in said[6]
    assert said[-1].startswith(f"next: jaxnet eval {folder}")


@pytest.mark.parametrize(("override", "kept"), [("seed=3", True), ("mesh.data=2", True), ("train.epochs=1", False)])
def test_an_override_that_makes_it_another_recipe_takes_the_promise_away(override, kept):
    assert (small(override, promise={"test_accuracy": 0.5}).promise.test_accuracy is not None) == kept


def test_a_terminal_gets_a_bar(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    loop.train(small("train.steps_per_call=2"), run_dir=tmp_path / "r")
    said = capsys.readouterr().out
    assert "3/3  loss" in said, "the rows stay"
    assert "epoch 1/3" in said, "the bar was there"


def test_precision_ends_with_the_run():
    with devices.precision("float64"):
        assert jax.config.jax_enable_x64
    assert not jax.config.jax_enable_x64
