"""Taking an entry out of a store: this very file and no other, however its name is used meanwhile.

A name cannot be unlinked on the condition that it leads to a certain file. So it is first moved aside, into ``tmp``,
under a name that tells which file was meant; then it is looked at again. What is aside and was meant goes; anything
else (a save replaced the entry in between, somebody pinned it) is put back. After a kill in between, whoever sweeps the
store next does the same. Nothing here needs a lock to be right.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

from cachekit.system.files import exists, fsync_directory, random_name
from cachekit.system.publish import put_back
from cachekit.system.steps import step

__all__ = ["FileIdentity", "Outcome", "finish_removals", "remove_file", "sweep_marks"]

#: removed; gone: there was no such file any more; replaced: another file has the name; spared: it may not go after all.
Outcome = Literal["removed", "gone", "replaced", "spared"]

_SUFFIX = ".removing"
_ASIDE = re.compile(r"(.+)\.([0-9a-f]+)-([0-9a-f]+)-([0-9a-f]+)-(-?[0-9a-f]+)\.[0-9a-f]{16}\.removing")


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Which file it is: inodes are used again, so size and time belong to it. Renaming changes none of them."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, info: os.stat_result) -> Self:
        return cls(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)

    def __str__(self) -> str:
        return f"{self.device:x}-{self.inode:x}-{self.size:x}-{self.mtime_ns:x}"


def remove_file(
    name: str, planned: FileIdentity, place: int, tmp: int, *, spare: Callable[[], bool]
) -> Outcome:
    """Remove ``name`` from the open directory ``place``, by way of ``tmp``, if it is ``planned`` and not ``spare()``.

    ``spare`` is asked last when the name is gone already, so nobody can say yes after it said no. Readers that have the
    file open go on reading it. Raises OSError.
    """
    try:
        found = FileIdentity.of(os.lstat(name, dir_fd=place))
    except FileNotFoundError:
        return "gone"
    if found != planned:
        return "replaced"
    if spare():
        return "spared"
    aside = f"{name}.{planned}.{random_name()}{_SUFFIX}"
    try:
        os.rename(name, aside, src_dir_fd=place, dst_dir_fd=tmp)  # noqa: TID251 - a move
    except FileNotFoundError:
        return "gone"
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        # No room for one more name: a prune is what helps now. On such a disk no save can have replaced the entry.
        os.unlink(name, dir_fd=place)
        return "removed"
    step("prune.aside")
    return _judge(tmp, aside, place, planned, spare)


def _judge(tmp: int, aside: str, place: int, planned: FileIdentity, spare: Callable[[], bool]) -> Outcome:
    """Decide about a file that was moved aside: remove it, or put it back."""
    try:
        right = FileIdentity.of(os.lstat(aside, dir_fd=tmp)) == planned
    except FileNotFoundError:  # a sweeper did it
        return "spared" if spare() else "removed"
    if right and not spare():
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside, dir_fd=tmp)
        step("prune.removed")
        return "removed"
    with contextlib.suppress(FileNotFoundError):
        put_back(aside, tmp, _name_of(aside), place)
    return "spared" if right else "replaced"


def _name_of(aside: str) -> str:
    match = _ASIDE.fullmatch(aside)
    assert match is not None
    return match[1]


def finish_removals(tmp: int, place: int, pinned: Callable[[str], bool]) -> int:
    """End what killed prunes left aside in the open directory ``tmp``; return how many. Raises OSError."""
    ended = 0
    for aside in os.listdir(tmp):
        match = _ASIDE.fullmatch(aside)
        if match is not None:
            planned = FileIdentity(*(int(number, 16) for number in match.groups()[1:]))
            _judge(tmp, aside, place, planned, functools.partial(pinned, match[1]))
            ended += 1
    return ended


def sweep_marks(place: int, used: int) -> int:
    """Remove the times of use of entries that are not there any more; return how many. Raises OSError.

    A save that publishes the entry at this very moment may lose its first mark: then its own time counts.
    """
    removed = 0
    for name in os.listdir(used):
        if not exists(name, dir_fd=place):
            try:
                os.unlink(name, dir_fd=used)
                removed += 1
            except OSError as error:
                if error.errno not in {errno.ENOENT, errno.EISDIR, errno.EPERM}:
                    raise
    step("prune.marks-swept")
    with contextlib.suppress(OSError):  # an entry that a power failure brings back is pruned again
        fsync_directory(place)
    return removed
