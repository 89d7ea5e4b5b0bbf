"""`cachekit save`: what a PATH may be, and what is left out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.in_process import Here
from tests.support.trees import Fifo, Symlink, make_tree


def names(here: Here, key: str) -> list[str]:
    """List the members of an entry by name, sorted."""
    return sorted(member["path"] for member in here("show", key, "--files", "--json").expect().json())


def test_file(here: Here) -> None:
    """A PATH that is a file is a target of its own."""
    make_tree(here.root, {"a.txt": b"alone", "b.txt": b"not asked for"})
    assert here.save("k", "a.txt")["targets"] == ["a.txt"]
    assert names(here, "k") == ["a.txt"]


def test_directory(here: Here) -> None:
    """A PATH that is a directory is saved with everything below it."""
    make_tree(here.root, {"tree": {"a": b"1", "sub": {"b": b"2", "none": {}}}})
    report = here.save("k", "tree")
    assert (report["files"], report["members"]) == (2, 5)
    assert names(here, "k") == ["tree", "tree/a", "tree/sub", "tree/sub/b", "tree/sub/none"]


def test_symlink_is_saved_as_a_link(here: Here) -> None:
    """A PATH that is a symlink is saved as the link, not as what it leads to, also with a slash at its end."""
    make_tree(here.root, {"real": {"a": b"1"}, "link": Symlink("real")})
    here.save("k", "link/")
    os.unlink("link")
    here.restore("k", "link")
    assert os.readlink("link") == "real"


def test_dangling_symlink(here: Here) -> None:
    """A link that leads nowhere is a PATH like any other."""
    make_tree(here.root, {"link": Symlink("nowhere")})
    assert here.save("k", "link")["members"] == 1


def test_glob(here: Here) -> None:
    """A glob is a target for each match; what does not match is left out."""
    make_tree(here.root, {"pkg-a": {"x": b"1"}, "pkg-b": {"y": b"2"}, "other": {"z": b"3"}})
    assert here.save("k", "pkg-*")["targets"] == ["pkg-a", "pkg-b"]


def test_recursive_glob(here: Here) -> None:
    """`**` reaches any depth."""
    make_tree(here.root, {"a": {"b": {"node_modules": {"x": b"1"}}, "node_modules": {"y": b"2"}}})
    assert here.save("k", "**/node_modules")["targets"] == ["a/b/node_modules", "a/node_modules"]


@pytest.mark.parametrize("name", ["a[1]", "what?", "*", "{x}", "-rf", " "])
def test_name_that_looks_like_a_glob_or_an_option(here: Here, name: str) -> None:
    """What is there under exactly the name given is taken literally."""
    make_tree(here.root, {name: b"literally", "a1": b"not asked for", "whatX": b"not asked for"})
    assert here.save("k", "--", name)["targets"] == [name]


def test_home(here: Here) -> None:
    """`~` is the home directory, and comes back there from another root."""
    make_tree(here.home / ".npm", {"a": b"1"})
    assert here.save("k", "~/.npm")["targets"] == ["~/.npm"]
    assert names(here, "k") == [".cachekit-home/.npm", ".cachekit-home/.npm/a"]
    (here.home / ".npm" / "a").unlink()
    here.restore("k", "~/.npm", "--root", here.root.parent)
    assert (here.home / ".npm" / "a").read_bytes() == b"1"


def test_absolute_path_under_the_root(here: Here) -> None:
    """An absolute path under the root is the same target as the relative one."""
    make_tree(here.root, {"tree": {"a": b"1"}})
    assert here.save("k", here.root / "tree")["targets"] == ["tree"]


def test_path_outside_root_and_home(here: Here, tmp_path: Path) -> None:
    """A path outside of both is a target of the root directory, by its absolute name."""
    make_tree(tmp_path / "elsewhere", {"a": b"1"})
    target = str(tmp_path / "elsewhere")
    assert here.save("k", "../elsewhere")["targets"] == [target]
    (tmp_path / "elsewhere" / "a").unlink()
    here.restore("k", target)
    assert (tmp_path / "elsewhere" / "a").read_bytes() == b"1"


def test_the_root_itself(here: Here) -> None:
    """`.` saves what is in the root, with plain names; restoring merges into the root."""
    make_tree(here.root, {"a": b"1", "sub": {"b": b"2"}})
    assert here.save("k", ".")["targets"] == ["."]
    assert names(here, "k") == ["a", "sub", "sub/b"]
    os.unlink("sub/b")
    make_tree(here.root, {"mine": b"stays"})
    here.restore("k")
    assert sorted(os.listdir(".")) == ["a", "mine", "sub"]
    assert Path("sub/b").read_bytes() == b"2"


def test_duplicates_and_nested_paths(here: Here) -> None:
    """A PATH given twice, or inside another one, is saved once."""
    make_tree(here.root, {"tree": {"sub": {"a": b"1"}}})
    report = here.save("k", "tree/sub", "tree", "./tree", "tree/sub/a", here.root / "tree")
    assert report["targets"] == ["tree"]
    assert report["files"] == 1


def test_root(here: Here, tmp_path: Path) -> None:
    """Relative paths and globs are looked up below --root."""
    make_tree(tmp_path / "project", {"tree": {"a": b"1"}, "tree-2": {}})
    assert here.save("k", "--root", tmp_path / "project", "tree*")["targets"] == ["tree", "tree-2"]


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("*.log", ["t", "t/a.txt", "t/sub", "t/sub/keep"]),
        ("sub", ["t", "t/a.log", "t/a.txt"]),
        ("sub/", ["t", "t/a.log", "t/a.txt"]),
        ("t/*/keep", ["t", "t/a.log", "t/a.txt", "t/sub", "t/sub/b.log"]),
        ("t/*.log", ["t", "t/a.txt", "t/sub", "t/sub/b.log", "t/sub/keep"]),
        ("**/b.log", ["t", "t/a.log", "t/a.txt", "t/sub", "t/sub/keep"]),
        ("[ab].log", ["t", "t/a.txt", "t/sub", "t/sub/keep"]),
        ("no-such-name", ["t", "t/a.log", "t/a.txt", "t/sub", "t/sub/b.log", "t/sub/keep"]),
    ],
)
def test_exclude(here: Here, pattern: str, left: list[str]) -> None:
    """A pattern without a slash leaves out a name at any depth, one with a slash a whole path."""
    make_tree(here.root, {"t": {"a.log": b"1", "a.txt": b"2", "sub": {"b.log": b"3", "keep": b"4"}}})
    here.save("k", "t", "--exclude", pattern)
    assert names(here, "k") == left


@pytest.mark.parametrize("start", ["~/", "{home}/"])
@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("tool/unwanted", ["tool/wanted", "tool/wanted/unwanted", "tool/wanted/x"]),
        ("tool/unwanted/", ["tool/wanted", "tool/wanted/unwanted", "tool/wanted/x"]),
        ("tool/*/x", ["tool/unwanted", "tool/wanted", "tool/wanted/unwanted"]),
        (
            "unwanted",
            ["tool/unwanted", "tool/unwanted/x", "tool/wanted", "tool/wanted/unwanted", "tool/wanted/x"],
        ),
    ],
)
def test_exclude_below_home(here: Here, start: str, pattern: str, left: list[str]) -> None:
    """A pattern that begins with ~/ or the home directory is a place there, as a PATH is; never a name anywhere."""
    make_tree(here.home, {"tool": {"unwanted": {"x": b"1"}, "wanted": {"unwanted": b"2", "x": b"3"}}})
    here.save("k", "~/tool", "--exclude", start.format(home=here.home) + pattern)
    assert names(here, "k") == [f".cachekit-home/{name}" for name in ["tool", *left]]


def test_exclude_below_the_root(here: Here, tmp_path: Path) -> None:
    """A pattern that begins with the root's path is below the root, also where the root is written through a link."""
    make_tree(here.root, {"t": {"a": b"1", "sub": {"b": b"2"}}})
    (tmp_path / "link").symlink_to(here.root)
    for number, root in enumerate((here.root, tmp_path / "link")):
        here.save(f"k{number}", "t", "--exclude", f"{root}/t/sub")
        assert names(here, f"k{number}") == ["t", "t/a"]


@pytest.mark.parametrize("pattern", ["pkg/old/modules", "pkg/old", "old", "pkg/o*/modules/"])
def test_exclude_of_what_a_glob_matches(here: Here, pattern: str) -> None:
    """What a glob matches is left out if it, or a directory above it, is excluded; if that is all of it, exit 8."""
    make_tree(here.root, {"pkg": {name: {"modules": {"a": b"1"}} for name in ("new", "old")}})
    assert here.save("k", "**/modules", "--exclude", pattern)["targets"] == ["pkg/new/modules"]
    done = here("save", "--key", "k2", "**/modules", "--exclude", pattern, "--exclude", "modules").expect(8)
    assert "is excluded" in done.stderr


def test_excludes_add_up_and_are_counted(here: Here) -> None:
    """--exclude may be repeated; the report and the closing line say how many names were left out."""
    make_tree(here.root, {"t": {"a.log": b"1", "b.tmp": b"2", "c": b"3"}})
    done = here("save", "--key", "k", "t", "--exclude", "*.log", "--exclude", "*.tmp", "--json").expect()
    assert done.json()["skipped"] == {"excluded": 2}
    assert "left out: 2 (excluded)" in done.stderr


def test_special_files_are_skipped_and_counted(here: Here) -> None:
    """A fifo is left out, counted, and does not make the save wait."""
    make_tree(here.root, {"t": {"pipe": Fifo(), "a": b"1"}})
    assert here.save("k", "t")["skipped"] == {"socket, fifo or device": 1}


@pytest.mark.parametrize("path", ["nothing", "no*thing", "t/none/*"])
def test_nothing_matched(here: Here, path: str) -> None:
    """A PATH that matches nothing is exit 8, names the place where it was looked for, and saves nothing."""
    make_tree(here.root, {"t": {"a": b"1"}})
    done = here("save", "--key", "k", "t", path).expect(8)
    assert str(here.root / path) in done.stderr
    assert here.entries() == []


def test_empty_tree(here: Here) -> None:
    """A tree of directories alone is exit 8, unless --allow-empty says that it is meant."""
    make_tree(here.root, {"t": {"sub": {}}})
    done = here("save", "--key", "k", "t").expect(8)
    assert "--allow-empty" in done.stderr
    assert here.entries() == []
    assert here.save("k", "t", "--allow-empty")["status"] == "saved"
    os.rmdir("t/sub")
    here.restore("k")
    assert Path("t/sub").is_dir()


def test_everything_excluded(here: Here) -> None:
    """A tree from which everything was excluded is empty too."""
    make_tree(here.root, {"t": {"a": b"1"}})
    here("save", "--key", "k", "t", "--exclude", "*").expect(8)
