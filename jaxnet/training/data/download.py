"""Files from public mirrors into a cache: checked by hash, written atomically."""

import contextlib
import hashlib
import http.client
import logging
import os
import secrets
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxnet.training.data.dataset import DataError
from jaxnet.training.data.files import GZIP, MOST_BYTES

log = logging.getLogger(__name__)

CHUNK = 1 << 18
STALE_SECONDS = 24 * 3600


class MirrorError(Exception):
    """Why one mirror did not deliver."""


def cache_folder() -> Path:
    """Where downloads are kept: `$XDG_CACHE_HOME/jaxnet`, else `~/.cache/jaxnet`."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "jaxnet"
    except RuntimeError as error:
        raise DataError("there is no home folder to keep downloads in: set XDG_CACHE_HOME to a folder") from error


def fetch(
    name: str, sha256: str, mirrors: Sequence[str], cache: Path, *, advice: str = "", timeout: int | float = 20.0
) -> Path:
    """The file `cache/name`, taken from the first mirror that delivers it whole.

    sha256: of the uncompressed bytes, which are what is kept; a file in the cache with another hash is fetched anew.
    mirrors: each a whole address, whose content may be gzipped or not.
    advice: what else one can do, for the error's end; timeout: seconds of silence after which a mirror is given up.
    Raises DataError where no mirror delivers (with each one's reason), or the cache cannot be written.
    """
    path = cache / name
    try:
        if path.is_file() and file_sha256(path) == sha256:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    reasons = []
    for url in mirrors:
        log.info("fetching %s", url)
        try:
            download(url, sha256, path, timeout)
            return path
        except MirrorError as error:
            log.info("%s: %s", url, error)
            reasons.append(f"  {url}: {error}")
    tried = "\n".join(reasons) if reasons else "  no mirror is named"
    raise DataError(f"{name}: no mirror delivered it:\n{tried}" + (f"\n{advice}" if advice else ""))


def download(url: str, sha256: str, path: Path, timeout: int | float) -> None:
    """Fetch one address into a file beside `path`, and rename it to `path` once its hash is right."""
    part = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    digest = hashlib.sha256()
    try:
        with part.open("xb") as file:
            for chunk in uncompressed(received(url, timeout)):
                digest.update(chunk)
                file.write(chunk)
            if digest.hexdigest() != sha256:
                raise MirrorError(f"wrong content: SHA-256 {digest.hexdigest()[:12]}… where {sha256[:12]}… is due")
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # the error on its way says more than a leftover that cannot be removed
            part.unlink(missing_ok=True)


def received(url: str, timeout: int | float) -> Iterator[bytes]:
    """The body at an address, piece by piece; a cut connection is a MirrorError."""
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "jaxnet"})
        with urllib.request.urlopen(request, timeout=timeout) as response:
            promised, got = response.headers.get("Content-Length"), 0
            while chunk := response.read(CHUNK):
                got += len(chunk)
                yield chunk
            # reading in pieces, http.client takes a connection's early end for the body's
            if promised is not None and got != int(promised):
                raise MirrorError(f"cut off after {got:,} of {int(promised):,} bytes")
    except urllib.error.HTTPError as error:
        error.close()
        raise MirrorError(f"HTTP {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise MirrorError(f"cannot be reached ({error.reason})") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise MirrorError(f"broke off ({type(error).__name__}: {error})") from error


def uncompressed(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes, or what they hold where they begin as gzip does."""
    first = next(chunks, b"")
    unzip = zlib.decompressobj(wbits=31) if first.startswith(GZIP) else None
    size, chunk = 0, first
    while chunk:
        try:
            chunk = unzip.decompress(chunk) if unzip else chunk
        except zlib.error as error:
            raise MirrorError(f"damaged gzip ({error})") from error
        size += len(chunk)
        if size > MOST_BYTES:
            raise MirrorError(f"more than {MOST_BYTES:,} bytes")
        yield chunk
        chunk = next(chunks, b"")
    if unzip and not unzip.eof:
        raise MirrorError("cut off in the middle of its gzip")


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def clear_leftovers(path: Path) -> None:
    """Remove what downloads that were killed left beside `path`; younger parts may belong to a download under way."""
    for part in path.parent.glob(f"{path.name}.*.part"):
        with contextlib.suppress(FileNotFoundError):  # another process clears as well
            if time.time() - part.stat().st_mtime > STALE_SECONDS:
                part.unlink()


def sync_folder(folder: Path) -> None:
    """Have a rename reach the disk; where folders cannot be opened (Windows) there is nothing to do."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cannot_write(path: Path, error: OSError) -> DataError:
    """What is said of a cache that cannot be written."""
    return DataError(
        f"{path}: cannot be written ({error.strerror or error}): "
        "set XDG_CACHE_HOME to a folder with room that you may write to"
    )
