"""Writing an entry: walk, let workers pack frames, keep their order, then index, seal and seek table."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from xxhash import xxh3_128_digest

from cachekit.archive.format import LINK_KINDS, parts
from cachekit.archive.index import member_bytes
from cachekit.archive.layout import COPY_JOB, FRAME_JOB
from cachekit.archive.pack import PACKED, ROTTEN, WRITTEN, Packer
from cachekit.archive.seal import Seal
from cachekit.archive.tail import Output, write_tail
from cachekit.archive.walk import Walk
from cachekit.errors import SourceChanged
from cachekit.model import ROOT_PREFIX
from cachekit.system.files import open_directory
from cachekit.system.steps import step
from cachekit.system.workers import Pool, open_pool, pack_message
from cachekit.trust import ANYONE, Trust

__all__ = ["BaseRotten", "FileChanged", "Progress", "Written", "write_entry"]

#: Compressed frames that may wait in the workers' memory, all together: what they pack while the walk still runs. A
#: worker takes memory itself, so more of them leave less (the whole save stays below 160 MiB, see docs/benchmarks.md).
_WAITING_BYTES = 48 << 20
_WAITING_BYTES_A_WORKER = 6 << 20
#: Below so many bytes of content the work is done in this process: starting workers would cost more.
_INLINE_BYTES = 4 << 20
#: So many bytes of the base are copied by one message; a frame that is larger by itself.
_COPY_BYTES = 4 << 20

#: Called now and then with (bytes read, bytes of content in all or 0 while unknown, members).
Progress = Callable[[int, int, int], None]


class FileChanged(SourceChanged):
    """A file kept changing; ``member`` is its name in the archive, to be left out by a further attempt."""

    @property
    def member(self) -> bytes:
        return self.path if isinstance(self.path, bytes) else os.fsencode(self.path or "")


class BaseRotten(Exception):
    """A frame of the base is not what its index says, or cannot be read: without it, then."""


@dataclass(slots=True)
class Written:
    """What was written. ``dropped``: members that vanished or kept changing, with the reason.

    ``copied_frames`` and ``copied_bytes`` (of the archive) were taken over from the base; ``packed_index`` is the index
    as it is in the entry.
    """

    seal: Seal
    archive_bytes: int
    dropped: list[tuple[bytes, str]] = field(default_factory=list)
    copied_frames: int = 0
    copied_bytes: int = 0
    packed_index: bytes = b""
    phases: dict[str, float] = field(default_factory=dict)


def write_entry(
    walk: Walk,
    output: Output,
    *,
    level: int,
    workers: int,
    skip_changed: bool,
    describe: Callable[[Walk], Seal],
    before_writing: Callable[[Walk], None],
    progress: Progress | None = None,
    trust: Trust = ANYONE,
) -> Written:
    """Write the entry for ``walk`` to ``output``, durable but not published, signed if ``trust`` has a key.

    ``before_writing`` is called when the walk is complete, before the first byte: it reserves space, or raises to
    refuse. ``describe`` then gives the seal's part that does not depend on the bytes written.

    With a base in the walk, frames that are known or found to be the same are copied from it; the result is byte for
    byte the same as without (if level and zstd are the base's).

    Raises BaseRotten if a frame to be copied is damaged or cannot be read, FileChanged if a file is not the same twice
    (with ``skip_changed`` only for a file that has hard links or is cut into frames: leave it out and try again),
    SourceUnreadable, and OSError of the output.
    """
    clock = time.perf_counter
    begin = clock()
    packing = _Packing(walk, output, level, workers, progress)
    try:
        dropped = packing.run(before_writing, skip_changed=skip_changed)
    finally:
        packing.close()
    step("save.frames-written")
    index = walk.index
    phases = dict(packing.phases)

    mark = clock()
    seal = describe(walk)
    seal.allocated_bytes = walk.allocated_bytes
    seal.skipped = dict(walk.skipped)
    base = None if walk.base is None else walk.base.archive
    position, packed_index = write_tail(
        index, seal, output, packing.position, level=level, trust=trust, base=base
    )
    step("save.tail-written")
    phases["index"] = clock() - mark
    mark = clock()
    output.finish(position)
    step("save.synced")
    phases["fsync"] = clock() - mark
    phases["write"] = clock() - begin
    return Written(seal, position, dropped, packing.copied_frames, packing.copied_bytes, packed_index, phases)


class _Packing:
    """Jobs to workers, frames into order, digests into the index."""

    def __init__(
        self, walk: Walk, output: Output, level: int, workers: int, progress: Progress | None
    ) -> None:
        self.position = 0
        self.phases: dict[str, float] = {}
        self._walk = walk
        self._index = walk.index
        self._progress = progress
        self._level = level
        self._workers = workers
        self._out_fd = output.fd
        self._root_fds: list[int] = []
        self._pool: Pool | None = None
        self.copied_frames = 0
        self.copied_bytes = 0
        self._base = walk.base
        self._copier = 0
        self._queue: deque[tuple[int, bytes]] = deque()
        self._idle: deque[int] = deque()
        self._results: dict[int, tuple[int, tuple[Any, ...]]] = {}
        # Of each job not yet placed: kind, members or part, and which frames of the base.
        self._shapes: deque[tuple[int, int, int, int]] = deque()
        self._placed = 0
        self._row = 0
        self._may_write = False
        self._unwritten = 0
        self._waiting_bytes = 0
        self._waiting_limit = max(8 << 20, _WAITING_BYTES - _WAITING_BYTES_A_WORKER * workers)
        self._part_digests: list[bytes] = []
        self._dropped: list[tuple[int, str]] = []
        self._done_bytes = 0
        self._total_bytes = 0

    def _start(self) -> Pool:
        import zstandard  # noqa: F401 - before the fork, lest every worker loads it

        roots = self._walk.roots
        used = {target.root for target in self._walk.targets}
        self._root_fds = [
            open_directory(roots.directory(name), follow=True) if name in used else -1 for name in ROOT_PREFIX
        ]
        fds, out_fd, level, base = self._root_fds, self._out_fd, self._level, self._base
        pool = open_pool(lambda: Packer(fds, out_fd, level, base), self._workers)
        self._idle.extend(range(pool.count))
        self._pool = pool
        return pool

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
        for fd in self._root_fds:
            if fd >= 0:
                os.close(fd)

    def run(self, before_writing: Callable[[Walk], None], *, skip_changed: bool) -> list[tuple[bytes, str]]:
        mark = time.perf_counter()
        pool: Pool | None = None
        for sequence, job in enumerate(self._walk.jobs()):
            if job[0] == COPY_JOB:
                self._shapes.append((job[0], job[1], job[2], job[3]))
            else:
                self._queue.append((sequence, pack_message(("pack", sequence, job))))
                self._shapes.append((job[0], job[1], 0, 0))
            if pool is None and (sequence >= 2 or self._workers == 0):
                pool = self._start()
            if pool is not None:
                self._pump(pool, wait=False)
                if self._progress is not None:
                    self._progress(self._done_bytes, 0, len(self._index))
        self.phases["walk"] = time.perf_counter() - mark
        step("save.walked")
        self._total_bytes = sum(self._index.sizes)
        before_writing(self._walk)
        step("save.reserved")
        self._may_write = True
        mark = time.perf_counter()
        if pool is None:
            if self._total_bytes <= _INLINE_BYTES:
                self._workers = 0
            pool = self._start()
        self._place(pool)
        while self._queue or self._shapes or self._unwritten:
            self._pump(pool, wait=True)
            if self._progress is not None:
                self._progress(self._done_bytes, self._total_bytes, len(self._index))
        self.phases["pack"] = time.perf_counter() - mark
        return self._drop_rows(skip_changed=skip_changed)

    def _pump(self, pool: Pool, *, wait: bool) -> None:
        self._dispatch(pool)
        for worker, reply in pool.poll(wait=wait):
            if reply[0] == PACKED:
                self._results[reply[1]] = worker, reply
                self._waiting_bytes += reply[2]
                self._idle.append(worker)
            elif reply[0] == WRITTEN:
                self._unwritten -= 1
                step("save.first-frame")
            elif reply[0] == ROTTEN:
                raise BaseRotten
            else:
                raise FileChanged(f"a file {reply[2]} while it was read", path=reply[1])
        self._place(pool)
        self._dispatch(pool)

    def _dispatch(self, pool: Pool) -> None:
        while self._idle and self._queue:
            # The frame that everybody waits for is never held back: without it nothing would move again.
            if self._waiting_bytes > self._waiting_limit and (
                self._queue[0][0] != self._placed or not self._may_write
            ):
                return
            pool.send_packed(self._idle.popleft(), self._queue.popleft()[1])

    def _place(self, pool: Pool) -> None:
        """Give every frame whose predecessors are known its place in the file, and the index its digests."""
        if not self._may_write:
            return
        index = self._index
        while self._shapes:
            if self._shapes[0][0] == COPY_JOB:
                self._copy(pool, *self._shapes.popleft()[1:])
                continue
            if self._placed not in self._results:
                return
            worker, reply = self._results.pop(self._placed)
            _, sequence, size, raw_size, digest, contents, changes, copied = reply
            if copied:
                self.copied_frames += 1
                self.copied_bytes += size
            pool.send(worker, ("write", sequence, self.position))
            self._unwritten += 1
            self._waiting_bytes -= size
            self._placed += 1
            self.position += size
            index.frame_sizes.append(size)
            index.raw_sizes.append(raw_size)
            index.frame_digests += digest
            self._done_bytes += raw_size
            kind, number, _, _ = self._shapes.popleft()
            if kind == FRAME_JOB:
                index.contents += contents
                if changes:
                    self._apply(changes, number)
                self._row += number
            else:
                self._part_digests.append(contents)
                if len(self._part_digests) == parts(index.sizes[self._row]):
                    index.contents += xxh3_128_digest(b"".join(self._part_digests))
                    self._part_digests = []
                    self._row += 1

    def _copy(self, pool: Pool, members: int, first: int, last: int) -> None:
        """Let workers copy frames of the base to the next place; sizes and digests are known."""
        base, index = self._base, self._index
        assert base is not None
        offsets = base.offsets
        theirs = base.index
        index.frame_sizes += theirs.frame_sizes[first:last]
        index.raw_sizes += theirs.raw_sizes[first:last]
        index.frame_digests += theirs.frame_digests[32 * first : 32 * last]
        row = theirs.rows_of_frame(first).start
        index.contents += base.contents(row, row + members)
        begin = first
        for frame in range(first, last):
            if frame + 1 == last or offsets[frame + 2] - offsets[begin] > _COPY_BYTES:
                place = self.position + offsets[begin] - offsets[first]
                pool.send(self._copier, ("copy", self._placed, (begin, frame + 1, place)))
                self._copier = (self._copier + 1) % pool.count
                self._unwritten += 1
                begin = frame + 1
        size = offsets[last] - offsets[first]
        self.position += size
        self.copied_frames += last - first
        self.copied_bytes += size
        self._placed += 1
        self._row += members
        self._done_bytes += sum(theirs.raw_sizes[first:last])

    def _apply(self, changes: list[tuple[int, Any, str]], number: int) -> None:
        """Bring the rows of the frame just placed up to what the packer really found."""
        index = self._index
        dropped = {ordinal: reason for ordinal, member, reason in changes if member is None}
        if len(dropped) == number:
            raise FileChanged(
                f"a file {next(iter(dropped.values()))} while it was read", path=index.paths[self._row]
            )
        for ordinal, member, reason in changes:
            row = self._row + ordinal
            index.sparse.pop(row, None)
            if member is None:
                self._dropped.append((row, reason))
                continue
            index.modes[row], index.uids[row], index.gids[row], index.sizes[row], index.mtimes[row] = member[
                2:7
            ]
            self._walk.layout.ctimes[row], self._walk.layout.inodes[row] = member[7:9]
        position = 0
        for row in range(self._row, self._row + number):
            if row - self._row in dropped:
                continue
            index.offsets[row] = position
            position += member_bytes(index, row, self._link_of(row))

    def _link_of(self, row: int) -> bytes:
        index = self._index
        if index.kinds[row] not in LINK_KINDS:
            return b""
        return index.links[sum(index.kinds[:row].count(kind) for kind in LINK_KINDS)]

    def _drop_rows(self, *, skip_changed: bool) -> list[tuple[bytes, str]]:
        index = self._index
        if not self._dropped:
            return []
        paths = [(index.paths[row], reason) for row, reason in self._dropped]
        # A file that others are links to cannot be left out, nor can what a target consists of.
        needed = set(index.links) | {target.member for target in self._walk.targets}
        for path, reason in paths:
            if not skip_changed or path in needed:
                raise FileChanged(f"a file {reason} while it was read", path=path)
        gone = {row for row, _ in self._dropped}
        keep = [row for row in range(len(index)) if row not in gone]
        index.sparse = {new: index.sparse[row] for new, row in enumerate(keep) if row in index.sparse}
        index.paths = [index.paths[row] for row in keep]
        index.kinds = bytearray(index.kinds[row] for row in keep)
        for name in ("modes", "uids", "gids", "mtimes", "sizes", "frames", "offsets"):
            column = getattr(index, name)
            setattr(index, name, type(column)(column.typecode, [column[row] for row in keep]))
        return paths
