"""Training on data that stay on disk: the same bits as in memory, also when it is killed and resumed."""

import json
import shutil

import numpy as np
import pytest

from jaxnet.training import loop
from jaxnet.training.data import DataError, load
from jaxnet.training.session import Session
from jaxnet.training.trained_network import evaluate
from tests.runs import blobs, metrics, small, summary

MONITORS = {"mean_delta": 20, "gradient_norms": True}
TEXT = "".join(f"{i} times {i} is {i * i};\n" for i in range(300)) + "ω, é and 中"
LANGUAGE = {"model": {"name": "char_lstm", "vocab": 30, "width": 8}, "loss": "softmax_cross_entropy"}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def arrays(tmp_path):
    folder = tmp_path / "arrays"
    folder.mkdir()
    for name, array in blobs().items():
        np.save(folder / f"{name}.npy", array)
    np.savez(tmp_path / "arrays.npz", **blobs())
    return folder


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for i, start in enumerate(range(0, len(TEXT), 1000)):
        (folder / f"{i:02}.txt").write_text(TEXT[start : start + 1000], "utf-8", newline="")
    (tmp_path / "whole.txt").write_text(TEXT, "utf-8", newline="")
    return folder


def test_arrays_on_disk_train_to_the_bits_of_arrays_in_memory(arrays, tmp_path):
    runs = [
        loop.train(small(data=str(data), monitor=MONITORS), run_dir=tmp_path / f"run{i}", quiet=True)
        for i, data in enumerate((f"{arrays}/", arrays.with_suffix(".npz")))
    ]
    assert load(f"{arrays}/").on_disk
    assert isinstance(load(f"{arrays}/").train.x, np.memmap)
    assert metrics(runs[0]) == metrics(runs[1])
    assert summary(runs[0])["params_sha256"] == summary(runs[1])["params_sha256"]
    assert evaluate(runs[0])["test_accuracy"] == summary(runs[1])["test_accuracy"]


def test_a_text_in_shards_trains_to_the_bits_of_a_text_in_memory(shards, tmp_path):
    table = {"window": 20, "split": [0.8, 0.1, 0.1]}
    runs = [
        loop.train(small(data={"name": name, **table}, **LANGUAGE), run_dir=tmp_path / f"run{i}", quiet=True)
        for i, name in enumerate((f"{shards}/", f"{tmp_path}/whole.txt"))
    ]
    dataset = load({"name": f"{shards}/", **table})
    assert isinstance(dataset.text.tokens, np.memmap)
    assert "".join(dataset.text.characters[token] for token in dataset.text.tokens) == TEXT[: len(dataset.text.tokens)]
    assert metrics(runs[0]) == metrics(runs[1])


def test_only_what_a_call_needs_is_read(arrays):
    session = Session(small("train.steps_per_call=2", data=f"{arrays}/"), load(f"{arrays}/"))
    order = session.order(0)
    in_memory = Session(small("train.steps_per_call=2", data="tests.runs:blobs"), load("tests.runs:blobs"))
    places = np.asarray(in_memory.order(0))
    for call in (session.calls[0], session.calls[1], session.calls[4], session.calls[0], session.calls[-1]):
        train, at, start = session.given(call, order)
        expected = places[call.start : call.start + call.count * call.batch]
        assert train.x.shape == (call.count, call.batch, 5)
        np.testing.assert_array_equal(train.x.reshape(-1, 5), blobs()["x_train"][expected])
        np.testing.assert_array_equal(at, np.arange(len(expected)))
        assert start == 0
    assert session.arrays["train"].x.shape == (1, 5)


def test_a_run_that_was_cut_off_goes_on_to_the_same_bits(arrays, tmp_path):
    """From a checkpoint inside an epoch: as after a kill, all later files are gone."""
    overrides = ("train.steps_per_call=2", "checkpoint.every_seconds=0", "checkpoint.keep=99")
    run = loop.train(small(*overrides, data=f"{arrays}/"), run_dir=tmp_path / "run", quiet=True)
    expected = metrics(run), summary(run)["params_sha256"]
    for step in (run / "checkpoints").iterdir():
        if int(step.name) > 14:  # of 11 steps an epoch
            shutil.rmtree(step)
    (run / "summary.json").unlink()
    loop.resume(run, quiet=True)
    assert (run / "checkpoints" / "15").exists()
    assert (metrics(run), summary(run)["params_sha256"]) == expected


def test_a_nan_is_found_in_data_on_disk(arrays, tmp_path):
    config = small("train.optimizer.learning_rate=1e39", "loss=quadratic", "precision=float64", data=f"{arrays}/")
    with pytest.raises(loop.DivergedError, match="NaN or infinity at step"):
        loop.train(config, run_dir=tmp_path / "run", quiet=True)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "diverged"


def test_regression_and_lone_columns(arrays):
    for part in ("train", "validation", "test"):
        y = np.load(arrays / f"y_{part}.npy")
        np.save(arrays / f"y_{part}.npy", y.astype(np.float32))
    dataset = load({"name": f"{arrays}/", "task": "regression"})
    assert dataset.train.y.shape == (103, 1)
    assert dataset.classes is None


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("x_train", None, "must hold x_train.npy and y_train.npy, .txt files, or folders of pictures"),
        ("y_test", None, "y_test.npy: must be an array that can be read"),
        ("x_train", np.zeros((103, 5)), "must be an array of float32 or int32 .*, got float64"),
        ("x_train", np.full((103, 5), np.nan, np.float32), "every number must be finite, got another in row 0"),
        ("y_train", np.zeros(103, np.int32) - 1, "class labels must go from 0 to"),
        ("y_train", np.zeros(50, np.int32), "x and y must be of one length"),
        ("x_test", np.zeros((40, 4), np.float32), r"one example has shape \(4,\), in the training set \(5,\)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays, name, array, words):
    (arrays / f"{name}.npy").unlink()
    if array is not None:
        np.save(arrays / f"{name}.npy", array)
    with pytest.raises(DataError, match=words):
        load(f"{arrays}/")


def test_a_damaged_file_or_a_wrong_option_is_refused(arrays, shards):
    with (arrays / "x_train.npy").open("r+b") as file:
        file.truncate(500)
    with pytest.raises(DataError, match=r"x_train.npy: must be an array that can be read"):
        load(f"{arrays}/")
    with pytest.raises(DataError, match="take no window"):
        load({"name": f"{arrays}/", "window": 5})
    with pytest.raises(DataError, match="takes no task"):
        load({"name": f"{shards}/", "task": "regression"})
    (shards / "05.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"05.txt: must be a text in UTF-8"):
        load(f"{shards}/")
    with pytest.raises(DataError, match="there is no such folder"):
        load("nowhere/")


def test_seeds_of_data_on_disk_are_trained_apart(arrays):
    with pytest.raises(ValueError, match="data on disk are trained on by one seed at a time"):
        Session(small(data=f"{arrays}/"), load(f"{arrays}/"), seeds=[0, 1])
