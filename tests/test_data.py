"""Data sets by name: digits and MNIST from their files, and what is refused."""

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest

from jaxnet.training.data import DataError, load, pictures
from tests.datasets import FILES, SMALL, idx, nothing_of_this_machine, refused, small, small_mnist, write  # noqa: F401 (the fixture)

# -------------------------------------------------------------------------------------------- digits


def test_digits():
    data = load("digits")
    assert data.summary() == "digits  1,197 / 300 / 300  8×8 in 0…1  10 classes"
    assert data.train.x.shape == (1197, 64)
    for split in (data.train, data.validation, data.test):
        assert (split.x.dtype, split.y.dtype) == (np.float32, np.int32)
        share = np.bincount(split.y, minlength=10) / len(split.y)
        assert np.abs(share - 0.1).max() < 0.005
    rows = {row.tobytes() for split in (data.train, data.validation, data.test) for row in split.x}
    assert len(rows) == len(np.unique(np.concatenate([data.train.x, data.validation.x, data.test.x]), axis=0))
    # scikit-learn's pixels with their own labels, each used once
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    known = {(row / 16).astype(np.float32).tobytes(): label for row, label in zip(x, y, strict=True)}
    assert all(known[row.tobytes()] == label for row, label in zip(data.test.x, data.test.y, strict=True))


def test_digits_are_split_the_same_way_for_ever():
    assert hashlib.sha256(load("digits", seed=3).test.x.tobytes()).hexdigest().startswith("88d61280064a7c5e")


def test_digits_as_pictures_by_fractions_and_limited():
    data = load({"name": "digits", "flat": False, "split": [0.5, 0.25, 0.25]})
    assert [len(s.x) for s in (data.train, data.validation, data.test)] == [899, 449, 449]
    assert data.train.x.shape[1:] == (8, 8, 1)
    few = load({"name": "digits", "limit": 7})
    assert [len(s.y) for s in (few.train, few.validation, few.test)] == [7, 7, 7]
    assert np.array_equal(few.test.x, load("digits").test.x[:7])


# --------------------------------------------------------------------------------------------- mnist


@pytest.mark.parametrize("place", ["", "mnist"])
@pytest.mark.parametrize(
    ("form", "pack"),
    [
        (lambda name: name, lambda content: content),
        (lambda name: f"{name}.gz", gzip.compress),
        (lambda name: name.replace("-idx", ".idx"), lambda content: content),
        (lambda name: name, gzip.compress),
    ],
    ids=["plain", "gz", "dot", "gzip under a plain name"],
)
def test_idx_files_under_their_usual_names(tmp_path, monkeypatch, place, form, pack):
    folder = tmp_path / "data"
    write(folder / place, small_mnist(), form, pack)
    data = small(folder)
    monkeypatch.setenv("JAXNET_DATA", str(folder))
    for found in (data, small(None)):
        assert found.summary() == "mnist  8 / 4 / 5  3×4 in 0…0.3725  10 classes"
        np.testing.assert_array_equal(found.train.x, (np.arange(96).reshape(8, 12) / 255).astype(np.float32))
        np.testing.assert_array_equal(found.validation.x[0], (np.arange(96, 108) / 255).astype(np.float32))
        np.testing.assert_array_equal(found.test.x[0], (np.arange(100, 112) / 255).astype(np.float32))
        assert found.validation.y.tolist() == [8, 9, 0, 1]
        assert (found.train.x.dtype, found.train.y.dtype) == (np.float32, np.int32)


def test_a_smaller_split_keeps_the_same_validation_examples(tmp_path):
    write(tmp_path, small_mnist())
    whole, few = small(tmp_path), small(tmp_path, split=[2, 4, 3])
    assert np.array_equal(few.train.x, whole.train.x[:2])
    assert np.array_equal(few.validation.x, whole.validation.x)
    assert np.array_equal(few.test.x, whole.test.x[:3])
    none = small(tmp_path, split=[12, 0, 5], flat=False)
    assert (none.train.x.shape, none.validation.x.shape) == ((12, 3, 4, 1), (0, 3, 4, 1))


# ---------------------------------------------------------------------------------------- bad pictures


def test_missing_files_and_folders(tmp_path, monkeypatch):
    refused("the data folder must be a folder, got nothing there", "mnist", data_dir=tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    refused("must be a folder, got a file", "mnist", data_dir=tmp_path / "file")
    assert "--data-dir" in refused("holds none of MNIST's files", "mnist", data_dir=tmp_path)
    files = small_mnist()
    del files[FILES[3]]
    refused(f"these are missing, plain or gzipped: {FILES[3]}", "mnist", data_dir=write(tmp_path / "three", files))
    monkeypatch.setenv("JAXNET_DATA", str(tmp_path / "gone"))
    refused("JAXNET_DATA must be a folder", "mnist")


def images_of(files, change):
    return {**files, FILES[0]: change(files[FILES[0]])}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: images_of(f, lambda c: c[:-1]), "is truncated: 160 bytes promised for shape (12, 3, 4), got 159"),
        (lambda f: images_of(f, lambda c: c[:10]), "is truncated: 10 bytes, less than an IDX file's head of 16"),
        (lambda f: images_of(f, lambda c: b""), "is truncated: 0 bytes"),
        (lambda f: images_of(f, lambda c: c + b"\0"), "is too long"),
        (lambda f: images_of(f, lambda c: b"\x89PNG" + c), "must begin with 00 00 08 03, got 89 50 4e 47"),
        (lambda f: images_of(f, lambda c: f[FILES[1]]), "got 00 00 08 01, which is a file of labels"),
        (lambda f: images_of(f, lambda c: gzip.compress(c)[:-9]), "is damaged gzip"),
        (lambda f: images_of(f, lambda c: gzip.compress(c)[:40] + b"xxxx" + gzip.compress(c)[44:]), "is damaged gzip"),
        (lambda f: images_of(f, lambda c: b"\x1f\x8bnot gzip"), "is damaged gzip"),
        (lambda f: {**f, FILES[1]: idx(range(9))}, "holds 12 pictures, but"),
        (lambda f: {**f, FILES[1]: idx([10] * 12)}, "class labels must go from 0 to 9; got 10 at example 0"),
        (lambda f: {**f, FILES[0]: idx(np.zeros((0, 3, 4))), FILES[1]: idx([])}, "holds no examples"),
        (lambda f: {**f, FILES[2]: idx(np.zeros((5, 4, 4)))}, "pictures must be of one size"),
    ],
)
def test_bad_idx_files(tmp_path, spoil, message):
    refused(message, {"name": "mnist", "split": SMALL}, data_dir=write(tmp_path / "bad", spoil(small_mnist())))


def test_an_unreadable_idx_file(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        pictures.read_idx(tmp_path, 3)


def test_splits_that_cannot_be(tmp_path):
    write(tmp_path, small_mnist())
    refused("takes 60,000 examples of it, but there are 12", "mnist", data_dir=tmp_path)
    for split, message in (
        ([8, 4, 6], "takes 6 examples of it, but there are 5"),
        ([0.5, 0.2, 0.3], "split must be three counts"),
        ([0, 4, 5], "split must be three counts"),
        ([8, 4], "split must be three counts, or three fractions"),
        ([8, -1, 5], "split must be three counts, or three fractions"),
    ):
        refused(message, {"name": "mnist", "split": split}, data_dir=tmp_path)
    refused("takes 1,998 examples, but there are 1,797", {"name": "digits", "split": [666, 666, 666]})
    refused("add up to 1.1, more than 1", {"name": "digits", "split": [0.5, 0.3, 0.3]})
    refused("leaves none to train on", {"name": "digits", "split": [0, 10, 10]})


# ------------------------------------------------------------------------------- names and options


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mnsit", 'did you mean "mnist"?'),
        ("iris", "choose from digits, mnist"),
        ("MNIST", 'did you mean "mnist"?'),
        ("weather", "choose from digits, mnist"),
        ("table.parquet", "a path to a .npz, .csv or .txt file"),
        ({"split": [1, 2, 3]}, "must be a name, or a table with a name"),
        ({"name": 7}, "must be a name, or a table with a name"),
        ({"name": "digits", "splitt": [1, 2, 3]}, 'no option "splitt": did you mean "split"?'),
        ({"name": "digits", "target": "y"}, 'no option "target"'),
        ({"name": "digits", "limit": 0}, "limit must be a whole number of at least 1"),
        ({"name": "digits", "limit": True}, "limit must be a whole number of at least 1"),
        ({"name": "digits", "flat": "no"}, "flat must be true or false, got 'no'"),
        ({"name": "mnist", "mirrors": "http://127.0.0.1/"}, "mirrors must be a list"),
        ({"name": "a.csv", "task": "ranking"}, 'task must be "classification" or "regression"'),
        ({"name": "a.csv", "target": 1.5}, "target must be a column's name or number"),
        ({"name": "a.npz", "scale": 0}, "scale must be a number above 0"),
        ({"name": "a.npz", "seed": -1}, "seed must be a whole number"),
        ("nowhere.npz", "there is no such file"),
        ("folder.csv", "there is no such file"),
    ],
)
def test_what_is_no_data_set(spec, message):
    Path("folder.csv").mkdir()
    refused(message, spec)
