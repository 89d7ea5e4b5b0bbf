"""`cachekit restore --lookup-only`: whether there is an entry, without restoring it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.support.in_process import Here, cut
from tests.support.snapshots import unchanged
from tests.support.trees import make_tree


@pytest.fixture
def saved(here: Here) -> Here:
    """A store with the entry `npm-1` of the tree `t`; another tree `t` is there now."""
    make_tree(here.root, {"t": {"a": b"12345"}})
    here.save("npm-1", "t")
    shutil.rmtree("t")
    make_tree(here.root, {"t": {"b": b"own"}})
    return here


@pytest.mark.parametrize(
    ("key", "status", "matched"),
    [("npm-1", "exact", "npm-1"), ("npm-2", "partial", "npm-1"), ("x", "miss", None)],
)
def test_a_lookup_writes_nothing(saved: Here, key: str, status: str, matched: str | None) -> None:
    """It says exact, partial or miss as a restore would, and leaves the target alone."""
    prefix = "npm-" if matched else "y"
    with unchanged(saved.root):
        report = saved.restore(key, "--restore-key", prefix, "--lookup-only", "t")
    assert (report["status"], report["matched_key"]) == (status, matched)
    assert report["cache_hit"] is (status == "exact")
    assert report["files"] == (1 if matched else 0)
    assert report["commit"] == {}
    assert saved("restore", "--key", key, "--lookup-only", "--fail-on-miss").code == (
        0 if status == "exact" else 3
    )


def test_a_lookup_says_so(saved: Here) -> None:
    """The closing line tells that an entry was found, and that nothing was restored."""
    assert (
        "found npm-1 (exact hit): 1 file, 5 B; nothing was restored"
        in saved("restore", "--key", "npm-1", "--lookup-only").expect().stderr
    )


def test_a_cut_entry_is_no_hit(saved: Here) -> None:
    """A cut entry is refused and set aside by a lookup as by a restore: what it says is there can be used."""
    cut(saved.entry("npm-1"))
    report = saved.restore("npm-1", "--lookup-only", "t")
    assert (report["status"], report["cache_hit"]) == ("refused", False)
    assert report["quarantined"]
    assert os.listdir("t") == ["b"]


def test_targets_are_checked(saved: Here) -> None:
    """A path that the entry does not hold is an error, as it would be in a restore."""
    done = saved("restore", "--key", "npm-1", "--lookup-only", "other", "--json").expect(2, 8)
    assert (
        json.loads(done.stdout)["error"]["id"]
        == json.loads(saved("restore", "--key", "npm-1", "other", "--json").stdout)["error"]["id"]
    )


@pytest.mark.parametrize("option", ["--replace", "--in-place"])
def test_modes_make_no_sense(saved: Here, option: str) -> None:
    """How to restore cannot be asked of what restores nothing: exit 2."""
    assert "restores nothing" in saved("restore", "--key", "npm-1", "--lookup-only", option).expect(2).stderr


def test_a_lookup_is_no_restore_in_the_statistics(saved: Here) -> None:
    """The statistics count restores; a lookup adds none."""
    saved.restore("npm-1", "--lookup-only", "t")
    assert b'"restore"' not in b"".join(path.read_bytes() for path in Path(saved.store).rglob("*.jsonl"))
    saved.restore("npm-1", "t")
    assert b'"restore"' in b"".join(path.read_bytes() for path in Path(saved.store).rglob("*.jsonl"))
