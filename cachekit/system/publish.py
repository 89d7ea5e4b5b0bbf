"""A file that appears whole under its name, or not at all.

The sequence is restic's and borg's: a temporary file on the same filesystem, every write checked, fsync, then one
atomic step gives it its name, then fsync of the directory. The temporary file is alive while its flock is held.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import Literal, Self

from cachekit.system import process
from cachekit.system.files import exists, fsync_directory, pwrite_all
from cachekit.system.locking.measured import excludes
from cachekit.system.locks import try_lock
from cachekit.system.native import preallocate, rename_noreplace
from cachekit.system.steps import step

__all__ = ["TempFile", "link_as", "put_back", "sweep", "temporary_name"]

#: Where flock proves nothing (another host may hold it), a file that did not grow for this long is abandoned.
ABANDONED_SECONDS = 24 * 3600
_SUFFIX = ".part"
#: The least that is reserved in one piece.
_PIECE = 1 << 20
_CLAIM = ".claim"
#: Errors that mean that this filesystem has no hard links (or no more for this file).
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK}


def temporary_name(label: str) -> str:
    """Return a random name for a temporary file of this process, which ``sweep`` knows as one."""
    return f"{label}.{os.urandom(8).hex()}.{process.current()}{_SUFFIX}"


def link_as(name: bytes | str, new_name: bytes | str, source_fd: int, target_fd: int) -> None:
    """Give a file another name as well. Raises FileExistsError, OSError where that is not possible or not allowed."""
    os.link(name, new_name, src_dir_fd=source_fd, dst_dir_fd=target_fd, follow_symlinks=False)


class TempFile:
    """A temporary file in ``directory_fd``, locked, with a random name that no key can resemble.

    Commit is explicit: leaving the block without ``publish`` removes the file. Raises OSError from every step;
    nothing is ever half published.
    """

    def __init__(self, directory_fd: int, label: str) -> None:
        self._directory_fd = directory_fd
        self._published = False
        while True:
            self.name = temporary_name(label)
            self.fd = os.open(
                self.name,
                os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW,
                0o640,
                dir_fd=directory_fd,
            )
            step("save.temp-created")
            # A sweeper may have locked and removed the file between its creation and our lock: then start anew.
            try:
                if try_lock(self.fd) and os.fstat(self.fd).st_nlink == 1:
                    break
            except BaseException:  # also of a signal
                self.discard()
                raise
            self.discard()
        step("save.temp-locked")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def reserve(self, size: int) -> bool:
        """Take ``size`` bytes of disk now, visible to everybody in statvfs. False where the filesystem cannot.

        Raises OSError with ENOSPC or EDQUOT if there is not so much.
        """
        # In pieces: btrfs gives room back by whole extents only, and one call makes one extent. What is cut off at the
        # end would stay taken for as long as the entry lives.
        piece = max(_PIECE, size >> 10)
        try:
            for offset in range(0, size, piece):
                preallocate(self.fd, min(piece, size - offset), offset)
        except OSError as error:
            if error.errno in {errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV}:
                return False
            raise
        return True

    def unreserve(self) -> None:
        """Give back what ``reserve`` took; nothing may have been written."""
        os.ftruncate(self.fd, 0)

    def write(self, data: bytes, offset: int) -> None:
        """Write all of ``data`` at ``offset``."""
        pwrite_all(self.fd, data, offset)

    def finish(self, size: int) -> None:
        """Cut the file at ``size``, giving back what was reserved beyond, and make its content durable."""
        os.ftruncate(self.fd, size)
        os.fsync(self.fd)
        # Network and FUSE filesystems may report a failed write only when a descriptor is closed; the original one
        # must stay open, for it holds the lock.
        os.close(os.dup(self.fd))

    def publish(
        self, name: str, directory_fd: int, *, replace: bool = False
    ) -> Literal["published", "exists"]:
        """Give the file its name in ``directory_fd``; with ``replace``, over whatever has that name.

        "exists" means that another file has the name and this one is still temporary.
        """
        if replace:
            os.rename(self.name, name, src_dir_fd=self._directory_fd, dst_dir_fd=directory_fd)
            step("save.linked")
        elif not self._link(name, directory_fd):
            return "exists"
        self._published = True
        fsync_directory(directory_fd)
        step("save.published")
        return "published"

    def _link(self, name: str, directory_fd: int) -> bool:
        try:
            os.link(self.name, name, src_dir_fd=self._directory_fd, dst_dir_fd=directory_fd)
        except FileExistsError:
            # A repeated NFS request may report EEXIST for the link that it made itself: two names prove it ours.
            if os.fstat(self.fd).st_nlink != 2:
                return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return self._claim_and_rename(name, directory_fd)
        step("save.linked")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.name, dir_fd=self._directory_fd)
        step("save.temp-unlinked")
        return True

    def _claim_and_rename(self, name: str, directory_fd: int) -> bool:
        """Publish where there are no hard links: whoever makes the claim file may rename."""
        claim = f"{name}{_CLAIM}{_SUFFIX}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            claim_fd = os.open(claim, flags, 0o640, dir_fd=self._directory_fd)
        except FileExistsError:
            if not _remove_dead_claim(claim, self._directory_fd):
                return False
            try:
                claim_fd = os.open(claim, flags, 0o640, dir_fd=self._directory_fd)
            except FileExistsError:
                return False
        try:
            try_lock(claim_fd)
            with contextlib.suppress(OSError):  # a full disk: then a dead claim is only known by its age
                os.pwrite(claim_fd, str(process.current()).encode("ascii"), 0)
            if exists(name, dir_fd=directory_fd):
                return False
            os.rename(self.name, name, src_dir_fd=self._directory_fd, dst_dir_fd=directory_fd)
            step("save.linked")
            return True
        finally:
            os.close(claim_fd)
            with contextlib.suppress(FileNotFoundError):  # a sweeper may have seen it before it was locked
                os.unlink(claim, dir_fd=self._directory_fd)

    def discard(self) -> None:
        """Remove the file unless it was published; close it. Idempotent."""
        if self.fd < 0:
            return
        if not self._published:
            with contextlib.suppress(OSError):
                os.unlink(self.name, dir_fd=self._directory_fd)
        fd, self.fd = self.fd, -1
        with contextlib.suppress(OSError):  # what close can tell was asked for in finish
            os.close(fd)


def put_back(aside: str, aside_fd: int, name: str, directory_fd: int) -> None:
    """Give a file that was moved aside its name again, unless another file has it by now: then this one goes.

    Raises OSError; FileNotFoundError if somebody else did it.
    """
    try:
        link_as(aside, name, aside_fd, directory_fd)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        try:
            rename_noreplace(
                os.fsencode(aside), os.fsencode(name), source_fd=aside_fd, target_fd=directory_fd
            )
            return
        except FileExistsError:
            pass
        except OSError as missing:
            if missing.errno not in {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
                raise
            # Nothing left that tells and acts in one step. A save in between would be replaced by what it replaced.
            if not exists(name, dir_fd=directory_fd):
                os.rename(aside, name, src_dir_fd=aside_fd, dst_dir_fd=directory_fd)
                return
    step("prune.put-back")
    os.unlink(aside, dir_fd=aside_fd)


def sweep(directory_fd: int, label: str = "") -> int:
    """Remove temporary files that nobody writes any more; return how many. Never waits, never raises for one file.

    ``label``: only those made with it, in a directory where other people's files may be.
    """
    local = excludes(directory_fd)
    return sum(
        _remove_if_dead(name, directory_fd, local=local)
        for name in os.listdir(directory_fd)
        if name.endswith(_SUFFIX) and name.startswith(label)
    )


def _remove_if_dead(name: str, directory_fd: int, *, local: bool) -> bool:
    with contextlib.suppress(OSError):
        fd = os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory_fd)
        try:
            if try_lock(fd) and (local or _abandoned(name, fd)):
                os.unlink(name, dir_fd=directory_fd)
                return True
        finally:
            os.close(fd)
    return False


def _remove_dead_claim(name: str, directory_fd: int) -> bool:
    """Remove the claim of a process that was killed between claiming and renaming; False if it may be alive."""
    return _remove_if_dead(name, directory_fd, local=excludes(directory_fd))


def _abandoned(name: str, fd: int) -> bool:
    owner = name.removesuffix(_SUFFIX)
    if owner.endswith(_CLAIM):  # has one name for everybody: who made it stands in it
        owner = os.pread(fd, 200, 0).decode("ascii", "replace")
    identity = process.parse(".".join(owner.split(".")[-4:]))
    if identity is not None and identity.proven_dead():
        return True
    return time.time() - os.fstat(fd).st_mtime > ABANDONED_SECONDS
