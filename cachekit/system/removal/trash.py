"""Renaming a directory out of the way, so that its path is free at once, and then removing it.

The new name lies in the same directory: the same filesystem, and no permission on the renamed directory is needed. What
a killed run leaves is found by that name, and by a note in the state directory; the next run finishes it. While it is
worked on, a trash directory is locked (flock).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from cachekit.system.files import random_name
from cachekit.system.holders import Sockets, live_sockets
from cachekit.system.native import rename_noreplace
from cachekit.system.removal.beneath import Beneath, open_parent
from cachekit.system.removal.sweeper import LOCKED, lock, open_up, reason
from cachekit.system.removal.tree import Removed, remove_in
from cachekit.system.space import mount_points
from cachekit.system.state import make_as_owner, state_directory
from cachekit.system.steps import step

__all__ = ["discard", "discard_all", "finish", "is_trash", "leftovers"]

_PREFIX = b".cachekit-trash-"
_NAME = re.compile(rb"\.cachekit-trash-[0-9a-f]{16}")
_TAKEN = "its name was taken meanwhile, so the rest is now "
_REPLACED = "was replaced by somebody else"

#: Says why a directory, now at the given path, is to stay after all; None if it may go.
LookAgain = Callable[[bytes], str | None]


def is_trash(name: bytes) -> bool:
    """Return whether this is the last part of the path of a trash directory."""
    return _NAME.fullmatch(name) is not None


def discard(
    path: bytes,
    *,
    look_again: LookAgain | None = None,
    workers: int | None = None,
    sockets: Sockets | None = None,
) -> Removed:
    """Remove a file or tree like ``remove``, its path being free before the first of its files goes.

    Where it cannot be renamed, or something is mounted in it, it is removed where it is. ``look_again`` is asked when
    nobody can reach it by its path any more; if it gives a reason, the directory is put back. So is what cannot be
    removed, unless the path was taken meanwhile.
    """
    steps = _discard(path, workers, sockets)
    try:
        next(steps)
        steps.send(look_again)
    except StopIteration as end:
        removed = end.value
        assert isinstance(removed, Removed)
        return removed
    raise AssertionError("a discard has two steps")


def discard_all(
    paths: Iterable[bytes], *, look: Callable[[], LookAgain | None], workers: int | None = None
) -> Removed:
    """Remove several like ``discard``, with one look for all of them: ``look`` is called after the last was renamed.

    For many small ones: a look at all processes costs more than such a tree. They should be few enough to be open all
    at once (two descriptors each).
    """
    total = Removed()
    sockets = live_sockets()
    begun = []
    try:
        for path in paths:
            steps = _discard(path, workers, sockets)
            try:
                next(steps)
                begun.append(steps)
            except StopIteration as end:
                total.add(end.value)
        look_again = look() if begun else None
        while begun:
            try:
                begun[0].send(look_again)
            except StopIteration as end:
                total.add(end.value)
            del begun[0]
    finally:
        for steps in begun:
            steps.close()
    return total


_Steps: TypeAlias = Generator[None, LookAgain | None, Removed]


def _discard(path: bytes, workers: int | None, sockets: Sockets | None) -> _Steps:
    """Rename at the first step; at the second, given who is to be asked, remove or put back."""
    try:
        parent, name = open_parent(path)
    except FileNotFoundError:
        return Removed()
    except OSError as error:
        return _kept(path, reason(error))
    try:
        if sockets is None:
            sockets = live_sockets()
        if not stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
            yield
            return remove_in(parent, name, path, workers=workers, sockets=sockets)
        fd, mode = open_up(name, parent, Beneath(parent))
        try:
            removed = yield from _Discard(parent, name, path, fd, workers, sockets).run()
            if removed.left_count and mode is not None:
                with contextlib.suppress(OSError):
                    os.fchmod(fd, mode)
            return removed
        finally:
            os.close(fd)
    except FileNotFoundError:
        return Removed()
    except OSError as error:
        return _kept(path, reason(error))
    finally:
        os.close(parent)


def _kept(path: bytes, why: str) -> Removed:
    return Removed(left=[(path, why)], left_count=1)


@dataclass(slots=True)
class _Discard:
    """One directory, open as ``fd`` and known as ``name`` in ``parent``."""

    parent: int
    name: bytes
    path: bytes
    fd: int
    workers: int | None
    sockets: Sockets

    def run(self) -> _Steps:
        if self.name == b"lost+found":
            return _kept(self.path, "the filesystem's own")
        if not lock(self.fd):
            return _kept(self.path, LOCKED)
        if _mounted_below(self.fd):
            return self._in_place((yield))
        number = random_name()
        trash = _PREFIX + number.encode()
        with _noted(number, os.fstat(self.fd), self.name, _beside(self.path, trash)):
            try:
                _rename(self.name, trash, self.parent)
            except OSError:
                return self._in_place((yield))
            step("clean.renamed")
            try:
                look_again = yield
            except GeneratorExit:  # something went wrong with another one of the lot
                self._put_back(trash)
                raise
            return self._as_trash(trash, look_again)

    def _in_place(self, look_again: LookAgain | None) -> Removed:
        if look_again is not None and (why := look_again(self.path)):
            return _kept(self.path, why)
        return self._remove(self.name)

    def _remove(self, name: bytes) -> Removed:
        return remove_in(
            self.parent, name, self.path, workers=self.workers, sockets=self.sockets, top=self.fd
        )

    def _as_trash(self, trash: bytes, look_again: LookAgain | None) -> Removed:
        there = _beside(self.path, trash)
        why = None
        if not os.path.samestat(os.lstat(trash, dir_fd=self.parent), os.fstat(self.fd)):
            why = _REPLACED
        elif look_again is not None:
            why = look_again(there)
        step("clean.looked-again")
        if why is not None:
            return _kept(*((self.path, why) if self._put_back(trash) else (there, f"{why}; {_TAKEN}there")))
        removed = self._remove(trash)
        step("clean.removed")
        if removed.left_count and not self._put_back(trash):
            cut = len(self.path)
            removed.left = [(there + path[cut:], why) for path, why in removed.left]
            removed.stays(self.path, _TAKEN + os.fsdecode(trash))
        return removed

    def _put_back(self, trash: bytes) -> bool:
        try:
            _rename(trash, self.name, self.parent)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


def _beside(path: bytes, name: bytes) -> bytes:
    return os.path.join(os.path.dirname(os.path.abspath(path)), name)


def _mounted_below(fd: int) -> bool:
    try:
        top = os.readlink(f"/proc/self/fd/{fd}".encode())
    except OSError:
        return False
    return any(point.startswith(top.rstrip(b"/") + b"/") for point in mount_points())


def _rename(source: bytes, target: bytes, parent: int) -> None:
    """Rename within a directory, never onto something. Raises OSError."""
    try:
        rename_noreplace(source, target, source_fd=parent, target_fd=parent)
    except OSError as error:
        if error.errno not in {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}:
            raise
        with contextlib.suppress(FileNotFoundError):
            os.lstat(target, dir_fd=parent)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        # A directory replaces nothing but an empty directory.
        os.rename(source, target, src_dir_fd=parent, dst_dir_fd=parent)


# ------------------------------------------------------------------------------------------------- what a kill leaves


def _notes() -> bytes:
    return os.fsencode(os.path.join(state_directory(), "trash"))


@contextlib.contextmanager
def _noted(number: str, info: os.stat_result, name: bytes, path: bytes) -> Iterator[None]:
    """Keep a note of a trash directory for the time of a block, if there is room for one."""
    note = os.path.join(_notes(), number.encode())
    with contextlib.suppress(OSError):
        make_as_owner(os.fsdecode(_notes()))
        fd = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, b"%d %d\0%s\0%s" % (info.st_dev, info.st_ino, name, path))
        finally:
            os.close(fd)
    yield
    with contextlib.suppress(OSError):
        os.unlink(note)


@dataclass(frozen=True, slots=True)
class _Note:
    identity: tuple[int, int]
    name: bytes
    path: bytes


def _read_note(note: bytes) -> _Note | None:
    """Return what a note says; None if it was not written to its end, or by somebody else."""
    try:
        fd = os.open(note, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        info = os.fstat(fd)
        head, name, path = os.read(fd, 1 << 16).split(b"\0")
        device, inode = map(int, head.split(b" "))
    except (OSError, ValueError):
        return None
    finally:
        os.close(fd)
    number = os.path.basename(note)
    if info.st_uid != os.geteuid() or b"/" in name or os.path.basename(path) != _PREFIX + number:
        return None
    return _Note((device, inode), name, path)


def leftovers(parents: Iterable[bytes]) -> list[bytes]:
    """Return the trash directories that killed runs left in these directories, and those that were noted.

    Only what certainly is one: noted, or in a place where nobody else could have given it that name. None that another
    process is working on.
    """
    found = set()
    for parent in parents:
        with contextlib.suppress(OSError), os.scandir(parent) as entries:
            found |= {os.path.join(parent, entry.name) for entry in entries if is_trash(entry.name)}
    with contextlib.suppress(OSError):
        for name in os.listdir(_notes()):
            note = os.path.join(_notes(), name)
            known = _read_note(note)
            if known is None:
                continue
            if os.path.lexists(known.path):
                found.add(known.path)
            elif os.path.lexists(os.path.dirname(known.path)):
                with contextlib.suppress(OSError):
                    os.unlink(note)
    return sorted(path for path in found if _is_left(path))


def _is_left(path: bytes) -> bool:
    try:
        parent, name = open_parent(path)
    except OSError:
        return False
    try:
        fd, _ = _claim(parent, name)
        os.close(fd)
    except OSError:
        return False
    finally:
        os.close(parent)
    return True


def _claim(parent: int, name: bytes) -> tuple[int, _Note | None]:
    """Open and lock a trash directory that is certainly ours. Raises OSError."""
    info = os.lstat(name, dir_fd=parent)
    if not is_trash(name) or not stat.S_ISDIR(info.st_mode):
        raise OSError(errno.ENOTDIR, "not a trash directory")
    note = _read_note(os.path.join(_notes(), name[len(_PREFIX) :]))
    if note is not None and note.identity != (info.st_dev, info.st_ino):
        note = None
    if note is None and not _only_ours(os.fstat(parent), info):
        raise OSError(errno.EPERM, "somebody else may have named it so")
    fd, _ = open_up(name, parent, Beneath(parent))
    if not os.path.samestat(os.fstat(fd), info) or not lock(fd):
        os.close(fd)
        raise OSError(errno.EBUSY, LOCKED)
    return fd, note


def _only_ours(parent: os.stat_result, info: os.stat_result) -> bool:
    """Whether nobody but this user (and root) could have given the name: made it, or moved something to it."""
    me = os.geteuid()
    if parent.st_uid not in {0, me}:
        return False
    if parent.st_mode & 0o022:
        return bool(parent.st_mode & stat.S_ISVTX) and info.st_uid == me
    return me in {parent.st_uid, info.st_uid}


def finish(path: bytes, *, look_again: LookAgain | None = None, workers: int | None = None) -> Removed:
    """Remove a trash directory that ``leftovers`` found. What cannot go gets its old name back, if that is known."""
    try:
        parent, name = open_parent(path)
    except FileNotFoundError:
        return Removed()
    except OSError as error:
        return _kept(path, reason(error))
    try:
        fd, note = _claim(parent, name)
        try:
            if look_again is not None and (why := look_again(path)):
                return _kept(path, why)
            removed = remove_in(parent, name, path, workers=workers, sockets=live_sockets(), top=fd)
            if removed.left_count and note is not None:
                with contextlib.suppress(OSError):
                    _rename(name, note.name, parent)
                    there, cut = _beside(path, note.name), len(path)
                    removed.left = [(there + path[cut:], why) for path, why in removed.left]
        finally:
            os.close(fd)
        if not removed.left_count:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(_notes(), name[len(_PREFIX) :]))
        return removed
    except FileNotFoundError:
        return Removed()
    except OSError as error:
        return _kept(path, LOCKED if error.errno == errno.EBUSY else reason(error))
    finally:
        os.close(parent)
