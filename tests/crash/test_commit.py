"""The file system refuses in the middle of a commit: put back if that is possible, else kept to be finished."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from cachekit.errors import TargetNotWritable, UnfinishedTarget
from cachekit.system.locks import try_lock
from cachekit.targets import finish as finishing
from cachekit.targets import staging
from cachekit.targets.commit import commit
from cachekit.targets.journal import Journal
from cachekit.targets.staging import left_behind, make_staging, open_staging
from tests.crash.scene import OLD, PLACES, Scene, die_at, merged, seen
from tests.support import filesystems
from tests.support.capabilities import requires
from tests.support.snapshots import assert_same_tree, fingerprint, unchanged
from tests.support.trees import make_tree


class Failing:
    """Renames fail from the `number`-th on within a commit, `times` times."""

    def __init__(self, patch: pytest.MonkeyPatch, number: int, times: int = 1) -> None:
        self.happened = False
        self._armed, self._left, self._times = False, number, times
        self._rename, self._commit = os.rename, commit
        patch.setattr(os, "rename", self.rename)
        patch.setattr(finishing, "commit", self.commit)

    def rename(self, *args: Any, **named: Any) -> None:
        """Rename, or fail."""
        if self._armed:
            self._left -= 1
            if -self._times < self._left <= 0:
                self.happened = True
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._rename(*args, **named)

    def commit(self, *args: Any, **named: Any) -> Any:
        """Commit, armed."""
        self._armed = True
        try:
            return self._commit(*args, **named)
        finally:
            self._armed = False


@requires("tmpfs")
def test_a_replace_by_children_that_fails_is_put_back(scene: Scene) -> None:
    """Whichever of its renames fails, the old tree is there again to the last bit, and nothing is left."""
    number = 0
    while True:
        number += 1
        root = scene.root / str(number)
        root.mkdir()
        with PLACES["mounted"](scene.at(root)) as placed, pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch, number)
            if number > 60:
                placed.restore("replace")
                assert not failing.happened
                break
            try:
                placed.restore("replace")
            except TargetNotWritable:
                assert failing.happened
                assert_same_tree(scene.old, placed.target)
                assert placed.leftovers() == []
            else:
                break
    assert number > 10


def test_a_merge_that_fails_at_once_leaves_no_trace(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """If nothing was moved yet, the target is as it was and a save of it is welcome."""
    make_tree(scene.target, OLD)
    failing = Failing(monkeypatch, 1)
    with pytest.raises(TargetNotWritable, match="Input/output error"):
        scene.restore("merge")
    assert failing.happened
    assert_same_tree(scene.old, scene.target, ignore=("mode",))
    assert scene.leftovers() == []
    assert scene.save("probe", force=True).status == "saved"


def test_a_merge_that_fails_later_is_finished_by_recover(scene: Scene) -> None:
    """What was moved stays; until it is finished the target is called incomplete, and a save refuses."""
    make_tree(scene.target, OLD)
    with pytest.MonkeyPatch.context() as patch:
        failing = Failing(patch, 3)
        with pytest.raises(UnfinishedTarget):
            scene.restore("merge")
    assert failing.happened
    with pytest.raises(UnfinishedTarget):
        scene.save("probe", force=True)
    assert [line.result for line in scene.recover(named=False)] == ["finished"]
    assert_same_tree(merged(scene.old, scene.new), scene.target)
    assert scene.leftovers() == []


@requires("tmpfs")
@pytest.mark.parametrize("step", ["commit.before-rename", "commit.old-aside", "commit.half"])
@pytest.mark.parametrize("number", range(1, 9))
def test_a_recovery_that_fails_never_undoes_what_it_does_not_know(
    scene: Scene, step: str, number: int
) -> None:
    """After a kill and a failing `recover`, the next `recover` still has everything and ends with the new tree."""
    with PLACES["mounted"](scene) as placed:
        assert die_at(step, lambda: placed.restore("replace")) == -9
        with pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch, number)
            lines = placed.recover(named=True)
        if failing.happened:
            assert [line.result for line in lines] == ["unfinished"]
            assert "Input/output error" in str(lines[0].reason)
            assert [line.result for line in placed.recover(named=True)] == ["finished"]
        assert_same_tree(scene.new, placed.target)
        assert placed.leftovers() == []


def test_a_target_that_cannot_be_recovered_does_not_keep_others_waiting(scene: Scene) -> None:
    """`recover` goes through all targets, exits 8 for the one that fails, and says why."""
    scenes = [scene.at(scene.root / name) for name in ("a", "b")]
    for one in scenes:
        one.root.mkdir()
        make_tree(one.target, OLD)
        one.kill("commit.half", "restore", "--key", "new")
    [left] = scenes[0].root.glob(".cachekit-*")
    (left / "directories.json").write_text("[]")
    (left / "new").rename(left / "moved")
    (left / "new").symlink_to("moved")  # not what was staged: refused by the kernel, not followed
    done = scene.cli("recover").expect(8)
    assert f"{scenes[0].target}: not finished" in done.stderr
    assert f"{scenes[1].target}: finished" in done.stderr
    assert_same_tree(merged(scene.old, scene.new), scenes[1].target)


@requires("tmpfs")
@pytest.mark.parametrize("mode", ["merge", "replace", "in-place"])
def test_a_mount_where_the_entry_has_files_is_refused_before(scene: Scene, mode: str) -> None:
    """Nothing can be renamed across it: exit 8 and nothing is touched, in every mode."""
    make_tree(scene.target, OLD)
    with filesystems.tmpfs(at=scene.target / "dir"):
        (scene.target / "dir/inside").write_text("x")
        options = ("--store", scene.store, "--root", scene.root, f"--{mode}")
        with unchanged(scene.target):
            done = scene.cli("restore", "--key", "new", *options).expect(8)
    assert (
        f"mounted inside the target, where the entry has files; nothing was written: {scene.target}/dir"
        in (done.stderr.replace("\n  path:", ":"))
    )
    assert scene.leftovers() == []


@requires("tmpfs")
def test_a_mount_where_the_entry_has_nothing_stays(scene: Scene) -> None:
    """A replace becomes a merge, says so, and neither moves nor empties what is mounted."""
    make_tree(scene.target, OLD)
    with filesystems.tmpfs(at=scene.target / "gone"):
        (scene.target / "gone/precious").write_text("x")
        report = scene.restore("replace")
        assert any("something is mounted in it" in warning for warning in report.warnings)
        assert (scene.target / "gone/precious").read_text() == "x"
        assert (scene.target / "only-new").exists()
    assert scene.leftovers() == []


# Staging directories that meet other processes


def test_staging_taken_for_abandoned_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its making and its lock another process may remove it: then there is another one, and no error."""
    target = tmp_path / "tree"
    seen_names: list[list[str]] = []

    def swept_once(name: str) -> None:
        if name == "restore.staging-created":
            seen_names.append([path.name for path in tmp_path.glob(".cachekit-*")])
            assert left_behind(os.fsencode(tmp_path / "neighbour")) == []

    monkeypatch.setattr(staging, "step", swept_once)
    made = make_staging(os.fsencode(target), "merge", {})
    assert [path.name for path in tmp_path.glob(".cachekit-*")] != seen_names[0]
    made.abandon()
    made.close()
    assert list(tmp_path.glob(".cachekit-*")) == []


def test_staging_removed_before_it_was_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same when the other process removes it after it was opened: a lock on a removed directory is none."""
    first = [True]

    def remove_then_lock(fd: int) -> bool:
        if first.pop() if first else False:
            os.rmdir(os.readlink(f"/proc/self/fd/{fd}"))
        return try_lock(fd)

    monkeypatch.setattr(staging, "try_lock", remove_then_lock)
    made = make_staging(os.fsencode(tmp_path / "tree"), "merge", {})
    assert not first
    assert len(list(tmp_path.glob(".cachekit-*"))) == 1
    made.abandon()
    made.close()


def test_staging_of_a_live_restore_is_not_swept(tmp_path: Path) -> None:
    """With its lock held, it is neither removed nor opened by anybody else, with or without a journal."""
    made = make_staging(os.fsencode(tmp_path / "tree"), "merge", {})
    (path,) = tmp_path.glob(".cachekit-*")
    assert open_staging(made.journal) is None
    (path / "journal.json").unlink()
    assert left_behind(os.fsencode(tmp_path / "tree")) == []
    assert path.exists()
    made.abandon()
    made.close()


def test_a_restore_of_a_neighbour_is_not_ours(scene: Scene) -> None:
    """Staging beside the target that belongs to another target is left alone."""
    make_tree(scene.target, OLD)
    scene.kill("commit.half", "restore", "--key", "new")
    neighbour = os.fsencode(scene.root / "neighbour")
    assert left_behind(neighbour) == []
    assert len(left_behind(os.fsencode(scene.target))) == 1


def test_a_tree_that_was_moved_is_recovered_where_it_is(scene: Scene) -> None:
    """The journal is known by where it lies: the directory around the target may have been renamed meanwhile."""
    make_tree(scene.target, OLD)
    scene.kill("commit.half", "restore", "--key", "new")
    scene.root.rename(scene.root.parent / "moved")
    moved = scene.at(scene.root.parent / "moved")
    with pytest.raises(UnfinishedTarget):
        moved.save("probe", force=True)
    assert [line.result for line in moved.recover(named=True)] == ["finished"]
    assert_same_tree(merged(scene.old, scene.new), moved.target)
    moved.recover(named=False)  # forgets what the state directory had of the old place
    assert moved.leftovers() == []


@requires("root")
def test_what_another_user_laid_down_is_not_moved(tmp_path: Path) -> None:
    """In a directory that everybody may write to, a planted journal moves nothing into our target."""
    tmp_path.chmod(0o1777)
    target = make_tree(tmp_path / "tree", {"file": b"ours"})
    planted = tmp_path / ".cachekit-0123456789abcdef"
    journal = Journal(os.fsencode(target), os.fsencode(planted), "replace", inside=False, phase="committing")
    make_tree(planted, {"new": {"file": b"theirs"}, "journal.json": journal.dump()})
    os.chown(planted, 12345, 12345)
    before = fingerprint(target)
    with pytest.raises(TargetNotWritable, match="another user"):
        finishing.recover(os.fsencode(target))
    assert fingerprint(target) == before
    assert seen(target)
    assert Journal.load(b"{}") is None
    assert Journal.load(journal.dump()) == journal
