"""The few system calls that Python's standard library does not have, through ctypes, loaded when first needed.

Each function raises OSError as an ``os`` function would; ENOSYS when the C library or the kernel lacks the call, so
that callers have one way to ask "does it work here": try, and fall back.
"""

from __future__ import annotations

import errno
import functools
import os
import struct
import sys
from typing import Any

__all__ = [
    "RESOLVE_BENEATH",
    "RESOLVE_NO_SYMLINKS",
    "RESOLVE_NO_XDEV",
    "exchange",
    "openat2",
    "preallocate",
    "rename_noreplace",
    "sync_filesystem",
]

#: For ``openat2``: no part of the path may lead to another mount, be a symlink, or leave the directory it starts from.
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08

_FALLOC_FL_KEEP_SIZE = 1
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
#: The call's number on every architecture but those that count from elsewhere; glibc has no name for it before 2.43.
_SYS_OPENAT2 = 437
_OTHER_NUMBERS = ("alpha", "mips")


@functools.cache
def _libc() -> Any:
    # Loaded late: ctypes costs 6 ms of start-up, which a refusal or a miss never needs.
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: Any) -> None:
    import ctypes

    function = getattr(_libc(), name, None)
    if function is None:
        raise OSError(errno.ENOSYS, f"{name} is not available on this system")
    while function(*arguments) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def _rename2(source: bytes, target: bytes, source_fd: int, target_fd: int, flags: int) -> None:
    import ctypes

    _call(
        "renameat2",
        source_fd,
        ctypes.c_char_p(source),
        target_fd,
        ctypes.c_char_p(target),
        ctypes.c_uint(flags),
    )


def exchange(source: bytes, target: bytes, *, source_fd: int, target_fd: int) -> None:
    """Swap two names in one step (Linux renameat2, RENAME_EXCHANGE). EINVAL or ENOSYS where not supported."""
    _rename2(source, target, source_fd, target_fd, _RENAME_EXCHANGE)


def rename_noreplace(source: bytes, target: bytes, *, source_fd: int, target_fd: int) -> None:
    """Rename, failing with EEXIST if ``target`` exists (Linux renameat2, RENAME_NOREPLACE)."""
    _rename2(source, target, source_fd, target_fd, _RENAME_NOREPLACE)


def preallocate(fd: int, size: int, offset: int = 0) -> None:
    """Reserve ``size`` bytes of disk from ``offset`` on for ``fd`` without changing its length (fallocate, KEEP_SIZE).

    Not ``os.posix_fallocate``: that changes the length, and the C library imitates it by writing where the
    filesystem cannot do it.
    """
    import ctypes

    _call("fallocate", fd, _FALLOC_FL_KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(size))


def sync_filesystem(fd: int) -> None:
    """Write everything of the filesystem that ``fd`` lies on to its device (syncfs); ``os.sync`` where missing."""
    try:
        _call("syncfs", fd)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        os.sync()


@functools.cache
def _openat2() -> Any:
    import ctypes

    if sys.platform != "linux" or os.uname().machine.startswith(_OTHER_NUMBERS):
        return None
    function = ctypes.CDLL(None, use_errno=True).syscall
    function.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)
    function.restype = ctypes.c_long
    return function


@functools.cache
def _open_how(flags: int, resolve: int) -> bytes:
    return struct.pack("=QQQ", flags, 0, resolve)


def openat2(path: bytes, flags: int, resolve: int, *, dir_fd: int) -> int:
    """Open ``path`` and refuse, in the same step, what ``resolve`` forbids (Linux 5.6).

    EXDEV: another mount, or outside; ELOOP: a symlink; EAGAIN: something was renamed meanwhile, so ask again. ENOSYS
    where the kernel lacks the call; EPERM also where a container's filter does not let it through.
    """
    import ctypes

    function = _openat2()
    if function is None:
        raise OSError(errno.ENOSYS, "openat2 is not available on this system")
    how = _open_how(flags, resolve)
    while (fd := function(_SYS_OPENAT2, dir_fd, path, how, len(how))) < 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code), os.fsdecode(path))
    return int(fd)
