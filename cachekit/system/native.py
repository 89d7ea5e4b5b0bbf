"""The few system calls that Python's standard library does not have, through ctypes, loaded when first needed.

Each function raises OSError as an ``os`` function would; ENOSYS when the C library or the kernel lacks the call, so
that callers have one way to ask "does it work here": try, and fall back.
"""

from __future__ import annotations

import errno
import functools
import os
from typing import Any

__all__ = ["exchange", "preallocate", "rename_noreplace", "sync_filesystem"]

_FALLOC_FL_KEEP_SIZE = 1
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2


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
