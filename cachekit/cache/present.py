"""What of an entry a target holds already: by the target's record where there is one, else by reading and hashing.

Never by size and time alone. Looking changes nothing.
"""

from __future__ import annotations

import os
import stat
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cachekit.archive import record as records
from cachekit.archive.content import content_digest
from cachekit.archive.format import DIRECTORY, FILE, HARDLINK, LINK_KINDS
from cachekit.archive.index import Index
from cachekit.archive.read import Archive
from cachekit.archive.record import UNKNOWN, Record, settled
from cachekit.archive.survey import Expected, survey
from cachekit.archive.unpack import Destination, WriteOptions
from cachekit.model import STAGED, Target
from cachekit.system.clock import now_ns
from cachekit.system.workers import open_pool

__all__ = ["ATTRIBUTES", "RIGHT", "WRONG", "Presence", "look", "rows_of"]

#: What a member is in the target: right, a file with the right content but another mode, owner or time, or neither.
RIGHT, ATTRIBUTES, WRONG = range(3)
_UNREAD = 3

#: So many rows go to a worker in one message.
_BATCH = 256
_INLINE_ROWS = 1000


@dataclass(slots=True)
class Presence:
    """``states`` has a value for each row of the entry's index (``RIGHT`` for those of other targets).

    ``inodes`` and ``ctimes`` are those of right files whose content is known, for the next record; ``further`` is False
    if the target certainly has no names but those of the entry.
    """

    states: bytearray
    rows: Sequence[int]
    inodes: array[int]
    ctimes: array[int]
    further: bool = True

    @property
    def complete(self) -> bool:
        """True if nothing of the entry has to be written."""
        return self.states.count(RIGHT) == len(self.states)

    def files(self, index: Index) -> int:
        """Return how many files of the target need not be written."""
        return sum(1 for row in self.rows if index.kinds[row] == FILE and self.states[row] != WRONG)


def look(archive: Archive, target: Target, place: bytes, options: WriteOptions, workers: int) -> Presence:
    """Compare the entry's target with what is at the absolute path ``place``."""
    index = archive.index
    count = len(index)
    destination = Destination(target, -1)
    rows = rows_of(index, destination)
    presence = Presence(bytearray(count), rows, array("Q", bytes(8 * count)), array("q", [UNKNOWN]) * count)
    for row in rows:
        presence.states[row] = _UNREAD if index.kinds[row] == FILE else WRONG
    _by_record(archive, target, place, options, presence, workers)
    _nothing_below(index, destination, place, presence)
    _by_content(archive, destination, place, options, presence, workers)
    _links_follow(index, presence)
    return presence


def rows_of(index: Index, destination: Destination) -> Sequence[int]:
    """Return the rows of a target, ascending."""
    return [row for row, path in enumerate(index.paths) if destination.place(path) is not None]


def _by_record(
    archive: Archive, target: Target, place: bytes, options: WriteOptions, presence: Presence, workers: int
) -> None:
    """Settle the rows of which the target's record tells."""
    record = records.load(place)
    if record is None or (record.root, record.path) != (target.root, target.path.decode("latin-1")):
        return
    index = archive.index
    same = record.identity == archive.seal.identity
    theirs = index if same else record.index()
    last = record.first + len(record.inodes)
    if theirs is None or last > len(theirs):
        return
    expected = Expected(options.mode(0o7777), options.directory_mode(0o7777), options.same_owner)
    known = survey(record, theirs, target, place, None, workers, expected)
    if same:
        archive.members_checked = True
        presence.further = bool(known.bad.count(2) + known.bad.count(3))
        pairs: Iterator[tuple[int, int]] = ((row, row) for row in range(record.first, last))
    else:
        pairs = _pairs(index, theirs, record, presence.rows, options)
    states, bad, first = presence.states, known.bad, record.first
    inodes, ctimes, kinds = presence.inodes, presence.ctimes, index.kinds
    for row, other in pairs:
        at = other - first
        if bad[at] & 1:
            continue
        states[row] = RIGHT
        if kinds[row] != DIRECTORY:
            inodes[row], ctimes[row] = record.inodes[at], record.ctimes[at]


def _pairs(
    index: Index, theirs: Index, record: Record, rows: Sequence[int], options: WriteOptions
) -> Iterator[tuple[int, int]]:
    """Yield (row, row of the record's entry) of members that are the same in both."""
    first, last = record.first, record.first + len(record.inodes)
    by_path = dict(zip(theirs.paths[first:last], range(first, last), strict=True))
    files, their_files = index.ordinals(frozenset({FILE})), theirs.ordinals(frozenset({FILE}))
    links, their_links = index.ordinals(LINK_KINDS), theirs.ordinals(LINK_KINDS)
    contents, their_contents = index.contents, theirs.contents
    kinds, their_kinds, paths = index.kinds, theirs.kinds, index.paths
    sizes, their_sizes, mtimes, their_mtimes = index.sizes, theirs.sizes, index.mtimes, theirs.mtimes
    modes, their_modes = index.modes, theirs.modes
    for row in rows:
        other = by_path.get(paths[row])
        if other is None or kinds[row] != their_kinds[other]:
            continue
        kind = kinds[row]
        if kind == FILE:
            ordinal, theirs_at = 16 * files[row], 16 * their_files[other]
            if (
                sizes[row] != their_sizes[other]
                or contents[ordinal : ordinal + 16] != their_contents[theirs_at : theirs_at + 16]
                or index.sparse.get(row) != theirs.sparse.get(other)
            ):
                continue
        elif kind != DIRECTORY and index.links[links[row]] != theirs.links[their_links[other]]:
            continue
        if mtimes[row] != their_mtimes[other] and kind != HARDLINK:
            continue
        if kind in {FILE, DIRECTORY} and modes[row] != their_modes[other]:
            continue
        if options.same_owner and (index.uids[row], index.gids[row]) != (
            theirs.uids[other],
            theirs.gids[other],
        ):
            continue
        yield row, other


def _nothing_below(index: Index, destination: Destination, place: bytes, presence: Presence) -> None:
    """Call wrong what is reached only through a link or something else in a directory's place."""
    states = presence.states
    gone: set[bytes] = set()
    for row in presence.rows:
        path = index.paths[row]
        if gone and path.rpartition(b"/")[0] in gone and path != destination.target.member:
            states[row] = WRONG
            if index.kinds[row] == DIRECTORY:
                gone.add(path)
        elif states[row] == WRONG and index.kinds[row] == DIRECTORY:
            try:
                real = stat.S_ISDIR(os.lstat(_place_of(destination, place, path)).st_mode)
            except OSError:
                real = False
            if not real:
                gone.add(path)


def _place_of(destination: Destination, place: bytes, path: bytes) -> bytes:
    staged = destination.place(path)
    assert staged is not None
    relative = staged[len(STAGED) + 1 :]
    return os.path.join(place, relative) if relative else place


def _links_follow(index: Index, presence: Presence) -> None:
    """A further name is right only if the file is: a file that is written anew is another file."""
    if HARDLINK not in index.kinds:
        return
    states = presence.states
    wrong = {index.paths[row] for row in presence.rows if index.kinds[row] == FILE and states[row] == WRONG}
    links = iter(index.links)
    for row, kind in enumerate(index.kinds):
        if kind in LINK_KINDS:
            link = next(links)
            if kind == HARDLINK and link in wrong and states[row] == RIGHT:
                states[row] = WRONG


def _by_content(
    archive: Archive,
    destination: Destination,
    place: bytes,
    options: WriteOptions,
    presence: Presence,
    workers: int,
) -> None:
    """Read the files of which no record tells, on all cores."""
    unread = [row for row in presence.rows if presence.states[row] == _UNREAD]
    reader = _Reader(archive, destination, place, options, unread)
    pool = open_pool(lambda: reader, 0 if len(unread) < _INLINE_ROWS else workers)
    try:
        batches = iter(range(0, len(unread), _BATCH))
        running = 0
        for number, begin in zip([*range(pool.count)] * 2, batches, strict=False):
            pool.send(number, begin)
            running += 1
        while running:
            for worker, (begin, states, inodes, ctimes) in pool.poll(wait=True):
                running -= 1
                found = zip(unread[begin:], states, array("Q", inodes), array("q", ctimes), strict=False)
                for row, state, inode, ctime in found:
                    presence.states[row] = state
                    presence.inodes[row], presence.ctimes[row] = inode, ctime
                following = next(batches, None)
                if following is not None:
                    pool.send(worker, following)
                    running += 1
    finally:
        pool.close()


class _Reader:
    """Handles the number of the first row of a batch; replies (number, states, inodes, ctimes)."""

    def __init__(
        self, archive: Archive, destination: Destination, place: bytes, options: WriteOptions, rows: list[int]
    ) -> None:
        self._index = archive.index
        self._destination, self._place, self._options, self._rows = destination, place, options, rows
        self._ordinals = archive.index.ordinals(frozenset({FILE})) if rows else array("I")

    def handle(self, begin: Any) -> Iterator[tuple[Any, ...]]:
        states, inodes, ctimes = bytearray(), array("Q"), array("q")
        for row in self._rows[begin : begin + _BATCH]:
            state, inode, ctime = self._file(row)
            states.append(state)
            inodes.append(inode)
            ctimes.append(ctime)
        yield begin, bytes(states), inodes.tobytes(), ctimes.tobytes()

    def _file(self, row: int) -> tuple[int, int, int]:
        index, options = self._index, self._options
        nothing = WRONG, 0, UNKNOWN
        if row in index.sparse:
            return nothing
        path = _place_of(self._destination, self._place, index.paths[row])
        begun = now_ns()
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return nothing
        try:
            info = os.fstat(fd)
            # A file with further names would change under them too.
            if not stat.S_ISREG(info.st_mode) or info.st_size != index.sizes[row] or info.st_nlink != 1:
                return nothing
            ordinal = 16 * self._ordinals[row]
            if content_digest(fd, info.st_size) != index.contents[ordinal : ordinal + 16]:
                return nothing
        except OSError:
            return nothing
        finally:
            os.close(fd)
        if (
            stat.S_IMODE(info.st_mode) != options.mode(index.modes[row])
            or info.st_mtime_ns != index.mtimes[row]
            or (options.same_owner and (info.st_uid, info.st_gid) != (index.uids[row], index.gids[row]))
        ):
            return ATTRIBUTES, 0, UNKNOWN
        return RIGHT, info.st_ino, info.st_ctime_ns if settled(info.st_ctime_ns, begun) else UNKNOWN
