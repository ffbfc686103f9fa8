"""What a config file says: its fields, their types and defaults, and how it is read and written again."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError


class ConfigError(ValueError):
    """A config that cannot be run; the message says what must hold, what came, and how to mend it."""


class Table(BaseModel):
    """A table of a config: its keys and types are exact, and it never changes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Train(Table):
    """How the network is trained."""

    epochs: int = Field(ge=0)
    batch: int = Field(default=32, ge=1)
    optimizer: Any = "sgd"
    clip_norm: float | None = Field(default=None, gt=0)
    accumulate: int = Field(default=1, ge=1)
    l2: float = Field(default=0.0, ge=0)
    shuffle: bool = True
    steps_per_call: int | None = Field(default=None, ge=1)
    chunks: int = Field(default=1, ge=1)


class Monitor(Table):
    """What is measured on the way."""

    delta_norms: bool = True
    mean_delta: int = Field(default=0, ge=0)
    gradient_norms: bool = False
    update_ratios: bool = False
    train_accuracy: bool = False


class Checkpoint(Table):
    """How many checkpoints are kept, and how often one is written."""

    keep: int = Field(default=3, ge=1)
    every_seconds: float = Field(default=30.0, ge=0)


class Mesh(Table):
    """The devices over which each batch is sharded."""

    data: int = Field(default=1, ge=1)


class Promise(Table):
    """What the recipe promises. Accuracies are fractions."""

    test_accuracy: float | None = Field(default=None, ge=0, le=1)
    best_test_accuracy: float | None = Field(default=None, ge=0, le=1)
    validation_accuracy: float | None = Field(default=None, ge=0, le=1)
    best_validation_accuracy: float | None = Field(default=None, ge=0, le=1)
    published: float | None = Field(default=None, ge=0, le=1)
    within: float | None = Field(default=None, ge=0)
    seconds: float | None = Field(default=None, ge=0)


class Config(Table):
    """A recipe: data, loss, model, training."""

    name: str = ""
    seed: int = Field(default=0, ge=0, lt=2**32)
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    data: Any = "digits"
    loss: Any
    init: str | None = None
    model: Any
    train: Train
    monitor: Monitor = Monitor()
    checkpoint: Checkpoint = Checkpoint()
    mesh: Mesh = Mesh()
    tensorboard: bool = False
    promise: Promise = Promise()

    def resolved(self) -> dict[str, Any]:
        """All of it as plain data, defaults written out; what is not set is left out."""
        return self.model_dump(exclude_none=True)


def dump_toml(config: Config) -> str:
    """A config as a file that runs again as it is."""
    return tomli_w.dumps(config.resolved())


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config of a file, with `key=value` overrides.

    Raises ConfigError.
    """
    path = Path(path)
    document = {"name": path.stem} | tomllib.loads(path.read_text("utf-8"))
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        raise ConfigError(str(error)) from None
