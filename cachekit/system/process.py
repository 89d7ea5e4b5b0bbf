"""Who a process is, so that what it left behind can be told from what it is still using."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

__all__ = [
    "ProcessIdentity",
    "boot_id",
    "current",
    "identity_of",
    "parse",
    "run_limited",
    "running_programs",
]


def boot_id() -> str:
    """Return what is the same until this machine starts anew: the first eight digits of the kernel's boot id."""
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
    """Return the process's start in clock ticks since boot (field 22 of /proc/PID/stat, see proc(5)), or None.

    None also for one that has ended and that nobody waited for, as is usual in containers: it does nothing any more.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The command name is in parentheses and may contain anything: count fields after the last ")".
            fields = file.read().rpartition(b")")[2].split()
        # A process whose first thread alone has ended looks the same, but for the number of threads.
        ended = fields[0] in {b"Z", b"X"} and int(fields[17]) <= 1
        return None if ended else fields[19].decode("ascii")
    except (OSError, IndexError, ValueError):
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
    return ProcessIdentity(boot_id(), _pid_namespace(), pid, _start_time(pid) or "0")


def identity_of(pid: int) -> ProcessIdentity | None:
    """Return the identity of a process that we can see; None if there is none of that number (any more)."""
    start = _start_time(pid)
    return None if start is None else ProcessIdentity(boot_id(), _pid_namespace(), pid, start)


def parse(text: str) -> ProcessIdentity | None:
    """Return the identity that ``str()`` of it gave, or None if ``text`` is something else."""
    match = re.fullmatch(r"([0-9a-z]{8})\.(\d+)\.(\d+)\.(\d+)", text)
    return ProcessIdentity(match[1], match[2], int(match[3]), match[4]) if match else None


def running_programs() -> Iterator[tuple[int, bytes]]:
    """Yield (pid, executable) of every process that we may look into. Linux; nothing elsewhere."""
    try:
        names = os.listdir(b"/proc")
    except OSError:
        return
    for name in names:
        if name.isdigit():
            try:
                yield int(name), os.readlink(b"/proc/" + name + b"/exe").removesuffix(b" (deleted)")
            except OSError:
                continue


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended: ``code`` is None if it was stopped for taking too long; ``tail`` is what it said last."""

    code: int | None
    tail: str
    seconds: float


#: What is kept of a program's output: the last words say what went wrong.
_TAIL = 2000


def run_limited(arguments: Sequence[str], *, timeout: float, environ: Mapping[str, str]) -> Ended:
    """Run a program with nothing on stdin for at most ``timeout`` seconds; then it is stopped with all it started.

    First asked (SIGTERM), and after five seconds made to (SIGKILL). Raises OSError if it cannot be started.
    """
    begin = time.monotonic()
    deadline = begin + timeout
    # A session of its own, so that what it starts can be stopped with it.
    with subprocess.Popen(
        list(arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(environ),
        cwd="/",
        start_new_session=True,
    ) as child:
        assert child.stdout is not None
        tail = b""
        stream = child.stdout.fileno()
        os.set_blocking(stream, False)
        code: int | None = None
        try:
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                chunk = _read_some(stream, min(left, 0.2))
                tail = (tail + (chunk or b""))[-_TAIL:]
                # Ended when it has: something it left running may hold the pipe open for ever.
                code = child.poll()
                if code is not None:
                    tail = (tail + (_read_some(stream, 0) or b""))[-_TAIL:]
                    break
                if chunk == b"":
                    time.sleep(0.01)
        finally:
            if code is None:
                _stop(child)
            child.stdout.close()
    return Ended(code, tail.decode("utf-8", "replace").strip(), time.monotonic() - begin)


def _read_some(fd: int, seconds: float) -> bytes | None:
    """Return what is there within ``seconds``: b"" at the end, None if nothing came."""
    import select

    if not select.select([fd], [], [], seconds)[0]:
        return None
    try:
        return os.read(fd, 1 << 16)
    except BlockingIOError:
        return None


def _stop(child: subprocess.Popen[bytes]) -> None:
    for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(patience)
            if number == signal.SIGKILL:
                return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
