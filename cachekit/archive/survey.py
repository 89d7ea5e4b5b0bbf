"""A look at a target by its record, on all cores: which of its files still have the stat values of the record.

It reads names and stat values only. Whatever cannot be looked at counts as changed; whoever reads it later meets the
error and reports it.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cachekit.archive.base import Known
from cachekit.archive.format import DIRECTORY, FILE, HARDLINK, SYMLINK
from cachekit.archive.index import Index
from cachekit.archive.record import Record
from cachekit.model import ROOT_PREFIX, Target
from cachekit.system.files import open_to_look
from cachekit.system.workers import open_pool

__all__ = ["Expected", "survey"]

#: So many directories go to a worker in one message.
_BATCH = 128
#: Below so many rows the work is done in this process: starting workers would cost more.
_INLINE_ROWS = 4000


@dataclass(frozen=True, slots=True)
class Expected:
    """What counts as the mode of a row, for files and for directories, and whether owners must be the row's."""

    mode: int = 0o7777
    directory_mode: int = 0o7777
    owners: bool = True


@dataclass(slots=True)
class _Plan:
    """The directories of a target in the order of their rows: row (-1 for a root, which has none), first and last row
    of what lies in it directly, name; and all names together.
    """

    rows: list[int]
    begins: list[int]
    ends: list[int]
    names: list[bytes]
    all_names: frozenset[bytes]


def survey(
    record: Record,
    index: Index,
    target: Target,
    place: bytes,
    excluded: Callable[[bytes], bool] | None,
    workers: int,
    expected: Expected = Expected(),
) -> Known:
    """Look at the target at the absolute path ``place``; ``index`` is that of the record's entry.

    Names that ``excluded`` leaves out do not count as further names.
    """
    first, last = record.first, record.first + len(record.inodes)
    plan = _plan(index, target, first, last)
    known = Known(
        first,
        bytearray(last - first),
        record.inodes,
        record.ctimes,
        array("I"),
        frozenset(),
        record.device,
        array("I", [max(row, first) for row in plan.rows]),
        array("Q", bytes(8 * len(plan.rows))),
        array("I", bytes(4 * len(plan.rows))),
    )
    looker = _Looker(record, index, target, place, excluded, plan, expected)
    pool = open_pool(lambda: looker, 0 if last - first < _INLINE_ROWS else workers)
    try:
        batches = iter(range(0, len(plan.rows), _BATCH))
        running = 0
        linked: list[int] = []
        for number, begin in zip([*range(pool.count)] * 2, batches, strict=False):
            pool.send(number, begin)
            running += 1
        while running:
            for worker, (begin, bad, further, several, allocated, excluded_names) in pool.poll(wait=True):
                running -= 1
                for row in bad:
                    known.bad[row - first] |= 1
                for row in further:
                    known.bad[row - first] |= 2
                linked += several
                known.allocated[begin : begin + _BATCH] = array("Q", allocated)
                known.excluded[begin : begin + _BATCH] = array("I", excluded_names)
                following = next(batches, None)
                if following is not None:
                    pool.send(worker, following)
                    running += 1
    finally:
        pool.close()
    known.directory_names = plan.names
    known.linked = array("I", sorted(linked))
    known.linked_rows = frozenset(linked)
    return known


def _plan(index: Index, target: Target, first: int, last: int) -> _Plan:
    kinds, paths = index.kinds, index.paths
    rows = []
    row = kinds.find(DIRECTORY, first, last)
    while row >= 0:
        rows.append(row)
        row = kinds.find(DIRECTORY, row + 1, last)
    names = [paths[row] for row in rows]
    begins = [row + 1 for row in rows]
    ends = [*rows[1:], last]
    if not target.member:
        # The directory of a whole root has no member; what lies in it directly comes first.
        ends.insert(0, rows[0] if rows else last)
        rows.insert(0, -1)
        begins.insert(0, first)
        names.insert(0, b"")
    return _Plan(rows, begins, ends, names, frozenset(names))


class _Looker:
    """Handles the number of the first directory of a batch; replies (number, rows that are not as recorded, rows of
    directories with further names, rows of files with further names, allocated bytes and names left out of each
    directory).
    """

    def __init__(
        self,
        record: Record,
        index: Index,
        target: Target,
        place: bytes,
        excluded: Callable[[bytes], bool] | None,
        plan: _Plan,
        expected: Expected,
    ) -> None:
        self._record, self._index, self._place, self._plan = record, index, place, plan
        self._excluded = excluded
        self._expected = expected
        self._member = target.member
        self._prefix = len(ROOT_PREFIX[target.root])

    def handle(self, begin: Any) -> Iterator[tuple[Any, ...]]:
        count = min(_BATCH, len(self._plan.rows) - begin)
        bad: list[int] = []
        further: list[int] = []
        several: list[int] = []
        allocated, excluded = array("Q"), array("I")
        for number in range(begin, begin + count):
            blocks, left_out = self._directory(number, bad, further, several)
            allocated.append(512 * blocks)
            excluded.append(left_out)
        yield begin, bad, further, several, allocated.tobytes(), excluded.tobytes()

    def _directory(
        self, number: int, bad: list[int], further: list[int], several: list[int]
    ) -> tuple[int, int]:
        """Compare one directory and what lies in it directly. The loop runs once a file of the target."""
        plan, index, record = self._plan, self._index, self._record
        row, begin, end = plan.rows[number], plan.begins[number], plan.ends[number]
        path = plan.names[number]
        place = self._place + path[len(self._member) :] if self._member else os.path.join(self._place, path)
        try:
            fd = open_to_look(place)
        except OSError:
            bad += range(row if row >= 0 else begin, end)
            return 0, 0
        first, device = record.first, record.device
        inodes, ctimes, mtimes, sizes, kinds = (
            record.inodes,
            record.ctimes,
            index.mtimes,
            index.sizes,
            index.kinds,
        )
        sparse, excluded = index.sparse, self._excluded
        modes, uids, gids = index.modes, index.uids, index.gids
        mask, owners = self._expected.mode, self._expected.owners
        skip = len(path) + 1 if path else 0
        # As scandir gives names: to decode them all at once costs less than to encode what it gives.
        known = os.fsdecode(b"\0".join([name[skip:] for name in index.paths[begin:end]]))
        expected = dict(zip(known.split("\0"), range(begin, end), strict=True)) if begin < end else {}
        here = path + b"/" if path else b""
        inside = here[self._prefix :]
        blocks = left_out = 0
        try:
            if row >= 0:
                now = os.fstat(fd)
                if (
                    now.st_dev != device
                    or now.st_mode & 0o7777 != modes[row] & self._expected.directory_mode
                    or (owners and (now.st_uid != uids[row] or now.st_gid != gids[row]))
                    or now.st_mtime_ns != mtimes[row]
                ):
                    bad.append(row)
            with os.scandir(fd) as entries:
                for entry in entries:
                    at = expected.pop(entry.name, -1)
                    if at < 0:
                        name = os.fsencode(entry.name)
                        if here + name in plan.all_names and entry.is_dir(follow_symlinks=False):
                            continue
                        if excluded is not None and excluded(inside + name):
                            left_out += 1
                        else:
                            further.append(max(row, first))
                        continue
                    status = entry.stat(follow_symlinks=False)
                    if (
                        status.st_ino != inodes[at - first]
                        or status.st_ctime_ns != ctimes[at - first]
                        or status.st_mtime_ns != mtimes[at]
                        or status.st_dev != device
                        or (
                            kinds[at] != SYMLINK
                            and (
                                status.st_mode & 0o7777 != modes[at] & mask
                                or (status.st_size != sizes[at] and kinds[at] == FILE and at not in sparse)
                            )
                        )
                        or (owners and (status.st_uid != uids[at] or status.st_gid != gids[at]))
                    ):
                        bad.append(at)
                    elif kinds[at] == FILE:
                        blocks += status.st_blocks
                        if status.st_nlink != 1:
                            several.append(at)
                    elif kinds[at] == HARDLINK:
                        several.append(at)
        except OSError:
            bad += range(row if row >= 0 else begin, end)
        finally:
            os.close(fd)
        bad += expected.values()
        return blocks, left_out
