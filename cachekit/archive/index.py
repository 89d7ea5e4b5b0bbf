"""The index: every member of an entry as packed columns, and the size and digest of every data frame.

Columns, not JSON: 87,000 members decode in 35 ms instead of 100, and take a third of the memory.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_left
from itertools import accumulate, pairwise

from cachekit.archive import header
from cachekit.archive.format import (
    DIRECTORY,
    FILE,
    HARDLINK,
    INDEX_PREFIX,
    INDEX_PREFIX_MAGIC,
    SYMLINK,
    padded,
)
from cachekit.errors import Damaged

__all__ = ["Index", "Segments", "compress_index", "decode", "member_bytes"]

#: The data regions of a sparse file as (offset, length) in bytes, ascending.
Segments = list[tuple[int, int]]

_SPARSE_ROW = struct.Struct("<IQI")
_SEGMENT = struct.Struct("<QQ")
_LEVEL = 3


class Index:
    """Members in archive order, one value a member in each column.

    ``sizes`` are stored bytes (what follows the header in the tar); for a sparse file the length is in ``sparse``.
    ``contents`` has 16 bytes for each regular file: xxh3-128 of its stored bytes, or, for a file in several frames, of
    the concatenated xxh3-128 of its parts. ``links`` has one value for each symlink and hard link.
    """

    __slots__ = (
        "contents",
        "frame_digests",
        "frame_sizes",
        "frames",
        "gids",
        "kinds",
        "links",
        "modes",
        "mtimes",
        "offsets",
        "paths",
        "raw_sizes",
        "sizes",
        "sparse",
        "uids",
    )

    def __init__(self) -> None:
        self.paths: list[bytes] = []
        self.kinds = bytearray()
        self.modes = array("H")
        self.uids = array("I")
        self.gids = array("I")
        self.mtimes = array("q")
        self.sizes = array("Q")
        self.frames = array("I")
        self.offsets = array("I")
        self.contents = bytearray()
        self.links: list[bytes] = []
        self.sparse: dict[int, tuple[int, Segments]] = {}
        self.frame_sizes = array("I")
        self.raw_sizes = array("I")
        self.frame_digests = bytearray()

    def __len__(self) -> int:
        return len(self.kinds)

    def same_as(self, other: Index) -> bool:
        """Return True if both have the same columns, to the last value."""
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    @property
    def frame_count(self) -> int:
        return len(self.frame_sizes)

    def count(self, kind: int) -> int:
        """Return how many members are of ``kind``."""
        return self.kinds.count(kind)

    def frame_digest(self, frame: int) -> bytes:
        return bytes(self.frame_digests[32 * frame : 32 * frame + 32])

    def frame_offsets(self) -> array[int]:
        """Return where each data frame begins in the archive file, and where the last one ends."""
        offsets = array("Q", [0])
        position = 0
        for size in self.frame_sizes:
            position += size
            offsets.append(position)
        return offsets

    def rows_of_frame(self, frame: int) -> range:
        """Return the members whose header lies in ``frame``; none for the further parts of a large file."""
        return range(bisect_left(self.frames, frame), bisect_left(self.frames, frame + 1))

    def ordinals(self, kinds: frozenset[int]) -> array[int]:
        """For each row, how many earlier rows are of one of ``kinds``: positions in ``contents`` or ``links``."""
        flags = self.kinds.translate(bytes(kind in kinds for kind in range(256)))
        result = array("I", accumulate(flags, initial=0))
        result.pop()
        return result

    def length(self, row: int) -> int:
        """Return the file's length in bytes: its stored size unless it is sparse."""
        return self.sparse[row][0] if row in self.sparse else self.sizes[row]

    def content_bytes(self) -> int:
        """Return the length of all files together."""
        return sum(self.sizes) + sum(real - self.sizes[row] for row, (real, _) in self.sparse.items())

    def column_bytes(self) -> list[bytes]:
        """Return the encoded columns, in the order of docs/format.md."""
        files = self.count(FILE)
        sparse = b"".join(
            _SPARSE_ROW.pack(row, real, len(segments)) + b"".join(_SEGMENT.pack(*s) for s in segments)
            for row, (real, segments) in sorted(self.sparse.items())
        )
        paths = b"\0".join(self.paths) + b"\0" if self.paths else b""
        links = b"\0".join(self.links) + b"\0" if self.links else b""
        prefix = INDEX_PREFIX.pack(
            INDEX_PREFIX_MAGIC, len(self), len(paths), len(links), len(sparse), files, self.frame_count
        )
        return [
            prefix,
            paths,
            bytes(self.kinds),
            _little(self.modes),
            _little(self.uids),
            _little(self.gids),
            _little(self.mtimes),
            _little(self.sizes),
            _little(self.frames),
            _little(self.offsets),
            bytes(self.contents),
            links,
            sparse,
            _little(self.frame_sizes),
            _little(self.raw_sizes),
            bytes(self.frame_digests),
        ]


def member_bytes(index: Index, row: int, link: bytes) -> int:
    """Return how many bytes of tar the member takes: header, content, padding."""
    real = index.sparse[row][0] if row in index.sparse else -1
    size = index.sizes[row]
    return padded(size) + header.length(
        index.paths[row],
        index.kinds[row],
        index.uids[row],
        index.gids[row],
        index.mtimes[row] // 1_000_000_000,
        size,
        link,
        real,
    )


def _little(column: array[int]) -> bytes:
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return column.tobytes()


def compress_index(index: Index) -> tuple[bytes, int]:
    """Return the index as one zstd frame with content size and checksum, and its size in bytes without compression."""
    import zstandard

    columns = index.column_bytes()
    size = sum(map(len, columns))
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True, write_content_size=True)
    stream = compressor.compressobj(size=size)
    pieces = [stream.compress(column) for column in columns]
    pieces.append(stream.flush())
    return b"".join(pieces), size


class _Cursor:
    """Takes exact pieces off a buffer; running over its end means a damaged index."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self.data):
            raise Damaged(
                "the index ends before its last column", rung="index", expected=end, found=len(self.data)
            )
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def column(self, code: str, count: int) -> array[int]:
        column = array(code)
        column.frombytes(self.take(column.itemsize * count))
        if sys.byteorder == "big":
            column.byteswap()
        return column

    def names(self, size: int, count: int, what: str) -> list[bytes]:
        blob = self.take(size)
        names = blob.split(b"\0")
        if names.pop() != b"" or len(names) != count:
            raise Damaged(
                f"the index has {len(names)} {what} for {count} members",
                rung="index",
                expected=count,
                found=len(names),
            )
        return names


def decode(data: bytes) -> Index:
    """Return the index that ``Index.column_bytes`` encoded. Raises Damaged if it does not parse to the last byte.

    Only the structure is checked here; what the members may be is checked by ``check.check_members``.
    """
    cursor = _Cursor(data)
    magic, count, paths, links, sparse, files, frames = INDEX_PREFIX.unpack(cursor.take(INDEX_PREFIX.size))
    if magic != INDEX_PREFIX_MAGIC:
        raise Damaged(
            "the index does not begin as an index",
            rung="index",
            expected=INDEX_PREFIX_MAGIC.decode(),
            found=ascii(magic),
        )
    index = Index()
    index.paths = cursor.names(paths, count, "names")
    index.kinds = bytearray(cursor.take(count))
    if index.kinds and max(index.kinds) > HARDLINK:
        row = next(row for row, kind in enumerate(index.kinds) if kind > HARDLINK)
        raise Damaged(
            f"member kind {index.kinds[row]} is not one of this format (devices are never stored)",
            path=index.paths[row],
            rung="index",
        )
    index.modes = cursor.column("H", count)
    if index.modes and max(index.modes) > 0o7777:
        raise Damaged("a mode has more than permission bits", rung="index", found=oct(max(index.modes)))
    index.uids = cursor.column("I", count)
    index.gids = cursor.column("I", count)
    index.mtimes = cursor.column("q", count)
    index.sizes = cursor.column("Q", count)
    index.frames = cursor.column("I", count)
    index.offsets = cursor.column("I", count)
    if files != index.count(FILE):
        raise Damaged(
            "the index has not one content digest for each file",
            rung="index",
            expected=index.count(FILE),
            found=files,
        )
    index.contents = bytearray(cursor.take(16 * files))
    index.links = cursor.names(links, index.count(SYMLINK) + index.count(HARDLINK), "link targets")
    end = cursor.position + sparse
    while cursor.position < end:
        row, real, pieces = _SPARSE_ROW.unpack(cursor.take(_SPARSE_ROW.size))
        segments = list(_SEGMENT.iter_unpack(cursor.take(_SEGMENT.size * pieces)))
        if row >= count or index.kinds[row] != FILE or row in index.sparse:
            raise Damaged(
                "the table of sparse files names something else than a file", rung="index", found=row
            )
        index.sparse[row] = (real, segments)
    if cursor.position != end:
        raise Damaged(
            "the table of sparse files is not as long as it says",
            rung="index",
            expected=end,
            found=cursor.position,
        )
    index.frame_sizes = cursor.column("I", frames)
    index.raw_sizes = cursor.column("I", frames)
    index.frame_digests = bytearray(cursor.take(32 * frames))
    if cursor.position != len(data):
        raise Damaged(
            "bytes follow the index's last column", rung="index", expected=cursor.position, found=len(data)
        )
    if any(a > b for a, b in pairwise(index.frames)):
        raise Damaged("the index's members are not in the order of their frames", rung="index")
    for row, kind in enumerate(index.kinds):
        if kind == DIRECTORY and index.sizes[row]:
            raise Damaged(
                "a directory has a content", path=index.paths[row], rung="index", found=index.sizes[row]
            )
    return index
