"""What a trained network says to files of examples and to pictures."""

import math

import numpy as np
import pytest
from PIL import Image

from jaxnet.training import loop, predict, trained_network
from jaxnet.training.config import make_config
from jaxnet.training.data import DataError, Dataset, Split, load
from tests.runs import called

DIGITS = {
    "data": {"name": "digits", "limit": 300},
    "loss": "softmax_cross_entropy",
    "model": [{"dense": {"units": 16, "init": "he_normal"}}, "relu", {"dense": 10}],
    "train": {"epochs": 10, "batch": 20, "optimizer": {"name": "adam", "learning_rate": 0.01}},
    "monitor": {"delta_norms": False},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    return loop.train(make_config(DIGITS), run_dir=place / "digits", quiet=True)


@pytest.fixture(scope="module")
def test_set():
    return load("digits").test


@pytest.fixture
def plain_dataset():
    """Pictures of 8×8 in 0…1, of which a test may make others."""
    x = np.linspace(0, 1, 128, dtype=np.float32).reshape(2, 64)
    split = Split(x, np.array([0, 1], np.int32))
    return Dataset("pictures", split, split, split, 2, (8, 8))


def said_by(run, file):
    return called("predict", run, file)


# ------------------------------------------------------------------------------------------- answers


def test_many_examples_as_the_evaluation_has_them(run, test_set, tmp_path):
    np.savez(tmp_path / "x.npz", x=test_set.x, y=test_set.y)
    prediction = predict.predict(run, tmp_path / "x.npz")
    np.testing.assert_allclose(prediction.outputs.sum(axis=1), 1, rtol=1e-5)
    found = trained_network.evaluate(run)
    assert np.mean(prediction.classes == test_set.y) == pytest.approx(found["test_accuracy"])
    assert found["test_accuracy"] > 0.8
    chosen = prediction.outputs[np.arange(len(test_set.y)), test_set.y]
    assert -np.log(chosen).mean() == pytest.approx(found["test_loss"], rel=1e-3)  # so they are the probabilities


def test_one_example_in_a_table(run, test_set, tmp_path):
    np.save(tmp_path / "one.npy", test_set.x[0].reshape(8, 8))
    prediction = predict.predict(run, tmp_path / "one.npy")
    result = said_by(run, tmp_path / "one.npy")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    best = int(prediction.classes[0])
    assert lines[1] == f"class {best} (probability {prediction.outputs[0][best]:.4f})"
    assert lines[2].split() == ["class", "probability"]
    rows = [line.split() for line in lines[3:]]
    assert sorted(int(row[0]) for row in rows) == list(range(10))
    assert [float(row[1]) for row in rows] == sorted((float(row[1]) for row in rows), reverse=True)


def test_bytes_are_scaled_and_said(run, test_set, tmp_path):
    np.save(tmp_path / "bytes.npy", np.round(test_set.x[:20] * 255).astype(np.uint8))
    np.save(tmp_path / "floats.npy", test_set.x[:20])
    scaled, whole = (predict.predict(run, tmp_path / f"{name}.npy") for name in ("bytes", "floats"))
    assert any("divided by 255" in note for note in scaled.notes)
    np.testing.assert_allclose(scaled.outputs, whole.outputs, atol=0.02)


def test_numbers_of_another_range_are_told(run, test_set, tmp_path):
    np.save(tmp_path / "wide.npy", test_set.x[:3] * 16)
    notes = predict.predict(run, tmp_path / "wide.npy").notes
    assert any("from 0 to 16, the training data's from 0 to 1" in note for note in notes)


@pytest.mark.parametrize("ink", ["dark", "bright"])
def test_a_picture(run, test_set, tmp_path, ink):
    """Drawn large, dark on bright or bright on dark, it is the class that the small one is."""
    for i in range(5):
        grey = np.kron(np.round(test_set.x[i].reshape(8, 8) * 255), np.ones((10, 10))).astype(np.uint8)
        Image.fromarray(255 - grey if ink == "dark" else grey).convert("RGB").save(tmp_path / "p.png")
        np.save(tmp_path / "p.npy", test_set.x[i])
        drawn, given = (predict.predict(run, tmp_path / f"p.{end}") for end in ("png", "npy"))
        np.testing.assert_allclose(drawn.outputs, given.outputs, atol=0.02)
        assert any("inverted" in note for note in drawn.notes) == (ink == "dark")


# ------------------------------------------------------------------------------------------- pictures


def drawn(tmp_path, dataset, picture):
    picture.save(tmp_path / "p.png")
    return predict.examples(tmp_path / "p.png", dataset, {})


def test_a_picture_is_resized_without_deforming(plain_dataset, tmp_path):
    pixels = np.zeros((80, 40), np.uint8)
    pixels[20:60, 10:30] = 200
    x, notes = drawn(tmp_path, plain_dataset, Image.fromarray(pixels))
    due = np.zeros((8, 8))
    due[2:6, 3:5] = 200 / 255
    np.testing.assert_allclose(x.reshape(8, 8), due, atol=1e-6)
    assert notes[0].endswith("PNG of 40×80, L")
    assert "background added at its sides" in notes


def test_a_thin_picture_takes_little_memory(plain_dataset, tmp_path):
    x, _ = drawn(tmp_path, plain_dataset, Image.new("L", (80_000, 1), 90))
    assert x.shape == (1, 64)
    np.testing.assert_allclose(x, 90 / 255, rtol=1e-6)


def test_what_is_transparent_is_paper(plain_dataset, tmp_path):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[3, 3] = 0, 0, 0, 255  # black ink on nothing
    x, notes = drawn(tmp_path, plain_dataset, Image.fromarray(pixels, "RGBA"))
    due = np.zeros((8, 8))
    due[3, 3] = 1
    np.testing.assert_allclose(x.reshape(8, 8), due)
    assert "transparent" in notes[0]
    assert any("inverted" in note for note in notes)


def test_sixteen_bits(plain_dataset, tmp_path):
    pixels = np.zeros((8, 8), np.uint16)
    pixels[4, 2] = 65535
    x, _ = drawn(tmp_path, plain_dataset, Image.fromarray(pixels))
    assert x.max() == pytest.approx(1)
    assert x.reshape(8, 8)[4, 2] == pytest.approx(1)


def test_a_picture_takes_the_range_and_shape_of_the_training_data(plain_dataset, tmp_path):
    train = Split(plain_dataset.train.x.reshape(2, 8, 8, 1) * 2 - 1, plain_dataset.train.y)
    dataset = Dataset("wide", train, train, train, 2, (8, 8))
    pixels = np.zeros((8, 8), np.uint8)
    pixels[0, 0] = 255
    x, notes = drawn(tmp_path, dataset, Image.fromarray(pixels))
    assert x.shape == (1, 8, 8, 1)
    assert (x.min(), x.max()) == (-1, 1)
    assert "to -1…1" in notes[-1]


# --------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("shape", [(64,), (8, 8), (8, 8, 1), (3, 64), (3, 8, 8), (3, 8, 8, 1)])
def test_forms_of_an_example(plain_dataset, tmp_path, shape):
    array = np.linspace(0, 1, math.prod(shape)).reshape(shape)
    np.save(tmp_path / "a.npy", array)
    x, _ = predict.examples(tmp_path / "a.npy", plain_dataset, {})
    np.testing.assert_allclose(x, array.reshape(-1, 64), rtol=1e-6)
    assert x.dtype == np.float32


def test_the_scale_of_the_training_file(plain_dataset, tmp_path):
    np.savez(tmp_path / "a.npz", only=np.full((1, 64), 8.0))
    x, notes = predict.examples(tmp_path / "a.npz", plain_dataset, {"scale": 16})
    assert (x == 0.5).all()
    assert any("divided by 16" in note for note in notes)


def test_tokens(tmp_path):
    split = Split(np.array([[0, 1, 5], [2, 3, 4]], np.int32), np.array([0, 1], np.int32))
    dataset = Dataset("words", split, split, split, 2)
    np.save(tmp_path / "a.npy", np.array([5, 0, 1]))
    x, _ = predict.examples(tmp_path / "a.npy", dataset, {})
    assert (x == [[5, 0, 1]]).all()
    assert x.dtype == np.int32
    for bad in ([6, 0, 1], [0.5, 0, 1], [-1, 0, 1]):
        np.save(tmp_path / "a.npy", np.array(bad))
        with pytest.raises(DataError, match="whole numbers from 0 to 5"):
            predict.examples(tmp_path / "a.npy", dataset, {})


def test_values_of_a_regression_and_outputs_of_other_losses(capsys):
    values = predict.Prediction(np.array([[1.5, 2.5]]), None, "value", [])
    assert [column.header.plain for column in predict.prediction_table(values).columns] == [
        "example",
        "value 0",
        "value 1",
    ]
    assert predict.lines(values) == []
    scores = predict.Prediction(np.array([[0.25], [0.75]]), np.array([0, 0]), "output", [])
    assert predict.prediction_table(scores).row_count == 2
    assert "quadratic" not in predict.AS_PROBABILITIES  # what sigmoids give under it is no probability


# ------------------------------------------------------------------------------------------ bad input


def spoiled(folder, name):
    """A file of that name that fits nothing."""
    path = folder / name
    match name:
        case "shape.npy":
            np.save(path, np.zeros((3, 7)))
        case "empty.npy":
            np.save(path, np.zeros((0, 64)))
        case "nan.npy":
            np.save(path, np.full(64, np.nan))
        case "text.npy":
            np.save(path, np.array(["a"] * 64))
        case "two.npz":
            np.savez(path, a=np.zeros(64), b=np.zeros(64))
        case "none.npz":
            np.savez(path)
        case "folder":
            path.mkdir()
        case "cut.png":
            Image.effect_noise((64, 64), 50).save(folder / "whole.png")
            path.write_bytes((folder / "whole.png").read_bytes()[:900])
        case "nowhere.png":
            pass
        case _:
            path.write_bytes(b"nothing of the kind")
    return path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("shape.npy", "one example of digits has shape (64,), got (3, 7)"),
        ("empty.npy", "holds no examples"),
        ("nan.npy", "must be finite"),
        ("text.npy", "must hold real numbers"),
        ("two.npz", "must hold an array x, or one array alone, got a, b"),
        ("none.npz", "got none"),
        ("junk.npz", "cannot be read as .npz"),
        ("junk.npy", "cannot be read as .npy"),
        ("junk.png", "must be a picture"),
        ("cut.png", "must be a picture"),
        ("folder", "is a folder"),
        ("nowhere.png", "is not there"),
    ],
)
def test_what_does_not_fit_is_told(run, tmp_path, name, words):
    path = spoiled(tmp_path, name)
    result = said_by(run, path)
    assert result.exit_code == 2
    assert words in result.stderr
    assert str(path) in result.stderr
    assert result.stdout == ""


def test_a_picture_for_data_that_are_none(tmp_path):
    split = Split(np.zeros((2, 2), np.float32), np.array([0, 1], np.int32))
    Image.new("L", (8, 8)).save(tmp_path / "p.png")
    with pytest.raises(DataError, match=r"wedge has no grey pictures but inputs of shape \(2,\)"):
        predict.examples(tmp_path / "p.png", Dataset("wedge", split, split, split, 2), {})


def test_no_run(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(64))
    result = said_by(tmp_path, tmp_path / "x.npy")
    assert result.exit_code == 2
    assert "is not a run" in result.stderr
