"""Descriptor-relative file operations that keep their promises: whole writes, no following of links."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from cachekit.system.space import mount_points

__all__ = [
    "exists",
    "fsync_directory",
    "list_anew",
    "make_private_directory",
    "open_directory",
    "open_to_look",
    "opened",
    "pread_exactly",
    "put_in_place",
    "pwrite_all",
    "random_name",
    "reachable",
    "read_if_there",
    "remove_tree",
    "rename_file",
    "replace_file",
]


def random_name() -> str:
    """Return 16 random hex digits: a name that nobody else has or guesses (``secrets`` takes 8 ms to import)."""
    return os.urandom(8).hex()


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
            fd, path = step, path[cut + 1 :].lstrip(b"/")
        return os.open(path, flags, dir_fd=fd)
    finally:
        if fd is not None and fd != dir_fd:
            os.close(fd)


def open_to_look(path: bytes, *, dir_fd: int | None = None) -> int:
    """Open a directory to list it, without changing its access time where we may (ours, or root). Raises OSError."""
    flags = DIRECTORY_FLAGS | getattr(os, "O_NOATIME", 0)
    try:
        return os.open(path, flags, dir_fd=dir_fd)
    except PermissionError:
        return os.open(path, DIRECTORY_FLAGS, dir_fd=dir_fd)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return open_directory(path, dir_fd=dir_fd)


@contextlib.contextmanager
def opened(path: bytes, *, dir_fd: int | None = None, follow: bool = False) -> Iterator[int]:
    """Open a directory for the time of a block."""
    fd = open_directory(path, dir_fd=dir_fd, follow=follow)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def reachable(path: bytes, dir_fd: int) -> Iterator[tuple[int, bytes]]:
    """Give a descriptor and a name relative to it that the kernel takes, however long ``path`` is."""
    if len(path) <= _PIECE:
        yield dir_fd, path
        return
    parent, _, name = path.rpartition(b"/")
    with opened(parent, dir_fd=dir_fd) as fd:
        yield fd, name


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


def replace_file(name: str, data: bytes, dir_fd: int, *, mode: int = 0o600) -> None:
    """Write a small file so that its name leads to the old or the new content at every moment, durably.

    A kill may leave ``.<name>.new``; one process at a time may replace a name.
    """
    temporary = f".{name}.new"
    fd = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode, dir_fd=dir_fd
    )
    try:
        try:
            pwrite_all(fd, data, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=dir_fd)
        raise
    fsync_directory(dir_fd)


def put_in_place(path: str, data: bytes) -> None:
    """Write a small file so that its name leads to the old or the new content at every moment, for this user only.

    Not durable: after a crash it may have any content. Raises OSError.
    """
    temporary = f"{path}.{random_name()}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            pwrite_all(fd, data, 0)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def list_anew(dir_fd: int) -> list[str]:
    """Return the names in an open directory. Raises OSError.

    Through a descriptor of its own: over sshfs one that was listed before lists nothing the second time.
    """
    fd = os.open(".", DIRECTORY_FLAGS, dir_fd=dir_fd)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def read_if_there(name: str, dir_fd: int, size: int = 1 << 16) -> bytes | None:
    """Return the first ``size`` bytes of a file, opened anew; None if there is no such name. Raises OSError."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd)
    except FileNotFoundError:
        return None
    try:
        return pread_exactly(fd, size, 0)
    finally:
        os.close(fd)


def rename_file(old: str, new: str, dir_fd: int) -> None:
    """Give a file another name in its directory, over whatever has that name. Not made durable. Raises OSError."""
    os.rename(old, new, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)


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
    Missing names are fine. Raises OSError for what cannot be removed, EXDEV before anything is removed if something
    is mounted in the tree.
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


def _refuse_mounts(fd: int) -> None:
    """Raise EXDEV if the open directory is a mount point or has one below: device numbers do not tell bind mounts."""
    with contextlib.suppress(FileNotFoundError):  # no /proc: then only other devices are noticed
        top = os.readlink(f"/proc/self/fd/{fd}".encode())
        for point in mount_points():
            if point == top or point.startswith(top + b"/"):
                raise OSError(errno.EXDEV, "will not remove across a mount point", os.fsdecode(point))


def _empty(path: bytes, dir_fd: int | None, info: os.stat_result) -> int:
    # One descriptor and an explicit stack, and ".." to come back: a tree may be deeper than Python can recurse, and
    # than a process may have files open.
    removed = 0
    fd = _open_for_removal(path, dir_fd, info)
    try:
        _refuse_mounts(fd)
        here = os.fstat(fd)
        stack: list[tuple[os.stat_result, bytes, list[str]]] = [(here, b"", os.listdir(fd))]
        while True:
            here, own_name, names = stack[-1]
            if not names:
                stack.pop()
                if not stack:
                    return removed
                above = os.open(b"..", DIRECTORY_FLAGS, dir_fd=fd)
                os.close(fd)
                fd = above
                if not os.path.samestat(os.fstat(fd), stack[-1][0]):
                    raise OSError(errno.EBUSY, "the tree is being moved by somebody else", os.fsdecode(path))
                os.rmdir(own_name, dir_fd=fd)
                removed += 1
                continue
            name = os.fsencode(names.pop())
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
                os.close(fd)
                fd = child
                stack.append((os.fstat(fd), name, os.listdir(fd)))
    finally:
        os.close(fd)
