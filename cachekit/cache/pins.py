"""Pin and unpin by key: which entries a key means, and what became of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from cachekit.cache.verify import entries_of
from cachekit.model import EntryIdentity, Key, StoreAddress
from cachekit.store.directory import DirectoryStore
from cachekit.system.clock import image_platform, this_platform

__all__ = ["PinLine", "pin_keys", "unpin_keys"]


@dataclass(frozen=True, slots=True)
class PinLine:
    """One entry of a key, or the key itself if it has none; ``platform`` None where the seal is refused."""

    key: str
    entry: str | None
    platform: str | None
    result: Literal["pinned", "unpinned", "was not pinned", "no such entry"]


def pin_keys(store: StoreAddress | str, keys: Iterable[str]) -> list[PinLine]:
    """Pin the entries of the keys, on every platform. Raises InvalidRequest, StoreUnavailable, NoSpace."""
    place = DirectoryStore(store)
    lines = []
    for key in keys:
        found = [
            PinLine(key, name, platform, "pinned")
            for name, platform in _names(place, key)
            if place.pin(name)  # False: removed just now
        ]
        lines += found or [PinLine(key, None, None, "no such entry")]
    return lines


def unpin_keys(store: StoreAddress | str, keys: Iterable[str]) -> list[PinLine]:
    """Take the pins of the keys away, also of an entry that is not there. Raises InvalidRequest, StoreUnavailable."""
    place = DirectoryStore(store)
    lines = []
    for key in keys:
        names = _names(place, key)
        for platform in (this_platform(), image_platform()):
            own = EntryIdentity(Key(key), platform)
            if own.file_name not in dict(names) and own.file_name in place.pins():
                names.append((own.file_name, str(own.platform)))
        lines += [
            PinLine(key, name, platform, "unpinned" if place.unpin(name) else "was not pinned")
            for name, platform in names
        ] or [PinLine(key, None, None, "no such entry")]
    return lines


def _names(store: DirectoryStore, key: str) -> list[tuple[str, str | None]]:
    Key(key)  # a name of a file is no key here
    return [(c.name, str(c.seal.platform) if c.seal else None) for c in entries_of(store, key)]
