"""How long refused entries are kept: long enough to find out what damaged them, few enough to fit."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TypeVar

__all__ = ["DAYS", "PER_FAMILY", "outstayed"]

T = TypeVar("T", bound=Hashable)

DAYS = 7
PER_FAMILY = 2
_DAY_NS = 24 * 3600 * 1_000_000_000


def outstayed(set_aside: Iterable[tuple[T, Hashable, int]], now_ns: int) -> set[T]:
    """Return which of the (item, family, set aside at, in ns) have had their time: 7 days, the 2 newest of a family."""
    families: dict[Hashable, list[tuple[int, T]]] = {}
    for item, family, moment in set_aside:
        families.setdefault(family, []).append((moment, item))
    gone: set[T] = set()
    for items in families.values():
        items.sort(key=lambda pair: (-pair[0], str(pair[1])))
        gone.update(item for _, item in items[PER_FAMILY:])
        gone.update(item for moment, item in items if moment < now_ns - DAYS * _DAY_NS)
    return gone
