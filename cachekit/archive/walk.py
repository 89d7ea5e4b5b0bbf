"""One walk over the targets: it makes the index rows, the frames as jobs for the packers, and the estimate.

Order, and where frames are cut, depend only on names, kinds and sizes: the same tree always gives the same frames.
A job is made of built-in values only, so it costs little to keep and to send to a worker.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from stat import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG
from typing import Any

from xxhash import xxh3_64_intdigest

from cachekit.archive import header
from cachekit.archive.format import (
    DIRECTORY,
    FILE,
    FRAME_MINIMUM,
    FRAME_SIZE,
    HARDLINK,
    MAX_NAME,
    SYMLINK,
    padded,
)
from cachekit.archive.index import Index, Segments
from cachekit.archive.names import Roots
from cachekit.errors import NameConflict, NothingMatched, SourceUnreadable, UnfinishedTarget
from cachekit.model import JOURNAL_NAME, LOCKS_NAME, ROOT_PREFIX, STAGING_PREFIX, Target
from cachekit.system.files import open_directory

__all__ = ["FRAME_JOB", "PART_JOB", "Walk", "find_segments"]

#: A frame that holds FRAME_MINIMUM bytes is cut after a member whose path hash is below this: 1 path in 256. Frames of
#: small files come out at 1 to 3 MiB, and an edit changes frames only up to the next such path.
CUT_THRESHOLD = (1 << 64) >> 8

FRAME_JOB, PART_JOB = 0, 1

#: A file must be longer than this to be looked at for holes: ext4 and btrfs keep tiny files without any block.
_SPARSE_MINIMUM = 4096

#: In a journal (``targets.journal``): names were being moved, so the tree around it is neither old nor new.
_BEGUN = re.compile(rb'"phase": "(committing|extras-gone|in-place)"')

_NO_PARENT = b"."
_name = itemgetter(0)


@dataclass(slots=True)
class Walk:
    """The walk's question and, once ``jobs()`` has been iterated to its end, its answer.

    A job is ``[FRAME_JOB, number of members, groups]`` with a group ``(prefix, root number, directory, members)``, or
    ``[PART_JOB, part, prefix, root number, directory, member]``. The member's full name is prefix + name; a directory
    is the first member of its own group, with an empty name. A member is ``(name, kind, mode, uid, gid, stored size,
    mtime_ns, ctime_ns, inode, link, real size or -1, segments or None)``.

    ``index`` then lacks only the digests. ``allocated_bytes`` is what the files occupy on disk. ``skipped`` counts what
    cannot be stored (sockets, fifos, devices) or was not asked for, by reason.
    """

    targets: list[Target]
    roots: Roots
    #: Tells whether a path relative to its root is left out; None: nothing is.
    excluded: Callable[[bytes], bool] | None = None
    #: Directories (device, inode) to leave out: the store, when it lies inside a target.
    avoid: frozenset[tuple[int, int]] = frozenset()
    #: Member names to leave out: files that kept changing during an earlier attempt.
    left_out: frozenset[bytes] = frozenset()
    index: Index = field(default_factory=Index)
    allocated_bytes: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    _links: dict[tuple[int, int], bytes] = field(default_factory=dict)
    _ready: list[list[Any]] = field(default_factory=list)
    _groups: list[tuple[bytes, int, bytes, list[Any]]] = field(default_factory=list)
    _frame: int = 0
    _frame_bytes: int = 0
    _frame_members: int = 0

    def jobs(self) -> Iterator[list[Any]]:
        """Yield the frames' jobs in archive order. Raises SourceUnreadable, NothingMatched, NameConflict."""
        for target in self.targets:
            self._links = {}
            yield from self._target(target)
        self._cut()
        yield from self._ready
        self._ready = []

    def _target(self, target: Target) -> Iterator[list[Any]]:
        root_number = list(ROOT_PREFIX).index(target.root)
        prefix = ROOT_PREFIX[target.root]
        base = self.roots.directory(target.root)
        try:
            root_fd = open_directory(base, follow=True)
        except OSError as error:
            raise _unreadable(error, base) from None
        try:
            try:
                info = os.lstat(target.path, dir_fd=root_fd)
            except OSError as error:
                raise NothingMatched(
                    f"{target} is not there any more: {error.strerror}", path=target.path
                ) from None
            if S_IFMT(info.st_mode) == S_IFDIR:
                yield from self._tree(prefix, root_number, root_fd, target.path, info)
            else:
                parent, slash, name = target.path.rpartition(b"/")
                self._groups.append((prefix + parent + slash, root_number, parent or _NO_PARENT, []))
                parent_fd = open_directory(parent or _NO_PARENT, dir_fd=root_fd, follow=True)
                try:
                    self._member(prefix + target.path, name, info, parent_fd)
                finally:
                    os.close(parent_fd)
        finally:
            os.close(root_fd)

    def _tree(
        self, prefix: bytes, root_number: int, root_fd: int, top: bytes, info: os.stat_result
    ) -> Iterator[list[Any]]:
        """Yield jobs for a directory and everything below: its own members by name, then its sub-directories."""
        plain_file = self._plain_file
        stack = [(top, info)]
        while stack:
            path, info = stack.pop()
            inside = b"" if path == b"." else path + b"/"
            member_prefix = prefix + inside
            try:
                fd = open_directory(path, dir_fd=root_fd, follow=path is top)
            except OSError as error:
                raise _unreadable(error, path) from None
            try:
                now = os.fstat(fd)
                if now.st_ino != info.st_ino or now.st_dev != info.st_dev:
                    raise SourceUnreadable("a directory was replaced while it was walked", path=path)
                self._groups.append((member_prefix, root_number, path, []))
                if member_prefix:
                    self._member(member_prefix[:-1], b"", info, fd)
                below = []
                for name, status in self._listing(fd, prefix, inside, path):
                    if S_IFMT(status.st_mode) == S_IFDIR:
                        if not self._left_out(name, status, fd):
                            below.append((inside + name, status))
                        continue
                    if not plain_file(member_prefix + name, name, status):
                        self._member(member_prefix + name, name, status, fd)
                    if self._ready:
                        yield from self._ready
                        self._ready = []
                below.reverse()
                stack += below
            finally:
                os.close(fd)

    def _listing(
        self, fd: int, prefix: bytes, inside: bytes, path: bytes
    ) -> list[tuple[bytes, os.stat_result]]:
        encode = os.fsencode
        excluded, left_out = self.excluded, self.left_out
        listing = []
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    name = encode(entry.name)
                    if (excluded is not None and excluded(inside + name)) or (
                        left_out and prefix + inside + name in left_out
                    ):
                        self._skip("excluded")
                        continue
                    try:
                        listing.append((name, entry.stat(follow_symlinks=False)))
                    except FileNotFoundError:
                        self._skip("vanished")
        except OSError as error:
            raise _unreadable(error, path) from None
        listing.sort(key=_name)
        return listing

    def _left_out(self, name: bytes, status: os.stat_result, fd: int) -> bool:
        if (status.st_dev, status.st_ino) in self.avoid:
            self._skip("the store itself")
            return True
        if name == LOCKS_NAME:
            self._skip("named locks")
            return True
        if name.startswith(STAGING_PREFIX):
            try:
                journal = os.open(
                    name + b"/" + os.fsencode(JOURNAL_NAME), os.O_RDONLY | os.O_CLOEXEC, dir_fd=fd
                )
            except OSError:
                return False
            with open(journal, "rb") as file:
                if _BEGUN.search(file.read()):
                    raise UnfinishedTarget(
                        "a restore inside the tree is running or was killed before its end",
                        path=name,
                    )
            self._skip("staging of an unfinished restore")
            return True
        return False

    def _skip(self, reason: str) -> None:
        self.skipped[reason] = self.skipped.get(reason, 0) + 1

    def _plain_file(self, path: bytes, name: bytes, status: os.stat_result) -> bool:
        """Append a file that needs nothing special, as ``_member`` would; return False if it may need something.

        Nearly every member comes through here, so everything is in one place: no calls, no general cases.
        """
        size = status.st_size
        mode = status.st_mode
        allocated = status.st_blocks * 512
        mtime_ns = status.st_mtime_ns
        uid, gid = status.st_uid, status.st_gid
        if (
            mode & 0o170000 != S_IFREG
            or status.st_nlink != 1
            or size > FRAME_SIZE
            or (allocated < size and size > _SPARSE_MINIMUM)
            or len(path) > header.PLAIN_NAME
            or not path.isascii()
            or not 0 <= mtime_ns < header.PLAIN_MTIME_NS
            or uid > header.PLAIN_ID
            or gid > header.PLAIN_ID
            or path in _RESERVED
        ):
            return False
        total = 512 + (size + 511 & -512)
        position = self._frame_bytes
        if position and position + total > FRAME_SIZE:
            self._cut()
            position = 0
        self.allocated_bytes += allocated
        mode &= 0o7777
        index = self.index
        index.paths.append(path)
        index.kinds.append(FILE)
        index.modes.append(mode)
        index.uids.append(uid)
        index.gids.append(gid)
        index.sizes.append(size)
        index.mtimes.append(mtime_ns)
        index.frames.append(self._frame)
        index.offsets.append(position)
        self._groups[-1][3].append(
            (name, FILE, mode, uid, gid, size, mtime_ns, status.st_ctime_ns, status.st_ino, b"", -1, None)
        )
        self._frame_bytes = position = position + total
        self._frame_members += 1
        if position >= FRAME_MINIMUM and xxh3_64_intdigest(path) < CUT_THRESHOLD:
            self._cut()
        return True

    def _member(self, path: bytes, name: bytes, status: os.stat_result, fd: int) -> None:
        """Append one member to the index and to the frame that is being filled."""
        kind_bits = S_IFMT(status.st_mode)
        link = b""
        real, segments = -1, None
        size = 0
        if kind_bits == S_IFREG:
            kind = FILE
            size = status.st_size
            if status.st_nlink > 1:
                first = self._links.setdefault((status.st_dev, status.st_ino), path)
                if first is not path:
                    kind, link, size = HARDLINK, first, 0
            if kind == FILE:
                allocated = status.st_blocks * 512
                self.allocated_bytes += allocated
                if (
                    allocated < size
                    and size > _SPARSE_MINIMUM
                    and (holes := _holes(name, fd, size)) is not None
                ):
                    real, segments = size, holes
                    size = len(header.sparse_map(holes)) + sum(length for _, length in holes)
        elif kind_bits == S_IFDIR:
            kind = DIRECTORY
        elif kind_bits == S_IFLNK:
            kind = SYMLINK
            try:
                link = os.readlink(name, dir_fd=fd)
            except OSError as error:
                if error.errno not in {errno.ENOENT, errno.EINVAL}:
                    raise _unreadable(error, path, "symlink") from None
                self._skip("vanished")
                return
        else:
            self._skip("socket, fifo or device")
            return
        if path in _RESERVED and self._groups[-1][1] == 0:
            raise NameConflict(
                "this name is reserved for targets outside the root",
                path=path,
                hint="rename it, or save its parent directory from another --root",
            )
        if len(path) > MAX_NAME:
            raise SourceUnreadable(
                "the path is longer than an archive can hold",
                path=path[:200],
                expected=MAX_NAME,
                found=len(path),
            )
        mode = status.st_mode & 0o7777
        mtime_ns = status.st_mtime_ns
        uid, gid = status.st_uid, status.st_gid
        head = header.length(path, kind, uid, gid, mtime_ns // 1_000_000_000, size, link, real)
        member = (
            name,
            kind,
            mode,
            uid,
            gid,
            size,
            mtime_ns,
            status.st_ctime_ns,
            status.st_ino,
            link,
            real,
            segments,
        )
        if size > FRAME_SIZE:
            self._large_file(member, head, path)
            return
        total = head + padded(size)
        if self._frame_bytes + total > FRAME_SIZE and self._frame_bytes:
            self._cut()
        self._row(path, member)
        self._frame_bytes += total
        self._frame_members += 1
        self._groups[-1][3].append(member)
        if self._frame_bytes >= FRAME_MINIMUM and xxh3_64_intdigest(path) < CUT_THRESHOLD:
            self._cut()

    def _row(self, path: bytes, member: tuple[Any, ...]) -> None:
        index = self.index
        if member[11] is not None:
            index.sparse[len(index.paths)] = (member[10], member[11])
        index.paths.append(path)
        index.kinds.append(member[1])
        index.modes.append(member[2])
        index.uids.append(member[3])
        index.gids.append(member[4])
        index.sizes.append(member[5])
        index.mtimes.append(member[6])
        if member[9]:
            index.links.append(member[9])
        index.frames.append(self._frame)
        index.offsets.append(self._frame_bytes)

    def _large_file(self, member: tuple[Any, ...], head: int, path: bytes) -> None:
        """Put a file that is longer than a frame into frames of its own, one job each."""
        self._cut()
        self._row(path, member)
        prefix, root_number, directory, _ = self._groups[-1]
        count = -(-member[5] // FRAME_SIZE)
        for part in range(count):
            self._ready.append([PART_JOB, part, prefix, root_number, directory, member])
        self._frame += count

    def _cut(self) -> None:
        if not self._frame_members:
            return
        groups = [group for group in self._groups if group[3]]
        self._ready.append([FRAME_JOB, self._frame_members, groups])
        prefix, root_number, directory, _ = self._groups[-1]
        self._groups = [(prefix, root_number, directory, [])]
        self._frame += 1
        self._frame_bytes = self._frame_members = 0


_RESERVED = frozenset(prefix.rstrip(b"/") for prefix in ROOT_PREFIX.values() if prefix)


def _holes(name: bytes, dir_fd: int, size: int) -> Segments | None:
    """Return the data regions if the file has holes, None if it has none or cannot be asked."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=dir_fd)
    except OSError:
        return None  # the packer meets the same error and reports it
    try:
        return find_segments(fd, size)
    except OSError:
        return None
    finally:
        os.close(fd)


def find_segments(fd: int, size: int) -> Segments | None:
    """Return a file's data regions by SEEK_DATA and SEEK_HOLE, None if it is one region from 0 to its end.

    A file that ends in a hole gets a last, empty region at its end, as GNU tar writes it.
    """
    segments: Segments = []
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data behind position
                break
            raise
        if start >= size:
            break
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        segments.append((start, end - start))
        position = end
    if segments == [(0, size)]:
        return None
    if not segments or sum(segments[-1]) < size:
        segments.append((size, 0))
    return segments


def _unreadable(error: OSError, path: bytes, what: str = "directory") -> SourceUnreadable:
    return SourceUnreadable(f"cannot read a {what}: {error.strerror}", path=path, errno=error.errno)
