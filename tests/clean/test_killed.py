"""Killed in the middle: each unit is whole, gone, or under a name that the next clean finishes."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from tests.support.capabilities import requires
from tests.support.cleaning import Scene, make_files, outcome
from tests.support.processes import members_of_session, wait_until
from tests.support.snapshots import Snapshot, diff, snapshot

pytestmark = requires("tmpfs")

PREFIX = ".cachekit-trash-"
STEPS = ("clean.renamed", "clean.looked-again", "clean.half-removed", "clean.removed")


def trees(scene: Scene, count: int = 6) -> dict[str, Snapshot]:
    """Units, each large enough to be removed by several workers; what is in each."""
    for number in range(count):
        unit = scene.root / "units" / f"unit-{number}"
        for folder in range(30):
            make_files(unit / f"folder-{folder}", 20, 10)
    scene.rules = {"units": {"paths": [f"{scene.root}/units/*"]}}
    return {unit.name: snapshot(unit) for unit in (scene.root / "units").iterdir()}


def whole_gone_or_trash(scene: Scene, before: dict[str, Snapshot]) -> list[str]:
    """Check each name that is left; return those of trash directories."""
    trash = []
    for path in (scene.root / "units").iterdir():
        if path.name.startswith(PREFIX):
            trash.append(path.name)
        else:
            assert not diff(before[path.name], snapshot(path), ignore=("root",)), path.name
    return trash


def finish(scene: Scene, *, trash: bool) -> None:
    """Clean once more and check that nothing is left and that trash is told of."""
    report = scene.report("--free", "1T", code=7)
    assert os.listdir(scene.root / "units") == []
    assert ("trash" in [rule["id"] for rule in report["rules"]]) == trash
    if trash:
        rule = outcome(report, "trash")
        assert rule["result"] == "freed"
        assert rule["items"] >= 1


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_each_step(scene: Scene, step: str) -> None:
    """Killed at a step of a removal, no unit is half removed under its own name, and the next clean finishes it."""
    before = trees(scene)
    env = {"CACHEKIT_KILL_AT": step, "CACHEKIT_WORKERS": "2"}
    with scene.start("--free", "1T", env=env) as running:
        assert running.wait().code == -9
        wait_until(lambda: not others(running.pid), "its workers have ended too")
    trash = whole_gone_or_trash(scene, before)
    assert bool(trash) == (step != "clean.removed")
    assert len(os.listdir(scene.root / "units")) < len(before) or trash
    finish(scene, trash=bool(trash))


def others(pid: int) -> list[str]:
    """The processes that a killed one left in its session."""
    return [str(other) for other in members_of_session(pid) if other != pid]


def test_killed_at_any_moment(scene: Scene) -> None:
    """Killed whenever, together with its workers, the same holds."""
    chance = random.Random(7)
    kills = 0
    for _ in range(8):
        before = trees(scene)
        with scene.start("--free", "1T", env={"CACHEKIT_WORKERS": "2"}) as running:
            wait_until(lambda: not running.alive or has_begun(scene), "it has begun")
            time.sleep(chance.uniform(0, 0.02))
            kills += running.kill().code == -9
        trash = whole_gone_or_trash(scene, before)
        finish(scene, trash=bool(trash))
    assert kills


def has_begun(scene: Scene) -> bool:
    """Whether a unit has gone, or has its trash name."""
    names = os.listdir(scene.root / "units")
    return len(names) < 6 or any(name.startswith(PREFIX) for name in names)


def test_trash_without_a_note_is_found_too(scene: Scene) -> None:
    """Also where the note of a killed run is lost (a full disk has no room for one) its trash is found and removed."""
    trees(scene, 2)
    scene.clean("--free", "1T", env={"CACHEKIT_KILL_AT": "clean.renamed"}).expect(-9)
    state = scene.cli.home / ".local" / "state" / "cachekit" / "trash"
    for note in state.iterdir():
        note.unlink()
    finish(scene, trash=True)


def test_what_is_used_in_the_trash_stays(scene: Scene) -> None:
    """Trash that somebody uses by now stays, and is told of."""
    trees(scene, 1)
    scene.clean("--free", "1T", env={"CACHEKIT_KILL_AT": "clean.renamed"}).expect(-9)
    [trash] = (scene.root / "units").iterdir()
    with (trash / "folder-0" / "file-0").open("rb"):
        report = scene.report("--free", "1T", code=7)
        rule = outcome(report, "trash")
        assert rule["result"] == "blocked"
        assert "in use" in rule["reason"]
        assert trash.exists()
    finish(scene, trash=True)


def test_a_name_like_trash_that_somebody_else_made(scene: Scene) -> None:
    """A directory of that name where anybody could have made it, without a note of ours, is not taken for trash."""
    trees(scene, 1)
    (scene.root / "units").chmod(0o777)
    forged = make_files(scene.root / "units" / f"{PREFIX}{'0' * 16}")
    scene.report("--free", "1T", code=7)
    assert forged.exists()
    assert [path.name for path in (scene.root / "units").iterdir()] == [forged.name]


def test_killed_before_the_goal_the_next_one_stops_there(scene: Scene) -> None:
    """What the trash of a killed run gives back counts: the next clean removes no more than is needed."""
    before = trees(scene, 3)
    scene.clean("--free", "1T", env={"CACHEKIT_KILL_AT": "clean.renamed"}).expect(-9)
    facts = os.statvfs(scene.root)
    free = facts.f_bavail * facts.f_frsize + 1000
    report = scene.report("--free", f"{free}B")
    assert outcome(report, "trash")["freed"] > 1000
    assert outcome(report, "units")["result"] == "not-needed"
    assert len(list(Path(scene.root, "units").iterdir())) == len(before) - 1
