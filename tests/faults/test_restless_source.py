"""Files that never rest, or may not be read: what is published is one of their states, or nothing."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.faults.hammer import hammering
from tests.faults.scenes import (
    MIB,
    assert_clean,
    entries,
    error_of,
    random_files,
    removed,
    restored,
    same_entries,
    saved,
    tree_at,
)
from tests.support.capabilities import requires
from tests.support.cli import Cli, give


@pytest.mark.parametrize("changed", ["refuse", "skip"])
@pytest.mark.parametrize(
    ("way", "size"),
    [
        ("rewrite", 4_000_000),
        *itertools.product(["rewrite", "append", "replace", "flicker"], [100_000, 20_000_000]),
    ],
)
def test_a_file_that_never_rests(way: str, size: int, changed: str, tmp_path: Path, cli: Cli) -> None:
    """Whatever is done to a file meanwhile: named and refused, or left out, or published in one of its states."""
    store = tmp_path / "store"
    tree = tree_at(tmp_path, {"a": b"a", "sub": {"victim": b"%09d\n" % 0 * (size // 10)}, "z": b"z"})
    saved(store, tree_at(tmp_path, {"file": b"x"}, "small").parent, "old-1", "small")
    excluded = ("--exclude", "victim.new", "--exclude", "victim.away")
    command = ("save", "--store", store, "--key", "k-1", "tree", "--changed", changed, "--json", *excluded)
    with hammering(tree / "sub" / "victim", way, size):
        for _ in range(2):
            before = entries(store)
            result = cli(*command, "--force").expect(0, 8)
            if result.code:
                error = error_of(result)
                assert error["id"] in {"source-changed", "nothing-matched"}
                assert "victim" in str(error["path"])
                assert entries(store) == before
                assert_clean(store, len(before))
                continue
            assert_clean(store, 2)
            out = tmp_path / "out"
            removed(out)
            restored(store, out, "k-1")
            assert (out / "tree" / "z").read_bytes() == b"z"
            victim = out / "tree" / "sub" / "victim"
            if victim.exists():
                assert_one_state(victim.read_bytes(), way, size)


def assert_one_state(content: bytes, way: str, size: int) -> None:
    """Fail if what was saved is no state that the hammer ever wrote."""
    lines = content.splitlines(keepends=True)
    if way == "append":
        start_lines = size // 10
        assert set(lines[:start_lines]) == {b"%09d\n" % 0}
        assert lines[start_lines:] == [
            b"%09d\n" % number for number in range(1, len(lines) - start_lines + 1)
        ]
    else:
        assert len(content) == size
        assert len(set(lines)) == 1, f"torn: {sorted(set(lines))[:5]}"


def test_a_directory_that_vanishes_is_named(tmp_path: Path, cli: Cli) -> None:
    """A tree whose directories come and go is refused by name, or saved whole; nothing half is published."""
    store = tmp_path / "store"
    tree = tree_at(tmp_path, {"a": {"b": {"file": b"x" * 1000}}, **random_files(300, 100)})
    with hammering(tree / "a" / "b", "flicker"):
        for number in range(4):
            result = cli("save", "--store", store, "--key", f"k-{number}", "tree", "--json").expect(0, 8)
            if result.code:
                assert "tree/a" in str(error_of(result)["path"])
    assert_clean(store, len(entries(store)))


@requires("unprivileged")
@pytest.mark.parametrize("what", ["file", "directory", "large"])
def test_what_may_not_be_read_is_named(what: str, nobody_cli: Cli) -> None:
    """A file or directory without permission is exit 8 with its path, also with --changed skip."""
    tree = tree_at(
        nobody_cli.cwd,
        {"file": b"x" * 100, "large": b"y" * 9 * MIB, "directory": {"below": b"z"}, "other": b"w"},
    )
    give(tree)
    (tree / what).chmod(0)
    store = nobody_cli.cwd / "store"
    nobody_cli("save", "--store", store, "--key", "old-1", "tree/other").expect(0)
    for changed in ("refuse", "skip"):
        with same_entries(store):
            command = ("save", "--store", store, "--key", "k-1", "tree", "--changed", changed, "--json")
            error = error_of(nobody_cli(*command).expect(8))
        assert error["id"] == "source-unreadable"
        assert error["path"] == f"tree/{what}"
    nobody_cli("save", "--store", store, "--key", "k-1", "tree", "--exclude", what).expect(0)
