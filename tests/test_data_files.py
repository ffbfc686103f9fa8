"""Data of one's own: npz, csv, and what a function gives."""

import gzip
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxnet.training.config import ConfigError, load_config
from jaxnet.training.data import DataError, files, load
from jaxnet.training.data.files import read_arrays
from jaxnet.training.data.own import ALLOWED, import_object
from jaxnet.training.data.tables import from_arrays
from tests.datasets import facts, nothing_of_this_machine, refused  # noqa: F401 (the fixture)
from tests.runs import called

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
    assert np.allclose(data.train.x[:, :1] / 3 / 19, data.train.y)


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
        (arrays(y=np.arange(20) * 1000), "19,001 classes are too many for 20 examples"),
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
        assert data.train.y.shape == (6, 1)
        assert np.allclose(data.train.y * 10, data.train.x[:, :1])
    assert np.array_equal(load({"name": path, "target": "odd"}).train.y, load(path).train.y)
    refused('did you mean "tenth"?', {"name": path, "target": "tenths"})
    refused("column 3 must be one of 3 columns", {"name": path, "target": 3})
    refused('no line of column names, so "tenth" must be', {"name": table(ROWS), "target": "tenth"})
    refused("must name one column: there are several", {"name": table(f"a,b,b\n{ROWS}"), "target": "b"})


def test_csv_with_numbers_for_names():
    path = table(f"0,1,2\n{ROWS}")
    assert len(load({"name": path, "header": True, "split": [8, 1, 1]}).train.y) == 8
    refused("takes 11 examples, but there are 10", {"name": path, "header": True, "split": [9, 1, 1]})
    assert len(load({"name": path, "split": [9, 1, 1], "classes": 3}).train.y) == 9
    assert len(load({"name": table(f",1,2\n{ROWS}"), "header": True, "split": [8, 1, 1]}).train.y) == 8


def test_labels_above_0_are_names_of_classes():
    data = load(npz(**arrays(n=30, y=np.arange(30) % 3 + 1)))
    assert (data.classes, data.names, sorted(set(data.train.y))) == (3, ("1", "2", "3"), [0, 1, 2])
    assert facts(data).endswith("3 classes: 1 … 3")
    assert all((s.x[:, 0] / 3 % 3 == s.y).all() for s in (data.train, data.validation, data.test))
    data = load({"name": npz(**arrays(n=30, y=np.arange(30) % 3 + 3)), "classes": ["5", "4", "3"]})
    assert all((2 - s.x[:, 0] / 3 % 3 == s.y).all() for s in (data.train, data.test))
    data = load({"name": npz(**arrays(y=np.full(20, 2))), "classes": 2})
    assert (data.names, set(data.train.y)) == (("1", "2"), {1})
    assert load({"name": npz(**arrays(y=np.full(20, 2))), "classes": 3}).names is None
    refused("classes = 3, but there are 1: 7", {"name": npz(**arrays(y=np.full(20, 7))), "classes": 3})
    refused("'7' must be one of the classes 1, 2", {"name": "own.npz", "classes": ["1", "2"]})
    refused("25 classes are too many for 60 examples", npz(**arrays(n=60, y=np.arange(60) % 25 + 50)))


@pytest.mark.parametrize("dtype", [str, "S", object])
def test_class_names_as_text(dtype):
    names = np.array(["red", "blue"], dtype)
    if dtype is object:
        data = from_arrays("own", arrays(y=names[np.arange(20) % 2]))
    else:
        split = {"x_train": np.ones((3, 2)), "y_train": names[[0, 0, 0]], "x_test": np.ones((2, 2))}
        assert load(npz(**split, y_test=names[[1, 0]])).test.y.tolist() == [0, 1]
        data = load(npz(**arrays(y=names[np.arange(20) % 2])))
    assert (data.names, data.train.y.dtype) == (("blue", "red"), np.int32)
    assert (data.train.x[:, 0] / 3 % 2 == 1 - data.train.y).all()


def flower(i: int) -> str:
    return ("rose", "lily", "iris")[i % 3]


@pytest.mark.parametrize(
    ("head", "spec"),
    [
        ("id,a,b,kind\n", {"drop": ["id"]}),
        ("", {"drop": [0]}),
        ("id,a,b,kind\n", {"drop": [0], "target": "kind"}),
        ("1,2,3,4\n", {"drop": ["1"], "header": True}),
    ],
    ids=["by name", "no header", "both", "numbers for names"],
)
def test_csv_with_class_names_and_columns_left_out(head, spec):
    path = table(head + "".join(f"row{i},{i},{i / 10}, {flower(i)}\n" for i in range(30)))
    data = load({"name": path, **spec})
    assert facts(data).endswith("2 numbers  3 classes: iris … rose")
    assert data.names == ("iris", "lily", "rose")
    assert all(data.names[y] == flower(int(x[0])) for s in (data.train, data.test) for x, y in zip(*s, strict=True))


def test_a_column_that_counts_the_rows_is_named():
    rows = "".join(f"{i + 1},{i % 7},{i % 2}\n" for i in range(30))
    [note] = load(table(f"Id,b,c\n{rows}")).notes
    assert note == 'own.csv, column 1 (Id) counts the rows: if it is no input, leave it out by drop = ["Id"]'
    assert not load({"name": "own.csv", "drop": ["Id"]}).notes
    assert load(table(f",b,c\n{rows}")).notes[0].endswith("by drop = [0]")
    assert load(table(rows)).notes[0].endswith("by drop = [0]")
    assert not load({"name": "own.csv", "target": 0, "task": "regression"}).notes


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"drop": ["q"]}, '"q" must name one column: choose from a, b, c'),
        ({"drop": ["c"]}, "the target, column 3 (c), is in drop"),
        ({"drop": [0, 1]}, "every column but the target is left out"),
        ({"drop": [5]}, "column 5 must be one of 3 columns"),
        ({"drop": "a"}, "drop must be a list of columns' names or numbers"),
        ({"task": "regression"}, "line 2, column 3 (c): must be a finite number, got 'x'"),
        (
            {"target": 0},
            "column 3 (c): must be a finite number, got 'x': mend it, or leave the column out by drop = [\"c\"]",
        ),
        ({"classes": 3}, "classes = 3, but there are 2: x, y"),
        ({"header": False}, '"c" must be a column\'s number'),
    ],
)
def test_bad_columns(spec, message):
    rows = "".join(f"{i},{i % 7},{'xy'[i % 2]}\n" for i in range(30))
    target = {"target": "c"} if spec == {"header": False} else {}
    refused(message, {"name": table(f"a,b,c\n{rows}"), **spec, **target})


def test_class_labels_are_numbers_or_text():
    refused("line 22, column 2: must be a finite number, got 'two'", table("1,2\n" * 21 + "1,two\n"))
    refused("line 2, column 2: must be a class, got an empty cell", table("1,a\n2,\n" * 9))


def test_pictures_with_channels_first_are_recognised():
    x = np.arange(10 * 3 * 6 * 8, dtype=np.float32).reshape(10, 3, 6, 8)
    data = load(npz(x=x, y=np.arange(10) % 2))
    assert data.train.x.shape == (6, 6, 8, 3)
    assert data.notes == ("pictures of shape (3, 6, 8) have their channels first: taken as (6, 8, 3)",)
    assert {*data.train.x[:, 0, 0, 1]} <= {*x[:, 1, 0, 0]}
    data = load({"name": "own.npz", "channels": "last"})
    assert (data.train.x.shape, data.notes) == ((6, 3, 6, 8), ())
    assert load({"name": npz(x=x[:, [0, 1]], y=np.arange(10) % 2), "channels": "first"}).test.x.shape == (2, 6, 8, 2)
    refused("needs examples of three axes, got shape (3,)", {"name": npz(**arrays()), "channels": "first"})
    assert load(npz(x=x[:, 0].astype(np.uint8), y=np.arange(10) % 2)).picture == (6, 8)


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
        (f"{ROWS}1_0,2,0\n", "column 1: must be a finite number, got '1_0'"),
        (f"1.5,red,0\n{ROWS}", "own.csv, line 1: mixes numbers and text ('red' in column 2)"),
        (f"{ROWS}1,2,0.5\n", "class labels must be whole numbers or text; for a regression put task"),
        (f"{ROWS}1,2,-1\n", "class labels must not be negative; got -1.0 at example 10"),
        ("", "the file is empty"),
        ("a,b,c\n", "only a line of column names"),
        ("1\n2\n3\n", "must have at least two columns, got 1: are they separated by commas, semicolons or tabs?"),
    ],
    ids=lambda value: value if value and "\n" not in value else "table",
)
def test_bad_csv(text, message):
    refused(message, table(text))


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators(separator):
    found, right = load(table(f"a,b,c\n{ROWS}".replace(",", separator))), load(table(f"a,b,c\n{ROWS}", "commas.csv"))
    np.testing.assert_array_equal(found.train.x, right.train.x)
    assert found.columns == right.columns == ("a", "b")


def test_csv_that_is_no_text():
    refused("is no text in UTF-8", table("naïve,b\n1,2\n", encoding="latin-1"))


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_a_folder_of_pictures(mode, channels):
    for label, name in enumerate(("cat", "dog")):
        Path(f"pets/{name}").mkdir(parents=True)
        for i in range(5):
            Image.new(mode, (4, 3), (60 * label + i,) * channels).save(f"pets/{name}/{i}.png")
    dataset = load({"name": "pets/", "split": [6, 2, 2]})
    assert dataset.names == ("cat", "dog")
    assert dataset.train.x.shape == (6, 3, 4, channels)
    for x, y in dataset.splits.values():
        np.testing.assert_array_equal(x.max(axis=(1, 2, 3)) * 255 >= 60, y)
    refused("holds pictures, which take no task and no window", {"name": "pets/", "task": "classification"})
    Image.new(mode, (5, 3)).save("pets/dog/wide.png")
    refused("pictures must be of one size, got 5×3, and 4×3 before: resize them", "pets/")
    Path("pets/cat/broken.png").write_bytes(b"no picture")
    refused("broken.png: must be a picture that can be read", "pets/")


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

def leaves():
    raise SystemExit(3)

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


# -------------------------------------------------------------------------------- promises


def npy_promising(shape: str, dtype: str = "<f8") -> bytes:
    head = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode() + bytes(80)


def zipped(content: bytes, packed: bool) -> str:
    with zipfile.ZipFile("own.npz", "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        archive.writestr("x.npy", content)
        archive.writestr("y.npy", npy_promising("(10,)"))
    return "own.npz"


@pytest.mark.parametrize("packed", [False, True])
def test_an_array_that_promises_more_than_it_holds(packed):
    path = zipped(npy_promising("(10, 1)"), packed)
    assert load({"name": path, "task": "regression"}).train.x.shape == (6, 1)
    promise = "it promises numbers of shape (3000000000, 1000), 24,000,000,000,000 bytes, and has 208"
    refused(promise, zipped(npy_promising("(3000000000, 1000)"), packed))
    refused("it promises numbers of shape (-5,)", zipped(npy_promising("(-5,)"), packed))
    Path("one.npy").write_bytes(npy_promising("(3000000000, 1000)"))
    with pytest.raises(DataError, match=r"cannot be read as \.npy"):
        read_arrays(Path("one.npy"))


def test_packed_files_that_unpack_to_too_much(monkeypatch):
    monkeypatch.setattr(files, "MOST_BYTES", 1000)
    Path("own.txt").write_bytes(gzip.compress(b"a text " * 200))
    refused("own.txt: unpacks to more than 1,000 bytes: unpack it by gunzip if it should", "own.txt")
    Path("own.txt").write_bytes(b"a text " * 200)
    assert load("own.txt").train.x.shape[1] == 128
    refused("bytes, more than 1,000", zipped(npy_promising("(160,)") + bytes(1200), True))
    assert load({"name": zipped(npy_promising("(10, 1)") + bytes(1200), False), "task": "regression"})


# -------------------------------------------------------------------------------- what a config may run


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("os:system", '"os:system" runs code of '),
        ("sys:exit", '"sys:exit" runs code of sys: a config may name modules beside it, in the current folder, or of'),
        ("__main__:f", '"__main__:f" runs code of '),
        ("subprocess:run", "if you trust it, add --allow-code"),
        ("numpy:fromfile", "/numpy: a config may name modules beside it"),
        ("own_data:np.fromfile", "must name an object of own_data itself, and np is a module"),
        ("jaxnet.training.data.own:importlib.import_module", "importlib is a module"),
        ("jaxnet.training.data.download:fetch", "must be a maker, or a function that jaxnet itself defines"),
        ("jaxnet.training.reports:Path", "must be a maker"),
        ("optax:partial", "optax has no partial"),
    ],
)
def test_code_that_a_config_may_not_run(own, where, message):
    with pytest.raises(ImportError, match=re.escape(message)):
        import_object(where)


def test_code_that_a_config_may_run(own, tmp_path, monkeypatch):
    assert import_object("jaxnet.training.toys:wedge")
    assert import_object("jaxnet:dense")
    assert import_object("optax:sgd")
    beside = tmp_path / "elsewhere"
    beside.mkdir()
    (beside / "own_beside.py").write_text("def f():\n    return 3\n")
    with pytest.raises(ImportError, match="there is no module own_beside"):
        import_object("own_beside:f")
    (beside / "x.toml").write_text("")
    monkeypatch.setattr(ALLOWED, "folders", set(ALLOWED.folders))
    with pytest.raises(ConfigError, match="loss: is missing"):
        load_config(beside / "x.toml")
    assert import_object("own_beside:f")() == 3
    sys.modules.pop("own_beside")
    monkeypatch.setattr(ALLOWED, "everything", True)
    assert import_object("os:getcwd")() == str(tmp_path)
    refused("failed: SystemExit: 3", "own_data:leaves")


def test_a_config_runs_no_command(tmp_path, monkeypatch):
    monkeypatch.setattr(ALLOWED, "everything", False)
    config = 'data = {{ name = "os:system", command = "touch {}" }}\nloss = "quadratic"\nmodel = [{{ dense = 2 }}]\n'
    (tmp_path / "c.toml").write_text(
        config.format(tmp_path / "RAN") + '[train]\nepochs = 1\noptimizer = { name = "sgd", learning_rate = 1.0 }\n'
    )
    found = called("train", tmp_path / "c.toml", "--runs-dir", tmp_path / "runs")
    assert (found.exit_code, (tmp_path / "RAN").exists()) == (2, False)
    assert '"os:system" runs code of ' in found.stderr
    found = called("train", tmp_path / "c.toml", "--allow-code", "--runs-dir", tmp_path / "runs")
    assert (found.exit_code, (tmp_path / "RAN").exists()) == (2, True)
    assert "must give a jaxnet.training.data.Dataset" in found.stderr
