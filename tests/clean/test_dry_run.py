"""A dry run changes nothing, not even a time, and what it names is what goes."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cachekit.clean.run
from cachekit.system.clock import now_ns
from tests.support import filesystems
from tests.support.capabilities import requires
from tests.support.cleaning import MIB, Scene, make_files, outcome, plan_text
from tests.support.in_process import Here
from tests.support.processes import Arg, wait_until

pytestmark = requires("tmpfs")

Facts = dict[bytes, tuple[int, ...]]


def everything(*roots: Path) -> Facts:
    """All that lstat says of every name, access times included; read without changing any."""
    found: Facts = {}
    pending = [os.fsencode(root) for root in roots]
    while pending:
        path = pending.pop()
        info = os.lstat(path)
        found[path] = (
            info.st_mode,
            info.st_ino,
            info.st_nlink,
            info.st_uid,
            info.st_size,
            info.st_blocks,
            info.st_atime_ns,
            info.st_mtime_ns,
            info.st_ctime_ns,
        )
        if stat.S_ISDIR(info.st_mode):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME)
            try:
                pending += [os.path.join(path, os.fsencode(name)) for name in os.listdir(fd)]
            finally:
                os.close(fd)
    return found


def du(path: Path) -> int:
    """What du says: allocated bytes."""
    done = subprocess.run(
        ["du", "-sx", "--block-size=1", str(path)], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[0])


@pytest.fixture
def strict(scene: Scene) -> Scene:
    """A filesystem on which every access is noted."""
    subprocess.run(["mount", "-o", "remount,strictatime", str(scene.root)], check=True)
    before = everything(scene.root)
    time.sleep(0.01)
    os.listdir(scene.root)
    assert everything(scene.root) != before, "access times are kept, and seen"
    return scene


def fill_up(scene: Scene) -> Path:
    """Make one of everything that a rule can be about; returns the marker that the command would make."""
    root = scene.root
    made = make_files(root / "plain", 3, MIB)
    (made / "empty").mkdir()
    (made / "link").symlink_to("file-0")
    (made / "twin").hardlink_to(made / "file-1")
    os.mkfifo(made / "pipe")
    sparse = made / "sparse"
    with sparse.open("wb") as file:
        file.truncate(MIB)
        file.seek(MIB)
        file.write(b"x" * 5000)
    for number in range(3):
        make_files(root / "some" / f"unit-{number}", 2, 100_000)
    make_files(root / "versions" / "bin.1", 1, MIB)
    make_files(root / "versions" / "bin.2", 1, MIB)
    (root / "versions" / "bin").symlink_to("bin.2")
    cache = make_files(root / "cache", 2, MIB)
    checkout = root / "checkout"
    make_files(checkout / "build", 2, 10_000)
    (checkout / ".gitignore").write_text("build\n")
    subprocess.run(["git", "init", "-q", str(checkout)], check=True)
    marker = root / "marker"
    scene.rules = {
        "plain": {"paths": [f"{root}/plain"]},
        "some": {"paths": [f"{root}/so*/**/unit-?"], "when": {"keep": 1}},
        "young": {"paths": [f"{root}/some/*"], "when": {"older": "1h"}},
        "large": {"paths": [f"{root}/some/*"], "when": {"larger": "1M"}},
        "versions": {"paths": [f"{root}/versions/bin.*"], "when": {"unlinked": True}},
        "built": {"paths": ["$WORKSPACE/build"], "when": {"git-ignored": True}},
        "nothing": {"paths": [f"{root}/nothing/*"]},
        "command": {"command": ["touch", str(marker)], "frees": [str(cache)]},
        "docker": {"docker": "dangling-images", "category": "docker"},
    }
    return marker


def test_a_dry_run_changes_nothing(strict: Scene) -> None:
    """A dry run leaves every name and every time as it is, access times too, in the tree, at home and in the state."""
    marker = fill_up(strict)
    env = {"GITHUB_WORKSPACE": str(strict.root / "checkout"), "DOCKER_HOST": "unix:///nowhere/docker.sock"}
    strict.clean("--free=1K", env=env).expect()  # so that the home is there, and the plan is written
    state = strict.cli.home / ".local/state/cachekit"
    make_files(state)
    plan = strict.plan
    git = {path for path in everything(strict.root) if b"/checkout/.git" in path}
    link = os.fsencode(strict.root / "versions" / "bin")
    arguments: list[Arg] = ["clean", "--plan", plan, "--filesystem", strict.root, "--dry-run"]
    subprocess.run(["mount", "-o", "remount,strictatime", str(strict.root)], check=True)
    for more in ([], ["--json"], ["--stage=emergency"], ["--background"]):
        before = everything(strict.root, strict.cli.home)
        done = strict.cli(*arguments, *more, env=env).expect()
        after = everything(strict.root, strict.cli.home)
        # git reads its own files, the plan is read, and so is the link that says which version is in use.
        changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
        changed -= git | {os.fsencode(plan), link}
        assert not changed, more
        assert "Traceback" not in done.stderr
    assert not marker.exists()


def test_a_dry_run_prints_every_rule(scene: Scene) -> None:
    """A dry run names every rule of the stage, and what each would free, to the block, as du counts it."""
    marker = fill_up(scene)
    env = {"GITHUB_WORKSPACE": str(scene.root / "checkout"), "DOCKER_HOST": "unix:///nowhere/docker.sock"}
    report = scene.report("--dry-run", env=env)
    root = scene.root
    assert {rule["id"]: rule["result"] for rule in report["rules"]} == {
        "plain": "would-free",
        "some": "would-free",
        "young": "skipped",
        "large": "skipped",
        "versions": "would-free",
        "built": "would-free",
        "nothing": "stale",
        "command": "would-free",
        "docker": "not-applicable",
    }
    assert outcome(report, "plain")["expected"] == du(root / "plain")
    assert outcome(report, "some")["expected"] == du(root / "some" / "unit-0") + du(root / "some" / "unit-1")
    assert outcome(report, "versions")["expected"] == du(root / "versions" / "bin.1")
    assert outcome(report, "built")["expected"] == du(root / "checkout" / "build")
    assert outcome(report, "command")["expected"] == du(root / "cache")
    assert all(rule["measured"] for rule in report["rules"] if rule["result"] == "would-free")
    assert outcome(report, "some")["items"] == 2
    assert report["freed"] == 0
    said = scene.clean("--dry-run", env=env).expect().stdout
    for name in scene.rules:
        assert name in said
    total = sum(rule["expected"] for rule in report["rules"] if rule["result"] == "would-free")
    assert f"{total / MIB:.1f} MiB would be freed" in " ".join(said.split())
    assert not marker.exists()


def test_a_dry_run_says_what_is_not_measured(scene: Scene) -> None:
    """What a program would free is unknown before it has run: the plan's estimate is shown as one."""
    scene.rules["command"] = {"command": ["true"], "expect": {"size": "3M", "seconds": 1}}
    assert "~3.0 MiB" in scene.clean("--dry-run").expect().stdout
    assert not outcome(scene.report("--dry-run"), "command")["measured"]


def test_a_dry_run_stops_where_the_real_one_would(scene: Scene) -> None:
    """Rules that the goal would not need any more are shown as such, with what they would free all the same."""
    for number, name in enumerate("abc"):
        make_files(scene.root / name, 1, 4 * MIB)
        scene.rules[name] = {
            "paths": [f"{scene.root}/{name}"],
            "expect": {"size": f"{9 - number}M", "seconds": 1},
        }
    report = scene.report("--dry-run", "--free=59M")
    assert [(rule["id"], rule["result"]) for rule in report["rules"]] == [
        ("a", "would-free"),
        ("b", "would-free"),
        ("c", "not-needed"),
    ]
    assert outcome(report, "c")["expected"] == 4 * MIB
    assert "the goal would be met" in " ".join(scene.clean("--dry-run", "--free=59M").expect().stdout.split())
    said = " ".join(scene.clean("--dry-run", "--free=100M").expect().stdout.split())
    assert "about 12.0 MiB would be freed: 36.0 MiB short of the goal" in said
    real = scene.report("--free=59M")
    assert [rule["result"] for rule in real["rules"]] == ["freed", "freed", "not-needed"]


def test_a_dry_run_of_a_goal_that_is_met(scene: Scene) -> None:
    """A dry run looks at every rule even where nothing would be done, and says that the goal is met."""
    make_files(scene.root / "a", 1, 4 * MIB)
    scene.rules["a"] = {"paths": [f"{scene.root}/a"]}
    report = scene.report("--dry-run", "--free=1K")
    assert outcome(report, "a")["expected"] == 4 * MIB
    assert outcome(report, "a")["result"] == "not-needed"
    said = " ".join(scene.clean("--dry-run", "--free=1K").expect().stdout.split())
    assert "the goal is met as it is" in said


def test_a_dry_run_that_lacks_inodes_shows_every_rule(scene: Scene) -> None:
    """Bytes say nothing of inodes: a dry run towards free inodes takes no rule for enough."""
    with filesystems.tmpfs(32 * MIB, inodes=200) as mounted:
        few = Scene(scene.cli, mounted.path)
        for name in "ab":
            make_files(few.root / name, 60, 10)
            few.rules[name] = {"paths": [f"{few.root}/{name}"]}
        report = few.report("--dry-run", "--free-inodes=190")
        assert [rule["result"] for rule in report["rules"]] == ["would-free", "would-free"]


def test_a_dry_run_beside_a_clean(scene: Scene) -> None:
    """A dry run takes no lock and waits for none: it answers while another clean works."""
    make_files(scene.root / "a", 1, MIB)
    pipe = scene.cli.home / "pipe"
    pipe.parent.mkdir(exist_ok=True)
    os.mkfifo(pipe)
    scene.rules = {"slow": {"command": ["cat", str(pipe)]}, "a": {"paths": [f"{scene.root}/a"]}}
    with scene.start("--keep=a") as running:
        lock = scene.cli.home / "run" / "cachekit-clean.lock"

        def locked() -> bool:
            try:
                fd = os.open(lock, os.O_RDONLY)
            except FileNotFoundError:
                return False
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            finally:
                os.close(fd)
            return False

        wait_until(locked, "the clean has its lock")
        report = scene.report("--dry-run", "--lock-timeout=0")
        assert running.alive
        assert outcome(report, "a")["result"] == "would-free"
        pipe.write_bytes(b"")
        running.wait().expect(7)


# ------------------------------------------------------------------------------------------- what is named is what goes


@pytest.fixture
def here(scene: Scene, tmp_path: Path, clean_surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """The command line in this process."""
    monkeypatch.chdir(tmp_path)
    return Here(tmp_path, clean_surroundings)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A clock that a test can set, in nanoseconds; empty for the real one."""
    times: list[int] = []
    monkeypatch.setattr(cachekit.clean.run, "now_ns", lambda: times[-1] if times else now_ns())
    return times


units = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 40_000), st.integers(0, 3)), min_size=1, max_size=6
)
conditions = st.fixed_dictionaries(
    {},
    optional={
        "older": st.sampled_from(["1s", "1h", "7d"]),
        "larger": st.sampled_from(["4K", "20K"]),
        "keep": st.integers(1, 3),
    },
)
SECONDS = {"1s": 1, "1h": 3600, "7d": 7 * 86400}


def build(root: Path, members: list[tuple[str, int, int]]) -> list[int]:
    """Make a unit for each member, one after the other; return when each was made."""
    made = []
    for number, (group, size, depth) in enumerate(members):
        place = root / group / f"unit-{number}"
        for level in range(depth):
            place = place / f"level-{level}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"x" * size)
        unit = root / group / f"unit-{number}"
        made.append(max(os.lstat(path).st_ctime_ns for path in (unit, *unit.rglob("*"))))
        time.sleep(0.012)  # longer than a tick of the clock that gives files their times
    return made


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=40)
@given(
    members=units,
    first=conditions,
    second=conditions,
    cut=st.integers(0, 5),
    goal=st.none() | st.integers(0, 150_000),
)
def test_what_is_named_is_what_goes(
    scene: Scene,
    here: Here,
    clock: list[int],
    members: list[tuple[str, int, int]],
    first: dict[str, Any],
    second: dict[str, Any],
    cut: int,
    goal: int | None,
) -> None:
    """The rules and bytes that a dry run names are those of the clean after it, for any ages, sizes and conditions."""
    root = scene.root / "t"
    subprocess.run(["rm", "-rf", str(root)], check=True)
    clock.clear()
    made = build(root, members)
    older = max(SECONDS[when["older"]] if "older" in when else 0 for when in (first, second))
    clock.append(made[min(cut, len(made) - 1)] + older * 10**9)
    plan = here.home / "plan.toml"
    plan.write_text(
        plan_text(
            {"a": {"paths": [f"{root}/a/*"], "when": first}, "b": {"paths": [f"{root}/b/*"], "when": second}}
        )
    )
    status = os.statvfs(root)
    free = 1 << 40 if goal is None else status.f_bavail * status.f_frsize + goal
    arguments: list[Arg] = ["clean", "--json", "--plan", plan, "--filesystem", scene.root, f"--free={free}"]
    sizes = {path: du(path) for path in root.glob("*/*")}
    dry = here(*arguments, "--dry-run").expect().json()
    assert sizes.keys() == set(root.glob("*/*"))
    real = here(*arguments).expect(0, 7).json()
    gone = {path: size for path, size in sizes.items() if not path.exists()}
    would = {rule["id"] for rule in dry["rules"] if rule["result"] == "would-free"}
    did = {rule["id"] for rule in real["rules"] if rule["result"] == "freed"}
    if real["already_met"]:
        assert not would
        assert not gone
        return
    assert would == did == {path.parent.name for path in gone}
    if goal is None:
        for name in would:
            mine = [size for path, size in gone.items() if path.parent.name == name]
            assert outcome(dry, name)["expected"] == sum(mine) == outcome(real, name)["freed"]
            assert outcome(dry, name)["items"] == len(mine)
            assert outcome(real, name)["removed"] == sum(mine)
