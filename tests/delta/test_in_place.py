"""Restores in place after any edits: the tree of the entry exactly, and what was right is not touched."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachekit.archive import record
from cachekit.cache import inplace
from cachekit.cache.restore import RestoreRequest, restore
from tests.crash.scene import die_at
from tests.delta.scene import MIB, Scene, flip_frame, packages, prepared, rewrite, settle
from tests.delta.test_edits import EDITS, Edit, _directories, _files
from tests.support.capabilities import requires
from tests.support.snapshots import Snapshot, assert_same_tree, fingerprint, snapshot, unchanged
from tests.support.trees import Dir, File, HardLink, Sparse, Symlink, Tree, make_tree

MORE: Tree = {
    "kinds": Dir(
        {
            "hard": File(b"hard", mode=0o640),
            "link": Symlink("hard"),
            "linked": HardLink("p9/kinds/hard"),
            "sparse": Sparse(400_000, {200_000: b"data"}),
            "closed": Dir({"in": b"in"}, mode=0o500),
        },
        mode=0o750,
    ),
    "large": File(b"large" * (9 * MIB // 5)),
}


def forget(scene: Scene) -> None:
    """Lose the records."""
    shutil.rmtree(scene.records)


@settings(max_examples=7)
@given(
    seed=st.integers(0, 1 << 30),
    between=st.lists(st.sampled_from(EDITS), max_size=3),
    edits=st.lists(st.sampled_from(EDITS), max_size=4),
    recorded=st.booleans(),
    extras=st.booleans(),
    plain=st.booleans(),
)
def test_any_edits(
    seed: int, between: list[Edit], edits: list[Edit], recorded: bool, extras: bool, plain: bool
) -> None:
    """Over any edited tree the entry's tree comes out, of the same or an earlier entry, with or without a record."""
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as base, prepared(Path(base, "state")):
        scene = Scene(Path(base)).made(packages(2))
        scene.save("k-1")
        first = snapshot(scene.tree, owners=False)
        for edit in between:
            edit(dice, scene.tree, _files(scene.tree), _directories(scene.tree))
        scene.save("k-2")
        for edit in edits:
            if _files(scene.tree):
                edit(dice, scene.tree, _files(scene.tree), _directories(scene.tree))
        if not recorded:
            forget(scene)
        if plain:
            scene.restore("k-1", mode="replace")
            assert_same_tree(first, scene.tree)
        settle()
        scene.in_place("k-1", replace_extras=extras, keep_setuid=True)
        found = snapshot(scene.tree)
        if not extras:
            found = _without_extras(found, first)
        assert_same_tree(first, found)
        report = scene.proved("k-3")
        assert report.copied_bytes
        assert not list(scene.root.glob(".cachekit-*"))


def _without_extras(found: Snapshot, entry: Snapshot) -> Snapshot:
    return {path: node for path, node in found.items() if path in entry}


@pytest.fixture
def full(scene: Scene) -> Scene:
    """The scene with every kind of member, saved as ``k-1``."""
    make_tree(scene.tree, {"p9": {}})
    make_tree(scene.tree / "p9", {key: node for key, node in MORE.items() if key != "kinds"})
    kinds = MORE["kinds"]
    assert isinstance(kinds, Dir)
    entries = {**kinds.entries, "linked": HardLink("hard")}
    make_tree(scene.tree / "p9/kinds", Dir(entries, mode=kinds.mode))
    scene.save("k-1")
    settle()
    return scene


@pytest.mark.parametrize("extras", [False, True], ids=["merge", "replace"])
def test_nothing_to_do(full: Scene, extras: bool) -> None:
    """Where all is right by the record nothing is touched, not even the change time of a directory."""
    with unchanged(full.root):
        report = full.in_place("k-1", replace_extras=extras)
    assert report.unchanged == report.files - 1  # a further name is no file of its own


def test_nothing_to_do_without_a_record(scene: Scene) -> None:
    """Where hashing shows that all is right nothing is touched either."""
    scene.save("k-1")
    forget(scene)
    with unchanged(scene.root):
        report = scene.in_place("k-1")
    assert report.unchanged == report.files


@pytest.mark.parametrize("recorded", [True, False], ids=["record", "hash"])
def test_every_kind_comes_back(full: Scene, recorded: bool) -> None:
    """Links, sparse and large files, closed directories: as they were, whatever became of them."""
    before = snapshot(full.tree, owners=True)
    kinds = full.tree / "p9/kinds"
    (kinds / "closed").chmod(0o700)
    (kinds / "closed/in").unlink()
    (kinds / "closed/in").mkdir()
    (kinds / "link").unlink()
    (kinds / "link").symlink_to("other")
    (kinds / "linked").unlink()
    (kinds / "linked").write_bytes(b"hard")
    (kinds / "sparse").write_bytes(b"full")
    with (full.tree / "p9/large").open("r+b") as file:
        file.seek(8 * MIB + 5)
        file.write(b"other")
    shutil.rmtree(full.tree / "p0")
    (full.tree / "p0").write_bytes(b"a file now")
    (full.tree / "p1").rename(full.root / "moved")
    (full.tree / "p1").symlink_to(full.root / "moved")
    (full.tree / "extra").write_bytes(b"extra")
    if not recorded:
        forget(full)
    outside = fingerprint(full.root / "moved")
    full.in_place("k-1", replace_extras=True)
    assert_same_tree(before, snapshot(full.tree, owners=True))
    assert fingerprint(full.root / "moved") == outside
    report = full.proved("k-2")
    assert report.copied_bytes
    full.listed(report)


def test_extras(scene: Scene) -> None:
    """What the entry does not have stays, unless --replace takes it away."""
    before = snapshot(scene.tree)
    scene.save("k-1")
    make_tree(scene.tree / "extra", {"file": b"extra", "below": {"file": b"extra"}})
    (scene.tree / "p1/extra").write_bytes(b"extra")
    scene.in_place("k-1")
    assert (scene.tree / "p1/extra").exists()
    assert (scene.tree / "extra/below/file").exists()
    scene.in_place("k-1", replace_extras=True)
    assert_same_tree(before, scene.tree)


def test_another_entry_of_the_family(scene: Scene) -> None:
    """Of a tree in which one package of many changed all but its files are right by the record."""
    before = snapshot(scene.tree)
    scene.save("k-1")
    for path in (scene.tree / "p2").rglob("f*"):
        path.write_bytes(b"another release")
    scene.save("k-2")
    settle()
    report = scene.in_place("k-1", replace_extras=True)
    assert_same_tree(before, scene.tree)
    assert report.unchanged == report.files - 4
    saved = scene.proved("k-3")
    assert saved.base == "k-1"
    assert saved.copied_bytes


def test_a_record_spares_hashing(full: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the record shows right is not read."""

    def hashed(*_: object) -> bytes:
        raise AssertionError("a file was read")

    from cachekit.cache import present

    monkeypatch.setattr(present, "content_digest", hashed)
    full.in_place("k-1")
    forget(full)
    with pytest.raises(AssertionError, match="was read"):
        full.in_place("k-1")


@pytest.mark.parametrize("mode", ["merge", "replace"])
def test_a_delta_save_after_a_plain_restore(full: Scene, mode: str) -> None:
    """A restored tree is known: a save of it copies all but what was changed since."""
    shutil.rmtree(full.tree)
    full.restore("k-1", mode=mode)
    report = full.proved("k-2")
    assert report.unchanged
    rewrite(full.tree / "p0/f0", b"!" * 200)
    report = full.proved("k-3")
    assert not report.unchanged
    assert report.copied_bytes
    full.listed(report)


@pytest.mark.parametrize("mode", ["merge", "in-place"])
def test_what_was_just_restored_is_not_recorded(
    scene: Scene, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that may change further without another ctime is hashed by the next save."""
    scene.save("k-1")
    monkeypatch.setattr(record, "_TICK_NS", 600_000_000_000)
    if mode == "merge":
        shutil.rmtree(scene.tree)
    scene.restore("k-1", mode=mode)
    known = record.load(bytes(scene.tree))
    assert known is not None
    assert set(known.ctimes) == {record.UNKNOWN}


def test_setuid_bits(scene: Scene) -> None:
    """Without --keep-setuid a file that has the bit loses it in place; with it the bit is kept."""
    (scene.tree / "p0/f0").chmod(0o4755)
    scene.save("k-1")
    settle()
    scene.in_place("k-1")
    assert (scene.tree / "p0/f0").stat().st_mode & 0o7777 == 0o755
    scene.in_place("k-1", keep_setuid=True)
    assert (scene.tree / "p0/f0").stat().st_mode & 0o7777 == 0o4755


def test_a_damaged_frame_that_is_needed(scene: Scene) -> None:
    """It is found before one byte changes, and the entry is set aside."""
    first = scene.save("k-1")
    (scene.tree / "p0/f0").write_bytes(b"other")
    flip_frame(scene.entry(first), 0)
    settle()
    with unchanged(scene.tree):
        report = restore(RestoreRequest("k-1", str(scene.store), root=str(scene.root), mode="in-place"))
    assert report.status == "refused"
    assert len(scene.quarantine()) == 1


def test_a_damaged_frame_that_is_not_needed(scene: Scene) -> None:
    """What is right already needs no frame: the restore succeeds, and a save then makes the frame anew."""
    before = snapshot(scene.tree)
    first = scene.save("k-1")
    (scene.tree / "p0/f0").write_bytes(b"other")
    flip_frame(scene.entry(first), 4)
    settle()
    scene.in_place("k-1")
    assert_same_tree(before, scene.tree)
    report = scene.proved("k-2")
    scene.listed(report)
    assert len(scene.quarantine()) == 1


def test_a_file_that_changes_between_look_and_write(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may survive the restore, but no record says that it is right: the next one puts it right."""
    before = snapshot(scene.tree)
    scene.save("k-1")
    (scene.tree / "p0/f0").write_bytes(b"other")
    settle()
    needed = inplace.needed_frames

    def change(*args: object) -> list[int]:
        rewrite(scene.tree / "p1/f0", b"!" * 200)
        return needed(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(inplace, "needed_frames", change)
        scene.in_place("k-1")
    report = scene.proved("k-2")
    assert not report.unchanged
    scene.listed(report)
    scene.in_place("k-1")
    assert_same_tree(before, scene.tree)


@requires("root", "unprivileged")
@pytest.mark.parametrize("edit", ["mode", "time", "content"])
@pytest.mark.usefixtures("scene")  # for the state directory: what an ordinary user is to reach lies elsewhere
def test_over_files_of_another_user(open_path: Path, edit: str) -> None:
    """Files of others in directories of ours are replaced where they cannot be changed."""
    scene = Scene(open_path).made(packages())
    before = snapshot(scene.tree)
    scene.save("k-1")
    for path in [scene.tree, *scene.tree.rglob("*")]:
        os.chown(path, 65534 if path.is_dir() else 0, 65534 if path.is_dir() else 0)
    victim = scene.tree / "p0/f0"
    if edit == "mode":
        victim.chmod(0o664)
    elif edit == "time":
        os.utime(victim, ns=(1, 1))
    else:
        victim.write_bytes(b"other")
    os.chown(scene.root, 65534, 65534)
    for path in scene.store.rglob("*"):
        path.chmod(0o755)
    scene.store.chmod(0o755)
    state = scene.base / "nobody-state"
    state.mkdir()
    os.chown(state, 65534, 65534)

    def as_nobody() -> None:
        os.environ["CACHEKIT_STATE_DIR"] = str(state)
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        scene.in_place("k-1")

    assert die_at("never", as_nobody) == 0
    assert_same_tree(before, scene.tree)
