"""Questions about a filesystem that one process can answer: which calls work, and whether numbers are true."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time

from cachekit.system import native
from cachekit.system.files import pwrite_all

__all__ = [
    "clock_skew",
    "exchange_works",
    "fallocate_works",
    "free_space_error",
    "fsync_works",
    "keeps_case",
    "link_count",
    "reflink_works",
]

_FICLONE = 0x40049409
_MIB = 1 << 20
_MISSING = {errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.ENOTTY, errno.EXDEV, errno.EBADF}
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
#: Kernels date files by a clock that moves in steps, in nanoseconds.
_TICK = 20_000_000
#: How long freed space may take to show.
_LATE_SECONDS = 5.0


def _make(name: str, dir_fd: int, size: int = 4096) -> int:
    fd = os.open(name, _NEW, 0o600, dir_fd=dir_fd)
    pwrite_all(fd, b"x" * size, 0)
    return fd


def link_count(dir_fd: int) -> int | None:
    """Return how many names a file with two names says that it has (2 where it counts); None without hard links."""
    fd = _make("counted", dir_fd)
    try:
        os.link("counted", "counted-2", src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        return os.stat("counted", dir_fd=dir_fd).st_nlink
    except OSError as error:
        if error.errno in _MISSING:
            return None
        raise
    finally:
        os.close(fd)


def exchange_works(dir_fd: int) -> bool:
    """Return whether two directories can be swapped in one step."""
    for name in ("left", "right"):
        os.mkdir(name, 0o700, dir_fd=dir_fd)
    before = os.stat("left", dir_fd=dir_fd).st_ino
    try:
        native.exchange(b"left", b"right", source_fd=dir_fd, target_fd=dir_fd)
    except OSError as error:
        if error.errno in _MISSING:
            return False
        raise
    return os.stat("right", dir_fd=dir_fd).st_ino == before


def fsync_works(dir_fd: int) -> bool:
    """Return whether files and directories can be made durable. (Whether they are then, only a power cut tells.)"""
    fd = _make("synced", dir_fd)
    try:
        os.fsync(fd)
        os.fsync(dir_fd)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def reflink_works(dir_fd: int) -> bool:
    """Return whether files can share their blocks."""
    source = _make("original", dir_fd)
    clone = os.open("clone", _NEW, 0o600, dir_fd=dir_fd)
    try:
        fcntl.ioctl(clone, _FICLONE, source)
        return os.pread(clone, 4096, 0) == b"x" * 4096
    except OSError:
        return False
    finally:
        os.close(source)
        os.close(clone)


def fallocate_works(dir_fd: int) -> bool:
    """Return whether disk can be reserved before it is written."""
    fd = os.open("reserved", _NEW, 0o600, dir_fd=dir_fd)
    try:
        native.preallocate(fd, _MIB)
        return os.fstat(fd).st_blocks * 512 >= _MIB
    except OSError as error:
        if error.errno in _MISSING | {errno.ENODEV}:
            return False
        raise
    finally:
        os.close(fd)


def clock_skew(dir_fd: int) -> float:
    """Return by how many seconds the filesystem's clock is ahead of ours, to about its granularity."""
    before = time.time_ns()
    fd = _make("dated", dir_fd)
    try:
        os.fsync(fd)
        after = time.time_ns()
        made = os.stat("dated", dir_fd=dir_fd).st_mtime_ns
    finally:
        os.close(fd)
    if before - _TICK <= made <= after:
        return 0.0
    return (made - after if made > after else made - before) / 1e9


def keeps_case(dir_fd: int) -> bool:
    """Return whether two names that differ in case are two files."""
    os.close(_make("Case", dir_fd))
    try:
        os.close(_make("case", dir_fd))
    except FileExistsError:
        return False
    return True


def free_space_error(dir_fd: int, size: int = 16 * _MIB) -> tuple[int, float | None] | None:
    """Write ``size`` bytes that do not compress, and remove them.

    Return by how many bytes statvfs saw more than that taken, and after how many seconds it had the room back: None
    if not within five. None for both if there is not twice the room. Others who write meanwhile are in the numbers.
    """
    start = _available(dir_fd)
    if start < 2 * size:
        return None
    fd = os.open("sized", _NEW, 0o600, dir_fd=dir_fd)
    try:
        for offset in range(0, size, _MIB):
            pwrite_all(fd, os.urandom(_MIB), offset)
        os.fsync(fd)
        taken = start - _available(dir_fd)
    finally:
        os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink("sized", dir_fd=dir_fd)
    begin = time.monotonic()
    while (passed := time.monotonic() - begin) < _LATE_SECONDS:
        if _available(dir_fd) >= start - _MIB:
            return taken - size, round(passed, 2)
        time.sleep(0.05)
    return taken - size, None


def _available(dir_fd: int) -> int:
    facts = os.fstatvfs(dir_fd)
    return facts.f_bavail * facts.f_frsize
