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
from collections.abc import Iterable, Iterator

from cachekit.errors import LockTimeout

__all__ = ["claim", "hold", "hold_host", "is_held", "try_lock", "unlock"]

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


def unlock(fd: int) -> None:
    """Give the lock of ``fd`` back, also for every process that inherited the descriptor. Never raises OSError."""
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)


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


#: Where a lock of the whole host lies: the first of these that is there. $CACHEKIT_LOCK_DIR comes before them.
_HOST_PLACES = ("/run/lock", "/var/lock", "/tmp")  # noqa: S108 - the place itself


@contextlib.contextmanager
def hold_host(name: str, *, timeout: float, what: str, hint: str | None = None) -> Iterator[bool]:
    """Hold a lock that all users of this host share; yield False if its file could not be made (a full disk).

    Raises LockTimeout after ``timeout`` seconds.
    """
    place = os.environ.get("CACHEKIT_LOCK_DIR") or next(filter(os.path.isdir, _HOST_PLACES), "/")
    path = os.path.join(place, f"cachekit-{name}.lock")
    fd = _open_shared(path)
    if fd is None:
        yield False
        return
    try:
        deadline = time.monotonic() + timeout
        while not try_lock(fd):
            if time.monotonic() >= deadline:
                raise LockTimeout(
                    f"{what} is running on this machine; waited {timeout:.0f} s",
                    path=path,
                    hint=hint or "wait for it to end, or raise --lock-timeout",
                )
            time.sleep(0.05)
        yield True
    finally:
        os.close(fd)


def _open_shared(path: str) -> int | None:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    for _ in range(2):
        # Without O_CREAT first: in a sticky directory the kernel refuses that for a file of somebody else
        # (fs.protected_regular, see proc(5)).
        with contextlib.suppress(OSError):
            return os.open(path, flags)
        with contextlib.suppress(OSError):
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
            with contextlib.suppress(OSError):
                os.fchmod(fd, 0o666)  # whatever the umask: another user must be able to open it
            return fd
    return None


@contextlib.contextmanager
def claim(paths: Iterable[bytes]) -> Iterator[None]:
    """Hold the directories among ``paths`` open and locked (shared) for the time of a block.

    So cleaners see that a tree is in use: ours, and systemd-tmpfiles, leave locked directories alone.
    What cannot be opened is passed over.
    """
    held = []
    try:
        for path in paths:
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
                held.append(fd)
                try_lock(fd, shared=True)
        yield
    finally:
        for fd in held:
            os.close(fd)
