"""Files that change while they are saved: refused by name, or left out; what is published is never torn."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.scenes import (
    MIB,
    assert_clean,
    entries,
    error_of,
    leftovers,
    part_of_store,
    polled,
    random_files,
    removed,
    restored,
    same_entries,
    saved,
    tree_at,
)
from tests.support import filesystems
from tests.support.capabilities import requires
from tests.support.cli import Cli, give
from tests.support.flaky import Flaky, flaky
from tests.support.processes import Result, Running, start
from tests.support.snapshots import assert_same_tree

LARGE = "large"
SIZES = {"victim": 60_000, LARGE: 20 * MIB}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Flaky]:
    """A tree in a flaky mount, whose first file can be made slow to read."""
    with flaky(tmp_path / "backing") as mounted:
        tree_at(
            mounted.backing,
            {
                "000-slow": b"slow",
                **random_files(3, 9000),
                "victim": b"v" * SIZES["victim"],
                "zz": b"after it",
                "sub": {LARGE: b"l" * SIZES[LARGE], "more": b"more"},
            },
        )
        yield mounted


@pytest.fixture
def store() -> Iterator[Path]:
    """A store on a filesystem that can reserve, in which it shows that the walk has ended."""
    with filesystems.tmpfs(64 * MIB) as mounted:
        yield mounted.path / "store"


def reserved(store: Path) -> bool:
    return any((part_of_store(store, "tmp") / name).stat().st_blocks for name in leftovers(store))


def save_while(change: Callable[[Path], None], disk: Flaky, store: Path, cli: Cli, how: str) -> Result:
    """Save the tree; make the change between the walk and the reading of all but the first file."""
    disk.set_fault("read", match="000-slow", delay=0.7)
    part_of_store(store, "tmp").mkdir(parents=True, exist_ok=True)
    command = (
        "save",
        "--store",
        store,
        "--key",
        "k-1",
        "--root",
        disk.mount,
        "tree",
        "--changed",
        how,
        "--json",
    )
    with cli.start(*command) as running:
        polled(lambda: reserved(store), "the walk has ended", lambda: running.alive)
        change(disk.backing / "tree")
        return running.wait()


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"grown" * 1000)


def rewrite(path: Path) -> None:
    path.write_bytes(b"r" * path.stat().st_size)


def rewrite_with_old_time(path: Path) -> None:
    info = path.stat()
    rewrite(path)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


def swap(path: Path) -> None:
    path.with_name("new").write_bytes(b"another file")
    path.with_name("new").replace(path)


def vanish(path: Path) -> None:
    path.unlink()


def become_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def become_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_bytes(b"x")


def become_symlink(path: Path) -> None:
    path.unlink()
    path.symlink_to("zz")


STABLE = [grow, rewrite, rewrite_with_old_time, shorten, swap]
GONE = [vanish, become_fifo, become_directory, become_symlink]


@requires("fuse", "tmpfs")
@pytest.mark.parametrize("change", STABLE, ids=lambda change: change.__name__)
def test_a_small_file_that_changed_once(
    change: Callable[[Path], None], disk: Flaky, store: Path, tmp_path: Path, cli: Cli
) -> None:
    """A small file that changed between walk and reading, and then no more, is saved as it is now."""
    save_while(lambda tree: change(tree / "victim"), disk, store, cli, "refuse").expect(0)
    assert_clean(store, 1)
    restored(store, tmp_path / "out", "k-1")
    (disk.backing / "tree" / "new").unlink(missing_ok=True)
    assert_same_tree(
        disk.backing / "tree",
        tmp_path / "out" / "tree",
        ignore=["root", "mtime_ns"] if change is swap else [],
    )


@requires("fuse", "tmpfs")
@pytest.mark.parametrize("change", GONE, ids=lambda change: change.__name__)
def test_a_small_file_that_is_no_longer_there(
    change: Callable[[Path], None], disk: Flaky, store: Path, tmp_path: Path, cli: Cli
) -> None:
    """A file that vanished or became something else: exit 8 with its path; with --changed skip all but it is saved."""
    error = error_of(save_while(lambda tree: change(tree / "victim"), disk, store, cli, "refuse").expect(8))
    assert error["id"] == "source-changed"
    assert error["path"] == "tree/victim"
    assert_clean(store, 0)
    victim = disk.backing / "tree" / "victim"
    if victim.is_dir():
        removed(victim)
    victim.unlink(missing_ok=True)
    victim.write_bytes(b"v" * SIZES["victim"])
    result = save_while(lambda tree: change(tree / "victim"), disk, store, cli, "skip").expect(0)
    assert result.json()["changed"] == ["tree/victim"]
    assert "left out" in result.stderr
    assert_clean(store, 1)
    restored(store, tmp_path / "out", "k-1")
    assert not os.path.lexists(tmp_path / "out" / "tree" / "victim")
    assert (tmp_path / "out" / "tree" / "zz").read_bytes() == b"after it"
    assert (tmp_path / "out" / "tree" / "sub" / LARGE).stat().st_size == SIZES[LARGE]


@requires("fuse", "tmpfs")
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("change", [*STABLE, *GONE], ids=lambda change: change.__name__)
def test_a_large_file_that_changes(
    change: Callable[[Path], None], absolute: bool, disk: Flaky, store: Path, tmp_path: Path, cli: Cli
) -> None:
    """A file of several frames is never put together from two states: exit 8 with its path, or left out."""
    where = disk.mount / "tree" if absolute else "tree"
    part_of_store(store, "tmp").mkdir(parents=True, exist_ok=True)
    command = (
        "save",
        "--store",
        store,
        "--key",
        "k-1",
        "--root",
        tmp_path if absolute else disk.mount,
        where,
    )
    disk.set_fault("read", match=LARGE, delay=0.1)
    with cli.start(*command, "--json") as running:
        polled(lambda: reserved(store), "the walk has ended", lambda: running.alive)
        change(disk.backing / "tree" / "sub" / LARGE)
        error = error_of(running.wait().expect(8))
    assert error["id"] == "source-changed"
    assert str(error["path"]).endswith("tree/sub/large")
    assert_clean(store, 0)


@requires("fuse", "tmpfs")
@pytest.mark.parametrize("absolute", [False, True])
def test_a_large_file_that_never_rests_is_left_out(
    absolute: bool, disk: Flaky, store: Path, tmp_path: Path, cli: Cli
) -> None:
    """With --changed skip a large file that keeps growing is left out, and everything else is saved."""
    where = str(disk.mount / "tree") if absolute else "tree"
    with hammering(disk.backing / "tree" / "sub" / LARGE, "append"):
        result = cli(
            *("save", "--store", store, "--key", "k-1", "--changed", "skip", "--json"),
            *("--root", tmp_path if absolute else disk.mount, where),
        ).expect(0)
    assert [Path(name).name for name in result.json()["changed"]] == [LARGE]
    assert_clean(store, 1)
    removed(disk.backing / "tree")
    out = disk.backing / "tree" if absolute else tmp_path / "out" / "tree"
    restored(store, out.parent, "k-1", *([where] if absolute else []))
    assert not (out / "sub" / LARGE).exists()
    assert (out / "sub" / "more").read_bytes() == b"more"
    assert (out / "victim").read_bytes() == b"v" * SIZES["victim"]


HAMMER = """
import os, sys, time
path, way, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
number = 0
if way in ("append", "rewrite"):
    fd = os.open(path, os.O_WRONLY | (os.O_APPEND if way == "append" else 0))
while True:
    number += 1
    state = b"%09d\\n" % number
    if way == "append":
        os.write(fd, state)
        time.sleep(0.0005)
    elif way == "rewrite":
        os.pwrite(fd, state * (size // 10), 0)
    elif way == "replace":
        with open(path + ".new", "wb") as file:
            file.write(state * (size // 10))
        os.replace(path + ".new", path)
    elif way == "flicker":
        os.rename(path, path + ".away")
        time.sleep(0.0002)
        os.rename(path + ".away", path)
        time.sleep(0.0002)
"""


@contextmanager
def hammering(path: Path, way: str, size: int = 0) -> Iterator[Running]:
    """Change a file without pause, from another process, for the length of a block."""
    before = path.stat().st_mtime_ns, path.stat().st_ino
    with start([sys.executable, "-c", HAMMER, path, way, str(size)]) as running:
        if way != "flicker":
            polled(
                lambda: (path.stat().st_mtime_ns, path.stat().st_ino) != before,
                "the first change",
                lambda: running.alive,
            )
        yield running
        assert running.alive


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
