"""What somebody uses stays, is told with its user, and what nobody uses goes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cachekit.clean.goals import Need
from cachekit.clean.measure import Meter
from cachekit.disk.filesystems import of_places
from cachekit.system.holders import Holders
from tests.support import filesystems
from tests.support.capabilities import requires
from tests.support.cleaning import MIB, Scene, go_on, make_files, outcome, pausing, stopped
from tests.support.processes import Running, start, wait_until
from tests.support.snapshots import assert_same_tree, snapshot, unchanged

pytestmark = requires("tmpfs")


@contextlib.contextmanager
def python(code: str, *args: str | Path, cwd: Path | None = None) -> Iterator[Running]:
    """Run Python code that prints a line when it is ready, and then sleeps."""
    ready = f"{code}\nimport time\nopen(sys.argv[1], 'w').close()\ntime.sleep(600)\n"
    made = Path(os.fsdecode(args[0]))
    with start([sys.executable, "-c", f"import sys\n{ready}", *args], cwd=cwd) as running:
        wait_until(made.exists, "the process is ready")
        yield running


Use = Callable[[Path, Path], contextlib.AbstractContextManager[int]]


@contextlib.contextmanager
def opened(unit: Path, ready: Path) -> Iterator[int]:
    """A file in it is open."""
    with python("file = open(sys.argv[2], 'rb')", ready, unit / "file-0") as running:
        yield running.pid


@contextlib.contextmanager
def current(unit: Path, ready: Path) -> Iterator[int]:
    """It is somebody's current directory."""
    with python("", ready, cwd=unit) as running:
        yield running.pid


@contextlib.contextmanager
def mapped(unit: Path, ready: Path) -> Iterator[int]:
    """A file in it is mapped, and not open any more."""
    code = """
import mmap, os
fd = os.open(sys.argv[2], os.O_RDONLY)
kept = mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ)
os.close(fd)
# mmap keeps a duplicate of the descriptor: away with that too.
for name in os.listdir("/proc/self/fd"):
    if int(name) > 2:
        try:
            os.close(int(name))
        except OSError:
            pass
"""
    with python(code, ready, unit / "file-0") as running:
        yield running.pid


@contextlib.contextmanager
def executed(unit: Path, ready: Path) -> Iterator[int]:
    """A program in it runs."""
    program = unit / "program"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    with start([program, "600"]) as running:
        wait_until(lambda: os.readlink(f"/proc/{running.pid}/exe") == str(program), "it runs")
        yield running.pid


USES = {
    "open file": (opened, "open in"),
    "current directory": (current, "current directory in"),
    "mapped file": (mapped, "mapped in"),
    "running program": (executed, "running in"),
}


def two_units(scene: Scene) -> tuple[Path, Path]:
    """A unit that will be in use and one that will not, and a rule for both."""
    used, free = make_files(scene.root / "units" / "used"), make_files(scene.root / "units" / "free")
    scene.rules = {"units": {"paths": [f"{scene.root}/units/*"]}}
    return used, free


@pytest.mark.parametrize("use", USES)
def test_what_a_process_uses_stays(scene: Scene, tmp_path: Path, use: str) -> None:
    """A directory that a process uses stays whole and is told with the process; its neighbour goes."""
    used, free = two_units(scene)
    how, words = USES[use]
    with how(used, tmp_path / "ready") as pid, unchanged(used):
        report = scene.report("--free", "1T", code=7)
        left = outcome(report, "units")["left"]
        assert [item["path"] for item in left] == [str(used)]
        assert words in left[0]["reason"]
        assert f"(pid {pid})" in left[0]["reason"]
    assert not free.exists()


def test_a_rule_whose_only_unit_is_used_is_blocked(scene: Scene, tmp_path: Path) -> None:
    """Where everything that a rule means is in use, its result is blocked, with the process."""
    used, free = two_units(scene)
    shutil.rmtree(free)
    with opened(used, tmp_path / "ready") as pid, unchanged(used):
        done = scene.clean("--json", "--free", "1T").expect(7)
        rule = outcome(done.json(), "units")
        assert rule["result"] == "blocked"
        assert f"(pid {pid})" in rule["reason"]


def test_a_locked_directory_stays(scene: Scene) -> None:
    """A directory that somebody has locked with flock stays, wherever in a unit it is."""
    used, free = two_units(scene)
    inner = make_files(used / "inner")
    fd = os.open(inner, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        report = scene.report("--free", "1T", code=7)
    finally:
        os.close(fd)
    reasons = [item["reason"] for item in outcome(report, "units")["left"]]
    assert any("in use" in reason or "locked" in reason for reason in reasons)
    assert len(os.listdir(inner)) == 4
    assert not free.exists()


def test_a_directory_locked_by_a_hidden_process_stays(scene: Scene, tmp_path: Path) -> None:
    """The lock alone is enough: also where the process that has it cannot be looked into."""
    used, _ = two_units(scene)
    # A descriptor that is only in flight between two ends of a socket is in no process's table.
    left, right = socket.socketpair()
    fd = os.open(used, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    socket.send_fds(left, [b"x"], [fd])
    os.close(fd)
    with left, right, unchanged(used):
        report = scene.report("--free", "1T", code=7)
    [left_over] = outcome(report, "units")["left"]
    assert "locked" in left_over["reason"]


def test_a_live_socket_stays(scene: Scene) -> None:
    """A socket that somebody listens on stays, a dead one goes."""
    used, free = two_units(scene)
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(free / "socket"))
    dead.close()
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(used / "socket"))
        live.listen()
        report = scene.report("--free", "1T", code=7)
        assert (used / "socket").is_socket()
    assert "socket in use" in str(outcome(report, "units")["left"])
    assert not free.exists()


def test_what_is_opened_after_the_survey_is_left(scene: Scene, tmp_path: Path) -> None:
    """What somebody begins to use while an earlier unit is removed stays: a directory, and a file."""
    first, second = make_files(scene.root / "units" / "a"), make_files(scene.root / "units" / "b")
    third = scene.root / "units" / "c"
    third.write_bytes(b"content")
    scene.rules = {"units": {"paths": [f"{scene.root}/units/*"]}}
    with (
        pausing(scene.cli, "clean.renamed", *scene.arguments("--json", "--free", "1T")) as running,
        opened(second, tmp_path / "ready") as pid,
        python("file = open(sys.argv[2])", tmp_path / "2", third),
    ):
        time.sleep(2.1)  # as a long removal would: a look at /proc is good for two seconds
        with unchanged_content(second):
            go_on(running)
            report = running.wait().expect(7).json()
        left = {item["path"]: item["reason"] for item in outcome(report, "units")["left"]}
        assert f"(pid {pid})" in left[str(second)]
        assert "open in" in left[str(third)]
    assert not first.exists()
    assert sorted(os.listdir(scene.root / "units")) == ["b", "c"]


def test_what_is_opened_after_the_renaming_is_put_back(scene: Scene, tmp_path: Path) -> None:
    """What somebody opens when it has its trash name already gets its old name back, whole."""
    [unit] = [make_files(scene.root / "units" / "a")]
    scene.rules = {"units": {"paths": [f"{scene.root}/units/*"]}}
    with (
        unchanged_content(unit),
        pausing(scene.cli, "clean.renamed", *scene.arguments("--json", "--free", "1T")) as running,
    ):
        [trash] = (scene.root / "units").iterdir()
        assert trash.name.startswith(".cachekit-trash-")
        with opened(trash, tmp_path / "ready") as pid:
            go_on(running)
            report = running.wait().expect(7).json()
        assert f"(pid {pid})" in str(outcome(report, "units")["left"])
    assert os.listdir(scene.root / "units") == ["a"]


@contextlib.contextmanager
def unchanged_content(tree: Path) -> Iterator[None]:
    """Fail unless a tree is afterwards what it was; it may have been renamed and back."""
    before = snapshot(tree)
    yield
    assert_same_tree(before, snapshot(tree))


def test_what_a_command_opens_before_its_turn_is_left(scene: Scene, tmp_path: Path) -> None:
    """A program that an earlier rule started is seen although it did not run when the clean began."""
    used, free = two_units(scene)
    script = tmp_path / "opens.py"
    script.write_text(
        "import os, subprocess, sys, time\n"
        "file = open(sys.argv[1], 'rb')\n"
        "subprocess.Popen(['sleep', '600'], stdin=file, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,\n"
        "    start_new_session=False)\n"
    )
    scene.rules["opens"] = {
        "command": [sys.executable, str(script), str(used / "file-0")],
        "expect": {"size": "1T", "seconds": 1},
    }
    pid = 0
    try:
        report = scene.report("--free", "1T", code=7)
        [left] = outcome(report, "units")["left"]
        assert "open in sleep" in left["reason"]
        pid = int(left["reason"].partition("(pid ")[2].rstrip(")"))
    finally:
        if pid:
            os.kill(pid, 9)
    assert len(os.listdir(used)) == 4
    assert not free.exists()


@pytest.mark.parametrize("command", ["save", "restore"])
def test_a_running_save_or_restore_is_left_alone(scene: Scene, command: str) -> None:
    """A tree that cachekit saves or restores at this moment stays, and the save or restore succeeds."""
    tree = make_files(scene.root / "project" / "tree", 3, 2 * MIB)
    other = make_files(scene.root / "project" / "other")
    before = snapshot(tree)
    cli = scene.cli
    work = scene.root / "project"
    more = ["--replace"] if command == "restore" else []
    if command == "restore":
        cli("save", "--key", "k", "tree", cwd=work).expect()
        (tree / "file-0").write_bytes(b"changed")
    scene.rules = {"trees": {"paths": [f"{scene.root}/project/*"]}}
    pause = "restore.staging-created" if command == "restore" else "save.temp-locked"
    with pausing(cli, pause, command, "--key", "k", *more, "tree", cwd=work) as running:
        report = scene.report("--free", "1T", code=7)
        [left] = [item for item in outcome(report, "trees")["left"] if item["path"] == str(tree)]
        assert "in use" in left["reason"] or "locked" in left["reason"]
        assert not other.exists()
        go_on(running)
        running.wait().expect()
    assert_same_tree(before, snapshot(tree), ignore=("root", "mtime_ns"))
    if command == "save":
        shutil.rmtree(tree)
        cli("restore", "--key", "k", "tree", cwd=work).expect()
        assert_same_tree(before, snapshot(tree), ignore=("root",))


def test_bytes_of_files_removed_but_open_are_deferred(scene: Scene, tmp_path: Path) -> None:
    """A tree that goes while a process has its files open under no name is freed later, and the rule says so."""
    unit = make_files(scene.root / "units" / "a", 1, 40 * MIB)
    scene.rules = {
        "first": {"paths": [f"{scene.root}/units/*"], "expect": {"size": "100M", "seconds": 1}},
        "second": {"paths": [f"{scene.root}/second/*"], "expect": {"size": "1M", "seconds": 1}},
    }
    make_files(scene.root / "second" / "b")
    with pausing(scene.cli, "clean.looked-again", *scene.arguments("--json", "--free", "1T")) as running:
        [trash] = (scene.root / "units").iterdir()
        with opened(trash, tmp_path / "ready"):
            go_on(running)  # nobody looks any more
            wait_until(lambda: not trash.exists(), "it is removed")
            # The other unit comes to the same step.
            wait_until(lambda: stopped(running.pid), "the second rule has its turn")
            go_on(running)
            report = running.wait().expect(7).json()
        rule = outcome(report, "first")
        assert rule["result"] == "deferred"
        assert "processes still have the files open" in rule["reason"]
        assert rule["freed"] < MIB
        assert rule["removed"] >= 40 * MIB
        # That is no reason to wait for the filesystem: the next rule has its turn.
        assert outcome(report, "second")["result"] == "freed"
    assert not unit.exists()


def test_removed_files_that_are_open_are_counted() -> None:
    """The bytes of a removed file that a process has open are counted for its filesystem, and for no other."""
    with filesystems.tmpfs() as mounted, filesystems.tmpfs() as other:
        path = mounted.path / "file"
        path.write_bytes(os.urandom(3 * MIB))
        with python("file = open(sys.argv[2], 'rb')", other.path / "ready", path):
            path.unlink()
            there = of_places([("x", os.fsencode(mounted.path)), ("y", os.fsencode(other.path))])
            device = there[0].room.device
            meter = Meter(there, {device: Need(1 << 50)})
            assert meter.open_deleted(Holders.scan()) == 3 * MIB
            meter = Meter(there, {there[1].room.device: Need(1 << 50)})
            assert meter.open_deleted(Holders.scan()) == 0
