"""The lock of a layout: who shares it, who waits for it, and what is told to who waited too long."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from cachekit.errors import LockTimeout
from cachekit.oci.held import layout_locked, lock_place
from cachekit.system.locking.named import NamedLock
from tests.support.cli import Cli
from tests.support.layouts import MadeLayout, content
from tests.support.processes import wait_until


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A layout's directory."""
    (tmp_path / "layout").mkdir()
    return str(tmp_path / "layout")


@pytest.mark.parametrize(("first", "second"), [(True, False), (False, True), (False, False)])
def test_one_alone(path: str, *, first: bool, second: bool) -> None:
    """Who wants the layout alone gets it from nobody, and who has it alone keeps all others out; then it is free."""
    with (
        layout_locked(path, shared=first, timeout=0),
        pytest.raises(LockTimeout) as caught,
        layout_locked(path, shared=second, timeout=0),
    ):
        pass
    # This very process is not told; who else holds it is (see the command's tests).
    assert (caught.value.message, caught.value.exit_code) == ("the layout is in use", 6)
    with layout_locked(path, shared=second, timeout=0):
        pass


def test_several_share(path: str) -> None:
    """Who only reads does so beside others that do."""
    with layout_locked(path, shared=True, timeout=0), layout_locked(path, shared=True, timeout=0):
        pass


def test_it_is_free_after_an_error(path: str) -> None:
    """What ends with an error gives the lock back."""
    with pytest.raises(ZeroDivisionError), layout_locked(path, shared=False, timeout=0):
        raise ZeroDivisionError
    with layout_locked(path, shared=False, timeout=0):
        pass


def test_another_name_of_the_layout(path: str, tmp_path: Path) -> None:
    """A layout that is named by a link has the same lock, and it lies in the layout itself."""
    (tmp_path / "link").symlink_to("layout")
    assert lock_place(str(tmp_path / "link")) == os.path.join(path, ".cachekit-locks")
    with (
        layout_locked(path, shared=False, timeout=0),
        pytest.raises(LockTimeout),
        layout_locked(str(tmp_path / "link"), shared=False, timeout=0),
    ):
        pass


def test_who_waits_gets_it(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the time the lock is waited for, in the line of all who wait, and had as soon as it is free."""
    waiting, had, free = threading.Event(), threading.Event(), threading.Event()
    wait = NamedLock.wait

    def noted(lock: NamedLock) -> None:
        wait(lock)
        waiting.set()

    monkeypatch.setattr(NamedLock, "wait", noted)

    def second() -> None:
        with layout_locked(path, shared=False, timeout=50):
            had.set()
            free.wait(30)

    thread = threading.Thread(target=second)
    with layout_locked(path, shared=False, timeout=0):
        thread.start()
        assert waiting.wait(30)
        assert not had.is_set()
    assert had.wait(30)
    free.set()
    thread.join(30)


def test_a_save_waits_for_a_build(cli: Cli) -> None:
    """A layout is not saved while a build exports to it under the lock, but beside those that only import."""
    layout = MadeLayout(cli.cwd / "cache")
    layout.image("app", [content(1)])
    with cli.start("oci", "lock", "cache", "--", "sh", "-c", "touch begun; sleep 60") as build:
        wait_until((cli.cwd / "begun").exists, "the build runs")
        done = cli("save", "--kind=oci", "--key=k", "--lock-timeout=0", "cache").expect(6)
        assert f"(pid {build.pid} on " in done.stderr
        build.send(signal.SIGTERM)
        build.wait()
    with layout_locked(str(layout.path), shared=True, timeout=0):
        cli("save", "--kind=oci", "--key=k", "--lock-timeout=0", "cache").expect(0)
