"""Who a process is, so that what it left behind can be told from what it is still using."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass

__all__ = ["ProcessIdentity", "current", "parse"]


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read(8)
    except OSError:
        return "noboot00"


def _pid_namespace() -> str:
    with contextlib.suppress(OSError):
        match = re.search(r"\d+", os.readlink("/proc/self/ns/pid"))
        if match:
            return match.group()
    return "0"


def _start_time(pid: int) -> str | None:
    """Return the process's start in clock ticks since boot (field 22 of /proc/PID/stat, see proc(5)), or None."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The command name is in parentheses and may contain anything: count fields after the last ")".
            return file.read().rpartition(b")")[2].split()[19].decode("ascii")
    except (OSError, IndexError):
        return None


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process, told apart from every other one: of other boots, of other pid namespaces, of reused pids."""

    boot_id: str
    pid_namespace: str
    pid: int
    start: str

    def __str__(self) -> str:
        return f"{self.boot_id}.{self.pid_namespace}.{self.pid}.{self.start}"

    def proven_dead(self) -> bool:
        """Return True only if the process certainly no longer runs. Another host or namespace: unknown, so False."""
        me = current()
        if (self.boot_id, self.pid_namespace) != (me.boot_id, me.pid_namespace):
            return False
        return _start_time(self.pid) != self.start


def current() -> ProcessIdentity:
    """Return the identity of the calling process."""
    pid = os.getpid()
    return ProcessIdentity(_boot_id(), _pid_namespace(), pid, _start_time(pid) or "0")


def parse(text: str) -> ProcessIdentity | None:
    """Return the identity that ``str()`` of it gave, or None if ``text`` is something else."""
    match = re.fullmatch(r"([0-9a-z]{8})\.(\d+)\.(\d+)\.(\d+)", text)
    return ProcessIdentity(match[1], match[2], int(match[3]), match[4]) if match else None
