"""A store whose disk answers with errors, or lies: nothing half is published or restored."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path
from typing import Any, Literal

import pytest

from cachekit.cache.verify import VerifyRequest, verify
from cachekit.model import RestoreReport
from tests.faults.scenes import (
    MIB,
    SMALL,
    assert_clean,
    entries,
    is_clean,
    large_files,
    leftovers,
    part_of_store,
    polled,
    quarantine,
    random_files,
    removed,
    restored,
    same_entries,
    saved,
    tree_at,
    try_restore,
)
from tests.support import filesystems
from tests.support.capabilities import requires
from tests.support.cli import Cli
from tests.support.faults import Operation
from tests.support.filesystems import Xfs
from tests.support.flaky import Flaky
from tests.support.snapshots import assert_same_tree, unchanged


def mounted_again(disk: Xfs) -> None:
    """Unmount a filesystem that was shut down, and mount it anew, as after a reboot."""
    filesystems.unmount(disk.path)
    image = disk.path.parent / "image"
    subprocess.run(["mount", "-o", "loop", image, disk.path], check=True, capture_output=True)


@requires("xfs")
def test_a_store_that_shuts_down_during_a_save(tmp_path: Path, cli: Cli) -> None:
    """When the store's disk is gone in the middle of a save: exit 9; afterwards the store is as it was."""
    tree_at(tmp_path, SMALL, "small")
    tree_at(tmp_path, large_files())
    with filesystems.xfs() as disk:
        store = disk.path / "store"
        cli("save", "--store", store, "--key", "old-1", "small").expect(0)
        subprocess.run(["sync", "-f", disk.path], check=True)
        with cli.start("save", "--store", store, "--key", "new-1", "tree") as running:
            polled(lambda: bool(leftovers(store)), "a save has begun", lambda: running.alive)
            disk.shutdown()
            result = running.wait().expect(9)
        assert "the store" in result.stderr
        cli("save", "--store", store, "--key", "new-2", "small").expect(9)
        cli("restore", "--store", store, "--key", "old-1", "--root", tmp_path / "out", "--strict").expect(9)
        mounted_again(disk)
        cli("verify", "--store", store, "--all").expect(0)
        cli("save", "--store", store, "--key", "new-1", "tree").expect(0)
        assert_clean(store, 2)


@requires("xfs")
def test_a_store_that_is_gone_is_unreadable_not_damaged(tmp_path: Path, cli: Cli) -> None:
    """A restore from a store whose disk fails uses nothing, exits 0 with its status, and sets nothing aside."""
    tree = tree_at(tmp_path, SMALL)
    with filesystems.xfs() as disk:
        store = disk.path / "store"
        cli("save", "--store", store, "--key", "k-1", "tree").expect(0)
        subprocess.run(["sync", "-f", disk.path], check=True)
        disk.shutdown()
        command = ("restore", "--store", store, "--key", "k-1")
        with unchanged(tree):
            report = cli(*command, "--json").expect(0).json()
            assert report["status"] == "unreadable"
            assert not report["quarantined"]
            cli(*command, "--strict").expect(9)
            cli("verify", "--store", store, "--all").expect(4, 9)
        mounted_again(disk)
        assert not quarantine(store)
        cli(*command, "--root", tmp_path / "out").expect(0)
        assert_same_tree(tree, tmp_path / "out" / "tree")


SAVE_FAULTS: dict[str, tuple[Operation, dict[str, Any], int]] = {
    "write fails": ("write", {"errno": errno.EIO, "match": ".part"}, 9),
    "the third write fails": ("write", {"errno": errno.EIO, "match": ".part", "skip": 2}, 9),
    "disk full after a short write": ("write", {"errno": errno.ENOSPC, "after": 3 * MIB + 777}, 5),
    "quota after a short write": ("write", {"errno": errno.EDQUOT, "after": 1_000_001}, 5),
    "fsync fails": ("fsync", {"errno": errno.EIO}, 9),
    "close fails": ("flush", {"errno": errno.EIO, "match": ".part"}, 9),
    "close fails with a quota": ("flush", {"errno": errno.EDQUOT, "match": ".part"}, 5),
    "every close fails": ("flush", {"errno": errno.EIO}, 9),
    "truncate fails": ("truncate", {"errno": errno.EIO}, 9),
    "the file cannot be made": ("create", {"errno": errno.EIO, "match": ".part"}, 9),
    "link fails": ("link", {"errno": errno.EIO}, 9),
    "link finds no room": ("link", {"errno": errno.ENOSPC}, 5),
}


@requires("fuse")
@pytest.mark.parametrize("fault", SAVE_FAULTS)
def test_a_store_that_fails_during_a_save(fault: str, disk: Flaky, tmp_path: Path, cli: Cli) -> None:
    """Whatever call of the store fails, the save fails with its code, publishes nothing, and leaves nothing."""
    tree_at(tmp_path, random_files(6, MIB))
    tree_at(tmp_path, SMALL, "small")
    store = disk.mount / "store"
    saved(store, tmp_path, "old-1", "small")
    operation, facts, code = SAVE_FAULTS[fault]
    with same_entries(disk.backing / "store"):
        disk.set_fault(operation, **facts)
        result = cli("save", "--store", store, "--key", "new-1", "tree").expect(code)
        assert "internal" not in result.stderr
        disk.clear()
    is_clean(disk, 1)
    saved(store, tmp_path, "new-1")
    is_clean(disk, 2)


@requires("fuse")
@pytest.mark.parametrize("missing", ["EPERM", "ENOTSUP", "ENOSYS"])
def test_where_links_are_missing_publishing_still_works(
    missing: str, disk: Flaky, tmp_path: Path, cli: Cli
) -> None:
    """Without hard links an entry is published by claim and rename, whole, once, and never over another one."""
    tree_at(tmp_path, SMALL)
    store = disk.mount / "store"
    disk.set_fault("link", errno=getattr(errno, missing))
    first = cli("save", "--store", store, "--key", "k-1", "tree", "--json").expect(0).json()
    assert first["status"] == "saved"
    again = cli("save", "--store", store, "--key", "k-1", "tree", "--json").expect(0).json()
    assert (again["status"], again["identity"]) == ("exists", first["identity"])
    disk.set_fault("rename", errno=errno.EIO, match="entries")
    cli("save", "--store", store, "--key", "k-2", "tree").expect(9)
    is_clean(disk, 1)


@requires("fuse")
def test_a_claim_that_was_left_is_not_taken_for_an_entry(disk: Flaky, tmp_path: Path, cli: Cli) -> None:
    """Where a killed saver left its claim, a save never says that it saved what it did not publish."""
    tree_at(tmp_path, SMALL)
    store = disk.mount / "store"
    saved(store, tmp_path, "k-1")
    (entry,) = entries(store)
    entry.unlink()
    (part_of_store(store, "tmp") / f"{entry.name}.claim.part").touch()
    disk.set_fault("link", errno=errno.EPERM)
    status = cli("save", "--store", store, "--key", "k-1", "tree", "--json").expect(0).json()["status"]
    assert (status == "saved") == bool(entries(store)), status


@requires("fuse")
def test_replacing_an_entry_fails_whole(disk: Flaky, tmp_path: Path, cli: Cli) -> None:
    """When the rename of save --force fails, the old entry is served as before."""
    tree_at(tmp_path, SMALL)
    store = disk.mount / "store"
    cli("save", "--store", store, "--key", "k-1", "tree").expect(0)
    (tmp_path / "tree" / "more").write_bytes(b"more")
    disk.set_fault("rename", errno=errno.EIO, match="entries")
    with same_entries(disk.backing / "store"):
        cli("save", "--store", store, "--key", "k-1", "tree", "--force").expect(9)
    is_clean(disk, 1)


@requires("fuse")
def test_a_directory_that_cannot_be_synced(disk: Flaky, tmp_path: Path, cli: Cli) -> None:
    """When the name cannot be made durable the save fails, and what the store then serves is whole."""
    tree_at(tmp_path, SMALL)
    store = disk.mount / "store"
    disk.set_fault("fsyncdir", errno=errno.EIO)
    cli("save", "--store", store, "--key", "k-1", "tree").expect(9)
    is_clean(disk, len(entries(store)))


@requires("fuse")
def test_an_entry_that_cannot_be_read_stays(disk: Flaky, tmp_path: Path, cli: Cli) -> None:
    """A read error of the disk is no damage: status unreadable, exit 0 (9 if strict), and the entry stays."""
    tree = tree_at(tmp_path, SMALL)
    store = disk.mount / "store"
    cli("save", "--store", store, "--key", "k-1", "tree").expect(0)
    command = ("restore", "--store", store, "--key", "k-1", "tree")
    statuses = []
    for skip in range(0, 40, 3):  # the seal, the index, a frame ...
        disk.set_fault("read", errno=errno.EIO, match=".tar.zst", skip=skip)
        with unchanged(tree), same_entries(disk.backing / "store"):
            report = try_restore(store, tmp_path / "new", "k-1")
            assert isinstance(report, RestoreReport)
            statuses.append(report.status)
            assert not report.quarantined
        removed(tmp_path / "new")
    assert statuses == ["unreadable"] * statuses.index("exact") + ["exact"] * statuses.count("exact")
    assert len(set(statuses)) == 2
    disk.set_fault("read", errno=errno.EIO, match=".tar.zst")
    with unchanged(tree):
        assert cli(*command, "--json").expect(0).json()["status"] == "unreadable"
        cli(*command, "--strict").expect(9)
    disk.clear()
    assert not quarantine(store)
    cli(*command, "--root", tmp_path / "out").expect(0)
    assert_same_tree(tree, tmp_path / "out" / "tree")


@requires("fuse")
@pytest.mark.parametrize(("operation", "times"), [("open", 6), ("read", 1)])
def test_an_entry_that_another_host_replaced(
    operation: Operation, times: int, disk: Flaky, tmp_path: Path, cli: Cli
) -> None:
    """NFS says "stale file handle" for what was replaced while it was opened or read: the new one is restored."""
    tree = tree_at(tmp_path, SMALL)
    store = disk.mount / "store"
    cli("save", "--store", store, "--key", "k-1", "tree").expect(0)
    for skip in range(0, 30, 5):
        disk.set_fault(operation, errno=errno.ESTALE, match=".tar.zst", skip=skip, times=times)
        with same_entries(disk.backing / "store"):
            report = try_restore(store, tmp_path / f"new{skip}", "k-1")
        assert isinstance(report, RestoreReport)
        assert report.status == "exact"
        assert_same_tree(tree, tmp_path / f"new{skip}" / "tree")
    disk.set_fault(operation, errno=errno.ESTALE, match=".tar.zst")
    with unchanged(tree):
        assert (
            cli("restore", "--store", store, "--key", "k-1", "tree", "--json").expect(0).json()["status"]
            == "unreadable"
        )


@requires("fuse")
@pytest.mark.parametrize("place", ["frame", "index", "seal"])
def test_one_flipped_bit_is_refused(place: str, disk: Flaky, tmp_path: Path, cli: Cli) -> None:
    """An entry that reads wrong twice is refused and set aside, not destroyed: when the disk is well it is whole."""
    tree = tree_at(tmp_path, SMALL)
    store = disk.mount / "store"
    report = cli("save", "--store", store, "--key", "k-1", "tree", "--json").expect(0).json()
    size = report["archive_bytes"]
    disk.set_fault("read", flip={"frame": 5000, "index": size - 1500, "seal": size - 150}[place])
    with unchanged(tree):
        report = cli("restore", "--store", store, "--key", "k-1", "tree", "--json").expect(0).json()
    assert report["status"] == "refused"
    assert report["quarantined"]
    disk.clear()
    (aside,) = quarantine(store)
    whole = tmp_path / "whole.tar.zst"
    whole.write_bytes(aside.read_bytes())
    cli("verify", whole).expect(0)


@requires("fuse")
def test_a_bit_that_flips_once_costs_nothing(disk: Flaky, tmp_path: Path, cli: Cli) -> None:
    """A single wrong reading, whichever it is, is read again: the entry is restored and stays in the store."""
    tree = tree_at(tmp_path, SMALL)
    store = disk.mount / "store"
    cli("save", "--store", store, "--key", "k-1", "tree").expect(0)
    (entry,) = entries(store)
    met = 0
    for offset in (5000, entry.stat().st_size - 150):
        for skip in range(16):
            disk.set_fault("read", flip=offset, match=".tar.zst", skip=skip, times=1)
            met += not all(verdict.ok for verdict in verify(VerifyRequest([], str(store), every=True)))
            disk.set_fault("read", flip=offset, match=".tar.zst", skip=skip, times=1)
            out = tmp_path / f"{offset}-{skip}"
            restored(store, out, "k-1")
            assert_same_tree(tree, out / "tree")
    assert met >= 2
    assert not quarantine(store)
    is_clean(disk, 1)


@requires("fuse")
@pytest.mark.parametrize("lie", ["cut", "hole"])
@pytest.mark.parametrize("after", [0, 2 * MIB])
def test_a_lost_write_is_never_restored(
    lie: Literal["cut", "hole"], after: int, disk: Flaky, tmp_path: Path, cli: Cli
) -> None:
    """When the disk reports writes as done that it lost, whatever the save says, no restore uses the entry."""
    tree = tree_at(tmp_path, random_files(4, MIB))
    store = disk.mount / "store"
    saved(store, tree_at(tmp_path, SMALL, "small").parent, "old-1", "small")
    disk.set_fault("write", lie=lie, after=after)
    cli("save", "--store", store, "--key", "k-1", "tree").expect(0, 5, 9)
    disk.clear()
    with unchanged(tree):
        report = cli("restore", "--store", store, "--key", "k-1", "tree", "--json").expect(0).json()
    assert report["status"] in {"refused", "miss"}
    is_clean(disk, 1)


@requires("fuse")
def test_short_reads_and_writes_change_nothing(disk: Flaky, tmp_path: Path, cli: Cli) -> None:
    """A store and a target that move few bytes a call still give the same tree."""
    tree = tree_at(tmp_path, SMALL)
    store = disk.mount / "store"
    disk.set_fault("read", short=5001)
    disk.set_fault("write", short=4099)
    cli("save", "--store", store, "--key", "k-1", "tree").expect(0)
    cli("restore", "--store", store, "--key", "k-1", "--root", disk.mount / "out").expect(0)
    disk.clear()
    assert_same_tree(tree, disk.backing / "out" / "tree")
    is_clean(disk, 1)
