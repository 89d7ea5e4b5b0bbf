"""An earlier entry that a save starts from: which of its frames hold exactly what the tree holds now.

A frame can be taken over if a full save would write the same bytes: the same members with the same headers, and the
same contents. Headers follow from index rows, so equal rows are enough. That contents are the same is known from a
record of the tree (``record``, ``survey``), or found by reading and hashing them; never from size and time alone,
unless asked.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from bisect import bisect_left
from dataclasses import dataclass, field

from cachekit.archive.format import FILE, FRAME_LIMIT, HARDLINK, SYMLINK
from cachekit.archive.index import Index
from cachekit.archive.read import Archive
from cachekit.model import Target

__all__ = ["COPY_BYTES", "Base", "Known"]

#: No more bytes of a base are read at a time: a frame and what several small ones make.
COPY_BYTES = FRAME_LIMIT + (FRAME_LIMIT >> 6)
_SECOND = 1_000_000_000


@dataclass(slots=True)
class Known:
    """What a survey found of one target: for each of its rows in the base's index, whether the disk still has it.

    ``first`` is the target's first row; the columns begin there. ``bad`` has 0 for a row that is as recorded, 1 for one
    that is not, and 2 more for a directory with further names. ``allocated`` and ``excluded`` (bytes on disk, names
    left out) have one value for each directory of ``directory_rows``.
    """

    first: int
    bad: bytearray
    inodes: array[int]
    ctimes: array[int]
    #: Rows of files with further names, ascending.
    linked: array[int]
    device: int
    directory_rows: array[int] = field(default_factory=lambda: array("I"))
    allocated: array[int] = field(default_factory=lambda: array("Q"))
    excluded: array[int] = field(default_factory=lambda: array("I"))
    directory_names: list[bytes] = field(default_factory=list)
    _subtrees: dict[bytes, tuple[int, int]] | None = None

    def clean(self, first: int, last: int) -> bool:
        """Return True if all rows from ``first`` up to ``last`` are as recorded."""
        return self.bad.count(0, first - self.first, last - self.first) == last - first

    def subtree(self, name: bytes) -> tuple[int, int]:
        """Return the first row of a directory and the row behind the last one below it; (0, 0) for no directory."""
        last = self.first + len(self.bad)
        if self.directory_names and name == self.directory_names[0]:
            return self.first, last
        if self._subtrees is None:
            self._subtrees = _subtrees(self.directory_names, self.directory_rows, last)
        return self._subtrees.get(name, (0, 0))

    def sums(self, first: int, last: int) -> tuple[int, int]:
        """Return the allocated bytes and the number of names left out of the directories among these rows."""
        begin, end = bisect_left(self.directory_rows, first), bisect_left(self.directory_rows, last)
        if not begin and not self.directory_names[0] and last - first < len(self.bad):
            begin = 1  # a whole root has no row of its own: what lies in it begins with the first directory's
        return sum(self.allocated[begin:end]), sum(self.excluded[begin:end])

    def linked_between(self, first: int, last: int) -> array[int]:
        """Return the rows of files with further names from ``first`` up to ``last``."""
        return self.linked[bisect_left(self.linked, first) : bisect_left(self.linked, last)]

    def has(self, row: int, status: os.stat_result, mtime_ns: int) -> bool:
        """Return True if a file still is the one whose content the row has; ``mtime_ns`` is the row's."""
        at = row - self.first
        return (
            status.st_ino == self.inodes[at]
            and status.st_ctime_ns == self.ctimes[at]
            and status.st_mtime_ns == mtime_ns
            and status.st_dev == self.device
        )


class Base:
    """An opened earlier entry. ``known``: what is known of the targets that were surveyed; others are hashed.

    With ``trust_mtime`` a file counts as unchanged if its row is the same to the nanosecond.
    """

    def __init__(self, archive: Archive, known: dict[Target, Known], *, trust_mtime: bool = False) -> None:
        self.archive = archive
        self.index: Index = archive.index
        self.known = known
        self.trust_mtime = trust_mtime
        #: Where each frame begins in the file, and where the last one ends.
        self.offsets = self.index.frame_offsets()
        paths = self.index.paths
        rows = map(self.index.rows_of_frame, range(self.index.frame_count))
        self._begins = {paths[span.start]: span.start for span in rows if span}

    def read_frames(self, first: int, last: int, buffer: bytearray) -> bool:
        """Read the frames ``first`` up to ``last`` into the buffer; False if one is damaged or cannot be read."""
        begin = self.offsets[first]
        view = memoryview(buffer)[: self.offsets[last] - begin]
        done = 0
        try:
            while done < len(view):
                count = os.preadv(self.archive.fd, [view[done:]], begin + done)
                if not count:
                    return False
                done += count
        except OSError:
            return False
        return all(
            hashlib.sha256(view[self.offsets[frame] - begin : self.offsets[frame + 1] - begin]).digest()
            == self.index.frame_digest(frame)
            for frame in range(first, last)
        )

    def begins_frame(self, row: int) -> bool:
        """Return True if a frame begins with this member."""
        frames = self.index.frames
        return row == 0 or frames[row - 1] != frames[row]

    def last_begin(self, row: int) -> int:
        """Return the first row of the frame in which ``row`` lies."""
        return bisect_left(self.index.frames, self.index.frames[row])

    def same_frame(self, index: Index, first: int, count: int) -> int | None:
        """Return the frame of the base that holds the members ``first`` and further ``count`` - 1, with equal headers.

        None if there is none. Whether the contents are the same is another question.
        """
        base = self.index
        row = self._begins.get(index.paths[first])
        if row is None:
            return None
        frame = base.frames[row]
        if len(base.rows_of_frame(frame)) != count:
            return None
        last, end = first + count, row + count
        if (
            index.paths[first:last] != base.paths[row:end]
            or index.kinds[first:last] != base.kinds[row:end]
            or index.modes[first:last] != base.modes[row:end]
            or index.sizes[first:last] != base.sizes[row:end]
            or index.uids[first:last] != base.uids[row:end]
            or index.gids[first:last] != base.gids[row:end]
        ):
            return None
        ours, theirs = index.mtimes[first:last], base.mtimes[row:end]
        if ours != theirs and any(
            a // _SECOND != b // _SECOND for a, b in zip(ours, theirs, strict=True)
        ):  # headers have whole seconds
            return None
        links = base.kinds.count(SYMLINK, row, end) + base.kinds.count(HARDLINK, row, end)
        if links:
            before = self.link_ordinal(row)
            if index.links[len(index.links) - links :] != base.links[before : before + links]:
                return None
        if (index.sparse or base.sparse) and any(
            index.sparse.get(first + n) != base.sparse.get(row + n) for n in range(count)
        ):
            return None
        return frame

    def same_times(self, index: Index, first: int, count: int, frame: int) -> bool:
        """Return True if the members have the same times, to the nanosecond, as those of ``frame``."""
        row = self.index.rows_of_frame(frame).start
        return index.mtimes[first : first + count] == self.index.mtimes[row : row + count]

    def link_ordinal(self, row: int) -> int:
        """Return how many links come before ``row``: its place in ``links`` if it is one."""
        kinds = self.index.kinds
        return kinds.count(SYMLINK, 0, row) + kinds.count(HARDLINK, 0, row)

    def contents(self, first: int, last: int) -> bytes:
        """Return the digests of the files from row ``first`` up to ``last``."""
        kinds = self.index.kinds
        begin = 16 * kinds.count(FILE, 0, first)
        return bytes(self.index.contents[begin : begin + 16 * kinds.count(FILE, first, last)])

    def frame_contents(self, frame: int) -> bytes:
        """Return the digests of the files in a frame."""
        rows = self.index.rows_of_frame(frame)
        return self.contents(rows.start, rows.stop)


def _subtrees(names: list[bytes], rows: array[int], last: int) -> dict[bytes, tuple[int, int]]:
    found: dict[bytes, tuple[int, int]] = {}
    above: list[tuple[bytes, int]] = []
    for name, row in zip(names, rows, strict=True):
        while above and above[-1][0] and not name.startswith(above[-1][0] + b"/"):
            ended, first = above.pop()
            found[ended] = first, row
        above.append((name, row))
    for ended, first in above:
        found[ended] = first, last
    return found
