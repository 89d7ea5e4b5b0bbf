"""Cleaning real small filesystems: full to the last byte, and those that show freed space late or never."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import filesystems
from tests.support.capabilities import requires
from tests.support.cleaning import MIB, Scene, make_files, outcome
from tests.support.cli import Cli
from tests.support.filling import free_bytes
from tests.support.processes import Arg, clean_environment, run
from tests.support.snapshots import unchanged

KINDS = [pytest.param(kind, marks=requires(kind)) for kind in ("tmpfs", "ext4", "xfs", "btrfs")]
LATE = [pytest.param(kind, marks=requires(kind)) for kind in ("xfs", "btrfs")]


def wanted(root: Path, more: int) -> str:
    """The value of --free for so many bytes more than there are."""
    return f"{free_bytes(root) + more}B"


def on_it(root: Path) -> dict[str, str]:
    """An environment with home, state and temporary directory on the filesystem itself; the last cannot be written."""
    home = root / "home"
    closed = home / "closed"
    closed.mkdir(parents=True, exist_ok=True)
    closed.chmod(0o000)
    return {
        "HOME": str(home),
        "TMPDIR": str(closed / "nothing"),
        "XDG_STATE_HOME": str(home / "state"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_CONFIG_HOME": str(home / "config"),
        "CACHEKIT_LOCK_DIR": str(home),
    }


def full(scene: Scene, mounted: filesystems.Filesystem) -> None:
    """Two trees, and then not a byte more."""
    make_files(scene.root / "first" / "a", 4, MIB)
    make_files(scene.root / "second" / "b", 4, MIB)
    scene.rules = {
        "first": {"paths": [f"{scene.root}/first/*"], "expect": {"size": "100M", "seconds": 1}},
        "second": {"paths": [f"{scene.root}/second/*"], "expect": {"size": "1M", "seconds": 1}},
    }
    mounted.fill(0)
    # To the last one, whatever the filesystem keeps back from a filler.
    try:
        with (scene.root / "last").open("ab", buffering=0) as file:
            while True:
                file.write(bytes(512))
                os.fsync(file.fileno())
    except OSError:
        pass


def emergency(scene: Scene, free: int, env: dict[str, str], *, code: int = 0) -> dict[str, Any]:
    """Run the emergency stage for so many bytes."""
    return scene.report("--stage", "emergency", "--free", f"{free}B", code=code, env=env)


@pytest.mark.parametrize("kind", KINDS)
def test_emergency_without_a_ballast(cli: Cli, kind: str) -> None:
    """With 0 bytes free, and home and state on the full disk, the emergency stage frees what is asked and no more."""
    with filesystems.of_kind(kind) as mounted:
        scene = Scene(cli, mounted.path)
        env = on_it(scene.root)
        full(scene, mounted)
        report = emergency(scene, free_bytes(scene.root) + 3 * MIB, env)
        assert report["met"]
        assert outcome(report, "first")["result"] == "freed"
        assert outcome(report, "second")["result"] == "not-needed"
        assert os.listdir(scene.root / "first") == []
        assert len(os.listdir(scene.root / "second" / "b")) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_emergency_releases_the_ballast_first(cli: Cli, kind: str) -> None:
    """A reserve made in good time is given back before any rule is carried out."""
    with filesystems.of_kind(kind) as mounted:
        scene = Scene(cli, mounted.path)
        env = on_it(scene.root)
        cli("disk", "reserve", "8M", "--in", scene.root, env=env).expect()
        full(scene, mounted)
        report = emergency(scene, free_bytes(scene.root) + 4 * MIB, env)
        assert report["rules"][0]["id"] == "ballast"
        assert outcome(report, "ballast")["result"] == "freed"
        assert outcome(report, "ballast")["freed"] >= 7 * MIB
        assert outcome(report, "first")["result"] == "not-needed"
        assert len(os.listdir(scene.root / "first" / "a")) == 4
        assert not (scene.root / ".cachekit-ballast").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_emergency_that_cannot_meet_its_goal(cli: Cli, kind: str) -> None:
    """Where the rules do not free enough, everything else stays, and exit 7 names what is missing and what remains."""
    with filesystems.of_kind(kind) as mounted:
        scene = Scene(cli, mounted.path)
        env = on_it(scene.root)
        make_files(scene.root / "precious", 3, MIB)
        full(scene, mounted)
        with unchanged(scene.root / "precious"):
            done = scene.clean("--stage", "emergency", "--free", "1T", env=env).expect(7)
        assert "the goal was not met" in done.stderr
        assert "short of 1.0 TiB" in done.stderr
        assert os.listdir(scene.root / "first") == os.listdir(scene.root / "second") == []
        assert str(scene.root) in done.stderr.partition("the largest that remain")[2]


@requires("tmpfs")
def test_emergency_with_no_inode_left(cli: Cli) -> None:
    """A filesystem without a free inode is cleaned until so many are free as were asked for."""
    with filesystems.tmpfs(16 * MIB, inodes=60) as mounted:
        scene = Scene(cli, mounted.path)
        make_files(scene.root / "many" / "a", 20, 10)
        scene.rules = {"many": {"paths": [f"{scene.root}/many/*"]}}
        env = on_it(scene.root)
        mounted.use_up_inodes()
        report = scene.report("--stage", "emergency", "--free-inodes", "15", env=env)
        assert report["met"]
        assert os.statvfs(scene.root).f_ffree >= 15


AUDITED = """
import os, sys
def hook(event, args):
    if event == "open":
        path, mode, flags = args
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and not isinstance(path, int):
            os.write(2, b"OPENED " + os.fsencode(path) + b"\\n")
    elif event == "os.mkdir":
        path, _, place = args
        if place != -1:
            path = os.path.join(os.readlink(f"/proc/self/fd/{place}"), path)
        os.write(2, f"MADE directory {path}\\n".encode())
    elif event.startswith(("tempfile.", "os.symlink", "os.link", "os.rename")):
        os.write(2, f"MADE {event} {args!r}\\n".encode())
sys.dont_write_bytecode = True
sys.addaudithook(hook)
from cachekit.__main__ import main
sys.exit(main())
"""


@requires("tmpfs")
def test_emergency_makes_no_temporary_file(cli: Cli) -> None:
    """Nothing is opened for writing but the ballast, the lock, and the notes of cachekit's own state directory."""
    with filesystems.tmpfs() as mounted:
        scene = Scene(cli, mounted.path)
        env = on_it(scene.root)
        cli("disk", "reserve", "1M", "--in", scene.root, env=env).expect()
        full(scene, mounted)
        arguments = scene.arguments("--stage", "emergency", "--free", f"{free_bytes(scene.root) + 3 * MIB}B")
        environment = clean_environment(cli.home) | env
        done = run([sys.executable, "-c", AUDITED, *arguments], env=environment).expect()
        told = [
            line.split(" ", 1) for line in done.stderr.splitlines() if line.startswith(("OPENED ", "MADE "))
        ]
        opened = [path for what, path in told if what == "OPENED"]
        own = (str(scene.root / ".cachekit-ballast"), str(scene.root / "home"), "/dev/null", "/proc/")
        assert opened
        assert [path for path in opened if path.startswith("/") and not path.startswith(own)] == []
        assert [text for what, text in told if what == "MADE" and "tempfile" in text] == []
        notes = (str(scene.root), "clean-ledger")
        assert [text for what, text in told if what == "MADE" and not any(own in text for own in notes)] == []


BARE = """
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"zstandard", "xxhash", "psutil", "rich", "indexed_zstd"}:
            raise ImportError(f"{name} is not on this machine")
sys.meta_path.insert(0, Blocker())
sys.path.insert(0, sys.argv.pop(1))
from cachekit.__main__ import main
sys.exit(main())
"""


@pytest.fixture
def only_click(tmp_path: Path) -> Path:
    """A directory with the Python package click and nothing else."""
    import click

    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "click").symlink_to(Path(click.__file__).parent)
    return folder


@pytest.mark.parametrize("stage", ["emergency", "pre"])
def test_nothing_but_click_is_needed(scene: Scene, only_click: Path, stage: str) -> None:
    """A clean runs with the standard library and click, and nothing else that could be imported."""
    make_files(scene.root / "first" / "a", 4, MIB)
    scene.rules = {"first": {"paths": [f"{scene.root}/first/*"]}}
    command: list[Arg] = [sys.executable, "-S", "-c", BARE, only_click]
    arguments = scene.arguments("--stage", stage, "--free", wanted(scene.root, MIB))
    done = run([*command, *arguments], env=clean_environment(scene.cli.home)).expect()
    assert "the goal is met" in done.stdout
    assert os.listdir(scene.root / "first") == []


MEASURED = """
import resource, subprocess, sys
code = subprocess.run([sys.executable, "-m", "cachekit", *sys.argv[1:]], stdout=subprocess.DEVNULL).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@requires("tmpfs")
@pytest.mark.parametrize("workers", [{}, {"CACHEKIT_WORKERS": "1"}], ids=["as many as usual", "one"])
def test_memory_does_not_grow_with_the_files(cli: Cli, workers: dict[str, str]) -> None:
    """Removing 60,000 files takes no more memory than removing 2,000, in whichever of the processes."""
    peaks = []
    for count in (2_000, 60_000):
        with filesystems.tmpfs(128 * MIB) as mounted:
            scene = Scene(cli, mounted.path)
            for number in range(count):
                if number % 500 == 0:
                    folder = scene.root / "first" / "a" / str(number)
                    folder.mkdir(parents=True)
                (folder / str(number)).touch()
            make_files(scene.root / "first" / "z", 2, MIB)
            scene.rules = {"first": {"paths": [f"{scene.root}/first/*"]}}
            arguments = scene.arguments("--stage", "emergency", "--free", wanted(scene.root, MIB))
            done = run(
                [sys.executable, "-c", MEASURED, *arguments], env=clean_environment(cli.home) | workers
            ).expect()
            code, peak = done.stdout.split()
            assert code == "0"
            assert os.listdir(scene.root / "first") == []
            peaks.append(int(peak))
    assert peaks[1] - peaks[0] < 3072  # KiB: keeping the names would take more


@pytest.mark.parametrize("megabytes", [1, 10])
@pytest.mark.parametrize("kind", LATE)
def test_freed_space_that_shows_late_is_waited_for(cli: Cli, kind: str, megabytes: int) -> None:
    """What the first rule freed is seen although the filesystem shows it late, so the second is not carried out."""
    with filesystems.of_kind(kind) as mounted:
        scene = Scene(cli, mounted.path)
        make_files(scene.root / "first" / "a", 4, megabytes * MIB)
        make_files(scene.root / "second" / "b", 4, megabytes * MIB)
        scene.rules = {
            "first": {"paths": [f"{scene.root}/first/*"], "expect": {"size": "100M", "seconds": 1}},
            "second": {"paths": [f"{scene.root}/second/*"], "expect": {"size": "1M", "seconds": 1}},
        }
        report = scene.report("--free", wanted(scene.root, 2 * megabytes * MIB))
        assert outcome(report, "first")["freed"] >= 3.5 * megabytes * MIB
        assert outcome(report, "second")["result"] == "not-needed"
        assert len(os.listdir(scene.root / "second" / "b")) == 4


def held_by_a_snapshot(subvolume: Path, size: int, rules: int) -> dict[str, dict[str, object]]:
    """Trees of so many bytes each in a subvolume of which there is a snapshot, and rules for them."""
    subprocess.run(["btrfs", "-q", "subvolume", "create", str(subvolume)], check=True)
    for number in range(rules):
        make_files(subvolume / f"tree-{number}" / "a", 2, size // 2)
    os.sync()
    subprocess.run(
        ["btrfs", "-q", "subvolume", "snapshot", str(subvolume), str(subvolume.with_name("snap"))], check=True
    )
    return {
        f"rule-{number}": {
            "paths": [f"{subvolume}/tree-{number}/*"],
            "expect": {"size": f"{100 - number}M", "seconds": 1},
        }
        for number in range(rules)
    }


@requires("btrfs")
def test_bytes_that_never_show_stop_the_run(cli: Cli) -> None:
    """Where a snapshot holds what was removed, the run stops, says what it waits for, and removes nothing further."""
    with filesystems.btrfs(256 * MIB) as mounted:
        scene = Scene(cli, mounted.path / "sub")
        scene.rules = dict(held_by_a_snapshot(scene.root, 40 * MIB, 2))
        done = scene.clean("--json", "--free", "1T").expect(7)
        report = done.json()
        assert "waiting for the filesystem" in report["waiting"]
        assert "waiting for the filesystem" in done.stderr
        assert outcome(report, "rule-0")["result"] == "freed"
        assert outcome(report, "rule-0")["freed"] < 20 * MIB
        assert outcome(report, "rule-1")["reason"] == "waiting for the filesystem"
        assert os.listdir(scene.root / "tree-0") == []
        assert len(os.listdir(scene.root / "tree-1" / "a")) == 2


@requires("btrfs")
def test_small_rules_that_never_show_stop_the_run(cli: Cli) -> None:
    """Rules that remove little each do not go on for ever either while nothing shows."""
    with filesystems.btrfs(256 * MIB) as mounted:
        scene = Scene(cli, mounted.path / "sub")
        scene.rules = dict(held_by_a_snapshot(scene.root, 8 * MIB, 6))
        report = scene.report("--free", "1T", code=7)
        assert "waiting for the filesystem" in report["waiting"]
        assert [outcome(report, f"rule-{number}")["reason"] for number in (3, 4, 5)] == [
            "waiting for the filesystem"
        ] * 3
        assert len(os.listdir(scene.root / "tree-3" / "a")) == 2


@requires("xfs")
def test_shared_blocks_stop_the_run(cli: Cli) -> None:
    """Files that share their blocks with others give nothing back, and the run stops instead of removing more."""
    with filesystems.xfs(400 * MIB) as mounted:
        scene = Scene(cli, mounted.path)
        make_files(scene.root / "first" / "a", 2, 20 * MIB)
        make_files(scene.root / "second" / "b", 2, 20 * MIB)
        copies = scene.root / "copies"
        subprocess.run(["cp", "-r", "--reflink=always", scene.root / "first", copies], check=True)
        scene.rules = {
            "first": {"paths": [f"{scene.root}/first/*"], "expect": {"size": "100M", "seconds": 1}},
            "second": {"paths": [f"{scene.root}/second/*"], "expect": {"size": "1M", "seconds": 1}},
        }
        report = scene.report("--free", "1T", code=7)
        assert "waiting for the filesystem" in report["waiting"]
        assert len(os.listdir(scene.root / "second" / "b")) == 2


def test_the_cheapest_rule_goes_first_and_the_goal_ends_it(scene: Scene) -> None:
    """Rules go by bytes a second, whatever their order in the plan, until enough is free."""
    for name in ("dear", "cheap", "middle"):
        make_files(scene.root / name / "a", 4, MIB)
    scene.rules = {
        "dear": {"paths": [f"{scene.root}/dear/*"], "expect": {"size": "1M", "seconds": 10}},
        "cheap": {"paths": [f"{scene.root}/cheap/*"], "expect": {"size": "1G", "seconds": 1}},
        "middle": {"paths": [f"{scene.root}/middle/*"], "expect": {"size": "1G", "seconds": 60}},
    }
    report = scene.report("--free", wanted(scene.root, 6 * MIB))
    assert [rule["id"] for rule in report["rules"]] == ["cheap", "middle", "dear"]
    assert [rule["result"] for rule in report["rules"]] == ["freed", "freed", "not-needed"]
    assert len(os.listdir(scene.root / "dear" / "a")) == 4


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_goal_ends_a_rule_between_its_units(cli: Cli, kind: str, measured: bool) -> None:
    """Of several matches of one rule no more go than are needed, also where freed space shows late."""
    with filesystems.of_kind(kind) as mounted:
        scene = Scene(cli, mounted.path)
        for number in range(5):
            make_files(scene.root / "units" / str(number), 2, MIB)
        when = {"when": {"larger": "1K"}} if measured else {}
        scene.rules = {"units": {"paths": [f"{scene.root}/units/*"], **when}}
        scene.report("--free", wanted(scene.root, 3 * MIB))
        assert sorted(os.listdir(scene.root / "units")) == ["2", "3", "4"]


def test_a_met_goal_touches_nothing(scene: Scene) -> None:
    """With enough free already nothing is written: no tree, no state, not even a lock file; and exit 0."""
    make_files(scene.root / "first" / "a")
    scene.rules = {"first": {"paths": [f"{scene.root}/first/*"]}}
    scene.cli("--version")  # makes the directories of the test itself
    arguments = scene.arguments("--json", "--stage", "emergency", "--free", "1M")
    with unchanged(scene.root, scene.cli.home, scene.cli.cwd):
        report = scene.cli(*arguments).expect().json()
    assert report["already_met"]
    assert report["rules"] == []


@requires("tmpfs")
def test_only_the_filesystem_that_is_short_is_cleaned(cli: Cli) -> None:
    """What lies on a filesystem with enough free stays, also if it has become enough in this run."""
    with filesystems.tmpfs(64 * MIB) as one, filesystems.tmpfs(8 * MIB) as other:
        scene = Scene(cli, one.path)
        make_files(one.path / "first" / "a", 4, 12 * MIB)
        make_files(one.path / "second" / "a", 1, MIB)
        make_files(other.path / "third" / "a", 4, MIB)
        scene.rules = {
            name: {"paths": [f"{root}/{name}/*"], "expect": {"size": size, "seconds": 1}}
            for name, root, size in (
                ("first", one.path, "100M"),
                ("second", one.path, "50M"),
                ("third", other.path, "1M"),
            )
        }
        report = scene.report("--filesystem", other.path, "--free", "60%")
        assert [rule["id"] for rule in report["rules"]] == ["first", "second", "third"]
        assert outcome(report, "second")["result"] == "blocked"
        assert "enough free" in outcome(report, "second")["reason"]
        assert outcome(report, "third")["result"] == "freed"
        assert (one.path / "second" / "a").exists()


@requires("btrfs")
def test_a_subvolume_is_part_of_its_filesystem(cli: Cli) -> None:
    """A unit in a subvolume of the filesystem that is short goes, whatever device number the subvolume has."""
    with filesystems.btrfs() as mounted:
        subvolume = mounted.path / "sub"
        subprocess.run(["btrfs", "-q", "subvolume", "create", str(subvolume)], check=True)
        scene = Scene(cli, mounted.path)
        make_files(subvolume / "units" / "a", 4, MIB)
        scene.rules = {"units": {"paths": [f"{subvolume}/units/*"]}}
        report = scene.report("--free", wanted(scene.root, 2 * MIB))
        assert outcome(report, "units")["result"] == "freed"
        assert os.listdir(subvolume / "units") == []


@requires("btrfs")
def test_two_mounted_subvolumes_are_one_filesystem(cli: Cli, tmp_path: Path) -> None:
    """What becomes free in subvolumes that are mounted at two places, as / and /home, counts once."""
    with filesystems.btrfs() as mounted:
        places = [tmp_path / "root", tmp_path / "home"]
        for place in places:
            place.mkdir()
            subprocess.run(["btrfs", "-q", "subvolume", "create", str(mounted.path / place.name)], check=True)
            device = subprocess.run(
                ["findmnt", "-n", "-o", "SOURCE", str(mounted.path)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout.strip()
            subprocess.run(
                ["mount", "-o", f"subvol={place.name}", device.partition("[")[0], str(place)], check=True
            )
        try:
            scene = Scene(cli, places[0])
            make_files(places[1] / "units" / "a", 4, MIB)
            scene.rules = {"units": {"paths": [f"{places[1]}/units/*"]}}
            report = scene.report("--filesystem", places[1], "--free", wanted(places[0], 2 * MIB))
        finally:
            for place in places:
                filesystems.unmount(place)
        assert len(report["filesystems"]) == 1
        assert 3 * MIB < report["freed"] < 6 * MIB
