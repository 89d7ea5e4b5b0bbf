"""Staging: a private directory on the target's filesystem, where the new tree grows until it is whole."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import stat
from collections.abc import Sequence
from typing import Any

from cachekit.errors import NameConflict, NoSpace, TargetNotWritable
from cachekit.system.files import exists, fsync_directory, open_directory, remove_tree, replace_file
from cachekit.system.locks import try_lock
from cachekit.system.steps import step
from cachekit.targets.journal import FACTS_NAME, JOURNAL_NAME, STAGING_PREFIX, Journal

__all__ = ["OLD", "STAGED", "Staging", "is_mount_point", "left_behind", "make_staging", "open_staging"]

STAGED = b"new"
OLD = b"old"
_PRIVATE = {errno.EACCES, errno.EPERM, errno.EROFS}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_OCTAL = re.compile(rb"\\([0-7]{3})")


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
        for name in os.listdir(self.fd):
            if name != JOURNAL_NAME:
                remove_tree(os.fsencode(name), dir_fd=self.fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(JOURNAL_NAME, dir_fd=self.fd)
        # By path: its parent is the target itself or the target's parent, and either may have been renamed.
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(self.journal.staging)
        self.journal.forget()
        step("restore.cleaned")

    def abandon(self) -> None:
        """Remove staging after a failure, and the parent directories that were made for the target."""
        times = None
        if self.journal.inside:
            with contextlib.suppress(OSError):
                info = os.stat(self.journal.target)
                times = info.st_atime_ns, info.st_mtime_ns
        self.remove()
        if times is not None and self._mtime_ns is not None:
            with contextlib.suppress(OSError):
                os.utime(self.journal.target, ns=(times[0], self._mtime_ns))
        for path in reversed(self._made):
            with contextlib.suppress(OSError):
                os.rmdir(path)

    _mtime_ns: int | None = None

    def close(self) -> None:
        """Close the descriptors, which also ends the lock."""
        for fd in (self.fd, self.parent_fd):
            os.close(fd)


def is_mount_point(path: bytes) -> bool:
    """Return True if something is mounted at ``path``, a bind mount included. Links must be resolved."""
    try:
        if os.lstat(path).st_dev != os.lstat(os.path.dirname(path) or b"/").st_dev:
            return True
        with open("/proc/self/mountinfo", "rb") as file:
            points = {_OCTAL.sub(lambda m: bytes([int(m[1], 8)]), line.split(b" ")[4]) for line in file}
    except OSError:
        return False
    return path in points


def make_staging(target: bytes, mode: str, entry: dict[str, str]) -> Staging:
    """Make a staging directory for the absolute path ``target``: beside it, else inside it.

    Inside, when the target is a mount point or its parent cannot be written. Parents of the target that are missing
    are made, and removed again by ``abandon``. Raises TargetNotWritable, NoSpace.
    """
    parent = os.path.dirname(target)
    made = _make_parents(parent, target)
    try:
        parent = os.path.realpath(parent)
        target = os.path.join(parent, os.path.basename(target))
        info = os.lstat(target) if exists(target) else None
        directory = info is not None and stat.S_ISDIR(info.st_mode)
        name = STAGING_PREFIX + secrets.token_hex(8).encode()
        inside = directory and (target == b"/" or is_mount_point(target))
        if not inside:
            try:
                os.mkdir(os.path.join(parent, name), 0o700)
            except OSError as error:
                if error.errno not in _PRIVATE or not directory:
                    raise
                inside = True
        if inside:
            os.mkdir(os.path.join(target, name), 0o700)
    except OSError as error:
        for path in reversed(made):
            with contextlib.suppress(OSError):
                os.rmdir(path)
        raise _refusal(error, target) from None
    step("restore.staging-created")
    path = os.path.join(target if inside else parent, name)
    journal = Journal(target=target, staging=path, mode=mode, inside=inside, entry=entry)
    staging = open_staging(journal)
    assert staging is not None  # nobody else knows the name
    staging._made = made  # noqa: SLF001 - the factory of the class
    if info is not None:
        staging._mtime_ns = info.st_mtime_ns  # noqa: SLF001
    try:
        journal.write(staging.fd)
    except OSError as error:
        with contextlib.suppress(OSError):
            staging.abandon()
        staging.close()
        raise _refusal(error, target) from None
    step("restore.journal-staged")
    return staging


def _refusal(error: OSError, target: bytes) -> Exception:
    if error.errno in _FULL:
        return NoSpace(
            f"there is no room beside the target for even an empty directory: {error.strerror}",
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

    A staging directory without a journal was made and killed before anything happened: it is removed here.
    """
    found = []
    parent = os.path.realpath(os.path.dirname(target))
    target = os.path.join(parent, os.path.basename(target))
    for directory in (parent, target):
        try:
            names = [
                name for name in os.listdir(directory) if re.fullmatch(rb"\.cachekit-[0-9a-f]{16}", name)
            ]
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
            if journal is not None and journal.target == target:
                journal.staging = path
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
