"""A run's network, or a config's training step, as one file that JAX runs without jaxnet: `jax.export`.

The file is read back and run on the first examples. Its outputs must equal the original's.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxnet.backprop import predict
from jaxnet.layer import Tree
from jaxnet.lowering import plain_forms
from jaxnet.training import step
from jaxnet.training.atomic_write import write_whole
from jaxnet.training.config import Config, load_config
from jaxnet.training.data import load
from jaxnet.training.devices import precision
from jaxnet.training.session import Session
from jaxnet.training.trained_network import for_evaluation, restore

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
EXAMPLES = 8
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3, "float64": 1e-12}
"""How far an output may lie from the original's, over the largest of it: each is compiled on its own."""


class ExportError(ValueError):
    """A program cannot be exported, or its file gives other outputs than the original."""


def export_run(folder: Path, out: Path, platforms: Sequence[str], data_dir: Path | None = None) -> str:
    """Writes a run's network in evaluation mode: (any number of examples, …) to its outputs. Its parameters are inside.

    Returns a message. Raises ExportError, and as `trained_network.restore`.
    """
    trained = restore(folder, data_dir=data_dir)
    recipe = trained.session.recipe
    with precision(trained.config.precision):
        xs = trained.session.arrays["train"].x[:EXAMPLES]
        [n] = export.symbolic_shape("n")
        shape = jax.ShapeDtypeStruct((n, *recipe.example.shape), recipe.example.dtype)
        network, params = predict(recipe.net), trained.net_params
        return written(out, lambda xs: network(params, xs), (shape,), (xs,), platforms, trained.config.precision)


def export_step(config: Config, out: Path, platforms: Sequence[str], data_dir: Path | None = None) -> str:
    """Writes a config's training step: (leaves of the state, xs, ys, seed) to the leaves of the next state.

    The leaves stand as `jax.tree.leaves` gives them. Returns a message. Raises ExportError, and as
    `build`.
    """
    config = config.model_copy(update={"mesh": for_evaluation(config).mesh})
    with precision(config.precision):
        session = Session(config, load(config.data, data_dir=data_dir))
        state, recipe = session.begin(), session.recipe
        batch = [jnp.asarray(config.typed(t[: recipe.batch])) for t in session.dataset.train]
        arguments = (jax.tree.leaves(state), *batch, session.key)
        return written(out, step.step_of_leaves(recipe), arguments, arguments, platforms, config.precision)


def written(
    out: Path, function: Callable, shapes: tuple, arguments: tuple, platforms: Sequence[str], precision: str
) -> str:
    """Exports a function, reads the file back, and compares both on the arguments."""
    if find_spec("flatbuffers") is None:
        raise ExportError("jax.export needs flatbuffers: pip install flatbuffers")
    for platform in platforms:
        if platform not in PLATFORMS:
            raise ExportError(f'a platform is one of {", ".join(PLATFORMS)}, got "{platform}"')
    compiled = jax.jit(function)
    with plain_forms() if [*platforms] != ["cpu"] else nullcontext():  # one program for all has the plain equations
        exported = export.export(compiled, platforms=[*platforms])(*shapes)
    write_whole(out, bytes(exported.serialize()))
    told = f"{out}: {out.stat().st_size:,} bytes for {', '.join(platforms)}"
    if jax.default_backend() not in [*platforms, *({"gpu"} if {"cuda", "rocm"} & {*platforms} else ())]:
        return f"{told}; not run, since none of these devices is here"
    again = export.deserialize(bytearray(out.read_bytes())).call(*arguments)
    off = difference(again, compiled(*arguments))
    if not off <= TOLERANCE[precision]:
        raise ExportError(
            f"{out} must give the original's outputs within {TOLERANCE[precision]:g}, got {off:.2g}: do not use it"
        )
    return f"{told}; read back and run, its outputs differ by {off:.2g} of the largest"


def difference(one: Tree, other: Tree) -> float:
    """The largest difference of two trees' leaves, each over the largest of the other's; NaN where one is NaN."""

    def of(a: Any, b: Any) -> float:
        a, b = (np.asarray(jnp.asarray(t), np.float64) for t in (a, b))
        return np.max(np.abs(a - b), initial=0.0) / (np.max(np.abs(b), initial=0.0) or 1.0)

    return float(np.max(jax.tree.leaves(jax.tree.map(of, one, other)), initial=0.0))


def run(source: Path, out: Path, platforms: str, overrides: Sequence[str], data_dir: Path | None) -> None:
    """Exports a run's folder or a config's file, and prints the names of the files."""
    chosen = [name.strip() for name in platforms.split(",")]
    if source.is_dir():
        if overrides:
            raise ExportError(f"a run is exported as it was trained, got {' '.join(overrides)}: give its config file")
        print(export_run(source, out, chosen, data_dir))
    else:
        print(export_step(load_config(source, overrides), out, chosen, data_dir))
