"""A store in a directory of a filesystem, local or shared.

Correctness rests on three things only: an entry appears by one atomic step, it is never changed afterwards, and a
reader keeps the descriptor it opened. Locks save work; they decide nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from cachekit.archive.alias import Alias
from cachekit.archive.format import MAX_ALIAS
from cachekit.archive.read import Archive, open_archive
from cachekit.archive.seal import Seal
from cachekit.errors import (
    CachekitError,
    Damaged,
    StoreReadOnly,
    StoreUntrusted,
)
from cachekit.model import EntryIdentity, Key, StoreAddress, safe_prefix
from cachekit.retention.quarantine import outstayed
from cachekit.store import denials, layout, pins, removal, trouble
from cachekit.store.alias import adopt, link
from cachekit.system.clock import now_ns
from cachekit.system.files import exists, read_if_there, remove_tree, replace_file
from cachekit.system.locks import try_lock
from cachekit.system.publish import TempFile, sweep
from cachekit.system.space import FreeSpace
from cachekit.system.steps import step
from cachekit.trust import Signed

__all__ = ["Candidate", "DirectoryStore", "Saver", "file_name_of"]

_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


def file_name_of(seal: Seal) -> str:
    """Return the file name under which an entry with this seal must be filed."""
    return EntryIdentity(Key(seal.key), seal.platform).file_name


@dataclass(frozen=True, slots=True)
class Candidate:
    """An entry file of the store: its seal, or the error that reading the seal gave.

    The seal is what the entry says of itself, whoever wrote it: ``trusted`` tells whether it may be used.
    """

    path: bytes
    name: str
    size: int
    seal: Seal | None
    error: CachekitError | None
    signed: Signed | None = None
    trusted: bool = False


@dataclass(slots=True)
class Saver:
    """The right to save one key. ``state`` is ``busy`` while another live process saves it."""

    state: Literal["held", "busy", "unlocked"]
    fd: int


def _read_name(fd: int) -> str:
    """Return the digest in a lock file; nothing of what is no file."""
    with contextlib.suppress(OSError):
        return os.pread(fd, 32, 0).decode("ascii", "replace")
    return ""


class DirectoryStore:
    """One namespace of the store at an address. Opening makes nothing; ``prepare`` makes what a save needs.

    ``trust`` is the policy for its entries: whoever opens one to use it passes it on to ``open_archive``. A store that
    everybody may write to is not even opened, unless the address says so: raises StoreUntrusted. Of a read-only one
    nothing is changed.
    """

    def __init__(self, address: StoreAddress | str) -> None:
        address = StoreAddress.of(address)
        self.path = os.path.abspath(os.path.expanduser(address.path))
        self.namespace = address.namespace
        self.trust = address.trust.within(self.namespace.text)
        self.read_only = address.read_only
        self._open_to_all = address.open_to_all
        self._base = layout.base_of(self.path, self.namespace)
        place = None if self._open_to_all else layout.open_to_all(self.path, self.namespace)
        if place is not None:
            raise StoreUntrusted("everybody may write to the store, and so may have changed it", path=place)

    def directory(self, name: str) -> str:
        return os.path.join(self._base, name)

    def entry_path(self, name: str) -> bytes:
        return os.fsencode(os.path.join(self._base, "entries", name))

    def prepare(self) -> None:
        """Make the store if it is missing, and remove what killed savers left.

        Raises StoreUnavailable, StoreReadOnly, NoSpace.
        """
        if self.read_only:
            raise StoreReadOnly("this job may not save: its store is read-only (--read-only)", path=self.path)
        with self._trouble("make"):
            layout.create(self.path, self.namespace)
        self.sweep()

    def sweep(self) -> int:
        """Remove abandoned temporary files and old quarantined entries; return how many. Best effort, never raises."""
        removed = 0
        if self.read_only:
            return removed
        with contextlib.suppress(OSError), self.part("tmp") as fd:
            removed = sweep(fd)
            with self.part("entries") as entries:
                removed += removal.finish_removals(fd, entries, self.is_pinned)
        with contextlib.suppress(OSError), self.part("quarantine") as fd:
            removed += self._sweep_quarantine(fd)
        return removed

    @contextlib.contextmanager
    def part(self, name: str, *, make: bool = False) -> Iterator[int]:
        """Give a descriptor of one of the namespace's directories: what is made, moved or removed goes through it.

        No link below the store's path is followed (``layout.open_part``). Raises OSError.
        """
        fd = layout.open_part(self.path, self.namespace, name, make=make)
        try:
            yield fd
        finally:
            os.close(fd)

    def _sweep_quarantine(self, fd: int) -> int:
        with os.scandir(fd) as entries:
            found = [
                (entry.name, layout.family_of(entry.name), entry.stat(follow_symlinks=False).st_ctime_ns)
                for entry in entries
            ]
        removed = 0
        for name in outstayed(found, now_ns()):
            with contextlib.suppress(OSError):
                removed += bool(remove_tree(os.fsencode(name), dir_fd=fd))
        return removed

    @contextlib.contextmanager
    def _trouble(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self.explain(error, what) from None

    def explain(self, error: OSError, what: str) -> CachekitError:
        """Return the error of cachekit's that an OSError of the store means."""
        return trouble.explain(error, what, self.path)

    def free(self) -> FreeSpace | None:
        """Return the free space of the store's filesystem, None if it cannot be asked."""
        return trouble.free(self.path)

    # Reading

    def candidates(self, prefix: str, platform: str | None) -> list[Candidate]:
        """Return the entries whose key begins with ``prefix``, newest first; unreadable ones last.

        ``platform`` limits to one platform (as its text), None takes all. Reads the seals only; nothing is trusted
        but a seal whose digest is right and whose key and platform give the file's own name. Raises StoreUnavailable.
        """
        found = [
            c for c in self.entries(prefix) if c.seal is None or platform in {None, str(c.seal.platform)}
        ]
        found.sort(
            key=lambda c: (c.seal is not None, c.seal.created_ns if c.seal else 0, c.name), reverse=True
        )
        return found

    def entries(self, prefix: str = "") -> list[Candidate]:
        """Return all entries whose key begins with ``prefix``, by name. Raises StoreUnavailable."""
        try:
            with self.part("entries") as fd:
                names = sorted(os.listdir(fd))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self.explain(error, "read") from None
        # The file name begins with the key's first safe characters, which leaves out most files without opening them.
        start = safe_prefix(prefix)
        found = []
        for name in names:
            if not layout.ENTRY_NAME.fullmatch(name) or not name.startswith(start):
                continue
            candidate = self.look(name)
            if candidate is not None and (candidate.seal is None or candidate.seal.key.startswith(prefix)):
                found.append(candidate)
        return found

    def look(self, name: str) -> Candidate | None:
        """Read the seal of the entry file ``name``, also of one that is not trusted; None if there is no such file."""
        path = self.entry_path(name)
        size = 0
        try:
            with open_archive(path, self.trust.for_looking()) as archive:
                size = archive.size
                vouched = self.check_filing(archive, name)
                signed = archive.signed
                trusted = not self.trust.required or {signed.standing, vouched.standing} == {"valid"}
                return Candidate(path, name, size, archive.seal, None, signed, trusted)
        except FileNotFoundError:
            return None
        except CachekitError as error:
            return Candidate(path, name, size, None, error)

    def check_filing(self, archive: Archive, name: str) -> Signed:
        """Raise Damaged if the entry is not the one that its file name stands for.

        An entry that an alias vouches for takes that key on. Return who signed what says so: the entry or the alias.
        Raises StoreUntrusted for a file that everybody may write to.
        """
        if archive.open_to_all and not self._open_to_all:
            raise StoreUntrusted("everybody may write to the entry, and so may change it", path=archive.path)
        expected = file_name_of(archive.seal)
        if expected != name:
            signed = adopt(archive, self.path, self.namespace, name)
            if signed is not None:
                return signed
            raise Damaged(
                "the entry is filed under another entry's name",
                path=archive.path,
                rung="seal",
                expected=expected,
                found=name,
            )
        return archive.signed

    def link(
        self, archive: Archive, identity: EntryIdentity, family: str, *, replace: bool
    ) -> Literal["published", "exists", "impossible"]:
        """Serve an opened entry of this namespace under a further key as well (see ``alias.link``).

        Raises StoreUnavailable, NoSpace.
        """
        alias = Alias(identity.key.text, family, now_ns(), archive.seal.identity)
        with self._trouble("publish in"):
            return link(archive, identity, alias, self.trust, self.path, self.namespace, replace=replace)

    def alias_of(self, name: str) -> bytes | None:
        """Return what lies in the store as the alias of an entry file, unchecked; None without one.

        Raises StoreUnavailable.
        """
        try:
            with self.part("aliases") as fd:
                return read_if_there(name, fd, MAX_ALIAS + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self.explain(error, "read") from None

    def keep_alias(self, name: str, data: bytes) -> None:
        """Write the alias under which an entry file will be served. It means nothing until that is published.

        Raises StoreUnavailable, NoSpace.
        """
        with self._trouble("write to"), self.part("aliases", make=True) as fd:
            replace_file(name, data, fd, mode=0o640)

    def mark_used(self, name: str) -> None:
        """Note that the entry was used now: the mtime of ``used/<entry>``. Best effort."""
        if self.read_only:
            return
        with contextlib.suppress(OSError), self.part("used") as directory:
            # O_NONBLOCK: a fifo in its place must not make us wait.
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            fd = os.open(name, flags, 0o660, dir_fd=directory)
            try:
                if os.fstat(fd).st_nlink == 1:  # else it is somebody's file that was linked here
                    os.utime(fd)
            finally:
                os.close(fd)

    # Writing

    @contextlib.contextmanager
    def saver(self, identity: EntryIdentity) -> Iterator[Saver]:
        """Claim the saving of a key for the time of a block.

        Keys share 256 lock files. A stripe that another key's saver holds means "unlocked": two savers of one key are
        harmless, so nobody waits for a stranger.
        """
        with self._trouble("lock"), self.part("locks") as locks:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            fd = os.open(identity.digest[:2], flags, 0o660, dir_fd=locks)
        try:
            if try_lock(fd):
                # With a second name it is somebody's file that was linked here to be overwritten.
                with contextlib.suppress(OSError):  # a full disk: then waiters see no name and do not wait
                    if os.fstat(fd).st_nlink == 1:
                        os.pwrite(fd, identity.digest.encode(), 0)
                yield Saver("held", fd)
            elif _read_name(fd) == identity.digest:
                yield Saver("busy", fd)
            else:
                yield Saver("unlocked", fd)
        finally:
            with contextlib.suppress(OSError):
                os.close(fd)

    @contextlib.contextmanager
    def temporary(self, identity: EntryIdentity) -> Iterator[TempFile]:
        """Give a temporary file for a new entry, removed unless published. Raises StoreUnavailable, NoSpace."""
        with self._trouble("write to"):
            fd = layout.open_part(self.path, self.namespace, "tmp")
        try:
            with self._trouble("write to"):
                temp = TempFile(fd, identity.digest)
            with temp:
                yield temp
        finally:
            os.close(fd)

    def publish(
        self, temp: TempFile, identity: EntryIdentity, *, replace: bool
    ) -> Literal["published", "exists"]:
        """Give a finished temporary file its name. "exists": another whole entry has it. Raises StoreUnavailable."""
        with self._trouble("publish in"), self.part("entries") as fd:
            return temp.publish(identity.file_name, fd, replace=replace)

    # Retention

    def pins(self) -> set[str]:
        """Return the names of the entries that are pinned. Raises StoreUnavailable: a pin that is unknown is no pin."""
        try:
            with self.part("pinned") as fd:
                return {name for name in os.listdir(fd) if layout.ENTRY_NAME.fullmatch(name)}
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise self.explain(error, "read") from None

    def is_pinned(self, name: str) -> bool:
        """Return True if the entry is pinned now. Raises OSError."""
        try:
            with self.part("pinned") as fd:
                return exists(name, dir_fd=fd)
        except FileNotFoundError:
            return False

    def pin(self, name: str) -> bool:
        """Pin an entry: no budget removes it. False if there is no such entry. Raises StoreUnavailable, NoSpace."""
        # Made if it is missing: stores from before there were pins have no directory for them.
        with self._trouble("write to"), self.part("entries") as entries, self.part("pinned", make=True) as fd:
            return pins.pin(name, fd, entries)

    def unpin(self, name: str) -> bool:
        """Take a pin away; False if there was none. Raises StoreUnavailable."""
        try:
            with self.part("pinned") as fd:
                return pins.unpin(name, fd)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self.explain(error, "write to") from None

    def remove(
        self, name: str, planned: removal.FileIdentity, *, unused_since: int | None = None
    ) -> removal.Outcome:
        """Remove the entry ``name`` if it is the ``planned`` file, not pinned, and not used since ``unused_since``.

        That is a time in ns. A save that replaces the entry meanwhile wins, and so does a pin; readers that have it
        open finish. Raises OSError.
        """
        with self.part("entries") as entries, self.part("tmp") as tmp, self.part("used") as used:

            def spare() -> bool:
                if self.is_pinned(name):
                    return True
                with contextlib.suppress(OSError):
                    marked = os.lstat(name, dir_fd=used).st_mtime_ns
                    return unused_since is not None and marked > unused_since
                return False

            outcome = removal.remove_file(name, planned, entries, tmp, spare=spare)
            if outcome == "removed":
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=used)
                step("prune.unmarked")
        return outcome

    # Setting aside

    def set_aside(self, path: bytes, identity: tuple[int, int] | None) -> bool:
        """Move a damaged entry to quarantine, if its name still leads to the file that was read.

        ``identity`` is the (device, inode) of what was read; None for what could not be opened because it is no file,
        and is moved only if that is still so. On a read-only store the file goes on a deny list of this user instead.
        Return True if it will not be served again.
        """
        if self.read_only:
            return denials.deny(path)
        try:
            name = os.path.basename(os.fsdecode(path))
            with self.part("entries") as entries, self.part("quarantine") as aside:
                info = os.lstat(name, dir_fd=entries)
                if identity is None and stat.S_ISREG(info.st_mode):
                    return False
                if identity not in {None, (info.st_dev, info.st_ino)}:
                    return True  # replaced in the meantime: the damaged one is gone already
                os.rename(name, f"{name}.{now_ns()}", src_dir_fd=entries, dst_dir_fd=aside)  # noqa: TID251 - a move
        except FileNotFoundError:
            return not os.path.lexists(path)
        except OSError as error:
            return error.errno in _READ_ONLY | {errno.ENOSPC, errno.EDQUOT} and denials.deny(path)
        return True

    def denied(self, path: bytes) -> bool:
        """Return True if this very file was refused here before and could not be set aside."""
        return denials.denied(path)

    def quarantined(self) -> list[tuple[str, int, int]]:
        """Return (file name, bytes, set aside at, in ns) of the entries in quarantine."""
        try:
            with self.part("quarantine") as fd, os.scandir(fd) as entries:
                found = [(e.name, e.stat(follow_symlinks=False)) for e in entries]
        except OSError:
            return []
        return sorted((name, info.st_size, info.st_ctime_ns) for name, info in found)
