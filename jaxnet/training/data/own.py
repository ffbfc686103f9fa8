"""Your own data, made by Python code: `"package.module:object"`."""

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np

from jaxnet.registry import ENTRY_POINTS, did_you_mean, maker_of
from jaxnet.training.data.dataset import (
    PARTS,
    DataError,
    Dataset,
    Split,
    as_float32,
    as_labels,
    as_numbers,
    check_split,
)
from jaxnet.training.data.tables import from_arrays

PACKAGES = ("jaxnet", "optax")


class Allowed:
    """The modules whose objects a config may name, and so run: a config may come from a stranger.

    They are those in the current folder and beside a config that was read; of jaxnet, optax and packages that register
    makers, the objects that these define themselves. everything: any module.
    """

    def __init__(self):
        self.folders: set[str] = set()
        self.everything = False

    def read_beside(self, file: Path) -> None:
        """Allows the modules in the folder of a config."""
        self.folders.add(str(file.parent.resolve()))

    def check(self, where: str, module: str) -> None:
        """Raises ImportError where the module is none of these; it is not imported."""
        folders = {str(Path.cwd().resolve()), *self.folders}
        sys.path += sorted(folders - set(sys.path))
        top = module.partition(".")[0]
        if self.everything or top in packages():
            return
        try:
            spec = importlib.util.find_spec(top)
        except ValueError:  # of a module that was not imported, such as __main__
            places = []
        else:
            if spec is None:
                return  # the import tells that there is none
            places = [place for place in (spec.submodule_search_locations or [spec.origin]) if place]
        inside = [os.path.isabs(place) and str(Path(place).parent.resolve()) in folders for place in places]
        if not inside or not all(inside):
            whose = places[0] if any(map(os.path.isabs, places)) else top
            raise ImportError(
                f'"{where}" runs code of {whose}: a config may name modules beside it, '
                "in the current folder, or of packages that register layers; if you trust it, add --allow-code"
            )

    def check_object(self, where: str, found: Any) -> None:
        """Raises ImportError where a package's function is not the package's own, or a function of jaxnet no maker."""
        top = where.partition(":")[0].partition(".")[0]
        if self.everything or top not in packages() or not callable(found):
            return
        module = str(getattr(found, "__module__", ""))
        own = module.partition(".")[0] == top
        if not own or (top == "jaxnet" and maker_of(found) is None and module != "jaxnet.training.toys"):
            raise ImportError(
                f'"{where}" must be a maker, or a function that {top} itself defines; if you trust the config, '
                "add --allow-code"
            )


ALLOWED = Allowed()


def packages() -> set[str]:
    """The packages whose own functions a config may name."""
    points = entry_points(group=ENTRY_POINTS)
    return {*PACKAGES, *(point.value.partition(":")[0].partition(".")[0] for point in points)}


def import_object(where: str) -> Any:
    """The object that `"package.module:object"` names, if `ALLOWED` says so.

    Raises ImportError, with the whole reason as its message.
    """
    name, _, attribute = where.partition(":")
    if not all(part.isidentifier() for part in (*name.split("."), *attribute.split("."))):
        raise ImportError(f'"{where}" must be of the form "package.module:object"')
    ALLOWED.check(where, name)
    try:
        found = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f'"{where}": there is no module {error.name}: install it, or run in the folder that holds it'
        ) from error
    except (Exception, SystemExit) as error:
        raise ImportError(f'"{where}": importing {name} failed: {raised(error)}') from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [known for known in dir(found) if not known.startswith("_")]
            raise ImportError(
                f'"{where}": {name} has no {part}: {did_you_mean(part, public) if public else "it is empty"}'
            )
        found = getattr(found, part)
        if inspect.ismodule(found) and not ALLOWED.everything:
            raise ImportError(f'"{where}" must name an object of {name} itself, and {part} is a module')
    ALLOWED.check_object(where, found)
    return found


def raised(error: BaseException) -> str:
    """The message of an error in user code, with its line."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})"


def load_own(where: str, options: Mapping[str, Any]) -> Dataset:
    """A Dataset, or a mapping of arrays as an .npz file holds them; a callable is called with the options."""
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
        except (Exception, SystemExit) as error:
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
    """The same data set as float32 and int32. Raises DataError where x, y or their lengths are wrong."""

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

    splits = {part: check(part) for part in PARTS}
    for part, split in splits.items():
        check_split(f"{dataset.name}, {part}", split, splits["train"].x.shape[1:])
    return replace(dataset, **splits)
