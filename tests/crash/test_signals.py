"""Stopped in the middle by a signal, or robbed of a worker: a sentence, an exit code, and nothing left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.busy import Busy, Sources, in_the_middle, workers_of
from tests.support.cli import Cli
from tests.support.processes import Result, Running, children_gone, wait_until
from tests.support.snapshots import assert_same_tree, unchanged

STOPS = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
SLOWLY = ("--level", "13")


@pytest.fixture
def busy(cli: Cli, tmp_path: Path, large_sources: Sources) -> Busy:
    """An empty store."""
    return Busy.make(cli, tmp_path, large_sources, saved=False)


@pytest.fixture
def saved(cli: Cli, tmp_path: Path, large_sources: Sources) -> Busy:
    """A store with both trees, and the first one in its place."""
    made = Busy.make(cli, tmp_path, large_sources, saved=True)
    made.restore("one")
    return made


def to_child(running: Running, number: int) -> None:
    """Signal the child alone, as a runner does."""
    running.send(number)


def to_group(running: Running, number: int) -> None:
    """Signal its whole process group, as a terminal does."""
    os.killpg(running.pid, number)


def assert_stopped(running: Running, code: int) -> Result:
    """See it end soon, with that code, a sentence, and no worker left."""
    done = running.wait(15).expect(code)
    wait_until(lambda: children_gone(running.pid), "the end of all workers", 5)
    assert len(done.stderr.strip().splitlines()) <= 6, done.stderr
    return done


@pytest.mark.parametrize("send", [to_child, to_group])
@pytest.mark.parametrize(("number", "code"), STOPS)
def test_a_save_is_stopped(busy: Busy, send: Callable[[Running, int], None], number: int, code: int) -> None:
    """The exit code is 128 and the signal; nothing is published, nothing is left in the store."""
    with busy.start_save("one", "key", *SLOWLY) as running:
        in_the_middle(running, lambda: busy.writing() and len(workers_of(running)) > 0)
        send(running, number)
        assert_stopped(running, code)
    assert busy.temporary() == []
    assert busy.assert_verifies() == 0
    assert busy.save("one", "key").status == "saved"


@pytest.mark.parametrize(("send", "mode"), [(to_child, "--merge"), (to_group, "--replace")])
@pytest.mark.parametrize(("number", "code"), STOPS)
def test_a_restore_is_stopped(
    saved: Busy, send: Callable[[Running, int], None], number: int, code: int, mode: str
) -> None:
    """The exit code is 128 and the signal; the target is untouched down to its inodes, and staging is gone."""
    with unchanged(saved.target), saved.start_restore("two", mode) as running:
        in_the_middle(running, saved.unpacking)
        send(running, number)
        assert_stopped(running, code)
    saved.assert_no_leftovers()


def test_a_second_signal_does_not_disturb_the_cleaning_up(busy: Busy) -> None:
    """Impatience makes nothing worse: the store and the target are left clean all the same."""
    with busy.start_save("one", "key", *SLOWLY) as running:
        in_the_middle(running, busy.writing)
        for _ in range(5):
            running.send(signal.SIGTERM)
        assert_stopped(running, 143)
    assert busy.temporary() == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_save_without_one_of_its_workers_fails(busy: Busy, number: int) -> None:
    """A worker that is killed ends the save with exit 1 and a sentence that says so; nothing is published."""
    with busy.start_save("one", "key", *SLOWLY) as running:
        in_the_middle(running, lambda: busy.writing() and len(workers_of(running)) > 0)
        os.kill(workers_of(running)[0], number)
        done = assert_stopped(running, 1)
    assert f"a worker process was killed by signal {number}" in done.stderr
    assert busy.temporary() == []
    assert busy.assert_verifies() == 0


def test_a_restore_without_one_of_its_workers_fails(saved: Busy) -> None:
    """A worker that is killed ends the restore with exit 1; the target is untouched, the entry stays."""
    busy = saved
    with unchanged(busy.target), busy.start_restore("two", "--replace") as running:
        in_the_middle(running, lambda: busy.unpacking() and len(workers_of(running)) > 0)
        os.kill(workers_of(running)[-1], signal.SIGKILL)
        done = assert_stopped(running, 1)
    assert "a worker process was killed by signal 9" in done.stderr
    busy.assert_no_leftovers()
    assert busy.assert_verifies() == 2
    assert busy.restore("two").status == "exact"
    assert_same_tree(busy.trees["two"], busy.target)


def test_workers_end_when_the_parent_of_a_save_is_killed(busy: Busy) -> None:
    """Killed alone, the parent leaves no worker running, and what they held is swept by the next command."""
    with busy.start_save("one", "key") as running:
        in_the_middle(running, lambda: bool(busy.temporary()) and len(workers_of(running)) > 0)
        os.kill(running.pid, signal.SIGKILL)
        assert running.wait().code == -signal.SIGKILL
        wait_until(lambda: children_gone(running.pid), "the end of all workers", 10)
    assert len(busy.temporary()) == 1
    busy.sweep()
    assert busy.temporary() == []
    assert busy.assert_verifies() == 0


def test_workers_end_when_the_parent_of_a_restore_is_killed(saved: Busy) -> None:
    """Killed alone, the parent leaves no worker running, and the next restore finds nothing in its way."""
    with saved.start_restore("two") as running:
        in_the_middle(running, lambda: saved.unpacking() and len(workers_of(running)) > 0)
        os.kill(running.pid, signal.SIGKILL)
        assert running.wait().code == -signal.SIGKILL
        assert saved.restore("two").status == "exact"  # waits for the workers, if need be
        wait_until(lambda: children_gone(running.pid), "the end of all workers", 10)
    assert_same_tree(saved.trees["two"], saved.target)
    saved.assert_no_leftovers()
