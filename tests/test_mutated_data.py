"""Data files by the thousand with bytes changed, taken out or doubled: each is read, or refused in words."""

import gzip
import io
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jaxnet.training.data import DataError, Dataset, load
from jaxnet.training.data.files import read_arrays
from tests.datasets import FILES, SMALL, nothing_of_this_machine, small_mnist, write  # noqa: F401 (the fixture)

pytestmark = pytest.mark.slow

MUTATIONS = 2000
SEEDS = 8


def table(classes: bool) -> bytes:
    rows = (f"{i},{i / 7:.3f},{-i},{('red', 'blue')[i % 2] if classes else i * 0.5}" for i in range(30))
    return ("id,a,b,c\n" + "\n".join(rows) + "\n").encode()


def arrays(packed: bool) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(file, x=np.arange(60.0).reshape(20, 3), y=np.arange(20) % 2)
    return file.getvalue()


def array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(60.0).reshape(20, 3))
    return file.getvalue()


def mnist(name: str, packed: bool) -> Callable[[Path, bytes], object]:
    """Loads pictures of which the file of that name is another."""

    def read(path: Path, content: bytes) -> Dataset:
        files = small_mnist()
        files[name] = content
        write(path.parent / "mnist", files, form=lambda each: each + (".gz" if packed and each == name else ""))
        for stale in (path.parent / "mnist").glob(f"{name}*"):
            if stale.suffix == ".gz" and not packed:
                stale.unlink()
        return load({"name": "mnist", "split": SMALL}, data_dir=path.parent)

    return read


def loaded(**options: object) -> Callable[[Path, bytes], object]:
    def read(path: Path, content: bytes) -> Dataset:
        path.write_bytes(content)
        return load({"name": str(path), **options})

    return read


def one_array(path: Path, content: bytes) -> object:
    path.write_bytes(content)
    return read_arrays(path)


TEXT = "what holds must hold, what came, and how to mend it\n" * 30
KINDS: dict[str, tuple[str, bytes, Callable[[Path, bytes], object]]] = {
    "classes in a table": ("own.csv", table(True), loaded(drop=["id"])),
    "regression from a table": ("own.csv", table(False), loaded(task="regression", drop=[0])),
    "arrays": ("own.npz", arrays(False), loaded()),
    "packed arrays": ("own.npz", arrays(True), loaded()),
    "one array": ("own.npy", array(), one_array),
    "pictures": ("x", small_mnist()[FILES[0]], mnist(FILES[0], packed=False)),
    "labels": ("x", small_mnist()[FILES[1]], mnist(FILES[1], packed=False)),
    "text": ("own.txt", TEXT.encode(), loaded(window=16)),
    "packed text": ("own.txt.gz", gzip.compress(TEXT.encode()), loaded(window=16)),
}


def mutated(content: bytes, donor: bytes, dice: random.Random) -> bytes:
    """A file with a few bytes changed, taken out, doubled, cut off, or put in from another file."""
    changed = bytearray(content)
    for _ in range(dice.choice([1, 1, 1, 2, 4, 12])):
        if not changed:
            break
        # the heads of files are small, and say what the rest is
        at = dice.randrange(min(len(changed), dice.choice([16, 130, len(changed)])))
        match dice.randrange(12):
            case 0:
                changed[at] = dice.randrange(256)
            case 1:
                changed[at] ^= 1 << dice.randrange(8)
            case 2:
                del changed[at : at + dice.randint(1, 20)]
            case 3:
                changed[at:at] = changed[at : at + dice.randint(1, 20)]
            case 4:
                start = dice.randrange(len(donor))
                changed[at:at] = donor[start : start + dice.randint(1, 40)]
            case 5:
                changed[at : at + 4] = dice.choice(
                    [b"\xff" * 4, bytes(4), b"9999", b"\x7f\xff\xff\xff", b"-1, ", b"nan,"]
                )
            case 6:
                del changed[dice.randrange(len(changed)) :]
            case _:
                changed[dice.randrange(len(changed))] = dice.randrange(256)
    return bytes(changed)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_mutated_data_files(tmp_path, seed):
    dice, outcomes, names = random.Random(seed), Counter(), list(KINDS)
    for i in range(MUTATIONS // SEEDS):
        kind = names[i % len(names)]
        file, content, read = KINDS[kind]
        changed = mutated(content, KINDS[dice.choice(names)][1], dice)
        found, refusal = None, ""
        try:
            found = read(tmp_path / file, changed)
        except DataError as error:
            refusal = str(error)
        except BaseException as error:
            raise AssertionError(f"mutation {i} of seed {seed}, {kind}: {changed[:400]!r}") from error
        if isinstance(found, Dataset):
            assert np.isfinite(found.train.x).all()
            assert len(found.train.x) == len(found.train.y) > 0
        assert found is not None or file in refusal or "mnist" in refusal
        outcomes[f"{kind}: {'refused' if refusal else 'read'}"] += 1
    assert sum(outcomes.values()) == MUTATIONS // SEEDS
    print(dict(sorted(outcomes.items())))
