"""A run's folder: config, environment, metrics, log and summary. One run never writes over another.

Functions raise RunError where a folder is no run, or cannot be read or written.
"""

import hashlib
import json
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import jaxnet
from jaxnet.devices.processes import writes
from jaxnet.training.atomic_write import umask, write_whole
from jaxnet.training.checkpoint import Checkpoints, free
from jaxnet.training.config import Config, dump_toml, load_config
from jaxnet.training.data import Dataset
from jaxnet.training.lock import FILE as LOCK
from jaxnet.training.lock import Lock
from jaxnet.training.overrides import UNREADABLE

VOCABULARY, CLASSES, NOTES, CURVES = "vocabulary.json", "classes.json", "notes.json", "curves.png"
PACKAGES = ("jax", "jaxlib", "optax", "orbax-checkpoint", "numpy", "scikit-learn")


class RunError(ValueError):
    """A run's folder cannot be made, written or read. The message has the requirement and the repair."""


class TakenError(RunError):
    """A folder for a new run that another run has taken."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an `OSError` inside into a RunError that names the file."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}: give another folder, or make room; what was written stays"
        ) from error


# --------------------------------------------------------------------------------------------- names


def data_sha256(dataset: Dataset) -> str:
    """sha256 over the arrays of all splits, their shapes and dtypes, and over a text's characters."""
    digest = hashlib.sha256()
    arrays = [array for split in dataset.splits.values() for array in split]
    for array in arrays if dataset.text is None else [*arrays, dataset.text.tokens]:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    if dataset.text is not None:
        digest.update(dataset.text.characters.encode())
    return digest.hexdigest()


def about_data(dataset: Dataset) -> dict[str, str]:
    """The vocabulary file of a text, or the class names file of a classification; other data are read with it."""
    if dataset.text is None:
        names = dataset.names or [str(i) for i in range(dataset.classes or 0)]
        return {CLASSES: json.dumps({"classes": names}) + "\n"} if names else {}
    about = {"characters": dataset.text.characters, "window": dataset.train.x.shape[1]}
    return {VOCABULARY: json.dumps(about, ensure_ascii=False) + "\n"}


def config_sha256(config: Config, data: str, *, written: bool = False) -> str:
    """sha256 of the resolved config and of the data's hash. It must be the same when a run is resumed.

    written: of the keys in the config file alone. A run's file has every key that existed when it began, so keys that
    were added to jaxnet later do not change its hash.
    """
    resolved = json.dumps(config.resolved(written=written), sort_keys=True)
    return hashlib.sha256(f"{resolved} {data}".encode()).hexdigest()


def slug(name: str, overrides: Iterable[str], sha256: str) -> str:
    """NAME-OVERRIDES-HASH, as a folder's name."""
    changed = re.sub(r"[^\w.=,+-]+", "_", ",".join(overrides))[:80].strip("_")
    return "-".join(part for part in (name or "run", changed, sha256[:8]) if part)


# --------------------------------------------------------------------------------------- surroundings


def checkout() -> tuple[str, str] | None:
    """Revision and differences of the git checkout that jaxnet, or else the current folder, lies in."""

    def git(folder: Path, *command: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *command], capture_output=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None

    for folder in (Path(jaxnet.__file__).parent, Path.cwd()):
        revision = git(folder, "rev-parse", "HEAD")
        if revision is not None:
            return revision.strip(), git(folder, "diff", "HEAD", "--no-color", "--no-ext-diff") or ""
    return None


def versions() -> dict[str, str]:
    """Versions of Python, jaxnet and its main dependencies."""
    found = {"python": platform.python_version(), "jaxnet": jaxnet.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


# ------------------------------------------------------------------------------------------ the folder


class Run:
    """One run's folder. lock: held while this process writes it; None while it only reads."""

    def __init__(self, folder: Path, lock: Lock | None = None):
        self.folder, self.lock = folder, lock

    @classmethod
    def create(
        cls,
        config: Config,
        data: str,
        devices: dict[str, Any],
        *,
        runs_dir: Path,
        run_dir: Path | None = None,
        overrides: Sequence[str] = (),
        numbered: bool = True,
        beside: dict[str, Any] | None = None,
        more: dict[str, str] | None = None,
    ) -> "Run":
        """A new folder with config, environment and empty metrics; it appears complete and locked.

        data: the data's hash. devices: as `devices.described` says. numbered: a name in `runs_dir` that is taken gets
        -2, -3 …. beside: extra keys of environment.json. more: extra files, contents by name.
        Raises TakenError where the folder is taken, RunError where nothing can be written there.
        """
        wanted = run_dir or runs_dir / slug(config.name, overrides, config_sha256(config, data))
        if not writes():
            return cls(wanted)
        if run_dir is not None and run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
            raise RunError(f"--run-dir must be a new or an empty folder, got {run_dir}, which has something in it")
        found = checkout()
        environment = {
            "versions": versions(),
            **devices,
            "machine": platform.platform(),
            "seed": config.seed,
            "command": sys.argv,
            "git_revision": found[0] if found else None,
            "data_sha256": data,
            "config_sha256": config_sha256(config, data),
        }
        files = {
            "config.toml": dump_toml(config),
            "environment.json": table_text(environment | (beside or {})),
            "metrics.jsonl": "",
            **({"source.patch": found[1]} if found else {}),
            **(more or {}),
        }
        with writing(wanted):
            return cls(*place_folder(wanted, files, fixed=run_dir is not None or not numbered))

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """The folder of an earlier run."""
        for name in ("config.toml", "environment.json"):
            if not (folder / name).is_file():
                what = "there is no such folder" if not folder.is_dir() else f"it has no {name}"
                raise RunError(f"{folder} is not a run: {what}; give the folder that `jaxnet train` named")
        return cls(folder)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the run's lock inside, and releases it at the end.

        Raises LockedError where another process writes the run.
        """
        if not writes():
            yield
            return
        if self.lock is None:
            with writing(self.folder / LOCK):
                self.lock = Lock(self.folder)
        try:
            yield
        finally:
            self.lock.release()
            self.lock = None

    def config(self) -> Config:
        """The config as it was resolved."""
        return load_config(self.folder / "config.toml")

    def environment(self) -> dict[str, Any]:
        """The content of environment.json."""
        return self.json("environment.json")

    def summary(self) -> dict[str, Any] | None:
        """The content of summary.json; None before the run has ended in any way.

        Raises RunError where it cannot be read, or a value is of another type.
        """
        if not (self.folder / "summary.json").exists():
            return None
        found = self.json("summary.json")
        for name, kind in {"status": str, "epochs": int, "step": int, "params_sha256": str | None}.items():
            if name in found and not isinstance(found[name], kind):
                path, came = self.folder / "summary.json", str(found[name])[:40]
                raise RunError(f"{path}: {name} is {came!r}, so the file has changed: {self.mend('summary.json')}")
        return found

    def vocabulary(self) -> tuple[str, int] | None:
        """The characters of the tokens, and the window that was trained on; None where the run is of no text."""
        if not (self.folder / VOCABULARY).is_file():
            return None
        about = self.json(VOCABULARY)
        return str(about["characters"]), int(about["window"])

    def classes(self) -> list[str] | None:
        """The names of the classes in order; None where the run is of no classes, or keeps no names."""
        if not (self.folder / CLASSES).is_file():
            return None
        return list(map(str, self.json(CLASSES)["classes"]))

    def notes(self) -> dict[str, list[str]]:
        """The run's notes and tags."""
        found = self.json(NOTES) if (self.folder / NOTES).is_file() else {}
        return {key: list(map(str, found.get(key, []))) for key in ("notes", "tags")}

    def note(self, notes: Sequence[str] = (), tags: Sequence[str] = (), untag: Sequence[str] = ()) -> None:
        """Adds notes and tags, and takes tags away. A run may be noted while it trains."""
        found = self.notes()
        tags = [tag for tag in dict.fromkeys([*found["tags"], *tags]) if tag not in untag]
        self.replace(NOTES, {"notes": [*found["notes"], *notes], "tags": tags})

    def delete(self) -> None:
        """Deletes the folder with all that is in it."""
        folder = self.folder.resolve()
        with self.locked(), writing(folder):
            shutil.rmtree(folder.rename(free(folder.with_name(f".{folder.name}.deleted"))))

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder."""
        path = self.folder / name
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, *UNREADABLE) as error:
            raise RunError(f"{path} must be a JSON file that can be read: {error}: {self.mend(name)}") from error
        if not isinstance(found, dict):
            raise RunError(f"{path} must hold a JSON object, got {json.dumps(found)[:40]}: {self.mend(name)}")
        return found

    def mend(self, name: str) -> str:
        """The repair of a damaged JSON file."""
        if name != "summary.json":
            return "put a good copy back"
        return f"delete it, and `jaxnet resume {quoted(self.folder)}` writes it anew"

    @property
    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints, for reading."""
        return Checkpoints(self.folder / "checkpoints")

    def ended_well(self) -> bool:
        """Whether the run is finished, and its last checkpoint and its metrics are there as they were written."""
        summary = self.summary() or {}
        if summary.get("status") != "finished":
            return False
        if summary.get("epochs", 0) < self.config().train.epochs and not summary.get("stopped_early"):
            return False  # it was extended
        steps = self.checkpoints.steps()
        if not steps or summary.get("step", steps[0]) != steps[0] or self.checkpoints.changed(steps[0]):
            return False
        metrics = self.folder / "metrics.jsonl"
        written = lines_of(self.checkpoints.progress(steps[0])[0].metrics)
        return metrics.is_file() and metrics.read_bytes() == written.encode()

    def unchanged(self, config: Config, data: str | None = None) -> None:
        """Checks that the config, and the data if their hash is given, are those that the run began with."""
        began = self.environment()
        if data is not None and began.get("data_sha256") != data:
            raise RunError(f"the data of {self.folder} have changed since it began: put them back, or train a new run")
        if config_sha256(config, str(began.get("data_sha256")), written=True) not in self.configs():
            file = self.folder / "config.toml"
            raise RunError(
                f"{file}, or environment.json beside it, has changed since the run began: undo that, or train it "
                f"as a new run: jaxnet train {quoted(file)}"
            )

    def configs(self) -> list[str]:
        """The hashes of the config that the run has, and of those that it had before it was extended."""
        began = self.environment()
        return [str(began.get("config_sha256")), *began.get("extended_from", [])]

    def extend(self, overrides: Sequence[str]) -> None:
        """Sets train.epochs of the run's config, at least the epochs that are done.

        The hash is written first, so that the folder is whole wherever the process dies.
        Raises ConfigError for an override that does not hold, RunError for one of another key or too few epochs.
        """
        if not writes():
            return
        config = self.config()
        changed = load_config(self.folder / "config.toml", overrides)
        kept = {"promise": config.promise}
        if changed.model_copy(update=kept) == config:
            return
        if changed.model_copy(update=kept | {"train": config.train}) != config or (
            changed.train.model_copy(update={"epochs": config.train.epochs}) != config.train
        ):
            raise RunError(f"only train.epochs can be changed when {self.folder} is resumed: else train a new run")
        done = (self.summary() or {}).get("epochs", 0)
        if changed.train.epochs < done:
            raise RunError(
                f"train.epochs must be at least {done}, the epochs that are done, got {changed.train.epochs}"
            )
        self.unchanged(config)
        began = self.environment()
        began |= {"config_sha256": config_sha256(changed, str(began["data_sha256"])), "extended_from": self.configs()}
        self.replace("environment.json", began)
        self.replace("config.toml", dump_toml(changed))

    def log(self, text: str) -> None:
        """One more line of log.txt."""
        self.append("log.txt", text.rstrip() + "\n")

    def append(self, name: str, text: str) -> None:
        """Adds to a file, as one write."""
        path = self.folder / name
        if not writes():
            return
        with writing(path), path.open("a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)

    def replace(self, name: str, content: str | dict[str, Any]) -> None:
        """A file anew, whole or not at all: a text, or a table as JSON."""
        if writes():
            text = content if isinstance(content, str) else table_text(content)
            replace_file(self.folder / name, text.encode())


def replace_file(path: Path, content: bytes) -> Path:
    """Writes a file anew, whole or not at all."""
    with writing(path):
        write_whole(path, content)
    return path


def table_text(table: dict[str, Any]) -> str:
    """A table as a JSON file for people."""
    return json.dumps(table, indent=2, sort_keys=True) + "\n"


def quoted(path: Path) -> str:
    """A path as one word of a command line."""
    return shlex.quote(str(path))


def lines_of(metrics: Iterable[dict[str, Any]]) -> str:
    """The lines of metrics.jsonl."""
    return "".join(json.dumps(line, sort_keys=True) + "\n" for line in metrics)


def place_folder(wanted: Path, files: dict[str, str], fixed: bool) -> tuple[Path, Lock]:
    """Writes the files into a folder of another name and then names it `wanted`, or with -2, -3 … where that is taken.

    So a run's folder is whole or not there, and two runs that begin at once get two. fixed: no other name will do.
    Gives the folder and its lock, taken before the folder has its name.
    """
    wanted.parent.mkdir(parents=True, exist_ok=True)
    being_made = Path(tempfile.mkdtemp(prefix=f".{wanted.name}.", dir=wanted.parent))
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, being_made, ignore_errors=True)
        lock = Lock(being_made)
        undo.callback(lock.release)
        for name, text in files.items():
            (being_made / name).write_text(text, "utf-8")
        being_made.chmod(0o777 & ~umask())
        while True:
            target = wanted if fixed else free(wanted)
            try:
                placed = being_made.rename(target)
            except OSError:
                if not target.exists():
                    raise
                if fixed:
                    raise TakenError(f"{target} is there already: give another folder, or move it away") from None
            else:
                undo.pop_all()
                return placed, lock
