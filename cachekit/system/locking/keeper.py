"""A small process that keeps a lock while a command runs, in case that the one that took it is killed.

It renews the lease, if there is one, and gives the lock back when both the taker and the command have ended, however
they ended. The command inherits the locked descriptor as well, so that killing the keeper too frees nothing.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Collection

from cachekit.system import process
from cachekit.system.locking.named import NamedLock

__all__ = ["Keeper"]

_LOST = b"lost"
_LATE = b"late"
#: How often it looks where the kernel cannot tell it of an end (no pidfd).
_LOOK_SECONDS = 0.2


class Keeper:
    """The running keeper of ``lock`` for a command, by its pid. Made by a fork: the caller has one thread.

    Raises OSError.
    """

    def __init__(self, lock: NamedLock, command: int) -> None:
        self._reader, writer = os.pipe()
        taker = os.getpid()
        self.pid = os.fork()
        if self.pid:
            os.close(writer)
            os.set_blocking(self._reader, False)
            return
        # From here on in the child, which never returns. Its signals stay blocked: it ends by itself, or by SIGKILL.
        with contextlib.suppress(BaseException):
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            os.setsid()
            _close_but({writer, lock.dir_fd, *lock.inherited})
            _keep(lock, taker, command, writer)
        os._exit(0)

    def said(self) -> str:
        """Return what it found out since last asked: ``lost``, ``late``, ``ended`` (it was killed), or nothing."""
        try:
            words = os.read(self._reader, 1 << 12)
        except BlockingIOError:
            return ""
        if not words:
            return "ended"
        return "lost" if _LOST in words else "late"

    def stop(self) -> None:
        """End it without giving the lock back."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        os.close(self._reader)


def _close_but(kept: Collection[int]) -> None:
    """Let nothing that somebody may wait for be held open by us: pipes to a log, the terminal."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd not in kept:
            with contextlib.suppress(OSError):
                os.close(fd)


class _Watched:
    """A process whose end is awaited."""

    def __init__(self, pid: int) -> None:
        self._identity = process.identity_of(pid)
        self.fd = -1
        with contextlib.suppress(OSError):
            self.fd = os.pidfd_open(pid)

    def ended(self) -> bool:
        if self.fd >= 0:
            return bool(select.select([self.fd], [], [], 0)[0])
        return self._identity is None or self._identity.proven_dead()


def _keep(lock: NamedLock, taker: int, command: int, writer: int) -> None:
    lease = lock.lease
    left = [_Watched(taker), _Watched(command)]
    late = False
    while True:
        left = [one for one in left if not one.ended()]
        if not left:
            lock.release()
            return
        patience = None if all(one.fd >= 0 for one in left) else _LOOK_SECONDS
        if lease is not None:
            due, since = lease.length / 4, lease.renewed
            if time.monotonic() - since >= due:
                try:
                    if not lease.renew():
                        _say(writer, _LOST)
                        lease = None
                        continue
                    late = False
                except OSError:  # the server is away: it may come back in time
                    if not late and time.monotonic() - since > due * 3:
                        late = True
                        _say(writer, _LATE)
                    due = min(1.0, due / 5)
            patience = due if patience is None else min(due, patience)
        select.select([one.fd for one in left if one.fd >= 0], [], [], patience)


def _say(writer: int, word: bytes) -> None:
    with contextlib.suppress(OSError):  # the taker is gone
        os.write(writer, word)
