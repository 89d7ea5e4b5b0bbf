"""An OCI layout in a directory: its index, blobs and left-over ingest files. Links inside it are not followed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from cachekit.errors import NothingMatched, SourceUnreadable
from cachekit.model import LOCKS_NAME
from cachekit.oci.graph import DOCUMENT_BYTES
from cachekit.system.files import open_directory, opened
from cachekit.system.locks import try_lock, unlock

__all__ = ["ASIDE", "WHICH", "BlobFile", "Ingest", "Layout", "is_digest", "read_document"]

#: Where a collection keeps what it is about to remove; found only while one runs, or after it was killed.
ASIDE = ".cachekit-gc"
_INDEX, _LOCK, _VERSION = "index.json", "index.json.lock", "oci-layout"
_PARTS = {_INDEX, _LOCK, _VERSION, "blobs", "ingest"}
_NAMES = {"sha256": re.compile(r"[0-9a-f]{64}"), "sha512": re.compile(r"[0-9a-f]{128}")}
#: What to name.
WHICH = "name the directory of type=local,dest=..."
#: BuildKit holds its lock only while it reads or writes index.json.
_LOCK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class BlobFile:
    """A blob on disk: size in bytes, mtime in ns, and which file it is."""

    digest: str
    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class Ingest:
    """A blob that was being written. ``mtime_ns``: of its directory or the youngest file in it."""

    name: str
    size: int
    mtime_ns: int


class Layout:
    """Use as a context manager. Raises NothingMatched if there is no such directory, SourceUnreadable.

    ``within``: a directory that ``path`` is relative to, without links.
    """

    def __init__(self, path: str, within: int | None = None) -> None:
        self.path = path
        try:
            self.fd = open_directory(os.fsencode(path), dir_fd=within, follow=within is None)
        except FileNotFoundError:
            raise NothingMatched("there is no such directory", path=path, hint=WHICH) from None
        except NotADirectoryError:
            raise NothingMatched("this is no directory", path=path, hint=WHICH) from None
        except OSError as error:
            raise SourceUnreadable(f"cannot open the directory: {error.strerror}", path=path) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def looks_like_one(self) -> bool:
        """Return True if something of a layout is here, or nothing at all yet."""
        names = set(os.listdir(self.fd))
        return bool(names & _PARTS) or names <= {os.fsdecode(LOCKS_NAME)}

    def links(self) -> list[str]:
        """Return which of the parts are links."""
        return [name for name, info in self._entries(".") if name in _PARTS and stat.S_ISLNK(info.st_mode)]

    def read_index(self) -> bytes | None:
        """Return index.json, read while BuildKit does not write it; None if there is none. Raises SourceUnreadable."""
        with self.locked(shared=True):
            return self._read(_INDEX)

    def read_index_as_holder(self) -> bytes | None:
        """Return index.json within ``locked``."""
        return self._read(_INDEX)

    def read_version(self) -> bytes | None:
        """Return the file ``oci-layout``; None if there is none."""
        return self._read(_VERSION)

    def _read(self, name: str) -> bytes | None:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self.fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            path = os.path.join(self.path, name)
            if error.errno == errno.ELOOP:
                raise _linked(name, path) from None
            raise SourceUnreadable(
                f"cannot read {name}: {error.strerror}", path=path, hint="fix its permissions"
            ) from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            return None
        with open(fd, "rb") as file:
            data = file.read(DOCUMENT_BYTES + 1)
        # What is longer is given as damaged: its beginning alone may be whole, and then say something else.
        return data if len(data) <= DOCUMENT_BYTES else b""

    @contextlib.contextmanager
    def locked(self, *, shared: bool = False) -> Iterator[bool]:
        """Hold BuildKit's own lock of index.json for a moment, as it does; say whether it was to be had.

        A build that meets the lock fails, so nothing slow may happen here. On a read-only directory there is none, and
        who wants it alone gets OSError.
        """
        fd = -1
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a fifo must not make us wait
        deadline = time.monotonic() + _LOCK_SECONDS
        try:
            while True:
                try:
                    # To read, a lock is not made: who only looks changes nothing.
                    fd = os.open(_LOCK, flags | (0 if shared else os.O_CREAT), 0o644, dir_fd=self.fd)
                except OSError:
                    if not shared:
                        raise
                if fd < 0 or (try_lock(fd, shared=shared) and self._still(fd)):
                    break
                os.close(fd)
                fd = -1
                if time.monotonic() > deadline:
                    break
                time.sleep(0.02)
            yield fd >= 0 or shared
        finally:
            if fd >= 0:
                # BuildKit removes it as well, after it has given it back: by now it may be the lock of somebody else.
                if not shared and self._still(fd):
                    with contextlib.suppress(OSError):
                        os.unlink(_LOCK, dir_fd=self.fd)
                unlock(fd)
                os.close(fd)

    def _still(self, fd: int) -> bool:
        """Return True if the lock that was taken is the one that others find: they remove it when they are done."""
        with contextlib.suppress(OSError):
            return os.fstat(fd).st_ino == os.stat(_LOCK, dir_fd=self.fd, follow_symlinks=False).st_ino
        return False

    def blobs(self) -> tuple[dict[str, BlobFile], list[str]]:
        """Return the blobs by digest, and the names below ``blobs`` that are none. Raises SourceUnreadable."""
        found: dict[str, BlobFile] = {}
        odd: list[str] = []
        for algorithm in sorted(self._names("blobs")):
            if algorithm not in _NAMES:
                odd.append(f"blobs/{algorithm}")
                continue
            for name, info in self._entries(f"blobs/{algorithm}"):
                if not is_digest(algorithm, name) or not stat.S_ISREG(info.st_mode):
                    odd.append(f"blobs/{algorithm}/{name}")
                    continue
                digest = f"{algorithm}:{name}"
                found[digest] = BlobFile(digest, info.st_size, info.st_mtime_ns, info.st_ino)
        return found, odd

    def ingests(self) -> list[Ingest]:
        """Return what is being written, or was when its writer was killed."""
        found = []
        for name, own in sorted(self._entries("ingest")):
            if stat.S_ISDIR(own.st_mode):
                files = self._entries(f"ingest/{name}")
                size = sum(info.st_size for file, info in files if file == "data")
                youngest = max([own.st_mtime_ns, *(info.st_mtime_ns for _, info in files)])
                found.append(Ingest(name, size, youngest))
        return found

    def asides(self) -> list[str]:
        """Return the directories that a killed collection left."""
        return sorted(
            name
            for name, info in self._entries(".")
            if name.startswith(ASIDE + "-") and stat.S_ISDIR(info.st_mode)
        )

    def open_blob(self, digest: str) -> int:
        """Return a descriptor of a blob. Raises OSError; SourceUnreadable where it is not allowed."""
        algorithm, _, name = digest.partition(":")
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            with self.inside("blobs", algorithm) as fd:
                return os.open(name, flags, dir_fd=fd)
        except PermissionError as error:  # no damage: for somebody else it may be well
            raise SourceUnreadable(
                f"cannot read a blob: {error.strerror}",
                path=os.path.join(self.path, "blobs", algorithm, name),
                hint="fix its permissions",
            ) from None

    def document(self, digest: str, size: int) -> bytes | None:
        """Return a blob that is a document; None if it is not there, or another size. Raises SourceUnreadable."""
        try:
            fd = self.open_blob(digest)
        except OSError:
            return None
        return read_document(fd, size)

    @contextlib.contextmanager
    def inside(self, *names: str) -> Iterator[int]:
        """Open a directory below the layout for the time of a block. Raises OSError, also for a link on the way."""
        with contextlib.ExitStack() as stack:
            fd = self.fd
            for name in names:
                fd = stack.enter_context(opened(os.fsencode(name), dir_fd=fd))
            yield fd

    def _names(self, below: str) -> list[str]:
        return [name for name, info in self._entries(below) if stat.S_ISDIR(info.st_mode)]

    def _entries(self, below: str) -> list[tuple[str, os.stat_result]]:
        """Return names and status of what is in a directory inside; nothing if there is no such directory."""
        try:
            fd = open_directory(os.fsencode(below), dir_fd=self.fd)
        except FileNotFoundError:
            return []
        except OSError as error:
            path = os.path.join(self.path, below)
            if error.errno in {errno.ELOOP, errno.ENOTDIR}:
                with contextlib.suppress(FileNotFoundError):
                    if stat.S_ISLNK(os.lstat(below, dir_fd=self.fd).st_mode):
                        raise _linked(below, path) from None
                return []
            raise SourceUnreadable(
                f"cannot read a directory: {error.strerror}", path=path, hint="fix its permissions"
            ) from None
        found = []
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        found.append((os.fsdecode(entry.name), entry.stat(follow_symlinks=False)))
        finally:
            os.close(fd)
        return found


def is_digest(algorithm: str, name: str) -> bool:
    """Return True if a blob can be called that."""
    pattern = _NAMES.get(algorithm)
    return pattern is not None and pattern.fullmatch(name) is not None


def read_document(fd: int, size: int) -> bytes | None:
    """Return what a file holds, and close it; None if it is no file, or has another size."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return None
    with open(fd, "rb") as file:
        data = file.read(min(size, DOCUMENT_BYTES) + 1)
    return data if len(data) == size else None


def _linked(name: str, path: str) -> SourceUnreadable:
    return SourceUnreadable(
        f"{name} is a link, and links in a layout are not followed",
        path=path,
        hint="put the real directory in its place, or name the layout where it really is",
    )
