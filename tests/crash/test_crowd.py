"""Many savers and restorers on one store at once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from cachekit.cache.verify import VerifyRequest, verify
from cachekit.store.directory import DirectoryStore
from tests.crash.crowd import KEYS, SECONDS, Crowd


def test_a_crowd_on_one_store(tmp_path: Path) -> None:
    """Eight savers and eight restorers for some seconds: every restore is whole, and the store verifies."""
    crowd = Crowd(tmp_path)
    pids = [crowd.start(number) for number in range(16)]
    deadline = time.monotonic() + SECONDS + 30
    try:
        while pids:
            assert time.monotonic() < deadline, "somebody waits for ever"
            pid, ended = os.waitpid(pids[0], os.WNOHANG)
            if pid:
                pids.remove(pid)
                assert os.waitstatus_to_exitcode(ended) == 0, crowd.told()
            time.sleep(0.01)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert crowd.done("saved") > 20
    assert crowd.done("restored") > 20
    reports = list(verify(VerifyRequest([], str(crowd.store), every=True)))
    assert all(report.ok for report in reports)
    assert len(reports) == KEYS
    DirectoryStore(str(crowd.store)).sweep()
    assert list((crowd.store / "v1/default/tmp").iterdir()) == []
    assert list((crowd.store / "v1/default/quarantine").iterdir()) == []
    assert list(crowd.root.glob(".cachekit-*")) == []
