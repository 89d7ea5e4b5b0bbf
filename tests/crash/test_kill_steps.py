"""Killed at every step of a save, a restore and a recovery: old or new, never half, and recoverable."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from cachekit.cache.recovery import RecoverLine
from cachekit.errors import UnfinishedTarget
from cachekit.system import steps
from tests.crash.scene import PLACES, Mode, Scene, assert_each_whole, content, die_at, merged, seen
from tests.support.capabilities import requires
from tests.support.snapshots import Snapshot, assert_same_tree

#: Those of a clean are in tests/removal, of a prune and of pins in tests/retention, of locks in tests/lock, of loaded
#: images in tests/images.
STEPS = [
    step
    for step in steps.STEPS
    if not step.startswith(("carry.", "clean.", "prune.", "pin.", "lock.", "gc.", "load."))
]
SAVE = [step for step in STEPS if step.startswith("save.")]
LINK = [step for step in STEPS if step.startswith("link.")]
SAVES = {
    "new key": SAVE,
    "--force": [step for step in SAVE if step != "save.temp-unlinked"],  # renamed over the old entry
    "--skip-unchanged": LINK,
}

STAGING = [
    "restore.opened",
    "restore.staging-created",
    "restore.journal-staged",
    "restore.extracted",
    "restore.finished-staging",
]
END = ["commit.root-finished", "commit.journal-removed", "restore.cleaned"]
WHOLE = [*STAGING, "restore.journal-committing", "commit.before-rename", "commit.after-rename", *END]
BY_NAME = [
    *STAGING,
    "restore.journal-committing",
    "commit.before-rename",
    "commit.first-rename",
    "commit.half",
    "commit.after-rename",
    *END,
]
IN_PLACE = [
    "restore.opened",
    "restore.staging-created",
    "restore.journal-staged",
    "inplace.marked",
    "commit.first-rename",
    "inplace.first-file",
    "inplace.files-done",
    "restore.journal-committing",
    *END,
]
MOVED = set(STEPS) - set(STAGING) - set(SAVE) - set(LINK) - {"commit.journal-removed", "restore.cleaned"}
"""Killed there, the target may be neither tree: a save must refuse it."""


@dataclass(frozen=True)
class Way:
    """A restore: where its target is, how it is committed, and the steps it comes by."""

    place: str
    mode: Mode
    steps: list[str]
    needs: tuple[str, ...] = ()
    extras: bool = False
    whole: bool = False
    """Whether the target is the old or the new tree at every moment."""

    @property
    def options(self) -> list[str]:
        """The options of the command line."""
        return [f"--{self.mode}"] + (["--replace"] if self.extras else [])

    def final(self, old: Snapshot, new: Snapshot) -> Snapshot:
        """What the target is in the end."""
        return merged(old, new) if self.mode != "replace" and not self.extras else new


WAYS = {
    "absent": Way("absent", "merge", WHOLE, whole=True),
    "merge": Way("plain", "merge", BY_NAME),
    "replace": Way("plain", "replace", WHOLE, whole=True),
    "replace-mounted": Way("mounted", "replace", [*BY_NAME, "commit.old-aside"], ("tmpfs",)),
    "merge-mounted": Way("mounted", "merge", BY_NAME, ("tmpfs",)),
    "replace-lower": Way("lower", "replace", [*BY_NAME, "commit.old-aside"], ("overlay",)),
    "replace-no-exchange": Way("no-exchange", "replace", [*WHOLE, "commit.old-aside"], ("fuse",)),
    "in-place": Way("plain", "in-place", IN_PLACE),
    "in-place-mounted": Way("mounted", "in-place", IN_PLACE, ("tmpfs",)),
    "in-place-replace": Way("plain", "in-place", IN_PLACE, extras=True),
}


def cases(*names: str) -> list[object]:
    """Every step of these ways."""
    return [
        pytest.param(
            name, step, id=f"{name}-{step}", marks=requires(*WAYS[name].needs) if WAYS[name].needs else ()
        )
        for name in names
        for step in WAYS[name].steps
    ]


AGAIN = ["absent", "merge", "replace", "replace-mounted", "replace-lower", "in-place"]
LOST = ["absent", "merge", "replace-mounted", "merge-mounted", "replace-no-exchange", "in-place-mounted"]
TWICE = [
    pytest.param(name, step, id=f"{name}-{step}", marks=requires(*way.needs) if way.needs else ())
    for name, way in WAYS.items()
    for step in way.steps
    if step
    in {"commit.old-aside", "commit.half", "inplace.marked", "inplace.files-done", "commit.root-finished"}
]


@pytest.fixture
def placed(scene: Scene, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """The scene with its target where the way of the test has it."""
    with PLACES[WAYS[request.getfixturevalue("way")].place](scene) as there:
        yield there


def test_every_step_is_killed_in_some_way() -> None:
    """The tables below leave out no step."""
    assert {step for way in WAYS.values() for step in way.steps} | set(SAVE) | set(LINK) == set(STEPS)


@pytest.mark.parametrize(
    ("kind", "step"), [(kind, step) for kind, reached in SAVES.items() for step in reached]
)
def test_a_killed_save_publishes_all_or_nothing(own_scene: Scene, kind: str, step: str) -> None:
    """The store verifies, the older entry restores, the key is old or new, and the leftover goes next time."""
    scene = own_scene
    force = kind == "--force"
    scene.restore(key="new")
    key, more = ("old", ["--force"]) if force else ("third", [] if kind == "new key" else [kind])
    published = step in {"save.linked", "save.temp-unlinked", "save.published", "link.linked"}
    scene.kill(step, "save", "--key", key, "tree", *more)
    if not force:
        scene.assert_store_whole()
    elsewhere = scene.at(scene.root.parent / "again")
    elsewhere.root.mkdir()
    report = elsewhere.restore(key=key)  # sweeps
    assert report.status == ("exact" if published or force else "miss")
    assert_same_tree(scene.new if published else scene.old if force else {}, seen(elsewhere.target))
    assert scene.leftovers() == []
    assert scene.save(key, force=force).status == ("exists" if published and not force else "saved")


def assert_state(way: Way, scene: Scene, step: str) -> Snapshot:
    """Check what a killed restore left, and return what the target held before."""
    old = scene.old if way.place != "absent" else {}
    now, final = seen(scene.target), way.final(old, scene.new)
    if step not in MOVED and step not in END:
        assert_same_tree(old, now, ignore=("root",))
        assert {key: node.mode for key, node in now.items()} == {key: node.mode for key, node in old.items()}
    elif step in END[1:]:
        assert_same_tree(final, now, ignore=("root",))
    elif way.whole:
        assert content(now) in (content(old), content(scene.new))
    else:
        assert_each_whole(now, old, scene.new, all_there=way.mode == "merge")
    return old


def assert_ended(way: Way, scene: Scene, old: Snapshot, step: str) -> None:
    """Check that the target is one tree or the other to the last bit, and that nothing is left behind."""
    rolled_back = step in STAGING
    expected = old if rolled_back else way.final(old, scene.new)
    # Staging that was killed before its journal was written inside the target leaves no trace but its mtime.
    touched = way.place == "mounted" and step == "restore.staging-created"
    assert_same_tree(expected, seen(scene.target), ignore=("root",) if touched else ())
    assert scene.leftovers() == []
    assert scene.recover(named=True) == []
    assert scene.recover(named=False) == []


def results(lines: list[RecoverLine]) -> list[str]:
    """How recoveries ended."""
    return [line.result for line in lines]


@pytest.mark.parametrize(("way", "step"), cases(*WAYS))
def test_recover_after_a_kill(placed: Scene, way: str, step: str) -> None:
    """Before, a save refuses unless nothing was moved; after `recover` the target is the old tree or the new one."""
    one = WAYS[way]
    placed.kill(step, "restore", "--key", "new", *one.options)
    old = assert_state(one, placed, step)
    if step in MOVED:
        with pytest.raises(UnfinishedTarget):
            placed.save("probe", force=True)
    elif seen(placed.target):
        assert placed.save("probe", force=True).status == "saved"
    placed.assert_store_whole()
    early = step in {"restore.opened", "restore.staging-created"}  # no journal yet: only by its name
    ended = results(placed.recover(named=early))
    if early or step == "restore.cleaned":
        assert ended == []
    else:
        assert ended == ["rolled-back" if step in STAGING else "finished"]
    assert_ended(one, placed, old, step)


@pytest.mark.parametrize(("way", "step"), cases(*AGAIN))
def test_restore_again_after_a_kill(placed: Scene, way: str, step: str) -> None:
    """The same restore once more needs no `recover` and ends with the new tree."""
    one = WAYS[way]
    old = placed.old if one.place != "absent" else {}
    assert die_at(step, lambda: placed.restore(one.mode, extras=one.extras)) == -9
    assert placed.restore(one.mode, extras=one.extras).status == "exact"
    assert_ended(one, placed, old, "")


@pytest.mark.parametrize(("way", "step"), cases(*LOST))
def test_recover_without_the_state_directory(placed: Scene, way: str, step: str) -> None:
    """With the state directory lost, the journal beside or inside the named target is enough."""
    one = WAYS[way]
    old = placed.old if one.place != "absent" else {}
    assert die_at(step, lambda: placed.restore(one.mode, extras=one.extras)) == -9
    placed.forget_state()
    if step in MOVED:
        with pytest.raises(UnfinishedTarget):
            placed.save("probe", force=True)
    assert set(results(placed.recover(named=True))) <= {"finished", "rolled-back"}
    assert_ended(one, placed, old, step)


@pytest.mark.parametrize(("way", "step"), TWICE)
def test_recover_is_killed_too(scene: Scene, way: str, step: str) -> None:
    """Killed at any step of the recovery as well, the next one still ends with the new tree."""
    one = WAYS[way]
    seconds = [later for later in one.steps if later not in STAGING or one.mode == "in-place"]
    died = 0
    for number, second in enumerate(seconds):
        root = scene.root / str(number)
        root.mkdir()
        with PLACES[one.place](scene.at(root)) as placed:
            assert die_at(step, lambda: placed.restore(one.mode, extras=one.extras)) == -9
            code = die_at(second, lambda: placed.recover(named=True))
            assert code in (0, -9)
            died += code == -9
            placed.recover(named=True)
            assert_ended(one, placed, placed.old if one.place != "absent" else {}, step)
    assert died >= 3


def test_the_command_line_says_what_it_recovered(scene: Scene) -> None:
    """`recover` exits 0 with a line for each target, and then has nothing to do; a save between refuses with 8."""
    with PLACES["plain"](scene):
        scene.kill("commit.half", "restore", "--key", "new")
        refused = scene.cli("save", "--key", "probe", "--root", scene.root, "tree").expect(8)
        assert "cachekit recover" in refused.stderr
        first = scene.cli("recover", scene.target).expect(0)
        assert f"{scene.target}: finished" in first.stderr
        assert "nothing to recover" in scene.cli("recover", scene.target).expect(0).stderr
        assert_ended(WAYS["merge"], scene, scene.old, "commit.half")
