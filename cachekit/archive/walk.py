"""One walk over the targets: it gives every member to the layout, which makes index rows and frames of them.

The order depends only on names and kinds. What a survey has seen unchanged is not looked at again: the layout takes
those rows over from the base.
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

from cachekit.archive import header
from cachekit.archive.base import Base
from cachekit.archive.format import DIRECTORY, FILE, HARDLINK, MAX_NAME, SYMLINK
from cachekit.archive.index import Index
from cachekit.archive.layout import NO_PARENT, RESERVED, Layout
from cachekit.archive.names import Roots
from cachekit.archive.reuse import Reuse
from cachekit.archive.sparse import SPARSE_MINIMUM, segments_of
from cachekit.errors import NameConflict, NothingMatched, SourceUnreadable, UnfinishedTarget
from cachekit.model import JOURNAL_NAME, LOCKS_NAME, ROOT_PREFIX, STAGING_PREFIX, Target
from cachekit.system.files import open_directory

__all__ = ["Walk"]

#: In a journal (``targets.journal``): names were being moved, so the tree around it is neither old nor new.
_BEGUN = re.compile(rb'"phase": "(committing|extras-gone|in-place)"')

_name = itemgetter(0)


@dataclass(slots=True)
class Walk:
    """The walk's question and, once ``jobs()`` has been iterated to its end, its answer.

    ``index`` then lacks only the digests. ``spans`` has the rows of each target, ``devices`` their device numbers.
    ``skipped`` counts what cannot be stored (sockets, fifos, devices) or was not asked for, by reason.
    """

    targets: list[Target]
    roots: Roots
    #: Tells whether a path relative to its root is left out; None: nothing is.
    excluded: Callable[[bytes], bool] | None = None
    #: Directories (device, inode) to leave out: the store, when it lies inside a target.
    avoid: frozenset[tuple[int, int]] = frozenset()
    #: Member names to leave out: files that kept changing during an earlier attempt.
    left_out: frozenset[bytes] = frozenset()
    #: The entry that frames may be taken over from.
    base: Base | None = None
    layout: Layout = field(init=False)
    devices: dict[Target, int] = field(default_factory=dict)
    spans: dict[Target, range] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin with an empty layout."""
        self.layout = Layout() if self.base is None else Reuse(base=self.base)

    @property
    def index(self) -> Index:
        """The rows of all members so far."""
        return self.layout.index

    @property
    def allocated_bytes(self) -> int:
        """What the files occupy on disk."""
        return self.layout.allocated_bytes

    @property
    def skipped(self) -> dict[str, int]:
        """How much was left out, by reason."""
        return self.layout.skipped

    def jobs(self) -> Iterator[list[Any]]:
        """Yield the frames' jobs in archive order. Raises SourceUnreadable, NothingMatched, NameConflict."""
        for target in self.targets:
            # What is left out now may be among the rows that would be taken over as a whole.
            self.layout.begin(target, usable=not self.left_out)
            first = len(self.index)
            yield from self._target(target)
            self.layout.take_pending()
            self.spans[target] = range(first, len(self.index))
        self.layout.cut()
        yield from self.layout.take_jobs()

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
            self.devices[target] = info.st_dev
            if S_IFMT(info.st_mode) == S_IFDIR:
                yield from self._tree(prefix, root_number, root_fd, target.path, info)
            else:
                parent, slash, name = target.path.rpartition(b"/")
                self.layout.groups.append((prefix + parent + slash, root_number, parent or NO_PARENT, []))
                parent_fd = open_directory(parent or NO_PARENT, dir_fd=root_fd, follow=True)
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
        layout = self.layout
        plain_file = layout.plain_file
        stack = [(top, info)]
        while stack:
            path, info = stack.pop()
            inside = b"" if path == b"." else path + b"/"
            member_prefix = prefix + inside
            if layout.take_subtree(member_prefix, prefix, root_number):
                yield from layout.take_jobs()
                continue
            try:
                fd = open_directory(path, dir_fd=root_fd, follow=path is top)
            except OSError as error:
                raise _unreadable(error, path) from None
            try:
                now = os.fstat(fd)
                if now.st_ino != info.st_ino or now.st_dev != info.st_dev:
                    raise SourceUnreadable("a directory was replaced while it was walked", path=path)
                layout.groups.append((member_prefix, root_number, path, []))
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
                    if layout.ready:
                        yield from layout.take_jobs()
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
                        self.layout.skip("excluded")
                        continue
                    try:
                        listing.append((name, entry.stat(follow_symlinks=False)))
                    except FileNotFoundError:
                        self.layout.skip("vanished")
        except OSError as error:
            raise _unreadable(error, path) from None
        listing.sort(key=_name)
        return listing

    def _left_out(self, name: bytes, status: os.stat_result, fd: int) -> bool:
        if (status.st_dev, status.st_ino) in self.avoid:
            self.layout.skip("the store itself")
            return True
        if name == LOCKS_NAME:
            self.layout.skip("named locks")
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
            self.layout.skip("staging of an unfinished restore")
            return True
        return False

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
                first = self.layout.links.setdefault((status.st_dev, status.st_ino), path)
                if first is not path:
                    kind, link, size = HARDLINK, first, 0
            if kind == FILE:
                allocated = status.st_blocks * 512
                self.layout.allocated_bytes += allocated
                if (
                    allocated < size
                    and size > SPARSE_MINIMUM
                    and (holes := segments_of(name, fd, size)) is not None
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
                self.layout.skip("vanished")
                return
        else:
            self.layout.skip("socket, fifo or device")
            return
        if path in RESERVED and self.layout.groups[-1][1] == 0:
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
        member = (
            name,
            kind,
            status.st_mode & 0o7777,
            status.st_uid,
            status.st_gid,
            size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_ino,
            link,
            real,
            segments,
        )
        sure = kind != FILE or self.layout.is_known(name, status)
        self.layout.append(path, member, sure=sure)


def _unreadable(error: OSError, path: bytes, what: str = "directory") -> SourceUnreadable:
    return SourceUnreadable(f"cannot read a {what}: {error.strerror}", path=path, errno=error.errno)
