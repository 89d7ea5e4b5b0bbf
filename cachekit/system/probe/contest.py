"""Questions about a filesystem that take several processes: who is let in while another one is."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import select
import signal
from collections.abc import Callable
from typing import Any, Literal

__all__ = ["LockKind", "excludes_processes", "one_linker_wins", "rename_is_atomic", "try_kind"]

LockKind = Literal["flock", "fcntl"]
#: A child that hangs in the kernel is given up after so many seconds.
_PATIENCE = 20.0
_RACERS, _ROUNDS = 4, 20
_REFUSED = {errno.EEXIST, errno.EPERM, errno.EIO, errno.EACCES}


def try_kind(fd: int, kind: LockKind) -> bool:
    """Lock ``fd`` exclusively without waiting; False if somebody else holds it. OSError if there are no such locks."""
    lock = fcntl.flock if kind == "flock" else fcntl.lockf
    try:
        lock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}:
            return False
        raise
    return True


class _Child:
    """A forked process that answers with one JSON value, after it was told to go."""

    def __init__(self, work: Callable[[], Any]) -> None:
        answer, self._answer_in = os.pipe()
        go, self._go = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            with contextlib.suppress(BaseException):
                os.close(self._go)
                os.read(go, 1)
                os.write(self._answer_in, json.dumps(work()).encode())
            os._exit(0)
        os.close(go)
        os.close(self._answer_in)
        self._answer = answer

    def go(self) -> None:
        # A byte, not the end of the pipe: children that were forked later hold it open too.
        os.write(self._go, b"g")
        os.close(self._go)

    def answer(self) -> Any:
        """Return what it answered, None if it failed or hangs. It has ended then."""
        data = b""
        while select.select([self._answer], [], [], _PATIENCE)[0] and (piece := os.read(self._answer, 65536)):
            data += piece
        os.close(self._answer)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return json.loads(data) if data else None


def excludes_processes(name: str, kind: LockKind, dir_fd: int) -> bool | None:
    """Return whether a lock of this process keeps another out, and lets it in later. None: there are no such locks."""

    def attempt() -> bool:
        other = os.open(name, os.O_RDWR | os.O_CLOEXEC, dir_fd=dir_fd)
        return try_kind(other, kind)

    # Forked before the file is opened: a descriptor that they inherit would keep a flock for ever.
    first, second = _Child(attempt), _Child(attempt)
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
    try:
        try:
            held = try_kind(fd, kind)
        except OSError:
            held = None
        first.go()
        meanwhile = first.answer()
    finally:
        os.close(fd)
    second.go()
    afterwards = second.answer()
    if held is None or meanwhile is None:
        return None
    return bool(held and not meanwhile and afterwards)


def one_linker_wins(dir_fd: int) -> bool | None:
    """Return whether of several processes that link to one name at once exactly one succeeds. None: no hard links."""

    def race(own: str) -> list[int] | None:
        won = []
        for number in range(_ROUNDS):
            try:
                os.link(own, f"link-{number}", src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
                won.append(number)
            except OSError as error:
                if error.errno not in _REFUSED or not _there(f"link-{number}", dir_fd):
                    return None
        return won

    children = []
    for number in range(_RACERS):
        own = f"racer-{number}"
        os.close(os.open(own, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=dir_fd))
        children.append(_Child(lambda own=own: race(own)))  # type: ignore[misc]
    for child in children:
        child.go()
    answers = [child.answer() for child in children]
    if any(answer is None for answer in answers):
        return None
    return sorted(number for answer in answers for number in answer) == list(range(_ROUNDS))


def _there(name: str, dir_fd: int) -> bool:
    try:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def rename_is_atomic(dir_fd: int) -> bool | None:
    """Return whether a name that is replaced again and again is always there, with one whole content."""
    contents = [bytes([65 + number]) * 4096 for number in range(2)]

    def write(name: str, data: bytes) -> None:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)

    def replace() -> bool:
        for number in range(_ROUNDS * 5):
            write("new", contents[number % 2])
            os.rename("new", "name", src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        return True

    write("name", contents[0])
    child = _Child(replace)
    child.go()
    whole = True
    while not select.select([child._answer], [], [], 0)[0]:  # noqa: SLF001 - the end of it is the end of this
        try:
            fd = os.open("name", os.O_RDONLY | os.O_CLOEXEC, dir_fd=dir_fd)
        except FileNotFoundError:
            whole = False
            continue
        try:
            whole = whole and os.read(fd, 4096) in contents
        finally:
            os.close(fd)
    return whole if child.answer() else None
