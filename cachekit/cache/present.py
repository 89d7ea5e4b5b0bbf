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

from cachekit.archive.content import content_digest
from cachekit.archive.format import DIRECTORY, FILE, FRAME_SIZE, HARDLINK, LINK_KINDS, SYMLINK
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
_UNREAD, _GONE = 3, 4

#: What the members of each kind are before anybody has looked.
_AT_FIRST = bytes([_UNREAD if kind == FILE else WRONG for kind in range(256)])

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
        kinds, states = index.kinds, self.states
        if self.complete and len(self.rows) == len(states):
            return kinds.count(FILE)
        return sum(1 for row in self.rows if kinds[row] == FILE and states[row] != WRONG)


def look(
    archive: Archive,
    target: Target,
    place: bytes,
    options: WriteOptions,
    workers: int,
    record: Record | None = None,
    *,
    further_names: bool = False,
) -> Presence:
    """Compare the entry's target with what is at the absolute path ``place``, by the target's record if it has one.

    A file with further names is read only with ``further_names``: else it is wrong, for to change it would change what
    they lead to.
    """
    index = archive.index
    count = len(index)
    rows = rows_of(archive, target)
    states = index.kinds.translate(_AT_FIRST)
    if len(rows) != count:
        mine = frozenset(rows)
        states = bytearray(state if row in mine else RIGHT for row, state in enumerate(states))
    presence = Presence(states, rows, array("Q", bytes(8 * count)), array("q", [UNKNOWN]) * count)
    if record is not None:
        _by_record(archive, record, target, place, options, presence, workers)
    destination = Destination(target, -1)
    _directories(index, destination, place, options, presence)
    _links_by_text(index, destination, place, options, presence)
    _by_content(archive, destination, place, options, presence, workers, further_names=further_names)
    _links_follow(index, presence)
    if _GONE in presence.states:
        presence.states = presence.states.replace(bytes([_GONE]), bytes([WRONG]))
    return presence


def rows_of(archive: Archive, target: Target) -> Sequence[int]:
    """Return the rows of a target, ascending."""
    index = archive.index
    if len(archive.seal.targets) == 1:
        return range(len(index))
    place = Destination(target, -1).place
    return [row for row, path in enumerate(index.paths) if place(path) is not None]


def _by_record(
    archive: Archive,
    record: Record,
    target: Target,
    place: bytes,
    options: WriteOptions,
    presence: Presence,
    workers: int,
) -> None:
    """Settle the rows of which the target's record tells."""
    if (record.root, record.path) != (target.root, target.path.decode("latin-1")):
        return
    index = archive.index
    same = record.index_sha256 == archive.seal.index_sha256
    theirs = index if same else record.index()
    first, last = record.first, record.first + len(record.inodes)
    if theirs is None or last > len(theirs):
        return
    expected = Expected(options.mode(0o7777), options.directory_mode(0o7777), options.same_owner)
    bad = survey(record, theirs, target, place, None, workers, expected).bad
    if same:
        presence.further = bool(bad.count(2) + bad.count(3))
        _settle(presence, first, last, record, bad, 0)
        return
    # Rows of frames that are the same in both entries correspond one by one; the others are looked up by name.
    others: list[int] = []
    for begin, end, other in _same_frames(index, theirs):
        if other is None or other < first or other + end - begin > last:
            others += range(begin, end)
        else:
            _settle(presence, begin, end, record, bad, other - first)
    for row, other in _pairs(index, theirs, record, others, options):
        _settle(presence, row, row + 1, record, bad, other - first)


def _settle(presence: Presence, begin: int, end: int, record: Record, bad: bytearray, at: int) -> None:
    """Settle the rows from ``begin`` up to ``end``, which are those from ``at`` on in the record."""
    count = end - begin
    found = bad[at : at + count]
    good = found.count(0) + found.count(2) == count
    before = b"" if good else presence.states[begin:end]
    presence.states[begin:end] = bytes(count)  # RIGHT
    presence.inodes[begin:end] = record.inodes[at : at + count]
    presence.ctimes[begin:end] = record.ctimes[at : at + count]
    if not good:
        for number, value in enumerate(found):
            if value & 1:
                presence.states[begin + number] = before[number]
                presence.ctimes[begin + number] = UNKNOWN


def _same_frames(index: Index, theirs: Index) -> Iterator[tuple[int, int, int | None]]:
    """Yield (first row, row behind the last, first row of the same frame in the other entry or None) of all frames."""
    frames = {theirs.frame_digest(frame): frame for frame in range(theirs.frame_count)}
    for frame in range(index.frame_count):
        rows = index.rows_of_frame(frame)
        if not rows:
            continue
        same = frames.get(index.frame_digest(frame))
        if (
            same is not None and index.sizes[rows.start] <= FRAME_SIZE
        ):  # else it is the first of several frames
            others = theirs.rows_of_frame(same)
            # Frames have the time in whole seconds only.
            if (
                len(others) == len(rows)
                and index.mtimes[rows.start : rows.stop] == theirs.mtimes[others.start : others.stop]
            ):
                yield rows.start, rows.stop, others.start
                continue
        yield rows.start, rows.stop, None


def _pairs(
    index: Index, theirs: Index, record: Record, rows: Sequence[int], options: WriteOptions
) -> Iterator[tuple[int, int]]:
    """Yield (row, row of the record's entry) of members that are the same in both."""
    if not rows:
        return
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


def _directories(
    index: Index, destination: Destination, place: bytes, options: WriteOptions, presence: Presence
) -> None:
    """Look at the directories of which no record tells.

    What is reached only through a link, or something else in a directory's place, is not in the target.
    """
    states = presence.states
    gone: set[bytes] = set()
    if not any(states[row] == WRONG and index.kinds[row] == DIRECTORY for row in presence.rows):
        return
    for row in presence.rows:
        path = index.paths[row]
        if gone and path.rpartition(b"/")[0] in gone and path != destination.target.member:
            states[row] = _GONE
            if index.kinds[row] == DIRECTORY:
                gone.add(path)
        elif states[row] == WRONG and index.kinds[row] == DIRECTORY:
            try:
                info = os.lstat(_place_of(destination, place, path))
            except OSError:
                gone.add(path)
                continue
            if not stat.S_ISDIR(info.st_mode):
                gone.add(path)
            elif (
                stat.S_IMODE(info.st_mode) == options.directory_mode(index.modes[row])
                and info.st_mtime_ns == index.mtimes[row]
                and (
                    not options.same_owner or (info.st_uid, info.st_gid) == (index.uids[row], index.gids[row])
                )
            ):
                states[row] = RIGHT


def _links_by_text(
    index: Index, destination: Destination, place: bytes, options: WriteOptions, presence: Presence
) -> None:
    """Call those symlinks right that say what they shall, and have the time (and owner) that they shall have."""
    if SYMLINK not in index.kinds:
        return
    links = iter(index.links)
    for row, kind in enumerate(index.kinds):
        if kind not in LINK_KINDS:
            continue
        text = next(links)
        if kind != SYMLINK or presence.states[row] != WRONG:
            continue
        path = _place_of(destination, place, index.paths[row])
        begun = now_ns()
        try:
            info = os.lstat(path)
            if not stat.S_ISLNK(info.st_mode) or os.readlink(path) != text:
                continue
        except OSError:
            continue
        owned = (info.st_uid, info.st_gid) == (index.uids[row], index.gids[row])
        if info.st_mtime_ns == index.mtimes[row] and (owned or not options.same_owner):
            presence.states[row] = RIGHT
            if settled(info.st_ctime_ns, begun):
                presence.inodes[row], presence.ctimes[row] = info.st_ino, info.st_ctime_ns


def _place_of(destination: Destination, place: bytes, path: bytes) -> bytes:
    staged = destination.place(path)
    assert staged is not None
    relative = staged[len(STAGED) + 1 :]
    return os.path.join(place, relative) if relative else place


def _links_follow(index: Index, presence: Presence) -> None:
    """A further name is right only if it is one of the file, and the file is right: written anew, it is another file.

    That the name has the content is not enough: its file may have moved away with its directory.
    """
    if HARDLINK not in index.kinds:
        return
    states = presence.states
    # Of this target only: the names of others are nobody's question here.
    files = {
        index.paths[row]: presence.inodes[row] if states[row] == RIGHT else None
        for row in presence.rows
        if index.kinds[row] == FILE
    }
    links = iter(index.links)
    for row, kind in enumerate(index.kinds):
        if kind in LINK_KINDS:
            link = next(links)
            if (
                kind == HARDLINK
                and states[row] == RIGHT
                and link in files
                and presence.inodes[row] != files[link]
            ):
                states[row] = WRONG


def _by_content(
    archive: Archive,
    destination: Destination,
    place: bytes,
    options: WriteOptions,
    presence: Presence,
    workers: int,
    *,
    further_names: bool,
) -> None:
    """Read the files of which no record tells, on all cores."""
    unread = [row for row in presence.rows if presence.states[row] == _UNREAD]
    reader = _Reader(archive, destination, place, options, unread, further_names=further_names)
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
        self,
        archive: Archive,
        destination: Destination,
        place: bytes,
        options: WriteOptions,
        rows: list[int],
        *,
        further_names: bool,
    ) -> None:
        self._index = archive.index
        self._destination, self._place, self._options, self._rows = destination, place, options, rows
        self._further_names = further_names
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
            if not stat.S_ISREG(info.st_mode) or info.st_size != index.sizes[row]:
                return nothing
            if info.st_nlink != 1 and not self._further_names:
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
            # Who does not own a file may not change it, but may put one of their own in its place.
            return (ATTRIBUTES if os.geteuid() in {0, info.st_uid} else WRONG), 0, UNKNOWN
        return RIGHT, info.st_ino, info.st_ctime_ns if settled(info.st_ctime_ns, begun) else UNKNOWN
