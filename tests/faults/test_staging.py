"""Targets that cannot simply be renamed into place: the report says how they were committed, the tree is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.scenes import EXTRA, OLD, entries, flip, quarantine, staging_in, tree_at
from tests.support import filesystems
from tests.support.capabilities import need
from tests.support.cli import Cli, give
from tests.support.flaky import flaky
from tests.support.snapshots import assert_same_tree, diff, fingerprint, snapshot


@dataclass
class Place:
    """A target called ``tree`` below ``root``, who restores it, and how it can be committed in each mode."""

    root: Path
    cli: Cli
    merge: set[str]
    replace: set[str]

    @property
    def target(self) -> Path:
        return self.root / "tree"


Maker = Callable[[ExitStack, Path, Cli, pytest.FixtureRequest], Place]


def on_a_mount_point(stack: ExitStack, base: Path, cli: Cli, request: pytest.FixtureRequest) -> Place:
    need("tmpfs")
    (base / "tree").mkdir()
    stack.enter_context(filesystems.tmpfs(at=base / "tree"))
    tree_at(base, OLD)
    return Place(base, cli, {"files"}, {"children"})


def inside_a_bind_mount(stack: ExitStack, base: Path, cli: Cli, request: pytest.FixtureRequest) -> Place:
    need("bind")
    tree_at(base / "real", OLD)
    (base / "mount").mkdir()
    stack.enter_context(filesystems.bind(base / "real", base / "mount"))
    return Place(base / "mount", cli, {"files"}, {"exchange"})


def itself_a_bind_mount(stack: ExitStack, base: Path, cli: Cli, request: pytest.FixtureRequest) -> Place:
    need("bind")
    tree_at(base / "real", OLD)
    (base / "tree").mkdir()
    stack.enter_context(filesystems.bind(base / "real" / "tree", base / "tree"))
    return Place(base, cli, {"files"}, {"children"})


def in_a_lower_layer(stack: ExitStack, base: Path, cli: Cli, request: pytest.FixtureRequest) -> Place:
    need("overlay", "tmpfs")
    below = stack.enter_context(filesystems.tmpfs())
    tree_at(below.path / "lower", OLD)
    top = stack.enter_context(filesystems.overlay(below.path / "lower"))
    return Place(top.path, cli, {"files"}, {"files"})


def below_a_closed_parent(stack: ExitStack, base: Path, cli: Cli, request: pytest.FixtureRequest) -> Place:
    nobody: Cli = request.getfixturevalue("nobody_cli")
    open_path: Path = request.getfixturevalue("open_path")
    give(tree_at(open_path / "closed", OLD))
    return Place(open_path / "closed", nobody, {"files"}, {"children"})


def where_names_cannot_be_exchanged(
    stack: ExitStack, base: Path, cli: Cli, request: pytest.FixtureRequest
) -> Place:
    need("fuse")
    disk = stack.enter_context(flaky(base / "backing"))
    tree_at(disk.backing, OLD)
    return Place(disk.mount, cli, {"files"}, {"rename"})


def among_ordinary_directories(
    stack: ExitStack, base: Path, cli: Cli, request: pytest.FixtureRequest
) -> Place:
    tree_at(base, OLD)
    return Place(base, cli, {"files"}, {"exchange"})


MAKERS = [
    on_a_mount_point,
    inside_a_bind_mount,
    itself_a_bind_mount,
    in_a_lower_layer,
    below_a_closed_parent,
    where_names_cannot_be_exchanged,
    among_ordinary_directories,
]


@pytest.fixture(params=MAKERS, ids=lambda maker: maker.__name__)
def place(request: pytest.FixtureRequest, tmp_path: Path, cli: Cli) -> Iterator[Place]:
    """Each of the places with an old tree in it."""
    (tmp_path / "place").mkdir()
    with ExitStack() as stack:
        yield request.param(stack, tmp_path / "place", cli, request)


def merged(new: Path, old: Path) -> None:
    """Fail unless ``old`` is what merging ``new`` over the old tree gives."""
    for name in EXTRA:
        assert (old / name).is_file(), name
        (old / name).unlink()
    (old / "extra-dir" / "below").rmdir()
    (old / "extra-dir").rmdir()
    # Taking the extra names away changed the times of the directories that held them.
    assert not diff(snapshot(new), times_set(snapshot(old), new, (b".", b"sub/deep")))


def times_set(nodes: Any, like: Path, paths: tuple[bytes, ...]) -> Any:
    for path, one in snapshot(like).items():
        if path in paths:
            nodes[path] = type(one)(**{**nodes[path].__dict__, "mtime_ns": one.mtime_ns})
    return nodes


def test_a_merge(place: Place, open_store: Path) -> None:
    """Merging lays the entry's files over the old ones, keeps the others and counts them; twice is the same."""
    command = ("restore", "--store", open_store, "--key", "k-1", "--root", place.root, "tree", "--json")
    report = place.cli(*command).expect(0).json()
    assert report["mode"] == "merge"
    assert set(report["commit"].values()) == place.merge
    assert report["extra"] == len(EXTRA)
    assert not staging_in(place.root, place.target)
    place.cli(*command).expect(0)
    merged(open_store.parent / "source" / "tree", place.target)


def test_a_replacement(place: Place, open_store: Path) -> None:
    """Replacing leaves exactly the entry's tree; twice is the same."""
    command = (
        "restore",
        "--store",
        open_store,
        "--key",
        "k-1",
        "--root",
        place.root,
        "tree",
        "--json",
        "--replace",
    )
    report = place.cli(*command).expect(0).json()
    assert set(report["commit"].values()) == place.replace
    assert not report["warnings"]
    assert_same_tree(open_store.parent / "source" / "tree", place.target)
    place.cli(*command).expect(0)
    assert_same_tree(open_store.parent / "source" / "tree", place.target)
    assert not staging_in(place.root, place.target)


def test_a_restore_in_place(place: Place, open_store: Path) -> None:
    """In place, with --replace, the target becomes the entry too."""
    command = ("restore", "--store", open_store, "--key", "k-1", "--root", place.root, "tree", "--in-place")
    place.cli(*command, "--replace").expect(0)
    assert_same_tree(open_store.parent / "source" / "tree", place.target)
    assert not staging_in(place.root, place.target)


@pytest.mark.parametrize("mode", ["--merge", "--replace", "--in-place"])
def test_a_damaged_entry(mode: str, place: Place, open_store: Path) -> None:
    """A refused entry leaves the tree as it was, down to inode numbers and times, wherever it lies."""
    flip(entries(open_store)[0], 100)
    before = fingerprint(place.target)
    report = place.cli(
        "restore", "--store", open_store, "--key", "k-1", "--root", place.root, "tree", "--json", mode
    )
    assert report.expect(0).json()["status"] == "refused"
    assert not diff(before, fingerprint(place.target))
    assert not staging_in(place.root, place.target)
    assert len(quarantine(open_store)) == 1
