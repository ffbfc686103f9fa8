"""Sweep files: one config in several settings, each with several seeds.

Functions raise ConfigError for a sweep that cannot be read, or a setting that does not hold.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from jaxnet.training.config import METRIC, Config, ConfigError, load_config, read_toml, validated
from jaxnet.training.options import Table as Checked
from jaxnet.training.options import refuse
from jaxnet.training.overrides import parse, parse_value
from jaxnet.training.run_listing import inline
from jaxnet.training.trackers import of_extra


class Range(Checked):
    """Numbers from low to high, both included: whole ones where both bounds are."""

    low: int | float
    high: int | float
    log: bool = False
    """Whether the logarithm is spread evenly."""

    @model_validator(mode="after")
    def has_an_inside(self) -> "Range":
        """low stands below high, above 0 where logarithms are taken."""
        if not self.low < self.high or (self.log and self.low <= 0):
            raise refuse(f"low must be below high{', above 0' if self.log else ''}, got {self.low:g} and {self.high:g}")
        return self


class SearchTable(Checked):
    """How settings are searched for."""

    trials: int = Field(ge=1)
    """How many settings."""
    sampler: Literal["random", "tpe"] = "tpe"
    """random: each setting by itself. tpe: optuna's tree-structured Parzen estimator, from earlier results."""
    metric: str = Field(default="validation_loss", pattern=METRIC)
    """The metric that tpe optimises, as a mean over the seeds: a loss is minimised, an accuracy maximised."""
    halving: int | None = Field(default=None, ge=2)
    """η of successive halving: settings are tried for epochs/η, epochs/η² … first, and the best 1/η go on."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draws."""
    space: dict[str, Any]
    """Keys of the config, each with a list of values or a range { low, high, log }."""


class SweepFile(Checked):
    """The fields of a sweep's file."""

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
    search: SearchTable | None = None
    """Draws settings in place of a grid."""


@dataclass(frozen=True)
class Setting:
    """One config of a sweep, for all of its seeds. varied: the values that set it apart; overrides: all of them."""

    varied: dict[str, str]
    overrides: tuple[str, ...]
    config: Config

    def of_epochs(self, count: int) -> "Setting":
        """The same for `count` epochs."""
        train = self.config.train.model_copy(update={"epochs": count})
        return replace(self, config=self.config.model_copy(update={"train": train}))

    def of_seed(self, seed: int) -> Config:
        """The config with a seed."""
        return self.config.model_copy(update={"seed": seed})


@dataclass(frozen=True)
class Sweep:
    """The settings, how many seeds each has, and whether these are trained together.

    search: draws each setting by the results of the earlier ones; None where all are known.
    """

    settings: list[Setting]
    seeds: int
    together: bool
    search: "SettingSearch | None" = None

    def seeds_of(self, setting: Setting) -> range:
        """A setting's seeds, from its config's own on."""
        return range(setting.config.seed, setting.config.seed + self.seeds)


# ------------------------------------------------------------------------------------------ settings


def read_sweep(
    path: Path, overrides: Sequence[str] = (), *, seeds: int | None = None, together: bool | None = None
) -> Sweep:
    """The sweep of a file with a `base`, or of a config and overrides such as `train.batch=[10,32]`.

    overrides: a list is swept over, any other value holds for all. seeds, together: in place of the file's.
    """
    document = read_toml(path)
    if not document.keys() & {"base", "grid", "zip", "seeds", "search"}:
        said, base = SweepFile(base=path.name), path
    else:
        said = validated(SweepFile, document, str(path))
        base = path.parent / said.base
    grid, zipped = by_key(said.grid, f"{path}: grid"), by_key(said.zip, f"{path}: zip")
    fixed: list[str] = []
    for override in overrides:
        key, value = parse(override)
        if isinstance(value, list):
            grid[".".join(part if "." not in part else inline(part) for part in key)] = swept(value, override)
        else:
            fixed.append(override)
    lengths = {len(values) for values in zipped.values()}
    if len(lengths) > 1:
        each = ", ".join(f"{key} has {len(values)}" for key, values in zipped.items())
        raise ConfigError(f"{path}: zip takes lists of one length: {each}")
    twice = sorted(grid.keys() & zipped.keys())
    if twice:
        raise ConfigError(f"{path}: {', '.join(twice)} must be in grid or in zip, not in both")
    seeds, together = seeds or said.seeds, said.together if together is None else together
    if said.search is None:
        settings = [make_setting(base, fixed, varied) for varied in combinations(grid, zipped)]
        return Sweep(settings, seeds, together)
    if grid or zipped:
        raise ConfigError(f"{path}: a sweep has a search or lists of values, got both")
    space = by_key(said.search.space, f"{path}: search.space", ranges=True)
    trials = SettingSearch(base, tuple(fixed), said.search, space)
    if said.search.sampler == "random" and said.search.halving is None:
        return Sweep(list(trials.suggested(lambda setting: 0.0)), seeds, together)
    return Sweep([], seeds, together, trials)


@dataclass(frozen=True)
class SettingSearch:
    """The settings of a search: base and fixed overrides as in a sweep; the values or the range of each key."""

    base: Path
    fixed: tuple[str, ...]
    search: SearchTable
    space: dict[str, list[Any] | Range]

    def suggested(self, results: Callable[[Setting], float | None]) -> Iterator[Setting]:
        """The settings that optuna suggests, each by the results of those before.

        With halving a setting comes several times, for more epochs each time, as long as it is among the best.
        results: the metric of a setting that has been trained; None where no seed came to its end. The same results
        give the same settings, so a search that was cut off goes on where it was.
        """
        optuna: Any = of_extra("optuna", "search")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        search, pruner = self.search, optuna.pruners.NopPruner()
        if search.halving is not None:
            pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=search.halving)
        samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
        direction = "minimize" if search.metric.endswith("loss") else "maximize"
        study = optuna.create_study(
            direction=direction, sampler=samplers[search.sampler](seed=search.seed), pruner=pruner
        )
        for _ in range(search.trials):
            trial = study.ask()
            varied = {key: suggested(trial, key, of) for key, of in self.space.items()}
            value, state, states = None, None, optuna.trial.TrialState
            rungs = self.rungs(make_setting(self.base, self.fixed, varied))
            for rung, setting in enumerate(rungs, 1):
                yield setting
                value = results(setting)
                if value is not None and rung < len(rungs):
                    trial.report(value, (search.halving or 1) ** (rung - 1))
                state = states.FAIL if value is None else states.PRUNED if rung < len(rungs) else states.COMPLETE
                if value is None or (state == states.PRUNED and trial.should_prune()):
                    break
            study.tell(trial, value if state == states.COMPLETE else None, state=state)

    def rungs(self, setting: Setting) -> list[Setting]:
        """The setting with fewer epochs and more, up to its own; alone without halving."""
        epochs, factor = [setting.config.train.epochs], self.search.halving
        while factor and epochs[0] >= factor:
            epochs.insert(0, epochs[0] // factor)
        return [setting.of_epochs(count) for count in epochs]


def suggested(trial: Any, key: str, of: list[Any] | Range) -> Any:
    """The value that optuna suggests; of a list, its place is suggested, since lists may hold tables."""
    if isinstance(of, list):
        return of[trial.suggest_categorical(key, list(range(len(of))))]
    whole = isinstance(of.low, int) and isinstance(of.high, int)
    return (trial.suggest_int if whole else trial.suggest_float)(key, of.low, of.high, log=of.log)


def by_key(table: Mapping[str, Any], where: str, ranges: bool = False, above: str = "") -> dict[str, Any]:
    """The list of each dotted key, or its range if `ranges`; tables may be nested or written with dots."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{above}.{key}" if above else key
        if isinstance(value, dict) and "low" not in value:
            found |= by_key(value, where, ranges, name)
        else:
            place = f"{where}.{name}"
            found[name] = validated(Range, value, place) if ranges and isinstance(value, dict) else swept(value, place)
    return found


def swept(value: Any, where: str) -> list[Any]:
    """A list with values in it."""
    if not isinstance(value, list) or not value:
        got = "an empty list" if value == [] else inline(value)
        raise ConfigError(f"{where}: a sweep takes a list of values, such as [0.1, 0.5], got {got}")
    return value


def combinations(grid: Mapping[str, list[Any]], zipped: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of the grid, with each row of the zip; the last key varies fastest."""
    rows = list(zip(*zipped.values(), strict=True)) if zipped else [()]
    for row in rows:
        for point in itertools.product(*grid.values()):
            yield dict(zip(zipped, row, strict=True)) | dict(zip(grid, point, strict=True))


def make_setting(base: Path, fixed: Sequence[str], varied: Mapping[str, Any]) -> Setting:
    """The config with the overrides and the values of one point of a sweep."""
    overrides = (*fixed, *(written(key, value) for key, value in varied.items()))
    return Setting({key: inline(value) for key, value in varied.items()}, overrides, load_config(base, overrides))


def written(key: str, value: Any) -> str:
    """An override, text bare where it is read back as the same."""
    if isinstance(value, str) and not value.startswith(("[", "{", '"', "'")) and parse_value(value, key) == value:
        return f"{key}={value}"
    return f"{key}={inline(value)}"
