"""The lock behind a name: a directory with a file to flock, and records that say who holds it and who waits.

::

    lock            flocked by the holder (shared by several), and by what inherits it
    gate            flocked by who is next: a stream of shared holders cannot keep an exclusive one out for ever
    holder.<random> who holds it by flock; the file is flocked as long as that is so
    waiter.<random> who waits
    lease.N, share.<random>   see ``lease``; from the first lease on every host uses one

``lock`` and ``gate`` are never replaced or removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from cachekit.model import Key, safe_characters
from cachekit.system.files import (
    list_anew,
    open_directory,
    pread_exactly,
    pwrite_all,
    random_name,
)
from cachekit.system.locking import lease as leases
from cachekit.system.locking import record as records
from cachekit.system.locking.lease import Lease
from cachekit.system.locking.measured import excludes
from cachekit.system.locking.record import Holder, Record
from cachekit.system.locks import try_lock, unlock

__all__ = ["NamedLock", "State", "directory_name", "look"]

_LOCK, _GATE = "lock", "gate"
_SIGN = re.compile(r"(holder|waiter)\.[0-9a-f]{16}")


def directory_name(name: Key) -> str:
    """Return the name of the lock's directory: characters for people, a hash that tells names apart."""
    return f"{safe_characters(name.text)}-{hashlib.sha256(name.raw).hexdigest()[:32]}"


class _Sign:
    """A record that counts while its file is flocked."""

    def __init__(self, dir_fd: int, role: str, holder: Holder) -> None:
        self._dir_fd = dir_fd
        while True:
            nonce = random_name()
            self.name = f"{role}.{nonce}"
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            self.fd = os.open(self.name, flags, 0o660, dir_fd=dir_fd)
            # Who looks may take it for a leftover between its creation and our lock: then start anew.
            if try_lock(self.fd) and os.fstat(self.fd).st_nlink == 1:
                break
            self.remove()
        self.record = Record(holder, nonce)
        try:
            _write(self.fd, records.encode(self.record))
        except BaseException:
            self.remove()
            raise

    def update(self, holder: Holder) -> None:
        """Say something else from now on."""
        self.record = replace(self.record, holder=holder)
        _write(self.fd, records.encode(self.record))

    def remove(self) -> None:
        """Take it away, also for those who inherited it."""
        with contextlib.suppress(OSError):
            os.unlink(self.name, dir_fd=self._dir_fd)
        unlock(self.fd)
        with contextlib.suppress(OSError):
            os.close(self.fd)


class NamedLock:
    """One attempt to hold a named lock. Made in ``place``, which is created if missing. Raises OSError.

    ``lease`` asks for a lease; without it there is one where flock is not known to exclude, and where a host has
    used one for this lock before.
    """

    def __init__(self, place: str, name: Key, holder: Holder, *, lease: bool, length: float) -> None:
        self.holder = holder
        self.lease: Lease | None = None
        self.waited = False
        self._length = length
        self._shared = holder.shared
        self._gated = self._flocked = False
        self._sign: _Sign | None = None
        self._waiter: _Sign | None = None
        with contextlib.ExitStack() as undo:
            self.path = os.path.join(place, directory_name(name))
            os.makedirs(self.path, mode=0o770, exist_ok=True)
            self.dir_fd = open_directory(os.fsencode(self.path))
            undo.callback(os.close, self.dir_fd)
            self._lock_fd = _open_lock(_LOCK, self.dir_fd)
            undo.callback(os.close, self._lock_fd)
            self._gate_fd = _open_lock(_GATE, self.dir_fd)
            undo.callback(os.close, self._gate_fd)
            _write_name(self._lock_fd, name)
            self._excludes = excludes(self.dir_fd)
            if lease or not self._excludes or leases.in_use(self.dir_fd):
                self._use_lease()
            undo.pop_all()

    @property
    def inherited(self) -> list[int]:
        """The descriptors that keep the lock for a command that inherits them."""
        return [self._lock_fd] + ([self._sign.fd] if self._sign is not None else [])

    def _use_lease(self) -> None:
        self.lease = Lease(self.dir_fd, self.holder, self._length)

    def try_acquire(self) -> bool:
        """Take the lock if it is to be had now, else say False: ask again, at least ten times in a lease's length."""
        self._gated = self._gated or try_lock(self._gate_fd)
        if not self._gated:
            return False
        self._flocked = self._flocked or try_lock(self._lock_fd, shared=self._shared)
        if not self._flocked:
            return False
        if self.lease is None:
            # First the record, then the look: a host that makes its first lease meanwhile does it the other way round,
            # so one of the two sees the other.
            with contextlib.suppress(
                OSError
            ):  # a full disk, or no permission: locked all the same, and nameless
                self._sign = self._sign or _Sign(self.dir_fd, "holder", self.holder)
            if leases.in_use(self.dir_fd):
                self._unsign()
                self._use_lease()
        if self.lease is not None and not (self.lease.try_acquire() and not self._held_by_flock_elsewhere()):
            return False
        unlock(self._gate_fd)
        self._gated = False
        self.no_longer_waiting()
        return True

    def _held_by_flock_elsewhere(self) -> bool:
        """Return True if a host that knows of no lease holds the lock by a flock that does not reach us."""
        return any(
            not (self._shared and holder.shared)
            for holder in _signed(self.dir_fd, "holder", excluding=self._excludes)
        )

    def wait(self) -> None:
        """Say that we wait, for ``look``. What cannot be said is left out."""
        self.waited = True
        with contextlib.suppress(OSError):
            self._waiter = self._waiter or _Sign(self.dir_fd, "waiter", self.holder)

    def no_longer_waiting(self) -> None:
        """Take that back."""
        if self._waiter is not None:
            self._waiter.remove()
            self._waiter = None

    def kept_by(self, pid: int) -> None:
        """Name one more process that keeps the lock."""
        self.holder = self.holder.with_process(pid)
        if self._sign is not None:
            with contextlib.suppress(OSError):
                self._sign.update(self.holder)
        if self.lease is not None:
            self.lease.kept_by(self.holder)
            with contextlib.suppress(OSError):  # the next renewal says it
                self.lease.renew()

    def in_the_way(self) -> list[Holder]:
        """Return who holds the lock, as far as is known."""
        me = self.holder.identities[0]
        with contextlib.suppress(OSError):
            return [
                one for one in _holders(self.dir_fd, excluding=self._excludes) if me not in one.identities
            ]
        return []

    def _unsign(self) -> None:
        if self._sign is not None:
            self._sign.remove()
            self._sign = None

    def release(self) -> bool:
        """Give everything back, also from the middle of taking it, and for all that inherited it.

        Return False if others will have to wait until the lease expires, since its record could not be written.
        """
        told = True
        if self.lease is not None:
            try:
                self.lease.release()
            except OSError:
                told = False
        self.no_longer_waiting()
        self._unsign()
        unlock(self._lock_fd)
        for fd in (self._gate_fd, self._lock_fd, self.dir_fd):
            with contextlib.suppress(OSError):
                os.close(fd)
        return told


def _write(fd: int, data: bytes) -> None:
    """Write a small file so that other hosts see it now: network filesystems write when a file is closed."""
    pwrite_all(fd, data, 0)
    os.close(os.dup(fd))


def _open_lock(name: str, dir_fd: int) -> int:
    flags = os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(name, flags | os.O_RDWR, 0o660, dir_fd=dir_fd)
    except PermissionError:  # somebody else's: to be flocked it need not be writable, but on NFS
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd)


def _write_name(fd: int, name: Key) -> None:
    """Let the lock's file say which lock it is: everybody writes the same."""
    if not os.fstat(fd).st_size:
        with contextlib.suppress(OSError):
            _write(fd, json.dumps({"name": name.text}).encode("ascii") + b"\n")


@dataclass(frozen=True, slots=True)
class State:
    """A named lock as it is now. ``name`` is None if it cannot be read. ``kind`` is what a lock run would use."""

    name: str | None
    path: str
    kind: str
    held: bool
    holders: list[Holder]
    waiters: list[Holder]


def look(path: str) -> State | None:
    """Return the state of the lock whose directory is ``path``; None if that is no lock. Raises OSError."""
    dir_fd = open_directory(os.fsencode(path))
    try:
        try:
            lock_fd = os.open(
                _LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd
            )
        except FileNotFoundError:
            return None
        try:
            name = _read_name(lock_fd)
            excluding = excludes(dir_fd)
            holders = _holders(dir_fd, excluding=excluding)
            # Trying is holding, for a moment: only where nobody says that he holds it.
            flocked = not holders and not try_lock(lock_fd, shared=True)
        finally:
            os.close(lock_fd)
        waiters = list(_signed(dir_fd, "waiter", excluding=excluding))
        lease = not excluding or leases.in_use(dir_fd)
        return State(name, path, "lease" if lease else "flock", flocked or bool(holders), holders, waiters)
    finally:
        os.close(dir_fd)


def _read_name(fd: int) -> str | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        name = json.loads(pread_exactly(fd, records.SIZE, 0))["name"]
        return name if isinstance(name, str) else None
    return None


def _holders(dir_fd: int, *, excluding: bool) -> list[Holder]:
    return [
        *_signed(dir_fd, "holder", excluding=excluding),
        *leases.holders(dir_fd),
    ]


def _signed(dir_fd: int, role: str, *, excluding: bool) -> Iterator[Holder]:
    """Yield those whose record counts; remove what was certainly left behind."""
    for name in sorted(list_anew(dir_fd)):
        match = _SIGN.fullmatch(name)
        if match and match[1] == role:
            with contextlib.suppress(OSError):
                holder = _signed_by(name, dir_fd, excluding=excluding)
                if holder is not None:
                    yield holder


def _signed_by(name: str, dir_fd: int, *, excluding: bool) -> Holder | None:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd)
    except FileNotFoundError:
        return None
    try:
        known = records.decode(pread_exactly(fd, records.SIZE, 0))
        # Shared, so that two who look at once do not take each other for the holder.
        locked = not try_lock(fd, shared=True)
        dead = known is not None and known.holder.proven_dead()
        if locked or not (excluding or dead or known is None):
            return replace(known.holder, gone=locked and dead) if known is not None else None
        os.unlink(name, dir_fd=dir_fd)
        return None
    finally:
        os.close(fd)
