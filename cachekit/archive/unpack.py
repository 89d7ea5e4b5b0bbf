"""What an unpack worker does: check a frame to the last byte and, if asked to, write its members into staging."""

from __future__ import annotations

import os
import time
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from xxhash import xxh3_128_digest

from cachekit.archive import header
from cachekit.archive.format import BLOCK, DIRECTORY, FILE, FRAME_SIZE, HARDLINK, SYMLINK, TAR_END
from cachekit.archive.index import Segments
from cachekit.archive.read import Archive, decompress
from cachekit.errors import Damaged
from cachekit.model import ROOT_PREFIX, STAGED, Target
from cachekit.system.files import open_directory, pwrite_all, reachable

__all__ = ["Destination", "Unpacker", "WriteOptions"]

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PART = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_ZEROS = bytes(BLOCK)
#: What the members of other roots begin with; ``check_members`` lets no other member begin so.
_OTHER_ROOTS = tuple(prefix for prefix in ROOT_PREFIX.values() if prefix)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a target's members go: below ``STAGED`` in the staging directory that ``fd`` is open on."""

    target: Target
    fd: int

    def place(self, path: bytes) -> bytes | None:
        """Return a member's path relative to the staging directory, None if the member is not of this target."""
        name = self.target.member
        if path == name:
            return STAGED
        if not name:  # the whole root has everything but what belongs to the other roots
            return None if (path + b"/").startswith(_OTHER_ROOTS) else STAGED + b"/" + path
        return STAGED + path[len(name) :] if path.startswith(name + b"/") else None


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How members are written. ``wanted`` limits the rows that are written (all are still checked); with ``note`` the
    stat values of what was written are reported.
    """

    same_owner: bool = False
    keep_setuid: bool = False
    wanted: frozenset[int] | None = None
    note: bool = False
    atime_ns: int = field(default_factory=time.time_ns)  # noqa: TID251 - a timestamp for files, not a decision

    def mode(self, mode: int) -> int:
        """Return the mode that a file with this mode in the index gets."""
        return mode & (0o7777 if self.keep_setuid else 0o1777)

    def directory_mode(self, mode: int) -> int:
        """Return the mode that a directory with this mode in the index gets."""
        return mode & (0o7777 if self.keep_setuid else 0o3777)


class Unpacker:
    """Handles ``(first frame, one past the last)``: checks each frame's digest, content, headers and file digests.

    With destinations, regular files and directories are written; symlinks and hard links follow when all files are
    there. Replies ``("parts", [(row, part, digest)])`` for large files, then ``("done", frames, bytes)``.

    Raises Damaged naming frame, offset and member for the first thing that is not as the index says.
    """

    def __init__(self, archive: Archive, destinations: list[Destination], options: WriteOptions) -> None:
        self._archive = archive
        self._index = archive.index
        self._destinations = destinations
        self._options = options
        import zstandard

        self._decompressor = zstandard.ZstdDecompressor()
        self._directory: bytes | None = None
        self._directory_fd = -1
        self._noted = (array("I"), array("Q"), array("q"))
        self._current: Destination | None = destinations[0] if destinations else None

    def handle(self, message: Any) -> Iterator[tuple[Any, ...]]:
        first, last = message
        size = 0
        old_umask = os.umask(0)  # modes are given when a file is created: one call less for each of them
        try:
            for frame in range(first, last):
                data = self._archive.frame(frame)
                expected = self._index.raw_sizes[frame]
                try:
                    raw = decompress(self._decompressor, data, expected, "frames")
                except Damaged as error:
                    error.path = self._archive.path
                    error.fields["frame"] = frame
                    raise
                size += len(raw)
                if len(raw) != expected:
                    self._fail("a frame's content is not as long as the index says", frame, 0, None)
                part = self._frame(frame, raw)
                if part:
                    yield part
        finally:
            os.umask(old_umask)
            self._forget_directory()
        if self._noted[0]:
            yield "noted", *(column.tobytes() for column in self._noted)
            self._noted = (array("I"), array("Q"), array("q"))
        yield "done", last - first, size

    def _fail(self, message: str, frame: int, offset: int, member: bytes | None) -> NoReturn:
        raise Damaged(
            message, path=self._archive.path, rung="contents", frame=frame, offset=offset, member=member
        )

    def _frame(self, frame: int, raw: bytes) -> tuple[Any, ...] | None:
        index = self._index
        rows = index.rows_of_frame(frame)
        if frame == index.frame_count - 1:
            if raw != TAR_END or rows:
                self._fail("the archive does not end as a tar archive does", frame, 0, None)
            return None
        if not rows:
            row = bisect_left(index.frames, frame) - 1
            return self._part(row, frame - index.frames[row], 0, raw)
        if index.sizes[rows.start] > FRAME_SIZE and index.kinds[rows.start] == FILE:
            return self._first_part(rows.start, frame, raw)
        self._members(frame, rows, raw)
        return None

    def _header(self, row: int, link: bytes) -> bytes:
        index = self._index
        real = index.sparse[row][0] if row in index.sparse else -1
        return header.build(
            index.paths[row],
            index.kinds[row],
            index.modes[row],
            index.uids[row],
            index.gids[row],
            index.mtimes[row] // 1_000_000_000,
            index.sizes[row],
            link,
            real,
        )

    def _members(self, frame: int, rows: range, raw: bytes) -> None:
        """Check whole members, and write them. This loop runs once a file of the entry."""
        index = self._index
        view = memoryview(raw)
        build = header.build
        options, writing = self._options, bool(self._destinations)
        paths, kinds, modes, uids, gids = index.paths, index.kinds, index.modes, index.uids, index.gids
        mtimes, sizes, sparse, contents = index.mtimes, index.sizes, index.sparse, index.contents
        ordinal = 16 * kinds.count(FILE, 0, rows.start)
        links = iter(
            index.links[kinds.count(SYMLINK, 0, rows.start) + kinds.count(HARDLINK, 0, rows.start) :]
        )
        position = 0
        for row in rows:
            path, kind, size, mtime_ns = paths[row], kinds[row], sizes[row], mtimes[row]
            link = next(links) if kind in (SYMLINK, HARDLINK) else b""
            real = sparse[row][0] if row in sparse else -1
            head = build(
                path, kind, modes[row], uids[row], gids[row], mtime_ns // 1_000_000_000, size, link, real
            )
            if not raw.startswith(head, position):
                self._fail("a header is not the one of its index row", frame, position, path)
            start = position + len(head)
            position = start + size
            if kind == FILE:
                content = view[start:position]
                if xxh3_128_digest(content) != contents[ordinal : ordinal + 16]:
                    self._fail("a file's content is not the one in the index", frame, start, path)
                ordinal += 16
                if rest := -size % BLOCK:
                    if not raw.startswith(_ZEROS[:rest], position):
                        self._fail("a member is not padded with zeros", frame, position, path)
                    position += rest
                if real >= 0:
                    self._check_map(row, frame, content)
                if writing and (options.wanted is None or row in options.wanted):
                    self._write(row, path, content)
            elif kind == DIRECTORY and writing and (options.wanted is None or row in options.wanted):
                place, destination = self._place(path)
                if destination is not None:
                    _make_directory(destination.fd, place)
        if position != len(raw):
            self._fail("bytes follow the last member of a frame", frame, position, None)

    def _place(self, path: bytes) -> tuple[bytes, Destination | None]:
        current = self._current
        if current is not None and (place := current.place(path)) is not None:
            return place, current
        for destination in self._destinations:
            if (place := destination.place(path)) is not None:
                self._current = destination
                self._forget_directory()
                return place, destination
        return b"", None

    def _forget_directory(self) -> None:
        if self._directory_fd >= 0:
            os.close(self._directory_fd)
        self._directory, self._directory_fd = None, -1

    def _open(self, path: bytes, flags: int, mode: int) -> int:
        """Open a member's file relative to its directory; -1 if its target is not restored."""
        place, destination = self._place(path)
        if destination is None:
            return -1
        directory, _, name = place.rpartition(b"/")
        if directory != self._directory:
            self._forget_directory()
            self._directory_fd = _open_made(destination.fd, directory)
            self._directory = directory
        return os.open(name, flags, mode, dir_fd=self._directory_fd)

    def _write(self, row: int, path: bytes, content: memoryview) -> None:
        index, options = self._index, self._options
        mode = index.modes[row]
        fd = self._open(path, _CREATE, mode & 0o777)
        if fd < 0:
            return
        try:
            if row in index.sparse:
                real, segments = index.sparse[row]
                _write_sparse(fd, segments, content, 0)
                os.ftruncate(fd, real)
            elif content and os.write(fd, content) != len(content):
                pwrite_all(fd, content, 0)
            if options.same_owner:
                os.fchown(fd, index.uids[row], index.gids[row])
            if mode & 0o7000:
                os.fchmod(fd, options.mode(mode))
            os.utime(fd, ns=(options.atime_ns, index.mtimes[row]))
            if options.note:
                now = os.fstat(fd)
                rows, inodes, ctimes = self._noted
                rows.append(row)
                inodes.append(now.st_ino)
                ctimes.append(now.st_ctime_ns)
        finally:
            os.close(fd)

    def _check_map(self, row: int, frame: int, content: memoryview) -> None:
        text = header.sparse_map(self._index.sparse[row][1])
        if content[: len(text)] != text:
            self._fail("a sparse file's map is not the one in the index", frame, 0, self._index.paths[row])

    def _first_part(self, row: int, frame: int, raw: bytes) -> tuple[Any, ...]:
        head = self._header(row, b"")
        if not raw.startswith(head):
            self._fail("a header is not the one of its index row", frame, 0, self._index.paths[row])
        return self._part(row, 0, len(head), raw)

    def _part(self, row: int, part: int, start: int, raw: bytes) -> tuple[Any, ...]:
        """Check and write one part of a large file; its digest goes to the parent, who has those of all parts."""
        index = self._index
        size = index.sizes[row]
        first = part * FRAME_SIZE
        length = min(FRAME_SIZE, size - first)
        content = memoryview(raw)[start : start + length]
        rest = len(raw) - start - length
        if (
            len(content) != length
            or rest != (-size % BLOCK if first + length == size else 0)
            or raw[len(raw) - rest :] != _ZEROS[:rest]
        ):
            self._fail(
                "a part of a large file is not as long as it must be",
                index.frames[row] + part,
                0,
                index.paths[row],
            )
        if part == 0 and row in index.sparse:
            text = header.sparse_map(index.sparse[row][1])[:length]
            if content[: len(text)] != text:
                self._fail(
                    "a sparse file's map is not the one in the index", index.frames[row], 0, index.paths[row]
                )
        wanted = self._options.wanted
        if self._destinations and (wanted is None or row in wanted):
            fd = self._open(index.paths[row], _PART, 0o600)
            if fd >= 0:
                try:
                    if row in index.sparse:
                        _write_sparse(fd, index.sparse[row][1], content, first)
                    else:
                        pwrite_all(fd, content, first)
                finally:
                    os.close(fd)
        return "part", row, part, xxh3_128_digest(content)


def _make_directory(fd: int, path: bytes) -> None:
    """Make a directory in staging with its parents; other workers may be making the same ones."""
    try:
        with reachable(path, fd) as (parent_fd, name):
            os.mkdir(name, 0o700, dir_fd=parent_fd)
    except FileExistsError:
        pass
    except FileNotFoundError:
        _make_directory(fd, path.rpartition(b"/")[0])
        _make_directory(fd, path)


def _open_made(fd: int, path: bytes) -> int:
    if not path:
        return os.dup(fd)
    try:
        return open_directory(path, dir_fd=fd)
    except FileNotFoundError:
        _make_directory(fd, path)
        return open_directory(path, dir_fd=fd)


def _write_sparse(fd: int, segments: Segments, stored: memoryview, first: int) -> None:
    """Write the stored bytes from ``first`` on of a sparse file to where they belong; the map itself is passed over."""
    position = len(header.sparse_map(segments))
    for offset, length in segments:
        begin = max(position, first)
        end = min(position + length, first + len(stored))
        if begin < end:
            pwrite_all(fd, stored[begin - first : end - first], offset + begin - position)
        position += length
