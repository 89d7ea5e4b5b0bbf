"""Rows and frames of an entry in the order of a walk: where frames are cut, and which are taken over from a base.

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
from cachekit.archive.base import Base, Known
from cachekit.archive.format import (
    DIRECTORY,
    FILE,
    FRAME_MINIMUM,
    FRAME_SIZE,
    HARDLINK,
    LINK_KINDS,
    SYMLINK,
    padded,
)
from cachekit.archive.index import Index, member_bytes
from cachekit.archive.sparse import SPARSE_MINIMUM
from cachekit.model import ROOT_PREFIX

__all__ = ["COPY_JOB", "FRAME_JOB", "NO_PARENT", "PART_JOB", "RESERVED", "Layout"]

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

    #: The entry that frames may be taken over from.
    base: Base | None = None
    index: Index = field(default_factory=Index)
    #: A value for each row of the index.
    inodes: array[int] = field(default_factory=lambda: array("Q"))
    ctimes: array[int] = field(default_factory=lambda: array("q"))
    #: Rows of files with further names.
    linked: array[int] = field(default_factory=lambda: array("I"))
    #: What the files occupy on disk.
    allocated_bytes: int = 0
    #: What was left out, by reason.
    skipped: dict[str, int] = field(default_factory=dict)
    #: Jobs that nobody has taken yet.
    ready: list[list[Any]] = field(default_factory=list)
    #: The first name of each file with further names in this target, by device and inode.
    links: dict[tuple[int, int], bytes] = field(default_factory=dict)
    #: What is known of this target.
    known: Known | None = None
    groups: list[tuple[bytes, int, bytes, list[Any]]] = field(default_factory=list)
    _frame: int = 0
    _frame_bytes: int = 0
    _frame_members: int = 0
    #: Of the directory that is being listed: name -> row of the base. None: nothing is known of it.
    _here: dict[bytes, int] | None = None
    #: Rows of the base that are taken over as soon as it is known which follow, with prefix and number of their root.
    _pending: tuple[int, int, bytes, int] | None = None
    #: Whether every frame so far is one of the base's.
    all_copied: bool = True
    #: Whether a file of the frame may have another content than the base's.
    _unsure: bool = False

    def begin(self, known: Known | None) -> None:
        """Begin with a further target, of which ``known`` is known."""
        self.links = {}
        self.known = known
        self._here = None

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

    def append(
        self, path: bytes, member: tuple[Any, ...], *, sure: bool, further_names: bool = False
    ) -> None:
        """Append a member to the index and to the frame.

        ``sure`` if its content is known to be the base's, ``further_names`` if it is one of several names of a file.
        """
        if further_names:
            self.linked.append(len(self.index))
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

    def _same_frame(self, count: int) -> int | None:
        """Return the base's frame with the same headers as the last ``count`` rows, None if there is none."""
        return None if self.base is None else self.base.same_frame(self.index, len(self.index) - count, count)

    def _same_times(self, count: int, frame: int) -> bool:
        """Return True if times are to be trusted and those of the last ``count`` rows are the frame's."""
        base = self.base
        return (
            base is not None
            and base.trust_mtime
            and base.same_times(self.index, len(self.index) - count, count, frame)
        )

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

    # What a survey has seen need not be looked at again

    def is_known(self, name: bytes, status: os.stat_result) -> bool:
        """Return True if a file of the directory being listed still has the content of its row of the base."""
        if self._here is None or self.known is None or self.base is None:
            return False
        row = self._here.get(name)
        return row is not None and self.known.has(row, status, self.base.index.mtimes[row])

    def take_subtree(self, member_prefix: bytes, prefix: bytes, root_number: int) -> bool:
        """Take over a directory and all below it, if a survey saw it unchanged; False if it must be listed.

        ``member_prefix`` is what the names of its members begin with, ``prefix`` that of its root.
        """
        known = self.known
        if known is None:
            return False
        first, last = known.subtree(member_prefix[:-1])
        clean = first < last and known.clean(first, last)
        if clean and known.linked_between(first, last):
            self.take_pending()  # it may have first names of the same files
            clean = self._links_hold(known, first, last)
        if clean:
            # Together with what was taken over right before: frames hold more than one small directory.
            if self._pending is None or self._pending[1] != first:
                self.take_pending()
                self._pending = first, last, prefix, root_number
            else:
                self._pending = self._pending[0], last, prefix, root_number
            return True
        self.take_pending()
        self._here = self._rows_here(member_prefix, first, last)
        return False

    def take_pending(self) -> None:
        """Append what was taken over and not appended yet; before anything else is."""
        if self._pending is not None and self.known is not None:
            first, last, prefix, root_number = self._pending
            self._pending = None
            self._take(self.known, first, last, prefix, root_number)

    def _links_hold(self, known: Known, first: int, last: int) -> bool:
        """Return True if files with further names are met under the same first names as when the base was made.

        Their stat values do not tell: a directory that is renamed takes the names in it along.
        """
        rows = known.linked_between(first, last)
        if not rows:
            return True
        assert self.base is not None
        base = self.base.index
        link = self.base.link_ordinal(rows[0])
        at = rows[0]
        below: dict[tuple[int, int], bytes] = {}
        for row in rows:
            link += base.kinds.count(SYMLINK, at, row) + base.kinds.count(HARDLINK, at, row)
            at = row
            key = known.device, known.inodes[row - known.first]
            name = self.links.get(key) or below.get(key)
            if base.kinds[row] == FILE:
                if name is not None:
                    return False
                below[key] = base.paths[row]
            elif name != base.links[link]:
                return False
        return True

    def _rows_here(self, member_prefix: bytes, first: int, last: int) -> dict[bytes, int] | None:
        """Return the base's rows of the files in a directory that is not as it was, by name."""
        assert self.base is not None
        index = self.base.index
        if first == last:
            return None
        row = first + (index.kinds[first] == DIRECTORY and index.paths[first] == member_prefix[:-1])
        rows = {}
        while row < last and index.kinds[row] != DIRECTORY:
            rows[index.paths[row][len(member_prefix) :]] = row
            row += 1
        return rows

    def _take(self, known: Known, first: int, last: int, prefix: bytes, root_number: int) -> None:
        """Append rows of the base that the disk still has: whole frames at once, what lies in others one by one."""
        base = self.base
        assert base is not None
        allocated, excluded = known.sums(first, last)
        self.allocated_bytes += allocated
        if excluded:
            self.skip("excluded", excluded)
        row = first
        while row < last:
            if self._frame_members and base.begins_frame(row) and not self._fits(row):
                self.cut()
            if not self._frame_members and base.begins_frame(row):
                # Not the last frame: where it ends may depend on what follows.
                stop = base.last_begin(last - 1)
                if stop > row:
                    self._take_frames(known, row, stop)
                    row = stop
                    continue
            if not self._take_plain(known, row, root_number):
                self._take_row(known, row, prefix, root_number)
            row += 1

    def _fits(self, row: int) -> bool:
        """Return True if a row of the base would go into the frame that is being filled."""
        assert self.base is not None
        base = self.base.index
        link = base.links[self.base.link_ordinal(row)] if base.kinds[row] in LINK_KINDS else b""
        return self._frame_bytes + member_bytes(base, row, link) <= FRAME_SIZE

    def _take_frames(self, known: Known, first: int, last: int) -> None:
        """Append the rows of whole frames, ``first`` up to ``last``, and the job that copies these frames."""
        assert self.base is not None
        base, index = self.base.index, self.index
        frame, behind = base.frames[first], base.frames[last]
        here, shift = len(index), self._frame - frame
        for row in known.linked_between(first, last):
            self._take_link(known, row, here + row - first)
        if base.sparse:
            index.sparse |= {here + r - first: v for r, v in base.sparse.items() if first <= r < last}
        begin, end = self.base.link_ordinal(first), self.base.link_ordinal(last)
        index.links += base.links[begin:end]
        index.paths += base.paths[first:last]
        index.kinds += base.kinds[first:last]
        index.modes += base.modes[first:last]
        index.uids += base.uids[first:last]
        index.gids += base.gids[first:last]
        index.sizes += base.sizes[first:last]
        index.mtimes += base.mtimes[first:last]
        index.offsets += base.offsets[first:last]
        frames = base.frames[first:last]
        index.frames += array(frames.typecode, [f + shift for f in frames]) if shift else frames
        self.inodes += known.inodes[first - known.first : last - known.first]
        self.ctimes += known.ctimes[first - known.first : last - known.first]
        self.ready.append([COPY_JOB, last - first, frame, behind])
        self._frame += behind - frame

    def _take_plain(self, known: Known, row: int, root_number: int) -> bool:
        """Append the row of a file that needs nothing special; False if it may need something. See ``plain_file``."""
        assert self.base is not None
        base, index = self.base.index, self.index
        path, size, mtime_ns = base.paths[row], base.sizes[row], base.mtimes[row]
        uid, gid = base.uids[row], base.gids[row]
        cut = path.rfind(b"/") + 1
        if (
            base.kinds[row] != FILE
            or not self.groups
            or self.groups[-1][0] != path[:cut]
            or self.groups[-1][1] != root_number
            or size > FRAME_SIZE
            or len(path) > header.PLAIN_NAME
            or not path.isascii()
            or not 0 <= mtime_ns < header.PLAIN_MTIME_NS
            or uid > header.PLAIN_ID
            or gid > header.PLAIN_ID
            or row in base.sparse
            or known.linked
        ):
            return False
        total = 512 + (size + 511 & -512)
        if self._frame_bytes and self._frame_bytes + total > FRAME_SIZE:
            self.cut()
        mode, at = base.modes[row], row - known.first
        inode, ctime_ns = known.inodes[at], known.ctimes[at]
        index.paths.append(path)
        index.kinds.append(FILE)
        index.modes.append(mode)
        index.uids.append(uid)
        index.gids.append(gid)
        index.sizes.append(size)
        index.mtimes.append(mtime_ns)
        index.frames.append(self._frame)
        index.offsets.append(self._frame_bytes)
        self.inodes.append(inode)
        self.ctimes.append(ctime_ns)
        self.groups[-1][3].append(
            (path[cut:], FILE, mode, uid, gid, size, mtime_ns, ctime_ns, inode, b"", -1, None)
        )
        self._frame_bytes += total
        self._frame_members += 1
        if self._frame_bytes >= FRAME_MINIMUM and xxh3_64_intdigest(path) < CUT_THRESHOLD:
            self.cut()
        return True

    def _take_row(self, known: Known, row: int, prefix: bytes, root_number: int) -> None:
        """Append one row, as the walk would if it looked at the file."""
        assert self.base is not None
        base = self.base.index
        path, kind = base.paths[row], base.kinds[row]
        if kind == DIRECTORY:
            name, parent = b"", path + b"/"
        else:
            cut = path.rfind(b"/") + 1
            name, parent = path[cut:], path[:cut]
        if kind == DIRECTORY or not self.groups or self.groups[-1][:2] != (parent, root_number):
            directory = parent[len(prefix) : -1] or NO_PARENT
            self.groups.append((parent, root_number, directory, []))
        if known.linked_between(row, row + 1):
            self._take_link(known, row, len(self.index))
        link = base.links[self.base.link_ordinal(row)] if kind in LINK_KINDS else b""
        real, segments = base.sparse.get(row, (-1, None))
        at = row - known.first
        member = (
            name,
            kind,
            base.modes[row],
            base.uids[row],
            base.gids[row],
            base.sizes[row],
            base.mtimes[row],
            known.ctimes[at],
            known.inodes[at],
            link,
            real,
            segments,
        )
        self.append(path, member, sure=True)

    def _take_link(self, known: Known, row: int, here: int) -> None:
        """Remember a file with further names, which may be met where nothing is known."""
        assert self.base is not None
        self.linked.append(here)
        if self.base.index.kinds[row] == FILE:
            key = known.device, known.inodes[row - known.first]
            self.links.setdefault(key, self.base.index.paths[row])
