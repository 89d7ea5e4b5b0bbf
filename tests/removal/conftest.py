"""What the tests of removal share."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cachekit.system.removal import beneath
from tests.support.ordinary_user import NOBODY


@pytest.fixture(params=["openat2", "older kernel"])
def either_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With openat2 and without, as before Linux 5.6 and in filtered containers."""
    if request.param != "openat2":
        monkeypatch.setattr(beneath, "_has_openat2", lambda: False)
    return str(request.param)


def as_nobody(work: Callable[[], bool]) -> None:
    """Run `work` in a forked process as an ordinary user; fail unless it returns True."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            code = 0 if work() else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@contextmanager
def no_descriptor_lost() -> Iterator[None]:
    """Fail if descriptors stay open."""
    gc.collect()  # what earlier tests left is not closed in between
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    assert sorted(os.listdir("/proc/self/fd")) == before


def give(path: Path, user: int = NOBODY) -> None:
    """Make a tree, and the directory it is in, an ordinary user's."""
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            os.lchown(Path(folder, name), user, user)
    os.chown(path, user, user)
    os.chown(path.parent, user, user)
