"""A command run in our place: same streams, same terminal, our signals passed on, its exit code ours."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence

__all__ = ["FORWARDED", "run_command", "signals_held", "stop_command"]

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


def run_command(
    arguments: Sequence[str],
    *,
    keep: Sequence[int],
    mask: set[signal.Signals],
    started: Callable[[int], None],
    awake: Callable[[int], None],
    patience: float = 0.5,
) -> int:
    """Run a command to its end within ``signals_held`` and return its exit code: 128 + n if signal n ended it.

    ``started`` gets its pid at once, ``awake`` at least every ``patience`` seconds. Raises OSError if it cannot be
    started.
    """
    pid = start_command(arguments, keep, mask)
    started(pid)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        info = signal.sigtimedwait({*FORWARDED, signal.SIGCHLD}, patience)
        if info is not None and info.si_signo != signal.SIGCHLD and info.si_code != _SI_KERNEL:
            os.kill(pid, info.si_signo)
        awake(pid)


def stop_command(pid: int, *, hard: bool) -> None:
    """Ask a command that ``run_command`` waits for to end (SIGTERM), or make it (SIGKILL)."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL if hard else signal.SIGTERM)
