"""A config's training step, compiled ahead of time for devices that need not be here, as one file.

The file holds the device's own code. It runs on the same devices with the same version of JAX, without compiling:

    step = deserialize_and_load(*pickle.loads(file))        jax.experimental.serialize_executable
    leaves = step(leaves, xs, ys, seed)                     as `step.step_of_leaves`
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental.serialize_executable import deserialize_and_load, serialize

from jaxnet.devices.chips import DeviceTarget, target
from jaxnet.training import plan
from jaxnet.training.atomic_write import write_whole
from jaxnet.training.config import Config
from jaxnet.training.data import Dataset, load
from jaxnet.training.devices import precision
from jaxnet.training.exporting import difference
from jaxnet.training.program_cache import compiled_anew
from jaxnet.training.session import Session


class CompileError(ValueError):
    """A compiled step that cannot be written, or a file that gives other outputs than the step."""


def run(config: Config, devices: str, out: Path, data_dir: Path | None) -> None:
    """Compiles a config's step for devices, prints its plan and writes it.

    On a CPU the file is read back and run. Raises CompileError, and as `plan.planned`.
    """
    aim = target(devices)
    described = aim.devices()  # before the data: it may have to set how many CPU devices there are
    dataset = load(config.data, data_dir=data_dir)
    with compiled_anew():
        found, compiled = plan.planned(config, dataset, aim, described)
    print(*found.lines(), sep="\n")
    plan.fits(found)
    try:
        content = pickle.dumps(serialize(compiled))
    except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
        raise CompileError(
            f"{devices} must give its compiled code to be written: {error}. `jaxnet plan --program` writes its text"
        ) from error
    write_whole(out, content)
    told = f"{out}: {len(content):,} bytes for {devices} and jax {jax.__version__}"
    print(f"{told}; {ran(config, dataset, aim, out, compiled, described)}")


def ran(config: Config, dataset: Dataset, aim: DeviceTarget, file: Path, compiled: Any, devices: Sequence[Any]) -> str:
    """Reads the file back and runs it on the first examples; gives a message."""
    if aim.platform != "cpu":
        return "not run, since none of these devices is here"
    with precision(config.precision):
        session = Session(config, dataset)
        batch = [config.typed(t[: config.train.batch]) for t in dataset.train]
        [shardings, _] = compiled.input_shardings
        arguments = jax.device_put((jax.tree.leaves(session.begin()), *batch, session.key), shardings)
        again = deserialize_and_load(*pickle.loads(file.read_bytes()), execution_devices=devices)
        off = difference(again(*arguments), compiled(*arguments))
    if off:
        raise CompileError(f"{file} must give the step's own outputs, got a difference of {off:.2g}: do not use it")
    return "read back and run, its outputs are the step's"
