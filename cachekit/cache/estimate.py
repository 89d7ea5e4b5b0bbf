"""How much room a save needs, before its first byte: from the walk, and from how the family's last entry came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cachekit.archive.names import find_roots, targets_of
from cachekit.archive.walk import Walk
from cachekit.errors import NothingMatched
from cachekit.model import Key, Platform, StoreAddress
from cachekit.store.directory import DirectoryStore
from cachekit.system.clock import this_platform

__all__ = ["Estimate", "estimate_save", "family_ratio", "places_of", "room_for"]

#: What the index, seal and seek table take at most for each member, and for an entry; measured, rounded up.
_INDEX_BYTES_EACH = 160
_INDEX_BYTES_BASE = 64 << 10
#: The family's last ratio is trusted with this margin: a cache grows, and its content changes.
_RATIO_MARGIN = 1.15


@dataclass(frozen=True, slots=True)
class Estimate:
    """``need``: bytes that must be free in the store; ``places``: the absolute paths of what is to be saved."""

    need: int
    places: list[bytes]
    files: int


def room_for(walk: Walk, ratio: float) -> int:
    """Return the bytes that the entry of a finished walk takes at most, with ``ratio`` of its allocated bytes."""
    return int(walk.allocated_bytes * ratio) + _INDEX_BYTES_EACH * len(walk.index) + _INDEX_BYTES_BASE


def family_ratio(store: DirectoryStore, family: str, prefix: str, platform: Platform) -> float:
    """Return archive bytes for each allocated byte in the family's newest entry, with a margin; 1 if unknown."""
    for candidate in store.candidates(prefix, str(platform)):
        seal = candidate.seal
        if seal is not None and candidate.trusted and seal.family == family and seal.allocated_bytes:
            return min(1.0, _RATIO_MARGIN * candidate.size / seal.allocated_bytes)
    return 1.0


def places_of(paths: Sequence[str], root: str | None) -> list[bytes]:
    """Return the absolute paths that a save of ``paths`` would read; those that match nothing are left out."""
    roots = find_roots(root)
    places = []
    for path in paths:
        try:
            places += [roots.path_of(target) for target in targets_of([path], roots)]
        except NothingMatched:
            continue
    return places


def estimate_save(
    paths: Sequence[str], store: StoreAddress | str, *, root: str | None = None, key: str | None = None
) -> Estimate:
    """Return what saving ``paths`` needs, from one walk; nothing is read or written.

    With a key the family's last entry tells how well it compresses; else it may take what it takes unpacked. Paths that
    match nothing need nothing. Raises InvalidRequest, SourceUnreadable.
    """
    roots = find_roots(root)
    ratio = 1.0
    if key is not None:
        family = Key(key).family
        ratio = family_ratio(DirectoryStore(store), family, family, this_platform())
    places: list[bytes] = []
    need = files = 0
    for path in paths:
        try:
            targets = targets_of([path], roots)
            walk = Walk(targets, roots, None, avoid=frozenset(), left_out=frozenset())
            for _ in walk.jobs():
                pass
        except NothingMatched:
            continue
        places += [roots.path_of(target) for target in targets]
        need += room_for(walk, ratio)
        files += len(walk.index)
    return Estimate(need, places, files)
