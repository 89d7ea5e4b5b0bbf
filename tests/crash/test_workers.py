"""Worker processes: no message is too large, no failure is lost, and none of them outlives its parent."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cachekit.errors import Damaged
from cachekit.system.workers import InlinePool, Pool, WorkerDied, open_pool, pack_message, worker_count

MIB = 1 << 20


class Echo:
    """Gives back what it is given, and does what it is told."""

    def handle(self, message: Any) -> Iterable[Any]:
        """Obey one message."""
        kind, value = message
        if kind == "echo":
            yield value
        elif kind == "many":
            yield from range(value)
        elif kind == "pid":
            yield os.getpid()
        elif kind == "damaged":
            raise Damaged("broken here", path=b"\xff/x", rung="frames", frame=value)
        elif kind == "os":
            raise OSError(value, os.strerror(value), "some/path")
        elif kind == "other":
            raise ZeroDivisionError("by nothing")
        elif kind == "exit":
            os._exit(value)
        elif kind == "sleep":
            time.sleep(value)
            yield "slept"


def children() -> str:
    """The processes that this one has started, zombies too."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


@contextmanager
def pool_of(count: int) -> Iterator[Pool]:
    """A pool that is closed at the end, with all its processes gone and nothing frozen or open."""
    descriptors, there = len(os.listdir("/proc/self/fd")), children()
    pool = open_pool(Echo, count)
    try:
        yield pool
    finally:
        pool.close()
        pool.close()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert gc.get_freeze_count() == 0
    assert children() == there


def collect(pool: Pool, count: int) -> list[tuple[int, Any]]:
    """Wait for so many replies."""
    replies: list[tuple[int, Any]] = []
    while len(replies) < count:
        replies += pool.poll(wait=True)
    return replies


@pytest.mark.parametrize("count", [0, 1, 3])
def test_messages_of_one_worker_keep_their_order(count: int) -> None:
    """Replies come from the worker that was asked, in the order of its messages."""
    with pool_of(count) as pool:
        for number in range(300):
            pool.send(number % pool.count, ("echo", number))
        replies = collect(pool, 300)
        for worker in range(pool.count):
            assert [value for one, value in replies if one == worker] == list(range(worker, 300, pool.count))
        assert pool.poll(wait=False) == []


@pytest.mark.parametrize("count", [0, 2])
def test_messages_larger_than_the_socket_do_not_lock_up(count: int) -> None:
    """Both sides send more than any buffer holds at the same time, and everything arrives."""
    blocks = [bytes([number]) * (8 * MIB) for number in range(6)]
    with pool_of(count) as pool:
        for number, block in enumerate(blocks):
            pool.send_packed(number % pool.count, pack_message(("echo", block)))
        replies = [value for _, value in collect(pool, len(blocks))]
    assert sorted(replies) == blocks


def test_a_worker_that_floods_is_read() -> None:
    """100,000 replies to one message are all there."""
    with pool_of(2) as pool:
        pool.send(0, ("many", 100_000))
        assert [value for _, value in collect(pool, 100_000)] == list(range(100_000))


@pytest.mark.parametrize("count", [0, 2])
def test_an_error_of_ours_keeps_its_type_and_fields(count: int) -> None:
    """A refusal in a worker is the same refusal in the parent."""
    with pool_of(count) as pool:
        pool.send(0, ("damaged", 7))
        with pytest.raises(Damaged) as caught:
            collect(pool, 1)
    assert caught.value.message == "broken here"
    assert caught.value.path == b"\xff/x"
    assert caught.value.fields == {"rung": "frames", "frame": 7}


@pytest.mark.parametrize("count", [0, 2])
def test_an_error_of_the_system_keeps_its_number(count: int) -> None:
    """An OSError has its errno and file name in the parent too."""
    with pool_of(count) as pool:
        pool.send(pool.count - 1, ("os", 28))
        with pytest.raises(OSError, match="No space left") as caught:
            collect(pool, 1)
    assert (caught.value.errno, caught.value.filename) == (28, "some/path")


def test_a_bug_in_a_worker_is_told_with_its_name() -> None:
    """Any other exception ends the pool and says what it was."""
    with pool_of(2) as pool:
        pool.send(1, ("other", 0))
        with pytest.raises(RuntimeError, match="ZeroDivisionError: by nothing"):
            collect(pool, 1)


def _kill(pool: Pool) -> str:
    pool.send(1, ("pid", 0))
    [(_, pid)] = collect(pool, 1)
    os.kill(pid, signal.SIGKILL)
    return "killed by signal 9"


def _exit(pool: Pool) -> str:
    pool.send(1, ("exit", 3))
    return "ended with 3"


@pytest.mark.parametrize("end", [_kill, _exit])
def test_a_worker_that_died_is_noticed(end: Callable[[Pool], str]) -> None:
    """Nobody waits for a worker that is gone: the parent learns how it ended, also when it sends first."""
    with pool_of(2) as pool:
        words = end(pool)
        for _ in range(20):
            pool.send(1, ("echo", bytes(MIB)))
        with pytest.raises(WorkerDied, match=words):
            collect(pool, 20)


def test_closing_ends_workers_at_once() -> None:
    """A worker at work is killed, not waited for."""
    begin = time.monotonic()
    with pool_of(3) as pool:
        for worker in range(3):
            pool.send(worker, ("sleep", 60))
        assert pool.poll(wait=False) == []
    assert time.monotonic() - begin < 5


def test_a_signal_to_the_group_is_the_parents_affair(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGINT does not end a worker; a handler of the parent never runs in one, not even right after the fork."""
    ran: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda *_: ran.append(os.getpid()))
    real = os.fork

    def signalled_fork() -> int:
        pid = real()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGTERM)  # as early as it can come: it waits until it is dealt with
        return pid

    try:
        with pool_of(1) as pool:
            pool.send(0, ("pid", 0))
            [(_, pid)] = collect(pool, 1)
            os.kill(pid, signal.SIGINT)
            pool.send(0, ("echo", "still here"))
            assert collect(pool, 1) == [(0, "still here")]
        monkeypatch.setattr(os, "fork", signalled_fork)
        with pool_of(1) as pool:
            pool.send(0, ("echo", "x"))
            with pytest.raises(WorkerDied, match="killed by signal 15"):
                collect(pool, 1)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
        assert ran == []
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_a_fork_that_fails_leaves_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the machine has no more processes, those already made are ended and the error is told."""
    real, made = os.fork, iter((True, True, False))

    def failing_fork() -> int:
        if not next(made):
            raise BlockingIOError(11, "no more processes")
        return real()

    there = children()
    monkeypatch.setattr(os, "fork", failing_fork)
    with pytest.raises(BlockingIOError, match="no more processes"):
        open_pool(Echo, 3)
    assert children() == there


@pytest.mark.parametrize(
    ("given", "count"), [("1", 1), ("3", 3), ("0", 1), ("-5", 1), ("999", 64), ("many", None), ("", None)]
)
def test_the_number_of_workers_can_be_chosen(
    monkeypatch: pytest.MonkeyPatch, given: str, count: int | None
) -> None:
    """CACHEKIT_WORKERS between 1 and 64; anything that is no number is as if it were not set."""
    monkeypatch.setenv("CACHEKIT_WORKERS", given)
    assert worker_count() == count if count else 1 <= worker_count() <= 4


def test_no_workers_means_this_process() -> None:
    """A pool of none handles messages where they are sent, when replies are asked for."""
    pool = open_pool(Echo, 0)
    assert isinstance(pool, InlinePool)
    pool.send(0, ("pid", 0))
    assert pool.poll(wait=True) == [(0, os.getpid())]
    assert pool.poll(wait=True) == []
    pool.close()
