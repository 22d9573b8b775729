"""Files that an operator names: only regular ones are used, because reading a FIFO or a device may never end."""

import errno
import os
import stat
from pathlib import Path


def read_regular(path: Path) -> bytes:
    """Return the content of a regular file, also by a symbolic link; raises OSError for anything else, and never waits."""
    require_regular(path)  # first, because opening a device may do something to it
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        _require_regular(path, os.fstat(file.fileno()).st_mode)  # something else may have taken its place
        return file.read()


def require_regular(path: Path) -> None:
    """Raise OSError if there is no regular file at the path."""
    _require_regular(path, path.stat().st_mode)


def _require_regular(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
