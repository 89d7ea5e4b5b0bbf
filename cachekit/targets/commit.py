"""Moving a staged tree into its place: whole where the filesystem allows it, else by children, else file by file.

Every function here may be run again after a kill at any point and then goes on where it stopped: what is still in
staging has not been moved yet. ``new`` is the staged tree, ``old`` what the target held.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass

from cachekit.errors import NameConflict, TargetNotWritable
from cachekit.system.files import (
    exists,
    fsync_directory,
    make_private_directory,
    open_directory,
    opened,
    remove_tree,
)
from cachekit.system.native import exchange, rename_noreplace
from cachekit.system.steps import step
from cachekit.targets.staging import OLD, STAGED, Staging

__all__ = ["Outcome", "commit", "conflict", "merge_batch", "refuse"]

_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}
#: A directory cannot be moved as a whole: a mount point, a lower layer of an overlay, no permission for its parent.
_NOT_WHOLE = {errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(slots=True)
class Outcome:
    """``level``: rename, exchange, children or files. ``extra``: files in the target that the entry does not have."""

    level: str
    extra: int = 0


def conflict(target: bytes, *, new_is_directory: bool, replace: bool) -> None:
    """Raise NameConflict if the target's kind forbids the commit, before anything is written."""
    try:
        info = os.lstat(target)
    except OSError:
        return
    old_is_directory = stat.S_ISDIR(info.st_mode)
    if replace or old_is_directory == new_is_directory:
        return
    kind = "a symlink" if stat.S_ISLNK(info.st_mode) else "a directory" if old_is_directory else "a file"
    wanted = "a directory" if new_is_directory else "a file"
    if not new_is_directory and not old_is_directory:
        return
    raise NameConflict(
        f"the target is {kind}, the entry holds {wanted}",
        path=target,
        expected=wanted,
        found=kind,
        hint="--replace takes the old one away; or name the place that it stands for",
    )


def commit(staging: Staging) -> Outcome:
    """Put the staged tree in its place and return how.

    Replace: after a failure the old tree is put back, and the error is raised. Merge: what was moved stays, each file
    old or new as a whole, and the journal stays too. Raises TargetNotWritable, NameConflict, OSError.
    """
    journal = staging.journal
    new = _lstat(STAGED, staging.fd)
    old = _lstat(staging.name, staging.parent_fd) if staging.name else os.fstat(staging.parent_fd)
    if new is None:
        return Outcome("rename")
    if old is not None and [old.st_dev, old.st_ino] == journal.new:
        return Outcome("rename")  # killed after the rename or exchange: what is staged now is the old tree
    step("commit.before-rename")
    replace = journal.mode == "replace"
    directory = stat.S_ISDIR(new.st_mode)
    if old is None:
        _rename_in(staging)
        step("commit.after-rename")
        return Outcome("rename")
    if not stat.S_ISDIR(old.st_mode) and not directory:
        os.rename(STAGED, staging.name, src_dir_fd=staging.fd, dst_dir_fd=staging.parent_fd)
        step("commit.after-rename")
        return Outcome("rename")
    if stat.S_ISDIR(old.st_mode) != directory and not replace:
        conflict(journal.target, new_is_directory=directory, replace=False)
    if not journal.inside and journal.phase == "committing" and (replace or not directory or _empty(staging)):
        outcome = _whole(staging, old, replace=replace)
        if outcome is not None:
            step("commit.after-rename")
            return outcome
    return _by_children(staging, replace=replace)


def merge_batch(staging: Staging) -> None:
    """Move what is staged into the target, over what is there, and leave the journal as it is (restores in place)."""
    make_private_directory(OLD, dir_fd=staging.fd)
    with (
        opened(STAGED, dir_fd=staging.fd) as new_fd,
        opened(OLD, dir_fd=staging.fd) as aside_fd,
        opened(staging.name or b".", dir_fd=staging.parent_fd) as old_fd,
    ):
        merger = _Merger(aside_fd, os.path.basename(staging.journal.staging), Outcome("files"), [])
        merger.move(new_fd, old_fd, top=False, replace=False)
    remove_tree(STAGED, dir_fd=staging.fd)


def _lstat(name: bytes, dir_fd: int) -> os.stat_result | None:
    try:
        return os.lstat(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return None


def _empty(staging: Staging) -> bool:
    with contextlib.suppress(OSError), opened(staging.name, dir_fd=staging.parent_fd) as fd:
        return not os.listdir(fd)
    return False


def _rename_in(staging: Staging) -> None:
    try:
        rename_noreplace(STAGED, staging.name, source_fd=staging.fd, target_fd=staging.parent_fd)
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
        os.rename(STAGED, staging.name, src_dir_fd=staging.fd, dst_dir_fd=staging.parent_fd)


def _whole(staging: Staging, old: os.stat_result, *, replace: bool) -> Outcome | None:
    """Exchange or rename the tree as a whole; None if that is not possible here."""
    name, parent_fd = staging.name, staging.parent_fd
    opened_up = _open_up(name, parent_fd, old)
    try:
        if stat.S_ISDIR(old.st_mode) and _empty(staging):
            with contextlib.suppress(OSError):
                os.rename(STAGED, name, src_dir_fd=staging.fd, dst_dir_fd=parent_fd)
                return Outcome("rename")
        if not replace:
            return None
        try:
            exchange(STAGED, name, source_fd=staging.fd, target_fd=parent_fd)
        except OSError as error:
            if error.errno in _NOT_WHOLE or error.errno not in _NO_EXCHANGE:
                raise
        else:
            return Outcome("exchange")
        # No exchange here: two renames. A kill between them leaves no target, and the journal says what to do.
        make_private_directory(OLD, dir_fd=staging.fd)
        os.rename(name, OLD + b"/top", src_dir_fd=parent_fd, dst_dir_fd=staging.fd)
        step("commit.old-aside")
        try:
            _rename_in(staging)
        except OSError:
            os.rename(OLD + b"/top", name, src_dir_fd=staging.fd, dst_dir_fd=parent_fd)
            raise
    except OSError as error:
        if opened_up:
            with contextlib.suppress(OSError):
                os.chmod(name, stat.S_IMODE(old.st_mode), dir_fd=parent_fd)
        if error.errno in _NOT_WHOLE and stat.S_ISDIR(old.st_mode):
            return None
        raise
    return Outcome("rename")


def _open_up(name: bytes, dir_fd: int, info: os.stat_result) -> bool:
    """Give ourselves write permission in a directory of ours: moving it changes its ``..``."""
    if stat.S_ISDIR(info.st_mode) and info.st_mode & 0o700 != 0o700 and info.st_uid == os.geteuid():
        os.chmod(name, stat.S_IMODE(info.st_mode) | 0o700, dir_fd=dir_fd)
        return True
    return False


def _by_children(staging: Staging, *, replace: bool) -> Outcome:
    outcome = Outcome("children")
    make_private_directory(OLD, dir_fd=staging.fd)
    if staging.name:
        info = os.lstat(staging.name, dir_fd=staging.parent_fd)
        _open_up(staging.name, staging.parent_fd, info)
        old_fd = open_directory(staging.name, dir_fd=staging.parent_fd)
    else:
        old_fd = os.dup(staging.parent_fd)
    moves: list[tuple[int, bytes, int, bytes]] = []
    try:
        with opened(STAGED, dir_fd=staging.fd) as new_fd, opened(OLD, dir_fd=staging.fd) as aside_fd:
            merger = _Merger(aside_fd, os.path.basename(staging.journal.staging), outcome, moves)
            try:
                if replace and staging.journal.phase != "extras-gone":
                    merger.take_extras(new_fd, old_fd)
                    staging.journal.phase = "extras-gone"
                    staging.journal.write(staging.fd)
                    step("commit.old-aside")
                merger.move(new_fd, old_fd, top=True, replace=replace)
            except OSError:
                # As long as only whole children were moved, the old tree can be put back as it was.
                if replace and outcome.level == "children":
                    for source_fd, source, target_fd, target in reversed(moves):
                        os.rename(target, source, src_dir_fd=target_fd, dst_dir_fd=source_fd)
                    staging.journal.phase = "staging"
                    staging.journal.write(staging.fd)
                raise
            fsync_directory(old_fd)
    finally:
        os.close(old_fd)
    step("commit.after-rename")
    return outcome


class _Merger:
    """Moves the children of one directory into another, name by name."""

    def __init__(
        self, aside_fd: int, staging_name: bytes, outcome: Outcome, moves: list[tuple[int, bytes, int, bytes]]
    ) -> None:
        self._aside_fd = aside_fd
        self._staging_name = staging_name
        self._outcome = outcome
        self._moves = moves
        self._count = 0

    def _aside(self, name: bytes, dir_fd: int) -> None:
        """Take an old child away: into staging, or, where it cannot be moved (a lower layer), by removing it."""
        self._count += 1
        aside = b"%d-%d" % (os.getpid(), self._count)
        try:
            os.rename(name, aside, src_dir_fd=dir_fd, dst_dir_fd=self._aside_fd)
            self._moves.append((dir_fd, name, self._aside_fd, aside))
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._outcome.level = "files"
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
                    self._outcome.extra += 1  # something is mounted there: it stays

    def move(self, new_fd: int, old_fd: int, *, top: bool, replace: bool) -> None:
        names = sorted(os.fsencode(name) for name in os.listdir(new_fd))
        if not replace:
            self._count_extra(set(names), old_fd)
        for number, name in enumerate(names):
            if name == _MARK:
                continue
            if top and number == len(names) // 2:
                step("commit.half")
            self._child(name, new_fd, old_fd, replace=replace)
            if not top:
                self._outcome.level = "files"
            step("commit.first-rename")

    def _child(self, name: bytes, new_fd: int, old_fd: int, *, replace: bool) -> None:
        new = os.lstat(name, dir_fd=new_fd)
        old = _lstat(name, old_fd)
        if old is not None and stat.S_ISDIR(old.st_mode):
            if stat.S_ISDIR(new.st_mode) and (not replace or not self._can_move(name, old_fd)):
                self._descend(name, new_fd, old_fd, old, replace=replace)
                return
            self._aside(name, old_fd)
        elif old is not None and (replace or stat.S_ISDIR(new.st_mode)):
            self._aside(name, old_fd)
        os.rename(name, name, src_dir_fd=new_fd, dst_dir_fd=old_fd)
        if old is None or replace:
            self._moves.append((new_fd, name, old_fd, name))
        elif not replace:
            self._outcome.level = "files"

    def _can_move(self, name: bytes, dir_fd: int) -> bool:
        """Move an old directory out of the way; False if this filesystem only lets its files go one by one."""
        self._count += 1
        aside = b"%d-%d" % (os.getpid(), self._count)
        info = os.lstat(name, dir_fd=dir_fd)
        _open_up(name, dir_fd, info)
        try:
            os.rename(name, aside, src_dir_fd=dir_fd, dst_dir_fd=self._aside_fd)
        except OSError as error:
            if error.errno not in {errno.EXDEV, errno.EBUSY}:
                raise
            return False
        self._moves.append((dir_fd, name, self._aside_fd, aside))
        return True

    def _descend(self, name: bytes, new_fd: int, old_fd: int, old: os.stat_result, *, replace: bool) -> None:
        self._outcome.level = "files"
        _open_up(name, old_fd, old)
        with opened(name, dir_fd=new_fd) as inner_new, opened(name, dir_fd=old_fd) as inner_old:
            if replace:
                self._remove_extras(inner_new, inner_old)
            self.move(inner_new, inner_old, top=False, replace=replace)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_MARK, dir_fd=inner_new)
        os.rmdir(name, dir_fd=new_fd)

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
                self._outcome.extra += 1


_MARK = b".cachekit-extras-gone"


def refuse(error: OSError, target: bytes) -> TargetNotWritable:
    """Return the error for a commit that the filesystem refused."""
    return TargetNotWritable(
        f"cannot move the restored tree into place: {error.strerror}", path=target, errno=error.errno
    )
