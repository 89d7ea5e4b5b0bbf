"""Descriptor-relative file operations that keep their promises: whole writes, no following of links."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

__all__ = [
    "exists",
    "fsync_directory",
    "make_private_directory",
    "open_directory",
    "opened",
    "pread_exactly",
    "pwrite_all",
    "remove_tree",
    "replace_file",
]

DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

#: A path handed to the kernel must stay below PATH_MAX (4,096 with its NUL); longer ones are opened in pieces.
_PIECE = 3000


def open_directory(path: bytes, *, dir_fd: int | None = None, follow: bool = False) -> int:
    """Open a directory for use as ``dir_fd``; the last component must not be a symlink unless ``follow``.

    ``path`` may be longer than PATH_MAX. Raises OSError (ELOOP or ENOTDIR for a symlink).
    """
    flags = DIRECTORY_FLAGS & ~os.O_NOFOLLOW if follow else DIRECTORY_FLAGS
    if len(path) <= _PIECE:
        return os.open(path, flags, dir_fd=dir_fd)
    fd = dir_fd
    try:
        while len(path) > _PIECE:
            cut = path.rfind(b"/", 0, _PIECE)
            step = os.open(path[:cut] or b"/", flags, dir_fd=fd)
            if fd is not None and fd != dir_fd:
                os.close(fd)
            fd, path = step, path[cut + 1 :]
        return os.open(path, flags, dir_fd=fd)
    finally:
        if fd is not None and fd != dir_fd:
            os.close(fd)


@contextlib.contextmanager
def opened(path: bytes, *, dir_fd: int | None = None, follow: bool = False) -> Iterator[int]:
    """Open a directory for the time of a block."""
    fd = open_directory(path, dir_fd=dir_fd, follow=follow)
    try:
        yield fd
    finally:
        os.close(fd)


def exists(path: bytes | str, *, dir_fd: int | None = None) -> bool:
    """Return True if the name exists, also as a dangling symlink."""
    try:
        os.lstat(path, dir_fd=dir_fd)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def pwrite_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``. A short write goes on, so that the real error (ENOSPC, EDQUOT) is raised."""
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        if count == 0:
            raise OSError(errno.EIO, "the filesystem accepted no bytes and gave no error")
        offset += count
        view = view[count:]


def pread_exactly(fd: int, size: int, offset: int) -> bytes:
    """Read ``size`` bytes at ``offset``; fewer only if the file ends there."""
    data = os.pread(fd, size, offset)
    if len(data) == size or not data:
        return data
    pieces = [data]
    missing = size - len(data)
    while missing:
        data = os.pread(fd, missing, offset + size - missing)
        if not data:
            break
        pieces.append(data)
        missing -= len(data)
    return b"".join(pieces)


def fsync_directory(fd: int) -> None:
    """Make names in the directory durable. Filesystems that cannot fsync a directory (EINVAL) are left alone."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.EBADF}:
            raise


def replace_file(name: str, data: bytes, dir_fd: int) -> None:
    """Write a small file so that its name leads to the old or the new content at every moment, durably."""
    temporary = f".{name}.{os.getpid()}"
    fd = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=dir_fd
    )
    try:
        pwrite_all(fd, data, 0)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    fsync_directory(dir_fd)


def make_private_directory(path: bytes | str, mode: int = 0o700, *, dir_fd: int | None = None) -> bool:
    """Make a directory; return False if a directory of that name is there already. Raises OSError."""
    try:
        os.mkdir(path, mode, dir_fd=dir_fd)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path, dir_fd=dir_fd).st_mode):
            raise
        return False
    return True


def remove_tree(path: bytes, *, dir_fd: int | None = None) -> int:
    """Remove a file or a whole tree, following no link and crossing no mount; return how many names went.

    Directories without write permission are opened up first: they are ours, a restored Go module cache has them.
    Missing names are fine. Raises OSError for what cannot be removed.
    """
    try:
        info = os.lstat(path, dir_fd=dir_fd)
    except FileNotFoundError:
        return 0
    if not stat.S_ISDIR(info.st_mode):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path, dir_fd=dir_fd)
        return 1
    removed = _empty(path, dir_fd, info)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(path, dir_fd=dir_fd)
    return removed + 1


def _open_for_removal(name: bytes, dir_fd: int | None, info: os.stat_result) -> int:
    if info.st_mode & 0o700 != 0o700 and info.st_uid == os.geteuid():
        os.chmod(name, 0o700, dir_fd=dir_fd)
    return open_directory(name, dir_fd=dir_fd)


def _empty(path: bytes, dir_fd: int | None, info: os.stat_result) -> int:
    # An explicit stack of (descriptor, names still to visit): recursion would end at Python's limit in deep trees.
    removed = 0
    stack: list[tuple[int, bytes, list[bytes]]] = []
    try:
        fd = _open_for_removal(path, dir_fd, info)
        stack.append((fd, b"", [os.fsencode(name) for name in os.listdir(fd)]))
        while stack:
            fd, own_name, names = stack[-1]
            if not names:
                stack.pop()
                os.close(fd)
                if stack:
                    os.rmdir(own_name, dir_fd=stack[-1][0])
                    removed += 1
                continue
            name = names.pop()
            try:
                os.unlink(name, dir_fd=fd)
                removed += 1
            except FileNotFoundError:
                continue
            except (IsADirectoryError, PermissionError):
                below = os.lstat(name, dir_fd=fd)
                if not stat.S_ISDIR(below.st_mode):
                    raise
                if below.st_dev != info.st_dev:
                    raise OSError(
                        errno.EXDEV, "will not remove across a mount point", os.fsdecode(name)
                    ) from None
                child = _open_for_removal(name, fd, below)
                stack.append((child, name, [os.fsencode(n) for n in os.listdir(child)]))
    finally:
        for fd, _, _ in stack:
            os.close(fd)
    return removed
