"""How much a tree takes, as ``du -sx`` counts it, and which directories in it take the most.

Allocated bytes; a file with several names counts once; one filesystem; directories count with their own blocks. Several
forked workers: each reads directories from a stack of its own and gives some to those who have none.
"""

from __future__ import annotations

import heapq
import os
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from cachekit.system.files import open_directory, open_to_look
from cachekit.system.removal.shared import Wanted
from cachekit.system.workers import ForkPool, WorkerDied, worker_count

__all__ = ["Consumer", "Usage", "usage"]

#: Directories with fewer names are read before a second process would have begun.
_SMALL = 2000
#: Directories told apart; what lies in further ones counts to the nearest above.
_TOLD = 50_000
#: Directories read between two reports of a worker, which keeps its memory and the parent's wait small.
_REPORT = 2000
#: A directory is shown by its largest part instead when that holds more than this share of it.
_MOST = 0.5

#: A directory to read: its path below the top, the directory it counts to, and its depth.
_Task: TypeAlias = tuple[bytes, bytes, int]
#: Bytes, files and directories of what counts to one directory.
_Sum: TypeAlias = list[int]


@dataclass(frozen=True, slots=True)
class Consumer:
    """A directory, with the allocated bytes and the files in all of it that no other consumer counts."""

    path: bytes
    size: int
    files: int


@dataclass(slots=True)
class Usage:
    """What is in a tree. ``size`` in allocated bytes; ``files``: everything but directories, each inode once.

    ``unreadable``: directories that could not be read. Not ``complete``: the time was over before all was read.
    """

    path: bytes
    size: int = 0
    files: int = 0
    directories: int = 0
    unreadable: int = 0
    complete: bool = True
    #: By path below ``path``: what is in that directory and all below.
    totals: dict[bytes, tuple[int, int]] = field(default_factory=dict)

    def top(self, count: int) -> list[Consumer]:
        """Return the directories that take the most, the largest first; none of them counts what another does."""
        inside: dict[bytes, list[bytes]] = {}
        for path in self.totals:
            if path:
                inside.setdefault(path.rpartition(b"/")[0], []).append(path)
        whole = self.totals.get(b"", (self.size, self.files))
        heap = [(-whole[0], b"", whole[1])]
        found: list[Consumer] = []
        own = set()
        while heap and len(found) < count:
            size, path, files = heapq.heappop(heap)
            below = [] if path in own else inside.get(path, [])
            largest = max((self.totals[one][0] for one in below), default=0)
            if not below or (largest <= -size * _MOST and (heap or found)):
                found.append(Consumer(os.path.join(self.path, path) if path else self.path, -size, files))
                continue
            for one in below:
                one_size, one_files = self.totals[one]
                heapq.heappush(heap, (-one_size, one, one_files))
                size += one_size
                files -= one_files
            if size < 0 < files:  # what lies in it directly
                own.add(path)
                heapq.heappush(heap, (size, path, files))
        return found


class _Reader:
    """Reads directories below ``top``, in one process."""

    def __init__(
        self,
        top: int,
        depth: int,
        deadline: float | None,
        exclude: Collection[bytes],
        wanted: Wanted,
    ) -> None:
        self._top = top
        self._device = os.fstat(top).st_dev
        self._depth = depth
        self._deadline = deadline
        self._exclude = exclude
        self._wanted = wanted
        self._clear()

    def _clear(self) -> None:
        self.sums: dict[bytes, _Sum] = {}
        #: Files with several names: inode to (allocated bytes, the directory it counts to).
        self.linked: dict[int, tuple[int, bytes]] = {}
        self.unreadable = 0
        self.late = False

    def report(self) -> tuple[dict[bytes, _Sum], dict[int, tuple[int, bytes]], int, bool]:
        """Return what was counted since the last report."""
        found = (self.sums, self.linked, self.unreadable, self.late)
        self._clear()
        return found

    def read(self, stack: list[_Task], budget: int | None = None) -> Iterator[_Task]:
        """Read the directories in ``stack`` and all below; yield some for others. Ends after ``budget`` names."""
        names = 0
        while stack:
            if self._deadline is not None and time.monotonic() > self._deadline:
                self.late = True
                return
            if budget is not None and names > budget:
                return
            while len(stack) > 1 and self._wanted.take():
                yield stack.pop(0)  # read first, so nearest to the top: most is to be expected below it
            names += self._directory(stack.pop(), stack)

    def _directory(self, task: _Task, stack: list[_Task]) -> int:
        path, key, level = task
        try:
            fd = open_to_look(path or b".", dir_fd=self._top)
        except FileNotFoundError:
            return 0
        except OSError:
            self.unreadable += 1
            return 0
        size = files = directories = names = 0
        device, linked, exclude = self._device, self.linked, self._exclude
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    names += 1
                    try:
                        info = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue  # gone
                    if info.st_dev != device:
                        continue
                    if info.st_mode & 0o170000 == 0o040000:
                        name = os.fsencode(entry.name)
                        below = path + b"/" + name if path else name
                        if exclude and below in exclude:
                            continue
                        if level < self._depth:
                            self._count(below, info.st_blocks, 0, 1)
                            stack.append((below, below, level + 1))
                        else:
                            size += info.st_blocks
                            directories += 1
                            stack.append((below, key, level + 1))
                    elif info.st_nlink > 1:
                        linked.setdefault(info.st_ino, (info.st_blocks, key))
                    else:
                        size += info.st_blocks
                        files += 1
        except OSError:
            self.unreadable += 1
        finally:
            os.close(fd)
        self._count(key, size, files, directories)
        return names

    def _count(self, key: bytes, blocks: int, files: int, directories: int) -> None:
        found = self.sums.get(key)
        if found is None:
            found = self.sums[key] = [0, 0, 0]
        found[0] += blocks * 512
        found[1] += files
        found[2] += directories


class _Worker:
    """Runs in a forked process: each message is some directories to read."""

    def __init__(self, reader: _Reader) -> None:
        self._reader = reader

    def handle(self, message: Any) -> Iterable[Any]:
        stack: list[_Task] = message
        while stack:
            for task in self._reader.read(stack, _REPORT):
                yield False, [task]
            report = self._reader.report()
            if report[3]:
                stack.clear()
            yield not stack, report


class _Scan:
    """Adds up what workers report."""

    def __init__(self, result: Usage) -> None:
        self._result = result
        self._sums: dict[bytes, _Sum] = {}
        self._linked: set[int] = set()

    def add(self, report: tuple[dict[bytes, _Sum], dict[int, tuple[int, bytes]], int, bool]) -> None:
        sums, linked, unreadable, late = report
        for key, (size, files, directories) in sums.items():
            self._count(key, size, files, directories)
        for inode, (blocks, key) in linked.items():
            if inode not in self._linked:
                self._linked.add(inode)
                self._count(key, blocks * 512, 1, 0)
        self._result.unreadable += unreadable
        if late:
            self._result.complete = False

    def _count(self, key: bytes, size: int, files: int, directories: int) -> None:
        found = self._sums.get(key)
        while found is None:
            if not key or len(self._sums) < _TOLD:
                found = self._sums[key] = [0, 0, 0]
            else:
                key = key.rpartition(b"/")[0]
                found = self._sums.get(key)
        found[0] += size
        found[1] += files
        found[2] += directories

    def finish(self) -> None:
        """Add each directory to the one above it, and the whole to the result."""
        sums, result = self._sums, self._result
        sums.setdefault(b"", [0, 0, 0])
        for path in sorted(sums, key=lambda path: -path.count(b"/")):
            if path:
                above = path.rpartition(b"/")[0]
                while above not in sums:
                    above = above.rpartition(b"/")[0]
                sums[above] = [mine + theirs for mine, theirs in zip(sums[above], sums[path], strict=True)]
        result.size, result.files, result.directories = sums[b""]
        result.totals = {path: (size, files) for path, (size, files, _) in sums.items()}


def usage(
    path: bytes,
    *,
    workers: int | None = None,
    depth: int = 4,
    deadline: float | None = None,
    exclude: Collection[bytes] = (),
) -> Usage:
    """Measure the tree at ``path``, which may be a file. Raises OSError if it cannot be opened.

    ``depth``: how deep directories are told apart. ``deadline``: when to stop, on the clock of ``time.monotonic``.
    ``exclude``: absolute paths of directories not to look into, ``path`` itself being written the same way.
    """
    info = os.lstat(path)
    result = Usage(path)
    scan = _Scan(result)
    if info.st_mode & 0o170000 != 0o040000:
        scan.add(({b"": [info.st_blocks * 512, 1, 0]}, {}, 0, False))
        scan.finish()
        return result
    prefix = path.rstrip(b"/") + b"/"
    skipped = {one[len(prefix) :].rstrip(b"/") for one in exclude if one.startswith(prefix)}
    top = open_directory(path)
    try:
        scan.add(({b"": [os.fstat(top).st_blocks * 512, 0, 1]}, {}, 0, False))
        wanted = Wanted()
        reader = _Reader(top, depth, deadline, skipped, wanted)
        stack: list[_Task] = [(b"", b"", 0)]
        count = worker_count() if workers is None else workers
        for _ in reader.read(stack, _SMALL if count > 1 else None):
            pass
        scan.add(reader.report())
        if stack and result.complete:
            _share(stack, scan, reader, count, wanted)
        scan.finish()
    finally:
        os.close(top)
    return result


def _share(stack: list[_Task], scan: _Scan, reader: _Reader, count: int, wanted: Wanted) -> None:
    """Read the rest with workers, or in this process where none can be had."""
    try:
        pool = ForkPool(lambda: _Worker(reader), count)
    except OSError:
        for _ in reader.read(stack):
            pass
        scan.add(reader.report())
        return
    try:
        queue = deque(stack)
        busy = [False] * count
        while True:
            for worker in range(count):
                if not busy[worker] and queue:
                    # A share of what waits, so that messages are few, and little when little is left.
                    part = [queue.popleft() for _ in range(max(1, len(queue) // (2 * count)))]
                    pool.send(worker, part)
                    busy[worker] = True
            if not any(busy):
                return
            wanted.want(0 if queue else busy.count(False))
            for worker, (done, content) in pool.poll(wait=True):
                if isinstance(content, list):
                    queue += content
                    continue
                scan.add(content)
                busy[worker] = not done
    except WorkerDied:
        scan.add(({}, {}, 0, True))  # what it had read is lost: the sums are too small
    finally:
        pool.close()
