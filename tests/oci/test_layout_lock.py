"""BuildKit's lock of index.json: who takes it, who waits for it, and what others do to it meanwhile."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest

from cachekit.oci import layout as layouts
from cachekit.oci.layout import Layout
from cachekit.system.locks import try_lock
from tests.support.layouts import MadeLayout, content


@pytest.fixture
def made(tmp_path: Path) -> MadeLayout:
    """A layout with one image."""
    layout = MadeLayout(tmp_path / "layout")
    layout.image("app", [content(1)])
    return layout


def test_a_fifo_as_lock(made: MadeLayout) -> None:
    """Nobody waits for a writer of what lies where BuildKit's lock should."""
    os.mkfifo(made.path / "index.json.lock")
    with Layout(str(made.path)) as layout:
        assert layout.read_index() is not None
        with layout.locked() as held:
            assert held


def test_buildkits_lock(made: MadeLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads makes no lock and removes none; who writes takes and removes it, and is told if it cannot be had."""
    monkeypatch.setattr(layouts, "_LOCK_SECONDS", 0.1)
    lock = made.path / "index.json.lock"
    with Layout(str(made.path)) as layout:
        with layout.locked(shared=True) as held:
            assert (held, lock.exists()) == (True, False)
        with layout.locked() as held:
            assert (held, lock.exists()) == (True, True)
        assert not lock.exists()
        fd = os.open(lock, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            begin = time.monotonic()
            with layout.locked() as held:
                assert not held
            with layout.locked(shared=True) as held:
                assert held
            assert 0.2 <= time.monotonic() - begin < 5
            assert lock.exists()
            fcntl.flock(fd, fcntl.LOCK_SH)
            with layout.locked(shared=True) as held:
                assert held
            assert lock.exists()
        finally:
            os.close(fd)
        lock.unlink()
        lock.symlink_to("elsewhere")
        with pytest.raises(OSError, match="symbolic links"), layout.locked():
            pass
        assert not (made.path / "elsewhere").exists()


@pytest.mark.parametrize("anew", [False, True])
def test_a_lock_that_is_no_longer_the_lock(
    made: MadeLayout, monkeypatch: pytest.MonkeyPatch, *, anew: bool
) -> None:
    """Who held it removes it: a lock that was taken after that, when others make it anew, excludes nobody."""
    path = made.path / "index.json.lock"
    path.touch()
    takes: list[int] = []
    take = try_lock

    def taken(fd: int, *, shared: bool = False) -> bool:
        takes.append(fd)
        if len(takes) == 1:
            path.unlink()
            if anew:
                (made.path / "new").touch()
                (made.path / "new").rename(path)
        return take(fd, shared=shared)

    monkeypatch.setattr(layouts, "try_lock", taken)
    with Layout(str(made.path)) as layout, layout.locked() as held:
        assert held
        assert len(takes) == 2
        with open(path) as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_an_index_that_is_being_written(made: MadeLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """BuildKit writes index.json in place, under its lock: who reads waits for that, and sees all of it."""
    index, take = made.path / "index.json", try_lock
    whole = index.read_bytes()
    index.write_bytes(whole[:9])
    with open(made.path / "index.json.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def taken(fd: int, *, shared: bool = False) -> bool:
            if had := take(fd, shared=shared):
                return had
            index.write_bytes(whole)
            fcntl.flock(lock, fcntl.LOCK_UN)
            return False

        monkeypatch.setattr(layouts, "try_lock", taken)
        with Layout(str(made.path)) as layout:
            assert layout.read_index() == whole


def test_a_lock_that_others_remove(made: MadeLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """BuildKit removes the lock when it is done, also while it is held here, and at the very end."""
    unlink = os.unlink

    def unlinked(name: str, *, dir_fd: int) -> None:
        unlink(name, dir_fd=dir_fd)
        unlink(name, dir_fd=dir_fd)

    with Layout(str(made.path)) as layout:
        with layout.locked() as held:
            (made.path / "index.json.lock").unlink()
        assert held
        with monkeypatch.context() as patch:
            patch.setattr("cachekit.oci.layout.os.unlink", unlinked)
            with layout.locked() as held:
                pass
        assert held
        with layout.locked() as held:
            pass
        assert held


def test_a_lock_that_a_child_inherited(made: MadeLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was forked while the lock was held does not keep it: the next build would fail."""
    path, take = made.path / "index.json.lock", try_lock
    path.touch()
    inherited = []

    def taken(fd: int, *, shared: bool = False) -> bool:
        inherited.append(os.dup(fd))  # as a child has it: of the same open file
        return take(fd, shared=shared)

    monkeypatch.setattr(layouts, "try_lock", taken)
    with Layout(str(made.path)) as layout:
        assert layout.read_index()
    with open(path) as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    (fd,) = inherited
    os.close(fd)


def test_a_lock_that_becomes_a_link(made: MadeLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that was put in the place of the lock is not the lock, also if it leads to what was locked."""
    path, take = made.path / "index.json.lock", try_lock
    path.touch()

    def taken(fd: int, *, shared: bool = False) -> bool:
        path.rename(made.path / "real")
        path.symlink_to("real")
        return take(fd, shared=shared)

    monkeypatch.setattr(layouts, "try_lock", taken)
    with Layout(str(made.path)) as layout, pytest.raises(OSError, match="symbolic links"), layout.locked():
        pass
    assert path.is_symlink()


def test_a_lock_that_others_made_anew(made: MadeLayout) -> None:
    """A lock that somebody else made meanwhile, because BuildKit removed the one that is held here, stays theirs."""
    path = made.path / "index.json.lock"
    with Layout(str(made.path)) as layout, layout.locked() as held:
        assert held
        path.unlink()
        path.write_text("theirs")
    assert path.read_text() == "theirs"


def test_the_lock_is_shared_by_readers_only(made: MadeLayout) -> None:
    """Who reads keeps another reader out no more than BuildKit's; who writes has it alone."""
    path = made.path / "index.json.lock"
    path.touch()
    with Layout(str(made.path)) as layout, open(path) as other:
        with layout.locked(shared=True):
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(other, fcntl.LOCK_UN)
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with layout.locked(), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
