"""Targets that hold more than a cache, or something else, or may not be written: what is done with each."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.scenes import EXTRA, NEW, OLD, entries, flip, saved, staging_in, tree_at
from tests.support import filesystems
from tests.support.capabilities import need, requires
from tests.support.cli import Cli, give
from tests.support.ordinary_user import NOBODY
from tests.support.snapshots import assert_same_tree, snapshot, unchanged
from tests.support.trees import Dir, File, Spec, make_tree

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
    open_store: Path, open_path: Path, nobody_cli: Cli
) -> None:
    """A volume mounted for all (owned by root, mode 0777) is filled by an ordinary user; its own mode stays."""
    need("tmpfs")
    root = nobody_cli.cwd
    (root / "tree").mkdir()
    with filesystems.tmpfs(at=root / "tree"):
        (root / "tree").chmod(0o777)
        for mode in ("--merge", "--replace"):
            command = ("restore", "--store", open_store, "--key", "k-1", "--root", root, "tree", mode)
            nobody_cli(*command).expect(0)
            assert_same_tree(open_store.parent / "source" / "tree", root / "tree", ignore=["root"])
            assert (root / "tree").stat().st_uid == 0
            assert not staging_in(root / "tree")
        assert (root / "tree" / "same").stat().st_uid == NOBODY


@pytest.mark.parametrize("old", ["a symlink to a directory", "a dangling symlink", "a file"])
def test_a_target_that_is_no_directory(old: str, open_store: Path, tmp_path: Path, cli: Cli) -> None:
    """A directory is merged over nothing else (exit 8); --replace takes a file or link away, never what it leads to."""
    place = tmp_path / "tree"
    elsewhere = tree_at(tmp_path, {"precious": b"1"}, "elsewhere")
    if old == "a file":
        place.write_bytes(b"a file")
    else:
        place.symlink_to("elsewhere" if "directory" in old else "nowhere")
    command = ("restore", "--store", open_store, "--key", "k-1", "tree")
    with unchanged(elsewhere):
        before = snapshot(place)
        refused = cli(*command).expect(8)
        assert ("symlink" if "link" in old else "file") in refused.stderr
        assert snapshot(place) == before
        flip(entries(open_store)[0], 100)
        assert cli(*command, "--replace", "--json").expect(0).json()["status"] == "refused"
        assert snapshot(place) == before
        saved(open_store, open_store.parent / "source", "k-2")
        report = (
            cli("restore", "--store", open_store, "--key", "k-2", "tree", "--replace", "--json")
            .expect(0)
            .json()
        )
        assert report["commit"] in ({"tree": "exchange"}, {"tree": "rename"})
    assert_same_tree(open_store.parent / "source" / "tree", place)
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


def test_an_empty_directory_is_taken_by_rename(open_store: Path, tmp_path: Path, cli: Cli) -> None:
    """An empty target, also a read-only one, is replaced as a whole in either mode."""
    for number, mode in enumerate(("--merge", "--replace")):
        root = tmp_path / str(number)
        (root / "tree").mkdir(parents=True)
        (root / "tree").chmod(0o555)
        report = (
            cli("restore", "--store", open_store, "--key", "k-1", "--root", root, mode, "--json")
            .expect(0)
            .json()
        )
        assert report["commit"] == {"tree": "rename"}
        assert_same_tree(open_store.parent / "source" / "tree", root / "tree")


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
    make: Callable[[Path, Cli], tuple[Path, Cli]], open_store: Path, tmp_path: Path, cli: Cli
) -> None:
    """A checkout, $HOME, the current directory: --replace merges there and warns, and takes nothing away."""
    root = tmp_path / "root"
    target = tree_at(root, OLD)
    root, own = make(root, cli)
    kept = {path for path in target.rglob("*") if path.is_file()} - {target / "was-file"}
    kept -= set((target / "sub" / "was-dir").rglob("*"))
    result = own(
        "restore", "--store", open_store, "--key", "k-1", "--root", root, "tree", "--replace", "--json"
    ).expect(0)
    report = result.json()
    assert any("merged, not replaced" in warning for warning in report["warnings"])
    assert "merged, not replaced" in result.stderr
    assert all(path.exists() for path in kept)
    assert (target / "changed").read_bytes() == b"new"
    own(
        "restore", "--store", open_store, "--key", "k-1", "--root", root, "tree", "--in-place", "--replace"
    ).expect(0)
    assert all(path.exists() for path in kept)
    flip(entries(open_store)[0], 100)
    before = {path: path.stat().st_mtime_ns for path in kept}
    own("restore", "--store", open_store, "--key", "k-1", "--root", root, "tree", "--replace").expect(0)
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


@requires("tmpfs")
@pytest.mark.parametrize("mode", ["--merge", "--replace", "--in-place"])
@pytest.mark.parametrize(("where", "code"), [("extra-dir/below", 0), ("sub/deep", 8)])
def test_what_is_mounted_in_a_target_is_never_touched(
    where: str, code: int, mode: str, open_store: Path, tmp_path: Path, cli: Cli
) -> None:
    """A mount where the entry has nothing stays as it is; one where the entry has files is exit 8, nothing done."""
    target = tree_at(tmp_path, OLD)
    with filesystems.tmpfs(at=target / where) as mounted:
        (mounted.path / "precious").write_bytes(b"1")
        (target / where).chmod(0o750)
        with unchanged(mounted.path):
            cli("restore", "--store", open_store, "--key", "k-1", "tree", mode).expect(code)
            assert not staging_in(tmp_path, target)
            if code:
                assert (target / "changed").read_bytes() == b"old"
                cli(
                    "restore", "--store", open_store, "--key", "k-1", "tree", "--in-place", "--replace"
                ).expect(8)
            else:
                assert (target / "changed").read_bytes() == b"new"
                cli(
                    "restore", "--store", open_store, "--key", "k-1", "tree", "--in-place", "--replace"
                ).expect(0)
