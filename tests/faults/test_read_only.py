"""Stores and targets that cannot be written: read what can be read, refuse the rest, remember what was refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.scenes import (
    KIB,
    KINDS,
    assert_clean,
    cut,
    entries,
    flip,
    quarantine,
    random_files,
    same_entries,
    saved,
    staging_in,
    tree_at,
)
from tests.support.capabilities import requires
from tests.support.cli import Cli, give
from tests.support.filesystems import Filesystem, of_kind
from tests.support.ordinary_user import NOBODY
from tests.support.snapshots import assert_same_tree, unchanged

TREE = random_files(6, 30 * KIB)


@contextmanager
def turned_read_only(disk: Filesystem) -> Iterator[None]:
    """Make a filesystem read-only for the length of a block."""
    disk.read_only()
    try:
        yield
    finally:
        disk.writable()


@pytest.mark.parametrize("kind", KINDS)
def test_a_read_only_store_is_read(kind: str, tmp_path: Path, cli: Cli) -> None:
    """A save to a read-only store is exit 9 with a sentence; restore, verify and ls work as ever."""
    tree = tree_at(tmp_path, TREE)
    with of_kind(kind) as disk:
        store = disk.path / "store"
        cli("save", "--store", store, "--key", "k-1", "tree").expect(0)
        with turned_read_only(disk), same_entries(store):
            for key in ("k-1", "k-2"):
                refused = cli("save", "--store", store, "--key", key, "tree").expect(9)
                assert "Read-only" in refused.stderr
            cli("restore", "--store", store, "--key", "k-1", "--root", tmp_path / "out").expect(0)
            cli("verify", "--store", store, "--all").expect(0)
            assert "k-1" in cli("ls", "--store", store).expect(0).stdout
        assert_same_tree(tree, tmp_path / "out" / "tree")


@requires("tmpfs")
def test_a_store_cannot_be_made_on_a_read_only_filesystem(tmp_path: Path, cli: Cli) -> None:
    """A new store below a read-only directory is exit 9 for save, and a miss for restore."""
    tree_at(tmp_path, TREE)
    with of_kind("tmpfs") as disk, turned_read_only(disk):
        cli("save", "--store", disk.path / "store", "--key", "k-1", "tree").expect(9)
        cli("restore", "--store", disk.path / "store", "--key", "k-1", "--fail-on-miss").expect(3)


@requires("ext4")
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_entry_on_a_read_only_store_is_remembered(damage: str, tmp_path: Path, cli: Cli) -> None:
    """What cannot be set aside goes on a deny list: not read again, an older entry serves instead."""
    tree = tree_at(tmp_path, TREE)
    with of_kind("ext4") as disk:
        store = disk.path / "store"
        saved(store, tmp_path, "k-old")
        saved(store, tmp_path, "k-new")
        entry = next(path for path in entries(store) if path.name.startswith("k-new-"))
        (cut if damage == "cut" else flip)(entry)
        command = ("restore", "--store", store, "--key", "k-new", "tree", "--json")
        with turned_read_only(disk), unchanged(tree):
            first = cli(*command).expect(0).json()
            assert first["status"] == "refused"
            second = cli(*command).expect(0).json()
            assert second["status"] == "refused"
            assert "before" in second["tried"][0]["reason"]
            cli(*command, "--strict").expect(4)
        with turned_read_only(disk):
            partial = cli(*command, "--restore-key", "k-", "--root", tmp_path / "out").expect(0).json()
            assert partial["matched_key"] == "k-old"
            assert_same_tree(tree, tmp_path / "out" / "tree")
        assert not quarantine(store)


@requires("ext4")
def test_a_remembered_entry_is_replaced_when_the_store_can_be_written(tmp_path: Path, cli: Cli) -> None:
    """A save of a denied key, once the store is writable again, publishes a whole entry, and restore uses that."""
    tree = tree_at(tmp_path, TREE)
    with of_kind("ext4") as disk:
        store = disk.path / "store"
        saved(store, tmp_path, "k-1")
        flip(entries(store)[0])
        restore = ("restore", "--store", store, "--key", "k-1", "--root", tmp_path / "out", "--json")
        with turned_read_only(disk):
            assert cli(*restore).expect(0).json()["status"] == "refused"
        assert (
            cli("save", "--store", store, "--key", "k-1", "tree", "--json").expect(0).json()["status"]
            == "saved"
        )
        assert_clean(store, 1)
        assert cli(*restore).expect(0).json()["status"] == "exact"
        assert_same_tree(tree, tmp_path / "out" / "tree")


@pytest.mark.parametrize("kind", KINDS)
def test_a_read_only_target_is_refused(kind: str, tmp_path: Path, cli: Cli) -> None:
    """A target on a read-only filesystem is exit 8, whatever the mode, and stays as it was."""
    tree_at(tmp_path, TREE)
    store = tmp_path / "store"
    saved(store, tmp_path, "k-1")
    with of_kind(kind) as disk:
        target = tree_at(disk.path, {"old": b"old"})
        with turned_read_only(disk), unchanged(target):
            for mode in ("--merge", "--replace", "--in-place"):
                refused = cli("restore", "--store", store, "--key", "k-1", "--root", disk.path, mode)
                assert "Read-only" in refused.expect(8).stderr
            absent = cli("restore", "--store", store, "--key", "k-1", "--root", disk.path / "none")
            assert "Read-only" in absent.expect(8).stderr


@requires("tmpfs")
def test_a_read_only_home_does_not_keep_from_restoring(tmp_path: Path, cli: Cli) -> None:
    """Where the user's own notes cannot be written, save and restore still work."""
    tree = tree_at(tmp_path, TREE)
    store = tmp_path / "store"
    with of_kind("tmpfs") as disk:
        state = {"CACHEKIT_STATE_DIR": str(disk.path / "state")}
        restore = ("restore", "--store", store, "--key", "k-1", "--root", tmp_path / "out")
        for _ in range(2):  # without the directory, then with it
            with turned_read_only(disk):
                cli("save", "--store", store, "--key", "k-1", "tree", "--force", env=state).expect(0)
                cli(*restore, env=state).expect(0)
                cli(*restore, "--replace", env=state).expect(0)
            assert_same_tree(tree, tmp_path / "out" / "tree")
            cli("restore", "--store", store, "--key", "k-1", "--root", tmp_path / "warm", env=state).expect(0)


@pytest.fixture
def private_store(open_path: Path, tmp_path: Path) -> Path:
    """A store of root's with one entry, k-1."""
    saved(open_path / "store", tree_at(tmp_path, TREE).parent, "k-1")
    return open_path / "store"


@requires("unprivileged")
def test_a_store_that_may_not_be_entered(private_store: Path, nobody_cli: Cli) -> None:
    """For who may not enter the store a save is exit 9, and a restore is unreadable, never a plain miss."""
    private_store.chmod(0o700)
    tree_at(nobody_cli.cwd, {"file": b"content"})
    with same_entries(private_store):
        refused = nobody_cli("save", "--store", private_store, "--key", "k-2", "tree").expect(9)
        assert "Permission denied" in refused.stderr
        report = nobody_cli("restore", "--store", private_store, "--key", "k-1", "--json").expect(0).json()
        assert report["status"] == "unreadable"
        nobody_cli("restore", "--store", private_store, "--key", "k-1", "--strict").expect(9)
        nobody_cli("restore", "--store", private_store, "--key", "k", "--restore-key", "k-").expect(0, 9)


@requires("unprivileged")
def test_a_store_that_may_be_read_only(private_store: Path, tmp_path: Path, nobody_cli: Cli) -> None:
    """Who may read the store restores from it; a damaged entry there is remembered, not tried again."""
    for folder, _, files in os.walk(private_store):
        os.chmod(folder, 0o755)
        for name in files:
            os.chmod(os.path.join(folder, name), 0o644)
    command = ("restore", "--store", private_store, "--key", "k-1", "--json")
    nobody_cli(*command).expect(0)
    assert_same_tree(tmp_path / "tree", nobody_cli.cwd / "tree")
    assert (nobody_cli.cwd / "tree").stat().st_uid == NOBODY
    nobody_cli("save", "--store", private_store, "--key", "k-2", "tree").expect(9)
    flip(entries(private_store)[0])
    with unchanged(nobody_cli.cwd / "tree"):
        assert nobody_cli(*command).expect(0).json()["status"] == "refused"
        assert "before" in nobody_cli(*command).expect(0).json()["tried"][0]["reason"]
    assert len(entries(private_store)) == 1


@requires("unprivileged")
def test_a_target_of_somebody_else(private_store: Path, nobody_cli: Cli, open_path: Path) -> None:
    """An ordinary user's restore over a tree of root's is exit 8, and the tree stays as it was."""
    give(private_store)
    target = tree_at(open_path / "theirs", {"old": b"old"})
    with unchanged(target):
        for mode in ("--merge", "--replace", "--in-place"):
            command = ("restore", "--store", private_store, "--key", "k-1", "--root", target.parent, mode)
            refused = nobody_cli(*command).expect(8)
            assert "Permission denied" in refused.stderr
    assert not staging_in(target.parent, target)
