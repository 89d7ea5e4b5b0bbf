"""The numbers of the entry format, version 1. The grammar is docs/format.md; both change together or not at all."""

from __future__ import annotations

import struct

__all__ = [
    "ALIAS_MAGIC",
    "AUTH_HMAC",
    "BLOCK",
    "DIRECTORY",
    "FILE",
    "FORMAT",
    "FRAME_LIMIT",
    "FRAME_MINIMUM",
    "FRAME_SIZE",
    "FRAME_WINDOW_LOG",
    "HARDLINK",
    "INDEX_MAGIC",
    "INDEX_PREFIX",
    "INDEX_PREFIX_MAGIC",
    "KIND_NAMES",
    "KNOWN_FEATURES",
    "LINK_KINDS",
    "MAX_ALIAS",
    "MAX_AUTH",
    "MAX_INDEX",
    "MAX_JSON",
    "MAX_NAME",
    "SEAL_MAGIC",
    "SEAL_TRAILER",
    "SEAL_TRAILER_MAGIC",
    "SEEK_FOOTER",
    "SEEK_FOOTER_MAGIC",
    "SEEK_TABLE_MAGIC",
    "SKIPPABLE_HEADER",
    "SYMLINK",
    "TAR_END",
    "padded",
    "parts",
]

FORMAT = 1
#: Features that a reader must know to read an entry; an unknown one in a seal means Unsupported.
KNOWN_FEATURES = frozenset({"image", "sparse"})

#: Skippable frames have the magic numbers 0x184D2A50 to 0x184D2A5F (RFC 8878, 3.1.2); 0x184D2A5E is the seek table's.
INDEX_MAGIC = 0x184D2A53
SEAL_MAGIC = 0x184D2A54
SEEK_TABLE_MAGIC = 0x184D2A5E
SKIPPABLE_HEADER = struct.Struct("<II")

#: The Zstandard Seekable Format, version 0.1.0: entries, then this footer (frame count, descriptor, magic).
SEEK_FOOTER = struct.Struct("<IBI")
SEEK_FOOTER_MAGIC = 0x8F92EAB1

#: What closes the seal's payload: sha256 of the JSON, its length, the length of the authentication part, magic.
SEAL_TRAILER = struct.Struct("<32sII8s")
SEAL_TRAILER_MAGIC = b"CKSEAL1\n"
#: What closes an alias in the place of the seal's magic, and the most bytes that one has.
ALIAS_MAGIC = b"CKALIAS1"
MAX_ALIAS = 64 << 10
#: The kind of a signature in the seal's authentication part: HMAC-SHA256 under a shared key.
AUTH_HMAC = 1

INDEX_PREFIX = struct.Struct("<8sQQQQII")
INDEX_PREFIX_MAGIC = b"CKINDEX1"

#: A member's stored bytes are cut into parts of this size when there are more of them; a frame is cut at this size.
FRAME_SIZE = 8 << 20
#: Binary logarithm of the compression window: a frame can refer to all of itself.
FRAME_WINDOW_LOG = 23
#: No frame decompresses to more: one part, its tar header (pax records included) and padding.
FRAME_LIMIT = FRAME_SIZE + (256 << 10)
#: A frame that holds so much is cut after a member whose path says so (see ``walk.CUT_THRESHOLD``).
FRAME_MINIMUM = 1 << 20
#: The longest member name; longer than any path a Linux process can use in one call, and bounded for the header's sake.
MAX_NAME = 60_000
MAX_JSON = 64 << 20
MAX_AUTH = 1 << 20
MAX_INDEX = 1 << 31

BLOCK = 512
#: Two zero blocks end a tar archive (POSIX pax, "ustar Interchange Format"). They are the last data frame.
TAR_END = bytes(2 * BLOCK)

FILE, DIRECTORY, SYMLINK, HARDLINK = range(4)
LINK_KINDS = frozenset({SYMLINK, HARDLINK})
KIND_NAMES = ("file", "directory", "symlink", "hardlink")


def padded(size: int) -> int:
    """Return ``size`` rounded up to whole tar blocks."""
    return (size + BLOCK - 1) & -BLOCK


def parts(size: int) -> int:
    """Return in how many frames a file of ``size`` stored bytes lies (1 if it shares a frame with others)."""
    return -(-size // FRAME_SIZE) if size > FRAME_SIZE else 1
