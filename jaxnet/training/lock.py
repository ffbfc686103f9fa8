"""A lock: one process at a time writes a run's folder. The system releases it when the process ends."""

import errno
import os
import platform
import time
from pathlib import Path

try:
    import fcntl
except ModuleNotFoundError:  # Windows has none: runs are not locked there
    fcntl = None

FILE = ".lock"
NO_LOCKS = {errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
HOLDER_BYTES = 1000


class LockedError(ValueError):
    """A run's folder that another process writes."""


class Lock:
    """The lock of a folder, held from here until `release` or the end of the process.

    The lock file says who holds it. A file system without locks gives one that keeps no one out.
    Raises LockedError where it is held already; OSError where the lock file cannot be written.
    """

    def __init__(self, folder: Path):
        self.file = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            take(self.file)
        except BlockingIOError:
            holder = os.read(self.file, HOLDER_BYTES).decode("utf-8", "replace").strip() or "another process"
            os.close(self.file)
            raise LockedError(
                f"{folder} is being written by {holder}: wait until it ends, or stop it, and try again"
            ) from None
        except OSError:
            os.close(self.file)
            raise
        os.ftruncate(self.file, 0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.write(self.file, f"process {os.getpid()} on {platform.node()} since {since}\n".encode())

    def release(self) -> None:
        """Lets others write the folder."""
        os.close(self.file)


def take(file: int) -> None:
    """Locks an open file.

    Raises BlockingIOError where another process, or another opening of it, holds the lock.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
