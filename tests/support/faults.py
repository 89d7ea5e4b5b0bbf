"""What can go wrong with the calls of a flaky mount."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

Operation: TypeAlias = Literal[
    "create",
    "open",
    "read",
    "write",
    "fsync",
    "flush",
    "truncate",
    "unlink",
    "rename",
    "link",
    "symlink",
    "mkdir",
    "rmdir",
    "chmod",
    "chown",
    "utimens",
    "readdir",
    "getattr",
    "statfs",
    "fsyncdir",
]
"""`flush` is what close(2) reports; `fsyncdir` is fsync of a directory."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong with the calls of one operation, from the moment it is set."""

    errno: int | None = None
    """Fail with it; with `after`, once that many bytes are written (ENOSPC if not given)."""
    match: str = ""
    """Only for paths that contain this; of a rename or link, the new path."""
    skip: int = 0
    """Let so many matching calls pass first."""
    times: int | None = None
    """Then let only so many go wrong."""
    delay: float = 0
    """Seconds to wait before going on, or failing."""
    after: int | None = None
    """write: accept so many bytes in all, the last call being cut short, before it goes wrong."""
    lie: Literal["cut", "hole"] | None = None
    """write: report success and lose the bytes; the file stays short, or grows a hole instead."""
    flip: int | None = None
    """read: the lowest bit of the byte at this offset of the file is wrong."""
    short: int | None = None
    """read, write: move at most so many bytes a call."""


class Faults:
    """The faults in the file, read anew when it was replaced, with what they have counted since."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._version = (0, 0)
        self._faults: dict[str, Fault] = {}
        self._calls: dict[str, int] = {}
        self._written = 0

    def now(self, operation: str, path: str) -> Fault:
        """Count a call and return the fault that it shall meet; fails here where the call just fails."""
        with self._lock:
            fault = self._due(operation, path)
        if fault.delay:
            time.sleep(fault.delay)
        if fault.errno is not None and fault.after is None:
            raise OSError(fault.errno, os.strerror(fault.errno))
        return fault

    def room(self, fault: Fault, wanted: int) -> int:
        """How many of the bytes wanted may still be written."""
        if fault.after is None:
            return wanted
        with self._lock:
            granted = max(0, min(wanted, fault.after - self._written))
            self._written += granted
        return granted

    def _due(self, operation: str, path: str) -> Fault:
        status = os.stat(self._path)
        if (status.st_ino, status.st_mtime_ns) != self._version:
            told = json.loads(Path(self._path).read_text())
            self._faults = {name: Fault(**fields) for name, fields in told.items()}
            self._version = (status.st_ino, status.st_mtime_ns)
            self._calls, self._written = {}, 0
        fault = self._faults.get(operation)
        if fault is None or fault.match not in path:
            return Fault()
        count = self._calls[operation] = self._calls.get(operation, 0) + 1
        last = sys.maxsize if fault.times is None else fault.skip + fault.times
        return fault if fault.skip < count <= last else Fault()
