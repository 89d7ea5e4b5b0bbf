"""The last rungs of the ladder, on all cores: check every frame and file, and extract into staging on the way."""

from __future__ import annotations

import os
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from xxhash import xxh3_128_digest

from cachekit.archive.check import check_archive
from cachekit.archive.format import DIRECTORY, FILE, FRAME_SIZE, HARDLINK, LINK_KINDS, parts
from cachekit.archive.read import Archive
from cachekit.archive.record import UNKNOWN
from cachekit.archive.unpack import Destination, Unpacker, WriteOptions
from cachekit.errors import Damaged
from cachekit.model import STAGED
from cachekit.system.files import open_directory, reachable
from cachekit.system.workers import open_pool

__all__ = [
    "DirectoryFacts",
    "Noted",
    "Space",
    "check_contents",
    "check_frames",
    "directory_facts",
    "extract",
    "needed_space",
]

Progress = Callable[[int, int, int], None]

#: So many frames go to a worker at once: fewer messages, and the members of a directory mostly with one worker.
_BATCH = 4
_INLINE_BYTES = 4 << 20


class _FrameChecker:
    """Handles ``(first, last)``: the digest of each frame, nothing else."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def handle(self, message: Any) -> list[tuple[Any, ...]]:
        first, last = message
        size = sum(len(self._archive.frame(frame)) for frame in range(first, last))
        return [("done", last - first, size)]


def check_frames(archive: Archive, workers: int, progress: Progress | None = None) -> None:
    """Check the sha256 of every data frame, at the speed of sha256 on all cores. Raises Damaged, Unreadable."""
    small = archive.size <= _INLINE_BYTES
    _run(
        archive,
        lambda: _FrameChecker(archive),
        0 if small else workers,
        None,
        progress,
        archive.seal.data_bytes,
    )


def check_contents(archive: Archive, workers: int, progress: Progress | None = None) -> None:
    """Climb the whole ladder: index rules, then every frame, header and file digest. Raises Refused, Unreadable."""
    check_archive(archive)
    _unpack(archive, [], WriteOptions(), workers, progress)


def extract(
    archive: Archive,
    destinations: Sequence[Destination],
    options: WriteOptions,
    workers: int,
    progress: Progress | None = None,
    frames: Sequence[int] | None = None,
    noted: Noted | None = None,
) -> None:
    """Check the whole entry and write the destinations' members into their staging directories.

    ``frames`` limits both to some frames, ascending: for callers that need no more of the entry, or have checked it
    before. ``noted`` is filled with the stat values of the files and links that were written.

    Directories are left with mode 0700: their modes and times come after the commit (``directory_facts``). Raises
    Refused (staging then holds a part and must be removed), Unreadable, OSError of the target filesystem.
    """
    check_archive(archive)
    if noted is not None:
        options = replace(options, note=True)
    _unpack(archive, list(destinations), options, workers, progress, frames, noted)
    _finish_large_files(archive, destinations, options, noted)
    _make_links(archive, destinations, options, noted)


def _unpack(
    archive: Archive,
    destinations: list[Destination],
    options: WriteOptions,
    workers: int,
    progress: Progress | None,
    frames: Sequence[int] | None = None,
    noted: Noted | None = None,
) -> None:
    index = archive.index
    digests: dict[int, dict[int, bytes]] = {}
    chosen = range(index.frame_count) if frames is None else frames
    total = sum(index.raw_sizes[frame] for frame in chosen)
    count = 0 if total <= _INLINE_BYTES else workers
    _run(
        archive,
        lambda: Unpacker(archive, destinations, options),
        count,
        digests,
        progress,
        total,
        chosen,
        noted,
    )
    among = chosen if isinstance(chosen, range) else frozenset(chosen)
    for row, size in enumerate(index.sizes):
        if size > FRAME_SIZE and index.frames[row] in among:
            found = digests.get(row, {})
            joined = b"".join(found.get(part, b"") for part in range(parts(size)))
            ordinal = 16 * index.kinds.count(FILE, 0, row)
            if xxh3_128_digest(joined) != index.contents[ordinal : ordinal + 16]:
                raise Damaged(
                    "a large file's content is not the one in the index",
                    path=archive.path,
                    rung="contents",
                    frame=index.frames[row],
                    member=index.paths[row],
                )


def _run(
    archive: Archive,
    make_handler: Callable[[], Any],
    workers: int,
    digests: dict[int, dict[int, bytes]] | None,
    progress: Progress | None,
    total: int,
    frames: Sequence[int] | None = None,
    noted: Noted | None = None,
) -> None:
    """Give frames (all, if none are named) to a pool in batches, in order, and collect the replies."""
    if frames is None:
        frames = range(archive.index.frame_count)
    batch = max(1, min(_BATCH, len(frames) // (4 * max(1, workers))))
    queue = deque(_runs(frames, batch))
    pool = open_pool(make_handler, workers)
    try:
        running = done = 0
        members = len(archive.index)
        for worker in range(pool.count):
            for _ in range(2 if workers else 1):  # one at work and one waiting, so that no worker ever idles
                if queue:
                    pool.send(worker, queue.popleft())
                    running += 1
        while running:
            for worker, reply in pool.poll(wait=True):
                if reply[0] == "noted":
                    if noted is not None:
                        noted.add(*reply[1:])
                    continue
                if reply[0] == "part":
                    assert digests is not None
                    digests.setdefault(reply[1], {})[reply[2]] = reply[3]
                    continue
                running -= 1
                done += reply[2]
                if queue:
                    pool.send(worker, queue.popleft())
                    running += 1
                if progress is not None:
                    progress(done, total, members)
    finally:
        pool.close()


def _runs(frames: Sequence[int], batch: int) -> Iterator[tuple[int, int]]:
    """Yield (first, one past the last) of runs of neighbours, at most ``batch`` long."""
    begin = end = -1
    for frame in frames:
        if frame != end or end - begin >= batch:
            if begin >= 0:
                yield begin, end
            begin = frame
        end = frame + 1
    if begin >= 0:
        yield begin, end


class Noted:
    """Inode and ctime of what was written, by row; ctime is ``UNKNOWN`` for other rows."""

    def __init__(self, rows: int) -> None:
        self.inodes = array("Q", bytes(8 * rows))
        self.ctimes = array("q", [UNKNOWN]) * rows

    def add(self, rows: bytes, inodes: bytes, ctimes: bytes) -> None:
        """Take over what a worker noted."""
        numbers = array("I", rows)
        for row, inode, ctime in zip(numbers, array("Q", inodes), array("q", ctimes), strict=True):
            self.inodes[row] = inode
            self.ctimes[row] = ctime

    def put(self, row: int, status: os.stat_result) -> None:
        """Note one row."""
        self.inodes[row], self.ctimes[row] = status.st_ino, status.st_ctime_ns


def _placed(destinations: Sequence[Destination], path: bytes) -> tuple[Destination, bytes] | None:
    for destination in destinations:
        place = destination.place(path)
        if place is not None:
            return destination, place
    return None


def _finish_large_files(
    archive: Archive, destinations: Sequence[Destination], options: WriteOptions, noted: Noted | None
) -> None:
    """Length, mode and times of the files that several workers wrote together."""
    index = archive.index
    for row, size in enumerate(index.sizes):
        if size <= FRAME_SIZE or (options.wanted is not None and row not in options.wanted):
            continue
        placed = _placed(destinations, index.paths[row])
        if placed is None:
            continue
        destination, place = placed
        directory, _, name = place.rpartition(b"/")
        directory_fd = (
            open_directory(directory, dir_fd=destination.fd) if directory else os.dup(destination.fd)
        )
        try:
            fd = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
        finally:
            os.close(directory_fd)
        try:
            os.ftruncate(fd, index.length(row))
            if options.same_owner:
                os.fchown(fd, index.uids[row], index.gids[row])
            os.fchmod(fd, options.mode(index.modes[row]))
            os.utime(fd, ns=(options.atime_ns, index.mtimes[row]))
            if noted is not None:
                noted.put(row, os.fstat(fd))
        finally:
            os.close(fd)


def _make_links(
    archive: Archive, destinations: Sequence[Destination], options: WriteOptions, noted: Noted | None
) -> None:
    """Symlinks, then hard links: no file is ever written through a link, for all files are there already."""
    index = archive.index
    rows = [row for row, kind in enumerate(index.kinds) if kind in LINK_KINDS] if index.links else []
    linked = sorted(zip(rows, index.links, strict=True), key=lambda pair: index.kinds[pair[0]] == HARDLINK)
    groups: dict[bytes, list[int]] = {}
    if noted is not None and HARDLINK in index.kinds:
        sources = {link for row, link in linked if index.kinds[row] == HARDLINK}
        groups = {path: [row] for row, path in enumerate(index.paths) if path in sources}
    for row, link in linked:
        if options.wanted is not None and row not in options.wanted:
            continue
        placed = _placed(destinations, index.paths[row])
        if placed is None:
            continue
        destination, place = placed
        if index.kinds[row] == HARDLINK:
            source = destination.place(link)
            assert source is not None  # check_members: a hard link stays within its target
            with (
                reachable(source, destination.fd) as (old_fd, old),
                reachable(place, destination.fd) as (fd, name),
            ):
                os.link(old, name, src_dir_fd=old_fd, dst_dir_fd=fd, follow_symlinks=False)
                if noted is not None:  # the file's ctime is another one now, for its first name too
                    status = os.lstat(name, dir_fd=fd)
                    groups.setdefault(link, []).append(row)
                    for other in groups[link]:
                        noted.put(other, status)
            continue
        with reachable(place, destination.fd) as (fd, name):
            os.symlink(link, name, dir_fd=fd)
            if options.same_owner:
                os.chown(name, index.uids[row], index.gids[row], dir_fd=fd, follow_symlinks=False)
            os.utime(name, ns=(options.atime_ns, index.mtimes[row]), dir_fd=fd, follow_symlinks=False)
            if noted is not None:
                noted.put(row, os.lstat(name, dir_fd=fd))


#: A directory's path relative to its target (b"" for the target itself), mode, mtime_ns, uid, gid.
DirectoryFacts = tuple[bytes, int, int, int, int]


def directory_facts(
    archive: Archive, destination: Destination, options: WriteOptions
) -> list[DirectoryFacts]:
    """Return what a target's directories shall be once they are in place, deepest first."""
    index = archive.index
    facts: list[DirectoryFacts] = []
    for row, kind in enumerate(index.kinds):
        if kind == DIRECTORY and (place := destination.place(index.paths[row])) is not None:
            relative = place[len(STAGED) + 1 :]
            mode = options.directory_mode(index.modes[row])
            facts.append((relative, mode, index.mtimes[row], index.uids[row], index.gids[row]))
    facts.reverse()
    return facts


@dataclass(frozen=True, slots=True)
class Space:
    """What restoring takes: bytes in whole blocks, and inodes."""

    bytes: int
    inodes: int


def needed_space(archive: Archive, destination: Destination, block_size: int) -> Space:
    """Return what a target's tree will take on a filesystem with blocks of ``block_size`` bytes.

    Blocks, not bytes: a small file takes a whole block, a directory at least one, a sparse file only its regions.
    """
    index = archive.index
    blocks = inodes = 0
    whole = block_size - 1
    for row, (path, kind, size) in enumerate(zip(index.paths, index.kinds, index.sizes, strict=True)):
        if destination.place(path) is None:
            continue
        if kind == FILE:
            blocks += (size + whole) // block_size
            inodes += 1
        elif kind != HARDLINK:
            blocks += kind == DIRECTORY
            inodes += 1
        if row in index.sparse:
            blocks += len(index.sparse[row][1])
    return Space(blocks * block_size, inodes)
