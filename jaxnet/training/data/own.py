"""Data of one's own, made by Python: `"package.module:object"`."""

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxnet.registry import did_you_mean
from jaxnet.training.data.dataset import (
    DataError,
    Dataset,
    Split,
    as_float32,
    as_labels,
    as_numbers,
    check_split,
)
from jaxnet.training.data.tables import from_arrays


def import_object(where: str) -> Any:
    """What `"package.module:object"` names; the current folder is looked into as well.

    Raises ImportError, with the whole reason as its message.
    """
    name, _, attribute = where.partition(":")
    if not all(part.isidentifier() for part in (*name.split("."), *attribute.split("."))):
        raise ImportError(f'"{where}" must be of the form "package.module:object"')
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f'"{where}": there is no module {error.name}: install it, or run in the folder that holds it'
        ) from error
    except Exception as error:
        raise ImportError(f'"{where}": importing {name} failed: {raised(error)}') from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [known for known in dir(found) if not known.startswith("_")]
            raise ImportError(
                f'"{where}": {name} has no {part}: {did_you_mean(part, public) if public else "it is empty"}'
            )
        found = getattr(found, part)
    return found


def raised(error: Exception) -> str:
    """An error of somebody's own code in one line, with the place."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})"


def load_own(where: str, options: Mapping[str, Any]) -> Dataset:
    """A Dataset, or a mapping of arrays as an .npz file holds them; a callable is called with the options.

    Raises DataError where it cannot be imported, fails, or gives something else.
    """
    try:
        made = import_object(where)
    except ImportError as error:
        raise DataError(str(error)) from error
    if callable(made):
        try:
            inspect.signature(made).bind(**options)
        except (TypeError, ValueError) as error:  # ValueError: some built-in functions have no signature
            given = ", ".join(f"{key} = {value!r}" for key, value in options.items()) or "no options"
            raise DataError(f'"{where}" does not take {given}: {error}') from error
        try:
            made = made(**options)
        except DataError:
            raise
        except Exception as error:
            raise DataError(f'"{where}" failed: {raised(error)}') from error
    elif options:
        raise DataError(f'"{where}" is no function, so it takes no options, got {", ".join(options)}')
    if isinstance(made, Dataset):
        return checked(made)
    if isinstance(made, Mapping):
        return replace(from_arrays(f'"{where}"', made), name=where)
    raise DataError(
        f'"{where}" must give a jaxnet.training.data.Dataset or a mapping with arrays x and y, '
        f"got {type(made).__name__}"
    )


def checked(dataset: Dataset) -> Dataset:
    """The same data set as float32 and int32, refused where x, y or their lengths are not what they must be."""

    def check(part: str) -> Split:
        where, split = f"{dataset.name}, {part}", getattr(dataset, part)
        if not isinstance(split, tuple) or len(split) != 2:
            raise DataError(f"{where}: must be a Split of x and y, got {type(split).__name__}")
        x, y = (np.asarray(values) for values in split)
        if not (part != "train" and len(x) == len(y) == 0):
            whole = as_numbers(f"{where}, x", x).dtype.kind in "iu"  # tokens stay whole numbers
            x = as_labels(f"{where}, x", x) if whole else as_float32(f"{where}, x", x)
            y = (
                as_float32(f"{where}, y", y)
                if dataset.classes is None
                else as_labels(f"{where}, y", y, dataset.classes, dataset.ignore)
            )
        return Split(x, y)

    train, validation, test = (check(part) for part in ("train", "validation", "test"))
    for part, split in (("train", train), ("validation", validation), ("test", test)):
        check_split(f"{dataset.name}, {part}", split, train.x.shape[1:])
    return replace(dataset, train=train, validation=validation, test=test)
