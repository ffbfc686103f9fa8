"""Text: how it is found, cut into windows and shuffled, trained on and resumed, and what a run writes of it."""

import gzip
import hashlib
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

from jaxnet.cli import app
from jaxnet.training import loop, sample, trained_network
from jaxnet.training.config import Config, make_config
from jaxnet.training.data import DataError, load, text
from jaxnet.training.data.text import encode, from_text
from jaxnet.training.run_folder import data_sha256
from jaxnet.training.session import Session
from jaxnet.training.text_windows import Windows, examples_at
from tests.datasets import REAL, nothing_of_this_machine, refused
from tests.runs import metrics, summary
from tests.test_downloads import server

__all__ = ["nothing_of_this_machine", "server"]  # fixtures

VERSE = "A rose is a rose.\n" * 40
RHYME = "abcdefgh" * 60


def gpt(**change) -> Config:
    """A small network on a text that it can know by heart."""
    document = {
        "data": {"name": "rhyme.txt", "window": 12, "limit": 32},
        "loss": "softmax_cross_entropy",
        "model": {"name": "gpt", "vocab": 8, "width": 16, "heads": 2, "depth": 1, "positions": 12, "rotary": True},
        "train": {"epochs": 20, "batch": 8, "optimizer": {"name": "adam", "learning_rate": 0.02}},
        "monitor": {"delta_norms": False},
    }
    return make_config(document | change)


def decode(tokens: np.ndarray, characters: str) -> str:
    return "".join(characters[token] for token in tokens.reshape(-1))


# ------------------------------------------------------------------------------------------- windows


def test_windows_and_the_characters_after_them():
    data = from_text("verse.txt", VERSE, window=10)
    assert data.summary() == "verse  630 / 70 / 0 characters by 10  10 different  losses in nats a character"
    assert data.text is not None
    characters = data.text.characters
    assert characters == "\n .Aaeiors"
    assert decode(data.text.tokens, characters) == VERSE[:648]
    for split, start, stop in ((data.train, 0, 648), (data.validation, 648, 720)):
        count = len(split.x) * 10
        assert decode(split.x, characters) == VERSE[start:stop][:count]
        assert decode(split.y, characters) == VERSE[start:stop][1 : count + 1]
    assert data.test.x.shape == (0, 10)
    assert np.shares_memory(data.train.x, data.text.tokens)


def test_splits_of_a_text():
    data = from_text("verse.txt", VERSE, window=7, split=[300, 100, 50])
    assert [split.x.shape for split in (data.train, data.validation, data.test)] == [(41, 7), (14, 7), (7, 7)]
    few = load_text_of(VERSE, window=7, limit=3)
    assert [len(split.x) for split in (few.train, few.validation)] == [3, 3]
    assert few.text is not None
    assert len(few.text.tokens) == 28
    one = from_text("short", "abcdefghi", window=4, split=[5, 0, 0])
    assert one.train.x.shape == (1, 4)


def load_text_of(content: str, **options):
    with open("own.txt", "w", encoding="utf-8", newline="") as file:
        file.write(content)
    return load({"name": "own.txt", **options})


def test_any_characters_are_kept():
    content = "naïve 😀\r\nΣ\t" * 30
    data = load_text_of(content, window=5)
    assert data.text is not None
    assert decode(data.text.tokens, data.text.characters) == content[: len(data.text.tokens)]
    assert data.classes == len(set(content))
    with open("packed.txt.gz", "wb") as file:
        file.write(gzip.compress(content.encode()))
    packed = load({"name": "packed.txt.gz", "window": 5})
    assert data_sha256(packed) == data_sha256(data)
    other = content.replace("Σ", "Τ")
    assert data_sha256(load_text_of(other, window=5)) != data_sha256(data)


def test_encoding_goes_by_the_order_of_the_characters():
    assert encode("cab", "bca").tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", {}, "own.txt, train: must have at least 129 characters, one more than a window, got 0"),
        ("abc" * 50, {"window": 20}, "own.txt, validation: must have at least 21 characters"),
        ("abc" * 50, {"window": 5, "split": [100, 40, 20]}, "takes 160 characters, but there are 150"),
        ("abc" * 50, {"window": 5, "split": [0.9, 0.2, 0.0]}, "add up to 1.1, more than 1"),
        ("abc" * 50, {"window": 0}, "window must be a whole number of at least 1"),
        ("abc" * 50, {"scale": 3}, 'has no option "scale"'),
    ],
)
def test_bad_texts(content, options, message):
    with pytest.raises(DataError, match=re.escape(message)):
        load_text_of(content, **options)


def test_a_file_that_is_no_text():
    for content, message in ((b"caf\xe9" * 100, "must be a text in UTF-8, got byte 0xe9 at 3"),
                             (gzip.compress(b"text" * 100)[:-9], "is damaged gzip")):  # fmt: skip
        with open("own.txt", "wb") as file:
            file.write(content)
        refused(message, "own.txt")


# --------------------------------------------------------------------------------------- Shakespeare


@pytest.fixture
def short(monkeypatch):
    """A short text in Shakespeare's place."""
    content = VERSE.encode()
    monkeypatch.setattr(text, "SHAKESPEARE_SHA256", hashlib.sha256(content).hexdigest())
    return content


def test_shakespeare_is_found_as_mnist_is(tmp_path, monkeypatch, short):
    refused("the data folder must be a folder, got nothing there", "tinyshakespeare", data_dir=tmp_path / "none")
    assert "--data-dir" in refused("holds no input.txt", "tinyshakespeare", data_dir=tmp_path)
    for place, name, content in (
        ("a", "input.txt", short),
        ("b/tinyshakespeare", "input.txt.gz", gzip.compress(short)),
        ("c/tinyshakespeare", "input.txt", short),
    ):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        (folder / name).write_bytes(content)
        found = load({"name": "tinyshakespeare", "window": 10}, data_dir=tmp_path / place[0])
        monkeypatch.setenv("JAXNET_DATA", str(tmp_path / place[0]))
        assert data_sha256(load({"name": "tinyshakespeare", "window": 10})) == data_sha256(found)
        assert found.summary().startswith("tinyshakespeare  630 / 70 / 0 characters by 10")
    (tmp_path / "a" / "input.txt").write_text("something else")
    path = tmp_path / "a" / "input.txt"
    refused(f'train on this one by data = "{path}"', "tinyshakespeare", data_dir=tmp_path / "a")


def test_shakespeare_is_fetched_once(server, short, tmp_path):
    spec = {"name": "tinyshakespeare", "window": 10, "mirrors": [f"{server.url}/none", f"{server.url}/there/"]}
    server.serves["/none/input.txt"] = b"another text"
    server.serves["/there/input.txt"] = gzip.compress(short)
    for _ in range(2):
        assert load(spec).classes == len(set(VERSE))
    assert server.asked == ["/none/input.txt", "/there/input.txt"]
    (tmp_path / "cache" / "jaxnet" / "tinyshakespeare" / "input.txt").unlink()
    server.serves.clear()
    assert "tinyshakespeare/input.txt into a folder" in refused("no mirror delivered it", spec)


@pytest.mark.skipif(REAL is None, reason="JAXNET_DATA names no real text")
def test_real_shakespeare():
    data = load("tinyshakespeare", data_dir=REAL)
    assert data.text is not None
    assert data.summary().startswith("tinyshakespeare  1,003,648 / 111,488 / 0 characters by 128  65 different")
    assert decode(data.train.x[0], data.text.characters).startswith("First Citizen:\nBefore we proceed any further")
    assert len(data.text.tokens) + 111_540 == 1_115_394


# ---------------------------------------------------------------------------------- modular addition


def test_modular_addition():
    data = load({"name": "modular_addition", "modulus": 7})
    assert [len(split.x) for split in (data.train, data.validation, data.test)] == [39, 5, 5]
    x, y = (np.concatenate(t) for t in zip(data.train, data.validation, data.test, strict=True))
    assert len({tuple(row) for row in x}) == 49
    assert ((x[:, 0] + x[:, 1]) % 7 == y[:, 2]).all()
    assert (x[:, 2] == 7).all()
    assert (y[:, :2] == -1).all()
    assert not np.array_equal(load({"name": "modular_addition", "modulus": 7, "seed": 1}).train.x, data.train.x)
    refused("modulus must be a whole number of at least 2", {"name": "modular_addition", "modulus": 1})


# ------------------------------------------------------------------------------------------- training


def test_every_epoch_cuts_the_text_elsewhere_and_each_window_is_of_it():
    data = from_text("rhyme.txt", VERSE, window=12)
    model = {"name": "gpt", "vocab": 10, "width": 4, "heads": 1, "depth": 1, "positions": 12}
    session = Session(gpt(model=model), data)
    assert isinstance(session.training, Windows)
    assert data.text is not None
    starts = []
    for epoch in range(12):
        order = np.array(session.order(epoch))
        assert (np.diff(np.sort(order)) == 12).all()  # each part of the text once
        assert np.array_equal(order, session.order(epoch))
        starts.append(int(order.min()))
        x, y = (np.array(t) for t in examples_at(session.training, jnp.asarray(order)))
        for place, row, after in zip(order, x, y, strict=True):
            assert decode(row, data.text.characters) == VERSE[place : place + 12]
            assert decode(after, data.text.characters) == VERSE[place + 1 : place + 13]
    assert len(set(starts)) > 4
    assert max(starts) <= 11
    plain = {"epochs": 1, "shuffle": False, "optimizer": {"name": "sgd", "learning_rate": 1}}
    still = Session(gpt(train=plain, model=model), data)
    x, y = examples_at(still.training, still.order(3))
    assert np.array_equal(x, data.train.x)
    assert np.array_equal(y, data.train.y)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on the rhyme, in its folder's parent."""
    place = tmp_path_factory.mktemp("text")
    (place / "rhyme.txt").write_text(RHYME)
    return loop.train(gpt(), run_dir=place / "run", data_dir=place, quiet=True)


def test_a_run_of_a_text_keeps_its_vocabulary_and_its_loss_in_nats(run):
    assert json.loads((run / "vocabulary.json").read_text()) == {"characters": "abcdefgh", "window": 12}
    lines, found = metrics(run), summary(run)
    assert "validation_accuracy" not in lines[-1]
    assert found["validation_loss"] == lines[-1]["validation_loss"] < 0.3 < np.log(8) * 0.9 < lines[0]["train_loss"]
    assert found["best_validation_loss"] == min(line["validation_loss"] for line in lines)
    log = (run / "log.txt").read_text()
    assert "losses in nats a character" in log
    assert f"jaxnet sample {run} --prompt" in log


def test_a_stopped_run_of_a_text_goes_on_to_the_same_bits(run, tmp_path, monkeypatch):
    whole = metrics(run)
    calls = []

    class CutError(Exception):
        pass

    def cut(self, state, best=()):
        calls.append(1)
        if len(calls) == 5:
            self.save(state)
            raise CutError

    with monkeypatch.context() as patched:
        patched.setattr(loop.Loop, "pause", cut)
        with pytest.raises(CutError):
            loop.train(gpt(), run_dir=tmp_path / "cut", data_dir=run.parent, quiet=True)
    loop.resume(tmp_path / "cut", quiet=True)
    assert metrics(tmp_path / "cut") == whole
    assert summary(tmp_path / "cut")["params_sha256"] == summary(run)["params_sha256"]


# -------------------------------------------------------------------------------------------- samples


def said(*arguments: object):
    return CliRunner().invoke(app, ["sample", *map(str, arguments)], prog_name="jaxnet")


def test_a_sample_goes_on_with_what_was_learnt_beyond_the_window(run):
    (run.parent / "rhyme.txt").rename(run.parent / "away.txt")  # the data are not needed again
    result = said(run, "--prompt", "cde", "--length", 40, "--temperature", 0)
    (run.parent / "away.txt").rename(run.parent / "rhyme.txt")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == (RHYME[2:45] + "\n")
    assert said(run, "--prompt", RHYME[:30], "--length", 5, "--top-k", 1).stdout == RHYME[:35] + "\n"


def test_samples_are_drawn_by_their_seed(run):
    def drawn(**options):
        return "".join(sample.sample(run, "a", length=30, drawing=sample.TokenDraw(**options)))

    warm = drawn(temperature=3.0)
    assert drawn(temperature=3.0) == warm != drawn(temperature=3.0, seed=1)
    assert set(warm) <= set(RHYME)
    assert len(warm) == 30


def test_a_network_wider_than_the_text_draws_the_texts_own_characters(run, tmp_path):
    model = {"name": "gpt", "vocab": 11, "width": 4, "heads": 1, "depth": 1, "positions": 12}
    train = {"epochs": 1, "optimizer": {"name": "sgd", "learning_rate": 0.1}}
    wide = loop.train(gpt(model=model, train=train), run_dir=tmp_path / "wide", data_dir=run.parent, quiet=True)
    drawn = "".join(sample.sample(wide, "a", length=60, drawing=sample.TokenDraw(temperature=100.0)))
    assert len(drawn) == 60
    assert set(drawn) <= set("abcdefgh")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", ""], "a prompt must have at least one character"),
        (["--prompt", "abcé"], "the prompt has 'é', but the run's text has only 'a', 'b'"),
        (["--length", 0, "--prompt", "a"], "length must be at least 1, got 0"),
        (["--temperature", -1, "--prompt", "a"], "temperature must be at least 0 and finite, got -1"),
        (["--temperature", "nan", "--prompt", "a"], "temperature must be at least 0"),
        (["--top-k", 9, "--prompt", "a"], "top-k must be from 1 to the 8 characters there are, got 9"),
        (["--seed", -1, "--prompt", "a"], "seed must be from 0"),
    ],
)
def test_samples_that_cannot_be_drawn(run, options, message):
    result = said(run, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_a_run_of_no_text_writes_none(tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("config.toml", "environment.json"):
        (tmp_path / "run" / name).write_text("")
    for folder, message in ((tmp_path / "run", "was not trained on a text"), (tmp_path / "none", "is not a run")):
        result = said(folder)
        assert result.exit_code == 2
        assert message in result.stderr
        assert "Traceback" not in result.stderr


def test_a_run_is_evaluated_on_another_text_in_its_own_vocabulary(run, tmp_path):
    (tmp_path / "more.txt").write_text("cdefghab" * 20)
    assert trained_network.evaluate(run, data=str(tmp_path / "more.txt"))["test_loss"] < 0.5
    (tmp_path / "few.txt").write_text("ba" * 200)  # the same letters mean the same tokens
    assert trained_network.evaluate(run, data=str(tmp_path / "few.txt"))["test_loss"] > 1
    (tmp_path / "strange.txt").write_text("abcz" * 200)
    with pytest.raises(DataError, match="holds characters that the vocabulary has not: 'z'"):
        trained_network.evaluate(run, data=str(tmp_path / "strange.txt"))
