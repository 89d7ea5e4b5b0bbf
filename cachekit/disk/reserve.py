"""The ballast: a file that takes room while there is some, and gives it back when there is none.

On a full disk nothing works: no log, no temporary file, often not even a removal (btrfs). nix and CockroachDB keep such
a file for the same reason.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Collection
from dataclasses import dataclass

from cachekit.errors import InvalidRequest, NoSpace, TargetNotWritable
from cachekit.system.files import put_in_place, pwrite_all
from cachekit.system.native import preallocate
from cachekit.system.space import free_space
from cachekit.system.state import make_as_owner, state_directory

__all__ = ["NAME", "Ballast", "ballasts", "release", "reserve"]

NAME = ".cachekit-ballast"
_LIST = "ballasts"
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Ballast:
    """A ballast file that is there; ``size`` in allocated bytes."""

    path: str
    size: int
    device: int


def reserve(directory: str, size: int) -> Ballast:
    """Make the ballast of ``directory`` ``size`` bytes large (0 removes it), replacing an earlier one.

    Raises NoSpace if it does not fit, leaving none; TargetNotWritable for other failures.
    """
    if size < 0:
        raise InvalidRequest("a reserve has at least 0 bytes")
    path = os.path.join(os.path.abspath(directory), NAME)
    try:
        make_as_owner(directory)
        if os.path.lexists(path) and not _is_ours(os.lstat(path)):
            raise TargetNotWritable(
                f"there is something else called {NAME}, which is left as it is",
                path=path,
                hint="choose another directory with --in",
            )
        _remove(path)
        if size == 0:
            _forget(path)
            return Ballast(path, 0, os.stat(directory).st_dev)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise TargetNotWritable(
            f"the reserve cannot be made: {error.strerror}",
            path=path,
            hint="choose another directory with --in",
        ) from None
    try:
        _take(fd, size)
        os.ftruncate(fd, size)
        info = os.fstat(fd)
    except OSError as error:
        _remove(path)
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            have = free_space(directory).available
            raise NoSpace(
                "the reserve does not fit", path=path, need=size, have=have, short_by=max(0, size - have)
            ) from None
        raise TargetNotWritable(f"the reserve cannot be made: {error.strerror}", path=path) from None
    finally:
        os.close(fd)
    _remember(path)
    return Ballast(path, info.st_blocks * 512, info.st_dev)


def _take(fd: int, size: int) -> None:
    try:
        preallocate(fd, size)
    except OSError as error:
        if error.errno not in {errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}:
            raise
        # Random, because a filesystem that compresses keeps zeros in nothing.
        block = os.urandom(_CHUNK)
        for offset in range(0, size, _CHUNK):
            pwrite_all(fd, block[: min(_CHUNK, size - offset)], offset)


def ballasts(directories: Collection[str] = ()) -> list[Ballast]:
    """Return the ballast files that are there: in ``directories``, in the state directory and where we noted some."""
    places = dict.fromkeys([*directories, state_directory(), *map(os.path.dirname, _noted())])
    found = []
    for place in places:
        path = os.path.join(place, NAME)
        with contextlib.suppress(OSError):
            info = os.lstat(path)
            if _is_ours(info):
                found.append(Ballast(path, info.st_blocks * 512, info.st_dev))
    return found


def _is_ours(info: os.stat_result) -> bool:
    """Return True for a plain file of ours or root's: anybody may put a link of that name where we look."""
    return stat.S_ISREG(info.st_mode) and info.st_nlink == 1 and info.st_uid in {os.geteuid(), 0}


def release(ballast: Ballast) -> int:
    """Remove a ballast; return its bytes. Raises OSError. Needs no space: nothing is written."""
    # Cut first: on a full copy-on-write filesystem a name may not go while its blocks can.
    with contextlib.suppress(OSError):
        fd = os.open(ballast.path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.ftruncate(fd, 0)
        finally:
            os.close(fd)
    os.unlink(ballast.path)
    return ballast.size


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _noted() -> list[str]:
    path = os.path.join(state_directory(), _LIST)
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="surrogateescape") as file:
        return [line.rstrip("\n") for line in file if line.startswith("/") and line.strip().endswith(NAME)]
    return []


def _write(paths: Collection[str]) -> None:
    with contextlib.suppress(OSError, ValueError):
        make_as_owner(state_directory())
        text = "".join(f"{path}\n" for path in paths)
        put_in_place(os.path.join(state_directory(), _LIST), text.encode(errors="surrogateescape"))


def _remember(path: str) -> None:
    if "\n" not in path:
        _write(dict.fromkeys([*_noted(), path]))


def _forget(path: str) -> None:
    _write([other for other in _noted() if other != path])
