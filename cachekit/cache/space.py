"""The question that comes before every first byte: does it fit. Pure: free space is told, not asked."""

from __future__ import annotations

from cachekit.errors import NoSpace
from cachekit.system.space import FreeSpace

__all__ = ["human", "require"]


def human(size: int) -> str:
    """Return a size as people read it, in powers of 1024."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


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
        kept = f" and keep {human(min_free)} free" if min_free else ""
        raise NoSpace(
            f"not enough space to {what}: need {human(need)}{kept}, have {human(have)}, short by {human(short)}",
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
