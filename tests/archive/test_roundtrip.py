"""What was saved comes back: any tree, into any place, however it is put there."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings

from cachekit.archive.format import FRAME_SIZE
from tests.support.archives import Entry, restore_tree, save_tree
from tests.support.capabilities import requires
from tests.support.samples import MIB, sample_tree
from tests.support.snapshots import assert_same_tree, snapshot
from tests.support.strategies import trees
from tests.support.trees import Dir, Fifo, File, HardLink, Socket, Sparse, Symlink, make_tree

if TYPE_CHECKING:
    from tests.archive.conftest import Whole

GIB = 1 << 30
MODES: list[dict[str, Any]] = [
    {"mode": "merge"},
    {"mode": "replace"},
    {"mode": "in-place"},
    {"mode": "in-place", "replace_extras": True},
]
IDS = ["merge", "replace", "in-place", "in-place-replace"]


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that one example after the other works in."""
    return tmp_path_factory.mktemp("arena")


def emptied(arena: Path) -> Path:
    """Remove what the last example left."""
    shutil.rmtree(arena)
    arena.mkdir()
    return arena


@given(tree=trees())
def test_any_tree_comes_back(tree: Dir, arena: Path) -> None:
    """Names of any bytes, links, modes and times of any tree are restored as they were saved."""
    base = emptied(arena)
    make_tree(base / "tree", tree)
    save_tree(base / "store", base, "tree", allow_empty=True)
    report = restore_tree(base / "store", base / "out")
    assert (report.status, report.commit) == ("exact", {"tree": "rename"})
    assert_same_tree(base / "tree", base / "out" / "tree")


@pytest.mark.parametrize("how", MODES, ids=IDS)
@settings(max_examples=10)
@given(tree=trees(), old=trees())
def test_any_tree_comes_back_over_any_other(how: dict[str, Any], tree: Dir, old: Dir, arena: Path) -> None:
    """Restored over any other tree, all of the entry is there; the rest stays if merged, and is gone if replaced."""
    base = emptied(arena)
    make_tree(base / "tree", tree)
    make_tree(base / "out" / "tree", old)
    save_tree(base / "store", base, "tree", allow_empty=True)
    before = snapshot(base / "out" / "tree")
    assert restore_tree(base / "store", base / "out", **how).status == "exact"
    saved, found = snapshot(base / "tree"), snapshot(base / "out" / "tree")
    if how["mode"] == "replace" or how.get("replace_extras"):
        assert_same_tree(saved, found)
        return
    assert_same_tree(saved, {path: found[path] for path in found if path in saved})
    extras = set(found) - set(saved)
    covered = {
        path for path in before if any(_below(path, other) for other in saved if saved[other].kind != "dir")
    }
    assert extras == set(before) - set(saved) - covered
    assert all(found[path].digest == before[path].digest for path in extras)


def _below(path: bytes, directory: bytes) -> bool:
    return path.startswith(directory + b"/")


@pytest.mark.parametrize("how", MODES, ids=IDS)
def test_the_sample_comes_back_exactly(sample: Whole, tmp_path: Path, how: dict[str, Any]) -> None:
    """Holes, hard-link groups, nanoseconds, odd names and every mode come back, over an old tree too, twice."""
    store = tmp_path / "store"
    sample_tree(tmp_path / "out" / "tree")
    (tmp_path / "out" / "tree" / "text.txt").write_bytes(b"changed")
    save_tree(store, sample.tree.parent, "tree")
    for _ in range(2):
        assert restore_tree(store, tmp_path / "out", **how).status == "exact"
        expected, found = (snapshot(tree, extents=True) for tree in (sample.tree, tmp_path / "out" / "tree"))
        assert_same_tree(expected, found)
    assert found[b"text.txt"].group == found[b"sub/hard"].group == found[b"sub/hard-too"].group is not None


@requires("root")
def test_owners_come_back_if_asked_for(tmp_path: Path) -> None:
    """Uid and gid are recorded; --same-owner restores them, without it all is the restoring user's."""
    tree = make_tree(
        tmp_path / "tree",
        {"a": "a", "s": Symlink("a"), "d": {"b": bytes(FRAME_SIZE + 1)}, "h": HardLink("a")},
    )
    for number, name in enumerate(("a", "s", "d", "d/b"), 3_000_000):
        os.lchown(tree / name, number, number + 100)
    save_tree(tmp_path / "store", tmp_path, "tree")
    for how in ("merge", "replace", "in-place"):
        restore_tree(tmp_path / "store", tmp_path / f"own-{how}", mode=how, same_owner=True)
        assert_same_tree(snapshot(tree, owners=True), snapshot(tmp_path / f"own-{how}" / "tree", owners=True))
    restore_tree(tmp_path / "store", tmp_path / "out")
    assert {node.owner for node in snapshot(tmp_path / "out", owners=True).values()} == {
        (os.geteuid(), os.getegid())
    }


def test_a_file_of_nine_gigabytes_comes_back(tmp_path: Path) -> None:
    """A sparse file over 8 GiB keeps its length, its data on both sides of 8 GiB and its holes."""
    data = {0: b"begin", 3 * GIB: b"middle", 8 * GIB - 3: b"across", 9 * GIB - 3: b"end"}
    tree = make_tree(tmp_path / "tree", {"huge": Sparse(9 * GIB, data), "after": "after"})
    path = save_tree(tmp_path / "store", tree)
    assert path.stat().st_size < MIB
    for how in ("merge", "replace", "in-place"):
        assert restore_tree(tmp_path / "store", tmp_path / "out", mode=how).content_bytes == 9 * GIB + 5
        assert_same_tree(
            snapshot(tree, extents=True), snapshot(tmp_path / "out", extents=True), ignore={"root"}
        )


@pytest.mark.parametrize(
    "size",
    [FRAME_SIZE - 1, FRAME_SIZE, FRAME_SIZE + 1, FRAME_SIZE + 512, 3 * FRAME_SIZE, 3 * FRAME_SIZE + 77],
)
@pytest.mark.parametrize("how", MODES, ids=IDS)
def test_a_file_of_about_a_frame_or_several_comes_back(
    tmp_path: Path, size: int, how: dict[str, Any]
) -> None:
    """Files around the frame size and of several frames come back, between small ones, over others too."""
    source = random.Random(size)
    content = source.randbytes(1000) * (size // 1000) + source.randbytes(size % 1000)
    tree = make_tree(
        tmp_path / "tree", {"a": "before", "b": File(content, 0o750), "c": "after", "d": HardLink("b")}
    )
    make_tree(tmp_path / "out", {"b": content[:-1] + b"?", "d": {"other": "other"}})
    path = save_tree(tmp_path / "store", tree)
    assert _frames_of(path, b"b") == (-(-size // FRAME_SIZE) if size > FRAME_SIZE else 1)
    assert restore_tree(tmp_path / "store", tmp_path / "out", **how).status == "exact"
    assert_same_tree(tree, tmp_path / "out", ignore={"root"})


def _frames_of(path: Path, member: bytes) -> int:
    """In how many frames a member lies, told by where the next one begins."""
    index = Entry.read(path).index
    row = index.paths.index(member)
    return max(1, index.frames[row + 1] - index.frames[row])


def test_a_sparse_file_of_several_frames_comes_back(tmp_path: Path) -> None:
    """Regions of data that frames cut in two, between holes, come back where they were."""
    source = random.Random(50)
    data = {
        MIB * offset: source.randbytes(MIB * length) for offset, length in ((1, 3), (10, 9), (40, 1), (63, 7))
    }
    spec: dict[Any, Any] = {"big": Sparse(100 * MIB + 5, data), "z": "after"}
    tree = make_tree(tmp_path / "tree", spec)
    save_tree(tmp_path / "store", tree)
    for how in ("merge", "replace", "in-place"):
        restore_tree(tmp_path / "store", tmp_path / "out", mode=how)
        assert_same_tree(
            snapshot(tree, extents=True), snapshot(tmp_path / "out", extents=True), ignore={"root"}
        )


def test_a_file_of_very_many_holes_comes_back(tmp_path: Path) -> None:
    """A file with thousands of regions, whose map is long, comes back with every one of them."""
    tree = make_tree(
        tmp_path / "tree", {"sieve": Sparse(64 * MIB, {8192 * n: b"x" * 4096 for n in range(8000)})}
    )
    save_tree(tmp_path / "store", tree)
    restore_tree(tmp_path / "store", tmp_path / "out")
    assert_same_tree(snapshot(tree, extents=True), snapshot(tmp_path / "out", extents=True), ignore={"root"})


def test_special_files_are_skipped_and_counted(tmp_path: Path) -> None:
    """Sockets and fifos are left out, the count is in the seal, and nothing waits for a writer."""
    tree = make_tree(tmp_path / "tree", {"a": "a", "pipe": Fifo(), "sub": {"socket": Socket()}})
    path = save_tree(tmp_path / "store", tree)
    assert Entry.read(path).facts.skipped == {"socket, fifo or device": 2}
    restore_tree(tmp_path / "store", tmp_path / "out")
    found = snapshot(tmp_path / "out")
    assert set(found) == {b".", b"a", b"sub"}


def test_targets_of_all_roots_come_back(tmp_path: Path, clean_surroundings: Path) -> None:
    """The root itself together with targets of the home directory and elsewhere: each comes back in its own place."""
    home, elsewhere = clean_surroundings, tmp_path / "elsewhere"
    make_tree(tmp_path / "tree", {"in-root": "root", "sub": {"x": "x"}})
    make_tree(home / ".cache-of-mine", {"in-home": "home"})
    make_tree(elsewhere, {"in-abs": "abs"})
    paths = (".", "~/.cache-of-mine", str(elsewhere))
    save_tree(tmp_path / "store", tmp_path / "tree", *paths)
    for how in ("merge", "replace", "in-place"):
        shutil.rmtree(home / ".cache-of-mine")
        shutil.rmtree(elsewhere)
        out = tmp_path / f"out-{how}"
        report = restore_tree(tmp_path / "store", out, *paths, mode=how)
        assert report.status == "exact"
        assert_same_tree(tmp_path / "tree", out, ignore={"root"})
        assert (home / ".cache-of-mine" / "in-home").read_text() == "home"
        assert (elsewhere / "in-abs").read_text() == "abs"
        assert sorted(os.listdir(out)) == ["in-root", "sub"]


@pytest.mark.parametrize("how", MODES, ids=IDS)
def test_single_files_and_links_come_back(tmp_path: Path, how: dict[str, Any]) -> None:
    """Targets that are a file, a symlink and a dangling one come back, over nothing and over others of their kind."""
    spec: dict[Any, Any] = {
        "file": File(b"new", 0o600),
        "link": Symlink("file"),
        "dangling": Symlink("nowhere"),
        "deep": {"er": {"f": "f"}},
    }
    tree = make_tree(tmp_path / "tree", spec)
    paths = ("file", "link", "dangling", "deep/er/f")
    save_tree(tmp_path / "store", tree, *paths)
    make_tree(
        tmp_path / "old", {"file": "older and longer", "link": Symlink("elsewhere"), "dangling": "a file"}
    )
    for out in (tmp_path / "out", tmp_path / "old"):
        assert restore_tree(tmp_path / "store", out, *paths, **how).status == "exact"
        for path in paths:
            assert_same_tree(snapshot(tree / path), snapshot(out / path))
        assert (out / "link").readlink() == Path("file")


@pytest.mark.parametrize("how", MODES, ids=IDS)
def test_an_empty_root_comes_back(tmp_path: Path, how: dict[str, Any]) -> None:
    """An empty tree that was saved on purpose is restored as the nothing that it is."""
    (tmp_path / "empty").mkdir()
    save_tree(tmp_path / "store", tmp_path / "empty", allow_empty=True)
    assert restore_tree(tmp_path / "store", tmp_path / "out", **how).status == "exact"
    assert os.listdir(tmp_path / "out") == []
