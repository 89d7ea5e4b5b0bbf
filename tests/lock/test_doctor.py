"""``doctor``: what it measures, on filesystems whose answers are known, and what it remembers."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cachekit.system import space
from cachekit.system.files import open_directory
from cachekit.system.locking.measured import Mount, excludes, mount_under, recall, remember
from cachekit.system.probe import contest, single
from tests.support import filesystems
from tests.support.capabilities import need, requires
from tests.support.cli import Cli
from tests.support.in_process import Here


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for freed space: on a shared disk others take it."""
    monkeypatch.setattr(single, "_LATE_SECONDS", 0.3)


def answers(here: Here, place: Path, *options: str) -> dict[str, Any]:
    """Measure `place`; return the report with its findings by id."""
    report = here("doctor", "--json", place, *options).expect().json()
    assert isinstance(report, dict)
    report["values"] = {finding["id"]: finding["value"] for finding in report["findings"]}
    return report


@requires("tmpfs", "ext4", "xfs", "btrfs")
@pytest.mark.parametrize("kind", ["tmpfs", "ext4", "xfs", "btrfs"])
def test_known_filesystems(here: Here, kind: str) -> None:
    """On small real filesystems of their own the answers are what these are known to do, and nothing is left behind."""
    with filesystems.of_kind(kind) as mounted:
        report = answers(here, mounted.path)
        assert os.listdir(mounted.path) in ([], ["lost+found"])
    values = report["values"]
    assert report["mount"]["kind"] == kind
    assert report["excludes"] is True
    for name in ("flock", "fcntl", "link", "rename", "exchange", "fsync", "fallocate", "case"):
        assert values[name] is True, name
    assert values["link-count"] == 2
    assert values["reflink"] is (kind in ("xfs", "btrfs"))
    assert values["clock-skew"] == 0
    assert "locks: flock, which excludes everybody who uses this directory" in report["follows"]


@requires("tmpfs")
def test_free_space(here: Here) -> None:
    """Where nobody else writes and statvfs is exact, 16 MiB show as just that, and are back when they are removed."""
    with filesystems.tmpfs(64 << 20) as mounted:
        error, late = answers(here, mounted.path)["values"]["free-space"]
    assert error == 0
    assert late == 0


def test_text(here: Here) -> None:
    """For people there is a line for each answer, and what follows."""
    told = here("doctor", here.root).expect().stdout
    assert "  ok  flock: " in told
    assert "so cachekit will do this there:\n  locks: flock" in told
    assert here.root.is_dir()
    assert os.listdir(here.root) == []


def test_the_store_is_the_default(here: Here) -> None:
    """Without a directory it is the store that is measured."""
    report = here("doctor", "--json").expect().json()
    assert report["directory"] == str(here.store)


@requires("unprivileged")
def test_a_place_that_cannot_be_written(nobody_cli: Cli) -> None:
    """Where nothing can be made nothing is measured: exit 8, naming the place."""
    done = nobody_cli("doctor", "/").expect(8)
    assert "nothing can be measured there: Permission denied" in done.stderr


def test_a_place_that_is_missing(here: Here) -> None:
    """A directory that is not there is exit 8, and is not made."""
    done = here("doctor", "--json", "missing").expect(8)
    assert done.json()["error"]["id"] == "target-not-writable"
    assert not (here.root / "missing").exists()


def test_nobody_comes(here: Here) -> None:
    """Without a second doctor --peer gives up after its time: exit 9, and removes what it made."""
    done = here("doctor", here.root, "--peer", "--peer-timeout=0.2s").expect(9)
    assert "no other doctor answered within 0 s" in done.stderr
    assert os.listdir(here.root) == []


@pytest.mark.parametrize("left", ["1.second", "1.hello.first"])
def test_a_doctor_that_was_killed(cli: Cli, left: str) -> None:
    """What a doctor that was killed at the meeting place left there keeps two others from nothing."""
    place = cli.cwd / "shared"
    (place / ".cachekit-doctor").mkdir(parents=True)
    (place / ".cachekit-doctor" / "1.first").touch()
    (place / ".cachekit-doctor" / left).write_text('{"echo": "x", "host": "ghost"}\n')
    with (
        cli.start("doctor", "--json", place, "--peer") as one,
        cli.start("doctor", "--json", place, "--peer") as two,
    ):
        for running in (one, two):
            report = running.wait().expect().json()
            assert report["peer"]["host"] == os.uname().nodename
            assert report["peer"]["flock"] is True
            assert report["peer"]["clock_difference"] == 0


def broken_flock(_fd: int, kind: str) -> bool:
    """A lock that everybody gets."""
    return True


def test_a_flock_that_excludes_nobody(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a second process gets the lock too the doctor says so, remembers it, and lock run uses a lease there."""
    assert here("lock", "run", "--json", "a", "--", "true").expect().json()["kind"] == "flock"
    monkeypatch.setattr(contest, "try_kind", broken_flock)
    report = answers(here, here.root)
    assert report["values"]["flock"] is report["values"]["fcntl"] is report["excludes"] is False
    assert "locks: a lease (docs/locking.md), since flock does not exclude here" in report["follows"]
    assert here("lock", "run", "--json", "a", "--", "true").expect().json()["kind"] == "lease"
    known = recall(mount_under(str(here.root)))
    assert known is not None
    assert (known.flock, known.hosts) == (False, 1)


def test_a_rename_with_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is missing for a moment while it is replaced is seen."""
    rename = os.rename

    def in_two_steps(old: str, new: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        os.unlink(new, dir_fd=dst_dir_fd)
        time.sleep(0.002)
        rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    fd = open_directory(os.fsencode(tmp_path))
    assert contest.rename_is_atomic(fd) is True
    monkeypatch.setattr(os, "rename", in_two_steps)
    assert contest.rename_is_atomic(fd) is False
    os.close(fd)


def test_links_that_two_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem that lets several make one name is found out, and one without links as well."""
    fd = open_directory(os.fsencode(tmp_path))
    assert contest.one_linker_wins(fd) is True
    monkeypatch.setattr(os, "link", lambda *_, **__: None)
    assert contest.one_linker_wins(fd) is False

    def missing(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", missing)
    assert contest.one_linker_wins(fd) is None
    os.close(fd)


def test_a_clock_that_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The skew is that of the filesystem's clock against ours, with its sign."""
    real = time.time_ns
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name, shift in (("a", -90), ("b", 90)):
        monkeypatch.setattr(time, "time_ns", lambda shift=shift: real() + shift * 10**9)
        fd = open_directory(os.fsencode(tmp_path / name))
        assert single.clock_skew(fd) == pytest.approx(-shift, abs=1)
        os.close(fd)


MOUNT = Mount("fuse.x", "server:/a b", "/mnt/x")


def test_what_is_remembered() -> None:
    """A measurement is kept by kind, source and place of the mount, and is read again."""
    assert recall(MOUNT) is None
    remember(MOUNT, flock=True, fcntl=False, hosts=2)
    known = recall(MOUNT)
    assert known is not None
    assert (known.flock, known.fcntl, known.hosts) == (True, False, 2)
    for other in (
        Mount("nfs", "server:/a b", "/mnt/x"),
        Mount("fuse.x", "y", "/mnt/x"),
        Mount("fuse.x", "server:/a b", "/"),
    ):
        assert recall(other) is None


@pytest.mark.parametrize(
    ("guess", "flock", "hosts", "expected"),
    [
        (True, False, 1, False),
        (True, False, 2, False),
        (True, True, 1, True),
        (False, True, 1, False),
        (False, True, 2, True),
        (False, False, 2, False),
    ],
)
def test_measured_or_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guess: bool, flock: bool, hosts: int, expected: bool
) -> None:
    """What does not exclude never counts as excluding; that it does needs a local filesystem or two hosts."""
    monkeypatch.setattr(space, "flock_excludes", lambda _place: guess)
    assert excludes(str(tmp_path)) is guess
    remember(mount_under(str(tmp_path)), flock=flock, fcntl=None, hosts=hosts)
    assert excludes(str(tmp_path)) is expected
    fd = open_directory(os.fsencode(tmp_path))
    assert excludes(fd) is expected
    os.close(fd)


def test_one_host_does_not_overrule_two() -> None:
    """That flock excludes within one host says nothing against what two found; that it does not, does."""
    remember(MOUNT, flock=False, fcntl=None, hosts=2)
    remember(MOUNT, flock=True, fcntl=None, hosts=1)
    known = recall(MOUNT)
    assert known is not None
    assert known.flock is False
    remember(MOUNT, flock=True, fcntl=None, hosts=2)
    remember(MOUNT, flock=False, fcntl=None, hosts=1)
    known = recall(MOUNT)
    assert known is not None
    assert known.flock is False


@pytest.mark.parametrize(
    "junk", ["", "{", "[]", "null", '{"flock": 1, "hosts": "x"}', '{"flock": true}', "[" * 4000]
)
def test_a_damaged_note(clean_surroundings: Path, junk: str) -> None:
    """A note that cannot be read counts as none."""
    remember(MOUNT, flock=True, fcntl=None, hosts=2)
    [note] = (clean_surroundings / ".local" / "state" / "cachekit" / "exclusion").iterdir()
    note.write_text(junk)
    assert recall(MOUNT) is None
    remember(MOUNT, flock=False, fcntl=None, hosts=1)
    assert recall(MOUNT) is not None


def test_a_state_directory_that_cannot_be_written(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be remembered is told all the same, with a warning."""
    monkeypatch.setenv("CACHEKIT_STATE_DIR", "/proc/nothing")
    done = here("doctor", "--json", here.root).expect()
    assert "what was measured could not be remembered" in done.stderr
    assert done.json()["excludes"] is True


def test_many_doctors_at_once(clean_surroundings: Path) -> None:
    """Several that remember at once leave one whole note, and no others."""
    threads = [
        threading.Thread(target=remember, args=(MOUNT,), kwargs={"flock": True, "fcntl": None, "hosts": 2})
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recall(MOUNT) is not None
    assert len(list((clean_surroundings / ".local" / "state" / "cachekit" / "exclusion").iterdir())) == 1


def test_a_question_that_fails(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question that the filesystem answers with an error is told as not measured; the others are answered."""

    def fail(_fd: int) -> bool:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(single, "reflink_works", fail)
    report = answers(here, here.root)
    [finding] = [one for one in report["findings"] if one["id"] == "reflink"]
    assert finding["text"] == "could not be measured: Input/output error"
    assert report["values"]["flock"] is True


@requires("tmpfs")
def test_a_full_filesystem(here: Here) -> None:
    """On a full disk what cannot be measured is said to be so, and cachekit's own directory is removed."""
    need("tmpfs")
    with filesystems.tmpfs(1 << 20) as mounted:
        mounted.fill(0)
        report = answers(here, mounted.path)
        assert [name for name in os.listdir(mounted.path) if name.startswith(".cachekit")] == []
    assert report["values"]["flock"] is True
    assert report["values"]["free-space"] is None
