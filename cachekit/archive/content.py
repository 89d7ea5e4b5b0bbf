"""The digest of a file's content, as the index has it."""

from __future__ import annotations

from collections.abc import Iterable

from xxhash import xxh3_128_digest

from cachekit.archive.format import FRAME_SIZE, parts
from cachekit.system.files import pread_exactly

__all__ = ["combined", "content_digest"]


def combined(digests: Iterable[bytes]) -> bytes:
    """Return the digest of a file from those of its parts."""
    return xxh3_128_digest(b"".join(digests))


def content_digest(fd: int, size: int) -> bytes:
    """Return the xxh3-128 of a file of ``size`` bytes; of its parts' digests if it is cut into parts."""
    if size <= FRAME_SIZE:
        return xxh3_128_digest(pread_exactly(fd, size, 0))
    return combined(
        xxh3_128_digest(pread_exactly(fd, FRAME_SIZE, part * FRAME_SIZE)) for part in range(parts(size))
    )
