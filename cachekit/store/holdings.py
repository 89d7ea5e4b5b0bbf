"""What a namespace holds, as a plan of retention needs it: every file with its size on disk, its times and its pin."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from cachekit.errors import Unreadable, Unsupported
from cachekit.retention.entries import Item, Kind, last_use
from cachekit.store import layout, upkeep
from cachekit.store.directory import DirectoryStore
from cachekit.store.removal import FileIdentity

__all__ = ["Holding", "holdings"]


@dataclass(frozen=True, slots=True)
class Holding:
    """One file of the store: what a plan is told of it, and what it takes to carry the plan out.

    ``key`` is None where the seal was not read, or is refused (``problem`` says why). ``mark_ns``: its mark of last use
    as it is, 0 if there is none.
    """

    item: Item
    key: str | None
    identity: FileIdentity
    directory: Literal["entries", "quarantine"]
    problem: str | None = None
    mark_ns: int = 0


def holdings(
    store: DirectoryStore, now_ns: int, just_written: frozenset[str] = frozenset(), *, seals: bool = True
) -> list[Holding]:
    """Return all that the namespace holds, in entries and in quarantine. Raises StoreUnavailable.

    Without ``seals`` no file is opened: then families are those of the file names, an entry was made when its file was,
    and none is known to be damaged. That is enough to find out that nothing has to go.
    """
    used, pins = upkeep.last_uses(store), store.pins()
    found = []
    for name, info in upkeep.files(store, "entries"):
        if not layout.ENTRY_NAME.fullmatch(name):
            continue
        kind: Kind = "entry"
        family, platform = layout.family_of(name), "?"
        key, problem, created_ns = None, None, info.st_mtime_ns
        if seals:
            candidate = store.look(name)
            if candidate is None:
                continue  # removed meanwhile
            if candidate.seal is not None:
                seal = candidate.seal
                key, family, platform = seal.key, seal.family, str(seal.platform)
                created_ns = seal.created_ns
            else:
                problem = str(candidate.error)
                # One that a newer cachekit wrote is an entry like any other: it has a size and a last use.
                if isinstance(candidate.error, Unreadable):
                    kind = "unreadable"
                elif not isinstance(candidate.error, Unsupported):
                    kind = "damaged"
        moment = last_use(used.get(name), created_ns, changed_ns=info.st_ctime_ns, now_ns=now_ns)
        if kind == "damaged":
            moment = now_ns  # set aside now
        item = Item(
            store.namespace.text,
            name,
            kind,
            family,
            platform,
            _allocated(info),
            (info.st_dev, info.st_ino),
            info.st_nlink,
            created_ns,
            moment,
            name in pins,
            name in just_written,
        )
        found.append(Holding(item, key, FileIdentity.of(info), "entries", problem, used.get(name, 0)))
    for name, info in upkeep.files(store, "quarantine"):
        item = Item(
            store.namespace.text,
            name,
            "quarantine",
            layout.family_of(name),
            "?",
            _allocated(info),
            (info.st_dev, info.st_ino),
            info.st_nlink,
            info.st_mtime_ns,
            min(info.st_ctime_ns, now_ns),
        )
        found.append(Holding(item, None, FileIdentity.of(info), "quarantine"))
    return found


def _allocated(info: os.stat_result) -> int:
    """Return the bytes on disk; the length where the filesystem does not tell (some FUSE ones)."""
    return info.st_blocks * 512 or info.st_size
