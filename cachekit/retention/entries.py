"""What a plan of retention knows of an entry, and how it reads clocks that disagree. Pure: the time is told."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

__all__ = ["JITTER", "Item", "Kind", "last_use"]

#: entry: may be served. quarantine: was set aside. damaged: its seal is refused, it will be set aside. unreadable: the
#: filesystem gives an error instead of its seal, so nobody knows what it is.
Kind = Literal["entry", "quarantine", "damaged", "unreadable"]

#: An entry expires up to so much later than the limit says, each at a moment of its own: a thousand runners that saved
#: their caches in one minute must not lose them in one minute.
JITTER = 0.1

_SECOND = 1_000_000_000
#: 2020-01-01. Before that there was no cachekit: a machine that says so has lost its clock.
_EARLIEST_NS = 1_577_836_800 * _SECOND


@dataclass(frozen=True, slots=True)
class Item:
    """One file of the store. Times in ns since 1970, ``allocated`` in bytes as they lie on disk.

    ``file`` is (device, inode) and ``links`` how many names it has: names of one file free its bytes together.
    ``used_ns`` is the last use as ``last_use`` reads it; for ``quarantine`` the time of setting aside.
    ``just_written``: by whoever asks for the plan.
    """

    namespace: str
    name: str
    kind: Kind
    family: str
    platform: str
    allocated: int
    file: tuple[int, int]
    links: int
    created_ns: int
    used_ns: int
    pinned: bool = False
    just_written: bool = False

    @property
    def id(self) -> tuple[str, str]:
        """What tells it from all others of the store."""
        return self.namespace, self.name

    @property
    def group(self) -> tuple[str, str, str]:
        """Its family, of one platform: entries of another cannot stand in for it."""
        return self.namespace, self.family, self.platform

    def expires_ns(self, max_age_seconds: float) -> int:
        """Return when the entry is too old: after the age, and at most a tenth of it later."""
        digest = hashlib.sha256("\0".join(self.id).encode("utf-8", "surrogateescape")).digest()
        share = int.from_bytes(digest[:4], "big") / 2**32
        return self.used_ns + int(max_age_seconds * (1 + JITTER * share) * _SECOND)


def last_use(used_ns: int | None, created_ns: int, *, changed_ns: int, now_ns: int) -> int:
    """Return when an entry was last used, of what clocks have told; never later than now. In doubt it is in use.

    ``used_ns``: the mark of its last use, None if there is none. A mark in the future means now. ``created_ns`` counts
    if it is later than the mark, but not if it is in the future: whoever saved the entry has marked it right then. A
    time before 2020 cannot be, so then the file's own last change (``changed_ns``) is asked, and if that cannot be
    either, it was used just now. So a clock that was wrong makes an entry stay too long, never go too soon; only
    ``now_ns`` itself is believed, see ``store.upkeep.now``.
    """
    marked = used_ns if used_ns is not None and used_ns >= _EARLIEST_NS else None
    moment = max(marked or 0, created_ns) if marked is None or created_ns <= now_ns else marked
    if moment < _EARLIEST_NS:
        moment = changed_ns if changed_ns >= _EARLIEST_NS else now_ns
    return min(moment, now_ns)
