"""The record of a target: by which stat values its files were when they were known to hold what an entry holds.

A later save or restore need not read a file that still has them. Written locally after each save and restore, one file
a target, in this user's state directory; never trusted where it does not parse to its last byte, after a restart of the
machine, or for a target on a filesystem of another host.

A file is *known* only if its times were over when its content was read: a change in the same tick of the clock would
leave them as they are (git's "racy" rule, Documentation/technical/racy-git in git's sources).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from array import array
from dataclasses import dataclass, field
from typing import Any

from xxhash import xxh3_128_digest

from cachekit.archive.index import Index, decode
from cachekit.archive.read import decompress
from cachekit.errors import Damaged
from cachekit.system.files import make_private_directory, put_in_place
from cachekit.system.locking.measured import is_local
from cachekit.system.process import boot_id
from cachekit.system.state import make_as_owner, state_directory

__all__ = ["UNKNOWN", "Record", "forget", "forget_unsettled", "load", "settled", "store"]

#: The ctime of a row of which nothing is known: no file has it.
UNKNOWN = -(1 << 63)

_MAGIC = b"CKRECORD1\n"
_KEPT = 200
#: A clock's tick, and what a write() may take that began in it; the longest tick of filesystems with whole seconds.
_TICK_NS = 50_000_000
_COARSE_TICK_NS = 2_000_000_000
_SECOND_NS = 1_000_000_000


@dataclass(slots=True)
class Record:
    """What is known of one target. ``first`` is its first row in the entry's index; the columns begin there.

    ``inodes`` and ``ctimes`` have a value for each row (``UNKNOWN`` for those that must be read again). ``store``,
    ``namespace`` and ``entry`` say where the entry lies, ``identity`` which one it is.
    """

    identity: str
    store: str
    namespace: str
    entry: str
    root: str
    path: str
    excludes: list[str]
    device: int
    first: int
    index_raw_bytes: int
    index_sha256: str
    inodes: array[int] = field(default_factory=lambda: array("Q"))
    ctimes: array[int] = field(default_factory=lambda: array("q"))
    packed_index: bytes = b""

    def index(self) -> Index | None:
        """Return the index of the entry, None if it does not parse."""
        import zstandard

        try:
            raw = decompress(zstandard.ZstdDecompressor(), self.packed_index, self.index_raw_bytes, "index")
            return decode(raw)
        except Damaged:
            return None


_FACTS = (
    "identity",
    "store",
    "namespace",
    "entry",
    "root",
    "path",
    "excludes",
    "device",
    "first",
    "index_raw_bytes",
    "index_sha256",
)


def settled(ctime_ns: int, read_ns: int) -> bool:
    """Return True if a file with this ctime cannot have changed since ``read_ns`` without another ctime."""
    tick = _COARSE_TICK_NS if ctime_ns % _SECOND_NS == 0 else _TICK_NS
    return ctime_ns + tick < read_ns


def forget_unsettled(ctimes: array[int], read_ns: int) -> None:
    """Make the rows ``UNKNOWN`` whose file may have changed since ``read_ns`` without another ctime."""
    recent = read_ns - _COARSE_TICK_NS
    for at in [at for at, ctime in enumerate(ctimes) if ctime >= recent]:
        if not settled(ctimes[at], read_ns):
            ctimes[at] = UNKNOWN


def _place(target: bytes) -> tuple[str, str]:
    return os.path.join(state_directory(), "records"), hashlib.sha256(target).hexdigest()[:32]


def store(target: bytes, record: Record) -> bool:
    """Keep the record of the target at the absolute path ``target``. Best effort; False if it is not kept.

    Not durable: what a crash leaves of it does not parse, and then files are read again.
    """
    directory, name = _place(target)
    facts: dict[str, Any] = {key: getattr(record, key) for key in _FACTS}
    facts |= {
        "boot": boot_id(),
        "rows": len(record.inodes),
        "packed": len(record.packed_index),
        "byteorder": sys.byteorder,
    }
    data = b"".join(
        (
            _MAGIC,
            json.dumps(facts, ensure_ascii=True).encode("ascii") + b"\n",
            record.inodes.tobytes(),
            record.ctimes.tobytes(),
            record.packed_index,
        )
    )
    try:
        if not is_local(target):
            forget(target)
            return False
        make_as_owner(directory)
        make_private_directory(directory)  # raises if it is a link
        _sweep(directory)
        put_in_place(os.path.join(directory, name), data + xxh3_128_digest(data))
    except OSError:
        forget(target)  # one that is older than the tree would only be useless, never wrong
        return False
    return True


def load(target: bytes) -> Record | None:
    """Return the record of the target at the absolute path ``target``; None if there is none that can be trusted."""
    directory, name = _place(target)
    try:
        with open(os.path.join(directory, name), "rb") as file:
            info = os.fstat(file.fileno())
            if info.st_uid != os.geteuid() or not is_local(target):
                return None
            data = file.read()
    except OSError:
        return None
    body, digest = data[:-16], data[-16:]
    if not body.startswith(_MAGIC) or xxh3_128_digest(body) != digest:
        return None
    try:
        return _parse(body)
    except (ValueError, KeyError, TypeError):  # of another version
        return None


def _parse(body: bytes) -> Record | None:
    end = body.index(b"\n", len(_MAGIC)) + 1
    facts = json.loads(body[len(_MAGIC) : end])
    if facts["boot"] != boot_id() or facts["byteorder"] != sys.byteorder:
        return None
    record = Record(**{key: facts[key] for key in _FACTS})
    columns = (
        (record.inodes, facts["rows"]),
        (record.ctimes, facts["rows"]),
    )
    for column, count in columns:
        size = column.itemsize * count
        column.frombytes(body[end : end + size])
        end += size
    record.packed_index = body[end:]
    return record


def forget(target: bytes) -> None:
    """Remove the record of a target, if there is one."""
    directory, name = _place(target)
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(directory, name))


def _sweep(directory: str) -> None:
    """Remove the oldest records where there are too many: of targets that are gone."""
    names = os.listdir(directory)
    if len(names) <= _KEPT:
        return
    ages = []
    for name in names:
        with contextlib.suppress(OSError):
            ages.append((os.lstat(os.path.join(directory, name)).st_mtime_ns, name))
    for _, name in sorted(ages)[: len(names) - _KEPT]:
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(directory, name))
