"""Pins: entries that no budget removes. A pin is an empty file ``pinned/<entry>``; it belongs to key and platform.

So it outlives the file: an entry that is replaced, or set aside as damaged and saved again, is pinned still.
"""

from __future__ import annotations

import contextlib
import os
import time

from cachekit.system.files import exists, fsync_directory
from cachekit.system.steps import step

__all__ = ["pin", "unpin"]

#: An entry may be aside for a moment, while a prune finds out that it may not have it.
_LOOKS = 5
_PAUSE = 0.02


def pin(name: str, place: int, entries: int) -> bool:
    """Pin an entry of the open directory ``entries`` in ``place``; return False, with nothing pinned, if it is absent.

    When this returns True the entry is there, and no prune that has not removed it yet will. Raises OSError.
    """
    new = True
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        os.close(os.open(name, flags, 0o660, dir_fd=place))
    except FileExistsError:
        new = False
    step("pin.created")
    # In this order: a prune looks for the pin when it has taken the name away, so one of the two sees the other.
    for _ in range(_LOOKS):
        if exists(name, dir_fd=entries):
            fsync_directory(place)
            step("pin.durable")
            return True
        time.sleep(_PAUSE)
    if new:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=place)
    return False


def unpin(name: str, place: int) -> bool:
    """Take a pin away from the open directory ``place``; return False if there was none. Raises OSError."""
    try:
        os.unlink(name, dir_fd=place)
    except FileNotFoundError:
        return False
    step("pin.removed")
    fsync_directory(place)
    return True
