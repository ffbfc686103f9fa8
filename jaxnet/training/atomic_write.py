"""Atomic writes: a file is replaced as a whole, or not at all."""

import os
import tempfile
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Writes a new file with a random name and renames it: no link at a known name can redirect the bytes.

    Raises OSError and leaves the old file as it was.
    """
    handle, new = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(new, 0o666 & ~umask())
        os.replace(new, path)
    except BaseException:
        os.unlink(new)
        raise


def umask() -> int:
    """The umask of this process."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
