"""Saves, restores, prunes, pins, checks and listings on one store at once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from cachekit.cache.verify import VerifyRequest, verify
from cachekit.store.directory import DirectoryStore
from tests.retention.mixed import Mixed


def run_all(base: Path, processes: int, seconds: float) -> None:
    """Run so many for so long, and check them and the store."""
    mixed = Mixed(base, seconds)
    DirectoryStore(str(mixed.store)).prepare()
    pids = [mixed.start(number) for number in range(processes)]
    try:
        while pids:
            _, ended = os.waitpid(pids[0], 0)
            pids.pop(0)
            assert os.waitstatus_to_exitcode(ended) == 0, mixed.told()
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    done = mixed.done()
    assert all(done[what] for what in ("save", "restore", "prune", "pin", "verify", "ls")), done
    store = DirectoryStore(str(mixed.store))
    assert all(report.ok for report in verify(VerifyRequest([], str(mixed.store), every=True)))
    store.sweep()
    for folder in ("tmp", "quarantine"):
        assert os.listdir(store.directory(folder)) == []


def test_everything_at_once(tmp_path: Path) -> None:
    """Every restore is whole, what is pinned is there, no check fails, and nothing is left behind."""
    run_all(tmp_path, 8, 4)


@pytest.mark.stress
@pytest.mark.timeout(300)
def test_everything_at_once_for_long(tmp_path: Path) -> None:
    """The same with 32 processes for a minute."""
    run_all(tmp_path, 32, 60)
