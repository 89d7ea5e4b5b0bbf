"""What the filesystem below a benchmark does to its figures: its type, its room, and how it hands out inodes.

ext4 without a journal does not hand out an inode again within a minute of its removal; it steps over each of
them, one by one, at every creation. A restore that follows the removal of a tree is then several times slower
than one that does not. So nothing is removed between measurements, and a run waits for the last one's
removals.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import BenchmarkError
from benchmarks.trees import log

REMEMBERED = 65
"""Seconds for which a removed inode slows down creations; the kernel's figure is 60, once it was written."""


def _mount(path: Path) -> tuple[str, str]:
    """Type and MAJOR:MINOR of the filesystem that holds `path`."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    table = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    for row in map(str.split, table.splitlines()):
        if row[2] == wanted:
            return row[row.index("-") + 1], wanted
    return "unknown", wanted


def description(path: Path) -> str:
    """The type of the filesystem that holds `path`, and whether an ext4 has no journal."""
    return _mount(path)[0] + (" without a journal" if _remembers(path) else "")


def _remembers(path: Path) -> bool:
    kind, device = _mount(path)
    if kind != "ext4":
        return False
    name = Path(f"/sys/dev/block/{device}").resolve().name
    return not any(Path("/proc/fs/jbd2").glob(f"{name}-*"))


def remove(path: Path) -> None:
    """Remove a tree or file, there or not, read-only directories included."""
    if path.is_symlink() or path.is_file():
        path.unlink()
        return
    for folder, _, _ in os.walk(path):
        os.chmod(folder, 0o700)
    shutil.rmtree(path, ignore_errors=True)


def clear(workdir: Path) -> None:
    """Remove what a run left in `workdir`, and note beside it when that was."""
    remove(workdir)
    (workdir.parent / ".removed").touch()
    os.sync()


def wait_for_inodes(workdir: Path) -> None:
    """Wait until the removals of the run before no longer slow down the creation of files in `workdir`."""
    note = workdir.parent / ".removed"
    if not note.exists() or not _remembers(workdir):
        return
    left = note.stat().st_mtime + REMEMBERED - time.time()
    if left > 0:
        log(f"waiting {left:.0f} s until this file system has forgotten the files removed before")
        time.sleep(left)


def need(workdir: Path, size: int) -> None:
    """Refuse to begin if `size` bytes do not fit, since everything restored stays until the end."""
    free = shutil.disk_usage(workdir).free
    if size > free:
        raise BenchmarkError(
            f"needs {size / 1e9:.1f} GB for the restored trees, {free / 1e9:.1f} GB are free"
        )


def used(path: Path) -> int:
    """Bytes that the files below `path` take on the disk."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def taken(path: Path) -> int:
    """Bytes in use on the filesystem that holds `path`, whoever took them."""
    found = os.statvfs(path)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


class Peak:
    """The most that a figure rose above what it was at first, looked at every 10 ms."""

    def __init__(self, figure: Callable[[], int]) -> None:
        self._figure = figure
        self._first = figure()
        self.bytes = 0

    def look(self) -> None:
        """Look once."""
        self.bytes = max(self.bytes, self._figure() - self._first)


@contextmanager
def watched(*peaks: Peak) -> Iterator[None]:
    """Look at the peaks while the block runs."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            for peak in peaks:
                peak.look()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        for peak in peaks:
            peak.look()
