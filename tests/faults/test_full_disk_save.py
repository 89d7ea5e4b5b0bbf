"""Saving to a store whose filesystem has less room than the entry needs: refused, and as if never begun."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cachekit.errors import CachekitError, NoSpace
from cachekit.model import SaveReport
from tests.faults.scenes import (
    KIB,
    KINDS,
    MIB,
    PERCENTS,
    assert_clean,
    entries,
    error_of,
    leftovers,
    part_of_store,
    polled,
    random_files,
    same_entries,
    saved,
    text_files,
    tree_at,
    try_save,
    zero_files,
)
from tests.support import filesystems
from tests.support.capabilities import requires
from tests.support.cli import Cli
from tests.support.filesystems import Filesystem, of_kind
from tests.support.filling import free_bytes
from tests.support.flaky import flaky

CONTENT = {"random": random_files(24, 200 * KIB), "text": text_files(24, 400 * KIB)}


def in_steps(disk: Filesystem, store: Path, root: Path, archive: int, key: str) -> list[CachekitError]:
    """Save with every room; check the store after each attempt; return the refusals."""
    refusals = []
    for percent in PERCENTS:
        disk.fill(archive * percent // 100)
        before = entries(store)
        outcome = try_save(store, root, f"{key}{percent}")
        if isinstance(outcome, SaveReport):
            assert outcome.status == "saved"
            assert_clean(store, len(before) + 1)
            (fresh,) = set(entries(store)) - set(before)
            fresh.unlink()
            continue
        assert outcome.exit_code == 5, (percent, outcome)
        refusals.append(outcome)
        assert entries(store) == before, percent
        assert_clean(store, len(before))
    return refusals


@pytest.mark.parametrize("content", sorted(CONTENT))
@pytest.mark.parametrize("kind", KINDS)
def test_a_room_smaller_than_the_archive_is_refused(kind: str, content: str, tmp_path: Path) -> None:
    """With room for 5 to 95 % of the archive a save says what it lacks and leaves the store as it was."""
    tree_at(tmp_path, CONTENT[content])
    archive = saved(tmp_path / "measure", tmp_path, "a-1").archive_bytes
    with of_kind(kind) as disk:
        store = disk.path / "store"
        saved(store, tree_at(tmp_path, random_files(3, 5000), "small").parent, "old-1", "small")
        refusals = in_steps(disk, store, tmp_path, archive, "new-")
        assert len(refusals) == len(PERCENTS)
        foretold = [error.fields for error in refusals if "short_by" in error.fields]
        if (
            kind != "btrfs"
        ):  # takes nothing at all below 2 MiB, so there it fails before anything can be compared
            assert len(foretold) >= len(PERCENTS) * 3 // 4
        for fields in foretold:
            need, have, short = fields["need"], fields["have"], fields["short_by"]
            assert isinstance(need, int)
            assert isinstance(have, int)
            assert short == need - have > 0
            assert need >= archive
        disk.fill(4 * archive + 8 * MIB)
        saved(store, tmp_path, "new-fits")
        assert_clean(store, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_becomes_full_while_writing(kind: str, tmp_path: Path) -> None:
    """Where the family promised a small archive and a large one comes, writing fails and nothing is left."""
    size = 200 * KIB if kind == "btrfs" else 90 * KIB  # btrfs has no use for the last two megabytes
    tree_at(tmp_path, zero_files(24, size), "zeros")
    tree_at(tmp_path, random_files(24, size))
    archive = saved(tmp_path / "measure", tmp_path, "a-1").archive_bytes
    with of_kind(kind) as disk:
        store = disk.path / "store"
        saved(store, tmp_path, "grown-1", "zeros")
        refusals = in_steps(disk, store, tmp_path, archive, "grown-")
        assert len(refusals) == len(PERCENTS)
        while_writing = [error for error in refusals if "short_by" not in error.fields]
        assert len(while_writing) >= len(PERCENTS) // 2
        assert all("full" in error.message for error in while_writing)


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_says_need_have_and_short_by(kind: str, tmp_path: Path, cli: Cli) -> None:
    """The command exits 5 with the three figures, and the command after it finds the store as it was."""
    tree_at(tmp_path, CONTENT["random"])
    with of_kind(kind) as disk:
        store = disk.path / "store"
        cli("save", "--store", store, "--key", "old-1", "tree").expect(0)
        disk.fill(3 * MIB)
        with same_entries(store):
            refused = cli("save", "--store", store, "--key", "new-1", "tree", "--json").expect(5)
        error = error_of(refused)
        assert error["id"] == "no-space"
        assert error["short_by"] == error["need"] - error["have"]
        assert "short by" in refused.stderr
        assert "hint:" in refused.stderr
        cli("save", "--store", store, "--key", "new-1", "tree", "--soft-fail").expect(0)
        cli("verify", "--store", store, "--all").expect(0)
        cli("restore", "--store", store, "--key", "old-1", "--root", tmp_path / "out").expect(0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_that_is_full_from_the_start(kind: str, tmp_path: Path) -> None:
    """Where not even an empty store fits, saving is refused for lack of space, and works once there is some."""
    tree_at(tmp_path, {"file": b"content"})
    with of_kind(kind) as disk:
        disk.fill(0)
        outcome = try_save(disk.path / "store", tmp_path, "a-1")
        assert isinstance(outcome, NoSpace), outcome
        disk.fill(16 * MIB)
        saved(disk.path / "store", tmp_path, "a-1")
        assert_clean(disk.path / "store", 1)


@requires("fuse")
@pytest.mark.parametrize("kind", KINDS)
def test_the_room_is_reserved_and_given_back(kind: str, tmp_path: Path, cli: Cli) -> None:
    """While an entry is written its room is taken already for everybody to see; afterwards it has its own size."""
    tree = zero_files(8, MIB) | random_files(4, MIB)
    with flaky(tmp_path / "backing") as source, of_kind(kind) as disk:
        tree_at(source.backing, tree)
        store = disk.path / "store"
        saved(store, tree_at(tmp_path, {"file": b""}, "small").parent, "old-1", "small")
        before = free_bytes(disk.path)
        source.set_fault("read", delay=0.05)
        with cli.start(
            "save", "--store", store, "--key", "a-1", "--root", source.mount, "tree", "--json"
        ) as running:
            polled(
                lambda: before - free_bytes(disk.path) > 11 * MIB, "the reservation", lambda: running.alive
            )
            (unfinished,) = leftovers(store)
            assert (part_of_store(store, "tmp") / unfinished).stat().st_size < 4 * MIB
            report = running.wait().expect(0).json()
        entry = next(path for path in entries(store) if path.name.startswith("a-1-"))
        assert entry.stat().st_size == report["archive_bytes"]
        assert entry.stat().st_blocks * 512 < report["archive_bytes"] + 256 * KIB
        assert before - free_bytes(disk.path) < report["archive_bytes"] + 5 * MIB // 4


@requires("tmpfs")
def test_min_free_is_kept_free_besides(tmp_path: Path, cli: Cli) -> None:
    """An entry that fits is refused if less than --min-free would be left, with the figures of both."""
    tree_at(tmp_path, random_files(4, MIB))
    with filesystems.tmpfs() as disk:
        store = disk.path / "store"
        cli("save", "--store", store, "--key", "a-1", "tree").expect(0)
        disk.fill(8 * MIB)
        with same_entries(store):
            refused = cli("save", "--store", store, "--key", "a-2", "tree", "--min-free", "6M", "--json")
        error = error_of(refused.expect(5))
        assert error["min_free"] == 6 * MIB
        assert error["short_by"] == error["need"] + 6 * MIB - error["have"]
        cli("save", "--store", store, "--key", "a-2", "tree", "--min-free", "2M").expect(0)
        assert_clean(store, 2)


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("kind", [param for param in KINDS if param.values[0] in ("tmpfs", "ext4")])
def test_used_up_inodes_are_named(kind: str, left: int, tmp_path: Path, cli: Cli) -> None:
    """With bytes free and no inode left a save exits 5, and says that it is inodes that are missing."""
    tree_at(tmp_path, {"file": b"content"})
    with filesystems.tmpfs(inodes=400) if kind == "tmpfs" else filesystems.ext4(inodes=400) as disk:
        store = disk.path / "store"
        cli("save", "--store", store, "--key", "a-1", "tree").expect(0)
        disk.use_up_inodes(left)
        with same_entries(store):
            refused = cli("save", "--store", store, "--key", "a-2", "tree").expect(5)
        assert "inode" in refused.stderr
        assert_clean(store, 1)


@pytest.mark.parametrize("kind", [param for param in KINDS if param.values[0] in ("tmpfs", "ext4")])
def test_a_store_for_which_there_are_too_few_inodes(kind: str, tmp_path: Path, cli: Cli) -> None:
    """A store that cannot be made for lack of inodes is exit 5, and is completed by the first save after that."""
    tree_at(tmp_path, {"file": b"content"})
    with filesystems.tmpfs(inodes=400) if kind == "tmpfs" else filesystems.ext4(inodes=400) as disk:
        disk.use_up_inodes(100)
        refused = cli("save", "--store", disk.path / "store", "--key", "a-1", "tree").expect(5)
        assert "inode" in refused.stderr
        for folder in disk.path.glob(".inodes-*"):
            for path in folder.iterdir():
                path.unlink()
        cli("save", "--store", disk.path / "store", "--key", "a-1", "tree").expect(0)
        assert_clean(disk.path / "store", 1)


@requires("btrfs_quota")
@pytest.mark.parametrize("foretold", [True, False])
def test_a_quota_is_exit_5(foretold: bool, tmp_path: Path, cli: Cli) -> None:
    """A quota that statvfs knows nothing of stops the reservation, or else a write in its middle: exit 5."""
    tree_at(tmp_path, zero_files(15, 200 * KIB), "zeros")
    tree_at(tmp_path, random_files(50, 200 * KIB))
    with filesystems.btrfs() as disk:
        store = disk.quota(6 * MIB) / "store"
        cli("save", "--store", store, "--key", "a-1", "zeros", "--family", "f").expect(0)
        family = "other" if foretold else "f"
        with same_entries(store):
            refused = cli("save", "--store", store, "--key", "a-2", "tree", "--family", family).expect(5)
        assert "quota" in refused.stderr
        assert_clean(store, 1)


@requires("tmpfs")
def test_an_entry_on_a_full_disk_is_still_found_to_exist(tmp_path: Path, cli: Cli) -> None:
    """Saving a key that exists needs no room, so a full disk does not make it fail."""
    tree_at(tmp_path, {"file": random.Random(1).randbytes(9000)})
    with filesystems.tmpfs() as disk:
        cli("save", "--store", disk.path / "store", "--key", "a-1", "tree").expect(0)
        disk.fill(0)
        report = (
            cli("save", "--store", disk.path / "store", "--key", "a-1", "tree", "--json").expect(0).json()
        )
        assert report["status"] == "exists"
