"""Statistics of a store: what the ledgers of its namespaces say, and what lies there now."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cachekit.errors import StoreUnavailable
from cachekit.model import Namespace, StoreAddress
from cachekit.store import layout
from cachekit.store.directory import DirectoryStore
from cachekit.store.upkeep import files
from cachekit.system.clock import now_ns
from cachekit.telemetry.ledger import Reader
from cachekit.telemetry.stats import Stats, gather

__all__ = ["NamespaceSize", "StoreStats", "store_stats"]


@dataclass(frozen=True, slots=True)
class NamespaceSize:
    """What a namespace holds now: files and bytes as allocated on disk, each file counted once."""

    namespace: str
    entries: int
    bytes: int
    quarantined: int
    quarantine_bytes: int


@dataclass(slots=True)
class StoreStats:
    """``since``: seconds since 1970, 0 for all there is. ``damaged_lines`` of the ledgers were passed over."""

    store: str
    since: float
    stats: Stats
    sizes: list[NamespaceSize] = field(default_factory=list)
    damaged_lines: int = 0
    unreadable_files: int = 0


def store_stats(
    path: str,
    *,
    seconds: float | None = None,
    namespaces: Sequence[Namespace] | None = None,
    open_to_all: bool = False,
) -> StoreStats:
    """Return the statistics of the last ``seconds`` (None: of all there is), of all or of some namespaces.

    Raises StoreUnavailable.
    """
    path = os.path.abspath(os.path.expanduser(path))
    denied: list[str] = []
    try:
        there = layout.namespaces(path, denied)
    except OSError as error:
        raise DirectoryStore(path).explain(error, "read") from None
    stores = [
        DirectoryStore(StoreAddress(path, name, open_to_all=open_to_all))
        for name in there
        if namespaces is None or name in namespaces
    ]
    since = 0.0 if seconds is None else max(0.0, now_ns() / 1e9 - seconds)
    reader = Reader()

    def events() -> Iterator[dict[str, Any]]:
        for store in stores:
            try:
                with store.part("events") as ledger:
                    for event in reader.events(ledger, since):
                        # Where it lies counts, not what it says: a namespace's writers cannot speak for another.
                        event["namespace"] = store.namespace.text
                        yield event
            except FileNotFoundError:
                continue
            except OSError:
                reader.unreadable += 1

    stats = gather(events())
    sizes = [_size(store) for store in stores]
    return StoreStats(path, since, stats, sizes, reader.damaged, reader.unreadable + len(denied))


def _size(store: DirectoryStore) -> NamespaceSize:
    try:
        entries, quarantine = files(store, "entries"), files(store, "quarantine")
    except StoreUnavailable:
        return NamespaceSize(store.namespace.text, 0, 0, 0, 0)
    return NamespaceSize(
        store.namespace.text, len(entries), _bytes(entries), len(quarantine), _bytes(quarantine)
    )


def _bytes(files: list[tuple[str, os.stat_result]]) -> int:
    return sum({(info.st_dev, info.st_ino): info.st_blocks * 512 for _, info in files}.values())
