"""Compiled programs kept between runs: a file that was changed, swapped or cut off is compiled again, never run."""

import pytest

from jaxnet.training.config import dump_toml
from jaxnet.training.program_cache import HashedCache
from tests.runs import command, finished, metrics, small


def test_a_program_is_found_by_its_key(tmp_path):
    cache = HashedCache(tmp_path / "programs")
    assert cache.get("one") is None
    cache.put("one", b"program")
    assert cache.get("one") == b"program"


@pytest.mark.parametrize("damage", ["swapped", "flipped", "cut", "empty", "gone"])
def test_a_changed_file_is_not_run_but_written_anew(tmp_path, damage):
    cache = HashedCache(tmp_path)
    cache.put("one", b"a program of some length")
    cache.put("other", b"another program")
    path = tmp_path / "one"
    content = path.read_bytes()
    changed = {
        "swapped": (tmp_path / "other").read_bytes(),
        "flipped": content[:-1] + bytes([content[-1] ^ 1]),
        "cut": content[: len(content) // 2],
        "empty": b"",
    }
    path.unlink() if damage == "gone" else path.write_bytes(changed[damage])
    assert cache.get("one") is None
    cache.put("one", b"a program of some length")
    assert cache.get("one") == b"a program of some length"


def test_a_cache_that_cannot_be_written_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    cache = HashedCache(tmp_path / "file")
    cache.put("one", b"program")
    assert cache.get("one") is None


@pytest.mark.long
def test_swapped_programs_give_the_same_bits(tmp_path):
    """Each command is its own process, so that programs come from the files."""
    (tmp_path / "small.toml").write_text(dump_toml(small("train.epochs=1")), "utf-8")
    surroundings = {"XDG_CACHE_HOME": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": ""}
    runs = []
    for name in ("first", "second"):
        process = command("train", tmp_path / "small.toml", "--run-dir", tmp_path / name, **surroundings)
        status, _, err = finished(process)
        assert (status, err) == (0, "")
        runs.append([line["train_loss"] for line in metrics(tmp_path / name)])
        files = sorted((tmp_path / "jaxnet" / "programs").iterdir())
        assert len(files) > 1
        contents = [file.read_bytes() for file in files]
        for file, content in zip(files, [*contents[1:], contents[0]], strict=True):
            file.write_bytes(content)
    assert runs[0] == runs[1]
