"""Staging: a private directory on the target's filesystem, where the new tree grows until it is whole."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import time
from collections.abc import Sequence
from typing import Any

from cachekit.errors import NameConflict, NoSpace, TargetNotWritable
from cachekit.model import JOURNAL_NAME, STAGING_PREFIX
from cachekit.system.files import (
    exists,
    fsync_directory,
    open_directory,
    opened,
    random_name,
    remove_tree,
    replace_file,
)
from cachekit.system.locks import try_lock
from cachekit.system.space import free_space, mount_points
from cachekit.system.steps import step
from cachekit.targets.journal import FACTS_NAME, Journal, real_place

__all__ = [
    "OLD",
    "Staging",
    "goes_inside",
    "is_mount_point",
    "left_behind",
    "make_staging",
    "open_staging",
    "set_directory",
    "sync_parent",
]

OLD = b"old"
_PRIVATE = {errno.EACCES, errno.EPERM, errno.EROFS}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_NAME = re.compile(re.escape(STAGING_PREFIX) + rb"[0-9a-f]{16}")


class Staging:
    """An open staging directory and its target: ``fd`` and ``parent_fd`` are open until ``close``.

    ``name`` is the target's name in its parent. The directory is locked while it is in use, so that another process
    can tell a killed restore from a running one.
    """

    def __init__(self, fd: int, parent_fd: int, journal: Journal, made: Sequence[bytes] = ()) -> None:
        self.fd = fd
        self.parent_fd = parent_fd
        self.journal = journal
        self.name = os.path.basename(journal.target)
        #: Whether a commit has moved anything; only of interest while it runs.
        self.touched = False
        self._made = list(made)

    def write_facts(self, facts: Sequence[Sequence[Any]]) -> None:
        """Keep what the directories shall be (see ``archive.extract.directory_facts``) for after the commit."""
        rows = [[row[0].decode("latin-1"), *row[1:]] for row in facts]
        replace_file(FACTS_NAME, json.dumps(rows).encode("ascii"), self.fd)

    def read_facts(self) -> list[tuple[bytes, int, int, int, int]]:
        """Return what ``write_facts`` kept; nothing if it was never written."""
        try:
            fd = os.open(FACTS_NAME, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.fd)
        except FileNotFoundError:
            return []
        with open(fd, encoding="ascii") as file:
            return [(row[0].encode("latin-1"), *row[1:]) for row in json.load(file)]

    def remove(self) -> None:
        """Remove the staging directory with all that is in it, the journal last, and forget the pointer."""
        last = (FACTS_NAME, JOURNAL_NAME)
        root = self._root_at_end() if self.journal.inside else None
        # By a new descriptor: on btrfs one shows only the names that were there when it was opened.
        with opened(b".", dir_fd=self.fd) as fresh:
            names = os.listdir(fresh)
        for name in names:
            if name not in last:
                remove_tree(os.fsencode(name), dir_fd=self.fd)
        for name in last:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self.fd)
        # By path: its parent is the target itself or the target's parent, and either may have been renamed.
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(self.journal.staging)
        if root is not None:
            with contextlib.suppress(FileNotFoundError), opened(self.journal.target) as fd:
                set_directory(fd, *root, same_owner=self.journal.same_owner)
        self.journal.forget()
        step("restore.cleaned")

    def _root_at_end(self) -> tuple[int, int, int, int]:
        """Return what the target's own directory shall be once staging is no longer inside it."""
        info = os.stat(self.journal.target)
        if self.journal.phase == "cleaning":
            for path, *facts in self.read_facts():
                if not path:
                    mode, mtime_ns, uid, gid = facts
                    return mode, mtime_ns, uid, gid
        untouched = self.journal.phase == "staging" and self.journal.mtime_ns is not None
        mtime = self.journal.mtime_ns if untouched else info.st_mtime_ns
        assert mtime is not None
        return stat.S_IMODE(info.st_mode), mtime, info.st_uid, info.st_gid

    def abandon(self) -> None:
        """Remove staging after a failure, and the parent directories that were made for the target."""
        for pause in (0.01, 0.05, 0.2, 0.5):
            try:
                self.remove()
                break
            except OSError as error:
                # A worker that was killed may have left a file to be made by a server that has not heard of its end.
                if error.errno != errno.ENOTEMPTY:
                    raise
                time.sleep(pause)
        else:
            self.remove()
        for path in reversed(self._made):
            with contextlib.suppress(OSError):
                os.rmdir(path)

    def close(self) -> None:
        """Close the descriptors, which also ends the lock."""
        for fd in (self.fd, self.parent_fd):
            os.close(fd)


def set_directory(fd: int, mode: int, mtime_ns: int, uid: int, gid: int, *, same_owner: bool) -> None:
    """Give an open directory its owner (if asked), mode and time, whichever of them differs.

    A directory of somebody else's that we may only fill (a volume with mode 0777) keeps its own.
    """
    info = os.fstat(fd)
    if os.geteuid() not in {0, info.st_uid}:
        return
    if same_owner and (info.st_uid, info.st_gid) != (uid, gid):
        os.fchown(fd, uid, gid)
        info = os.fstat(fd)
    if stat.S_IMODE(info.st_mode) != mode:
        os.fchmod(fd, mode)
    if info.st_mtime_ns != mtime_ns:
        os.utime(fd, ns=(info.st_atime_ns, mtime_ns))


def is_mount_point(path: bytes) -> bool:
    """Return True if something is mounted at ``path``, a bind mount included. Links must be resolved."""
    try:
        if os.lstat(path).st_dev != os.lstat(os.path.dirname(path) or b"/").st_dev:
            return True
    except OSError:
        return False
    return path in mount_points()


def goes_inside(target: bytes) -> bool:
    """Tell, touching nothing, whether the staging directory of a target will have to be inside it."""
    if os.path.islink(target) or not os.path.isdir(target):
        return False
    parent = os.path.dirname(real_place(target))
    closed = not os.access(parent, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)
    return closed or target == b"/" or is_mount_point(target)


def make_staging(target: bytes, mode: str, entry: dict[str, str]) -> Staging:
    """Make a staging directory for the absolute path ``target``: beside it, else inside it.

    Inside, when the target is a mount point or its parent cannot be written. Parents of the target that are missing
    are made, and removed again by ``abandon``. Raises TargetNotWritable, NoSpace.
    """
    made = _make_parents(os.path.dirname(target), target)
    path = b""
    try:
        target = real_place(target)
        info = os.lstat(target) if exists(target) else None
        path, inside = _make_directory(target, info)
        step("restore.staging-created")
        journal = Journal(target=target, staging=path, mode=mode, inside=inside, entry=entry)
        if info is not None:
            journal.mtime_ns = info.st_mtime_ns
        staging = _open_made(journal, info)
    except BaseException as error:  # also of a signal: nobody else knows of the directories yet
        for one in (path, *reversed(made)):
            with contextlib.suppress(OSError):
                os.rmdir(one)
        if isinstance(error, OSError):
            raise _refusal(error, target) from None
        raise
    staging._made = made  # noqa: SLF001 - the factory of the class
    try:
        journal.write(staging.fd)
    except BaseException as error:
        with contextlib.suppress(OSError):
            staging.abandon()
        staging.close()
        if isinstance(error, OSError):
            raise _refusal(error, target) from None
        raise
    step("restore.journal-staged")
    return staging


def _make_directory(target: bytes, info: os.stat_result | None) -> tuple[bytes, bool]:
    """Make the directory; return its path and whether it is inside the target."""
    name = STAGING_PREFIX + random_name().encode()
    directory = info is not None and stat.S_ISDIR(info.st_mode)
    inside = directory and (target == b"/" or is_mount_point(target))
    if not inside:
        path = os.path.join(os.path.dirname(target), name)
        try:
            os.mkdir(path, 0o700)
        except OSError as error:
            if error.errno not in _PRIVATE or not directory:
                raise
        else:
            return path, False
    path = os.path.join(target, name)
    os.mkdir(path, 0o700)
    return path, True


def _open_made(journal: Journal, info: os.stat_result | None) -> Staging:
    """Open and lock the directory just made; another one if somebody took it for an abandoned one meanwhile.

    Between its making and its lock a new staging directory looks like one whose maker was killed at once.
    """
    while True:
        with contextlib.suppress(FileNotFoundError):
            staging = open_staging(journal)
            if staging is not None:
                if exists(journal.staging):
                    return staging
                staging.close()
        if not exists(os.path.dirname(journal.staging)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if not exists(journal.staging):
            journal.staging, journal.inside = _make_directory(journal.target, info)


def _refusal(error: OSError, target: bytes) -> Exception:
    if error.errno in _FULL:
        place = os.path.dirname(target)
        while not os.path.isdir(place):
            place = os.path.dirname(place)
        full = "there is no room beside the target for even an empty directory"
        with contextlib.suppress(OSError):
            if free_space(place).inodes == 0:
                full = "the target's filesystem has no inodes left: it can hold no more files"
        return NoSpace(
            f"{full}: {error.strerror}",
            path=target,
            errno=error.errno,
        )
    if error.errno in {errno.ENOTDIR, errno.EEXIST, errno.ELOOP}:
        return NameConflict(f"a parent of the target is no directory: {error.strerror}", path=target)
    return TargetNotWritable(
        f"cannot write to the target's place: {error.strerror}",
        path=target,
        errno=error.errno,
        hint="check the owner and the permissions of the directory that holds the target",
    )


def _make_parents(parent: bytes, target: bytes) -> list[bytes]:
    missing = []
    while parent and not exists(parent):
        missing.append(parent)
        parent = os.path.dirname(parent)
    made: list[bytes] = []
    for path in reversed(missing):
        try:
            os.mkdir(path)
            made.append(path)
        except FileExistsError:
            continue
        except OSError as error:
            for one in reversed(made):
                with contextlib.suppress(OSError):
                    os.rmdir(one)
            raise _refusal(error, target) from None
    return made


def open_staging(journal: Journal) -> Staging | None:
    """Open and lock an existing staging directory; None if another process is using it.

    Raises FileNotFoundError when it is gone.
    """
    fd = open_directory(journal.staging)
    try:
        if not try_lock(fd):
            os.close(fd)
            return None
        parent_fd = open_directory(os.path.dirname(journal.target), follow=True)
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(fd)
        raise
    return Staging(fd, parent_fd, journal)


def left_behind(target: bytes) -> list[Journal]:
    """Return the journals of staging directories beside and inside ``target``: what a killed restore left.

    They are known by where they lie, not by the path in them: the tree may have been moved, or be mounted elsewhere.
    A staging directory without a journal was made and killed before anything happened: it is removed here.
    """
    found = []
    target = real_place(target)
    for directory, inside in ((os.path.dirname(target), False), (target, True)):
        try:
            names = [name for name in os.listdir(directory) if _NAME.fullmatch(name)]
        except OSError:
            continue
        for name in names:
            path = os.path.join(directory, name)
            try:
                with open(os.path.join(path, os.fsencode(JOURNAL_NAME)), "rb") as file:
                    journal = Journal.load(file.read())
            except FileNotFoundError:
                _remove_if_free(path)
                continue
            except OSError:
                continue
            if (
                journal is not None
                and journal.inside == inside
                and (inside or os.path.basename(journal.target) == os.path.basename(target))
            ):
                journal.staging, journal.target = path, target
                found.append(journal)
    return found


def _remove_if_free(path: bytes) -> None:
    with contextlib.suppress(OSError):
        fd = open_directory(path)
        try:
            if try_lock(fd) and os.fstat(fd).st_uid == os.geteuid():
                remove_tree(path)
        finally:
            os.close(fd)


def sync_parent(staging: Staging) -> None:
    """Make the target's new name durable."""
    fsync_directory(staging.parent_fd)
