"""The ledger of a namespace: ``events/<machine>-<month>.jsonl``, one line of JSON for each event.

Statistics only, so best effort: writing never raises, never waits and never follows a link. A line is one write(2) with
O_APPEND, which on a local filesystem nobody's line can cut in two; each machine has a file of its own. Reading takes
nothing for granted: whoever may write the store may have written anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from cachekit.model import StoreAddress
from cachekit.store.layout import open_part, open_to_all
from cachekit.system.clock import now_ns
from cachekit.system.files import opened
from cachekit.system.machine import machine_name
from cachekit.telemetry.events import Event

__all__ = ["KEPT_MONTHS", "OFF", "Reader", "record", "sweep"]

#: $CACHEKIT_EVENTS=off: nothing is written down.
OFF = "CACHEKIT_EVENTS"
KEPT_MONTHS = 13
_LONGEST = 4096
#: A machine's file of a month does not grow beyond this: some 150,000 events.
_LARGEST = 64 << 20
_NAME = re.compile(r"[A-Za-z0-9_-]{1,60}-([0-9]{4})-(0[1-9]|1[0-2])\.jsonl")
_WRITE = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def record(address: StoreAddress | str, events: Iterable[Event]) -> int:
    """Write events into the ledger of the store that they are about; return how many lines were written.

    Nothing is written into a store that is read-only for this job, or that everybody may write to. Never raises and
    changes nothing else: without a store nothing is made, and a full or read-only disk, a FIFO or a link in the
    ledger's place, or a lack of permission mean that nothing is written.
    """
    if os.environ.get(OFF, "").lower() in {"off", "0", "no", "false"}:
        return 0
    written = 0
    with contextlib.suppress(Exception):  # statistics must never be what stops a build
        for line in _append(StoreAddress.of(address), events):
            written += line
    return written


def _append(address: StoreAddress, events: Iterable[Event]) -> Iterator[int]:
    path = os.path.abspath(os.path.expanduser(address.path))
    if address.read_only or not (address.open_to_all or open_to_all(path, address.namespace) is None):
        return
    place = open_part(path, address.namespace, "")
    try:
        with contextlib.suppress(FileExistsError):  # stores made before there were events have none
            os.mkdir("events", 0o750, dir_fd=place)
        with opened(b"events", dir_fd=place) as folder:
            now = now_ns()
            fd = os.open(f"{machine_name()}-{_month(now)}.jsonl", _WRITE, 0o640, dir_fd=folder)
            try:
                info = os.fstat(fd)
                # With a second name it is somebody's file that was linked here to be written to.
                if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1 or info.st_size > _LARGEST:
                    return
                # A full disk may have cut the last line.
                cut = info.st_size > 0 and os.pread(fd, 1, info.st_size - 1) != b"\n"
                for event in events:
                    line = (b"\n" if cut else b"") + _line({"time": now / 1e9, **event})
                    done = os.write(fd, line)
                    cut = done != len(line)
                    yield not cut
            finally:
                os.close(fd)
    finally:
        os.close(place)


def _line(event: Event) -> bytes:
    """Return the event as a line of at most 4096 bytes; what does not fit loses its phases, then its names."""
    for dropped in ((), ("phases",), ("key", "matched", "cache", "job", "entry", "lock")):
        for name in dropped:
            event.pop(name, None)
        text = json.dumps(event, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        line = text.encode("utf-8", "backslashreplace") + b"\n"
        if len(line) <= _LONGEST:
            return line
    raise ValueError("an event without names is longer than a line may be")


def _month(moment_ns: int) -> str:
    return time.strftime("%Y-%m", time.gmtime(max(0, moment_ns) // 1_000_000_000))


def sweep(folder: int, now: int) -> int:
    """Remove the files of months that ended more than 13 months ago from an open directory; return how many.

    Best effort, never raises.
    """
    moment = time.gmtime(max(0, now) // 1_000_000_000)
    oldest = moment.tm_year * 12 + moment.tm_mon - KEPT_MONTHS
    removed = 0
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            match = _NAME.fullmatch(name)
            if match and int(match[1]) * 12 + int(match[2]) < oldest:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=folder)
                    removed += 1
    return removed


@dataclass(slots=True)
class Reader:
    """Reads ledgers; ``damaged`` counts lines, and ``unreadable`` files, that could not be used."""

    damaged: int = 0
    unreadable: int = 0

    def events(self, folder: int, since: float = 0.0) -> Iterator[dict[str, Any]]:
        """Yield the events of a ledger since then (seconds since 1970), file by file. No content makes it raise."""
        earliest = _month(int(max(0.0, since)) * 1_000_000_000)
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            self.unreadable += 1
            return
        for name in names:
            match = _NAME.fullmatch(name)
            if match is None or f"{match[1]}-{match[2]}" < earliest:
                continue
            file = _opened(name, folder)
            if file is None:
                self.unreadable += 1
                continue
            with file:
                yield from self._lines(file, since)

    def _lines(self, file: BinaryIO, since: float) -> Iterator[dict[str, Any]]:
        overlong = False
        while True:
            try:
                line = file.readline(_LONGEST + 1)
            except OSError:
                self.unreadable += 1
                return
            if not line:
                return
            if not line.endswith(b"\n") and len(line) > _LONGEST:
                self.damaged += not overlong
                overlong = True
                continue
            if overlong:  # its end
                overlong = False
                continue
            if line.isspace():
                continue
            event = _parse(line)
            if event is None:
                self.damaged += 1
            elif event["time"] >= since:
                yield event


def _opened(name: str, folder: int) -> BinaryIO | None:
    """Return a regular file opened for reading, None if it is something else or cannot be read."""
    try:
        fd = os.open(name, _READ, dir_fd=folder)
    except OSError:
        return None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return None
    return open(fd, "rb")


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return the event of a line with every known field of its type, None if it is none."""
    try:
        event = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or event.get("v") != 1:
        return None
    for name in ("event", "namespace"):
        if not isinstance(event.get(name), str):
            return None
    for name in ("status", "key", "cache", "platform", "job", "host", "matched"):
        if not isinstance(event.get(name, ""), str):
            return None
    for name in ("time", "bytes", "content", "files", "seconds"):
        value = event.setdefault(name, 0)
        # Neither NaN nor infinity is in that range.
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 62:
            return None
    return event
