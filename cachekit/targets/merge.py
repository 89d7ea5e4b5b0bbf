"""Moving a staged tree into a directory name by name, where it cannot be moved as a whole.

Every function may be run again after a kill at any point: what is still staged has not been moved yet.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass

from cachekit.model import STAGED
from cachekit.system.files import exists, make_private_directory, opened, random_name, remove_tree
from cachekit.system.steps import step
from cachekit.targets.staging import OLD, Staging

__all__ = ["Merger", "Outcome", "lstat", "merge_batch", "open_directory_up"]

#: In a staged directory whose place cannot be moved: what the entry does not have has been taken away there.
_MARK = b".cachekit-extras-gone"


@dataclass(slots=True)
class Outcome:
    """``level``: rename, exchange, children or files. ``extra``: files in the target that the entry does not have."""

    level: str
    extra: int = 0


def merge_batch(staging: Staging) -> None:
    """Move what is staged into the target, over what is there, and leave the journal as it is (restores in place)."""
    make_private_directory(OLD, dir_fd=staging.fd)
    with (
        opened(STAGED, dir_fd=staging.fd) as new_fd,
        opened(OLD, dir_fd=staging.fd) as aside_fd,
        opened(staging.name or b".", dir_fd=staging.parent_fd) as old_fd,
    ):
        merger = Merger(staging, aside_fd, Outcome("files"), counting=False)
        merger.move(new_fd, old_fd, top=False, replace=False)
    remove_tree(STAGED, dir_fd=staging.fd)


def lstat(name: bytes, dir_fd: int) -> os.stat_result | None:
    try:
        return os.lstat(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return None


def open_directory_up(name: bytes, dir_fd: int, info: os.stat_result) -> bool:
    """Give ourselves write permission in a directory of ours: moving it changes its ``..``."""
    if stat.S_ISDIR(info.st_mode) and info.st_mode & 0o700 != 0o700 and info.st_uid == os.geteuid():
        os.chmod(name, stat.S_IMODE(info.st_mode) | 0o700, dir_fd=dir_fd)
        return True
    return False


class Merger:
    """Moves the children of one directory into another, name by name.

    With ``counting`` the outcome tells how many files are left that are not among the new ones; ``new`` must be whole.
    """

    def __init__(self, staging: Staging, aside_fd: int, outcome: Outcome, *, counting: bool = True) -> None:
        self.outcome = outcome
        self._counting = counting
        self._staging = staging
        self._staging_name = os.path.basename(staging.journal.staging)
        self._aside_fd = aside_fd
        # What has to be undone to put the old tree back, as long as only children of the target were moved.
        self._moves: list[tuple[int, bytes, int, bytes]] = []
        self._modes: list[tuple[int, bytes, int]] = []

    def _moved(self, from_fd: int, name: bytes, to_fd: int, new_name: bytes) -> None:
        self._staging.touched = True
        self._moves.append((from_fd, name, to_fd, new_name))

    def open_up(self, name: bytes, dir_fd: int) -> None:
        info = os.lstat(name, dir_fd=dir_fd)
        if open_directory_up(name, dir_fd, info):
            self._modes.append((dir_fd, name, stat.S_IMODE(info.st_mode)))

    def put_back(self) -> None:
        """Undo everything, if it can be undone."""
        if self.outcome.level != "children":
            return
        for source_fd, source, target_fd, target in reversed(self._moves):
            os.rename(target, source, src_dir_fd=target_fd, dst_dir_fd=source_fd)
        self._staging.touched = False
        for dir_fd, name, mode in reversed(self._modes):
            os.chmod(name, mode, dir_fd=dir_fd)

    def _take(self, name: bytes, dir_fd: int) -> None:
        # A random name: after a kill the next run must not meet the names that this one gave.
        aside = random_name().encode()
        os.rename(name, aside, src_dir_fd=dir_fd, dst_dir_fd=self._aside_fd)
        self._moved(dir_fd, name, self._aside_fd, aside)

    def _aside(self, name: bytes, dir_fd: int) -> None:
        """Take an old child away: into staging, or, where it cannot be moved (a lower layer), by removing it."""
        self.open_up(name, dir_fd)
        try:
            self._take(name, dir_fd)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self.outcome.level = "files"
            self._staging.touched = True
            remove_tree(name, dir_fd=dir_fd)

    def take_extras(self, new_fd: int, old_fd: int) -> None:
        """Take away what the entry does not have. The staged tree must still be complete."""
        keep = {os.fsencode(name) for name in os.listdir(new_fd)} | {self._staging_name}
        for name in sorted(os.fsencode(name) for name in os.listdir(old_fd)):
            if name not in keep:
                try:
                    self._aside(name, old_fd)
                except OSError as error:
                    if error.errno != errno.EBUSY:
                        raise
                    self.outcome.extra += 1  # something is mounted there: it stays

    def move(self, new_fd: int, old_fd: int, *, top: bool, replace: bool) -> None:
        names = sorted(os.fsencode(name) for name in os.listdir(new_fd))
        if not replace and self._counting:
            self._count_extra(set(names), old_fd)
        for number, name in enumerate(names):
            if name == _MARK:
                continue
            if top and number == len(names) // 2:
                step("commit.half")
            self._child(name, new_fd, old_fd, replace=replace)
            if not top:
                self.outcome.level = "files"
            step("commit.first-rename")

    def _child(self, name: bytes, new_fd: int, old_fd: int, *, replace: bool) -> None:
        new = os.lstat(name, dir_fd=new_fd)
        old = lstat(name, old_fd)
        if old is not None and stat.S_ISDIR(old.st_mode):
            if stat.S_ISDIR(new.st_mode) and (not replace or not self._can_move(name, new_fd, old_fd)):
                self._descend(name, new_fd, old_fd, replace=replace)
                return
            if not stat.S_ISDIR(new.st_mode):
                self._aside(name, old_fd)
        elif old is not None and (replace or stat.S_ISDIR(new.st_mode)):
            self._aside(name, old_fd)
        os.rename(name, name, src_dir_fd=new_fd, dst_dir_fd=old_fd)
        self._moved(new_fd, name, old_fd, name)
        if old is not None and not replace:
            self.outcome.level = "files"

    def _can_move(self, name: bytes, new_fd: int, dir_fd: int) -> bool:
        """Move an old directory out of the way; False if this filesystem only lets its files go one by one."""
        if exists(name + b"/" + _MARK, dir_fd=new_fd):
            return False  # an earlier run could not, and some of the new files are in it already
        self.open_up(name, dir_fd)
        try:
            self._take(name, dir_fd)
        except OSError as error:
            if error.errno not in {errno.EXDEV, errno.EBUSY}:
                raise
            return False
        return True

    def _descend(self, name: bytes, new_fd: int, old_fd: int, *, replace: bool) -> None:
        self.outcome.level = "files"
        self.open_up(name, old_fd)
        with opened(name, dir_fd=new_fd) as inner_new, opened(name, dir_fd=old_fd) as inner_old:
            if replace:
                self._remove_extras(inner_new, inner_old)
            self.move(inner_new, inner_old, top=False, replace=replace)
        # With its mark, and in one step: a run after a kill must not find it empty and unmarked.
        os.rename(name, random_name().encode(), src_dir_fd=new_fd, dst_dir_fd=self._aside_fd)

    def _remove_extras(self, new_fd: int, old_fd: int) -> None:
        """In a directory that cannot be moved: mark with a file that its extras are gone, for a run after a kill."""
        if exists(_MARK, dir_fd=new_fd):
            return
        self.take_extras(new_fd, old_fd)
        os.close(os.open(_MARK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=new_fd))

    def _count_extra(self, new: set[bytes], old_fd: int) -> None:
        for entry in os.scandir(old_fd):
            name = os.fsencode(entry.name)
            if name in new or name == self._staging_name:
                continue
            if entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError), opened(name, dir_fd=old_fd) as fd:
                    self._count_extra(set(), fd)
            else:
                self.outcome.extra += 1
