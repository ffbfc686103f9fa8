"""Evaluation and prediction of networks trained on a table: classes by name, their confusions, regression."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxnet.training import loop, predict
from jaxnet.training.accuracy import evaluation
from jaxnet.training.data import DataError, load
from jaxnet.training.session import Session, recalls
from jaxnet.training.trained_network import MOST, CheckpointChoice, confusion_tables, evaluate, lines, restore
from tests.runs import metrics, small

KINDS = ("rose", "lily", "iris")


def flowers(path: Path, n: int = 60, kinds: tuple[str, ...] = KINDS, head: str = "id,a,b,kind") -> Path:
    """A table of points about one centre for each kind, two of the centres close together."""
    random = np.random.RandomState(0)
    rows = [head] if head else []
    for i in range(n):
        a, b = random.normal(size=2) + {"rose": (4, 0), "lily": (-4, 0), "iris": (-3, 1)}[kinds[i % len(kinds)]]
        rows.append(f"{i},{a:.4f},{b:.4f},{kinds[i % len(kinds)]}")
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    data = {"name": str(flowers(folder / "flowers.csv")), "drop": ["id"]}
    config = small(data=data, monitor={"class_accuracy": True})
    return loop.train(config, run_dir=folder / "run", quiet=True)


@pytest.fixture(scope="module")
def regression(tmp_path_factory):
    folder = tmp_path_factory.mktemp("regression")
    rows = [f"{i / 60},{i % 7},{2 * i / 60 - i % 7}" for i in range(60)]
    (folder / "line.csv").write_text("a,b,c\n" + "\n".join(rows) + "\n")
    data = {"name": str(folder / "line.csv"), "task": "regression", "target": "c"}
    config = small(
        "train.epochs=40",
        "train.optimizer.learning_rate=0.02",
        data=data,
        loss="mean_squared_error",
        model=[{"dense": 1}],
    )
    return loop.train(config, run_dir=folder / "run", quiet=True)


def answers(run: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The class of each example of a split, and the network's answer."""
    trained = restore(run)
    x, y = getattr(trained.session.dataset, split)
    outputs, _ = predict.answers(trained, x)
    return y, outputs.argmax(axis=-1)


def test_confusions_are_counted(classifier):
    found = evaluate(classifier)
    for split in ("validation", "test"):
        y, answer = answers(classifier, split)
        expected = [[int(((y == i) & (answer == j)).sum()) for j in range(3)] for i in range(3)]
        assert found[f"{split}_confusion"] == expected
        shares = [expected[i][i] / sum(expected[i]) for i in range(3)]
        assert found[f"{split}_class_accuracy"] == pytest.approx(shares)
        assert found[f"{split}_balanced_accuracy"] == pytest.approx(np.mean(shares))
    assert found["classes"] == ["iris", "lily", "rose"]
    assert metrics(classifier)[-1]["test_class_accuracy"] == found["test_class_accuracy"]
    assert metrics(classifier)[-1]["test_balanced_accuracy"] == found["test_balanced_accuracy"]
    assert not any("confusion" in name for name in metrics(classifier)[-1])
    assert f"balanced accuracy {100 * found['test_balanced_accuracy']:.2f} %" in lines(found)[1]
    headings = [column.header for column in confusion_tables(found)[1].columns]
    assert [str(each) for each in headings] == ["test: class", "as iris", "as lily", "as rose", "accuracy"]


def test_a_class_without_examples_has_no_accuracy():
    np.testing.assert_array_equal(recalls(np.array([[3, 1], [0, 0]])), [0.75, np.nan])
    many = np.eye(30, dtype=int) * 2
    many[4] = np.eye(30, dtype=int)[5]
    found = {"test_confusion": many.tolist(), "test_class_accuracy": recalls(many).tolist()}
    [table] = confusion_tables(found)
    assert table.row_count == MOST
    assert str(next(table.columns[0].cells)) == "4"


def test_ignored_labels_are_in_no_confusion():
    data = load({"name": "modular_addition", "modulus": 5})
    config = small(data={"name": "modular_addition", "modulus": 5}, model=[{"embedding": {"vocab": 6, "width": 5}}])
    session = Session(config, data)
    params = session.begin().whole
    found = evaluation(session.recipe, True, ignore=-1, confusion=True)(params, session.arrays["train"])
    assert int(found["confusion"].sum()) == int(found["answers"]) == len(data.train.y)
    assert int(np.trace(found["confusion"])) == int(found["right"])


def test_other_data_are_read_as_the_runs_own(classifier, tmp_path):
    said: list[str] = []
    other = flowers(tmp_path / "other.csv", n=20, kinds=("lily", "rose"))
    found = evaluate(classifier, data=str(other), reading=CheckpointChoice(say=said.append))
    assert np.array(found["test_confusion"]).sum(axis=1).tolist() == [0, 10, 10]
    assert 'read as the run\'s own data, with drop = ["id"], classes = ["iris", "lily", "rose"]' in said[0]
    other.write_text(other.read_text().replace("rose", "tulip"))
    with pytest.raises(DataError, match="'tulip' must be one of the classes iris, lily, rose"):
        evaluate(classifier, data=str(other))


def test_a_regression_from_a_table(regression, tmp_path):
    found = evaluate(regression)
    assert found.keys() == {"validation_loss", "test_loss"}
    assert found["test_loss"] < 0.5
    (tmp_path / "other.csv").write_text("a,b,c\n" + "1,2,0\n0,1,-1\n0.5,3,-2\n")
    loss = evaluate(regression, data=str(tmp_path / "other.csv"))["test_loss"]
    (tmp_path / "turned.csv").write_text("b,c,a\n" + "2,0,1\n1,-1,0\n3,-2,0.5\n")
    assert evaluate(regression, data=str(tmp_path / "turned.csv"))["test_loss"] == pytest.approx(loss, rel=1e-6)
    params = restore(regression).params[0]
    x = np.array([[1, 2], [0, 1], [0.5, 3]])
    residual = x @ np.asarray(params["W"])[0] + np.asarray(params["b"]) - [0, -1, -2]
    assert loss == pytest.approx(np.mean(residual**2), rel=1e-5)
    assert not (regression / "classes.json").exists()


def test_prediction_of_a_table(classifier, regression, tmp_path):
    assert json.loads((classifier / "classes.json").read_text()) == {"classes": ["iris", "lily", "rose"]}
    whole = predict.predict(classifier, flowers(tmp_path / "new.csv", n=6))
    assert [whole.called(i) for i in whole.classes][0::3] == ["rose", "rose"]
    text = (tmp_path / "new.csv").read_text().splitlines()
    for name, columns in {"no target": (0, 1, 2), "inputs alone": (1, 2)}.items():
        part = tmp_path / f"{name}.csv"
        part.write_text("\n".join(",".join(line.split(",")[i] for i in columns) for line in text) + "\n")
        np.testing.assert_array_equal(predict.predict(classifier, part).outputs, whole.outputs)
    (tmp_path / "one.csv").write_text("a,b\n4,0\n")
    assert predict.lines(predict.predict(classifier, tmp_path / "one.csv"))[-1].startswith("class rose (probability 0.")
    (tmp_path / "line.csv").write_text("a,b\n0.5,3\n")
    assert predict.predict(regression, tmp_path / "line.csv").outputs == pytest.approx(-2, abs=1.5)
    (tmp_path / "wide.csv").write_text("1,2,3,4,5,6\n")
    with pytest.raises(DataError, match=r"one example of flowers has shape \(2,\), got \(1, 6\)"):
        predict.predict(classifier, tmp_path / "wide.csv")
    for name, text in {"turned": "b,a\n0,4\n", "more": "b,c,a\n0,9,4\n"}.items():
        (tmp_path / f"{name}.csv").write_text(text)
        found = predict.predict(classifier, tmp_path / f"{name}.csv").outputs
        np.testing.assert_array_equal(found, predict.predict(classifier, tmp_path / "one.csv").outputs)
    (tmp_path / "others.csv").write_text("a,foo\n4,0\n")
    with pytest.raises(
        DataError, match=r"must have the columns of the training data, a, b, in any order; there is no b"
    ):
        predict.predict(classifier, tmp_path / "others.csv")
    (tmp_path / "text.csv").write_text("a,b\n1,two\n")
    with pytest.raises(DataError, match=r"line 2, column 2 \(b\): must be a finite number, got 'two'"):
        predict.predict(classifier, tmp_path / "text.csv")
