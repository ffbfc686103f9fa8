"""A file is written anew whole or not at all."""

import os
import tempfile
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file by way of a new one beside it, whose name no link can stand at beforehand.

    Raises OSError; the file is then as it was.
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
    """The process's file mode mask."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
