"""Emptying a directory, in one process: what may not go stays and is told, everything else goes.

Relative to descriptors all the way, so that a name that somebody swaps for a symlink leads nowhere. One explicit stack,
and descriptors only for its upper end: a tree may be deeper than Python can recurse and than files may be open. While
others are idle, whole directories that were not begun are handed to them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Generator, Iterator
from itertools import islice
from typing import Protocol

from cachekit.system.holders import Sockets
from cachekit.system.locks import try_lock
from cachekit.system.removal.beneath import Beneath
from cachekit.system.removal.shared import Tally

__all__ = ["FULL", "KEPT", "LOCKED", "Sweeper", "lock", "open_up", "reason", "special"]

#: How many of the things that stay are told by name.
KEPT = 100

#: Copy-on-write filesystems need room to remove a name.
FULL = "the filesystem is too full to remove it"
LOCKED = "locked by somebody (flock)"

_BATCH = 1024
#: Names of sub-directories held for one directory; the rest is read when these are done.
_HELD = 4096
#: Descriptors kept for the innermost levels.
_OPEN = 32
#: A filesystem may hide names from a reader while others are removed, and somebody may add some: look again so often.
_LOOKS = 50

_WHY = {
    errno.EACCES: "no permission",
    errno.EPERM: "not permitted: another user's, or marked immutable",
    errno.EROFS: "the filesystem is read-only",
    errno.EBUSY: "in use as a mount point",
    errno.EXDEV: "another filesystem is mounted there",
    errno.ELOOP: "became a symlink while it was removed",
    errno.ENOTDIR: "was replaced while it was removed",
    errno.ENOTEMPTY: "somebody keeps writing into it",
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.ESTALE: "was moved while it was removed",
}
_GONE = errno.ENOENT
_KINDS = {stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFDIR}
#: What a lock on a directory may say where the filesystem has none for directories (NFS).
_NO_LOCKS = {errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP}


def reason(error: OSError) -> str:
    """Say why something stays, in words for people."""
    return _WHY.get(error.errno or 0) or os.strerror(error.errno or errno.EIO)


def special(info: os.stat_result, name: str, sockets: Sockets) -> str:
    """Say why something other than a file or directory stays; empty if it may go."""
    if stat.S_ISBLK(info.st_mode):
        return "a device"
    # 0/0 is no device: an overlay's mark for "not there".
    if stat.S_ISCHR(info.st_mode) and info.st_rdev:
        return "a device"
    if stat.S_ISSOCK(info.st_mode) and sockets.has(info, os.fsencode(name)):
        return "a socket in use"
    return ""


def lock(fd: int) -> bool:
    """Lock an open directory, as those do who want it to be left alone; False if somebody has."""
    try:
        return try_lock(fd)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return True


def open_up(name: bytes, parent: int, beneath: Beneath) -> tuple[int, int | None]:
    """Open a directory so that its names can be removed; with its old mode if that had to be changed for it.

    EXDEV: it is on another mount or filesystem. Raises OSError.
    """
    old = None
    try:
        fd = beneath.open(name, parent)
    except PermissionError as error:
        # Its own owner may not read it: opened up through a descriptor that needs no permission.
        passing = beneath.open(name, parent, passing=True)
        try:
            info = os.fstat(passing)
            if info.st_uid != os.geteuid() or info.st_mode & 0o700 == 0o700:
                raise
            try:
                os.chmod(f"/proc/self/fd/{passing}", 0o700)
            except OSError:
                raise error from None
            old = stat.S_IMODE(info.st_mode)
        finally:
            os.close(passing)
        fd = beneath.open(name, parent)
    info = os.fstat(fd)
    if info.st_dev != beneath.device:
        os.close(fd)
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), os.fsdecode(name))
    if old is None and info.st_mode & 0o300 != 0o300 and info.st_uid == os.geteuid():
        with contextlib.suppress(OSError):
            os.fchmod(fd, 0o700)
            old = stat.S_IMODE(info.st_mode)
    return fd, old


class _Scan(Protocol):
    """What ``os.scandir`` returns."""

    def __iter__(self) -> Iterator[os.DirEntry[str]]: ...

    def __next__(self) -> os.DirEntry[str]: ...

    def close(self) -> None: ...


class _Level:
    """One directory on the way down."""

    __slots__ = (
        "again",
        "fd",
        "handed",
        "identity",
        "looks",
        "mode",
        "more",
        "name",
        "pending",
        "size",
        "stays",
    )

    def __init__(self, name: bytes, fd: int, info: os.stat_result, mode: int | None) -> None:
        self.name = name
        #: -1: closed for now, found again through the ".." of the level below.
        self.fd = fd
        self.identity = (info.st_dev, info.st_ino)
        self.size = info.st_blocks * 512
        #: The mode it had before it was opened up, to be put back if it stays.
        self.mode = mode
        self.pending: list[bytes] = []
        self.more: _Scan | None = None
        #: Something in it stays for good / is somebody else's work now / went since it was last read.
        self.stays = False
        self.handed = False
        self.again = False
        self.looks = 0

    def close(self) -> None:
        if self.more is not None:
            self.more.close()
            self.more = None
        if self.fd >= 0:
            os.close(self.fd)


class Sweeper:
    """Empties directories below ``top``. ``shown`` is the path by which the top is known to people."""

    def __init__(self, top: int, shown: bytes, sockets: Sockets, tally: Tally, *, budget: int | None) -> None:
        """``budget``: after so many names, all directories not begun are handed over; None: only to the idle."""
        self._top = top
        self._shown = shown
        self._sockets = sockets
        self._tally = tally
        self._budget = budget
        self._beneath = Beneath(top)
        self._items = self._size = self._left = self._total = 0
        self.left: list[tuple[bytes, str]] = []
        #: Directories that can only go when what was handed over is gone, the deepest first, relative to the top.
        self.deferred: list[bytes] = []
        self._told = 0
        self._stack: list[_Level] = []
        self._base = b""

    def sweep(self, path: bytes) -> Generator[bytes, None, None]:
        """Empty the directory at ``path`` relative to the top, and remove it unless ``path`` is empty: the top itself.

        Yields paths of directories that are handed over. Raises nothing for what cannot be removed.
        """
        parent = self._top
        above, _, name = path.rpartition(b"/")
        self._base = path
        try:
            if path:
                if above:
                    parent = self._beneath.open(above, self._top, passing=True)
                self._enter(name, parent)
            else:
                fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._top)
                self._stack.append(_Level(b"", fd, os.fstat(fd), None))
        except OSError as error:
            if error.errno != _GONE:
                self._stay(path, reason(error))
        try:
            yield from self._run(parent)
        finally:
            for level in self._stack:
                level.close()
            self._stack.clear()
            if parent != self._top:
                os.close(parent)
            self._flush()

    def _run(self, parent: int) -> Iterator[bytes]:
        stack = self._stack
        if stack:
            self._read(stack[-1])
        while stack:
            level = stack[-1]
            if not level.pending and level.more is not None:
                self._read(level)
                continue
            if level.pending:
                yield from self._share()
            if level.pending:
                if self._enter(level.pending.pop(), level.fd):
                    self._read(stack[-1])
                continue
            self._leave(parent)

    # ------------------------------------------------------------------------------------------------------- sharing

    def _share(self) -> Iterator[bytes]:
        if self._budget is not None:
            if self._total + self._items < self._budget:
                return
            for depth, level in enumerate(self._stack):
                while level.pending:
                    yield self._hand(depth)
            return
        while self._tally.take():
            for depth, level in enumerate(self._stack):
                # The directory nearest to the top, where most is to be expected below; one stays for this process.
                if len(level.pending) > (depth == len(self._stack) - 1):
                    yield self._hand(depth)
                    break
            else:
                return

    def _hand(self, depth: int) -> bytes:
        for level in self._stack[: depth + 1]:
            level.handed = True
        return self._path(self._stack[depth].pending.pop(), depth + 1)

    # -------------------------------------------------------------------------------------------------- going down, up

    def _path(self, name: bytes, depth: int | None = None) -> bytes:
        """Return the path of a name in the level above ``depth`` (in the last one), relative to the top."""
        parts = [self._base, *(level.name for level in self._stack[1:depth]), name]
        return b"/".join(part for part in parts if part)

    def _enter(self, name: bytes, parent: int) -> bool:
        """Open a directory as the next level; False if it stays, with the reason told, or is gone."""
        try:
            fd, mode = open_up(name, parent, self._beneath)
        except OSError as error:
            if error.errno != _GONE:
                self._stay(self._path(name) if self._stack else self._base, reason(error))
            return False
        why = ""
        if name == b"lost+found":
            why = "the filesystem's own"
        elif not lock(fd):
            why = LOCKED
        if why:
            os.close(fd)
            self._stay(self._path(name) if self._stack else self._base, why)
            return False
        stack = self._stack
        stack.append(_Level(name, fd, os.fstat(fd), mode))
        if len(stack) > _OPEN and stack[-1 - _OPEN].more is None and stack[-1 - _OPEN].fd >= 0:
            os.close(stack[-1 - _OPEN].fd)
            stack[-1 - _OPEN].fd = -1
        return True

    def _leave(self, parent: int) -> None:
        """Remove the innermost level, now that it is empty, or say why it stays."""
        stack = self._stack
        level = stack[-1]
        path = self._path(b"")
        above = stack[-2] if len(stack) > 1 else None
        if level.handed and not level.stays and path:
            self.deferred.append(path)
        if above is not None and above.fd < 0 and not self._climb(level, above):
            return
        if not level.handed and not level.stays and path:
            try:
                os.rmdir(level.name, dir_fd=parent if above is None else above.fd)
                self._items += 1
                self._size += level.size
                if above is not None:
                    above.again = True
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno in {errno.ENOTEMPTY, errno.EEXIST} and level.again and level.looks < _LOOKS:
                    self._read(level)
                    return
                self._stay(path, reason(error))
        stack.pop()
        if above is not None:
            above.stays |= level.stays
        if level.stays and level.mode is not None:
            with contextlib.suppress(OSError):
                os.fchmod(level.fd, level.mode)
        level.close()
        self._flush()

    def _climb(self, level: _Level, above: _Level) -> bool:
        """Open the level above again; False if it is another directory now, which ends the work on this tree."""
        fd = os.open(b"..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=level.fd)
        info = os.fstat(fd)
        if (info.st_dev, info.st_ino) == above.identity:
            above.fd = fd
            return True
        os.close(fd)
        self._stay(self._path(b""), _WHY[errno.ESTALE])
        while self._stack:
            self._stack.pop().close()
        return False

    # ------------------------------------------------------------------------------------------------------- removing

    def _read(self, level: _Level) -> None:
        """Remove everything but directories, and note those; at most some thousands of them at a time."""
        if level.more is None:
            level.again = False
            level.looks += 1
            try:
                level.more = os.scandir(level.fd)
            except OSError as error:
                self._stay(self._path(b""), reason(error))
                return
        pending = level.pending
        try:
            while len(pending) < _HELD:
                batch = list(islice(level.more, _BATCH))
                if not batch:
                    break
                for entry in batch:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(os.fsencode(entry.name))
                    else:
                        self._unlink(entry, level)
                self._flush()
            else:
                return
        except OSError as error:
            self._stay(self._path(b""), reason(error))
        level.more.close()
        level.more = None

    def _unlink(self, entry: os.DirEntry[str], level: _Level) -> None:
        name = entry.name
        try:
            info = entry.stat(follow_symlinks=False)
            if info.st_mode & 0o170000 not in _KINDS and (why := special(info, name, self._sockets)):
                self._stay(self._path(os.fsencode(name)), why)
                return
            os.unlink(name, dir_fd=level.fd)
            self._items += 1
            level.again = True
            if info.st_nlink < 2:
                self._size += info.st_blocks * 512
        except FileNotFoundError:
            level.again = True
        except IsADirectoryError:
            level.pending.append(os.fsencode(name))
        except OSError as error:
            self._stay(self._path(os.fsencode(name)), reason(error))

    def _stay(self, path: bytes, why: str) -> None:
        if self._stack:
            self._stack[-1].stays = True
        self._left += 1
        if self._told < KEPT:
            self._told += 1
            self.left.append((b"/".join(filter(None, (self._shown, path))), why))

    def _flush(self) -> None:
        self._total += self._items
        self._tally.add(self._items, self._size, self._left)
        self._items = self._size = self._left = 0
