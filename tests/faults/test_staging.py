"""Targets that cannot simply be renamed into place: the report says how they were committed, the tree is right."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.scenes import entries, flip, quarantine, saved, staging_in, tree_at
from tests.support import filesystems
from tests.support.capabilities import need
from tests.support.cli import Cli, give
from tests.support.flaky import flaky
from tests.support.ordinary_user import NOBODY
from tests.support.snapshots import assert_same_tree, diff, fingerprint, snapshot, unchanged
from tests.support.trees import Dir, File, Spec, Symlink, make_tree

NEW: dict[Any, Any] = {
    "same": b"the same in both",
    "changed": b"new",
    "sub": Dir({"deep": Dir({"leaf": b"new leaf"}), "link": Symlink("deep/leaf"), "was-dir": b"a file"}),
    "was-file": Dir({"inside": b"x"}),
    "fresh": Dir({"file": b"fresh"}, mode=0o750),
}
OLD: dict[Any, Any] = {
    "same": b"the same in both",
    "changed": b"old",
    "sub": Dir({"deep": Dir({"leaf": b"old leaf", "extra": b"1"}), "was-dir": Dir({"gone": b"x"})}),
    "was-file": b"a file",
    "extra-dir": Dir({"extra": b"2", "below": Dir({"extra": b"3"})}),
    "extra": b"4",
}
EXTRA = ("sub/deep/extra", "extra-dir/extra", "extra-dir/below/extra", "extra")


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


@pytest.fixture
def store(open_path: Path) -> Path:
    """A store with the new tree under k-1, that everybody may write."""
    tree_at(open_path / "source", NEW)
    saved(open_path / "store", open_path / "source", "k-1")
    for folder, _, files in os.walk(open_path / "store"):
        os.chmod(folder, 0o777)
        for name in files:
            os.chmod(os.path.join(folder, name), 0o666)
    return open_path / "store"


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


def test_a_merge(place: Place, store: Path) -> None:
    """Merging lays the entry's files over the old ones, keeps the others and counts them; twice is the same."""
    command = ("restore", "--store", store, "--key", "k-1", "--root", place.root, "tree", "--json")
    report = place.cli(*command).expect(0).json()
    assert report["mode"] == "merge"
    assert set(report["commit"].values()) == place.merge
    assert report["extra"] == len(EXTRA)
    assert not staging_in(place.root, place.target)
    place.cli(*command).expect(0)
    merged(store.parent / "source" / "tree", place.target)


def test_a_replacement(place: Place, store: Path) -> None:
    """Replacing leaves exactly the entry's tree; twice is the same."""
    command = (
        "restore",
        "--store",
        store,
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
    assert_same_tree(store.parent / "source" / "tree", place.target)
    place.cli(*command).expect(0)
    assert_same_tree(store.parent / "source" / "tree", place.target)
    assert not staging_in(place.root, place.target)


def test_a_restore_in_place(place: Place, store: Path) -> None:
    """In place, with --replace, the target becomes the entry too."""
    command = ("restore", "--store", store, "--key", "k-1", "--root", place.root, "tree", "--in-place")
    place.cli(*command, "--replace").expect(0)
    assert_same_tree(store.parent / "source" / "tree", place.target)
    assert not staging_in(place.root, place.target)


@pytest.mark.parametrize("mode", ["--merge", "--replace", "--in-place"])
def test_a_damaged_entry(mode: str, place: Place, store: Path) -> None:
    """A refused entry leaves the tree as it was, down to inode numbers and times, wherever it lies."""
    flip(entries(store)[0], 100)
    before = fingerprint(place.target)
    report = place.cli(
        "restore", "--store", store, "--key", "k-1", "--root", place.root, "tree", "--json", mode
    )
    assert report.expect(0).json()["status"] == "refused"
    assert not diff(before, fingerprint(place.target))
    assert not staging_in(place.root, place.target)
    assert len(quarantine(store)) == 1


MODULES: dict[Any, Spec] = {
    "cache": Dir({"lock": File(b"")}),
    "example.org": Dir(
        {
            "mod@v1.0.0": Dir(
                {
                    "go.mod": File(b"module example", mode=0o444),
                    "inner": Dir({"a.go": File(b"package inner", mode=0o444)}, mode=0o555),
                    "empty": Dir({}, mode=0o555),
                },
                mode=0o555,
            )
        },
        mode=0o555,
    ),
}
OLD_MODULES: dict[Any, Spec] = {
    "example.org": Dir(
        {
            "mod@v0.9.0": Dir({"go.mod": File(b"module old", mode=0o444)}, mode=0o555),
            "mod@v1.0.0": Dir(
                {
                    "go.mod": File(b"module older", mode=0o444),
                    "inner": Dir({"b.go": File(b"package b", mode=0o444)}, mode=0o555),
                },
                mode=0o555,
            ),
        },
        mode=0o555,
    ),
    "golang.org": Dir({"x": Dir({"y": File(b"y", mode=0o444)}, mode=0o555)}, mode=0o555),
}


@pytest.mark.parametrize(
    ("mode", "closed_parent"),
    [("absent", False), *itertools.product(["merge", "replace", "in-place"], [False, True])],
)
def test_read_only_directories_of_an_ordinary_user(
    mode: str, closed_parent: bool, open_path: Path, nobody_cli: Cli
) -> None:
    """A Go module cache, all directories read-only, is restored and restored again by who owns it."""
    # Where the parent is closed staging is inside, so the top must allow that; further down nothing need.
    top = 0o755 if closed_parent else 0o555
    new = make_tree(nobody_cli.cwd / "source" / "mod", Dir(MODULES, top))
    give(nobody_cli.cwd / "source")
    store = nobody_cli.cwd / "store"
    nobody_cli("save", "--store", store, "--key", "k-1", "mod", "--root", new.parent).expect(0)
    root = open_path / "closed" if closed_parent else nobody_cli.cwd
    if mode != "absent":
        give(make_tree(root / "mod", Dir(OLD_MODULES, top)))
    how = {"absent": ("--merge",), "in-place": ("--in-place", "--replace")}.get(mode, (f"--{mode}",))
    for _ in range(2):
        nobody_cli("restore", "--store", store, "--key", "k-1", "--root", root, *how).expect(0)
        if mode == "merge":
            assert (root / "mod" / "golang.org" / "x" / "y").read_bytes() == b"y"
            assert (root / "mod" / "example.org" / "mod@v0.9.0").stat().st_mode & 0o777 == 0o555
            for name in ("go.mod", "inner/a.go"):
                path = f"example.org/mod@v1.0.0/{name}"
                assert (root / "mod" / path).read_bytes() == (new / path).read_bytes()
            assert (root / "mod" / "example.org").stat().st_mode & 0o777 == 0o555
        else:
            assert_same_tree(new, root / "mod")
        assert not staging_in(root, root / "mod")
    if mode == "merge":
        nobody_cli("restore", "--store", store, "--key", "k-1", "--root", root, "--replace").expect(0)
        assert_same_tree(new, root / "mod")


def test_a_directory_that_everybody_may_write_but_is_not_ours(
    store: Path, open_path: Path, nobody_cli: Cli
) -> None:
    """A volume mounted for all (owned by root, mode 0777) is filled by an ordinary user; its own mode stays."""
    need("tmpfs")
    root = nobody_cli.cwd
    (root / "tree").mkdir()
    with filesystems.tmpfs(at=root / "tree"):
        (root / "tree").chmod(0o777)
        for mode in ("--merge", "--replace"):
            command = ("restore", "--store", store, "--key", "k-1", "--root", root, "tree", mode)
            nobody_cli(*command).expect(0)
            assert_same_tree(store.parent / "source" / "tree", root / "tree", ignore=["root"])
            assert (root / "tree").stat().st_uid == 0
            assert not staging_in(root / "tree")
        assert (root / "tree" / "same").stat().st_uid == NOBODY


@pytest.mark.parametrize("old", ["a symlink to a directory", "a dangling symlink", "a file"])
def test_a_target_that_is_no_directory(old: str, store: Path, tmp_path: Path, cli: Cli) -> None:
    """A directory is merged over nothing else (exit 8); --replace takes a file or link away, never what it leads to."""
    place = tmp_path / "tree"
    elsewhere = tree_at(tmp_path, {"precious": b"1"}, "elsewhere")
    if old == "a file":
        place.write_bytes(b"a file")
    else:
        place.symlink_to("elsewhere" if "directory" in old else "nowhere")
    command = ("restore", "--store", store, "--key", "k-1", "tree")
    with unchanged(elsewhere):
        before = snapshot(place)
        refused = cli(*command).expect(8)
        assert ("symlink" if "link" in old else "file") in refused.stderr
        assert snapshot(place) == before
        flip(entries(store)[0], 100)
        assert cli(*command, "--replace", "--json").expect(0).json()["status"] == "refused"
        assert snapshot(place) == before
        saved(store, store.parent / "source", "k-2")
        report = (
            cli("restore", "--store", store, "--key", "k-2", "tree", "--replace", "--json").expect(0).json()
        )
        assert report["commit"] in ({"tree": "exchange"}, {"tree": "rename"})
    assert_same_tree(store.parent / "source" / "tree", place)
    assert not staging_in(tmp_path)


def test_a_file_over_a_directory(tmp_path: Path, cli: Cli) -> None:
    """An entry that is one file is not put over a directory (exit 8) unless it is to be replaced."""
    store = tmp_path / "store"
    (tmp_path / "tree").write_bytes(b"one file")
    cli("save", "--store", store, "--key", "k-1", "tree").expect(0)
    (tmp_path / "tree").unlink()
    target = tree_at(tmp_path, OLD)
    with unchanged(target):
        assert "directory" in cli("restore", "--store", store, "--key", "k-1").expect(8).stderr
    cli("restore", "--store", store, "--key", "k-1", "--replace").expect(0)
    assert target.read_bytes() == b"one file"


def test_an_empty_directory_is_taken_by_rename(store: Path, tmp_path: Path, cli: Cli) -> None:
    """An empty target, also a read-only one, is replaced as a whole in either mode."""
    for number, mode in enumerate(("--merge", "--replace")):
        root = tmp_path / str(number)
        (root / "tree").mkdir(parents=True)
        (root / "tree").chmod(0o555)
        report = (
            cli("restore", "--store", store, "--key", "k-1", "--root", root, mode, "--json").expect(0).json()
        )
        assert report["commit"] == {"tree": "rename"}
        assert_same_tree(store.parent / "source" / "tree", root / "tree")


def _checkout(root: Path, cli: Cli) -> tuple[Path, Cli]:
    tree_at(root / "tree", {"HEAD": b"ref: refs/heads/main"}, ".git")
    return root, cli


def _current(root: Path, cli: Cli) -> tuple[Path, Cli]:
    return root, Cli(cli.home, root / "tree")


def _above_current(root: Path, cli: Cli) -> tuple[Path, Cli]:
    (root / "tree" / "work").mkdir()
    return root, Cli(cli.home, root / "tree" / "work")


def _home(root: Path, cli: Cli) -> tuple[Path, Cli]:
    return root, Cli(root / "tree", root)


@pytest.mark.parametrize(
    "make", [_checkout, _current, _above_current, _home], ids=lambda make: make.__name__[1:]
)
def test_what_holds_more_than_a_cache_is_only_merged(
    make: Callable[[Path, Cli], tuple[Path, Cli]], store: Path, tmp_path: Path, cli: Cli
) -> None:
    """A checkout, $HOME, the current directory: --replace merges there and warns, and takes nothing away."""
    root = tmp_path / "root"
    target = tree_at(root, OLD)
    root, own = make(root, cli)
    kept = {path for path in target.rglob("*") if path.is_file()} - {target / "was-file"}
    kept -= set((target / "sub" / "was-dir").rglob("*"))
    result = own(
        "restore", "--store", store, "--key", "k-1", "--root", root, "tree", "--replace", "--json"
    ).expect(0)
    report = result.json()
    assert any("merged, not replaced" in warning for warning in report["warnings"])
    assert "merged, not replaced" in result.stderr
    assert all(path.exists() for path in kept)
    assert (target / "changed").read_bytes() == b"new"
    own(
        "restore", "--store", store, "--key", "k-1", "--root", root, "tree", "--in-place", "--replace"
    ).expect(0)
    assert all(path.exists() for path in kept)
    flip(entries(store)[0], 100)
    before = {path: path.stat().st_mtime_ns for path in kept}
    own("restore", "--store", store, "--key", "k-1", "--root", root, "tree", "--replace").expect(0)
    assert {path: path.stat().st_mtime_ns for path in kept} == before


def test_the_root_itself(tmp_path: Path, cli: Cli) -> None:
    """An entry saved from "." is merged over the root, whose own other files and mode stay."""
    tree_at(tmp_path, NEW, "a")
    store = tmp_path / "store"
    cli("save", "--store", store, "--key", "k-1", "--root", tmp_path / "a", ".").expect(0)
    target = tree_at(tmp_path, OLD, "b")
    target.chmod(0o711)
    report = cli("restore", "--store", store, "--key", "k-1", "--root", target, "--replace", "--json")
    assert report.expect(0).json()["warnings"]
    assert target.stat().st_mode & 0o777 == 0o711
    merged_without_root(tmp_path / "a", target)


def merged_without_root(new: Path, old: Path) -> None:
    for name in EXTRA:
        assert (old / name).is_file(), name
    for path, one in snapshot(new).items():
        if one.kind == "file":
            assert (old / os.fsdecode(path)).read_bytes() == (new / os.fsdecode(path)).read_bytes()
