"""A source that cannot be read: exit 8 with the path, nothing published."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from tests.faults.scenes import (
    MIB,
    SMALL,
    assert_clean,
    error_of,
    random_files,
    same_entries,
    saved,
    tree_at,
)
from tests.support.capabilities import requires
from tests.support.cli import Cli
from tests.support.faults import Operation
from tests.support.flaky import Flaky
from tests.support.snapshots import assert_same_tree

SOURCE_FAULTS: dict[str, tuple[Operation, dict[str, Any], str]] = {
    "a small file": ("read", {"errno": errno.EIO, "match": "file-003"}, "tree/file-003"),
    "a large file": ("read", {"errno": errno.EIO, "match": "large", "skip": 4}, "tree/large"),
    "a file cannot be opened": ("open", {"errno": errno.EIO, "match": "file-005"}, "tree/file-005"),
    "a directory": ("readdir", {"errno": errno.EIO, "match": "sub"}, "tree/sub"),
    "a file's facts": ("getattr", {"errno": errno.EIO, "match": "sub/text"}, "tree/sub"),
}


@requires("fuse")
@pytest.mark.parametrize("changed", ["skip", "refuse"])
@pytest.mark.parametrize("fault", SOURCE_FAULTS)
def test_a_source_that_cannot_be_read(
    fault: str, changed: str, disk: Flaky, tmp_path: Path, cli: Cli
) -> None:
    """A read error is never a file left out: exit 8 with its path, nothing published."""
    tree_at(disk.backing, {**SMALL, "large": bytes(20 * MIB)})
    store = tmp_path / "store"
    saved(store, tree_at(tmp_path, SMALL, "small").parent, "old-1", "small")
    operation, facts, path = SOURCE_FAULTS[fault]
    disk.set_fault(operation, **facts)
    command = ("save", "--store", store, "--key", "k-1", "--root", disk.mount, "tree")
    with same_entries(store):
        result = cli(*command, "--changed", changed, "--json").expect(8)
    error = error_of(result)
    assert error["id"] == "source-unreadable"
    assert path in str(error["path"])
    disk.clear()
    saved(store, disk.mount, "k-1")
    assert_clean(store, 2)


@requires("fuse")
def test_short_reads_of_the_source(disk: Flaky, tmp_path: Path, cli: Cli) -> None:
    """A source that gives few bytes a call is saved as it is."""
    tree = tree_at(disk.backing, {**SMALL, "large": random_files(1, 9 * MIB)["file-000"]})
    disk.set_fault("read", short=70_001)
    store = tmp_path / "store"
    cli("save", "--store", store, "--key", "k-1", "--root", disk.mount, "tree").expect(0)
    cli("restore", "--store", store, "--key", "k-1", "--root", tmp_path / "out").expect(0)
    assert_same_tree(tree, tmp_path / "out" / "tree")
