"""A target whose disk answers with errors: it is as it was, or marked, and recover ends what was begun."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.faults.scenes import (
    SMALL,
    large_files,
    polled,
    restored,
    same_entries,
    saved,
    tree_at,
)
from tests.support import filesystems
from tests.support.capabilities import requires
from tests.support.cli import Cli
from tests.support.faults import Operation
from tests.support.filesystems import Xfs
from tests.support.flaky import Flaky, flaky
from tests.support.processes import wait_until
from tests.support.snapshots import assert_same_tree, unchanged


def mounted_again(disk: Xfs) -> None:
    """Unmount a filesystem that was shut down, and mount it anew, as after a reboot."""
    filesystems.unmount(disk.path)
    image = disk.path.parent / "image"
    subprocess.run(["mount", "-o", "loop", image, disk.path], check=True, capture_output=True)


@requires("xfs", "fuse")
def test_a_target_that_shuts_down_during_a_restore(tmp_path: Path, cli: Cli) -> None:
    """When the target's disk is gone in the middle of a restore: exit 8; afterwards the old tree is there."""
    new = tree_at(tmp_path, large_files())
    with flaky(tmp_path / "backing") as slow, filesystems.xfs() as disk:
        saved(slow.backing / "store", tmp_path, "k-1")
        old = tree_at(disk.path, SMALL)
        subprocess.run(["sync", "-f", disk.path], check=True)
        command = ("restore", "--store", slow.mount / "store", "--key", "k-1", "--root", disk.path)
        with unchanged(old):
            slow.set_fault("read", delay=0.02)
            with cli.start(*command) as running:
                polled(
                    lambda: any(disk.path.glob(".cachekit-*/new/*")), "the first file", lambda: running.alive
                )
                disk.shutdown()
                result = running.wait().expect(8)
            assert "cannot write the target" in result.stderr
            slow.clear()
            cli(*command).expect(8)
            mounted_again(disk)
        cli(*command, "--replace").expect(0)
        assert_same_tree(new, old)
        assert not list(disk.path.glob(".cachekit-*"))


TARGET_FAULTS: dict[str, tuple[Operation, dict[str, Any], int]] = {
    "write fails": ("write", {"errno": errno.EIO, "match": "file-004"}, 8),
    "disk full in the middle": ("write", {"errno": errno.ENOSPC, "after": 100_001}, 5),
    "quota in the middle": ("write", {"errno": errno.EDQUOT, "after": 60_000}, 5),
    "a file cannot be made": ("create", {"errno": errno.EIO, "match": "file-002"}, 8),
    "no directory can be made": ("mkdir", {"errno": errno.ENOSPC}, 5),
    "times cannot be set": ("utimens", {"errno": errno.EPERM, "match": "file-001"}, 8),
    "close fails": ("flush", {"errno": errno.EIO, "match": "file-003"}, 8),
    "the journal cannot be written": ("fsync", {"errno": errno.EIO}, 8),
    "the journal finds no room": ("write", {"errno": errno.ENOSPC, "match": "journal"}, 5),
}


@requires("fuse")
@pytest.mark.parametrize("mode", ["absent", "merge"])  # up to the commit, replacing is the same as merging
@pytest.mark.parametrize("fault", TARGET_FAULTS)
def test_a_target_that_fails_while_unpacking(
    fault: str, mode: str, disk: Flaky, tmp_path: Path, cli: Cli
) -> None:
    """Whatever call fails before the commit: exit 8 (5 for space), the target as it was, staging gone."""
    new = tree_at(tmp_path, SMALL)
    store = tmp_path / "store"
    saved(store, tmp_path, "k-1")
    target = disk.backing / "tree"
    if mode == "merge":
        tree_at(disk.backing, {"old": b"old", "file-000": b"old", "sub": {"kept": b"old"}})
    operation, facts, code = TARGET_FAULTS[fault]
    disk.set_fault(operation, **facts)
    with unchanged(target):
        failed = cli("restore", "--store", store, "--key", "k-1", "--root", disk.mount).expect(code)
    assert "internal" not in failed.stderr
    wait_until(lambda: not list(disk.backing.glob(".cachekit-*")), "staging is gone")
    disk.clear()
    restored(store, disk.mount, "k-1")
    if mode == "absent":
        assert_same_tree(new, target)


COMMIT_FAULTS: dict[str, tuple[Operation, dict[str, Any]]] = {
    "no rename": ("rename", {"errno": errno.EIO, "match": "/tree"}),
    "the second rename": ("rename", {"errno": errno.EIO, "match": "/tree", "skip": 1}),
    "the fourth rename": ("rename", {"errno": errno.ENOSPC, "match": "/tree", "skip": 3}),
    "old files cannot be put aside": ("rename", {"errno": errno.EIO, "match": "/old"}),
    "modes of directories": ("chmod", {"errno": errno.EIO, "match": "/tree"}),
    "times of directories": ("utimens", {"errno": errno.EIO, "match": "/tree"}),
}


@requires("fuse")
@pytest.mark.parametrize("mode", ["absent", "merge", "replace"])
@pytest.mark.parametrize("fault", COMMIT_FAULTS)
def test_a_target_that_fails_at_the_commit(
    fault: str, mode: str, disk: Flaky, tmp_path: Path, cli: Cli
) -> None:
    """When the commit fails the target is old, or marked: no save of it, and recover completes the new tree."""
    new = tree_at(tmp_path, SMALL)
    store = tmp_path / "store"
    saved(store, tmp_path, "k-1")
    target = disk.backing / "tree"
    old = tree_at(tmp_path / "old", {"old": b"old", "file-000": b"old", "sub": {"kept": b"old"}})
    if mode != "absent":
        tree_at(disk.backing, {"old": b"old", "file-000": b"old", "sub": {"kept": b"old"}})
    how = "--replace" if mode == "replace" else "--merge"
    operation, facts = COMMIT_FAULTS[fault]
    disk.set_fault(operation, **facts)
    command = ("restore", "--store", store, "--key", "k-1", "--root", disk.mount, how)
    result = cli(*command).expect(0, 5, 8)  # 0: not every commit comes by every call
    assert "internal" not in result.stderr
    marked = bool(list(disk.backing.glob(".cachekit-*")))
    assert ("as it was" in result.stderr) <= (not marked)
    if marked:
        cli("recover").expect(0, 8)
        cli(*command).expect(0, 5, 8)
        disk.clear()
        cli("recover", disk.mount / "tree").expect(0)
        assert not list(disk.backing.glob(".cachekit-*"))
    elif result.code and mode != "absent":
        assert_same_tree(old, target)
    disk.clear()
    if mode == "merge":
        restored(store, disk.mount, "k-1")
        assert (target / "old").read_bytes() == b"old"
        assert (target / "sub" / "kept").read_bytes() == b"old"
        (target / "old").unlink()
        (target / "sub" / "kept").unlink()
    restored(store, disk.mount, "k-1", mode="merge" if mode == "merge" else "replace")
    assert_same_tree(new, target)


@requires("fuse")
def test_an_unfinished_commit_keeps_a_save_away(disk: Flaky, tmp_path: Path, cli: Cli) -> None:
    """After a merge that stopped half way a save of the target is refused until recover has ended it."""
    new = tree_at(tmp_path, SMALL)
    store = tmp_path / "store"
    saved(store, tmp_path, "k-1")
    target = tree_at(disk.backing, {"file-000": b"old", "sub": {"text": b"old"}})
    disk.set_fault("rename", errno=errno.EIO, match="/tree/", skip=3)
    cli("restore", "--store", store, "--key", "k-1", "--root", disk.mount).expect(8)
    disk.clear()
    with same_entries(store):
        refused = cli("save", "--store", store, "--key", "k-2", "--root", disk.mount, "tree").expect(8)
    assert "recover" in refused.stderr
    cli("recover").expect(0)
    assert_same_tree(new, target)
    cli("save", "--store", store, "--key", "k-2", "--root", disk.mount, "tree").expect(0)
