"""Files from public mirrors into a cache: checked by hash, written whole or not at all."""

import hashlib
import http.client
import io
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxnet.training.atomic_write import write_whole
from jaxnet.training.data.dataset import DataError
from jaxnet.training.data.files import DAMAGED_GZIP, GZIP, MOST_BYTES, unpacked

log = logging.getLogger(__name__)


class MirrorError(Exception):
    """A mirror did not deliver the file."""


def cache_folder() -> Path:
    """The folder for downloads: `$XDG_CACHE_HOME/jaxnet`, else `~/.cache/jaxnet`."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "jaxnet"
    except RuntimeError as error:
        raise DataError("there is no home folder to keep downloads in: set XDG_CACHE_HOME to a folder") from error


def local(data_dir: str | Path | None, find: Callable[[Path], Any], holds: str) -> Any:
    """The files that `find` gives for data_dir, else for `$JAXNET_DATA`; None where neither is given or has them."""
    named = os.environ.get("JAXNET_DATA") if data_dir is None else data_dir
    if not named:
        return None
    folder, what = Path(named).expanduser(), "JAXNET_DATA" if data_dir is None else "the data folder"
    if not folder.is_dir():
        raise DataError(f"{folder}: {what} must be a folder, got {'a file' if folder.exists() else 'nothing there'}")
    found = find(folder)
    if data_dir is not None and not found:
        raise DataError(f"{folder}: holds {holds}")
    return found


def fetch(
    name: str, sha256: str, mirrors: Sequence[str], cache: Path, *, advice: str = "", timeout: int | float = 20.0
) -> Path:
    """The file `cache/name`, taken from the first mirror that delivers it whole.

    sha256: of the uncompressed bytes, which are kept; a file in the cache with another hash is fetched anew.
    mirrors: each a whole address, whose content may be gzipped or not.
    advice: another way, for the error's end; timeout: seconds of silence after which a mirror is given up.
    Raises DataError where no mirror delivers (with each one's reason), or the cache cannot be written.
    """
    path, reasons = cache / name, []
    try:
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        for url in mirrors:
            log.info("fetching %s", url)
            try:
                write_whole(path, download(url, sha256, timeout))
                return path
            except MirrorError as error:
                log.info("%s: %s", url, error)
                reasons.append(f"  {url}: {error}")
    except OSError as error:
        raise cannot_write(path, error) from error
    tried = "\n".join(reasons) if reasons else "  no mirror is named"
    raise DataError(f"{name}: no mirror delivered it:\n{tried}" + (f"\n{advice}" if advice else ""))


def download(url: str, sha256: str, timeout: int | float) -> bytes:
    """The content at an address, unpacked where it is gzipped.

    Raises MirrorError where it does not come, is cut off, or is not that of the hash.
    """
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "jaxnet"})
        with urllib.request.urlopen(request, timeout=timeout) as response:
            promised, content = response.headers.get("Content-Length"), response.read(MOST_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise MirrorError(f"HTTP {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise MirrorError(f"cannot be reached ({error.reason})") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise MirrorError(f"broke off ({type(error).__name__}: {error})") from error
    if promised is not None and len(content) < min(int(promised), MOST_BYTES):  # http.client takes it for the end
        raise MirrorError(f"cut off after {len(content):,} of {int(promised):,} bytes")
    if content.startswith(GZIP):
        try:
            content = unpacked(io.BytesIO(content))
        except DAMAGED_GZIP as error:
            raise MirrorError(f"damaged gzip ({error})") from error
    if len(content) > MOST_BYTES:
        raise MirrorError(f"more than {MOST_BYTES:,} bytes")
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise MirrorError(f"wrong content: SHA-256 {found[:12]}… where {sha256[:12]}… is due")
    return content


def cannot_write(path: Path, error: OSError) -> DataError:
    """The error of a cache that cannot be written."""
    return DataError(
        f"{path}: cannot be written ({error.strerror or error}): "
        "set XDG_CACHE_HOME to a folder with room that you may write to"
    )
