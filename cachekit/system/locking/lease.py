"""A lock made of files alone, for filesystems on which the kernel's locks do not exclude other hosts.

The lease of a lock is a row of records ``lease.1``, ``lease.2`` ...; the newest one counts. Whoever makes the next
one holds the lock, and only one can: its name is taken by link (or O_EXCL), which servers decide. Nothing is renamed
or removed to take a lease over, so two takers cannot take away each other's. A record counts until

- its holder says that it is released, or
- all its processes are proven dead: they were of this boot and pid namespace, or
- it did not change for the length that it claims, **watched by our own monotonic clock**. No host's time of day is
  compared with another's.

A holder that is stopped, or cannot reach the server, for longer than the length may lose the lease without knowing:
a lease may overlap. It finds out at its next renewal.

Shared holders have records of their own (``share.<nonce>``). They are made under the lease, and each new record of
the lease names those that are left, so nobody depends on the listing of a directory, which may be stale. Whoever
wants the lock alone keeps the lease and waits until they are over.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from dataclasses import replace

from cachekit.system.files import list_anew, pwrite_all, random_name, read_if_there
from cachekit.system.locking import record as records
from cachekit.system.locking.record import Holder, Record
from cachekit.system.steps import step

__all__ = ["LEASE_SECONDS", "MIN_LEASE_SECONDS", "Lease", "holders", "in_use"]

LEASE_SECONDS = 60.0
MIN_LEASE_SECONDS = 1.0
#: Old records that are kept, so that a taker with an old listing meets a taken name.
_KEPT = 32
#: Says from which number on the records are there, for who gets an old listing, or none.
_FLOOR, _DIGITS = "floor", 20
_LEASE = re.compile(r"lease\.([1-9][0-9]{0,15})")
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
#: sftp has one word for every refusal, which sshfs turns into EPERM: what was refused is looked up afterwards.
_REFUSED = {errno.EEXIST, errno.EPERM, errno.EIO, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EACCES}


def in_use(dir_fd: int) -> bool:
    """Return True if a lease was ever made in the directory: from then on every host must use one."""
    return any(_LEASE.fullmatch(name) for name in list_anew(dir_fd))


class Lease:
    """One attempt at the lease in the directory ``dir_fd``, which stays the caller's.

    ``length`` in seconds: renew at least four times as often. Every method raises OSError when the filesystem fails.
    """

    def __init__(self, dir_fd: int, holder: Holder, length: float) -> None:
        self._dir_fd = dir_fd
        self._mine = Record(replace(holder, kind="lease"), random_name(), length)
        self._generation = 0  # 0: not ours
        self._held = ""  # the name of the record that holds it for us
        self._shares: tuple[str, ...] = ()
        #: What was read under each name, and since when it has been just that.
        self._seen: dict[str, tuple[bytes, float]] = {}
        self.renewed = time.monotonic()

    @property
    def length(self) -> float:
        """Seconds without renewal after which another may take the lease over."""
        return self._mine.length

    # --- taking ---

    def try_acquire(self) -> bool:
        """Take the lease if it is to be had now; else say False: ask again, since expiry is seen by asking."""
        if not self._generation and not self._take_generation():
            return False
        if self._mine.holder.shared:
            lease, self._held = self._held, f"share.{self._mine.nonce}"
            self._generation = 0
            self._end(lease)
            return True
        if time.monotonic() - self.renewed > self.length / 4 and not self.renew():
            self._generation, self._held = 0, ""
            return False
        left = tuple(nonce for nonce in self._shares if not self._over(f"share.{nonce}"))
        if left != self._shares:
            # Whoever we take for dead, and is not, must find that out: the record no longer names him.
            self._shares, self._mine = left, replace(self._mine, shares=left)
            if not self.renew():
                self._generation, self._held = 0, ""
                return False
        return not left

    def _take_generation(self) -> bool:
        newest = _newest(self._dir_fd)
        shares: tuple[str, ...] = ()
        if newest:
            if not self._over(f"lease.{newest}", missing=False):
                return False
            shares = self._shares_of(newest)
        nonce = self._mine.nonce
        left = tuple(one for one in shares if one != nonce and not self._over(f"share.{one}"))
        name = f"lease.{newest + 1}"
        if self._mine.holder.shared:
            self._make(f"share.{nonce}", replace(self._mine, shares=()))
        mine = replace(self._mine, shares=(*left, nonce) if self._mine.holder.shared else left)
        try:
            if not self._make(name, mine):
                return False
        except ValueError:  # more shared holders than a record can name: wait until some are over
            return False
        step("lock.lease-made")
        if _newest(self._dir_fd) != newest + 1:
            # The listing that we went by was old: the name had been used and removed before. Ours never counted.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._dir_fd)
            return False
        self._mine, self._shares = mine, left
        self._generation, self._held = newest + 1, name
        self.renewed = time.monotonic()
        self._prune(set(shares) - set(left))
        return True

    def _make(self, name: str, content: Record) -> bool:
        """Create ``name`` with its content, or return False because somebody else did."""
        data = records.encode(content)
        temporary = f"new.{random_name()}"
        self._write_new(temporary, data)
        try:
            os.link(temporary, name, src_dir_fd=self._dir_fd, dst_dir_fd=self._dir_fd)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            # Ours if a repeated request was answered twice; theirs if the name is there; else there are no links here.
            there = records.read(name, self._dir_fd)
            if there is None:
                return self._create(name, data, error)
            return there == data
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=self._dir_fd)
        return True

    def _create(self, name: str, data: bytes, refusal: OSError) -> bool:
        try:
            self._write_new(name, data)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            if records.read(name, self._dir_fd) is None:
                raise refusal from None
            return False
        return True

    def _write_new(self, name: str, data: bytes) -> None:
        fd = os.open(name, _CREATE, 0o660, dir_fd=self._dir_fd)
        try:
            pwrite_all(fd, data, 0)
            os.fsync(fd)
        finally:
            os.close(fd)

    # --- judging ---

    def _shares_of(self, generation: int) -> tuple[str, ...]:
        data = records.read(f"lease.{generation}", self._dir_fd)
        known = records.decode(data) if data is not None else None
        if known is not None:
            return known.shares
        # A damaged record does not tell: then every shared record that is to be seen counts.
        return tuple(
            name.removeprefix("share.")
            for name in list_anew(self._dir_fd)
            if re.fullmatch(r"share\.[0-9a-f]{16}", name)
        )

    def _over(self, name: str, *, missing: bool = True) -> bool:
        """Return True if the record counts no more; what is watched for this must be asked for again and again.

        ``missing`` is the answer if there is none: a lease that is listed and not there shows an old listing.
        """
        data = records.read(name, self._dir_fd)
        now = time.monotonic()
        if data is None:
            self._seen.pop(name, None)
            return missing
        known = records.decode(data)
        if known is not None and (known.released or known.holder.proven_dead()):
            return True
        before, since = self._seen.get(name, (None, now))
        if before != data:
            self._seen[name] = (data, now)
            return False
        return now - since >= (known.length if known is not None else LEASE_SECONDS)

    # --- holding ---

    def renew(self) -> bool:
        """Show that we are alive. Return False if the lease was taken over by somebody else."""
        if not self.still_ours():
            return False
        began = time.monotonic()
        self._mine = replace(self._mine, beat=self._mine.beat + 1)
        try:
            records.rewrite(self._held, self._mine, self._dir_fd)
        except FileNotFoundError:  # removed as over
            return False
        self.renewed = began
        return True

    def still_ours(self) -> bool:
        """Return False if the lease was taken over: there is a newer record, or one that does not name us any more."""
        if self._generation:
            return not _there(f"lease.{self._generation + 1}", self._dir_fd)
        newest = _newest(self._dir_fd)
        data = records.read(f"lease.{newest}", self._dir_fd)
        known = records.decode(data) if data is not None else None
        return known is None or self._mine.nonce in known.shares

    def kept_by(self, holder: Holder) -> None:
        """Name the processes that keep it from now on; written with the next renewal."""
        self._mine = replace(self._mine, holder=replace(holder, kind="lease"))

    def release(self) -> None:
        """Give it back, also in the middle of taking it. A record that somebody took over meanwhile is left alone."""
        if self._held:
            self._end(self._held)
            self._held, self._generation = "", 0
        elif self._mine.holder.shared:
            with contextlib.suppress(OSError):
                os.unlink(f"share.{self._mine.nonce}", dir_fd=self._dir_fd)

    def _end(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            records.rewrite(name, replace(self._mine, beat=self._mine.beat + 1, released=True), self._dir_fd)
        if name.startswith("share."):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._dir_fd)

    def _prune(self, over: set[str]) -> None:
        """Remove what no longer counts; a leftover harms nobody."""
        with contextlib.suppress(OSError):
            for nonce in over:
                os.unlink(f"share.{nonce}", dir_fd=self._dir_fd)
            lowest = self._generation - _KEPT
            old = [int(match[1]) for name in list_anew(self._dir_fd) if (match := _LEASE.fullmatch(name))]
            old = sorted(number for number in old if number < lowest)
            if old:
                self._write_floor(lowest)
            for number in old:  # the lowest first: no gaps
                os.unlink(f"lease.{number}", dir_fd=self._dir_fd)

    def _write_floor(self, lowest: int) -> None:
        fd = os.open(
            _FLOOR, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o660, dir_fd=self._dir_fd
        )
        try:
            pwrite_all(fd, b"%0*d" % (_DIGITS, lowest), 0)
            os.fsync(fd)
        finally:
            os.close(fd)


def _newest(dir_fd: int) -> int:
    """Return the highest number that is taken; 0 for none. A listing may be old, opening a name is not.

    Numbers are removed from the lowest on, so the taken ones are a row without gaps that begins at the floor or below.
    """
    found = [int(match[1]) for name in list_anew(dir_fd) if (match := _LEASE.fullmatch(name))]
    floor = read_if_there(_FLOOR, dir_fd, _DIGITS) or b""
    newest = max(found, default=0)
    if len(floor) == _DIGITS and floor.isdigit():
        newest = max(newest, int(floor))
    while _there(f"lease.{newest + 1}", dir_fd):
        newest += 1
    return newest


def _there(name: str, dir_fd: int) -> bool:
    return records.read(name, dir_fd) is not None


def holders(dir_fd: int) -> list[Holder]:
    """Return whom the newest lease in the directory, and the shared records that it knows, name as holders."""
    newest = _newest(dir_fd)
    data = records.read(f"lease.{newest}", dir_fd) if newest else None
    lease = records.decode(data) if data is not None else None
    if lease is None:
        return []
    found = []
    for nonce in lease.shares:
        data = records.read(f"share.{nonce}", dir_fd)
        share = records.decode(data) if data is not None else None
        if share is not None and not share.released and not share.holder.proven_dead():
            found.append(share.holder)
    # With shared holders left, whoever has the lease itself waits for them.
    if not found and not lease.released and not lease.holder.proven_dead():
        found.append(lease.holder)
    return found
