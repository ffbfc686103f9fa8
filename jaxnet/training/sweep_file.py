"""What a sweep goes over: one config in several settings, each with several seeds."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from jaxnet.training.config import Config, load_config, read_toml, told_error
from jaxnet.training.options import Table as Checked
from jaxnet.training.overrides import OverrideError, parse, parse_value
from jaxnet.training.run_listing import inline


class SweepError(ValueError):
    """A sweep that cannot be run; the message says what must hold, what came, and how to mend it."""


class SweepFile(Checked):
    """What a sweep's file says."""

    base: str
    """The config that is varied; its path from the sweep's file."""
    seeds: int = Field(default=1, ge=1)
    """How many seeds, from the config's own on."""
    together: bool = False
    """Whether the seeds of one setting are trained as one vmapped program."""
    grid: dict[str, Any] = Field(default={})
    """Keys of the config with lists of values: every combination."""
    zip: dict[str, Any] = Field(default={})
    """Keys with lists of one length: their first values, then their second ones, and so on."""


@dataclass(frozen=True)
class Setting:
    """One config of a sweep, for all of its seeds. varied: the values that set it apart; overrides: all of them."""

    varied: dict[str, str]
    overrides: tuple[str, ...]
    config: Config

    def of_seed(self, seed: int) -> Config:
        """The config with a seed."""
        return self.config.model_copy(update={"seed": seed})


@dataclass(frozen=True)
class Sweep:
    """The settings, how many seeds each has, and whether these are trained together."""

    settings: list[Setting]
    seeds: int
    together: bool

    def seeds_of(self, setting: Setting) -> range:
        """A setting's seeds, from its config's own on."""
        return range(setting.config.seed, setting.config.seed + self.seeds)


# ------------------------------------------------------------------------------------------ what to run


def read_sweep(
    path: Path, overrides: Sequence[str] = (), *, seeds: int | None = None, together: bool | None = None
) -> Sweep:
    """The sweep of a file with a `base`, or of a config and overrides such as `train.batch=[10,32]`.

    overrides: a list is swept over, any other value holds for all. seeds, together: in place of the file's.
    Raises SweepError, and ConfigError for a setting that does not hold.
    """
    document = read_toml(path)
    if not document.keys() & {"base", "grid", "zip", "seeds"}:
        said, base = SweepFile(base=path.name), path
    else:
        said = checked(document, path)
        base = path.parent / said.base
    grid, zipped = values_of(said.grid, f"{path}: grid"), values_of(said.zip, f"{path}: zip")
    fixed: list[str] = []
    for override in overrides:
        key, value = parsed(override)
        if isinstance(value, list):
            grid[key] = swept(value, override)
        else:
            fixed.append(override)
    lengths = {len(values) for values in zipped.values()}
    if len(lengths) > 1:
        each = ", ".join(f"{key} has {len(values)}" for key, values in zipped.items())
        raise SweepError(f"{path}: zip takes lists of one length: {each}")
    twice = sorted(grid.keys() & zipped.keys())
    if twice:
        raise SweepError(f"{path}: {', '.join(twice)} must be in grid or in zip, not in both")
    settings = [make_setting(base, fixed, varied) for varied in combinations(grid, zipped)]
    return Sweep(settings, seeds or said.seeds, said.together if together is None else together)


def checked(document: Mapping[str, Any], path: Path) -> SweepFile:
    """The file's fields.

    Raises SweepError with what must hold.
    """
    try:
        return SweepFile.model_validate(document)
    except ValidationError as error:
        raise SweepError(f"{path}: " + "; ".join(told_error(each) for each in error.errors())) from None


def parsed(override: str) -> tuple[str, Any]:
    """Key and value of an override.

    Raises SweepError.
    """
    try:
        path, value = parse(override)
    except OverrideError as error:
        raise SweepError(str(error)) from None
    return ".".join(part if "." not in part else inline(part) for part in path), value


def values_of(table: Mapping[str, Any], where: str, above: str = "") -> dict[str, list[Any]]:
    """The lists of values by dotted key, whether the table is written with dots or nested."""
    found: dict[str, list[Any]] = {}
    for key, value in table.items():
        name = f"{above}.{key}" if above else key
        if isinstance(value, dict):
            found |= values_of(value, where, name)
        else:
            found[name] = swept(value, f"{where}.{name}")
    return found


def swept(value: Any, where: str) -> list[Any]:
    """A list with values in it.

    Raises SweepError.
    """
    if not isinstance(value, list) or not value:
        got = "an empty list" if value == [] else inline(value)
        raise SweepError(f"{where}: a sweep takes a list of values, such as [0.1, 0.5], got {got}")
    return value


def combinations(grid: Mapping[str, list[Any]], zipped: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of the grid, with each row of the zip; the last key varies fastest."""
    rows = list(zip(*zipped.values(), strict=True)) if zipped else [()]
    for row in rows:
        for point in itertools.product(*grid.values()):
            yield dict(zip(zipped, row, strict=True)) | dict(zip(grid, point, strict=True))


def make_setting(base: Path, fixed: Sequence[str], varied: Mapping[str, Any]) -> Setting:
    """The config with the overrides and the values of one point of a sweep.

    Raises ConfigError.
    """
    overrides = (*fixed, *(written(key, value) for key, value in varied.items()))
    return Setting({key: inline(value) for key, value in varied.items()}, overrides, load_config(base, overrides))


def written(key: str, value: Any) -> str:
    """An override, text bare where it is read back as the same."""
    if isinstance(value, str) and not value.startswith(("[", "{", '"', "'")) and parse_value(value, key) == value:
        return f"{key}={value}"
    return f"{key}={inline(value)}"
