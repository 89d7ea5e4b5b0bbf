"""Opening directories of a tree that others may change meanwhile: never through a symlink, never on another mount.

openat2 refuses both in the kernel. Where it is missing (before Linux 5.6, or filtered in old containers) a directory
is opened without following a link, and then the mount that it lies on is compared: that tells bind mounts too.
"""

from __future__ import annotations

import errno
import functools
import os
import sys

from cachekit.system.native import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2

__all__ = ["Beneath", "open_parent"]

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_ATIME = getattr(os, "O_NOATIME", 0)
#: For directories that are only passed through: needs no permission to read them.
_PASS = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MISSING = {errno.ENOSYS, errno.EPERM, errno.EINVAL}
_PIECE = 3000


@functools.cache
def _has_openat2() -> bool:
    try:
        fd = openat2(
            b"/", _PASS, RESOLVE_NO_SYMLINKS, dir_fd=-100
        )  # AT_FDCWD; not used with an absolute path
    except OSError as error:
        if error.errno in _MISSING:
            return False
        raise
    os.close(fd)
    return True


def _pieces(path: bytes) -> list[bytes]:
    """Cut a path so that the kernel takes each part (PATH_MAX is 4,096)."""
    found = []
    while len(path) > _PIECE:
        cut = path.rfind(b"/", 0, _PIECE)
        found.append(path[:cut] or b"/")
        path = path[cut + 1 :].lstrip(b"/")
    found.append(path)
    return found


def _step(path: bytes, flags: int, resolve: int, dir_fd: int) -> int:
    if not _has_openat2():
        fd = dir_fd
        try:
            if path.startswith(b"/"):
                fd = os.open(b"/", _PASS)
            for name in (*filter(None, path.split(b"/")),):
                last = fd
                fd = os.open(name, _PASS, dir_fd=last)
                if last != dir_fd:
                    os.close(last)
            return os.open(b".", flags & ~_NO_ATIME, dir_fd=fd) if flags != _PASS else os.dup(fd)
        finally:
            if fd != dir_fd:
                os.close(fd)
    while True:
        try:
            return openat2(path, flags, resolve, dir_fd=dir_fd)
        except OSError as error:
            if error.errno == errno.EPERM and flags & _NO_ATIME:
                flags &= ~_NO_ATIME  # not ours, so its access time changes
            elif error.errno != errno.EAGAIN:
                raise


def open_parent(path: bytes) -> tuple[int, bytes]:
    """Return a descriptor of the directory that ``path`` is in, good for passing through only, and the last name.

    No part of the absolute ``path`` may be a symlink: ELOOP or ENOTDIR. Raises OSError.
    """
    path = os.path.abspath(path)
    above, _, name = path.rpartition(b"/")
    if not name:
        raise OSError(errno.EBUSY, "the root directory is not removed", "/")
    fd = -100
    for piece in _pieces(above or b"/"):
        last = fd
        try:
            fd = _step(piece, _PASS, RESOLVE_NO_SYMLINKS, last)
        finally:
            if last != -100:
                os.close(last)
    return fd, name


def _mount_id(fd: int) -> bytes:
    """Return the kernel's number of the mount that ``fd`` lies on; empty if it does not say."""
    if sys.platform != "linux":
        return b""
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
            return next((line for line in file if line.startswith(b"mnt_id:")), b"")
    except OSError:
        return b""


class Beneath:
    """Opens directories on the mount and filesystem of one directory, relative to any that it opened before."""

    def __init__(self, parent: int) -> None:
        """``parent``: a descriptor on the mount that is not to be left."""
        self.device = os.fstat(parent).st_dev
        self._quick = _has_openat2()
        self._mount = b"" if self._quick else _mount_id(parent)

    def open(self, path: bytes, dir_fd: int, *, passing: bool = False) -> int:
        """Open the directory at ``path`` below ``dir_fd``.

        EXDEV: something is mounted there, or it is another filesystem (a btrfs subvolume). ELOOP, ENOTDIR: there is no
        directory of that name. Raises OSError for everything else too. ``passing``: only to go further down from it.
        """
        flags = _PASS if passing else _FLAGS | _NO_ATIME
        fd = dir_fd
        for piece in _pieces(path) if len(path) > _PIECE else (path,):
            last = fd
            try:
                fd = _step(piece, flags, RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH, last)
            finally:
                if last != dir_fd:
                    os.close(last)
        if not self._quick and self._mount and _mount_id(fd) != self._mount:
            os.close(fd)
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), os.fsdecode(path))
        return fd
