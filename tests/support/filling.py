"""Filling a file system until only so much is left."""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile
from pathlib import Path

FILLER = ".filler"
"""The file at the root of a file system that takes up the room."""

_ROUNDS = 60
_UNIT = 4096


def free_bytes(path: Path) -> int:
    """Ask what an ordinary user may still write, once everything so far is on disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        ctypes.CDLL(None).syncfs(fd)
    finally:
        os.close(fd)
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def fill(root: Path, leave: int) -> int:
    """Grow or shrink the filler until about `leave` bytes are free on the file system; return what is free.

    How near it comes is the file system's affair: a block on tmpfs and ext4, up to 64 KiB on xfs and btrfs.
    """
    with (root / FILLER).open("ab") as file:
        for _ in range(_ROUNDS):
            excess = free_bytes(root) - leave
            size = os.fstat(file.fileno()).st_size
            if 0 <= excess < _UNIT or (excess < 0 and size == 0):
                break
            if excess < 0:
                os.ftruncate(file.fileno(), max(0, size + excess // _UNIT * _UNIT))
            elif not _grow(file.fileno(), size, excess // _UNIT * _UNIT):
                break
            os.fsync(file.fileno())
    return free_bytes(root)


def _grow(fd: int, size: int, count: int) -> bool:
    """Allocate `count` bytes at the end, or a half, a quarter... of that; tell if there was any room."""
    while count >= _UNIT:
        try:
            os.posix_fallocate(fd, size, count)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            count //= 2
        else:
            return True
    return False


def use_up_inodes(root: Path, leave: int = 0) -> None:
    """Make empty files until `leave` more can be made; for a file system that counts its inodes."""
    below = Path(tempfile.mkdtemp(prefix=".inodes-", dir=root))
    made: list[Path] = []
    try:
        while True:
            made.append(below / f"{len(made)}")
            made[-1].touch(exist_ok=False)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        made.pop()
    for path in made[len(made) - leave :] if leave else []:
        path.unlink()
