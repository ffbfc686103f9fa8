"""Checkpoints: the state of a run and how far it is, written so that it goes on bit for bit.

Orbax writes and keeps them; a hash beside each says whether what is read back is what was written.
"""

import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.layer import Tree


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, or none that can be read; the message says what is left."""


class Progress(NamedTuple):
    """How far a run is: whole epochs done, calls done of the next one, seconds, and the lines of metrics so far."""

    epoch: int = 0
    call: int = 0
    seconds: float = 0.0
    metrics: tuple[dict[str, Any], ...] = ()
    config: str = ""
    """sha256 of the resolved config and of the data."""


def leaves_sha256(tree: Tree) -> str:
    """sha256 over the bytes of a tree's leaves, in tree order."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def files_sha256(folder: Path) -> dict[str, str]:
    """The sha256 of each file under a folder, by its path in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                found[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def plain(tree: Tree) -> Tree:
    """The leaves as NumPy arrays, keys of randomness as their words."""

    def of(leaf):
        typed = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if typed else leaf)

    return jax.tree.map(of, tree)


def like(shapes: Tree, tree: Tree) -> Tree:
    """Plain arrays with the keys of randomness that `shapes` has."""

    def of(shape, leaf):
        return jax.random.wrap_key_data(leaf) if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key) else leaf

    return jax.tree.map(of, shapes, tree)


@cache
def hush_closed_loops() -> None:
    """Lets orbax's writers end without a traceback when a failed save has closed their event loop.

    The failure itself is raised, and told; what such a writer adds, from a thread of its own, is no news.
    """

    def closed(error: BaseException | None) -> bool:
        return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"

    excepthook, unraisablehook = sys.excepthook, sys.unraisablehook
    sys.excepthook = lambda kind, error, trace: None if closed(error) else excepthook(kind, error, trace)
    sys.unraisablehook = lambda seen: None if closed(seen.exc_value) else unraisablehook(seen)


class Checkpoints:
    """The checkpoints of one run, in one folder.

    keep: how many of the newest stay. say: told where a damaged one is passed over.
    """

    def __init__(self, folder: Path, keep: int, say: Callable[[str], None] = lambda line: None):
        import orbax.checkpoint as ocp  # late: it takes as long to import as a small network to train

        quiet(logging.getLogger("absl"))
        hush_closed_loops()
        self.ocp, self.folder, self.say = ocp, folder, say
        self.options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self.listing = folder.parent / f"{folder.name}.json"
        self.manager = self.open()

    def open(self):
        """The manager of the folder as it is now."""
        return self.ocp.CheckpointManager(self.folder.absolute(), options=self.options)

    def steps(self) -> list[int]:
        """The steps there are, newest first."""
        return sorted(self.manager.all_steps(), reverse=True)

    def save(self, step: int, state: Tree, progress: Progress) -> None:
        """Writes the state after `step`; what is there already stays.

        Raises CheckpointError where it cannot be written.
        """
        if step in self.manager.all_steps():
            return
        arrays = plain(state)
        about = progress._asdict() | {"metrics": list(progress.metrics), "sha256": leaves_sha256(arrays)}
        try:
            self.manager.save(
                step,
                args=self.ocp.args.Composite(
                    state=self.ocp.args.StandardSave(arrays), progress=self.ocp.args.JsonSave(about)
                ),
            )
            self.list_files(step)
        except Exception as error:
            raise CheckpointError(
                f"the checkpoint of step {step:,} could not be written to {self.folder}: {reason(error)}; "
                f"{self.left()}: mend that, then resume"
            ) from error

    def listed(self) -> dict[str, dict[str, str]]:
        """The sha256 of each file of each checkpoint, as it was written."""
        try:
            return json.loads(self.listing.read_text("utf-8"))
        except (OSError, ValueError):
            return {}  # the state's own hash still says whether it is whole

    def list_files(self, step: int) -> None:
        """Adds a checkpoint's files to the listing, and takes out those of checkpoints that are gone."""
        there = {str(each) for each in self.manager.all_steps()}
        kept = {each: files for each, files in self.listed().items() if each in there}
        new = self.listing.with_name(f".{self.listing.name}.new")
        new.write_text(json.dumps(kept | {str(step): files_sha256(self.folder / str(step))}), "utf-8")
        new.replace(self.listing)

    def left(self) -> str:
        """Which good checkpoint there is, in words."""
        steps = self.steps()
        return f"the last good one is of step {steps[0]:,}" if steps else "there is none before it"

    def newest(self, shapes: Tree, config: str = "") -> tuple[int, Tree, Progress] | None:
        """Step, state and progress of the newest checkpoint that is whole; None where there is none at all.

        Damaged ones are moved to `damaged/` beside the folder, and said. config: the hash that must be in it, if any.
        Raises CheckpointError where all are damaged, or one is of another config.
        """
        steps = self.steps()
        for i, step in enumerate(steps):
            try:
                state, progress = self.read(step, shapes, config)
            except CheckpointError:
                raise
            except Exception as error:
                after = f"going back to the one of step {steps[i + 1]:,}" if i + 1 < len(steps) else "none is left"
                self.say(f"the checkpoint of step {step:,} is damaged ({reason(error)}): {after}")
                self.put_aside(step)
                continue
            return step, state, progress
        if steps:
            raise CheckpointError(
                f"no checkpoint in {self.folder} can be read; they were moved to {self.folder.parent / 'damaged'}: "
                "train again, or put a good copy back"
            )
        return None

    def read(self, step: int, shapes: Tree, config: str = "") -> tuple[Tree, Progress]:
        """State and progress of one checkpoint; raises where it is not what was written."""
        # A restoration that fails midway leaves threads with errors of their own: look at the files before.
        folder = self.folder / str(step)
        wanted, found = self.listed().get(str(step), {}), files_sha256(folder)
        for name in wanted:
            if found.get(name) != wanted[name]:
                raise ValueError(f"{name} {'has changed' if name in found else 'is missing'}")
        about = self.manager.restore(step, args=self.ocp.args.Composite(progress=self.ocp.args.JsonRestore()))
        about = dict(about["progress"])
        if config and about["config"] != config:
            raise CheckpointError(f"{folder} is of another config: put it back into the run that it came from")
        arrays = jax.tree.map(plain_shape, shapes)
        restored = self.manager.restore(
            step, args=self.ocp.args.Composite(state=self.ocp.args.StandardRestore(arrays))
        )["state"]
        if about.pop("sha256") != leaves_sha256(restored):
            raise ValueError(f"{folder} does not hold what was written")
        about["metrics"] = tuple(about["metrics"])
        return like(shapes, restored), Progress(**about)

    def put_aside(self, step: int) -> None:
        """Moves a damaged checkpoint out of the way, so that its step may be written again."""
        aside = self.folder.parent / "damaged"
        aside.mkdir(exist_ok=True)
        shutil.move(self.folder / str(step), free(aside / str(step)))
        self.manager = self.open()

    def close(self) -> None:
        """Lets go of the folder."""
        self.manager.close()


def free(path: Path) -> Path:
    """The path, or with -2, -3 … the first that is not there."""
    tries = [path, *(path.with_name(f"{path.name}-{i}") for i in range(2, 1000))]
    return next(each for each in tries if not each.exists())


def plain_shape(shape: Any) -> Any:
    """An array of the shape and dtype in which `plain` stores a leaf; orbax restores as it to NumPy."""
    if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
        shape = jax.eval_shape(jax.random.key_data, shape)
    return np.empty(shape.shape, shape.dtype)


def reason(error: BaseException) -> str:
    """What went wrong, in one line."""
    first = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return f"{type(error).__name__}: {first[:200]}" if first else type(error).__name__


def quiet(logger: logging.Logger) -> None:
    """Orbax logs its work, and tracebacks of errors that it raises as well: the exception is enough."""
    logger.setLevel(logging.CRITICAL)
