"""Restoring to a filesystem with less room than the tree needs: refused, and the target as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachekit.errors import CachekitError, NoSpace
from cachekit.model import RestoreReport
from tests.faults.scenes import (
    KIB,
    KINDS,
    MIB,
    PERCENTS,
    error_of,
    polled,
    random_files,
    removed,
    restored,
    saved,
    set_quota,
    staging_in,
    text_files,
    tree_at,
    try_restore,
)
from tests.support import filesystems
from tests.support.capabilities import requires
from tests.support.cli import Cli
from tests.support.filesystems import of_kind
from tests.support.flaky import flaky
from tests.support.snapshots import assert_same_tree, unchanged

NEW = random_files(120, 20 * KIB) | text_files(4, 500 * KIB) | {"sub": random_files(3, 300 * KIB, seed=2)}
OLD = random_files(10, 9 * KIB, seed=3) | {"sub": {"kept": b"old"}, "extra": b"not in the entry"}
SIZE = 128 * 20 * KIB + 4 * 500 * KIB + 3 * 300 * KIB


def assert_refused(outcome: RestoreReport | CachekitError, *, foretold: bool) -> None:
    """Fail unless it is a refusal for lack of space; one that was foretold gives the figures."""
    assert isinstance(outcome, NoSpace), outcome
    if foretold:
        need, have = outcome.fields["need"], outcome.fields["have"]
        assert isinstance(need, int)
        assert isinstance(have, int)
        assert outcome.fields["short_by"] == need - have > 0


@pytest.mark.parametrize("mode", ["absent", "merge", "replace"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_room_smaller_than_the_tree_is_refused(kind: str, mode: str, tmp_path: Path) -> None:
    """With room for 5 to 95 % of the tree nothing is written, and no directory made for it stays."""
    new = tree_at(tmp_path / "source" / "a", NEW, "tree")
    store = tmp_path / "store"
    saved(store, tmp_path / "source", "k-1", "a/tree")
    how = "replace" if mode == "replace" else "merge"
    with of_kind(kind) as disk:
        root = disk.path / "root"
        root.mkdir()
        if mode != "absent":
            tree_at(root / "a", OLD)
        foretold = 0
        for percent in PERCENTS:
            disk.fill(SIZE * percent // 100)
            with unchanged(root / "a" / "tree"):
                outcome = try_restore(store, root, "k-1", mode=how)
                assert_refused(outcome, foretold=percent >= 75)
            assert isinstance(outcome, NoSpace)
            foretold += "short_by" in outcome.fields
            assert sorted(path.name for path in root.iterdir()) == ([] if mode == "absent" else ["a"])
            assert not staging_in(root, root / "a", root / "a" / "tree")
        assert foretold >= len(PERCENTS) // 4
        disk.fill(3 * SIZE + 8 * MIB)
        report = restored(store, root, "k-1", mode=how)
        if mode == "merge":
            assert report.extra == 2
            assert (root / "a" / "tree" / "extra").exists()
        else:
            assert_same_tree(new, root / "a" / "tree")
        assert not staging_in(root / "a")


@requires("fuse")
@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        pytest.param("tmpfs", "absent", marks=requires("tmpfs")),
        pytest.param("ext4", "merge", marks=requires("ext4")),
        pytest.param("xfs", "replace", marks=requires("xfs")),
        pytest.param("btrfs", "merge", marks=requires("btrfs")),
    ],
)
def test_another_writer_fills_the_disk_meanwhile(kind: str, mode: str, tmp_path: Path, cli: Cli) -> None:
    """When the disk becomes full while the entry is unpacked: exit 5, the target as it was, staging gone."""
    tree_at(tmp_path, random_files(12, MIB))
    with flaky(tmp_path / "backing") as slow, of_kind(kind) as disk:
        saved(slow.backing / "store", tmp_path, "k-1")
        target = disk.path / "root" / "tree"
        (disk.path / "root").mkdir()
        if mode != "absent":
            tree_at(target.parent, OLD)
        disk.fill(16 * MIB)
        slow.set_fault("read", delay=0.2)
        how = "--replace" if mode == "replace" else "--merge"
        with (
            unchanged(target),
            cli.start(
                "restore", "--store", slow.mount / "store", "--key", "k-1", "--root", target.parent, how
            ) as running,
        ):
            staged = disk.path / "root"
            polled(lambda: any(staged.glob(".cachekit-*/new/file*")), "the first file", lambda: running.alive)
            disk.fill(0)
            slow.clear()
            result = running.wait().expect(5)
        assert "became full" in result.stderr
        assert "the target is as it was" in result.stderr
        assert not staging_in(target.parent)


@requires("btrfs_quota")
@pytest.mark.parametrize("mode", ["absent", "merge", "replace"])
def test_a_quota_stops_the_unpacking(mode: str, tmp_path: Path, cli: Cli) -> None:
    """A quota is known by trying only: exit 5 naming it, the target as it was, staging and new parents gone."""
    tree_at(tmp_path / "source" / "a", random_files(12, MIB))
    store = tmp_path / "store"
    saved(store, tmp_path / "source", "k-1", "a/tree")
    with filesystems.btrfs() as disk:
        root = disk.quota(8 * MIB)
        if mode != "absent":
            tree_at(root / "a", OLD)
        how = "--replace" if mode == "replace" else "--merge"
        with unchanged(root / "a" / "tree"):
            result = cli("restore", "--store", store, "--key", "k-1", "--root", root, how).expect(5)
        assert "quota" in result.stderr
        assert not staging_in(root, root / "a")
        assert (root / "a").exists() == (mode != "absent")


@pytest.mark.parametrize("kind", [param for param in KINDS if param.values[0] in ("tmpfs", "ext4")])
def test_in_place_where_only_one_tree_fits(kind: str, tmp_path: Path, cli: Cli) -> None:
    """Where old and new tree do not fit beside each other, the refusal names --in-place, and that works."""
    new = tree_at(tmp_path, random_files(44, MIB, seed=5))
    store = tmp_path / "store"
    saved(store, tmp_path, "k-1")
    make = filesystems.tmpfs if kind == "tmpfs" else filesystems.ext4
    with make(90 * MIB) as disk:
        target = tree_at(disk.path, random_files(44, MIB, seed=6))
        disk.fill(40 * MIB)
        command = ("restore", "--store", store, "--key", "k-1", "--root", disk.path, "tree")
        with unchanged(target):
            refused = cli(*command, "--json").expect(5)
        assert "--in-place" in refused.stderr
        assert error_of(refused)["short_by"] > 0
        report = cli(*command, "--in-place", "--json").expect(0).json()
        assert report["commit"] == {"tree": "in-place"}
        assert_same_tree(new, target)
        assert not staging_in(disk.path)


@requires("tmpfs")
def test_what_the_refusal_suggests_works_for_a_small_tree_too(tmp_path: Path, cli: Cli) -> None:
    """A tree of a few megabytes with room for a half of it beside the old one is restored in place."""
    new = tree_at(tmp_path, random_files(12, MIB, seed=5))
    store = tmp_path / "store"
    saved(store, tmp_path, "k-1")
    with filesystems.tmpfs() as disk:
        target = tree_at(disk.path, random_files(12, MIB, seed=6))
        disk.fill(6 * MIB)
        command = ("restore", "--store", store, "--key", "k-1", "--root", disk.path, "tree")
        with unchanged(target):
            assert "--in-place" in cli(*command).expect(5).stderr
        cli(*command, "--in-place").expect(0)
        assert_same_tree(new, target)


@requires("tmpfs")
def test_in_place_is_refused_before_the_first_change(tmp_path: Path, cli: Cli) -> None:
    """Old files that the entry does not replace give no room back: refused at once, and not suggested before."""
    tree_at(tmp_path, random_files(12, MIB, seed=5))
    store = tmp_path / "store"
    saved(store, tmp_path, "k-1")
    others = {f"other-{name}": spec for name, spec in random_files(12, MIB, seed=6).items()}
    with filesystems.tmpfs() as disk:
        target = tree_at(disk.path, others)
        disk.fill(6 * MIB)
        command = ("restore", "--store", store, "--key", "k-1", "--root", disk.path, "tree")
        with unchanged(target):
            assert "--in-place" not in cli(*command).expect(5).stderr
            cli(*command, "--in-place").expect(5)
        assert not staging_in(disk.path)
        cli(*command, "--in-place", "--replace").expect(0)
        assert_same_tree(tmp_path / "tree", target)


@requires("btrfs_quota")
def test_a_restore_in_place_that_fails_says_so(tmp_path: Path, cli: Cli) -> None:
    """When the disk fills up in the middle, the message does not claim the old tree; the next run completes it."""
    new = tree_at(tmp_path, random_files(48, MIB, seed=5))
    store = tmp_path / "store"
    saved(store, tmp_path, "k-1")
    with filesystems.btrfs() as disk:
        root = disk.quota(40 * MIB)
        command = ("restore", "--store", store, "--key", "k-1", "--root", root, "tree", "--in-place")
        failed = cli(*command).expect(5)
        assert "as it was" not in failed.stderr
        assert "incomplete" in failed.stderr
        tree_before = root / "tree"
        if tree_before.exists():
            cli("save", "--store", store, "--key", "k-2", "--root", root, "tree").expect(8)
        set_quota(root, 64 * MIB)
        cli(*command).expect(0)
        assert_same_tree(new, root / "tree")


@pytest.mark.parametrize("kind", [param for param in KINDS if param.values[0] in ("tmpfs", "ext4")])
@pytest.mark.parametrize("left", [0, 3, 60])
def test_used_up_inodes_are_foretold(kind: str, left: int, tmp_path: Path, cli: Cli) -> None:
    """With bytes free and too few inodes a restore exits 5, saying so, with the target as it was."""
    tree_at(tmp_path, random_files(100, 100))
    store = tmp_path / "store"
    saved(store, tmp_path, "k-1")
    with filesystems.tmpfs(inodes=300) if kind == "tmpfs" else filesystems.ext4(inodes=300) as disk:
        target = tree_at(disk.path, {"old": b"old"})
        disk.use_up_inodes(left)
        for mode in ("--merge", "--replace"):
            with unchanged(target):
                refused = cli("restore", "--store", store, "--key", "k-1", "--root", disk.path, mode)
            assert "inode" in refused.expect(5).stderr
        absent = cli("restore", "--store", store, "--key", "k-1", "--root", disk.path / "absent")
        assert "inode" in absent.expect(5).stderr
        assert not (disk.path / "absent").exists()
        assert not staging_in(disk.path)


@requires("tmpfs")
def test_min_free_is_kept_free_in_the_target(tmp_path: Path, cli: Cli) -> None:
    """A tree that fits is refused if less than --min-free would be left."""
    tree_at(tmp_path, random_files(4, MIB))
    store = tmp_path / "store"
    saved(store, tmp_path, "k-1")
    with filesystems.tmpfs(16 * MIB) as disk:
        command = ("restore", "--store", store, "--key", "k-1", "--root", disk.path)
        cli(*command, "--min-free", "13M").expect(5)
        assert not list(disk.path.iterdir())
        cli(*command, "--min-free", "10M").expect(0)


@requires("xfs")
def test_a_full_home_does_not_keep_from_restoring(tmp_path: Path, cli: Cli) -> None:
    """Where the user's own notes cannot be written (the home is full), a restore elsewhere still works."""
    new = tree_at(tmp_path, {"file": b"content"})
    store = tmp_path / "store"
    saved(store, tmp_path, "k-1")
    with filesystems.xfs() as disk:
        state = disk.path / "state"
        restored(store, tmp_path / "warm", "k-1")
        environment = {"CACHEKIT_STATE_DIR": str(state)}
        cli("restore", "--store", store, "--key", "k-1", "--root", tmp_path / "first", env=environment)
        disk.fill(0)
        for number in ("second", "third"):
            root = tmp_path / number
            cli("restore", "--store", store, "--key", "k-1", "--root", root, env=environment).expect(0)
            assert_same_tree(new, root / "tree")
        removed(tmp_path / "first")
