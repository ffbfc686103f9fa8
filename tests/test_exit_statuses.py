"""The exit status of the command: 1 only where `check` finds a backward pass wrong, 2 for errors, else the signal's."""

import os
import subprocess
import sys
from typing import Any

import pytest

from jaxnet import ascii_spelling, cli
from jaxnet.checking import command
from tests.runs import ROOT, called


def jaxnet(*arguments: str, stdout: Any = subprocess.PIPE, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """`jaxnet …` in a process of its own."""
    words, surroundings = [sys.executable, "-m", "jaxnet", *arguments], os.environ | environment
    return subprocess.run(words, env=surroundings, cwd=ROOT, timeout=120, stdout=stdout, stderr=subprocess.PIPE)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_an_encoding_that_lacks_the_characters(encoding):
    assert "⊙ g′(z)" in called("layers", "sigmoid").stdout
    ended = jaxnet("layers", "sigmoid", PYTHONIOENCODING=encoding)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"* g'(z)" in ended.stdout


def test_a_full_disk_under_stdout():
    with open("/dev/full", "w") as full:
        ended = jaxnet("layers", stdout=full)
    assert ended.returncode == 2
    assert b"No space left on device" in ended.stderr
    assert b"Exception ignored" not in ended.stderr


def test_a_closed_stdout():
    shell = ["bash", "-c", 'exec "$0" -m jaxnet layers >&-', sys.executable]
    ended = subprocess.run(shell, cwd=ROOT, stderr=subprocess.PIPE, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr == b"jaxnet: stdout must be open: redirect it to a file, or to /dev/null\n"


def test_a_reader_that_is_gone():
    read, write = os.pipe()
    os.close(read)
    ended = jaxnet("layers", stdout=write)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("found", "status"), [(ZeroDivisionError("x"), 2), (KeyboardInterrupt(), 130), (0, 0), (1, 1)], ids=repr
)
def test_only_a_wrong_backward_pass_is_1(found, status, monkeypatch, capsys):
    def run(*arguments, **options):
        if isinstance(found, BaseException):
            raise found
        return found

    monkeypatch.setattr(command, "run", run)
    monkeypatch.setattr(sys, "argv", ["jaxnet", "check", "dense"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == status
    assert ("a mistake of jaxnet itself" in capsys.readouterr().err) == (status == 2)


def test_every_character_of_the_package_has_a_spelling():
    text = "".join(path.read_text("utf-8") for path in (ROOT / "jaxnet").rglob("*.py"))
    lacking = {each for each in text if not each.isascii() and ascii_spelling.spelled(each) == "?"}
    assert lacking <= set("ø⋮⌈⌉漢"), lacking


def test_a_file_name_that_is_not_utf_8_is_written_as_it_is():
    name = os.fsdecode(b"not-\xff \xce\xb4")
    assert name.encode("utf-8", ascii_spelling.NAME) == b"not-\xff \xce\xb4"
    assert name.encode("ascii", ascii_spelling.NAME) == b"not-\xff delta"
