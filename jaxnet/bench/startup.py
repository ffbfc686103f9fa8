"""Seconds from the command to the first finished step: with an empty cache of compiled programs, then with that one."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from jaxnet.bench.measure import Row, TimedCase, Variant, row

CONFIG = """\
data  = "digits"
loss  = "softmax_cross_entropy"
model = [{ dense = 64 }, "relu", { dense = 10 }]
[train]
epochs = 1
steps_per_call = 1
optimizer = { name = "adam", learning_rate = 1e-3 }
"""


def startup(rounds: int = 3) -> Row:
    """Warm over cold, each in a process of its own, as `jaxnet train` starts."""
    cold, warm = np.transpose([cold_and_warm() for _ in range(rounds)])
    nothing = Variant("cold", lambda: None)
    return row(TimedCase("from the command to the first step, warm", nothing, (nothing,)), warm, nothing, cold)


def cold_and_warm() -> tuple[float, float]:
    """Seconds to the first step with an empty cache, and again with the cache that this filled."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "startup.toml")
        config.write_text(CONFIG)
        return first_step(config, Path(folder, "first")), first_step(config, Path(folder, "second"))


def first_step(config: Path, run: Path) -> float:
    """Seconds that one run says it took to its first step. Its cache lies beside the config."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(config.parent / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, "-m", "jaxnet", "train", str(config), "--run-dir", str(run)]
    subprocess.run(command, env=os.environ | cache, check=True, capture_output=True)
    return json.loads((run / "summary.json").read_text())["seconds_to_first_call"]
