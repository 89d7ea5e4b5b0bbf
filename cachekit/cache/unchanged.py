"""Whether a tree holds exactly what an earlier entry holds: then a save may serve that entry under its key as well."""

from __future__ import annotations

from cachekit.archive.unpack import WriteOptions
from cachekit.archive.walk import Walk
from cachekit.cache.present import look
from cachekit.model import Target
from cachekit.system.workers import worker_count

__all__ = ["NothingChanged", "same_as_base"]


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
    if (
        walk.targets != base.archive.seal.targets
        or mine.paths != theirs.paths
        or mine.mtimes != theirs.mtimes
        or mine.links != theirs.links
        or mine.sparse != theirs.sparse
    ):
        return False
    if walk.layout.all_copied:
        return True
    # With owners and all bits of the modes: what a save compares, a restore of somebody else need not.
    exact = WriteOptions(same_owner=True, keep_setuid=True)
    return all(
        look(base.archive, target, place, exact, worker_count()).complete for target, place in places.items()
    )
