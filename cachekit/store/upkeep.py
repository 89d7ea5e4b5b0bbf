"""The upkeep of a namespace: what a prune has to know and do besides removing entries."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Literal

from cachekit.store import removal
from cachekit.store.alias import sweep_aliases
from cachekit.store.directory import DirectoryStore
from cachekit.system.clock import now_ns
from cachekit.system.locks import try_lock

__all__ = ["files", "last_uses", "now", "prune_lock", "remove_quarantined", "sweep_marks"]


def now(store: DirectoryStore) -> int:
    """Return the time in ns that ages are counted to: the host's, or the store's own where that is earlier.

    Marks of use carry the time of whoever keeps the files, on a shared filesystem the server's.
    """
    with contextlib.suppress(OSError), store.part("locks") as locks:
        fd = os.open("store", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=locks)
        try:
            if os.fstat(fd).st_nlink == 1:  # else it is somebody's file that was linked here
                os.utime(fd)
                return min(now_ns(), os.fstat(fd).st_mtime_ns)
        finally:
            os.close(fd)
    return now_ns()


@contextlib.contextmanager
def prune_lock(store: DirectoryStore) -> Iterator[bool]:
    """Hold the right to prune for the time of a block; False if another process has it. Raises StoreUnavailable."""
    try:
        with store.part("locks") as locks:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            fd = os.open("store", flags, 0o660, dir_fd=locks)
    except OSError as error:
        raise store.explain(error, "lock") from None
    try:
        yield try_lock(fd)
    finally:
        os.close(fd)


def files(store: DirectoryStore, name: Literal["entries", "quarantine"]) -> list[tuple[str, os.stat_result]]:
    """Return the regular files of a directory with what they are, by name. Raises StoreUnavailable."""
    found = []
    try:
        with store.part(name) as fd, os.scandir(fd) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if entry.is_file(follow_symlinks=False):
                        found.append((entry.name, entry.stat(follow_symlinks=False)))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise store.explain(error, "read") from None
    return sorted(found)


def last_uses(store: DirectoryStore) -> dict[str, int]:
    """Return the marks of last use, in ns, by entry. Best effort: what cannot be read is left out."""
    found = {}
    with contextlib.suppress(OSError), store.part("used") as fd, os.scandir(fd) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                found[entry.name] = entry.stat(follow_symlinks=False).st_mtime_ns
    return found


def remove_quarantined(store: DirectoryStore, name: str, planned: removal.FileIdentity) -> removal.Outcome:
    """Remove a file from quarantine if it is the ``planned`` one; its name was given once. Raises OSError."""
    with store.part("quarantine") as fd:
        try:
            if removal.FileIdentity.of(os.lstat(name, dir_fd=fd)) != planned:
                return "replaced"
            os.unlink(name, dir_fd=fd)
        except FileNotFoundError:
            return "gone"
    return "removed"


def sweep_marks(store: DirectoryStore) -> None:
    """Remove marks of use and aliases without an entry, and make removals durable. Best effort."""
    with contextlib.suppress(OSError), store.part("entries") as entries, store.part("used") as used:
        removal.sweep_marks(entries, used)
    with contextlib.suppress(OSError), store.part("entries") as entries, store.part("aliases") as aliases:
        sweep_aliases(entries, aliases)
