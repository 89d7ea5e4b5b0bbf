"""Waiting until a filesystem shows what it has given back.

Measured: btrfs showed 0 of 300 MB freed after 8 s, and all of it right after a sync; xfs all of it after 0.5 s.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

from cachekit.system.native import sync_filesystem

__all__ = ["settle"]

_PAUSE = 0.05


def settle(path: bytes, seen: Callable[[], bool], *, seconds: float) -> bool:
    """Sync the filesystem that ``path`` lies on, and wait at most ``seconds`` until ``seen()``; return what it says.

    The sync runs in a process of its own: on a busy disk it may take minutes, and no limit can be set to it.
    """
    if seen():
        return True
    child = _sync_in_child(path)
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            if seen():
                return True
            time.sleep(_PAUSE)
        return seen()
    finally:
        if child:
            with contextlib.suppress(OSError):  # not ended yet: it goes on, and init takes it over after us
                os.waitpid(child, os.WNOHANG)


def _sync_in_child(path: bytes) -> int:
    """Return the pid of the child, 0 if it was done here because there could be none."""
    try:
        child = os.fork()
    except OSError:
        child = -1
    if child > 0:
        return child
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            sync_filesystem(fd)
        finally:
            os.close(fd)
    except BaseException:  # noqa: BLE001 - a child must never go on as its parent
        if child < 0:
            return 0
    if child == 0:
        os._exit(0)
    return 0
