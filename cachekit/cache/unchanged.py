"""Whether a tree holds exactly what an earlier entry holds: then a save may serve that entry under its key as well."""

from __future__ import annotations

from cachekit.archive.format import FILE
from cachekit.archive.unpack import WriteOptions
from cachekit.archive.walk import Walk
from cachekit.cache.present import RIGHT, look
from cachekit.model import Target
from cachekit.system.workers import worker_count

__all__ = ["NothingChanged", "same_as_base"]

#: What a walk knows of every member.
_COLUMNS = ("paths", "kinds", "modes", "uids", "gids", "sizes", "mtimes", "links", "sparse")


class NothingChanged(Exception):
    """The save need not write anything."""


def same_as_base(walk: Walk, places: dict[Target, bytes]) -> bool:
    """Return True if the finished walk found the base's members, and their contents are the base's.

    Of files that no record tells of the content is read. Nothing is changed.
    """
    base = walk.base
    if base is None:
        return False
    mine, theirs = walk.index, base.index
    if walk.targets != base.archive.seal.targets or any(
        getattr(mine, column) != getattr(theirs, column) for column in _COLUMNS
    ):
        return False
    if walk.layout.all_copied:
        return True
    # The rows are the same, so only contents are still in question.
    exact = WriteOptions(same_owner=True, keep_setuid=True)
    for target, place in places.items():
        presence = look(base.archive, target, place, exact, worker_count(), further_names=True)
        if any(theirs.kinds[row] == FILE and presence.states[row] != RIGHT for row in presence.rows):
            return False
    return True
