"""Data sets by the value of a config's `data`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StrictBool, StrictInt, StrictStr, TypeAdapter, ValidationError

from jaxnet.registry import did_you_mean
from jaxnet.training.data.dataset import DataError, Dataset, Split
from jaxnet.training.data.on_disk import load_folder
from jaxnet.training.data.own import load_own
from jaxnet.training.data.pictures import digits, mnist
from jaxnet.training.data.tables import load_csv, load_npz
from jaxnet.training.data.tasks import modular_addition
from jaxnet.training.data.text import load_text, tinyshakespeare

Whole = Annotated[int, Field(strict=True, ge=0)]
Count = Annotated[int, Field(strict=True, ge=1)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Names = Annotated[list[StrictStr], Field(min_length=1)]
Column = StrictStr | StrictInt


def different(names: list[str]) -> list[str]:
    """The names; refused where two are equal."""
    if len(set(names)) < len(names):
        raise ValueError
    return names


# by option: its type, and the requirement in words
OPTIONS: dict[str, tuple[Any, str]] = {
    "split": (
        tuple[Whole, Whole, Whole] | tuple[Share, Share, Share],
        "three counts, or three fractions of at most 1, for train, validation and test",
    ),
    "limit": (Count, "a whole number of at least 1: how many examples to keep of each split"),
    "flat": (StrictBool, "true or false"),
    "expand": (Whole, "a whole number: the pixels by which pictures are moved to make more"),
    "classes": (
        Count | Annotated[Names, AfterValidator(different)],
        "a whole number of at least 1, or a list of different names",
    ),
    "mirrors": (Names, "a list of web addresses of folders"),
    "target": (Column, "a column's name or number"),
    "drop": (list[Column], "a list of columns' names or numbers"),
    "channels": (Literal["first", "last"], '"first" or "last"'),
    "header": (StrictBool, "true or false"),
    "task": (Literal["classification", "regression"], '"classification" or "regression"'),
    "scale": (
        Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)],
        "a number above 0, the divisor of x",
    ),
    "seed": (Annotated[Whole, Field(lt=2**32)], "a whole number from 0 to 2³² - 1"),
    "window": (Count, "a whole number of at least 1: how many characters an example has"),
    "modulus": (Annotated[Count, Field(ge=2)], "a whole number of at least 2"),
}
OF_ARRAYS = ("split", "limit", "flat", "classes", "task", "scale", "seed")
KINDS: dict[str, tuple[Callable[..., Dataset], tuple[str, ...]]] = {
    "digits": (digits, ("split", "limit", "flat", "expand")),
    "mnist": (mnist, ("split", "limit", "flat", "expand", "classes", "mirrors")),
    "tinyshakespeare": (tinyshakespeare, ("window", "split", "limit", "mirrors")),
    "modular_addition": (modular_addition, ("modulus", "split", "limit", "seed")),
    ".npz": (load_npz, (*OF_ARRAYS, "channels")),
    ".csv": (load_csv, (*OF_ARRAYS, "target", "drop", "header")),
    ".txt": (load_text, ("window", "split", "limit")),
    "/": (load_folder, ("window", "split", "limit", "task")),
}
"""By name, or by the end of a file's name: the function that reads it, and the options of a config."""


def load(spec: str | Mapping[str, Any], *, data_dir: str | Path | None = None, seed: int = 0) -> Dataset:
    """The data set that a config's `data` names.

    spec: "digits", "mnist", "tinyshakespeare", "modular_addition", a path to an .npz, .csv or .txt file, a path to a
        folder, with / at its end, whose data stay on disk (see `on_disk.load_folder`), or
        "package.module:object" (a Dataset, a mapping of arrays, or a function that gives one of them); or a mapping
        with that as its `name` and options beside it: split, limit (at most so many of each split), flat, of a text
        window, and for tables task, classes, scale, seed, for .csv also target, drop and header, for .npz channels. The
        options of your own function are its arguments.
    data_dir: where MNIST's files, Shakespeare's text, or a file that the current folder has not, lie.
    seed: shuffles your own file before it is split; runs that are compared must share it.
    Raises DataError.
    """
    if isinstance(spec, str):
        name, options = spec, {}
    elif isinstance(spec, Mapping) and isinstance(spec.get("name"), str):
        options = dict(spec)
        name = options.pop("name")
    else:
        raise DataError(f'data must be a name, or a table with a name such as {{ name = "mnist" }}, got {spec!r}')

    kind = kind_of(name)
    if kind not in KINDS:
        if ":" in name:
            return load_own(name, options)
        known = [known for known in KINDS if known.isidentifier()]
        raise DataError(
            f'data = "{name}" must be a data set\'s name, a path to a .npz, .csv or .txt file, '
            f'a folder with / at its end, or "package.module:object": {did_you_mean(name, known)}'
        )
    check_options(name, kind, options)
    limit = options.pop("limit", None)
    read, known_options = KINDS[kind]
    if kind.isidentifier():
        given = {"data_dir": data_dir and Path(data_dir).expanduser()} if "mirrors" in known_options else {}
        dataset = read(**given, **options)
    else:
        given = {"seed": seed} if "seed" in known_options else {}
        dataset = read(existing_file(name, data_dir), **given | options)
    return dataset if limit is None else limited(dataset, limit)


def kind_of(name: str) -> str:
    """A data set's own name, or the suffix of a file's, without that of its packing; "/" of a folder's."""
    if name.endswith("/"):
        return "/"
    return name if name in KINDS else Path(name.lower().removesuffix(".gz")).suffix


def is_text(name: str) -> bool:
    """Whether data of this name are a text."""
    return takes(name, "window")


def takes(name: str, option: str) -> bool:
    """Whether data of this name take an option."""
    kind = kind_of(name)
    return kind in KINDS and option in KINDS[kind][1]


def check_options(name: str, kind: str, options: Mapping[str, Any]) -> None:
    """Raises DataError for an unknown option or a value of the wrong kind."""
    for key, value in options.items():
        if key not in KINDS[kind][1]:
            raise DataError(f'data "{name}" has no option "{key}": {did_you_mean(key, KINDS[kind][1])}')
        kind_of_value, words = OPTIONS[key]
        try:
            TypeAdapter(kind_of_value).validate_python(value)
        except ValidationError:
            raise DataError(f'data "{name}": {key} must be {words}, got {value!r}') from None


def existing_file(name: str, data_dir: str | Path | None) -> Path:
    """The file or folder of that name, in the current folder or in data_dir."""
    places = [Path(name).expanduser(), *([Path(data_dir).expanduser() / name] if data_dir is not None else [])]
    for path in places:
        if path.is_dir() if name.endswith("/") else path.is_file():
            return path
    kind, tried = "folder" if name.endswith("/") else "file", " and ".join(str(each.absolute()) for each in places)
    raise DataError(f'data = "{name}": there is no such {kind}; looked for {tried}')


def limited(dataset: Dataset, most: int) -> Dataset:
    """The first examples of each split, at most `most`."""

    def few(split: Split) -> Split:
        return Split(split.x[:most], split.y[:most])

    if (text := dataset.text) is not None:
        text = text._replace(tokens=text.tokens[: (most + 1) * dataset.train.x.shape[1]])
    return dataset.each(few, text=text)
