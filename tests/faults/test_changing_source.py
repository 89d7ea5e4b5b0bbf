"""Files that change while they are saved: refused by name, or left out, never put together from two states."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cachekit.archive.pack import _judge
from cachekit.errors import SourceUnreadable
from tests.faults.hammer import hammering
from tests.faults.scenes import (
    MIB,
    assert_clean,
    error_of,
    leftovers,
    part_of_store,
    polled,
    random_files,
    removed,
    restored,
    tree_at,
)
from tests.support import filesystems
from tests.support.capabilities import requires
from tests.support.cli import Cli
from tests.support.flaky import Flaky, flaky
from tests.support.processes import Result
from tests.support.snapshots import assert_same_tree
from tests.support.trees import Spec, make_tree

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


@requires("fuse", "tmpfs")
@pytest.mark.parametrize("after", ["empty files", "a large neighbour"])
def test_a_file_that_outgrows_its_frame(
    after: str, disk: Flaky, store: Path, tmp_path: Path, cli: Cli
) -> None:
    """A file that grew so much that the files after it no longer fit beside it is named, not one of those."""
    neighbours: dict[str, Spec] = {f"w-{number:04}": b"" for number in range(700)}
    if after == "a large neighbour":
        neighbours = {"w": b"w" * 3 * MIB}
    make_tree(disk.backing / "tree", neighbours)

    def grow_much(tree: Path) -> None:
        (tree / "victim").write_bytes(b"V" * (8 * MIB - 4096 - 30_000))

    error = error_of(save_while(grow_much, disk, store, cli, "refuse").expect(8))
    assert error["id"] == "source-changed"
    assert error["path"] == "tree/victim"
    (disk.backing / "tree" / "victim").write_bytes(b"v")
    assert save_while(grow_much, disk, store, cli, "skip").expect(0).json()["changed"] == ["tree/victim"]
    assert_clean(store, 1)
    restored(store, tmp_path / "out", "k-1")
    (disk.backing / "tree" / "victim").unlink()
    assert_same_tree(disk.backing / "tree", tmp_path / "out" / "tree", ignore=["root", "mtime_ns"])


@pytest.mark.parametrize("change", [become_fifo, become_directory, become_symlink])
def test_an_io_error_of_what_is_no_file_any_more(change: Callable[[Path], None], tmp_path: Path) -> None:
    """FUSE answers EIO for an open file that became something else: that is a change, and EIO of a file is an error."""
    path = tmp_path / "victim"
    path.write_bytes(b"x")
    error = OSError(errno.EIO, "Input/output error")
    root = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(SourceUnreadable):
            _judge(error, b"tree/victim", root, b".", b"victim")
        change(path)
        assert _judge(error, b"tree/victim", root, b".", b"victim") == "is no regular file any more"
    finally:
        os.close(root)
