"""Pins: entries that no budget removes. A pin is an empty file ``pinned/<entry>``; it belongs to key and platform.

So it outlives the file: an entry that is replaced, or set aside as damaged and saved again, is pinned still.
"""

from __future__ import annotations

import contextlib
import os
import time

from cachekit.store.layout import ENTRY_NAME
from cachekit.system.files import exists, fsync_directory, opened
from cachekit.system.steps import step

__all__ = ["is_pinned", "pin", "pinned", "unpin"]

#: An entry may be aside for a moment, while a prune finds out that it may not have it.
_LOOKS = 5
_PAUSE = 0.02


def pinned(base: str) -> set[str]:
    """Return the entry names that are pinned in the namespace at ``base``. Raises OSError."""
    try:
        return {name for name in os.listdir(os.path.join(base, "pinned")) if ENTRY_NAME.fullmatch(name)}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def is_pinned(base: str, name: str) -> bool:
    """Return True if the entry is pinned now."""
    return exists(os.path.join(base, "pinned", name))


def pin(base: str, name: str) -> bool:
    """Pin an entry; return False, with nothing pinned, if there is no such entry. Raises OSError.

    When this returns True the entry is there, and no prune that has not removed it yet will.
    """
    directory = os.path.join(base, "pinned")
    os.makedirs(directory, mode=0o750, exist_ok=True)  # stores made before there were pins have none
    with opened(os.fsencode(directory), follow=True) as place:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        new = True
        try:
            os.close(os.open(name, flags, 0o660, dir_fd=place))
        except FileExistsError:
            new = False
        step("pin.created")
        # In this order: a prune looks for the pin when it has taken the name away, so one of the two sees the other.
        for _ in range(_LOOKS):
            if exists(os.path.join(base, "entries", name)):
                fsync_directory(place)
                step("pin.durable")
                return True
            time.sleep(_PAUSE)
        if new:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=place)
        return False


def unpin(base: str, name: str) -> bool:
    """Take a pin away; return False if there was none. Raises OSError."""
    try:
        with opened(os.fsencode(os.path.join(base, "pinned")), follow=True) as place:
            os.unlink(name, dir_fd=place)
            step("pin.removed")
            fsync_directory(place)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
