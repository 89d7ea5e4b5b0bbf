"""Child processes: a clean environment, ordinary users, and kills at chosen moments.

Every child leads a session of its own, so that all that descends from it can be found and killed together;
its output goes to files, so that no grandchild that outlives it keeps anyone waiting for the end of a pipe.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeAlias

from tests.support.ordinary_user import PROJECT, command_of

TIMEOUT_SECONDS = 150.0
"""Shorter than a test's own limit, so that the child's output is shown when it hangs."""

Arg: TypeAlias = str | bytes | Path

_KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "COVERAGE_PROCESS_START", "COVERAGE_FILE")
_XDG = {"CACHE": ".cache", "CONFIG": ".config", "STATE": ".local/state", "DATA": ".local/share"}


@dataclass(frozen=True)
class Result:
    """How a child ended; `code` is negative for a signal."""

    args: tuple[Arg, ...]
    code: int
    out: bytes
    err: bytes

    @property
    def stdout(self) -> str:
        """Standard output as text, undecodable bytes as surrogates."""
        return os.fsdecode(self.out)

    @property
    def stderr(self) -> str:
        """Standard error as text, undecodable bytes as surrogates."""
        return os.fsdecode(self.err)

    def json(self) -> Any:
        """Standard output as the one JSON document that it must be."""
        return json.loads(self.out)

    def expect(self, *codes: int) -> Self:
        """Fail with all output unless the exit code is one of `codes` (0 unless given), or on a traceback."""
        told = f"{self!s}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"
        assert self.code in (codes or (0,)), f"exit {self.code}, not {codes or (0,)}: {told}"
        assert "Traceback (most recent call last)" not in self.stderr, f"traceback: {told}"
        return self

    def __str__(self) -> str:
        return " ".join(os.fsdecode(arg) for arg in self.args)


class Running:
    """A child that runs; leaving the block kills it and all its descendants."""

    def __init__(
        self, args: tuple[Arg, ...], process: subprocess.Popen[bytes], out: IO[bytes], err: IO[bytes]
    ) -> None:
        self.args = args
        self.pid = process.pid
        self._process, self._out, self._err = process, out, err

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._out.close()
        self._err.close()

    @property
    def alive(self) -> bool:
        """Whether the child itself has not ended yet."""
        return self._process.poll() is None

    def send(self, signal_number: int) -> None:
        """Send a signal to the child alone."""
        self._process.send_signal(signal_number)

    def kill(self) -> Result:
        """Kill the child and all its descendants at once, as a runner's hard stop does."""
        ended = not self.alive
        while members := members_of_session(self.pid):  # again, for what was forked meanwhile
            if ended and self.pid in members:
                break  # another process has the number by now, which it gets when nobody of ours is left
            for pid in members:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        return self.wait()

    def kill_when(self, moment: Callable[[], bool], seconds: float = 60) -> Result:
        """Kill as soon as `moment()` is true; if the child ends before, that is its result."""
        deadline = time.monotonic() + seconds
        while self.alive and not moment():
            assert time.monotonic() < deadline, f"the moment to kill {self.args} never came"
            time.sleep(0.0005)
        return self.kill()

    def wait(self, seconds: float = TIMEOUT_SECONDS) -> Result:
        """Wait for the end of the child (not of its descendants)."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            output = self._read(self._out) + self._read(self._err)
            raise AssertionError(f"{self.args} ran over {seconds} s:\n{os.fsdecode(output)}") from None
        return Result(self.args, code, self._read(self._out), self._read(self._err))

    def _read(self, file: IO[bytes]) -> bytes:
        return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)


def start(
    args: list[Arg],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes = b"",
    user: int | None = None,
) -> Running:
    """Start a child with exactly the environment given (a clean one if none), as `user` if given."""
    environment = clean_environment() if env is None else env
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - Running closes them
    with tempfile.TemporaryFile() as given:
        given.write(stdin)
        given.seek(0)
        process = subprocess.Popen(
            args if user is None else [*command_of(user), *args],
            stdin=given,
            stdout=out,
            stderr=err,
            env=environment,
            cwd=cwd,
            start_new_session=True,
        )
    return Running(tuple(args), process, out, err)


def run(
    args: list[Arg],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes = b"",
    user: int | None = None,
    seconds: float = TIMEOUT_SECONDS,
) -> Result:
    """Run a child to its end; see `start`."""
    with start(args, env=env, cwd=cwd, stdin=stdin, user=user) as running:
        return running.wait(seconds)


def clean_environment(home: Path | None = None) -> dict[str, str]:
    """Make an environment in which nothing of CI or of the user shows, with a private `home`."""
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environment["PYTHONPATH"] = str(PROJECT)
    if home is not None:
        environment["HOME"] = str(home)
        environment["TMPDIR"] = str(home / "tmp")
        for name, below in _XDG.items():
            environment[f"XDG_{name}_HOME"] = str(home / below)
        environment["XDG_RUNTIME_DIR"] = str(home / "run")
        environment["CACHEKIT_LOCK_DIR"] = str(home / "run")
    return environment


def members_of_session(pid: int) -> list[int]:
    """Find the processes, zombies apart, of the session that `pid` leads or led."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                text = Path("/proc", entry, "stat").read_text(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            state, _, _, session = text.rpartition(")")[2].split()[:4]
            if int(session) == pid and state not in "ZX":
                found.append(int(entry))
    return found


def children_gone(pid: int) -> bool:
    """Whether nothing is left of the child `pid` and its descendants."""
    return not members_of_session(pid)


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Wait until `condition()` is true; fail, saying `what` was awaited, at the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.005)
