"""The question that comes before every first byte: does it fit. Pure: free space is told, not asked."""

from __future__ import annotations

from cachekit.errors import NoSpace
from cachekit.model import format_size
from cachekit.system.space import FreeSpace

__all__ = ["require"]


def require(
    free: FreeSpace,
    need: int,
    inodes: int,
    *,
    min_free: int,
    what: str,
    path: str | bytes,
    hint: str | None = None,
) -> None:
    """Raise NoSpace with need, have and short by, unless ``need`` bytes and ``inodes`` fit beside ``min_free``."""
    have = free.available
    if need + min_free > have:
        short = need + min_free - have
        kept = f" and keep {format_size(min_free)} free" if min_free else ""
        raise NoSpace(
            f"not enough space to {what}: need {format_size(need)}{kept}, have {format_size(have)}, "
            f"short by {format_size(short)}",
            path=path,
            hint=hint,
            need=need,
            have=have,
            short_by=short,
            min_free=min_free or None,
            unit="bytes",
        )
    if free.inodes is not None and inodes > free.inodes:
        raise NoSpace(
            f"not enough inodes to {what}: need {inodes}, have {free.inodes}, short by {inodes - free.inodes}",
            path=path,
            hint="remove small files on that filesystem: it has bytes left but cannot hold more files",
            need=inodes,
            have=free.inodes,
            short_by=inodes - free.inodes,
            unit="inodes",
        )
