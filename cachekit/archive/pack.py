"""What a pack worker does: read members into a frame, compress and hash it, and write it where it is told to."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from xxhash import xxh3_128_digest

from cachekit.archive import header
from cachekit.archive.base import COPY_BYTES, Base
from cachekit.archive.format import BLOCK, FILE, FRAME_LIMIT, FRAME_SIZE, FRAME_WINDOW_LOG, padded
from cachekit.archive.index import Segments
from cachekit.archive.layout import FRAME_JOB
from cachekit.archive.read import decompress
from cachekit.errors import Damaged, SourceUnreadable, Unreadable
from cachekit.system.clock import now_ns
from cachekit.system.files import open_directory, pwrite_all

if TYPE_CHECKING:
    import zstandard  # loaded when something is compressed: a refusal or listing needs none

__all__ = ["PACKED", "ROTTEN", "UNSTABLE", "WRITTEN", "Packer", "zstd_version"]

#: Replies: (PACKED, sequence, compressed size, raw size, sha256, content digests, changes, copied from the base),
#: (WRITTEN, sequence), (UNSTABLE, path, reason), (ROTTEN, frame of the base). A change is (ordinal, new member or None,
#: reason).
PACKED, WRITTEN, UNSTABLE, ROTTEN = range(4)

#: O_NONBLOCK: should the name have become a fifo since the walk, opening it must not wait for a writer.
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_ZEROS = bytes(BLOCK)
_ATTEMPTS = 4
#: A write changes a file's times when it begins, not when it ends: a reading is trusted if it began so long after that.
_SETTLING_NS = 50_000_000


class Packer:
    """Handles ``("pack", sequence, job)``, ``("write", sequence, offset)`` and ``("copy", sequence, (first frame of the
    base, one past the last, offset))`` messages.

    A compressed frame is kept until its place in the file is known: frames have the order of the walk, whoever made
    them, so an offset depends on the sizes of all frames before. A frame that is copied has its place from the start.
    """

    def __init__(self, root_fds: list[int], out_fd: int, level: int, base: Base | None) -> None:
        self._base = base
        # One buffer for all that is copied: new memory for each piece would cost more than hashing it.
        self._copies = bytearray(COPY_BYTES) if base is not None else bytearray()
        self._root_fds = root_fds
        self._out_fd = out_fd
        self._buffer = bytearray(FRAME_LIMIT)
        self._view = memoryview(self._buffer)
        self._compressor = compressor(level)
        self._decompressor = decompressor()
        self._waiting: dict[int, bytes] = {}

    def handle(self, message: Any) -> Iterator[tuple[Any, ...]]:
        verb, sequence, subject = message
        if verb == "write":
            pwrite_all(self._out_fd, self._waiting.pop(sequence), subject)
            yield WRITTEN, sequence
        elif verb == "copy":
            yield self._copy(sequence, *subject)
        elif subject[0] == FRAME_JOB:
            yield self._frame(sequence, *subject[2:])
        else:
            yield self._part(sequence, *subject[1:])

    def _copy(self, sequence: int, first: int, last: int, offset: int) -> tuple[Any, ...]:
        """Copy frames of the base: read, hash, write."""
        assert self._base is not None
        base = self._base
        if not base.read_frames(first, last, self._copies):
            return ROTTEN, first
        size = base.offsets[last] - base.offsets[first]
        pwrite_all(self._out_fd, memoryview(self._copies)[:size], offset)
        return WRITTEN, sequence

    def _packed(
        self, sequence: int, size: int, contents: bytes, changes: Any, frame: int, *, part: bool = False
    ) -> tuple[Any, ...]:
        """Compress what is in the buffer, or take the base's frame with the same content instead."""
        data = None
        base = self._base
        if base is not None and frame >= 0 and not changes:
            try:
                if not part and contents == base.frame_contents(frame):
                    data = base.archive.frame(frame)
                elif part:
                    # The index has no digest of a part: decoding one is still five times as fast as compressing it.
                    whole = base.archive.frame(frame)
                    raw = decompress(self._decompressor, whole, base.index.raw_sizes[frame], "frames")
                    data = whole if raw == self._view[:size] else None
            except (Damaged, Unreadable):
                return ROTTEN, frame
        copied = data is not None
        if data is None:
            data = self._compressor.compress(self._view[:size])
        self._waiting[sequence] = data
        digest = hashlib.sha256(data).digest()
        return PACKED, sequence, len(data), size, digest, contents, changes, copied

    def _frame(self, sequence: int, base_frame: int, groups: list[Any]) -> tuple[Any, ...]:
        """Pack whole members. This loop runs once a file of the tree: everything in it is as plain as it can be."""
        view = self._view
        build, os_open, fstat, close, readv = header.build, os.open, os.fstat, os.close, os.readv
        contents: list[bytes] = []
        changes: list[tuple[int, Any, str]] = []
        position = 0
        ordinal = -1
        grown = b""
        settled = now_ns() - _SETTLING_NS
        for prefix, root_number, directory, members in groups:
            dir_fd = -1
            try:
                for member in members:
                    ordinal += 1
                    name, kind, mode, uid, gid, size, mtime_ns, ctime_ns, inode, link, real, segments = member
                    path = prefix + name if name else prefix[:-1]
                    head = build(path, kind, mode, uid, gid, mtime_ns // 1_000_000_000, size, link, real)
                    start = position + len(head)
                    end = start + size
                    if grown and end + BLOCK > FRAME_LIMIT:
                        return UNSTABLE, grown, "grew"
                    if kind == FILE and size:
                        if ctime_ns > settled:
                            settled = _settle(ctime_ns)
                        try:
                            if dir_fd < 0:
                                dir_fd = open_directory(
                                    directory, dir_fd=self._root_fds[root_number], follow=True
                                )
                            fd = os_open(name, _FLAGS, dir_fd=dir_fd)
                            try:
                                if segments is None:
                                    target = view[start:end]
                                    count = readv(fd, [target])
                                    if count != size:
                                        count = _read_on(fd, target, count)
                                else:
                                    count = _read_sparse(fd, segments, view[start:end], 0)
                                now = fstat(fd)
                            finally:
                                close(fd)
                            same = (
                                count == size
                                and now.st_mtime_ns == mtime_ns
                                and now.st_ctime_ns == ctime_ns
                                and now.st_ino == inode
                                and now.st_size == (size if segments is None else real)
                            )
                        except OSError as error:
                            _judge(error, path, self._root_fds[root_number], directory, name)
                            same = False
                        if not same:
                            member, reason = self._read_again(member, directory, root_number, path, position)
                            changes.append((ordinal, member, reason))
                            if member is None:
                                continue
                            if member[5] > size:
                                grown = path
                            mode, uid, gid, size, mtime_ns = member[2:7]
                            real = member[10]
                            head = build(
                                path, kind, mode, uid, gid, mtime_ns // 1_000_000_000, size, link, real
                            )
                            start = position + len(head)
                            end = start + size
                    if kind == FILE:
                        contents.append(xxh3_128_digest(view[start:end]))
                    view[position:start] = head
                    position = end
                    if rest := -size % BLOCK:
                        position += rest
                        view[end:position] = _ZEROS[:rest]
            finally:
                if dir_fd >= 0:
                    close(dir_fd)
        return self._packed(sequence, position, b"".join(contents), changes, base_frame)

    def _read_again(
        self, member: tuple[Any, ...], directory: bytes, root_number: int, path: bytes, position: int
    ) -> tuple[Any, str]:
        """Read a file that is not as the walk saw it, until two looks around one reading agree.

        Return the member as it is now, its content in place after where its header will be; or None and why not.
        """
        name, kind, link = member[0], member[1], member[9]
        for attempt in range(_ATTEMPTS):
            time.sleep(0.02 * attempt)
            try:
                dir_fd = open_directory(directory, dir_fd=self._root_fds[root_number], follow=True)
                try:
                    fd = os.open(name, _FLAGS, dir_fd=dir_fd)
                finally:
                    os.close(dir_fd)
            except OSError as error:
                return None, _judge(error, path, self._root_fds[root_number], directory, name)
            try:
                before = os.fstat(fd)
                if not stat.S_ISREG(before.st_mode):
                    return None, "is no regular file any more"
                size = before.st_size
                head = header.length(
                    path, kind, before.st_uid, before.st_gid, before.st_mtime_ns // 1_000_000_000, size, link
                )
                start = position + head
                if size > FRAME_SIZE or start + padded(size) > FRAME_LIMIT:
                    return None, "grew"
                _settle(before.st_ctime_ns)
                try:
                    count = _read_on(fd, self._view[start : start + size], 0)
                except OSError as error:
                    return None, _judge(error, path, self._root_fds[root_number], directory, name)
                if count == size and _same(before, os.fstat(fd)):
                    return (
                        name,
                        kind,
                        before.st_mode & 0o7777,
                        before.st_uid,
                        before.st_gid,
                        size,
                        before.st_mtime_ns,
                        before.st_ctime_ns,
                        before.st_ino,
                        link,
                        -1,
                        None,
                    ), "changed between walk and reading"
            finally:
                os.close(fd)
        return None, "kept changing"

    def _part(
        self,
        sequence: int,
        part: int,
        base_frame: int,
        prefix: bytes,
        root_number: int,
        directory: bytes,
        member: tuple[Any, ...],
    ) -> tuple[Any, ...]:
        """Pack one part of a large file."""
        name, kind, mode, uid, gid, size, mtime_ns, ctime_ns, inode, link, real, segments = member
        path = prefix + name
        head = b""
        if part == 0:
            head = header.build(path, kind, mode, uid, gid, mtime_ns // 1_000_000_000, size, link, real)
        first = part * FRAME_SIZE
        length = min(FRAME_SIZE, size - first)
        start, end = len(head), len(head) + length
        view = self._view
        view[:start] = head
        _settle(ctime_ns)
        try:
            dir_fd = open_directory(directory, dir_fd=self._root_fds[root_number], follow=True)
            try:
                fd = os.open(name, _FLAGS, dir_fd=dir_fd)
            finally:
                os.close(dir_fd)
            try:
                if segments is None:
                    count = _read_on(fd, view[start:end], 0, first)
                else:
                    count = _read_sparse(fd, segments, view[start:end], first)
                now = os.fstat(fd)
            finally:
                os.close(fd)
        except OSError as error:
            return UNSTABLE, path, _judge(error, path, self._root_fds[root_number], directory, name)
        expected = (inode, size if segments is None else real, mtime_ns, ctime_ns)
        if count != length or (now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns) != expected:
            # Other parts may be on their way already: only reading the whole file anew gives one state of it.
            return UNSTABLE, path, "changed between walk and reading"
        rest = -size % BLOCK if first + length == size else 0
        view[end : end + rest] = _ZEROS[:rest]
        return self._packed(sequence, end + rest, xxh3_128_digest(view[start:end]), [], base_frame, part=True)


def compressor(level: int) -> zstandard.ZstdCompressor:
    """Return the compressor of data frames: checksum on (it is off by default), window as long as a frame.

    The longer window makes up for starting anew in each frame: 3.6 % smaller than the level's own at the same speed
    (docs/benchmarks.md). Any zstd decodes it: the limit that decoders accept by default is 128 MiB.
    """
    import zstandard

    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, window_log=FRAME_WINDOW_LOG, write_checksum=True, write_content_size=True
    )
    return zstandard.ZstdCompressor(compression_params=parameters)


def decompressor() -> zstandard.ZstdDecompressor:
    import zstandard

    return zstandard.ZstdDecompressor()


def zstd_version() -> str:
    """Return the version of the zstd library that compresses."""
    import zstandard

    return ".".join(map(str, zstandard.ZSTD_VERSION))


def _settle(ctime_ns: int) -> int:
    """Wait until a write that began at ``ctime_ns`` has ended; return before when nothing needs to be waited for.

    Only what was changed in this very moment is waited for, so a save waits once, if at all. A time in the future (of
    a server whose clock is ahead) tells nothing.
    """
    now = now_ns()
    wait = ctime_ns + _SETTLING_NS - now
    if 0 < wait <= _SETTLING_NS:
        time.sleep(wait / 1_000_000_000)
        now += wait
    return now - _SETTLING_NS


def _same(a: os.stat_result, b: os.stat_result) -> bool:
    return (a.st_size, a.st_mtime_ns, a.st_ctime_ns, a.st_ino, a.st_mode) == (
        b.st_size,
        b.st_mtime_ns,
        b.st_ctime_ns,
        b.st_ino,
        b.st_mode,
    )


def _judge(error: OSError, path: bytes, root_fd: int, directory: bytes, name: bytes) -> str:
    """Return why a file is not there as it was; raise SourceUnreadable if it is there and cannot be read."""
    if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ESTALE}:
        return "vanished"
    if error.errno in {errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ESPIPE, errno.EAGAIN}:
        return "is no regular file any more"
    if error.errno == errno.EIO:
        # FUSE answers so for a file that has become something else while it was open.
        with contextlib.suppress(OSError):
            if not stat.S_ISREG(os.lstat(os.path.join(directory, name), dir_fd=root_fd).st_mode):
                return "is no regular file any more"
    raise SourceUnreadable(f"cannot read a file: {error.strerror}", path=path, errno=error.errno) from None


def _read_on(fd: int, target: memoryview, done: int, offset: int = 0) -> int:
    """Fill ``target`` from the file at ``offset``, ``done`` bytes being there; return how many there are in the end."""
    while done < len(target):
        count = os.preadv(fd, [target[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def _read_sparse(fd: int, segments: Segments, target: memoryview, first: int) -> int:
    """Fill ``target`` with stored bytes of a sparse file from ``first`` on: the map, then the data regions."""
    done = 0
    position = 0
    pieces: list[tuple[int, bytes | int]] = []
    text = header.sparse_map(segments)
    pieces.append((len(text), text))
    pieces += [(length, offset) for offset, length in segments if length]
    for length, source in pieces:
        skip = max(0, first + done - position)
        if skip < length and done < len(target):
            count = min(length - skip, len(target) - done)
            if isinstance(source, bytes):
                target[done : done + count] = source[skip : skip + count]
            elif _read_on(fd, target[done : done + count], 0, source + skip) != count:
                return done
            done += count
        position += length
    return done
