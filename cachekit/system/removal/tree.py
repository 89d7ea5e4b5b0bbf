"""Removing files and whole trees that are in the way: as much as may go goes, and what stays is told with its reason.

Never through a symlink, never across a mount (bind mounts included), never a device, a socket in use, lost+found, or
what somebody has locked. Several forked workers: a removal is mostly waiting (reading inodes, discarding blocks), so
more of them than processors pay. Each empties directories of its own; who has nothing to do gets some of another's.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cachekit.system.holders import Sockets, live_sockets
from cachekit.system.native import sync_filesystem
from cachekit.system.removal.beneath import Beneath, open_parent
from cachekit.system.removal.shared import Tally
from cachekit.system.removal.sweeper import FULL, KEPT, LOCKED, Sweeper, lock, open_up, reason, special
from cachekit.system.steps import step
from cachekit.system.workers import ForkPool, WorkerDied, worker_count

__all__ = ["Removed", "removal_workers", "remove", "remove_in"]

#: A tree with fewer names is gone before a second process would have begun.
_SMALL = 200
#: Directories queued at each worker: one to work on, one so that it need not wait for the next.
_AHEAD = 2
#: Passes over what a full filesystem did not let go.
_TRIES = 5
#: Waiting for the disk, not computing, is most of a removal: see docs/benchmarks.md.
_WAITERS = 8


@dataclass(slots=True)
class Removed:
    """What a removal did. ``items``: names that went. ``size``: allocated bytes of what went with its last name.

    ``left``: what stayed, as (absolute path, reason), the first hundred; ``left_count``: all of it. Two names of one
    file that go at the same moment in different directories may be missing in ``size``.
    """

    items: int = 0
    size: int = 0
    left: list[tuple[bytes, str]] = field(default_factory=list)
    left_count: int = 0

    def stays(self, path: bytes, why: str) -> None:
        """Note one thing that stays."""
        self.left_count += 1
        if len(self.left) < KEPT:
            self.left.append((path, why))

    def add(self, other: Removed) -> None:
        """Take in what another removal did."""
        self.items += other.items
        self.size += other.size
        self.left_count += other.left_count
        self.left += other.left[: KEPT - len(self.left)]


def removal_workers() -> int:
    """Return how many workers remove: CACHEKIT_WORKERS, else more than there are processors."""
    count = worker_count()
    return count if "CACHEKIT_WORKERS" in os.environ else max(_WAITERS, count)


def remove(path: bytes, *, workers: int | None = None, sockets: Sockets | None = None) -> Removed:
    """Remove a file or tree as far as it may go. Raises no OSError: what cannot be removed is in ``left``.

    No part of ``path`` may be a symlink (its last part is removed, not followed). A missing path is fine. ``sockets``:
    those in use, if known from a scan. ``workers``: 0 for none but this process.
    """
    try:
        parent, name = open_parent(path)
    except FileNotFoundError:
        return Removed()
    except OSError as error:
        return Removed(left=[(path, reason(error))], left_count=1)
    try:
        return remove_in(parent, name, path, workers=workers, sockets=sockets)
    finally:
        os.close(parent)


def remove_in(
    parent: int,
    name: bytes,
    shown: bytes,
    *,
    workers: int | None = None,
    sockets: Sockets | None = None,
    top: int | None = None,
) -> Removed:
    """Do the same for ``name`` in an open directory. ``shown``: the path to tell what stays by.

    ``top``: the directory of that name if it is open and locked already.
    """
    removed = Removed()
    if sockets is None:
        sockets = live_sockets()
    try:
        info = os.lstat(name, dir_fd=parent)
        if info.st_mode & 0o170000 != 0o040000:
            _remove_file(parent, name, shown, info, sockets, removed)
            return removed
        old = None
        fd, old = open_up(name, parent, Beneath(parent)) if top is None else (top, None)
    except FileNotFoundError:
        return removed
    except OSError as error:
        removed.stays(shown, reason(error))
        return removed
    try:
        if name == b"lost+found":
            removed.stays(shown, "the filesystem's own")
        elif top is None and not lock(fd):
            removed.stays(shown, LOCKED)
        else:
            _Removal(fd, shown, sockets, removed).run(removal_workers() if workers is None else workers)
            _again_with_room(fd, shown, sockets, removed)
            _remove_top(parent, name, fd, shown, sockets, removed)
        if removed.left_count and old is not None:
            with contextlib.suppress(OSError):
                os.fchmod(fd, old)
    finally:
        if top is None:
            os.close(fd)
    return removed


def _remove_file(
    parent: int, name: bytes, shown: bytes, info: os.stat_result, sockets: Sockets, removed: Removed
) -> None:
    if why := special(info, os.fsdecode(name), sockets):
        removed.stays(shown, why)
        return
    os.unlink(name, dir_fd=parent)
    removed.items += 1
    if info.st_nlink < 2:
        removed.size += info.st_blocks * 512


def _again_with_room(fd: int, shown: bytes, sockets: Sockets, removed: Removed) -> None:
    """Where a full filesystem did not let names go, what did go may have made the room for it once it is on disk."""
    for _ in range(_TRIES):
        if not any(why == FULL for _, why in removed.left):
            return
        with contextlib.suppress(OSError):
            sync_filesystem(fd)
        before = removed.items
        removed.left, removed.left_count = [], 0
        _Removal(fd, shown, sockets, removed).run(0)
        if removed.items == before:
            return


def _remove_top(parent: int, name: bytes, fd: int, shown: bytes, sockets: Sockets, removed: Removed) -> None:
    """Remove the emptied directory; look once more if names turn up in it that nobody has an objection to."""
    if removed.left_count:
        return
    for last in (False, True):
        size = os.fstat(fd).st_blocks * 512
        try:
            os.rmdir(name, dir_fd=parent)
        except FileNotFoundError:
            return
        except OSError as error:
            if last or error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                removed.stays(shown, reason(error))
                return
            _Removal(fd, shown, sockets, removed).run(0)
            if removed.left_count:
                return
        else:
            removed.items += 1
            removed.size += size
            return


class _Worker:
    """Runs in a forked process: first its number, then directories to empty."""

    def __init__(self, sweeper: Sweeper, tally: Tally) -> None:
        self._sweeper = sweeper
        self._tally = tally

    def handle(self, message: Any) -> Iterable[Any]:
        if isinstance(message, int):
            self._tally.place = message
            return
        sweeper = self._sweeper
        yield from sweeper.sweep(message)
        yield sweeper.left, sweeper.deferred
        sweeper.left, sweeper.deferred = [], []


class _Removal:
    """Empties one directory with several workers."""

    def __init__(self, top: int, shown: bytes, sockets: Sockets, removed: Removed) -> None:
        self._top = top
        self._shown = shown
        self._sockets = sockets
        self._removed = removed
        self._deferred: list[bytes] = []
        self._left: list[tuple[bytes, str]] = []

    def _sweeper(self, tally: Tally, budget: int | None = None) -> Sweeper:
        return Sweeper(self._top, self._shown, self._sockets, tally, budget=budget)

    def run(self, workers: int) -> None:
        """Empty it, and add to the result. What a worker that died had begun, this process finishes."""
        tally = Tally(workers)
        before = 0
        try:
            if workers < 2:
                self._alone(tally)
            else:
                self._share(tally, workers)
        except (WorkerDied, OSError, RuntimeError, MemoryError):
            before = tally.left  # what could not go is met once more
            self._alone(tally)
        removed = self._removed
        removed.items += tally.items
        removed.size += tally.size
        removed.left_count += tally.left - before
        removed.left += self._left[: KEPT - len(removed.left)]

    def _alone(self, tally: Tally) -> None:
        tally.want(0)
        sweeper = self._sweeper(tally)
        for _ in sweeper.sweep(b""):
            pass
        self._left = sweeper.left

    def _share(self, tally: Tally, workers: int) -> None:
        """Do it with workers, unless it is small enough to be done before there are any."""
        first = self._sweeper(tally, _SMALL)
        source = first.sweep(b"")
        try:
            path = next(source, None)
            if path is None:
                self._left = first.left
                return
            pool = ForkPool(lambda: _Worker(self._sweeper(tally), tally), workers)
            try:
                self._lead(pool, path, source, tally)
            finally:
                pool.close()
        finally:
            source.close()
        self._left += first.left
        self._deferred += first.deferred
        self._finish(tally)

    def _lead(self, pool: ForkPool, path: bytes, source: Iterator[bytes], tally: Tally) -> None:
        load = [0] * pool.count
        for worker in range(pool.count):
            pool.send(worker, worker + 1)
        queue = deque([path])
        more = True
        while True:
            for ahead in range(_AHEAD):
                for worker in range(pool.count):
                    if load[worker] > ahead:
                        continue
                    if not queue and more:
                        found = next(source, None)
                        more = found is not None
                        queue.extend(() if found is None else (found,))
                    if queue:
                        pool.send(worker, queue.popleft())
                        load[worker] += 1
            if not any(load):
                return
            tally.want(0 if queue or more else load.count(0))
            for worker, reply in pool.poll(wait=True):
                if isinstance(reply, bytes):
                    queue.append(reply)
                    continue
                step("clean.half-removed")
                load[worker] -= 1
                left, deferred = reply
                self._left += left
                del self._left[KEPT:]
                self._deferred += deferred

    def _finish(self, tally: Tally) -> None:
        """Remove the directories that waited for others' work, the deepest first."""
        beneath = Beneath(self._top)
        sweeper = self._sweeper(tally)
        for path in sorted(self._deferred, key=lambda path: -path.count(b"/")):
            above, _, name = path.rpartition(b"/")
            fd = self._top
            try:
                if above:
                    fd = beneath.open(above, self._top, passing=True)
                size = os.lstat(name, dir_fd=fd).st_blocks * 512
                os.rmdir(name, dir_fd=fd)
                tally.add(1, size, 0)
            except FileNotFoundError:
                pass
            except OSError:
                if not tally.left:  # nothing in it stays: somebody added to it, or it has hidden names
                    for _ in sweeper.sweep(path):
                        pass
            finally:
                if fd != self._top:
                    os.close(fd)
        self._left += sweeper.left
