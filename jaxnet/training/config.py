"""Config files: their fields, types and defaults; reading, checking and writing them.

Functions raise ConfigError where a file cannot be read or a value is not allowed.
"""

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import tomli_w
from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from jaxnet.training.data.own import ALLOWED
from jaxnet.training.options import (
    DataSpec,
    FeedbackSpec,
    Init,
    LossSpec,
    ModelSpec,
    OptimizerSpec,
    Table,
    is_tag,
    refuse,
    shown,
)
from jaxnet.training.overrides import UNREADABLE, ConfigError, apply, linked, not_too_deep, parse, shortened

Checked = TypeVar("Checked", bound=Table)
METRIC = r"^(train|validation|test)_(loss|accuracy)$"


class EarlyStop(Table):
    """When training ends before its last epoch."""

    metric: str = Field(pattern=METRIC)
    """A loss that should fall or an accuracy that should rise: validation_loss, test_accuracy."""
    patience: int = Field(default=5, ge=1)
    """Training ends after this many epochs without a better value."""
    least_change: float = Field(default=0.0, ge=0)
    """A value is better if it differs from the best one by more than this."""


class Train(Table):
    """How the network is trained."""

    epochs: int = Field(ge=0)
    """How often the whole training set is gone through."""
    batch: int = Field(default=32, ge=1)
    """Examples in one step; the last step of an epoch takes the rest."""
    optimizer: OptimizerSpec
    """One of optax's by name, with its arguments; learning_rate may be a schedule, counted in steps."""
    clip_norm: float | None = Field(default=None, gt=0)
    """The norm to which the gradient of all parameters together is clipped."""
    accumulate: int = Field(default=1, ge=1)
    """Steps whose gradients are averaged before the parameters change."""
    l2: float = Field(default=0.0, ge=0)
    """Nielsen's lambda: weights times 1 - learning_rate * l2 / n in each step, n the training set's size.

    Weights are the parameters with a capital letter (W); biases are spared."""
    shuffle: bool = True
    """Whether each epoch goes through the training set in another order."""
    steps_per_call: int | None = Field(default=None, ge=1)
    """Steps in one compiled call; where it is not given, as many as take about a second."""
    chunks: int = Field(default=1, ge=1)
    """Equal pieces in which each batch is run, one after the other, to save memory."""
    head_chunks: int = Field(default=1, ge=1)
    """Pieces of each sequence in which the last layer and the loss are run together: the logits are never whole."""
    freeze: list[int | str] | None = Field(default=None, min_length=1)
    """Layers or parameters that are not trained, by the numbers and names of their place: [0, "2.b"]."""
    loss_scale: float = Field(default=32768.0, ge=1)
    """With precision = "float16": the first factor of the loss. It halves where a gradient overflows."""
    loss_scale_steps: int = Field(default=2000, ge=1)
    """It doubles after so many steps without an overflow."""
    stop_early: EarlyStop | None = None
    """Ends training where a metric no longer gets better."""


class Monitor(Table):
    """Measurements during training."""

    delta_norms: bool = True
    """The root mean square over the examples of each layer's norm of delta."""
    mean_delta: int = Field(default=0, ge=0)
    """Number of training examples, from the first, for each layer's mean delta after each epoch."""
    gradient_norms: bool = False
    """Each layer's norm of the gradient."""
    update_ratios: bool = False
    """Each layer's norm of the update over that of the parameters."""
    noise_scale: bool = False
    """The gradient noise scale, in examples: below it a larger batch pays.

    Read from the parameters whose norms of each example cost next to nothing: vectors, and matrices used once."""
    train_accuracy: bool = False
    """Accuracy and loss over the whole training set after each epoch."""
    class_accuracy: bool | None = None
    """The accuracy of each class, and their mean, the balanced accuracy, after each epoch."""
    dead_units: int | None = Field(default=None, ge=1)
    """Number of training examples, from the first, for each activation's share of dead units after each epoch.

    A unit is dead if it is 0 for all of them."""
    angles: int = Field(default=0, ge=0)
    """Number of training examples, from the first, for each layer's angles to backpropagation after each epoch.

    Of its gradient to the true one, and of the feedback matrix to the transpose of W; in degrees."""


class Privacy(Table):
    """Differentially private training, DP-SGD: each example's gradient is clipped, and noise is added to their sum.

    Each example is in a step with probability batch / examples; the metrics have epsilon after each epoch."""

    noise_multiplier: float = Field(gt=0)
    """The noise over the clipping norm."""
    clip_norm: float = Field(gt=0)
    """The norm to which each example's gradient is clipped."""
    per_layer: bool = False
    """Whether each of L layers is clipped by itself, to clip_norm / sqrt(L)."""
    delta: float = Field(default=1e-5, gt=0, lt=1)
    """The probability with which the bound epsilon may fail; below 1 / examples."""


class Checkpoint(Table):
    """How many checkpoints are kept, and how often one is written."""

    keep: int = Field(default=3, ge=1)
    """Number of checkpoints that are kept: the newest."""
    every_seconds: float = Field(default=30.0, ge=0)
    """The least time between two; one is always written at the end."""
    best: str | None = Field(default=None, pattern=METRIC)
    """A metric; the checkpoint of its best epoch is kept besides. `jaxnet eval RUN --best` reads it."""


class Mesh(Table):
    """The devices that share the work."""

    data: int = Field(default=1, ge=1)
    """Number of devices that share each batch."""
    fsdp: int = Field(default=1, ge=1)
    """Number of devices that share each batch, each matrix, and the optimiser's state of it."""
    tensor: int = Field(default=1, ge=1)
    """Number of devices that share each layer's outputs, inputs or heads."""
    pipeline: int = Field(default=1, ge=1)
    """Number of devices that share the layers of a repeat."""
    microbatches: int = Field(default=8, ge=1)
    """Pieces of a batch that go through a pipeline one after another."""
    schedule: Literal["gpipe", "1f1b", "zb-h1", "zb-h2"] = "zb-h1"
    """The order of a pipeline's tasks; `jaxnet pipeline` shows them."""
    rules: dict[str, Literal["tensor", ""]] = Field(default_factory=dict)
    """Which axes of the parameters are cut, by name or maker.name: { "dense.out" = "" } leaves those whole."""


class Promise(Table):
    """The results that the recipe promises, as it stands. Accuracies are fractions; a run reaches them or more."""

    test_accuracy: float | None = Field(default=None, ge=0, le=1)
    """After the last epoch, of the test set."""
    best_test_accuracy: float | None = Field(default=None, ge=0, le=1)
    """After the best epoch, of the test set."""
    validation_accuracy: float | None = Field(default=None, ge=0, le=1)
    """After the last epoch, of the validation set."""
    best_validation_accuracy: float | None = Field(default=None, ge=0, le=1)
    """After the best epoch, of the validation set."""
    validation_loss: float | None = Field(default=None, ge=0)
    """At most so much after the last epoch; of a text in nats a character."""
    published: float | None = Field(default=None, ge=0, le=1)
    """The accuracy in the publication that the recipe reproduces."""
    within: float | None = Field(default=None, ge=0)
    """By how much a run may differ."""
    seconds: float | None = Field(default=None, ge=0)
    """How long it takes on the machine that the recipe's head names."""


class Config(Table):
    """A recipe: data, loss, model and training."""

    name: str = Field(default="", pattern=r"^(\w[\w.+-]*)?$")
    """The name of its runs; the file's name where it is not given."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of the initial parameters, the order of the examples, and dropout."""
    precision: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """bfloat16, float16: products in it, parameters and sums in float32. float16 scales the loss."""
    saved: Literal["full", "int8", "float8"] = "full"
    """The precision of the values saved for the backward pass: full, or 8 bits with a scale for each row."""
    data: DataSpec = "digits"
    """digits, mnist, tinyshakespeare, modular_addition, a .npz, .csv or .txt file, package.module:object, or a table.

    A table has that as its name, and options."""
    loss: LossSpec
    """A loss by name, with its options."""
    init: Init | None = None
    """The initialiser of each layer that names none of its own."""
    start_from: str | None = None
    """A run's folder. Parameters of the same name and shape begin with that run's trained values."""
    model: ModelSpec
    """A list of layers, a model by name with its options, or package.module:object."""
    feedback: FeedbackSpec = "transpose"
    """The feedback path in place of the transpose of W, in all layers with weights or in some."""
    train: Train
    monitor: Monitor = Monitor()
    privacy: Privacy | None = None
    checkpoint: Checkpoint = Checkpoint()
    mesh: Mesh = Mesh()
    tensorboard: bool = False
    """Whether to write TensorBoard event files too."""
    promise: Promise = Promise()

    @model_validator(mode="after")
    def pieces_are_equal(self) -> "Config":
        """Chunks and devices share a batch evenly."""
        shares = self.mesh.data * self.mesh.fsdp
        which = "mesh.data" if self.mesh.fsdp == 1 else "mesh.data · mesh.fsdp"
        if self.mesh.pipeline > 1:
            shares, which = shares * self.mesh.microbatches, f"mesh.microbatches · {which}"
            if self.precision == "float16":
                raise refuse(f"mesh.pipeline = {self.mesh.pipeline} does not scale the loss: take bfloat16")
            asked = [name for name in ("delta_norms", "gradient_norms", "noise_scale") if getattr(self.monitor, name)]
            if asked or self.train.chunks > 1:
                told = f"monitor.{asked[0]} = false" if asked else "train.chunks = 1"
                raise refuse(f"mesh.pipeline = {self.mesh.pipeline} reads gradients alone, batch by batch: set {told}")
        for key, count in (("train.chunks", self.train.chunks), (which, shares)):
            if self.train.batch % count:
                more = -(-self.train.batch // count) * count
                raise refuse(f"train.batch must be a multiple of {key} = {count}, got {self.train.batch}: take {more}")
        return self

    @model_validator(mode="after")
    def privacy_is_kept(self) -> "Config":
        """Nothing that the run writes of the training examples goes around the noise, but the mean loss."""
        if self.privacy is None:
            return self
        beside = ("delta_norms", "gradient_norms", "noise_scale", "train_accuracy", "mean_delta", "angles")
        reads = [f"monitor.{name} = {'0' if name in beside[4:] else 'false'}" for name in beside
                 if getattr(self.monitor, name)]  # fmt: skip
        devices = math.prod((self.mesh.data, self.mesh.fsdp, self.mesh.tensor, self.mesh.pipeline))
        reads += ['precision = "bfloat16"'] * (self.precision == "float16")
        reads += ["train.head_chunks = 1"] * (self.train.head_chunks > 1) + ["one device in [mesh]"] * (devices > 1)
        if reads:
            raise refuse(
                f"[privacy] reads each example's own gradient, on one device, and nothing else: set {reads[0]}"
            )
        return self

    @property
    def dtype(self) -> type[np.floating]:
        """The dtype of parameters and sums."""
        return np.float64 if self.precision == "float64" else np.float32

    def typed(self, array: np.ndarray) -> np.ndarray:
        """Data in the precision of the run; whole numbers stay."""
        return array.astype(self.dtype, copy=False) if np.issubdtype(array.dtype, np.floating) else array

    def resolved(self, *, written: bool = False) -> dict[str, Any]:
        """The config as plain data without fields that are None: with all defaults, or only the `written` keys."""
        return self.model_dump(exclude_none=True, exclude_unset=written)


def dump_toml(config: Config) -> str:
    """A config as a TOML file that can be run."""
    return tomli_w.dumps(config.resolved())


def json_schema() -> dict[str, Any]:
    """JSON Schema of a config file, for editors."""
    schema = Config.model_json_schema()
    about = {
        "type": "string",
        "description": "A config that this one is merged over; its path from this file.",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "properties": schema["properties"] | {"include": about},
    }


# Overriding these keeps the promise: the machine that computes, and the files that are written.
SAME_RECIPE = {"name", "seed", "promise", "checkpoint", "monitor", "mesh", "tensorboard"}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config of a TOML file, changed by overrides such as `train.epochs=3`.

    Raises ConfigError: no such file, no TOML, or a value that is not allowed.
    """
    path = Path(path)
    document = {"name": re.sub(r"^\W+|[^\w.+-]", "_", path.stem)} | with_included(path)
    return make_config(document, overrides, where=str(path))


def make_config(document: Mapping[str, Any], overrides: Sequence[str] = (), *, where: str = "config") -> Config:
    """The config of plain data as a TOML file holds it; `where` it came from is said in errors.

    An override that makes it another recipe takes its promise away.
    """
    beside = f" with {shortened(' '.join(overrides))}" if overrides else ""
    changed = apply(document, overrides)
    if not {parse(override)[0][0] for override in overrides} <= SAME_RECIPE:
        changed.pop("promise", None)
    return validated(Config, linked(changed), where + beside)


def validated(table: type[Checked], data: Any, where: str) -> Checked:
    """The data, checked against a table type; `where` names their source in errors."""
    try:
        return table.model_validate(data)
    except ValidationError as error:
        told = [error_message(each) for each in error.errors()]
    separator = "\n  " if len(told) > 1 else " "
    raise ConfigError(f"{where}:{separator}" + separator.join(told))


def with_included(path: Path, inside: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A TOML file merged over the file that it includes: `include = "base.toml"`, a path relative to it.

    A table is merged key by key, any other value replaces the included one.
    """
    ALLOWED.read_beside(path)
    document = read_toml(path)
    if "include" not in document:
        return document
    included = document.pop("include")
    if not isinstance(included, str):
        raise ConfigError(f'{path}: include must be a path, such as include = "base.toml", got {shown(included)}')
    other = path.parent / included
    if other.resolve() in (inside := (*inside, path.resolve())):
        raise ConfigError(f"{path}: include must not come back to a file that includes it, got {shown(included)}")
    return merged(with_included(other, inside), document)


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """One table over another."""
    both = {
        key: merged(below[key], above[key])
        for key in above
        if isinstance(below.get(key), dict) and isinstance(above[key], dict) and "name" not in above[key]
    }
    return below | above | both


def read_toml(path: Path) -> dict[str, Any]:
    """The data of a TOML file."""
    try:
        return not_too_deep(tomllib.loads(path.read_text("utf-8")), str(path))
    except FileNotFoundError:
        near = sorted(str(other) for folder in (path.parent, Path("configs")) for other in folder.glob("*.toml"))
        close = get_close_matches(str(path), near, n=1, cutoff=0.5) or [
            other for other in near if Path(other).stem == path.stem
        ]
        mend = f'did you mean "{close[0]}"?' if close else "give the path of a TOML file"
        raise ConfigError(f"there is no config {path}: {mend}") from None
    except OSError as error:
        raise ConfigError(f"{path} must be a file that can be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} must be a text file in UTF-8, got byte {error.object[error.start]:#04x}") from None
    except UNREADABLE as error:
        raise ConfigError(f"{path} must be TOML: {error}") from None


# the requirement, by pydantic's name of the error
MUST = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_pattern_mismatch": "must match {pattern}",
    "list_type": "must be a list",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "literal_error": "must be {expected}",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must have at least {min_length}",
}


def error_message(error: ErrorDetails) -> str:
    """The message of one error: place, requirement, value given, repair."""
    place = ".".join(str(part) for part in error["loc"] if not is_tag(part))
    kind, came = error["type"], error["input"]
    context = {key: f"{value:g}" if isinstance(value, float) else value for key, value in error.get("ctx", {}).items()}
    if kind == "config":
        message = str(context["message"])
    elif kind == "missing":
        message = "is missing"
    else:
        must = MUST[kind].format(**context) if kind in MUST else error["msg"]
        message = f"{must}, got {shown(came)}"
        message += mend(kind, came)
    return f"{place}: {message}" if place else message


def mend(kind: str, came: Any) -> str:
    """The value in correct TOML, where the intention is clear."""
    if not isinstance(came, str):
        return ""
    if kind == "bool_type" and came.lower() in ("true", "false"):
        return f": write {came.lower()}, without quotes"
    if kind == "list_type":
        return ": write it in [brackets]"
    number = re.fullmatch(r"([+-]?)(\d*)\.?(\d*)", came.strip())
    if kind in ("int_type", "float_type") and number and (number[2] or number[3]):
        return f": write {float(came):g}, without quotes"
    if kind in ("int_type", "float_type") and "," in came:
        return f": the values of a sweep stand in brackets, [{came}]"
    return ""
