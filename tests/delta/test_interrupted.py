"""Delta saves and restores in place that are killed, meet a full disk, a changing tree, or one another."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from cachekit.archive import record
from cachekit.archive.pack import Packer
from cachekit.cache import inplace
from cachekit.cache.save import save
from cachekit.cache.verify import VerifyRequest, verify
from cachekit.errors import NoSpace, SourceChanged
from tests.crash.scene import die_at
from tests.delta.scene import MIB, Scene, cutter, rewrite, settle
from tests.support.capabilities import requires
from tests.support.filesystems import tmpfs
from tests.support.snapshots import assert_same_tree, snapshot

SAVE_STEPS = ["save.walked", "save.reserved", "save.first-frame", "save.frames-written", "save.published"]
IN_PLACE_STEPS = [
    "inplace.marked",
    "commit.first-rename",
    "inplace.first-file",
    "inplace.files-done",
    "restore.journal-committing",
    "commit.root-finished",
    "restore.cleaned",
]


def whole(store: Path, count: int) -> None:
    """Fail unless the store has so many entries, whole to the last byte, and nothing unfinished."""
    verdicts = list(verify(VerifyRequest([], str(store), every=True)))
    assert [verdict.error for verdict in verdicts] == [None] * count
    assert not list((store / "v1/default/tmp").iterdir())


@pytest.mark.parametrize("step", SAVE_STEPS)
def test_a_killed_delta_save(scene: Scene, step: str) -> None:
    """Killed while frames are copied, the base is whole, and the next save is right."""
    scene.save("k-1")
    rewrite(scene.tree / "p1/f0", b"!" * 200)
    settle()
    assert die_at(step, lambda: save(scene.request("k-2"))) == -9
    report = scene.proved("k-3")
    assert report.copied_bytes
    scene.listed(report)
    whole(scene.store, 3 if step == "save.published" else 2)


@pytest.mark.parametrize("recorded", [True, False], ids=["record", "hash"])
@pytest.mark.parametrize("step", IN_PLACE_STEPS)
def test_a_killed_restore_in_place(scene: Scene, step: str, recorded: bool) -> None:
    """Killed anywhere, the next restore in place ends it, whatever the record of before says."""
    before = snapshot(scene.tree)
    scene.save("k-1")
    rewrite(scene.tree / "p1/f0", b"!" * 200)
    rewrite(scene.tree / "p3/sub/g0", b"?")
    (scene.tree / "p2/f3").unlink()
    (scene.tree / "p0/extra").write_bytes(b"extra")
    if not recorded:
        for path in scene.records.iterdir():
            path.unlink()
    settle()
    assert die_at(step, lambda: scene.in_place("k-1", replace_extras=True)) == -9
    scene.in_place("k-1", replace_extras=True)
    assert_same_tree(before, scene.tree)
    assert not list(scene.root.rglob(".cachekit-*"))
    report = scene.proved("k-2")
    assert report.copied_bytes


def test_a_killed_restore_then_another_entry(scene: Scene) -> None:
    """What a killed restore left is ended by a restore of another entry too."""
    scene.save("k-1")
    rewrite(scene.tree / "p1/f0", b"!" * 200)
    other = snapshot(scene.tree)
    scene.save("k-2")
    settle()
    assert die_at("inplace.first-file", lambda: scene.in_place("k-1")) == -9
    scene.in_place("k-2")
    assert_same_tree(other, scene.tree)
    assert scene.proved("k-3").copied_bytes


def test_two_at_once(scene: Scene) -> None:
    """Two restores in place of two entries: one after the other, and the tree is one of the two."""
    one = snapshot(scene.tree)
    scene.save("k-1")
    for path in scene.tree.rglob("f*"):
        rewrite(path, b"#" * path.stat().st_size)
    two = snapshot(scene.tree)
    scene.save("k-2")
    settle()
    for _ in range(3):
        children = []
        for key in ("k-1", "k-2"):
            pid = os.fork()
            if not pid:
                code = 99
                try:
                    scene.in_place(key)
                    code = 0
                finally:
                    os._exit(code)
            children.append(pid)
        assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0]
        assert snapshot(scene.tree) in (one, two)
    assert scene.proved("k-3").copied_bytes


@requires("tmpfs")
def test_a_disk_that_becomes_full_while_frames_are_copied(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The save says so, and leaves the base and nothing else."""
    dice = random.Random(1)
    for number in range(4):
        place = scene.tree / f"p{number}/sub" / cutter(f"tree/p{number}/sub")
        place.write_bytes(dice.randbytes(MIB))
    with tmpfs(16 * MIB) as disk:
        store = disk.path / "store"
        settle()
        save(scene.request("k-1", store=str(store)))
        rewrite(scene.tree / "p1/f0", b"!" * 200)
        settle()
        # What is reserved beforehand would not let it come so far.
        monkeypatch.setattr("cachekit.cache.saving._take_room", lambda *_: None)
        disk.fill(2 * MIB)
        with pytest.raises(NoSpace):
            save(scene.request("k-2", store=str(store)))
        whole(store, 1)


@pytest.mark.parametrize("how", ["skip", "refuse"])
def test_a_tree_that_changes_while_it_is_saved(
    scene: Scene, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that changes before it is read is saved as it is then; one that goes is left out, or refused."""
    scene.save("k-1")
    victim, gone = scene.tree / "p1/f0", scene.tree / "p3/f0"
    rewrite(victim, b"!" * 200)
    rewrite(gone, b"!" * 200)
    frame = Packer._frame

    def change(self: Packer, *args: object) -> object:
        if gone.exists():
            rewrite(victim, b"?" * 333)
            gone.unlink()
        return frame(self, *args)  # type: ignore[arg-type]

    settle()
    with monkeypatch.context() as patch:
        patch.setattr(Packer, "_frame", change)
        patch.setenv("CACHEKIT_WORKERS", "1")
        if how == "refuse":
            with pytest.raises(SourceChanged):
                save(scene.request("k-2", changed="refuse"))
        else:
            report = save(scene.request("k-2", changed="skip"))
            assert report.status == "saved"
            assert report.copied_bytes
            assert report.changed == ["tree/p3/f0"]
            assert record.load(bytes(scene.tree)) is None  # its rows would be others than the entry's
    whole(scene.store, 1 if how == "refuse" else 2)
    report = scene.proved("k-3")
    assert report.copied_bytes
    scene.listed(report)


def test_the_target_is_looked_at_before_it_is_marked(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restore that fails before its first change leaves no mark and no staging."""
    scene.save("k-1")
    rewrite(scene.tree / "p1/f0", b"!" * 200)
    before = snapshot(scene.tree)

    def full(*_: object, **__: object) -> None:
        raise NoSpace("full")

    monkeypatch.setattr(inplace, "require", full)
    with pytest.raises(NoSpace):
        scene.in_place("k-1")
    assert_same_tree(before, scene.tree)
    assert not list(scene.root.rglob(".cachekit-*"))
