"""The filesystems that matter to a CI machine: where the workspace, the store and Docker's data lie."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from cachekit.system.space import Room, filesystem_type, mount_of, pool_of, room

__all__ = ["Filesystem", "nearest", "of_places"]


@dataclass(slots=True)
class Filesystem:
    """One filesystem. ``why``: what of ours lies on it (workspace, store, docker ...), ``path`` a directory on it."""

    mount: bytes
    path: bytes
    kind: str
    why: list[str]
    room: Room
    #: See ``pool_of``.
    pool: int = 0

    def measure(self) -> Room:
        """Look again, keep and return what is free now."""
        self.room = room(self.path)
        return self.room


def nearest(path: bytes) -> bytes:
    """Return ``path``, or what exists of it: where it would be made."""
    path = os.path.abspath(path)
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def of_places(places: Iterable[tuple[str, bytes]]) -> list[Filesystem]:
    """Return each filesystem under (what, path) once, in the order given; what cannot be looked at is left out."""
    found: dict[int, Filesystem] = {}
    for why, path in places:
        there = nearest(path)
        try:
            facts, pool = room(there), pool_of(there)
        except OSError:
            continue
        known = found.get(pool)
        if known is None:
            found[pool] = Filesystem(mount_of(there), there, filesystem_type(there), [why], facts, pool)
        elif why not in known.why:
            known.why.append(why)
    return list(found.values())
