"""Compiled programs kept between runs. Each is stored with a hash, so that a changed file is not run."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jax
from jax._src import compilation_cache  # JAX has no public place for another cache
from jax._src.compilation_cache_interface import CacheInterface

from jaxnet.training.atomic_write import write_whole
from jaxnet.training.data import cache_folder


class HashedCache(CacheInterface):
    """Programs by their key: each file is sha256(key + program), then the program.

    JAX's own cache runs whatever stands in the file of a key: another program, or half of one.
    """

    def __init__(self, folder: Path):
        self._path = folder

    def get(self, key: str) -> bytes | None:  # type: ignore[override]  # JAX's own gives bytes too
        """The program of a key; None where there is none, or its file has changed."""
        try:
            content = (self._path / key).read_bytes()
        except OSError:
            return None
        program = content[hashlib.sha256().digest_size :]
        return program if content == sealed(key, program) else None

    def put(self, key: str, value: bytes) -> None:
        """Keeps a program. A cache that cannot be written costs time alone."""
        with suppress(OSError):
            self._path.mkdir(parents=True, exist_ok=True)
            write_whole(self._path / key, sealed(key, value))


def sealed(key: str, program: bytes) -> bytes:
    """A program behind the hash of its key and itself."""
    return hashlib.sha256(key.encode() + program).digest() + program


def keep_compiled(folder: Path | None = None) -> None:
    """Keeps compiled programs in a folder, by default the user's cache; where JAX is told to, if it is."""
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    folder = folder or cache_folder() / "programs"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compilation_cache._cache, compilation_cache._cache_initialized = HashedCache(folder), True


@contextmanager
def compiled_anew() -> Iterator[None]:
    """Inside, no program is read from the cache, nor kept: a CPU's program that was read cannot be written again."""
    kept = compilation_cache._cache, compilation_cache._cache_initialized
    compilation_cache._cache, compilation_cache._cache_initialized = None, True
    try:
        yield
    finally:
        compilation_cache._cache, compilation_cache._cache_initialized = kept
