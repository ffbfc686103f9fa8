"""Text, a character a token: windows of it, each with the next characters as its targets.

Tiny Shakespeare from a file or a public mirror, or your own text file.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxnet.training.data.dataset import PARTS, DataError, Dataset, Split, Text
from jaxnet.training.data.download import cache_folder, fetch, local
from jaxnet.training.data.files import read_bytes

SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SHAKESPEARE_FILE = "input.txt"
SHAKESPEARE_MIRRORS = ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",)
ADVICE = (
    "Put the text, plain or gzipped, as tinyshakespeare/input.txt into a folder "
    "and pass --data-dir FOLDER or set JAXNET_DATA to it."
)
WINDOW = 128
SPLIT = (0.9, 0.1, 0.0)


def tinyshakespeare(
    *,
    data_dir: str | Path | None = None,
    window: int = WINDOW,
    split: Sequence[int | float] = SPLIT,
    mirrors: Sequence[str] = SHAKESPEARE_MIRRORS,
) -> Dataset:
    """1,115,394 characters of Shakespeare's plays, 65 different ones, as `from_text` cuts them.

    Looked for in data_dir, then in `$JAXNET_DATA` (in either input.txt, plain or gzipped, or a folder tinyshakespeare/
    with it), else downloaded into the cache.
    Source: Karpathy, The Unreasonable Effectiveness of Recurrent Neural Networks, 2015.
    """
    path = local(data_dir, text_under, f"no {SHAKESPEARE_FILE}, itself or in tinyshakespeare/. {ADVICE}") or fetch(
        SHAKESPEARE_FILE,
        SHAKESPEARE_SHA256,
        [f"{mirror.rstrip('/')}/{SHAKESPEARE_FILE}" for mirror in mirrors],
        cache_folder() / "tinyshakespeare",
        advice=ADVICE,
    )
    content = read_bytes(path)
    found = hashlib.sha256(content).hexdigest()
    if found != SHAKESPEARE_SHA256:
        raise DataError(
            f"{path}: is another text than Tiny Shakespeare (SHA-256 {found[:12]}… where {SHAKESPEARE_SHA256[:12]}… is "
            f'due): put that one there, or train on this one by data = "{path}"'
        )
    return from_text("tinyshakespeare", content.decode("ascii"), window=window, split=split)


def load_text(path: Path, *, window: int = WINDOW, split: Sequence[int | float] = SPLIT) -> Dataset:
    """A text file in UTF-8, plain or gzipped, as `from_text` cuts it."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: must be a text in UTF-8, got byte {error.object[error.start]:#04x} at {error.start:,}: "
            "save it as UTF-8"
        ) from error
    return from_text(str(path), text, window=window, split=split)


def from_text(where: str, text: str, *, window: int = WINDOW, split: Sequence[int | float] = SPLIT) -> Dataset:
    """A text as token windows, as `from_tokens` cuts them.

    Token i stands for the i-th of the text's characters in the order of their code points.
    """
    known = "".join(sorted(set(text)))
    return from_tokens(where, encode(text, known), known, window=window, split=split)


def from_tokens(
    where: str, tokens: np.ndarray, known: str, *, window: int = WINDOW, split: Sequence[int | float] = SPLIT
) -> Dataset:
    """Tokens of the characters `known` as windows: train their first part, then validation, then test.

    An example is x, (window,) tokens, with y, (window,), the token after each. split: how many characters (counts or
    fractions). Each part is cut into windows one after another; the rest is left out. In training
    an epoch goes once through the text, its windows shifted together by a new random offset below `window`.
    """
    name = Path(where).stem
    parts = []
    start = 0
    for part, count in zip(PARTS, text_counts(where, split, len(tokens)), strict=True):
        parts.append(tokens[start : start + count])
        start += count
        if len(parts[-1]) < window + 1 and (part == "train" or count):
            raise DataError(
                f"{where}, {part}: must have at least {window + 1} characters, one more than a window, got {count:,}: "
                "choose a smaller window, another split or a longer text"
            )
    train, validation, test = (windows(part, window) for part in parts)
    # One training window less, so that each epoch's may begin elsewhere.
    count = max(1, (len(parts[0]) - window) // window)
    train = Split(train.x[:count], train.y[:count])
    return Dataset(name, train, validation, test, len(known), text=Text(parts[0], known))


def text_counts(where: str, split: Sequence[int | float], n: int) -> tuple[int, int, int]:
    """The numbers of characters for train, validation and test; with fractions the last of them has the rest."""
    if all(isinstance(part, int) for part in split):
        counts = [int(part) for part in split]
    else:
        if sum(split) > 1 + 1e-9:
            raise DataError(f"{where}: the fractions of split {list(split)} add up to {sum(split):g}, more than 1")
        ends = [int(sum(split[: i + 1]) * n + 1e-9) for i in range(3)]
        counts = [ends[0], ends[1] - ends[0], ends[2] - ends[1]]
    if sum(counts) > n:
        raise DataError(f"{where}: split {list(split)} takes {sum(counts):,} characters, but there are {n:,}")
    return counts[0], counts[1], counts[2]


def windows(tokens: np.ndarray, window: int) -> Split:
    """Windows one after another, each with the token after each of its tokens: views, no copies."""
    count = max(0, len(tokens) - 1) // window
    x, y = tokens[: count * window], tokens[1 : count * window + 1]
    return Split(x.reshape(count, window), y.reshape(count, window))


def encode(text: str, characters: str) -> np.ndarray:
    """The token of each character of a text, (characters,) int32; all must be known."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    known = np.frombuffer(characters.encode("utf-32-le"), np.uint32)
    order = np.argsort(known)
    return order[np.searchsorted(known[order], points)].astype(np.int32)


def in_vocabulary(dataset: Dataset, characters: str) -> Dataset:
    """The same text in tokens that stand for other characters."""
    assert dataset.text is not None
    strange = "".join(sorted(set(dataset.text.characters) - set(characters)))
    if strange:
        raise DataError(f"{dataset.name}: holds characters that the vocabulary has not: {shown(strange)}")
    other = encode(dataset.text.characters, characters)

    def part(split: Split) -> Split:
        return Split(other[split.x], other[split.y])

    return dataset.each(part, classes=len(characters), text=Text(other[dataset.text.tokens], characters))


def shown(characters: str, most: int = 8) -> str:
    """A few characters, quoted."""
    some = ", ".join(map(repr, characters[:most]))
    return some if len(characters) <= most else f"{some} and {len(characters) - most:,} more"


# -------------------------------------------------------------------------------------------- files


def text_under(folder: Path) -> Path | None:
    """input.txt in a folder's tinyshakespeare/ or in the folder itself, plain or gzipped."""
    places = [place / (SHAKESPEARE_FILE + end) for place in (folder / "tinyshakespeare", folder) for end in ("", ".gz")]
    return next((path for path in places if path.is_file()), None)
