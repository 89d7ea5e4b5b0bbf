"""What a file is, by its first bytes, never by its name."""

from __future__ import annotations

from typing import Literal

from cachekit.formats.tar import is_header

__all__ = ["HEAD_BYTES", "FileKind", "detect", "is_skippable"]

FileKind = Literal["tar", "gzip", "zstd", "xz", "bzip2", "zip", "unknown", "empty"]

#: So many bytes are enough to tell.
HEAD_BYTES = 512

_MAGIC: tuple[tuple[bytes, FileKind], ...] = (
    (b"\x1f\x8b", "gzip"),  # RFC 1952
    (b"\x28\xb5\x2f\xfd", "zstd"),  # RFC 8878
    (b"\xfd7zXZ\x00", "xz"),
    (b"BZh", "bzip2"),
    (b"PK\x03\x04", "zip"),  # APPNOTE 4.3.7
    (b"PK\x05\x06", "zip"),  # an archive without members
)


def detect(head: bytes) -> FileKind:
    """Return the kind of a file that begins with ``head``, its first HEAD_BYTES or all of it."""
    if not head:
        return "empty"
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if is_skippable(head):
        return "zstd"
    if len(head) >= HEAD_BYTES and is_header(head[:HEAD_BYTES]):
        return "tar"
    # A tar that is cut in its first header has no checksum that could be told right or wrong.
    return "tar" if head[257:262] == b"ustar" else "unknown"


def is_skippable(head: bytes) -> bool:
    """Return True for the beginning of a zstd frame that decoders skip (RFC 8878, 3.1.2)."""
    return head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F
