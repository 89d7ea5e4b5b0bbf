"""Two cleans at once on one host, and a lock file that is not what it should be."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import filesystems
from tests.support.capabilities import requires
from tests.support.cleaning import MIB, Scene, go_on, make_files, outcome, pausing
from tests.support.cli import Cli
from tests.support.ordinary_user import NOBODY
from tests.support.processes import wait_until
from tests.support.snapshots import unchanged

pytestmark = requires("tmpfs")

NAME = "cachekit-clean.lock"


def a_rule(scene: Scene) -> Path:
    """A unit and a rule for it."""
    unit = make_files(scene.root / "units" / "a")
    scene.rules = {"units": {"paths": [f"{scene.root}/units/*"]}}
    return unit


def test_the_second_clean_gives_up(scene: Scene) -> None:
    """While one clean removes, another that shall not wait touches nothing and exits with 6."""
    a_rule(scene)
    other = make_files(scene.root / "others" / "a")
    with pausing(scene.cli, "clean.renamed", *scene.arguments("--free", "1T")) as running:
        scene.rules = {"others": {"paths": [f"{scene.root}/others/*"]}}
        with unchanged(scene.root):
            done = scene.clean("--free", "1T", "--lock-timeout", "0").expect(6)
        assert "another cachekit clean is running" in done.stderr
        go_on(running)
        running.wait().expect(7)
    assert other.exists()


def test_the_second_clean_waits(scene: Scene) -> None:
    """A clean that may wait begins when the first one has ended, and then measures anew."""
    a_rule(scene)
    other = make_files(scene.root / "others" / "a")
    free = os.statvfs(scene.root).f_bavail * 4096 + 100_000
    with pausing(scene.cli, "clean.renamed", *scene.arguments("--free", f"{free}B")) as running:
        scene.rules = {"others": {"paths": [f"{scene.root}/others/*"]}}
        with scene.start("--json", "--free", f"{free}B", "--lock-timeout", "40") as waiting:
            wait_until(lambda: _has_open(waiting.pid, scene.cli.home / "run" / NAME), "it is at the lock")
            go_on(running)
            running.wait().expect(0)
            report = waiting.wait().expect(0).json()
    assert outcome(report, "others")["result"] == "not-needed"
    assert report["freed"] == 0  # that was the first one
    assert other.exists()


def _has_open(pid: int, path: Path) -> bool:
    try:
        return any(os.readlink(link) == str(path) for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def test_a_dry_run_does_not_wait(scene: Scene) -> None:
    """A dry run changes nothing, so it does not wait for another clean."""
    a_rule(scene)
    with pausing(scene.cli, "clean.renamed", *scene.arguments("--free", "1T")):
        scene.clean("--free", "1T", "--dry-run", "--lock-timeout", "0").expect(0)


@pytest.mark.parametrize("place", ["a FIFO", "a symlink", "a directory", "nothing that can be made"])
def test_a_lock_file_that_is_something_else(scene: Scene, tmp_path: Path, place: str) -> None:
    """Whatever lies in the place of the lock file: the clean does its work, and writes through no link."""
    locks = tmp_path / "locks"
    locks.mkdir()
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    if place == "a FIFO":
        os.mkfifo(locks / NAME)
    elif place == "a symlink":
        (locks / NAME).symlink_to(outside)
    elif place == "a directory":
        (locks / NAME).mkdir()
    else:
        locks = tmp_path / "missing" / "locks"
    unit = a_rule(scene)
    with unchanged(outside):
        done = scene.clean("--json", "--free", "1T", env={"CACHEKIT_LOCK_DIR": str(locks)}).expect(7)
    assert not unit.exists()
    warned = any("two cleans may run at once" in text for text in done.json()["warnings"])
    assert warned == (place in {"a symlink", "nothing that can be made"})


@pytest.fixture
def users(nobody_cli: Cli) -> Iterator[Scene]:
    """A filesystem that an ordinary user owns and cleans."""
    with filesystems.tmpfs(64 * MIB) as mounted:
        mounted.path.chmod(0o755)
        os.chown(mounted.path, NOBODY, NOBODY)
        nobody_cli.home.mkdir(parents=True, exist_ok=True)
        os.chown(nobody_cli.home, NOBODY, NOBODY)
        yield Scene(nobody_cli, mounted.path)


@pytest.mark.parametrize("mode", [0o666, 0o644])
def test_a_lock_file_of_another_user(users: Scene, open_path: Path, mode: int) -> None:
    """A lock that root holds keeps an ordinary user's clean out, whatever may be done with the file."""
    locks = open_path / "locks"
    locks.mkdir()
    locks.chmod(0o1777)
    (locks / NAME).touch()
    (locks / NAME).chmod(mode)
    unit = make_files(users.root / "units" / "a")
    os.chown(users.root / "units", NOBODY, NOBODY)
    os.chown(unit, NOBODY, NOBODY)
    users.rules = {"units": {"paths": [f"{users.root}/units/*"]}}
    env = {"CACHEKIT_LOCK_DIR": str(locks)}
    with (locks / NAME).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        users.clean("--free", "1T", "--lock-timeout", "0", env=env).expect(6)
        assert unit.exists()
    users.clean("--free", "1T", "--lock-timeout", "0", env=env).expect(7)
    assert not unit.exists()


def test_a_lock_of_a_user_keeps_root_out(users: Scene, open_path: Path, tmp_path: Path) -> None:
    """The lock file that an ordinary user's clean makes is one that root waits for, and that others can open."""
    locks = open_path / "locks"
    locks.mkdir()
    locks.chmod(0o1777)
    unit = make_files(users.root / "units" / "a")
    os.chown(users.root / "units", NOBODY, NOBODY)
    os.chown(unit, NOBODY, NOBODY)
    users.rules = {"units": {"paths": [f"{users.root}/units/*"]}}
    env = {"CACHEKIT_LOCK_DIR": str(locks)}
    users.clean("--free", "1T", env=env).expect(7)
    assert (locks / NAME).stat().st_uid == NOBODY
    assert (locks / NAME).stat().st_mode & 0o777 == 0o666
    root = Scene(Cli(open_path / "home-of-root", tmp_path), users.root, users.rules)
    with (locks / NAME).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        root.clean("--free", "1T", "--lock-timeout", "0", env=env).expect(6)
    root.clean("--free", "1T", "--lock-timeout", "0", env=env).expect(7)


def test_a_lock_directory_that_cannot_be_written(users: Scene, open_path: Path) -> None:
    """Where no lock file can be made the clean goes on with a warning."""
    locks = open_path / "locks"
    locks.mkdir()
    unit = make_files(users.root / "units" / "a")
    os.chown(users.root / "units", NOBODY, NOBODY)
    os.chown(unit, NOBODY, NOBODY)
    users.rules = {"units": {"paths": [f"{users.root}/units/*"]}}
    done = users.clean("--json", "--free", "1T", env={"CACHEKIT_LOCK_DIR": str(locks)}).expect(7)
    assert "two cleans may run at once" in str(done.json()["warnings"])
    assert not unit.exists()
