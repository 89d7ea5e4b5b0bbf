"""Where an entry is that something else carries: a directory with one entry in it, or a file; its alias beside."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from cachekit.archive.alias import Alias, decode_alias
from cachekit.archive.extract import Progress, check_frames
from cachekit.archive.format import MAX_ALIAS
from cachekit.archive.read import Archive, open_archive
from cachekit.errors import Damaged, InvalidRequest, LockTimeout, NoSpace, TargetNotWritable
from cachekit.model import EntryIdentity, Key
from cachekit.system.copying import copy_bytes
from cachekit.system.files import open_directory, pread_exactly
from cachekit.system.locks import try_lock
from cachekit.system.publish import TempFile
from cachekit.system.workers import worker_count
from cachekit.trust import Signed, Trust

__all__ = [
    "ALIAS_SUFFIX",
    "CARRIED",
    "Place",
    "alias_for",
    "copy_checked",
    "default_place",
    "errors_of_place",
    "locked",
    "name_under",
    "place_of",
    "read_alias",
    "refuse_store",
]

#: The one entry of a directory that is carried: always the same name, so that the next one replaces it in one step.
CARRIED = "cachekit-entry.tar.zst"
ALIAS_SUFFIX = ".alias"
_SUFFIX = ".tar.zst"


def default_place() -> str:
    """Return ``~/.cache/cachekit-carry``: the same wherever caches lie, since a carrier is told its path in a file."""
    return os.path.expanduser("~/.cache/cachekit-carry")


@dataclass(frozen=True, slots=True)
class Place:
    """A file to export to: its directory and name."""

    directory: str
    name: str

    @property
    def path(self) -> str:
        return os.path.join(self.directory, self.name)


def place_of(text: str) -> Place:
    """Return the file that ``--to`` means: ``CARRIED`` in a directory, unless it ends as an archive's name does."""
    path = os.path.abspath(os.path.expanduser(text))
    if os.path.isdir(path) or text.endswith(os.path.sep) or not path.endswith(_SUFFIX):
        return Place(path, CARRIED)
    return Place(os.path.dirname(path), os.path.basename(path))


def refuse_store(place: Place, store: str) -> None:
    """Raise InvalidRequest for a place in the store itself: what lies there is the store's own affair."""
    inside = os.path.realpath(place.directory)
    if os.path.commonpath([inside, os.path.realpath(store)]) == os.path.realpath(store):
        raise InvalidRequest(
            "an entry cannot be exported into the store itself",
            path=place.directory,
            hint="name a directory beside it with --to",
        )


@contextlib.contextmanager
def locked(place: Place, timeout: float) -> Iterator[int]:
    """Make the directory if it is missing and hold it for one exporter; yields its descriptor.

    Raises TargetNotWritable, NoSpace, LockTimeout.
    """
    with errors_of_place(place.directory):
        os.makedirs(place.directory, mode=0o750, exist_ok=True)
        fd = open_directory(os.fsencode(place.directory), follow=True)
    try:
        deadline = time.monotonic() + timeout
        while not try_lock(fd):
            if time.monotonic() >= deadline:
                raise LockTimeout(
                    f"another process uses the directory; waited {timeout:.0f} s",
                    path=place.directory,
                    hint="wait for it to end, or raise --lock-timeout",
                )
            time.sleep(0.05)
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def errors_of_place(path: str) -> Iterator[None]:
    """Turn errors of the filesystem that is exported to into NoSpace and TargetNotWritable."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise NoSpace(
                f"the entry does not fit where it is exported to: {error.strerror}",
                path=path,
                errno=error.errno,
                hint="free space there, or export to another filesystem with --to",
            ) from None
        raise TargetNotWritable(
            f"cannot export there: {error.strerror}", path=path, errno=error.errno
        ) from None


def copy_checked(archive: Archive, temp: TempFile, path: bytes, progress: Progress | None = None) -> None:
    """Copy an opened entry into a temporary file at ``path``, make it durable, and check every frame of the copy.

    Whatever happens to the source meanwhile, what is published is what was checked. Raises Damaged if the copy is not
    the entry that was opened, Unreadable; OSError of the target.
    """
    copy_bytes(archive.fd, temp.fd, archive.size, archive.read, progress)
    temp.finish(archive.size)
    identity = archive.seal.identity
    with open_archive(path, archive.trust) as copy:
        if copy.seal.identity != identity:
            raise Damaged("the file changed while it was read", path=archive.path, rung="seal")
        check_frames(copy, worker_count())


def alias_for(archive: Archive, data: bytes, trust: Trust) -> tuple[Alias, Signed] | None:
    """Return the alias in ``data`` and who signed it, None if it is of another entry.

    Raises Damaged, Forged, Untrusted.
    """
    alias, signed = decode_alias(data, trust)
    return (alias, signed) if alias.identity == archive.seal.identity else None


def read_alias(path: str) -> bytes | None:
    """Return what lies beside an entry file as its alias; None without one. Raises OSError."""
    try:
        fd = os.open(path + ALIAS_SUFFIX, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        return pread_exactly(fd, MAX_ALIAS + 1, 0)
    finally:
        os.close(fd)


def name_under(alias: Alias, archive: Archive) -> str:
    """Return the file name that an entry has under its further key."""
    return EntryIdentity(Key(alias.key), archive.seal.platform).file_name
