"""Rows and frames of an entry in the order of a walk, and where frames are cut.

Where frames are cut depends only on names, kinds and sizes: the same tree always gives the same frames.
"""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass, field
from stat import S_IFREG
from typing import Any

from xxhash import xxh3_64_intdigest

from cachekit.archive import header
from cachekit.archive.format import (
    FILE,
    FRAME_MINIMUM,
    FRAME_SIZE,
    padded,
)
from cachekit.archive.index import Index
from cachekit.archive.sparse import SPARSE_MINIMUM
from cachekit.model import ROOT_PREFIX, Target

__all__ = ["COPY_JOB", "CUT_THRESHOLD", "FRAME_JOB", "NO_PARENT", "PART_JOB", "RESERVED", "Layout"]

#: A frame that holds FRAME_MINIMUM bytes is cut after a member whose path hash is below this: 1 path in 256. Frames of
#: small files come out at 1 to 3 MiB, and an edit changes frames only up to the next such path.
CUT_THRESHOLD = (1 << 64) >> 8

FRAME_JOB, PART_JOB, COPY_JOB = 0, 1, 2

#: What the directory of a root is called.
NO_PARENT = b"."
#: Where the members of the other roots are.
RESERVED = frozenset(prefix.rstrip(b"/") for prefix in ROOT_PREFIX.values() if prefix)


@dataclass(slots=True)
class Layout:
    """Takes members in the order of the walk and makes index rows and jobs of them.

    A job is ``[FRAME_JOB, number of members, base frame or -1, groups]`` with a group ``(prefix, root number,
    directory, members)``, or ``[PART_JOB, part, base frame or -1, prefix, root number, directory, member]``. The
    member's full name is prefix + name; a directory is the first member of its own group, with an empty name. A member
    is ``(name, kind, mode, uid, gid, stored size, mtime_ns, ctime_ns, inode, link, real size or -1, segments or
    None)``. A base frame has the same headers; whether its contents are the same is for the packer to find out.
    ``[COPY_JOB, number of members, first base frame, last + 1]`` are frames of the base that are known to be the same.
    Jobs are made of built-in values only, so they cost little to keep and to send to a worker.
    """

    index: Index = field(default_factory=Index)
    #: A value for each row of the index.
    inodes: array[int] = field(default_factory=lambda: array("Q"))
    ctimes: array[int] = field(default_factory=lambda: array("q"))
    #: What the files occupy on disk.
    allocated_bytes: int = 0
    #: What was left out, by reason.
    skipped: dict[str, int] = field(default_factory=dict)
    #: Jobs that nobody has taken yet.
    ready: list[list[Any]] = field(default_factory=list)
    #: The first name of each file with further names in this target, by device and inode.
    links: dict[tuple[int, int], bytes] = field(default_factory=dict)
    groups: list[tuple[bytes, int, bytes, list[Any]]] = field(default_factory=list)
    _frame: int = 0
    _frame_bytes: int = 0
    _frame_members: int = 0
    #: Whether every frame so far is one of the base's.
    all_copied: bool = True
    #: Whether a file of the frame may have another content than the base's.
    _unsure: bool = False

    def begin(self, target: Target, *, usable: bool) -> None:
        """Begin with a further target; what is known of it is ``usable`` if nothing of it is left out this time."""
        self.links = {}

    # What a layout with a base does otherwise (``reuse``)

    def is_known(self, name: bytes, status: os.stat_result) -> bool:
        """Return True if a file of the directory being listed still has the content of its row of the base."""
        return False

    def take_subtree(self, member_prefix: bytes, prefix: bytes, root_number: int) -> bool:
        """Take over a directory and all below it, if a survey saw it unchanged; False if it must be listed.

        ``member_prefix`` is what the names of its members begin with, ``prefix`` that of its root.
        """
        return False

    def take_pending(self) -> None:
        """Append what was taken over and not appended yet; before anything else is."""

    def _same_frame(self, count: int) -> int | None:
        """Return the base's frame with the same headers as the last ``count`` rows, None if there is none."""
        return None

    def _same_times(self, count: int, frame: int) -> bool:
        """Return True if times are to be trusted and those of the last ``count`` rows are the frame's."""
        return False

    def take_jobs(self) -> list[list[Any]]:
        """Return the jobs that are ready, and forget them."""
        jobs, self.ready = self.ready, []
        return jobs

    def skip(self, reason: str, count: int = 1) -> None:
        self.skipped[reason] = self.skipped.get(reason, 0) + count

    def plain_file(self, path: bytes, name: bytes, status: os.stat_result) -> bool:
        """Append a file that needs nothing special, as the walk would; return False if it may need something.

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
            or (allocated < size and size > SPARSE_MINIMUM)
            or len(path) > header.PLAIN_NAME
            or not path.isascii()
            or not 0 <= mtime_ns < header.PLAIN_MTIME_NS
            or uid > header.PLAIN_ID
            or gid > header.PLAIN_ID
            or path in RESERVED
        ):
            return False
        total = 512 + (size + 511 & -512)
        position = self._frame_bytes
        if position and position + total > FRAME_SIZE:
            self.cut()
            position = 0
        self.allocated_bytes += allocated
        mode &= 0o7777
        if not self._unsure:
            self._unsure = not self.is_known(name, status)
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
        ctime_ns, inode = status.st_ctime_ns, status.st_ino
        self.inodes.append(inode)
        self.ctimes.append(ctime_ns)
        self.groups[-1][3].append(
            (name, FILE, mode, uid, gid, size, mtime_ns, ctime_ns, inode, b"", -1, None)
        )
        self._frame_bytes = position = position + total
        self._frame_members += 1
        if position >= FRAME_MINIMUM and xxh3_64_intdigest(path) < CUT_THRESHOLD:
            self.cut()
        return True

    def append(self, path: bytes, member: tuple[Any, ...], *, sure: bool) -> None:
        """Append a member to the index and to the frame; ``sure`` if its content is known to be the base's."""
        size = member[5]
        head = header.length(
            path,
            member[1],
            member[3],
            member[4],
            member[6] // 1_000_000_000,
            size,
            member[9],
            member[10],
        )
        if size > FRAME_SIZE:
            self._large_file(member, path, sure=sure)
            return
        total = head + padded(size)
        if self._frame_bytes + total > FRAME_SIZE and self._frame_bytes:
            self.cut()
        self._row(path, member)
        self._unsure = self._unsure or not sure
        self._frame_bytes += total
        self._frame_members += 1
        self.groups[-1][3].append(member)
        if self._frame_bytes >= FRAME_MINIMUM and xxh3_64_intdigest(path) < CUT_THRESHOLD:
            self.cut()

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
        self.ctimes.append(member[7])
        self.inodes.append(member[8])

    def _large_file(self, member: tuple[Any, ...], path: bytes, *, sure: bool) -> None:
        """Put a file that is longer than a frame into frames of its own, one job each."""
        self.cut()
        self._row(path, member)
        count = -(-member[5] // FRAME_SIZE)
        frame = self._same_frame(1)
        if frame is not None and (sure or self._same_times(1, frame)):
            self.ready.append([COPY_JOB, 1, frame, frame + count])
        else:
            prefix, root_number, directory, _ = self.groups[-1]
            self.all_copied = False
            for part in range(count):
                hint = -1 if frame is None else frame + part
                self.ready.append([PART_JOB, part, hint, prefix, root_number, directory, member])
        self._frame += count

    def cut(self) -> None:
        """End the frame that is being filled, if anything is in it."""
        members = self._frame_members
        if not members:
            return
        frame = self._same_frame(members)
        if frame is not None and (not self._unsure or self._same_times(members, frame)):
            self.ready.append([COPY_JOB, members, frame, frame + 1])
        else:
            self.all_copied = False
            groups = [group for group in self.groups if group[3]]
            self.ready.append([FRAME_JOB, members, -1 if frame is None else frame, groups])
        prefix, root_number, directory, _ = self.groups[-1]
        self.groups = [(prefix, root_number, directory, [])]
        self._frame += 1
        self._frame_bytes = self._frame_members = 0
        self._unsure = False
