"""What the ledgers say: rates, bytes and seconds by cache. Pure: events are told.

"Seconds saved" is measured or unknown, never guessed. How long a cache takes to make is the time between the end of a
restore that missed and the begin of the save of the same key, where both carry the number of the same CI job. Whatever
else the job did in between is in it, so it is the most that can have been saved. It counts for exact hits of that key.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["CacheStats", "Stats", "gather"]

_REFUSED = frozenset({"refused", "unreadable", "unsupported"})
#: reused: an entry that was there got the key as well; nothing was written.
_STORED = frozenset({"saved", "reused"})
_NOT_RESTORED = _REFUSED | {"miss"}


@dataclass(slots=True)
class CacheStats:
    """One cache (its name, or the family of its keys). Counts, bytes, seconds.

    ``restores`` = exact + partial + miss + refused + errors. ``seconds_saved``: see above; ``hits_measured`` says for
    how many of the exact hits it is known.
    """

    namespace: str
    cache: str
    restores: int = 0
    exact: int = 0
    partial: int = 0
    miss: int = 0
    refused: int = 0
    errors: int = 0
    restored_bytes: int = 0
    restore_seconds: float = 0.0
    saves: int = 0
    saves_existing: int = 0
    save_errors: int = 0
    saved_bytes: int = 0
    save_seconds: float = 0.0
    hits_measured: int = 0
    seconds_saved: float = 0.0

    def rate(self, count: int) -> float:
        """Return the share of restores, 0 to 1; 0 without any."""
        return count / self.restores if self.restores else 0.0


@dataclass(slots=True)
class Stats:
    """What happened in a store. ``caches`` by namespace and name; the rest over all of them."""

    caches: list[CacheStats] = field(default_factory=list)
    events: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    lock_waits: int = 0
    lock_wait_seconds: float = 0.0
    lock_timeouts: int = 0
    evictions: int = 0
    evicted_bytes: int = 0
    evictions_by_reason: dict[str, int] = field(default_factory=dict)


def gather(events: Iterable[dict[str, Any]]) -> Stats:
    """Return the statistics of events, which may come in any order (see ``ledger.Reader``)."""
    stats = Stats()
    caches: dict[tuple[str, str], CacheStats] = {}
    making = _Making()
    for event in events:
        stats.events += 1
        kind = event["event"]
        if kind in {"save", "restore"}:
            name = event["namespace"], event.get("cache", "")
            cache = caches.setdefault(name, CacheStats(*name))
            if kind == "save":
                _save(cache, event)
            else:
                _restore(cache, event)
            making.note(event)
        elif kind == "refusal":
            status = event.get("status", "")
            stats.refusals[status] = stats.refusals.get(status, 0) + 1
        elif kind == "lock-wait":
            stats.lock_waits += 1
            stats.lock_wait_seconds += event["seconds"]
            stats.lock_timeouts += event.get("status") == "timeout"
        elif kind == "eviction":
            stats.evictions += 1
            stats.evicted_bytes += int(event["bytes"])
            reason = event.get("status", "")
            stats.evictions_by_reason[reason] = stats.evictions_by_reason.get(reason, 0) + 1
    for name, seconds in making.saved():
        cache = caches[name]
        cache.hits_measured += 1
        cache.seconds_saved += seconds
    stats.caches = [caches[name] for name in sorted(caches)]
    return stats


def _save(cache: CacheStats, event: dict[str, Any]) -> None:
    status = event.get("status")
    if status == "error":
        cache.save_errors += 1
    elif status in _STORED:
        cache.saves += 1
        cache.saved_bytes += int(event["bytes"]) if status == "saved" else 0
        cache.save_seconds += event["seconds"]
    else:
        cache.saves_existing += 1


def _restore(cache: CacheStats, event: dict[str, Any]) -> None:
    status = event.get("status")
    cache.restores += 1
    if status in {"exact", "partial"}:
        if status == "exact":
            cache.exact += 1
        else:
            cache.partial += 1
        cache.restored_bytes += int(event["content"])
        cache.restore_seconds += event["seconds"]
    elif status == "miss":
        cache.miss += 1
    elif status in _REFUSED:
        cache.refused += 1
    else:
        cache.errors += 1


class _Making:
    """How long keys took to make, from a miss and a save of one job, and what exact hits of them therefore saved."""

    def __init__(self) -> None:
        self._misses: dict[tuple[str, str, str], float] = {}
        self._saves: dict[tuple[str, str, str], float] = {}
        self._hits: list[tuple[str, str, str, float]] = []

    def note(self, event: dict[str, Any]) -> None:
        key, job, status = event.get("key"), event.get("job"), event.get("status")
        if key is None:
            return
        place = event["namespace"]
        if event["event"] == "restore" and status == "exact":
            self._hits.append((place, event.get("cache", ""), key, event["seconds"]))
        elif job is None:
            return
        elif event["event"] == "restore" and status in _NOT_RESTORED:
            self._misses[place, key, job] = event["time"]
        elif event["event"] == "save" and status in _STORED:
            self._saves[place, key, job] = event["time"] - event["seconds"]

    def saved(self) -> Iterable[tuple[tuple[str, str], float]]:
        """Yield, for each exact hit whose making was measured, its cache and what it saved, 0 at least."""
        took: dict[tuple[str, str], float] = {}
        for (place, key, job), begun in self._saves.items():
            missed = self._misses.get((place, key, job))
            if missed is not None and begun >= missed:
                # Made more than once: the shortest.
                took[place, key] = min(begun - missed, took.get((place, key), begun - missed))
        for place, cache, key, seconds in self._hits:
            if (place, key) in took:
                yield (place, cache), max(0.0, took[place, key] - seconds)
