"""A report's mistakes, held against predictions one by one; dead units; notes, tags and deleting."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import backprop, conv2d, dense, flatten, mean_squared_error, per_position, relu, repeat, serial, traces
from jaxnet.training import loop, mistakes, monitors, reports
from jaxnet.training.data import Dataset, Split
from jaxnet.training.lock import Lock
from jaxnet.training.predict import predict
from tests.runs import called, metrics, small

MODEL = [{"dense": 8}, "relu", {"dense": 10}]


def pictures(colour: bool = False):
    """Noise about one bright pixel for each class, 4×4: some are hard to tell apart."""
    random = np.random.RandomState(0)
    y = random.randint(10, size=240)
    x = random.rand(240, 4, 4, 3 if colour else 1)
    x.reshape(240, 16, -1)[np.arange(240), y] += 0.8
    return {"x_train": x[:140], "y_train": y[:140], "x_test": x[140:], "y_test": y[140:]}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    data = {"name": "tests.test_mistakes:pictures"}
    config = small(data=data, model=["flatten", *MODEL], monitor={"dead_units": 50})
    return loop.train(config, run_dir=tmp_path_factory.mktemp("original") / "run", quiet=True)


@pytest.fixture
def run(original, tmp_path):
    return shutil.copytree(original, tmp_path / "run")


def test_the_worst_examples_are_those_of_the_highest_cost(original, tmp_path):
    found = mistakes.mistakes(original)
    test = pictures()
    np.save(tmp_path / "x.npy", test["x_test"])
    outputs = predict(original, tmp_path / "x.npy").outputs
    labels, answers = test["y_test"], outputs.argmax(axis=-1)
    costs = -np.log(outputs[np.arange(len(labels)), labels])
    wrong = np.flatnonzero(labels != answers)
    expected = wrong[np.argsort(-costs[wrong])][: mistakes.MOST_EXAMPLES]
    assert [number for number, *_ in found.worst] == list(expected)
    assert found.split == "test"
    for (number, label, answer, cost), picture in zip(found.worst, found.pictures, strict=True):
        assert (label, answer) == (labels[number], answers[number])
        assert cost == pytest.approx(costs[number], rel=1e-4)
        np.testing.assert_array_equal(picture, test["x_test"][number, ..., 0].astype(np.float32))
    for label, answer in np.ndindex(10, 10):
        assert found.confusion[label, answer] == np.sum((labels == label) & (answers == answer))


def test_the_report_of_one_run_has_its_mistakes(run, tmp_path):
    said = []
    [page, _] = reports.report([run], say=said.append)
    text = page.read_text("utf-8")
    assert said == []
    assert all(title in text for title in ("test: class and answer", "test: accuracy by class", "test: most wrong"))
    shutil.rmtree(run / "checkpoints")
    reports.report([run], say=said.append)
    assert "most wrong" not in page.read_text("utf-8")
    assert said[0].startswith("left out: the examples that the network gets wrong: ")
    assert "has no checkpoint yet" in said[0]


def test_a_table_has_its_worst_rows_by_number(tmp_path):
    config = small(data={"name": "tests.runs:blobs", "spread": 4.0})
    run = loop.train(config, run_dir=tmp_path / "run", quiet=True)
    found = mistakes.mistakes(run)
    assert found.pictures is None
    assert "test: most wrong" in reports.report([run])[0].read_text("utf-8")


def test_colour_pictures_stay_pictures():
    x = pictures(colour=True)["x_test"]
    found = mistakes.pictures(load_own(x), x)
    assert [each.shape for each in found] == [(4, 4, 3)] * len(x)


def load_own(x):
    split = Split(x, np.zeros(len(x), np.int32))
    return Dataset("own", split, split, split, classes=1)


# ------------------------------------------------------------------------------------------ dead units


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (serial(dense(7), relu, dense(5), relu), (4,)),
        (serial(conv2d(6, 3), relu, flatten(), dense(2)), (5, 5, 1)),
        (serial(dense(4), repeat(serial(dense(4), relu), 3)), (4,)),
        (per_position(serial(dense(6), relu)), (3, 4)),
    ],
    ids=["dense", "conv", "repeat", "positions"],
)
def test_dead_units_are_those_that_are_0_for_all_examples(net, shape):
    xs = jax.random.normal(jax.random.key(1), (6, *shape))
    params = backprop.initialize(net, mean_squared_error, jax.random.key(3), xs[0])

    def lowered(path, p):
        return (
            jnp.subtract(*jnp.broadcast_arrays(p, 3.0 * jnp.arange(p.shape[-1], dtype=p.dtype)))
            if path[-1].key == "b"
            else p
        )

    params = jax.tree_util.tree_map_with_path(lowered, params)  # some units die
    ys = 1 + backprop.predict(net)(params, xs)
    found = jax.jit(monitors.dead_units(net, mean_squared_error))(params, xs, ys)
    expected = []
    for step in traces.trace(net, mean_squared_error)(params, xs, ys).steps:
        if step.layer.value == "relu":
            out = np.asarray(step.out)
            blocks = [out[:, i] for i in range(3)] if net.parts[-1:] and net.parts[-1].maker == "repeat" else [out]
            expected += [np.mean((each.reshape(-1, each.shape[-1]) == 0).all(axis=0)) for each in blocks]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert sum(expected) > 0


def test_dead_units_are_among_the_metrics(original):
    assert all(len(line["dead_units"]) == 1 and 0 <= line["dead_units"][0] <= 1 for line in metrics(original))
    assert "dead units" in reports.page([reports.read_run(original)], ["run"])


# --------------------------------------------------------------------------------------- notes and tags


def test_notes_and_tags_are_kept_listed_and_found(run):
    assert called("note", run, "a first try", "--tag", "good", "--tag", "small").exit_code == 0
    shown = called("note", run, "more", "--untag", "small", "--tag", "good").stdout
    assert shown == "a first try\nmore\ntags: good\n"
    assert called("note", run).stdout == shown
    assert "good" in called("runs", run.parent, "--where", "tag=good").stdout
    assert "no run meets" in called("runs", run.parent, "--where", "tag=small").stdout
    assert "no run meets" in called("runs", run.parent, "--where", "tag!=good").stdout
    assert "a first try" in reports.report([run], say=print)[0].read_text("utf-8")


def test_damaged_notes_are_told(run):
    (run / "notes.json").write_text("[")
    found = called("note", run, "x")
    assert found.exit_code == 2
    assert (run / "notes.json").read_text() == "["


def test_a_run_is_deleted_after_a_question(run):
    assert called("delete", run, answer="n\n").exit_code == 2
    assert called("delete", run).exit_code == 2  # no answer
    assert called("delete", run.parent, "--yes").exit_code == 2  # no run
    lock = Lock(run)
    found = called("delete", run, "--yes")
    assert (found.exit_code, run.is_dir()) == (2, True)
    lock.release()
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
    assert called("delete", run, answer="y\n").exit_code == 0
    assert list(run.parent.iterdir()) == []
