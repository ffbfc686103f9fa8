"""A run's summary, and its results beside the recipe's promise."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxnet.training.checkpoint import Progress
from jaxnet.training.config import Config, EarlyStop
from jaxnet.training.data.dataset import plural
from jaxnet.training.display import percent
from jaxnet.training.run_folder import VOCABULARY, quoted

ACCURACIES = ("test_accuracy", "best_test_accuracy", "validation_accuracy", "best_validation_accuracy")
LAST = ("test_accuracy", "validation_accuracy", "train_accuracy", "test_loss", "validation_loss", "train_loss")


def best_line(lines: Sequence[dict[str, Any]], metric: str) -> dict[str, Any]:
    """The first line of metrics with the lowest loss or the highest accuracy."""
    return (min if metric.endswith("loss") else max)(lines, key=lambda line: line[metric])


def epochs_without_gain(lines: Sequence[dict[str, Any]], stop: EarlyStop) -> int:
    """How many epochs ago the metric was last better than before."""
    best, since = math.inf, 0
    for line in lines:
        value = line[stop.metric] if stop.metric.endswith("loss") else -line[stop.metric]
        best, since = (value, 0) if value < best - stop.least_change or best == math.inf else (best, since + 1)
    return since


def unchanged_loss(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A message if the training loss of the last epoch is not below that of the first."""
    losses = [line["train_loss"] for line in lines if "train_loss" in line]
    if len(losses) > 1 and not losses[-1] < losses[0]:
        yield (
            f"the training loss did not fall: {losses[0]:.4g} in the first epoch, {losses[-1]:.4g} in the last: change "
            "train.optimizer.learning_rate; jaxnet find-rate CONFIG shows a range"
        )


def summarize(config: Config, progress: Progress, status: str, params_sha256: str | None, step: int) -> dict[str, Any]:
    """A run in one table: the last epoch's figures, the best ones, and how it ended.

    status: "finished", "interrupted" or "diverged". best_epoch: by test accuracy, else by validation accuracy, else by
    validation loss. step: optimiser steps done.
    """
    lines = progress.metrics
    found = {name: lines[-1][name] for name in LAST if lines and name in lines[-1]}
    if "validation_loss" in found and "validation_accuracy" not in found:
        best = best_line(lines, "validation_loss")
        found |= {"best_validation_loss": best["validation_loss"], "best_epoch": best["epoch"]}
    for split in ("validation", "test"):
        name = f"{split}_accuracy"
        if name in found:
            best = best_line(lines, name)
            found |= {f"best_{name}": best[name], "best_epoch": best["epoch"]}
    if status == "finished" and progress.epoch < config.train.epochs:
        found["stopped_early"] = True
    return found | {
        "name": config.name,
        "seed": config.seed,
        "status": status,
        "epochs": progress.epoch,
        "step": step,
        "seconds": progress.seconds,
        "params_sha256": params_sha256,
    }


def result_lines(config: Config, summary: dict[str, Any], folder: Path) -> Iterator[str]:
    """The result beside the promise, and commands to type next."""
    parts = []
    for split in ("validation", "test"):
        name = f"{split}_accuracy"
        if name in summary:
            parts.append(f"{split} {percent(summary[name])} (best {percent(summary[f'best_{name}'])})")
        elif f"{split}_loss" in summary:
            best = f" (best {summary[name]:.4f})" if (name := f"best_{split}_loss") in summary else ""
            parts.append(f"{split} loss {summary[f'{split}_loss']:.4f}{best}")
    yield "  ".join([*parts, f"{plural(summary['epochs'], 'epoch')} in {summary['seconds']:.1f} s"])
    stop = config.train.stop_early
    if stop is not None and summary.get("stopped_early"):
        yield f"stopped early: {stop.metric} has not been better for {stop.patience} of {config.train.epochs} epochs"
    yield from promised(config, summary)
    run = quoted(folder)
    last = f"sample {run} --prompt TEXT" if (folder / VOCABULARY).is_file() else f"predict {run} FILE"
    yield f"next: jaxnet eval {run}   jaxnet report {run}   jaxnet {last}"


def promised(config: Config, summary: dict[str, Any]) -> Iterator[str]:
    """Each promise of the recipe beside the result, and whether it is kept."""
    promise = config.promise
    within = promise.within or 0.0
    for name in ACCURACIES:
        wanted = getattr(promise, name)
        if wanted is None or name not in summary:
            continue
        kept = "kept" if summary[name] >= wanted - within else "NOT kept"
        margin = f" ± {100 * within:.2g}" if within else ""
        published = f", published {percent(promise.published)}" if promise.published is not None else ""
        words = name.replace("_", " ")
        yield f"promised {words} {100 * wanted:.2f}{margin} %{published}: {kept} with {percent(summary[name])}"
    if promise.validation_loss is not None and "validation_loss" in summary:
        found = summary["validation_loss"]
        kept = "kept" if found <= promise.validation_loss + within else "NOT kept"
        margin = f" ± {within:g}" if within else ""
        yield f"promised validation loss {promise.validation_loss:g}{margin}: {kept} with {found:.4f}"
    if promise.published is not None and not any(getattr(promise, name) for name in ACCURACIES):
        yield f"published {percent(promise.published)}"
    if promise.seconds is not None:
        yield f"promised {promise.seconds:g} s on the recipe's machine, took {summary['seconds']:.1f} s"
