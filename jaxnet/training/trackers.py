"""A run's metrics in the files of TensorBoard, wandb or MLflow. Nothing is sent over a network."""

import csv
import io
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from jaxnet.training.config import ConfigError
from jaxnet.training.run_folder import writing
from jaxnet.training.run_listing import RunRecord, dotted, inline


def scalars(line: dict[str, Any], sign: str = "/") -> Iterator[tuple[str, Any]]:
    """Name and value of each figure of an epoch; of a list by layers one for each, 1 nearest the input."""
    for name, value in line.items():
        if isinstance(value, list):
            yield from ((f"{name}{sign}{i}", each) for i, each in enumerate(value, 1))
        else:
            yield name, value


def metrics_csv(record: RunRecord) -> str:
    """A run's metrics as CSV: a row for each epoch."""
    rows = [dict(scalars(line, ".")) for line in record.metrics]
    columns = dict.fromkeys(["epoch", "step", *(name for row in rows for name in row)])
    written = io.StringIO()
    table = csv.DictWriter(written, list(columns), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return written.getvalue()


class Events:
    """TensorBoard's event files of a run that trains. Those from `purge_step` on of an earlier start are void."""

    def __init__(self, folder: Path, purge_step: int):
        self.writer = of_extra("tensorboardX", "experiments").SummaryWriter(str(folder), purge_step=purge_step)

    def add(self, line: dict[str, Any]) -> None:
        """One line of metrics."""
        for name, number in scalars(line):
            if name not in ("step", "epoch"):
                self.writer.add_scalar(name, number, line["step"])
        self.writer.flush()


def to_tensorboard(record: RunRecord, out: Path) -> None:
    """Writes event files."""
    events = Events(out / record.name, 0)
    for line in record.metrics:
        events.add(line)
    events.writer.close()


def to_wandb(record: RunRecord, out: Path) -> None:
    """Writes an offline run of wandb, for `wandb sync`."""
    wandb = of_extra("wandb", "wandb")
    settings = wandb.Settings(mode="offline", silent=True, console="off", disable_git=True, save_code=False)
    out.mkdir(parents=True, exist_ok=True)
    with wandb.init(
        project=record.config.get("name") or "jaxnet",
        name=record.name,
        dir=str(out),
        config=record.config,
        tags=record.tags,
        notes="\n".join(record.notes),
        settings=settings,
    ) as run:
        for line in record.metrics:
            run.log(dict(scalars(line)), step=line["step"])
        run.summary.update(record.summary)


def to_mlflow(record: RunRecord, out: Path) -> None:
    """Writes a run into MLflow's database of a folder, `mlflow.db`."""
    mlflow, entities = of_extra("mlflow", "mlflow"), import_module("mlflow.entities")
    out.mkdir(parents=True, exist_ok=True)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{out.resolve()}/mlflow.db")
    name = record.config.get("name") or "jaxnet"
    experiment = client.get_experiment_by_name(name)
    files = (out.resolve() / "artifacts").as_uri()
    number = client.create_experiment(name, files) if experiment is None else experiment.experiment_id
    tags = {"status": record.status, "notes": "\n".join(record.notes), **dict.fromkeys(record.tags, "")}
    run = client.create_run(number, run_name=record.name, tags=tags).info.run_id
    for key, value in dotted(record.config):
        client.log_param(run, key, inline(value)[:MOST_LETTERS])
    began = client.get_run(run).info.start_time
    for line in record.metrics:
        when = began + int(1000 * line.get("seconds", 0))
        figures = [entities.Metric(key, float(value), when, line["step"]) for key, value in scalars(line)]
        client.log_batch(run, metrics=figures)
    client.set_terminated(run, "FINISHED" if record.status == "finished" else "KILLED")


MOST_LETTERS = 6000  # of a parameter in MLflow
FORMATS: dict[str, Callable[[RunRecord, Path], None]] = {
    "tensorboard": to_tensorboard,
    "wandb": to_wandb,
    "mlflow": to_mlflow,
}


def export(record: RunRecord, to: str, out: Path | None = None) -> Path:
    """Writes a run's metrics, config, tags and notes for another program; gives the folder, by default of its name."""
    if to not in FORMATS:
        raise ConfigError(f"--to must be csv, {', '.join(FORMATS)}, got {to}")
    out = Path(to) if out is None else out
    with writing(out):
        FORMATS[to](record, out)
    return out


def of_extra(module: str, extra: str) -> Any:
    """A module of an extra."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ConfigError(f"there is no {module}: install jaxnet with its extra [{extra}]") from None
