"""Checkpoints: the state of a run and its progress, written so that training resumes bit for bit.

Orbax writes the arrays. Hashes inside each checkpoint, and of its files in a listing, prove damage.
Functions raise CheckpointError where a file cannot be read or written.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.devices.processes import of_first, on_host, writes
from jaxnet.layer import Tree
from jaxnet.training.atomic_write import write_whole

DELETED = ".deleted-"
NONE = -1  # the step of no checkpoint
ORDINARY = re.compile(r"[\w ./%#+,=@:-]+")


class CheckpointError(ValueError):
    """A checkpoint cannot be written, or none can be read; the message names those that are left."""


class DamagedError(CheckpointError):
    """A checkpoint's content has changed since it was written: a hash proves it."""


class Progress(NamedTuple):
    """How far a run is: epochs done, calls done of the next epoch, seconds, and the lines of metrics so far."""

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


def progress_sha256(about: dict[str, Any]) -> str:
    """sha256 of a progress as JSON."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def files_sha256(folder: Path) -> dict[str, str]:
    """The sha256 of each file under a folder, by its path in it.

    Raises OSError for a file or folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    found = {}
    for place, _, names in os.walk(folder, onerror=refuse):
        for path in (Path(place) / name for name in names):
            with path.open("rb") as file:
                found[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def plain(tree: Tree) -> Tree:
    """The leaves as NumPy arrays, keys of randomness as their words."""

    def of(leaf):
        typed = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return on_host(jax.random.key_data(leaf) if typed else leaf)

    return jax.tree.map(of, tree)


def like(shapes: Tree, tree: Tree) -> Tree:
    """Plain arrays with the keys of randomness that `shapes` has."""

    def of(shape, leaf):
        return jax.random.wrap_key_data(leaf) if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key) else leaf

    return jax.tree.map(of, shapes, tree)


@cache
def hush_closed_loops() -> None:
    """Lets orbax's writers end without a traceback when a failed save has closed their event loop.

    The failure itself is raised; the writer's own error, from its thread, adds nothing.
    """

    def closed(error: BaseException | None) -> bool:
        return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"

    excepthook, unraisablehook = sys.excepthook, sys.unraisablehook
    sys.excepthook = lambda kind, error, trace: None if closed(error) else excepthook(kind, error, trace)
    sys.unraisablehook = lambda seen: None if closed(seen.exc_value) else unraisablehook(seen)


class Checkpoints:
    """The checkpoints of one run, for reading. Nothing here creates, moves or changes a file.

    folder: that of the checkpoints; it may be absent.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.listing = folder.with_name(f"{folder.name}.json")

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, newest first."""
        with telling(f"cannot read {self.folder}"):
            names = os.listdir(self.folder) if self.folder.exists() else []
        return sorted((int(name) for name in names if name.isascii() and name.isdecimal()), reverse=True)

    def listed(self, step: int) -> dict[str, str]:
        """The sha256 of each file of a checkpoint, as written; empty where the listing does not say."""
        try:
            document = json.loads(self.listing.read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}  # the hashes inside the checkpoint still say whether it is whole
        files = document.get(str(step)) if isinstance(document, dict) else None
        return files if isinstance(files, dict) else {}

    def changed(self, step: int) -> str:
        """How the files of a checkpoint differ from the listing; empty where they do not."""
        listed = self.listed(step)
        with telling(f"cannot read the checkpoint of step {step:,} in {self.folder}"):
            found = files_sha256(self.folder / str(step)) if listed else {}
        for name, sha256 in listed.items():
            if found.get(name) != sha256:
                return f"{name} {'has changed' if name in found else 'is missing'}"
        return ""

    def read(self, step: int, shapes: Tree, configs: Sequence[str] = ()) -> tuple[Tree, Progress]:
        """State and progress of one checkpoint.

        Two hashes inside the checkpoint decide whether it is whole. The listing only tells damage from other failures.
        configs: allowed config hashes; all are allowed if none is given.
        Raises DamagedError where a hash proves a change, CheckpointError where it cannot be read for another reason.
        """
        folder, changed = self.folder / str(step), self.changed(step)
        progress, sha256 = self.progress(step, changed)
        if configs and progress.config not in configs and not changed:
            raise CheckpointError(f"{folder} is of another config: put it back into the run that it came from")
        with self.damage_or_failure(step, changed):
            restored = restored_state(folder / "state", jax.tree.map(plain_shape, shapes))
        if sha256 != leaves_sha256(restored):
            raise DamagedError(self.damage(step, changed or "its hash does not match"))
        return like(shapes, restored), progress

    def progress(self, step: int, changed: str = "") -> tuple[Progress, str]:
        """How far the run was at a checkpoint, and the hash of its state there.

        changed: as the method of that name gives it.
        """
        with self.damage_or_failure(step, changed):
            about = dict(json.loads((self.folder / str(step) / "progress" / "metadata").read_bytes()))
            sha256, own = about.pop("sha256", None), about.pop("progress_sha256", None)
            progress = Progress(**about)._replace(metrics=tuple(about["metrics"]))
        if own not in (None, progress_sha256(about)):
            raise DamagedError(self.damage(step, changed or "its hash does not match"))
        return progress, sha256

    def damage(self, step: int, what: str) -> str:
        """The message for a damaged checkpoint."""
        return f"the checkpoint of step {step:,} in {self.folder} is damaged: {what}"

    @contextmanager
    def damage_or_failure(self, step: int, changed: str) -> Iterator[None]:
        """Turns any error inside into a DamagedError where a file has changed, else into a CheckpointError."""
        try:
            yield
        except Exception as error:  # orbax raises errors of many types
            if changed and not isinstance(error, MemoryError):
                raise DamagedError(self.damage(step, changed)) from error
            raise CheckpointError(
                f"cannot read the checkpoint of step {step:,} in {self.folder}: {reason(error)}. "
                "Nothing was moved: mend that and try again"
            ) from error

    def newest(
        self, shapes: Tree, configs: Sequence[str] = (), *, passed_over: Callable[[int, DamagedError, int | None], None]
    ) -> tuple[int, Tree, Progress] | None:
        """Step, state and progress of the newest whole checkpoint; None where there is no checkpoint.

        passed_over: called with a damaged step, its error and the step tried next; it may raise.
        Raises CheckpointError where all are damaged, or one cannot be read.
        """
        damaged: set[int] = set()
        while steps := [step for step in self.steps() if step not in damaged]:
            step, after = steps[0], steps[1] if len(steps) > 1 else None
            try:
                return step, *self.read(step, shapes, configs)
            except CheckpointError as error:
                if not (self.folder / str(step)).exists():
                    continue  # training deleted it meanwhile, after it wrote a newer one
                if not isinstance(error, DamagedError):
                    raise
                damaged.add(step)
                passed_over(step, error, after)
        if damaged:
            raise CheckpointError(f"every checkpoint in {self.folder} is damaged: train again, or put a good copy back")
        return None


class CheckpointWriter(Checkpoints):
    """The checkpoints of a run, for the processes that train it: the first one writes, the others follow.

    keep: number of newest checkpoints to keep. say: called with a message when a damaged one is skipped.
    """

    def __init__(self, folder: Path, keep: int, say: Callable[[str], None] = lambda line: None):
        super().__init__(folder)
        self.keep, self.say = keep, say
        if not writes():
            return
        with telling(f"cannot write {folder}"):
            folder.mkdir(exist_ok=True)
            for path in folder.iterdir():
                if path.name.startswith(DELETED) or ".orbax-checkpoint-tmp" in path.name:  # of a killed process
                    shutil.rmtree(path)

    def save(self, step: int, state: Tree, progress: Progress) -> None:
        """Writes the state after `step`. A checkpoint that exists already stays as it is."""
        if not writes() or step in self.steps():
            return
        arrays = plain(state)
        about = progress._asdict() | {"metrics": list(progress.metrics)}
        about |= {"progress_sha256": progress_sha256(about), "sha256": leaves_sha256(arrays)}
        try:
            save_state(self.folder / str(step), arrays, about)
            self.list_files(step)
        except Exception as error:  # orbax raises errors of many types
            raise CheckpointError(
                f"the checkpoint of step {step:,} could not be written to {self.folder}: {reason(error)}; "
                f"{self.left(step)}: mend that, then resume"
            ) from error

    def prune(self, best: int | None = None) -> None:
        """Deletes all but the newest checkpoints and the one of step `best`.

        Each is renamed first, so that no reader sees a half-deleted one.
        """
        for step in self.steps()[self.keep :] if writes() else ():
            if step == best:
                continue
            with telling(f"cannot delete the checkpoint of step {step:,} in {self.folder}"):
                shutil.rmtree((self.folder / str(step)).rename(self.folder / f"{DELETED}{step}"))

    def list_files(self, step: int) -> None:
        """Adds a checkpoint's files to the listing, and takes out those of deleted checkpoints."""
        kept = {str(each): files for each in self.steps() if (files := self.listed(each))}
        listing = kept | {str(step): files_sha256(self.folder / str(step))}
        write_whole(self.listing, json.dumps(listing).encode())

    def left(self, failed: int) -> str:
        """The message that names the newest checkpoint before the failed one."""
        steps = [step for step in self.steps() if step != failed]
        return f"the last good one is of step {steps[0]:,}" if steps else "there is none before it"

    def resumable(self, shapes: Tree, configs: Sequence[str]) -> tuple[int, Tree, Progress] | None:
        """The newest whole checkpoint, chosen by the first process. Damaged ones go to `damaged/` and are reported."""
        newest = self.newest(shapes, configs, passed_over=self.put_aside) if writes() else None
        step = of_first(NONE if newest is None else newest[0])
        return newest if newest is not None or step == NONE else (step, *self.read(step, shapes, configs))

    def put_aside(self, step: int, error: CheckpointError, after: int | None) -> None:
        """Moves a damaged checkpoint away, so that its step can be saved again."""
        aside = self.folder.with_name("damaged")
        with telling(f"cannot move the damaged checkpoint of step {step:,} to {aside}"):
            aside.mkdir(exist_ok=True)
            place = shutil.move(self.folder / str(step), free(aside / str(step)))
        going = f"going back to the one of step {after:,}" if after is not None else "none is left"
        self.say(f"{error}; moved to {place}; {going}")


# ------------------------------------------------------------------------------------------- orbax


def restored_state(folder: Path, arrays: Tree) -> Tree:
    """The arrays in a folder that orbax wrote, of the shapes and dtypes of `arrays`."""
    ocp = orbax()
    with plain_path(folder) as path:
        options = {"multiprocessing_options": alone()}
        reader = ocp.Checkpointer(ocp.StandardCheckpointHandler(**options), **options)
        return reader.restore(path, args=ocp.args.StandardRestore(arrays))


def save_state(folder: Path, arrays: Tree, about: dict[str, Any]) -> None:
    """Writes arrays and JSON to a new folder, whole or not at all."""
    ocp = orbax()
    with plain_path(folder) as path:
        options = {"multiprocessing_options": alone()}
        handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(**options))
        ocp.Checkpointer(handler, **options).save(
            path,
            args=ocp.args.Composite(state=ocp.args.StandardSave(arrays), progress=ocp.args.JsonSave(about)),
        )


def alone() -> Any:
    """Orbax options for a single process."""
    own = jax.process_index()
    return orbax().options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=str(own)
    )


@cache
def orbax() -> Any:
    """Orbax, imported when first needed: that takes as long as training a small network."""
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.CRITICAL)  # it logs tracebacks of errors that it raises as well
    hush_closed_loops()
    return ocp


@contextmanager
def plain_path(path: Path) -> Iterator[Path]:
    """The absolute path; where it has characters that orbax cannot read, another path to the same place.

    Brackets, question marks and stars are wildcards to it, and every name must be UTF-8.
    """
    absolute = path.absolute()
    if ORDINARY.fullmatch(str(absolute)):
        yield absolute
        return
    with tempfile.TemporaryDirectory(prefix="jaxnet-") as folder:
        link = Path(folder) / "run"
        link.symlink_to(absolute.parent)
        yield link / path.name


@contextmanager
def telling(what: str) -> Iterator[None]:
    """Turns an `OSError` inside into a CheckpointError. what: the failed action, in words."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{what}: {reason(error)}. Mend that and try again") from error


def free(path: Path) -> Path:
    """The path, or with -2, -3 … the first that is not there."""
    tries = [path, *(path.with_name(f"{path.name}-{i}") for i in range(2, 1000))]
    return next(each for each in tries if not each.exists())


def plain_shape(shape: Any) -> Any:
    """An array of the shape and dtype that `plain` gives a leaf; orbax restores the leaf as a NumPy array like it."""
    if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
        shape = jax.eval_shape(jax.random.key_data, shape)
    return np.empty(shape.shape, shape.dtype)


def reason(error: BaseException) -> str:
    """The error in one line."""
    first = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return f"{type(error).__name__}: {first[:200]}" if first else type(error).__name__
