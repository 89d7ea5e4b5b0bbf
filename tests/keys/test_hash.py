"""`{hash:...}`: which files count, and what the digest depends on."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekit.cache.keys.hashing import Hashed, hash_files
from cachekit.errors import InvalidRequest, SourceUnreadable
from tests.support.capabilities import requires
from tests.support.cli import Cli
from tests.support.trees import make_tree


def hashed(root: Path | str, globs: str, *excluded: str) -> Hashed:
    """Hash what must match."""
    found = hash_files(str(root), globs, excluded)
    assert found is not None
    return found


def names(root: Path, globs: str, *excluded: str) -> list[str]:
    """Name the files that count."""
    found = hash_files(str(root), globs, excluded)
    return [os.fsdecode(name) for name, _ in found.files] if found else []


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout."""
    make_tree(
        tmp_path,
        {
            "package-lock.json": b"1",
            ".npmrc": b"2",
            "a": {"package-lock.json": b"3", "b": {"package-lock.json": b"4", "x.txt": b"5"}},
            "node_modules": {"m": {"package-lock.json": b"6"}},
            ".git": {"index": b"7", "package-lock.json": b"8"},
            "[odd]": b"9",
        },
    )
    return tmp_path


@pytest.mark.parametrize(
    ("globs", "expected"),
    [
        ("package-lock.json", ["package-lock.json"]),
        ("./package-lock.json", ["package-lock.json"]),
        ("*/package-lock.json", ["a/package-lock.json"]),
        (
            "**/package-lock.json,!node_modules",
            ["a/b/package-lock.json", "a/package-lock.json", "package-lock.json"],
        ),
        ("a/**", ["a/b/package-lock.json", "a/b/x.txt", "a/package-lock.json"]),
        ("a/**,!*.txt", ["a/b/package-lock.json", "a/package-lock.json"]),
        ("a/**,!a/b", ["a/package-lock.json"]),
        ("a/b/x.txt,!a", []),
        ("[odd]", ["[odd]"]),
        ("[.]npmrc", [".npmrc"]),
        (".git/*", [".git/index", ".git/package-lock.json"]),
        ("*", [".npmrc", "[odd]", "package-lock.json"]),
        ("a", []),
        ("a/*,package-lock.json , a/b/?.txt", ["a/b/x.txt", "a/package-lock.json", "package-lock.json"]),
        ("package-lock.json/x", []),
    ],
)
def test_which_files(root: Path, globs: str, expected: list[str]) -> None:
    """Globs match whole names below the root, `!` leaves out, `.git` counts only where it is named."""
    (root / "node_modules" / "m" / "package-lock.json").unlink()
    assert names(root, globs) == expected if expected else hash_files(str(root), globs) is None


def test_own_paths_do_not_count(root: Path) -> None:
    """What a cache's own paths hold is left out, for it is not there when the cache is restored."""
    assert "node_modules/m/package-lock.json" in names(root, "**/package-lock.json")
    assert "node_modules/m/package-lock.json" not in names(root, "**/package-lock.json", "./node_modules")
    in_full = "node_modules/m/package-lock.json"
    assert names(root, in_full, "./node_modules") == [in_full]


@given(
    files=st.dictionaries(st.text("abc.", min_size=1).filter(lambda n: n.strip(".")), st.binary(max_size=9))
)
def test_definition(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    """The digest is what docs/keys.md says, of names and contents, in whatever order, place, mode and time."""
    places = [tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two") / "deeper"]
    places[1].mkdir()
    for number, place in enumerate(places):
        order = list(files)
        random.Random(number).shuffle(order)
        for name in order:
            (place / name).write_bytes(files[name])
            os.utime(place / name, ns=(number, number))
            (place / name).chmod(0o600 + number * 0o44)
    found = [hash_files(str(place), "*") for place in places]
    assert found[0] == found[1]
    if not files:
        assert found[0] is None
        return
    total = b"".join(name.encode() + b"\0" + hashlib.sha256(files[name]).digest() for name in sorted(files))
    assert found[0] is not None
    assert found[0].digest == hashlib.sha256(total).hexdigest()[:32]


@pytest.mark.parametrize("change", ["content", "name", "more", "less", "moved"])
def test_every_change_counts(root: Path, change: str) -> None:
    """Another content, name or set of files gives another digest."""
    before = hashed(root, "a/**").digest
    file = root / "a" / "b" / "x.txt"
    if change == "content":
        file.write_bytes(b"6")
    elif change == "name":
        file.rename(file.with_name("y.txt"))
    elif change == "more":
        (root / "a" / "new").touch()
    elif change == "less":
        file.unlink()
    else:
        file.rename(root / "a" / "x.txt")
    assert hashed(root, "a/**").digest != before


def test_links(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A link counts with the content that it leads to, wherever; links to directories are not searched."""
    outside = tmp_path_factory.mktemp("outside")
    make_tree(outside, {"package-lock.json": b"1", "d": {"f": b""}})
    plain = hashed(root, "package-lock.json").digest
    (root / "package-lock.json").unlink()
    (root / "package-lock.json").symlink_to(outside / "package-lock.json")
    (root / "link").symlink_to(outside / "d")
    assert hashed(root, "package-lock.json").digest == plain
    assert names(root, "link/**") == ["link/f"], "a directory that is named is searched"
    assert not [name for name in names(root, "**") if name.startswith("link")]


@pytest.mark.parametrize("glob", ["dangling", "dangl*", "fifo", "f?fo", "/dev/null"])
def test_unreadable(root: Path, glob: str) -> None:
    """What is matched and is no readable file is an error, never left out in silence; nothing waits for a FIFO."""
    (root / "dangling").symlink_to("nowhere")
    os.mkfifo(root / "fifo")
    with pytest.raises(InvalidRequest if glob.startswith("/") else SourceUnreadable):
        hash_files(str(root), glob)


@requires("unprivileged")
@pytest.mark.parametrize(("place", "glob"), [("a/x", "a/**"), ("a", "a/**"), ("a", "a/x"), ("a", "*/x")])
def test_no_permission(nobody_cli: Cli, open_path: Path, place: str, glob: str) -> None:
    """A file or directory that may not be read is an error with exit code 8."""
    make_tree(open_path, {"a": {"x": b"1"}})
    (open_path / place).chmod(0)
    assert "Permission denied" in nobody_cli("key", f"{{hash:{glob}}}", "--root", open_path).expect(8).stderr


@pytest.mark.parametrize("glob", ["", ",", "../x", "a/../../x", "~/x", "a,,b", "!a", "a\0b"])
def test_bad_globs(root: Path, glob: str) -> None:
    """A glob that leads out of the root, or is empty, is refused."""
    with pytest.raises(InvalidRequest):
        hash_files(str(root), glob)


def test_deep_trees(tmp_path: Path) -> None:
    """A tree deeper than Python's stack is searched."""
    place = tmp_path
    for _ in range(400):
        place /= "d"
    place.mkdir(parents=True)
    (place / "lock").touch()
    assert len(names(tmp_path, "**/lock")) == 1
