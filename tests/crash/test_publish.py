"""A file appears whole or not at all, and what killed writers left is swept; nobody else's is."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cachekit.system import locks, process, publish
from cachekit.system.publish import ABANDONED_SECONDS, TempFile, sweep
from tests.crash.scene import die_at
from tests.support.capabilities import requires
from tests.support.flaky import Flaky, flaky

NAME = "entry.tar.zst"


class Places:
    """A directory for temporary files and one for published ones, both open."""

    def __init__(self, base: Path) -> None:
        self.tmp, self.entries = base / "tmp", base / "entries"
        for folder in (self.tmp, self.entries):
            folder.mkdir(exist_ok=True)
        self.tmp_fd, self.entries_fd = (os.open(folder, os.O_RDONLY) for folder in (self.tmp, self.entries))

    def written(self, data: bytes) -> TempFile:
        """A finished temporary file."""
        temp = TempFile(self.tmp_fd, "label")
        temp.write(data, 0)
        temp.finish(len(data))
        return temp

    def names(self) -> list[str]:
        """What is in the directory for temporary files."""
        return sorted(os.listdir(self.tmp))

    def close(self) -> None:
        """Close both directories."""
        os.close(self.tmp_fd)
        os.close(self.entries_fd)


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Places]:
    """Two directories of an ordinary file system."""
    there = Places(tmp_path)
    yield there
    there.close()


@pytest.fixture
def unlinked(tmp_path: Path) -> Iterator[tuple[Flaky, Places]]:
    """Two directories of a file system without hard links."""
    with flaky(tmp_path / "backing") as disk:
        disk.set_fault("link", errno=errno.EPERM)
        there = Places(disk.mount)
        yield disk, there
        there.close()


def _no_links(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, "no hard links here")


@pytest.fixture
def lockless(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules of a file system on which a lock of another host may go unseen."""
    monkeypatch.setattr(publish, "excludes", lambda _fd: False)


def test_a_file_is_removed_unless_it_is_published(places: Places) -> None:
    """Leaving the block without `publish` leaves nothing; discarding twice does no harm."""
    with places.written(b"x") as temp:
        assert places.names() == [temp.name]
    temp.discard()
    assert places.names() == []
    assert os.listdir(places.entries) == []


@pytest.mark.parametrize("over", [False, True])
def test_a_published_file_is_whole_and_the_only_name(places: Places, over: bool) -> None:
    """It has its name, its content and one link, whether published by link or over an old file."""
    (places.entries / NAME).write_bytes(b"old") if over else None
    with places.written(b"whole") as temp:
        assert temp.publish(NAME, places.entries_fd, replace=over) == "published"
    assert (places.entries / NAME).read_bytes() == b"whole"
    assert (places.entries / NAME).stat().st_nlink == 1
    assert places.names() == []


def test_what_is_there_is_not_touched(places: Places) -> None:
    """If the name is taken, the published file stays as it is, and this one temporary."""
    (places.entries / NAME).write_bytes(b"first")
    with places.written(b"second") as temp:
        assert temp.publish(NAME, places.entries_fd) == "exists"
        assert places.names() == [temp.name]
    assert (places.entries / NAME).read_bytes() == b"first"


def test_a_link_that_an_earlier_request_made_is_ours(places: Places) -> None:
    """EEXIST for the link that we made ourselves, as a repeated NFS request has it, is success."""
    with places.written(b"x") as temp:
        os.link(temp.name, NAME, src_dir_fd=places.tmp_fd, dst_dir_fd=places.entries_fd)
        assert temp.publish(NAME, places.entries_fd) == "published"
    assert places.names() == []


def test_reserved_space_is_given_back(places: Places) -> None:
    """A reservation takes blocks and no length; finishing cuts it to what was written."""
    with TempFile(places.tmp_fd, "label") as temp:
        if not temp.reserve(4 << 20):
            pytest.skip("this file system reserves nothing")
        assert os.fstat(temp.fd).st_size == 0
        assert os.fstat(temp.fd).st_blocks * 512 >= 4 << 20
        temp.write(b"short", 0)
        temp.finish(5)
        assert os.fstat(temp.fd).st_size == 5
        assert os.fstat(temp.fd).st_blocks * 512 <= 1 << 16


@requires("fuse")
def test_without_hard_links_a_claim_decides(unlinked: tuple[Flaky, Places]) -> None:
    """The first to claim renames; the second finds the name taken; no claim is left."""
    _, places = unlinked
    with places.written(b"first") as first, places.written(b"second") as second:
        assert first.publish(NAME, places.entries_fd) == "published"
        assert second.publish(NAME, places.entries_fd) == "exists"
    assert (places.entries / NAME).read_bytes() == b"first"
    assert places.names() == []


@requires("fuse")
def test_a_live_claim_keeps_others_away(unlinked: tuple[Flaky, Places]) -> None:
    """While the process that made a claim may be alive, nobody else publishes under the name."""
    _, places = unlinked
    claim = places.tmp / f"{NAME}.claim.part"
    claim.write_text(str(process.current()))
    with places.written(b"x") as temp:
        assert temp.publish(NAME, places.entries_fd) == "exists"
    assert claim.exists()
    assert os.listdir(places.entries) == []


@pytest.mark.parametrize("excludes", [True, False], ids=["locks-exclude", "locks-prove-nothing"])
def test_the_claim_of_a_killed_process_is_taken_over(
    places: Places, monkeypatch: pytest.MonkeyPatch, excludes: bool
) -> None:
    """A process killed between its claim and its rename does not keep a key from ever being saved."""
    monkeypatch.setattr(publish, "excludes", lambda _fd: excludes)
    monkeypatch.setattr(os, "link", _no_links)

    def die_renaming() -> None:
        monkeypatch.setattr(os, "rename", lambda *_, **__: os.kill(os.getpid(), 9))
        places.written(b"dead").publish(NAME, places.entries_fd)

    assert die_at("", die_renaming) == -9
    claim = places.tmp / f"{NAME}.claim.part"
    assert claim.exists()
    with places.written(b"alive") as temp:
        assert temp.publish(NAME, places.entries_fd) == "published"
    assert (places.entries / NAME).read_bytes() == b"alive"
    assert not claim.exists()
    assert sweep(places.tmp_fd) == 1


def test_a_claim_that_was_swept_too_early_is_no_failure(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweeper that saw the claim before it was locked does not turn a success into an error."""

    def lock_and_lose(fd: int) -> bool:
        claim = places.tmp / f"{NAME}.claim.part"
        claim.unlink(missing_ok=True)
        return True

    with places.written(b"x") as temp:
        monkeypatch.setattr(os, "link", _no_links)
        monkeypatch.setattr(publish, "try_lock", lock_and_lose)
        assert temp.publish(NAME, places.entries_fd) == "published"
    assert (places.entries / NAME).read_bytes() == b"x"


def test_a_file_swept_before_it_was_locked_is_made_anew(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweeper between the creation and the lock costs one more attempt, never a lost file."""
    seen = []

    def swept_once(name: str) -> None:
        if name == "save.temp-created":
            seen.append(places.names())
            if len(seen) == 1:
                assert sweep(places.tmp_fd) == 1

    monkeypatch.setattr(publish, "step", swept_once)
    with places.written(b"x") as temp:
        assert len(seen) == 2
        assert places.names() == [temp.name]
        assert os.fstat(temp.fd).st_nlink == 1


def test_a_file_locked_by_a_sweeper_is_left_to_it(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a sweeper has the lock at that moment, another file is made and none is left over."""
    answers = iter([False])
    real = locks.try_lock
    monkeypatch.setattr(publish, "try_lock", lambda fd: next(answers, None) is None and real(fd))
    with places.written(b"x") as temp:
        assert places.names() == [temp.name]
    assert places.names() == []


def test_a_sweep_takes_dead_files_only(places: Places) -> None:
    """What a killed process left goes; what a live one holds, and what is no temporary file, stays."""
    assert die_at("save.temp-locked", lambda: TempFile(places.tmp_fd, "dead")) == -9
    (places.tmp / "something-else").touch()
    with places.written(b"x") as temp:
        assert len(places.names()) == 3
        assert sweep(places.tmp_fd) == 1
        assert places.names() == sorted([temp.name, "something-else"])


def test_a_sweep_goes_on_after_a_failure(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be locked or removed does not keep the others from going."""
    for name in ("a.part", "b.part", "c.part"):
        (places.tmp / name).touch()
    (places.tmp / "d.part").mkdir()
    real = locks.try_lock
    seen: list[int] = []

    def failing(fd: int) -> bool:
        seen.append(fd)
        if len(seen) == 2:
            raise OSError(errno.EIO, "no lock today")
        return real(fd)

    monkeypatch.setattr(publish, "try_lock", failing)
    assert sweep(places.tmp_fd) == 2
    assert len(places.names()) == 2


def _left_by(places: Places, identity: process.ProcessIdentity, *, age: float = 0) -> Path:
    path = places.tmp / f"label.0123456789abcdef.{identity}.part"
    path.touch()
    then = time.time() - age
    os.utime(path, (then, then))
    return path


@pytest.mark.usefixtures("lockless")
def test_where_locks_prove_nothing_the_dead_are_known_by_name(places: Places) -> None:
    """A process of this machine that ended is proven dead, one that runs is not, also under a reused pid."""
    with subprocess.Popen([sys.executable, "-c", "pass"]) as ended:
        ended.wait()
    me = process.current()
    dead = [_left_by(places, replace(me, pid=ended.pid)), _left_by(places, replace(me, start="1"))]
    live = _left_by(places, me)
    assert sweep(places.tmp_fd) == 2
    assert live.exists()
    assert not any(path.exists() for path in dead)


@pytest.mark.usefixtures("lockless")
@pytest.mark.parametrize("elsewhere", [{"boot_id": "deadbeef"}, {"pid_namespace": "1"}])
def test_a_foreign_process_has_a_day(places: Places, elsewhere: dict[str, str]) -> None:
    """Of another boot or container nothing is known: its file goes a day after it last grew, not before."""
    stranger = replace(process.current(), start="1", **elsewhere)  # type: ignore[arg-type]
    path = _left_by(places, stranger, age=ABANDONED_SECONDS - 60)
    assert sweep(places.tmp_fd) == 0
    os.utime(path, (0, time.time() - ABANDONED_SECONDS - 60))
    assert sweep(places.tmp_fd) == 1
    assert places.names() == []


@pytest.mark.usefixtures("lockless")
def test_a_name_that_tells_nothing_has_a_day_too(places: Places) -> None:
    """A temporary file without a process in its name is kept until it is a day old."""
    path = places.tmp / "odd.part"
    path.touch()
    assert sweep(places.tmp_fd) == 0
    os.utime(path, (0, 0))
    assert sweep(places.tmp_fd) == 1


def test_an_identity_survives_its_text() -> None:
    """What `str` gives, `parse` takes; anything else is no identity; this process is not dead."""
    me = process.current()
    assert process.parse(str(me)) == me
    assert not me.proven_dead()
    for text in ("", "a.b.c.d", f"{me}.1", str(me).upper() + "x"):
        assert process.parse(text) is None
