"""flock, wrapped so that a lock is taken on a file that still has its name.

Lock files are never removed or replaced. What excludes whom: processes of one host on a local filesystem. On shared
filesystems flock may be granted to two hosts at once, so nothing in cachekit is correct only because of a lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator

from cachekit.errors import LockTimeout

__all__ = ["hold", "is_held", "try_lock"]

_BUSY = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
#: flock is missing on this filesystem: nothing can be excluded, and callers go on without the lock.
_MISSING = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


def try_lock(fd: int, *, shared: bool = False) -> bool:
    """Lock ``fd`` without waiting. Return False if somebody else holds it; True also where flock does not exist."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        if error.errno not in _MISSING:
            raise
    return True


def is_held(path: str | os.PathLike[str]) -> bool:
    """Return True if another process holds the lock of the file at ``path``; False if it is free or absent."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def hold(path: str, *, shared: bool = False, timeout: float, what: str) -> Iterator[int]:
    """Hold the lock file at ``path``, made if missing; yield its descriptor.

    Waits at most ``timeout`` seconds (polling ten times a second: flock has no time limit of its own), then raises
    LockTimeout naming ``what``. The lock ends with the block, or with the process however it ends.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o660)
    try:
        deadline = time.monotonic() + timeout
        while not try_lock(fd, shared=shared):
            if time.monotonic() >= deadline:
                raise LockTimeout(
                    f"{what} is in use by another cachekit process; waited {timeout:.0f} s",
                    path=path,
                    hint="wait for it to end, or raise --lock-timeout",
                )
            time.sleep(0.1)
        yield fd
    finally:
        os.close(fd)
