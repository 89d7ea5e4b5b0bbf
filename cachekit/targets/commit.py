"""Moving a staged tree into its place: whole where the filesystem allows it, else by children, else file by file.

Every function here may be run again after a kill at any point and then goes on where it stopped: what is still in
staging has not been moved yet. ``new`` is the staged tree, ``old`` what the target held.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from cachekit.errors import NameConflict
from cachekit.model import STAGED
from cachekit.system.files import fsync_directory, make_private_directory, opened
from cachekit.system.native import exchange, rename_noreplace
from cachekit.system.steps import step
from cachekit.targets.merge import Merger, Outcome, lstat, open_directory_up
from cachekit.targets.staging import OLD, Staging

__all__ = ["Outcome", "commit", "conflict"]

_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}
#: A directory cannot be moved as a whole: a mount point, a lower layer of an overlay, no permission for its parent.
_NOT_WHOLE = {errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS}


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


def commit(staging: Staging, *, fresh: bool) -> Outcome:
    """Put the staged tree in its place and return how; ``fresh`` if no earlier run began with it.

    Replace: after a failure in a fresh run the old tree is put back, and the error is raised; a later run never puts
    anything back, for it does not know what was moved before it. Merge: what was moved stays, each file old or new as
    a whole. ``staging.touched`` then tells whether the target is not as it was. Raises NameConflict, OSError.
    """
    journal = staging.journal
    new = lstat(STAGED, staging.fd)
    old = lstat(staging.name, staging.parent_fd) if staging.name else os.fstat(staging.parent_fd)
    if new is None:
        return Outcome("rename")
    # The inode alone: device numbers change when a machine starts anew.
    if old is not None and [old.st_ino] == journal.new[1:]:
        return Outcome("rename")  # killed after the rename or exchange: what is staged now is the old tree
    step("commit.before-rename")
    replace = journal.mode == "replace"
    directory = stat.S_ISDIR(new.st_mode)
    if old is None:
        _rename_in(staging)
        staging.touched = True
        step("commit.after-rename")
        return Outcome("rename")
    if not stat.S_ISDIR(old.st_mode) and not directory:
        os.rename(STAGED, staging.name, src_dir_fd=staging.fd, dst_dir_fd=staging.parent_fd)
        staging.touched = True
        step("commit.after-rename")
        return Outcome("rename")
    if stat.S_ISDIR(old.st_mode) != directory and not replace:
        conflict(journal.target, new_is_directory=directory, replace=False)
    if not journal.inside and journal.phase == "committing" and (replace or not directory or _empty(staging)):
        outcome = _whole(staging, old, replace=replace)
        if outcome is not None:
            step("commit.after-rename")
            return outcome
    return _by_children(staging, replace=replace, fresh=fresh)


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
    """Exchange or rename the tree as a whole; None if that is not possible here, and nothing was moved."""
    name, parent_fd = staging.name, staging.parent_fd
    opened_up = open_directory_up(name, parent_fd, old)
    try:
        if stat.S_ISDIR(old.st_mode) and _empty(staging):
            with contextlib.suppress(OSError):
                os.rename(STAGED, name, src_dir_fd=staging.fd, dst_dir_fd=parent_fd)
                staging.touched = True
                return Outcome("rename")
        if not replace:
            return None
        try:
            exchange(STAGED, name, source_fd=staging.fd, target_fd=parent_fd)
            staging.touched = True
            return Outcome("exchange")
        except OSError as error:
            if error.errno not in _NO_EXCHANGE:
                raise
        # No exchange here: two renames. A kill between them leaves no target, and the journal says what to do.
        make_private_directory(OLD, dir_fd=staging.fd)
        os.rename(name, OLD + b"/top", src_dir_fd=parent_fd, dst_dir_fd=staging.fd)
        staging.touched = True
        step("commit.old-aside")
        try:
            _rename_in(staging)
        except OSError:
            os.rename(OLD + b"/top", name, src_dir_fd=staging.fd, dst_dir_fd=parent_fd)
            staging.touched = False
            raise
    except OSError as error:
        if opened_up and not staging.touched:
            with contextlib.suppress(OSError):
                os.chmod(name, stat.S_IMODE(old.st_mode), dir_fd=parent_fd)
        if error.errno in _NOT_WHOLE and stat.S_ISDIR(old.st_mode) and not staging.touched:
            return None
        raise
    return Outcome("rename")


def _by_children(staging: Staging, *, replace: bool, fresh: bool) -> Outcome:
    with contextlib.ExitStack() as stack:
        new_fd = stack.enter_context(opened(STAGED, dir_fd=staging.fd))
        make_private_directory(OLD, dir_fd=staging.fd)
        aside_fd = stack.enter_context(opened(OLD, dir_fd=staging.fd))
        merger = Merger(staging, aside_fd, Outcome("children"))
        if staging.name:
            merger.open_up(staging.name, staging.parent_fd)
        old_fd = stack.enter_context(opened(staging.name or b".", dir_fd=staging.parent_fd))
        try:
            if replace and staging.journal.phase != "extras-gone":
                merger.take_extras(new_fd, old_fd)
                staging.journal.phase = "extras-gone"
                staging.journal.write(staging.fd)
                step("commit.old-aside")
            merger.move(new_fd, old_fd, top=True, replace=replace)
        except OSError:
            if fresh and (replace or not staging.touched):
                merger.put_back()
            raise
        fsync_directory(old_fd)
    step("commit.after-rename")
    return merger.outcome
