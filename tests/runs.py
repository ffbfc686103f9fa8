"""Small configs and data for the suites that train."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner, Result

from jaxnet.cli import app
from jaxnet.training.config import Config, make_config

ROOT = Path(__file__).parent.parent


def blobs(train: int = 103, rest: int = 40, classes: int = 3, features: int = 5, spread: float = 1.0) -> dict[str, Any]:
    """Clouds of points about `classes` centres, as an own data set: {train, validation, test}."""
    random = np.random.RandomState(3)
    centres = random.normal(size=(classes, features)) * 3

    def split(n):
        y = random.randint(classes, size=n)
        return (centres[y] + spread * random.normal(size=(n, features))).astype(np.float32), y.astype(np.int32)

    (x, y), (vx, vy), (tx, ty) = split(train), split(rest), split(rest)
    return {"x_train": x, "y_train": y, "x_validation": vx, "y_validation": vy, "x_test": tx, "y_test": ty}


DOCUMENT: dict[str, Any] = {
    "name": "small",
    "data": "tests.runs:blobs",
    "loss": "softmax_cross_entropy",
    "model": [{"dense": 8}, "tanh", {"dense": 3}],
    "train": {"epochs": 3, "batch": 10, "optimizer": {"name": "sgd", "learning_rate": 0.1}},
}


def small(*overrides: str, **document: Any) -> Config:
    """A config that trains in a moment: 103 examples in batches of 10, so with a remainder of 3."""
    return make_config(DOCUMENT | document, overrides)


def called(*arguments: object, answer: str = "") -> Result:
    """`jaxnet …` in this process; an error that is no message fails the test."""
    result = CliRunner().invoke(app, [str(each) for each in arguments], input=answer)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError(f"jaxnet {' '.join(map(str, arguments))} crashed") from result.exception
    return result


def one_device() -> dict[str, str]:
    """The environment of a process with one device, as most users have.

    It compiles as this process does: runs of both are compared bit for bit.
    """
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    return {"XLA_FLAGS": " ".join(flags), "PYTHONPATH": str(ROOT)}


def command(*arguments: str | Path, **environment: str) -> subprocess.Popen:
    """`jaxnet …` in a process of its own, on one device."""
    surroundings = os.environ | one_device() | environment
    return subprocess.Popen(
        [sys.executable, "-m", "jaxnet", *map(str, arguments)],
        cwd=ROOT,
        env=surroundings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen, seconds: float = 600) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a process that ends by itself."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def killed(process: subprocess.Popen) -> None:
    """kill -9, and the end of it."""
    process.send_signal(signal.SIGKILL)
    process.communicate()


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, times and rates left out."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "examples_per_second")} for line in lines]


def summary(folder: Path) -> dict[str, Any]:
    """summary.json."""
    return json.loads((folder / "summary.json").read_text("utf-8"))
