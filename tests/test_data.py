"""Data sets: what is delivered, each way in which data can be bad, and downloads from a server on the loopback."""

import gzip
import hashlib
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from jaxnet.training.data import DataError, Dataset, fetch, load, pictures
from jaxnet.training.data.own import import_object

REAL = os.environ.get("JAXNET_DATA")
FILES = tuple(pictures.MNIST)
SMALL = [8, 4, 5]  # a split of the files below: 12 training and 5 test pictures


@pytest.fixture(autouse=True)
def nothing_of_this_machine(monkeypatch, tmp_path):
    """No data but what a test makes, an empty cache, and no proxy in front of the loopback."""
    monkeypatch.delenv("JAXNET_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def idx(array) -> bytes:
    array = np.asarray(array, np.uint8)
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def small_mnist() -> dict[str, bytes]:
    """Four IDX files with pictures of 3×4 whose pixels tell their place, and labels that count up."""
    train = np.arange(12 * 12).reshape(12, 3, 4)
    return dict(zip(FILES, (idx(train), idx(np.arange(12) % 10), idx(train[:5] + 100), idx(range(5))), strict=True))


def write(folder: Path, files: dict[str, bytes], form=lambda name: name, pack=lambda content: content) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / form(name)).write_bytes(pack(content))
    return folder


def small(folder, **options) -> Dataset:
    return load({"name": "mnist", "split": SMALL, **options}, data_dir=folder)


def facts(data: Dataset) -> str:
    """The summary without the range of the numbers, which depends on what the shuffle put into train."""
    return re.sub(r" in \S+", "", data.summary())


def refused(match: str, spec, **options) -> str:
    """The message with which `load` refuses; `match` is plain text."""
    with pytest.raises(DataError, match=re.escape(match)) as error:
        load(spec, **options)
    return str(error.value)


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


@pytest.mark.skipif(REAL is None, reason="JAXNET_DATA names no real MNIST")
def test_real_mnist_from_its_folder_and_through_a_download(server):
    assert REAL is not None
    files = pictures.local_files(REAL)
    assert files is not None
    data = load("mnist", data_dir=REAL)
    assert data.summary() == "mnist  50,000 / 10,000 / 10,000  28×28 in 0…1  10 classes"
    assert data.train.y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert data.test.y[:5].tolist() == [7, 2, 1, 0, 4]
    assert abs(float(data.train.x.mean(dtype=np.float64)) - 0.1307) < 5e-4
    for name, path in zip(FILES, files, strict=True):
        server.serves[f"/{name}.gz"] = path.read_bytes()
    fetched = load({"name": "mnist", "mirrors": [server.url]})
    assert np.array_equal(fetched.test.x, data.test.x)
    assert np.array_equal(fetched.validation.y, data.validation.y)


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
        ("MNIST", 'did you mean "mnist"?'),
        ("weather", "there is digits, mnist"),
        ("table.parquet", "a path to a .npz or .csv file"),
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


# ----------------------------------------------------------------------------------------------- npz


def arrays(n=20, **change):
    return {"x": np.arange(n * 3.0).reshape(n, 3), "y": np.arange(n) % 2, **change}


def npz(**content) -> str:
    np.savez("own.npz", **content)
    return "own.npz"


def test_npz_is_shuffled_by_its_seed_and_split():
    path = npz(**arrays(n=100))
    data = load(path)
    assert facts(data) == "own  70 / 15 / 15  3 numbers  2 classes"
    assert sorted(np.concatenate([s.x[:, 0] for s in (data.train, data.validation, data.test)])) == [*range(0, 300, 3)]
    assert all((s.x[:, 0] / 3 % 2 == s.y).all() for s in (data.train, data.validation, data.test))
    assert abs(data.train.y.mean() - 0.5) < 0.02
    assert not np.array_equal(data.train.x, np.sort(data.train.x, axis=0))
    assert np.array_equal(load(path).test.x, data.test.x)
    assert not np.array_equal(load(path, seed=1).test.x, data.test.x)
    assert np.array_equal(load({"name": path, "seed": 1}).test.x, load(path, seed=1).test.x)


def test_npz_of_pictures_in_bytes():
    path = npz(x=np.full((10, 4, 5), 51, np.uint8), y=np.arange(10) % 3)
    data = load(path)
    assert data.train.x.shape == (6, 4, 5)
    assert (data.train.x == np.float32(0.2)).all()
    assert load({"name": path, "flat": True, "scale": 51}).test.x.tolist() == [[1.0] * 20] * 2


def test_npz_already_split():
    split = {"x_train": np.ones((4, 2)), "y_train": [0, 1, 2, 1], "x_test": np.zeros((2, 2)), "y_test": [2.0, 0.0]}
    data = load(npz(**split))
    assert data.summary() == "own  4 / 0 / 2  2 numbers in 1…1  3 classes"
    assert data.train.y.tolist() == [0, 1, 2, 1]
    assert data.validation.x.shape == (0, 2)
    data = load(npz(**split, x_validation=np.ones((1, 2)), y_validation=[3]))
    assert (len(data.validation.y), data.classes) == (1, 4)
    refused("already split: take `split` out", {"name": "own.npz", "split": [1, 1, 1]})
    refused("one example has shape (3,), in the training set (2,)", npz(**{**split, "x_test": np.zeros((2, 3))}))


def test_npz_regression():
    data = load({"name": npz(**arrays(y=np.linspace(0, 1, 20))), "task": "regression"})
    assert facts(data) == "own  14 / 3 / 3  3 numbers  1 target"
    assert data.train.y.dtype == np.float32
    assert np.allclose(data.train.x[:, 0] / 3 / 19, data.train.y)


def hole(value, dtype=float):
    x = np.ones((20, 3), dtype)
    x[5, 2] = value
    return x


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "; got none"),
        ({"x": np.ones((3, 2))}, "must hold the arrays x and y, or x_train, y_train"),
        ({"data": np.ones(3), "target": np.ones(3)}, "; got data, target"),
        ({"x_train": np.ones((3, 2)), "y_train": np.ones(3)}, "; got x_train, y_train"),
        (arrays(x_val=np.ones(3)), 'does not know the array x_val: did you mean "x_validation"?'),
        (arrays(y=np.zeros(19, int)), "x and y must be of one length, got 20 examples and 19 targets"),
        (arrays(x=np.zeros((0, 3)), y=[]), "holds no examples, got shape (0, 3)"),
        (
            arrays(x=hole(np.nan)),
            "must be finite in float32, got nan in row 5, column 2, counting from 0 (1 such number)",
        ),
        (arrays(x=hole(-np.inf)), "got -inf in row 5, column 2"),
        (arrays(x=hole(1e300)), "must be finite in float32, got inf in row 5, column 2"),
        (arrays(x=hole(np.nan).reshape(20, 3, 1)), "got nan in row 5, place (2, 0)"),
        (arrays(y=np.array([np.nan] * 20)), "own.npz, y: every number must be finite in float32, got nan in row 0"),
        (arrays(y=np.arange(20) - 1), "class labels must not be negative; got -1 at example 0"),
        (arrays(y=np.arange(20) / 2), "class labels must be whole numbers"),
        (arrays(y=np.arange(20) * 1000), "labels go up to 19,000 among 20 examples"),
        (arrays(y=np.eye(20, dtype=int)), "got shape (20, 20): take y.argmax(axis=1)"),
        (arrays(x=np.arange(20.0)), "must have a row for each example, got shape (20,): put x[:, None]"),
        (arrays(x=np.full((20, 3), "a")), "must hold real numbers, got dtype <U1"),
        (arrays(x=np.float64(3)), "got a single number"),
        (arrays(x=np.array([{}] * 20)), "cannot be read as .npz"),
        (arrays(n=2), "leaves none to train on"),
    ],
)
def test_bad_npz(content, message):
    refused(message, npz(**content))


def test_labels_beyond_the_classes_declared():
    path = npz(**arrays(y=np.arange(20) % 4))
    assert load({"name": path, "classes": 7}).classes == 7
    refused("class labels must go from 0 to 2; got 3 at example 3", {"name": path, "classes": 3})
    refused("takes 33 examples, but there are 20", {"name": path, "split": [11, 11, 11]})
    refused("has no meaning with task", {"name": path, "classes": 4, "task": "regression"})


@pytest.mark.parametrize("keep", [0, 30, 400, -1])
def test_a_damaged_npz(keep):
    whole = Path(npz(**arrays())).read_bytes()
    Path("own.npz").write_bytes(whole[:keep])
    refused("cannot be read as .npz", "own.npz")


def test_bytes_changed_inside_an_npz():
    whole = bytearray(Path(npz(**arrays())).read_bytes())
    at = whole.index(np.float64(3).tobytes() + np.float64(4).tobytes())
    whole[at] ^= 1
    Path("own.npz").write_bytes(whole)
    refused("cannot be read as .npz", "own.npz")


def test_an_npy_called_npz():
    with open("own.npz", "wb") as file:
        np.save(file, np.ones(3))
    refused("is no .npz archive", "own.npz")


# ----------------------------------------------------------------------------------------------- csv


def table(text: str, name="own.csv", encoding="utf-8") -> str:
    Path(name).write_bytes(text.encode(encoding))
    return name


ROWS = "".join(f"{i},{i / 10},{i % 2}\n" for i in range(10))


@pytest.mark.parametrize(
    "text",
    [ROWS, f"a,b,c\n{ROWS}", f"\ufeffa,b,c\r\n{ROWS}\n\n", ROWS.strip(), f'\n"a, one","b\nb",c\n{ROWS}'],
    ids=["bare", "header", "byte order mark, CRLF and empty lines", "no last newline", "quoted names"],
)
def test_csv_with_and_without_a_header(text):
    data = load(table(text))
    assert facts(data) == "own  6 / 2 / 2  2 numbers  2 classes"
    assert all((s.x[:, 0] % 2 == s.y).all() for s in (data.train, data.validation, data.test))
    assert np.allclose(data.train.x[:, 1] * 10, data.train.x[:, 0])


def test_csv_targets():
    path = table(f"number,tenth,odd\n{ROWS}")
    for target in ("tenth", 1, -2):
        data = load({"name": path, "target": target, "task": "regression"})
        assert data.classes is None
        assert np.allclose(data.train.y * 10, data.train.x[:, 0])
    assert np.array_equal(load({"name": path, "target": "odd"}).train.y, load(path).train.y)
    refused('did you mean "tenth"?', {"name": path, "target": "tenths"})
    refused("target = 3 must name one of 3 columns", {"name": path, "target": 3})
    refused("no line of column names", {"name": table(ROWS), "target": "tenth"})
    refused("must name one column: there are several", {"name": table(f"a,b,b\n{ROWS}"), "target": "b"})


def test_csv_with_numbers_for_names():
    path = table(f"0,1,2\n{ROWS}")
    assert len(load({"name": path, "header": True, "split": [8, 1, 1]}).train.y) == 8
    refused("takes 11 examples, but there are 10", {"name": path, "header": True, "split": [9, 1, 1]})
    assert len(load({"name": path, "split": [9, 1, 1], "classes": 3}).train.y) == 9
    assert len(load({"name": table(f",1,2\n{ROWS}"), "header": True, "split": [8, 1, 1]}).train.y) == 8


def test_a_file_is_also_looked_for_in_the_data_folder(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    table(ROWS, "elsewhere/own.csv")
    assert len(load("own.csv", data_dir=tmp_path / "elsewhere").train.y) == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"a,b,c\n{ROWS}1,two,0\n", "own.csv, line 12, column 2 (b): must be a finite number, got 'two'"),
        (f"{ROWS}\n1,two,0\n", "own.csv, line 12, column 2: must be a finite number, got 'two'"),
        (f"a,b,c\n{ROWS}1,,0\n", "own.csv, line 12, column 2 (b): must be a finite number, got an empty cell"),
        (f"a,b,c\n{ROWS}1,nan,0\n", "own.csv, line 12, column 2 (b): must be a finite number, got 'nan'"),
        (f"a,b,c\n{ROWS}1,1e39,0\n", "own.csv, line 12, column 2 (b): must be a finite number, got '1e39'"),
        (f"{ROWS}1,2\n", "own.csv, line 11: must have 3 columns, got 2"),
        (f"a,b,c\n{ROWS}1,2,3,4\n", "own.csv, line 12: must have 3 columns, got 4"),
        (f"a,b\n{ROWS}", "own.csv, line 2: must have 2 columns, got 3"),
        (f"{ROWS}1_0,2,0\n", "own.csv: is no table of numbers"),
        (f"1.5,red,0\n{ROWS}", "own.csv, line 1: mixes numbers and text ('red' in column 2)"),
        (f"{ROWS}1,2,0.5\n", "class labels must be whole numbers; for a regression put task"),
        (f"{ROWS}1,2,-1\n", "class labels must not be negative; got -1.0 at example 10"),
        ("", "the file is empty"),
        ("a,b,c\n", "only a line of column names"),
        ("a;b\n1;2\n", "must have at least two columns, got 1"),
        ("1\n2\n3\n", "must have at least two columns, got 1: are they separated by commas?"),
    ],
    ids=lambda value: value if value and "\n" not in value else "table",
)
def test_bad_csv(text, message):
    refused(message, table(text))


def test_csv_that_is_no_text():
    refused("is no text in UTF-8", table("naïve,b\n1,2\n", encoding="latin-1"))


# -------------------------------------------------------------------------------- data of one's own

OWN = """
import numpy as np
from jaxnet.training.data import Dataset, Split

def halves(n=4):
    return {"x": np.arange(n * 2.0).reshape(n, 2), "y": np.arange(n) % 2}

def made(y=1, split=None):
    part = Split(np.ones((3, 2)), np.array([0, 1, y]))
    return Dataset("made", part, part, split or part, classes=2)

tokens = Dataset("tokens", *[Split(np.arange(6).reshape(2, 3), np.arange(1, 7).reshape(2, 3))] * 3, classes=7)
ready = made()

class Space:
    number = 3

def broken():
    return 1 / 0

def uneven():
    return made(split=Split(np.ones((3, 2)), np.array([0])))

def other_shape():
    return made(split=Split(np.ones((3, 5)), np.array([0, 1, 1])))

def not_a_split():
    part = made()
    object.__setattr__(part, "test", [1, 2, 3])
    return part
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_data.py").write_text(OWN)
    (tmp_path / "own_failing.py").write_text("import a_module_that_is_nowhere\n")
    (tmp_path / "own_syntax.py").write_text("def (:\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in ("own_data", "own_failing", "own_syntax"):
        sys.modules.pop(name, None)


def test_data_of_ones_own(own):
    assert facts(load("own_data:halves")) == "own_data:halves  2 / 1 / 1  2 numbers  2 classes"
    assert len(load({"name": "own_data:halves", "n": 10}).train.y) == 6
    for spec in ("own_data:ready", "own_data:made"):
        made = load(spec)
        assert (made.name, made.train.x.dtype, made.train.y.dtype) == ("made", np.float32, np.int32)
    tokens = load("own_data:tokens")
    assert (tokens.train.x.dtype, tokens.train.y.shape) == (np.int32, (2, 3))
    assert import_object("own_data:Space.number") == 3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere_at_all:f", "there is no module nowhere_at_all"),
        ("own_failing:f", "there is no module a_module_that_is_nowhere"),
        ("own_syntax:f", "importing own_syntax failed: SyntaxError"),
        ("own_data:halfs", 'own_data has no halfs: did you mean "halves"?'),
        ("own_data:", 'must be of the form "package.module:object"'),
        ("own data:x", 'must be of the form "package.module:object"'),
        ("own_data:Space.number", "must give a jaxnet.training.data.Dataset or a mapping with arrays x and y, got int"),
        ("own_data:broken", "failed: ZeroDivisionError: division by zero ("),
        ({"name": "own_data:halves", "m": 3}, "does not take m = 3: got an unexpected keyword argument 'm'"),
        ({"name": "own_data:ready", "m": 3}, "is no function, so it takes no options, got m"),
        ({"name": "own_data:halves", "n": 0}, "holds no examples"),
        ({"name": "own_data:made", "y": 2}, "made, train, y: class labels must go from 0 to 1; got 2 at example 2"),
        ({"name": "own_data:made", "y": float("nan")}, "must be finite"),
        ("own_data:uneven", "made, test: x and y must be of one length, got 3 examples and 1 targets"),
        ("own_data:other_shape", "made, test: one example has shape (5,), in the training set (2,)"),
        ("own_data:not_a_split", "made, test: must be a Split of x and y, got list"),
    ],
)
def test_bad_data_of_ones_own(own, spec, message):
    refused(message, spec)


# ----------------------------------------------------------------------------------------- downloads

CONTENT = bytes(range(256)) * 4000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `serves`: path -> bytes, or a function of the handler."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.serves = {"/good": CONTENT, "/good.gz": gzip.compress(CONTENT), "/wrong": CONTENT[:-1] + b"x"}
        self.serves |= {"/cut": cut, "/cut.gz": cut_gzip, "/silent": silent, "/dropped": dropped, "/empty": b""}
        self.serves |= {"/short.gz": gzip.compress(CONTENT)[:500], "/bad.gz": b"\x1f\x8b" + b"?" * 500}
        self.asked: list[str] = []
        self.over = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        self.server.asked.append(self.path)
        content = self.server.serves.get(self.path)
        if callable(content):
            content(self)
        elif content is None:
            self.send_error(404)
        else:
            self.begin(len(content))
            self.wfile.write(content)

    def begin(self, length):
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()


def cut(handler, content=CONTENT):
    handler.begin(len(content))
    handler.wfile.write(content[: len(content) // 2])


def cut_gzip(handler):
    cut(handler, gzip.compress(CONTENT))


def silent(handler):
    cut(handler)
    handler.wfile.flush()
    handler.server.over.wait(30)


def dropped(handler):
    handler.connection.close()


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


def get(server, cache, *paths, **options) -> Path:
    return fetch("thing", DIGEST, [f"{server.url}/{path}" for path in paths], cache, **{"timeout": 5, **options})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("path", ["good", "good.gz"])
def test_a_download_is_kept_uncompressed_and_not_asked_for_again(server, tmp_path, path):
    cache = tmp_path / "a" / "b"
    for _ in range(2):
        assert get(server, cache, path).read_bytes() == CONTENT
    assert server.asked == [f"/{path}"]
    assert names(cache) == ["thing"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("cut", "cut off after 512,000 of 1,024,000 bytes"),
        ("cut.gz", "cut off after"),
        ("short.gz", "cut off in the middle of its gzip"),
        ("bad.gz", "damaged gzip"),
        ("wrong", "wrong content: SHA-256"),
        ("empty", "wrong content: SHA-256"),
        ("missing", "HTTP 404 Not Found"),
        ("silent", "broke off (TimeoutError: timed out)"),
        ("dropped", "RemoteDisconnected"),
    ],
)
def test_a_mirror_that_fails_gives_way_to_the_next(server, tmp_path, bad, reason):
    start = time.monotonic()
    with pytest.raises(DataError) as error:
        get(server, tmp_path, bad, timeout=0.3, advice="Do this instead.")
    assert time.monotonic() - start < 8  # the silent one stays silent for 30 s
    assert f"{server.url}/{bad}: " in str(error.value)
    assert reason in str(error.value)
    assert str(error.value).endswith("\nDo this instead.")
    assert names(tmp_path) == []
    assert get(server, tmp_path, bad, "good.gz", timeout=0.3).read_bytes() == CONTENT
    assert names(tmp_path) == ["thing"]


def test_a_mirror_without_end_is_left(server, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxnet.training.data.download.MOST_BYTES", 300_000)
    with pytest.raises(DataError, match="more than 300,000 bytes"):
        get(server, tmp_path, "good.gz")
    assert names(tmp_path) == []


def test_a_damaged_file_in_the_cache_is_fetched_anew_and_kept_until_then(server, tmp_path):
    (tmp_path / "thing").write_bytes(CONTENT[:100])
    with pytest.raises(DataError):
        get(server, tmp_path, "missing")
    assert (tmp_path / "thing").read_bytes() == CONTENT[:100]
    assert get(server, tmp_path, "good").read_bytes() == CONTENT


def test_an_unwritable_cache(server, tmp_path):
    (tmp_path / "file").write_text("kept")
    for cache in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(DataError, match=r"cannot be written .*: set XDG_CACHE_HOME to a folder"):
            get(server, cache, "good")
    assert (tmp_path / "file").read_text() == "kept"
    assert server.asked == []


def test_a_full_disk(server, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\)"):
        get(server, tmp_path, "good", "good")
    assert server.asked == ["/good"]
    assert names(tmp_path) == []


FETCH = """
import sys
from pathlib import Path
from jaxnet.training.data import fetch
fetch(*sys.argv[1:3], [sys.argv[3]], Path(sys.argv[4]))
"""


def fetching(url: str, cache: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", FETCH, "thing", DIGEST, url, str(cache)])


def test_two_processes_fetch_at_once(server, tmp_path):
    both = threading.Barrier(2, timeout=60)

    def together(handler):
        handler.begin(len(CONTENT))
        handler.wfile.write(CONTENT[:400_000])
        both.wait()
        handler.wfile.write(CONTENT[400_000:])

    server.serves["/together"] = together
    processes = [fetching(f"{server.url}/together", tmp_path) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert server.asked == ["/together"] * 2
    assert names(tmp_path) == ["thing"]
    assert (tmp_path / "thing").read_bytes() == CONTENT


def test_a_killed_download_leaves_nothing_under_the_final_name(server, tmp_path):
    process = fetching(f"{server.url}/silent", tmp_path)
    until = time.monotonic() + 60
    while not any(part.stat().st_size for part in tmp_path.glob("thing.*.part")):
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    assert process.wait(10) == -signal.SIGKILL
    [left] = names(tmp_path)
    assert left.endswith(".part")
    assert get(server, tmp_path, "good").read_bytes() == CONTENT
    assert names(tmp_path) == ["thing", left]  # it may be another process's that is still writing
    os.utime(tmp_path / left, (0, 0))
    (tmp_path / "thing").unlink()
    get(server, tmp_path, "good")
    assert names(tmp_path) == ["thing"]


def test_mnist_is_downloaded_where_it_is_not_found(server, tmp_path, monkeypatch):
    files = small_mnist()
    monkeypatch.setattr(pictures, "MNIST", {name: hashlib.sha256(c).hexdigest() for name, c in files.items()})
    monkeypatch.setenv("JAXNET_DATA", str(tmp_path))  # without MNIST's files, so it is no reason to stop
    server.serves |= {f"/second/{name}.gz": gzip.compress(content) for name, content in files.items()}
    mirrors = [f"{server.url}/first", f"{server.url}/second/"]
    data = small(None, mirrors=mirrors)
    assert np.array_equal(data.train.x, small(write(tmp_path / "local", files)).train.x)
    assert names(tmp_path / "cache" / "jaxnet" / "mnist") == sorted(FILES)
    asked = len(server.asked)
    small(None, mirrors=mirrors)
    assert len(server.asked) == asked == 8


def test_offline(server, monkeypatch):
    server.shutdown()
    server.server_close()
    known = socket.getaddrinfo

    def no_names(host, *rest, **named):
        if host != "127.0.0.1":
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        return known(host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", no_names)
    mirrors = [server.url, "https://mirror.invalid/", "no address"]
    said = refused("Connection refused)", {"name": "mnist", "mirrors": mirrors})
    assert f"{server.url}/train-images-idx3-ubyte.gz: cannot be reached (" in said
    assert "https://mirror.invalid/train-images-idx3-ubyte.gz: cannot be reached ([Errno -3] Temporary failure" in said
    assert "no address/train-images-idx3-ubyte.gz: broke off (ValueError: unknown url type" in said
    assert said.endswith("pass --data-dir FOLDER or set JAXNET_DATA to it.")


def test_the_mirrors_that_are_asked_unless_others_are_named(monkeypatch):
    asked = []

    def none(name, sha256, mirrors, cache, *, advice):
        asked.extend(mirrors)
        raise DataError("asked")

    monkeypatch.setattr(pictures, "fetch", none)
    refused("asked", "mnist")
    assert len(asked) == len(pictures.MIRRORS) == 3
    assert all(url.endswith("/mnist/train-images-idx3-ubyte.gz") for url in asked)
