"""A layout that starts from an earlier entry: rows that a survey saw unchanged are taken over, with their frames.

The result is the same as without: what is taken over is what the walk would have found.
"""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass, field

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
)
from cachekit.archive.index import member_bytes
from cachekit.archive.layout import COPY_JOB, CUT_THRESHOLD, NO_PARENT, Layout
from cachekit.model import Target

__all__ = ["Reuse"]


@dataclass(slots=True)
class Reuse(Layout):
    """See the module, and ``Layout`` for what a job is."""

    #: The entry that frames are taken over from.
    base: Base = field(kw_only=True)
    #: What is known of this target.
    known: Known | None = None
    #: Of the directory that is being listed: name -> row of the base. None: nothing is known of it.
    _here: dict[bytes, int] | None = None
    #: Rows of the base that are taken over as soon as it is known which follow, with prefix and number of their root.
    _pending: tuple[int, int, bytes, int] | None = None

    def begin(self, target: Target, *, usable: bool) -> None:
        self.links = {}
        self.known = self.base.known.get(target) if usable else None
        self._here = None

    def _same_frame(self, count: int) -> int | None:
        return self.base.same_frame(self.index, len(self.index) - count, count)

    def _same_times(self, count: int, frame: int) -> bool:
        return self.base.trust_mtime and self.base.same_times(
            self.index, len(self.index) - count, count, frame
        )

    def is_known(self, name: bytes, status: os.stat_result) -> bool:
        if self._here is None or self.known is None:
            return False
        row = self._here.get(name)
        return row is not None and self.known.has(row, status, self.base.index.mtimes[row])

    def take_subtree(self, member_prefix: bytes, prefix: bytes, root_number: int) -> bool:
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
        base = self.base.index
        link = base.links[self.base.link_ordinal(row)] if base.kinds[row] in LINK_KINDS else b""
        return self._frame_bytes + member_bytes(base, row, link) <= FRAME_SIZE

    def _take_frames(self, known: Known, first: int, last: int) -> None:
        """Append the rows of whole frames, ``first`` up to ``last``, and the job that copies these frames."""
        base, index = self.base.index, self.index
        frame, behind = base.frames[first], base.frames[last]
        here, shift = len(index), self._frame - frame
        for row in known.linked_between(first, last):
            self._take_link(known, row)
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
        ):
            return False
        if row in known.linked_rows:
            self._take_link(known, row)
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
        if row in known.linked_rows:
            self._take_link(known, row)
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

    def _take_link(self, known: Known, row: int) -> None:
        """Remember a file with further names, which may be met where nothing is known."""
        if self.base.index.kinds[row] == FILE:
            key = known.device, known.inodes[row - known.first]
            self.links.setdefault(key, self.base.index.paths[row])
