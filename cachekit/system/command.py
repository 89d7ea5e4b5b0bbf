"""A command run in our place: same streams, same terminal, our signals passed on, its exit code ours."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterator, Sequence

__all__ = ["FORWARDED", "signals_held", "start_command", "stop_command", "wait_for_command"]

#: Passed on to the command. Not SIGTSTP and SIGCONT: the terminal sends those to both.
FORWARDED = frozenset(
    {
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGWINCH,
    }
)
#: The kernel's own code in siginfo: a key was pressed, and the whole foreground group got the signal.
_SI_KERNEL = 0x80
#: How long a signal may lie before it is passed on, in seconds.
_PATIENCE = 0.05
#: Ignored by Python itself, which a command must not inherit.
_PYTHONS = (signal.SIGPIPE, signal.SIGXFSZ)


@contextlib.contextmanager
def signals_held() -> Iterator[set[signal.Signals]]:
    """Hold back the signals that are passed on, so that none gets lost or stops us; yield the mask before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD})
    handler = signal.signal(
        signal.SIGCHLD, signal.SIG_DFL
    )  # ignored by the caller, it would swallow exit codes
    try:
        yield {signal.Signals(number) for number in before}
    finally:
        # What came after the command had ended is nobody's any more.
        while signal.sigtimedwait({*FORWARDED, signal.SIGCHLD}, 0) is not None:
            pass
        signal.signal(signal.SIGCHLD, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_command(arguments: Sequence[str], keep: Sequence[int], mask: set[signal.Signals]) -> int:
    """Start the program with the descriptors ``keep``, found on $PATH; return its pid.

    Raises OSError as execvp would: FileNotFoundError, PermissionError ...
    """
    for fd in keep:
        os.set_inheritable(fd, True)
    try:
        return os.posix_spawnp(arguments[0], list(arguments), os.environ, setsigmask=mask, setsigdef=_PYTHONS)
    finally:
        for fd in keep:
            os.set_inheritable(fd, False)


def wait_for_command(pid: int, awake: Callable[[], None]) -> int:
    """Wait for a started command within ``signals_held`` and return its exit code: 128 + n if signal n ended it.

    Signals are passed on meanwhile, and ``awake`` is called some times a second.
    """
    pidfd = -1
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(pid)
    try:
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            # Asked without waiting: interrupted by SIGSTOP and SIGCONT while it waits, Python's sigtimedwait may return
            # a signal that never came.
            while (info := signal.sigtimedwait(FORWARDED, 0)) is not None:
                if info.si_code != _SI_KERNEL:
                    os.kill(pid, info.si_signo)
            awake()
            select.select([pidfd] if pidfd >= 0 else [], [], [], _PATIENCE)
    finally:
        if pidfd >= 0:
            os.close(pidfd)


def stop_command(pid: int, *, hard: bool) -> None:
    """Ask a command that ``wait_for_command`` waits for to end (SIGTERM), or make it (SIGKILL)."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL if hard else signal.SIGTERM)
