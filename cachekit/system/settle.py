"""Waiting until a filesystem shows what it has given back.

Measured: btrfs showed 0 of 300 MB freed after 8 s, and all of it right after a sync; xfs all of it after 0.5 s.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from cachekit.system.native import sync_filesystem

__all__ = ["settle"]

_PAUSE = 0.05


def settle(path: bytes, seen: Callable[[], bool], *, seconds: float, synced: float | None = None) -> bool:
    """Sync the filesystem that ``path`` lies on, and wait at most ``seconds`` until ``seen()``; return what it says.

    ``synced``: and at most so many seconds after the sync has ended (None: no such limit). The sync runs in a process
    of its own: on a busy disk it may take minutes, and no limit can be set to it.
    """
    if seen():
        return True
    child = _sync_in_child(path)
    running = bool(child)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if seen():
            return True
        running = running and not _ended(child)
        if not running and synced is not None:
            deadline, synced = min(deadline, time.monotonic() + synced), None
        time.sleep(_PAUSE)
    if running:
        _ended(child)  # it goes on, and init takes it over after us
    return seen()


def _ended(child: int) -> bool:
    try:
        return os.waitpid(child, os.WNOHANG)[0] == child
    except OSError:
        return True


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
