"""``lock run``: wait for a named lock, say who has it, run the command, give the lock back.

The lock is held while the command's own process runs. What it leaves in the background does not hold it, unless
cachekit and its keeper were both killed: then the lock stays until the last process that inherited it has ended.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from cachekit.errors import LockBusy, LockLost, NotExecutable, NotFound, NotRun
from cachekit.model import Key, format_duration
from cachekit.system.command import signals_held, start_command, stop_command, wait_for_command
from cachekit.system.locking.keeper import Keeper
from cachekit.system.locking.lease import LEASE_SECONDS
from cachekit.system.locking.named import NamedLock
from cachekit.system.locking.record import Holder, myself
from cachekit.system.steps import step

__all__ = ["LockReport", "LockRequest", "run_locked"]

#: How often somebody who waits is told of it.
TELL_SECONDS = 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.25
#: After SIGTERM for a lost lock, how long the command may take to end.
_STOP_SECONDS = 30.0

Tell = Callable[[str], None]
OnWait = Callable[[str, float, Holder | None], None]


@dataclass(frozen=True, slots=True)
class LockRequest:
    """What to run under which lock. ``place`` is the directory of the locks; times in seconds."""

    name: Key
    place: str
    command: Sequence[str]
    shared: bool = False
    timeout: float = 3600.0
    lease: bool = False
    lease_length: float = LEASE_SECONDS


@dataclass(slots=True)
class LockReport:
    """What a lock run did. ``waited`` and ``seconds`` (of the command) in seconds; ``holders`` were met first."""

    name: str
    directory: str
    kind: str
    shared: bool
    waited: float = 0.0
    holders: list[Holder] = field(default_factory=list)
    exit_code: int = 0
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)


def run_locked(request: LockRequest, *, tell: Tell, warn: Tell, on_wait: OnWait | None = None) -> LockReport:
    """Run the command while holding the lock, and return how it ended.

    ``tell`` and ``warn`` get sentences for people. ``on_wait`` gets the lock's name, the seconds waited and who held it
    first: once, if it was waited for, also if in vain. Raises LockBusy after the timeout, NotFound or NotExecutable if
    the command cannot be started, LockLost if another host took the lease over while it ran, NotRun for anything else.
    """
    holder = myself(request.command, shared=request.shared)
    try:
        lock = NamedLock(
            request.place, request.name, holder, lease=request.lease, length=request.lease_length
        )
    except OSError as error:
        raise _failed(request, error) from None
    report = LockReport(request.name.text, lock.path, "flock", request.shared)
    released = False
    try:
        _acquire(lock, request, report, tell, on_wait)
        step("lock.taken")
        report.kind = "lease" if lock.lease is not None else "flock"
        with signals_held() as mask:
            _run(lock, request, report, mask, warn)
            step("lock.ended")
            released = True
            if not lock.release():
                report.warnings.append(
                    "the lease could not be given back: others wait until it has expired "
                    f"({format_duration(request.lease_length)})"
                )
                warn(report.warnings[-1])
    finally:
        if not released:
            lock.release()
    return report


def _failed(request: LockRequest, error: OSError) -> NotRun:
    return NotRun(
        f"the lock {request.name.text!r} cannot be used: {error.strerror or error}",
        path=request.place,
        hint="its directory must exist or be makeable, and be writable; --dir chooses another one",
    )


def _acquire(
    lock: NamedLock, request: LockRequest, report: LockReport, tell: Tell, on_wait: OnWait | None
) -> None:
    began = time.monotonic()
    try:
        for pause in _pauses(began + request.timeout, lock, tell, report, request):
            try:
                if lock.try_acquire():
                    return
            except OSError as error:
                raise _failed(request, error) from None
            time.sleep(pause)
    finally:
        report.waited = time.monotonic() - began if report.holders or lock.waited else 0.0
        if report.waited and on_wait is not None:
            on_wait(report.name, report.waited, next(iter(report.holders), None))
    met = lock.in_the_way() or report.holders
    raise LockBusy(
        f"the lock {request.name.text!r} was held for longer than {format_duration(request.timeout)}"
        + (f", by {_who(met)}" if met else ""),
        path=lock.path,
        holders=[
            {"host": one.host, "pid": one.pid, "command": one.command, "since": one.since} for one in met
        ],
    )


def _pauses(
    deadline: float, lock: NamedLock, tell: Tell, report: LockReport, request: LockRequest
) -> Iterator[float]:
    """Yield how long to pause after the next attempt, until the deadline; tell of the wait now and then."""
    # Whoever looks at a lock holds it for a moment: that alone is no reason to give up.
    for _ in range(3):
        yield 0.01
    pause, next_telling = _FIRST_PAUSE, 0.0
    while (now := time.monotonic()) < deadline:
        if now >= next_telling:
            lock.wait()
            met = lock.in_the_way()
            report.holders = report.holders or met
            who = _who(met) if met else "somebody who is not known"
            left = "" if deadline == float("inf") else f"; waiting up to {format_duration(deadline - now)}"
            tell(f"the lock {request.name.text!r} is held by {who}{left}")
            next_telling = now + TELL_SECONDS
        yield min(pause, max(0.0, deadline - now))
        pause = min(pause * 1.5, _LONGEST_PAUSE)


def _who(holders: Sequence[Holder]) -> str:
    first = str(holders[0])
    return first if len(holders) == 1 else f"{len(holders)}, one is {first}"


class _Guard:
    """What is done for the lock while the command runs."""

    def __init__(self, lock: NamedLock, name: str, report: LockReport, warn: Tell) -> None:
        self._lock, self._name, self._report, self._tell = lock, name, report, warn
        self._keeper: Keeper | None = None
        self._stop_at: float | None = None
        self.lost = False

    def started(self, pid: int) -> None:
        step("lock.started")
        self._lock.kept_by(pid)
        self._keep(pid)
        step("lock.kept")

    def _keep(self, pid: int) -> None:
        try:
            self._keeper = Keeper(self._lock, pid)
        except OSError as error:  # no memory, no processes: then it is renewed from here
            self._warn(f"no process can be started to keep the lock ({error.strerror})")

    def awake(self, pid: int) -> None:
        said = "" if self._keeper is None else self._keeper.said()
        if said == "ended":
            self.end()
            self._keep(pid)
        elif said == "late":
            self._warn(
                f"the lease of {self._name!r} could not be renewed: the filesystem does not answer; another "
                "host may take it over"
            )
        if said == "lost" or (self._keeper is None and not self._renewed()):
            if not self.lost:
                self._warn(
                    f"the lock {self._name!r} is LOST: another host took its lease over; stopping the command"
                )
                stop_command(pid, hard=False)
                self._stop_at = time.monotonic() + _STOP_SECONDS
            self.lost = True
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            stop_command(pid, hard=True)

    def _renewed(self) -> bool:
        lease = self._lock.lease
        if lease is None or self.lost or time.monotonic() - lease.renewed < lease.length / 4:
            return True
        with contextlib.suppress(OSError):
            return lease.renew()
        return True

    def _warn(self, text: str) -> None:
        self._report.warnings.append(text)
        self._tell(text)

    def end(self) -> None:
        if self._keeper is not None:
            self._keeper.stop()
            self._keeper = None


def _run(
    lock: NamedLock, request: LockRequest, report: LockReport, mask: set[signal.Signals], warn: Tell
) -> None:
    guard = _Guard(lock, request.name.text, report, warn)
    began = time.monotonic()
    try:
        pid = start_command(request.command, lock.inherited, mask)
    except FileNotFoundError:
        raise NotFound(f"there is no command {request.command[0]!r}", path=request.command[0]) from None
    except OSError as error:
        raise NotExecutable(
            f"the command {request.command[0]!r} cannot be executed: {error.strerror}",
            path=request.command[0],
            hint="check its permissions and its first line (#!)",
        ) from None
    try:
        guard.started(pid)
        report.exit_code = wait_for_command(pid, lambda: guard.awake(pid))
    finally:
        report.seconds = time.monotonic() - began
        guard.end()
    if guard.lost:
        raise LockLost(
            f"the lock {report.name!r} was lost while the command ran: another host took its lease over",
            path=lock.path,
            command_exit=report.exit_code,
        )
