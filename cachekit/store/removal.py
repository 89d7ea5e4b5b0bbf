"""Taking an entry out of a store: this very file and no other, however its name is used meanwhile.

A name cannot be unlinked on the condition that it leads to a certain file. So it is first moved aside, into ``tmp``,
under a name that tells which file was meant; then it is looked at again. What is aside and was meant goes; anything
else (a save replaced the entry in between, somebody pinned it) is put back. After a kill in between, whoever sweeps the
store next does the same. Nothing here needs a lock to be right.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

from cachekit.store.pins import is_pinned
from cachekit.system.files import exists, fsync_directory, opened, random_name
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


def remove_file(base: str, name: str, planned: FileIdentity, *, spare: Callable[[], bool]) -> Outcome:
    """Remove an entry of the namespace at ``base`` if it is the ``planned`` file and not ``spare()``.

    ``spare`` is asked last when the name is gone already, so nobody can say yes after it said no. Readers that have the
    file open go on reading it. Raises OSError.
    """
    with (
        opened(os.fsencode(os.path.join(base, "entries")), follow=True) as place,
        opened(os.fsencode(os.path.join(base, "tmp")), follow=True) as tmp,
    ):
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
        step("prune.aside")
        return _judge(tmp, aside, place, name, planned, spare)


def _judge(
    tmp: int, aside: str, place: int, name: str, planned: FileIdentity, spare: Callable[[], bool]
) -> Outcome:
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
        put_back(aside, tmp, name, place)
    return "spared" if right else "replaced"


def finish_removals(base: str) -> int:
    """End what killed prunes began in the namespace at ``base``; return how many. Raises OSError."""
    ended = 0
    with opened(os.fsencode(os.path.join(base, "tmp")), follow=True) as tmp:
        for aside in os.listdir(tmp):
            match = _ASIDE.fullmatch(aside)
            if match is None:
                continue
            name = match[1]
            planned = FileIdentity(*(int(number, 16) for number in match.groups()[1:]))
            with opened(os.fsencode(os.path.join(base, "entries")), follow=True) as place:
                _judge(tmp, aside, place, name, planned, lambda name=name: is_pinned(base, name))  # type: ignore[misc]
            ended += 1
    return ended


def sweep_marks(base: str) -> int:
    """Remove the times of use of entries that are not there any more; return how many. Raises OSError.

    A save that publishes the entry at this very moment may lose its first mark: then its own time counts.
    """
    removed = 0
    with (
        opened(os.fsencode(os.path.join(base, "entries")), follow=True) as place,
        opened(os.fsencode(os.path.join(base, "used")), follow=True) as used,
    ):
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
