"""Training that ends where a metric gets no better, and the checkpoint of the best epoch."""

import shutil

import pytest

from jaxnet.training import loop
from jaxnet.training.config import ConfigError, EarlyStop
from jaxnet.training.run_folder import Run, RunError
from jaxnet.training.run_summary import best_line, epochs_without_gain, unchanged_loss
from jaxnet.training.trained_network import CheckpointChoice, evaluate
from tests.runs import metrics, small, summary

NO_GAIN = ("train.epochs=9", 'train.stop_early={metric="validation_loss",patience=2,least_change=100.0}')


def lines(name, *found):
    return [{name: value} for value in found]


@pytest.mark.parametrize(
    ("metric", "found", "since"),
    [
        ("validation_loss", [3.0, 2.0, 1.0], 0),
        ("validation_loss", [1.0, 2.0, 1.0], 2),
        ("validation_loss", [3.0, 2.0, 2.5, 1.95], 2),
        ("test_accuracy", [0.5, 0.9, 0.8], 1),
        ("test_accuracy", [0.5], 0),
        ("test_accuracy", [], 0),
    ],
)
def test_epochs_without_gain(metric, found, since):
    stop = EarlyStop(metric=metric, least_change=0.1)
    assert epochs_without_gain(lines(metric, *found), stop) == since


def test_the_best_line():
    assert (
        best_line([{"test_loss": 2, "n": 1}, {"test_loss": 1, "n": 2}, {"test_loss": 1, "n": 3}], "test_loss")["n"] == 2
    )
    assert best_line([{"test_accuracy": 2, "n": 1}, {"test_accuracy": 1, "n": 2}], "test_accuracy")["n"] == 1


def test_training_ends_early_to_the_bits_of_so_many_epochs(tmp_path, capsys, curves):
    run = loop.train(small(*NO_GAIN), run_dir=tmp_path / "run")
    said = capsys.readouterr().out
    assert "stopped early: validation_loss has not been better for 2 of 9 epochs" in said
    whole = loop.train(small("train.epochs=3"), run_dir=tmp_path / "whole", quiet=True)
    assert summary(run)["params_sha256"] == summary(whole)["params_sha256"]
    assert metrics(run) == metrics(whole)
    assert (summary(run)["status"], summary(run)["epochs"], summary(run)["stopped_early"]) == ("finished", 3, True)
    assert (run / "curves.png").exists()
    assert Run.open(run).ended_well()
    evaluate(run)


def test_a_resumed_run_ends_where_it_would_have(tmp_path):
    run = loop.train(small(*NO_GAIN), run_dir=tmp_path / "run", quiet=True)
    before = summary(run)
    (run / "summary.json").unlink()  # killed before it was written
    loop.resume(run, quiet=True)
    assert summary(run)["params_sha256"] == before["params_sha256"]
    assert len(metrics(run)) == 3


def test_each_seed_ends_by_itself(tmp_path):
    stop = 'train.stop_early={metric="validation_accuracy",patience=1}'
    config = small("train.epochs=6", stop, "train.optimizer.learning_rate=0.02", "checkpoint.every_seconds=0.0")
    runs = loop.train_together(config, [0, 1, 2, 3], runs_dir=tmp_path, quiet=True)
    alone = [
        loop.train(config.model_copy(update={"seed": seed}), runs_dir=tmp_path / "alone", quiet=True)
        for seed in range(4)
    ]
    epochs = [summary(run)["epochs"] for run in runs]
    assert epochs == [summary(run)["epochs"] for run in alone]
    assert len(set(epochs)) > 1, "the seeds should end at several epochs, for the test to mean something"
    assert [len(metrics(run)) for run in runs] == epochs
    # As if killed before the last of them ended: the others stay as they are.
    last = epochs.index(max(epochs))
    before = [summary(run) for run in runs]
    (runs[last] / "summary.json").unlink()
    shutil.rmtree(runs[last] / "checkpoints" / str(max(int(p.name) for p in (runs[last] / "checkpoints").iterdir())))
    loop.resume_together(runs, quiet=True)
    assert [summary(run)["params_sha256"] for run in runs] == [each["params_sha256"] for each in before]


def test_the_best_checkpoint_is_kept(tmp_path):
    overrides = ("train.epochs=6", "checkpoint.keep=1", 'checkpoint.best="train_loss"', "monitor.train_accuracy=true")
    run = loop.train(small(*overrides, "train.optimizer.learning_rate=0.5"), run_dir=tmp_path / "run", quiet=True)
    rising = metrics(run)
    best = best_line(rising, "train_loss")["step"]
    steps = {int(path.name) for path in (run / "checkpoints").iterdir()}
    assert steps == {best, 66}
    found = evaluate(run, reading=CheckpointChoice(best=True))
    line = next(each for each in rising if each["step"] == best)
    assert found["validation_loss"] == pytest.approx(line["validation_loss"], rel=1e-6)


def test_the_best_is_not_the_last(tmp_path):
    """The learning rate becomes far too large after the second epoch, so the loss rises from there."""
    rate = '{schedule="piecewise_constant_schedule",init_value=0.1,boundaries_and_scales={"22"=10000.0}}'
    overrides = ("train.epochs=6", "checkpoint.keep=1", 'checkpoint.best="validation_loss"')
    run = loop.train(small(*overrides, f"train.optimizer.learning_rate={rate}"), run_dir=tmp_path / "run", quiet=True)
    assert {int(path.name) for path in (run / "checkpoints").iterdir()} == {22, 66}
    found = evaluate(run, reading=CheckpointChoice(best=True))
    assert found["validation_loss"] == pytest.approx(metrics(run)[1]["validation_loss"], rel=1e-6)
    assert found["validation_loss"] < evaluate(run)["validation_loss"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ('checkpoint.best="train_accuracy"', "checkpoint.best must be measured in this run, one of train_loss"),
        ('train.stop_early={metric="loss"}', r"train.stop_early.metric: must match"),
    ],
)
def test_a_metric_that_is_not_measured(tmp_path, override, words):
    with pytest.raises(ConfigError, match=words):
        loop.train(small(override), run_dir=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_no_best_checkpoint(tmp_path):
    run = loop.train(small("train.epochs=1"), run_dir=tmp_path / "run", quiet=True)
    with pytest.raises(RunError, match="has no checkpoint of a best epoch"):
        evaluate(run, reading=CheckpointChoice(best=True))


def test_a_loss_that_did_not_fall_is_told():
    for losses, words in (
        ([0.5, 0.5], "0.5 in the first epoch, 0.5 in the last"),
        ([2.0, 1.0, 1e16], "1e+16 in the last"),
    ):
        [line] = unchanged_loss([{"train_loss": loss} for loss in losses])
        assert words in line
        assert "change train.optimizer.learning_rate" in line
    for losses in ([1.0], [1.0, 2.0, 0.9]):
        assert not list(unchanged_loss([{"train_loss": loss} for loss in losses]))
