"""Who holds a lock, or waits for it, as a small file that others can read while it is rewritten.

A record is one JSON object, padded to 4,096 bytes and rewritten in place: its size never changes, since network
filesystems remember sizes for longer than contents. What is read is never trusted: a record says who to name and
what to watch, not what is true.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from cachekit.system import process
from cachekit.system.clock import host_name, now_ns
from cachekit.system.files import pwrite_all, read_if_there

__all__ = ["SIZE", "Holder", "Record", "decode", "encode", "myself", "read", "rewrite"]

SIZE = 4096
#: The longest lease that a record can claim, in seconds: more is a fault or an attack.
MAX_LENGTH = 3600.0
_COMMAND = 200
_WRITE = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class Holder:
    """Whom to name: ``since`` is UTC by that host's clock. ``identities`` are the processes that keep the lock.

    ``gone`` is set by who looks: all of them have certainly ended, so something that they left holds the lock.
    """

    host: str
    pid: int
    command: str
    since: str
    kind: Literal["flock", "lease"] = "flock"
    shared: bool = False
    identities: tuple[str, ...] = ()
    gone: bool = False

    def __str__(self) -> str:
        said = f"{self.host}, pid {self.pid}, since {self.since}: {self.command}"
        return f"{said} (it has ended; something that it started still holds the lock)" if self.gone else said

    def with_process(self, pid: int) -> Holder:
        """Return the same with one more process that keeps the lock."""
        identity = process.identity_of(pid)
        return self if identity is None else replace(self, identities=(*self.identities, str(identity)))

    def proven_dead(self) -> bool:
        """Return True only if every process of it certainly ended; unknown (another host) is False."""
        known = [process.parse(text) for text in self.identities]
        return bool(known) and all(one is not None and one.proven_dead() for one in known)


@dataclass(frozen=True, slots=True)
class Record:
    """A holder and, of a lease, its state. ``length`` in seconds; ``beat`` changes with every renewal.

    ``nonce`` is who wrote it. ``shares`` names the shared holders that this generation of the lease knows.
    """

    holder: Holder
    nonce: str
    length: float = 0.0
    beat: int = 0
    released: bool = False
    shares: tuple[str, ...] = ()


def myself(command: Sequence[str], *, shared: bool) -> Holder:
    """Return the calling process as a holder that runs ``command``."""
    text = " ".join(command)
    if len(text) > _COMMAND:
        text = text[:_COMMAND] + "..."
    now = dt.datetime.fromtimestamp(now_ns() // 10**9, dt.UTC)
    me = process.current()
    since = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return Holder(host_name()[:64], me.pid, text, since, shared=shared, identities=(str(me),))


def encode(record: Record) -> bytes:
    """Return the record's bytes. Raises ValueError if they do not fit (too many shared holders)."""
    data = json.dumps({"version": 1, **asdict(record)}, separators=(",", ":")).encode("ascii")
    if len(data) >= SIZE:
        raise ValueError("the record does not fit")
    return data.ljust(SIZE - 1) + b"\n"


def decode(data: bytes) -> Record | None:
    """Return the record, or None for anything else: garbage, half a record, another version."""
    if len(data) != SIZE or data[-1:] != b"\n":
        return None
    try:
        raw = json.loads(data)
        if raw.pop("version") != 1:
            return None
        holder = raw.pop("holder")
        known = Holder(
            _text(holder["host"]),
            int(holder["pid"]),
            _text(holder["command"]),
            _text(holder["since"]),
            "lease" if holder["kind"] == "lease" else "flock",
            bool(holder["shared"]),
            tuple(_text(text) for text in holder["identities"]),
        )
        return Record(
            known,
            _name(raw["nonce"]),
            _length(raw["length"]),
            int(raw["beat"]),
            raw["released"] is True,
            tuple(_name(text) for text in raw["shares"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _length(value: Any) -> float:
    length = float(value)
    if not 0 <= length <= MAX_LENGTH:  # also NaN, which would never be over
        raise ValueError("no length of a lease")
    return length


def _name(value: Any) -> str:
    """Return a name of a file beside the record: only such as we make, never a path."""
    text = _text(value)
    if len(text) != 16 or not set(text) <= set("0123456789abcdef"):
        raise ValueError("not a name of ours")
    return text


def read(name: str, dir_fd: int) -> bytes | None:
    """Return the bytes of a record's file as they are on its server now; None if there is none. Raises OSError."""
    return read_if_there(name, dir_fd, SIZE)


def rewrite(name: str, record: Record, dir_fd: int) -> None:
    """Write the record over the one that is there, and have it reach the server. Raises OSError."""
    data = encode(record)
    fd = os.open(name, _WRITE, dir_fd=dir_fd)
    try:
        pwrite_all(fd, data, 0)
        os.fsync(fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(fd)
        raise
    os.close(fd)  # its error is the write's, on network filesystems
