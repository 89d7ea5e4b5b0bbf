"""Names, links and kinds that nobody should restore, in entries whose seal and digests are right.

Each test is named after the attack. It is refused for the rule that it breaks, told by its sentence, before
anything is written; the control is `test_an_honest_entry_of_the_same_make_is_restored`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cachekit.errors import Damaged
from tests.support.archives import (
    Member,
    directory,
    entry_of,
    file_entry,
    hard_link,
    restore_tree,
    save_tree,
    symlink,
)
from tests.support.refusals import HONEST, TREE, refuse
from tests.support.snapshots import assert_same_tree, unchanged
from tests.support.trees import Symlink, make_tree


def test_an_honest_entry_of_the_same_make_is_restored(place: Path) -> None:
    """What the attacks are made with makes a good entry when nothing is wrong with it."""
    members = [
        TREE,
        HONEST,
        symlink(b"tree/link", b"/etc/passwd"),
        hard_link(b"tree/name", b"tree/file"),
        directory(b"tree/sub"),
        Member(b"tree/sub/sparse", content=b"x" * 512, segments=((512, 512), (9000, 0)), length=9000),
    ]
    file_entry(place / "store", entry_of(members).seal())
    report = restore_tree(place / "store", place / "root")
    assert (report.status, report.files) == ("exact", 3)
    tree = place / "root" / "tree"
    assert (tree / "name").read_bytes() == (tree / "old").read_bytes().replace(b"old", b"honest")
    assert (tree / "name").samefile(tree / "file")
    assert (tree / "link").readlink() == Path("/etc/passwd")
    assert (tree / "sub" / "sparse").stat().st_size == 9000


@pytest.mark.parametrize(
    "name",
    [
        b"tree/../../victim/new",
        b"../victim/new",
        b"..",
        b"tree/..",
        b"tree/sub/../../../victim/secret",
    ],
)
def test_dot_dot_member(place: Path, name: bytes) -> None:
    """A member whose name climbs out with `..` is refused."""
    refuse(place, entry_of([TREE, Member(name, content=b"evil")]).seal(), "leads out of its directory")


@pytest.mark.parametrize("name", [b"/etc/cachekit-attack", b"//etc/cachekit-attack", b"/"])
def test_absolute_member(place: Path, name: bytes) -> None:
    """A member with an absolute name is refused."""
    refuse(place, entry_of([TREE, Member(name, content=b"evil")]).seal(), "absolute name")
    assert not Path("/etc/cachekit-attack").exists()


@pytest.mark.parametrize("name", [b"", b"tree//x", b"tree/./x", b"./tree/x", b"tree/x/", b"tree/.", b"."])
def test_empty_or_dot_component(place: Path, name: bytes) -> None:
    """A name with an empty or `.` part, which would hide that two names are one, is refused."""
    refuse(place, entry_of([TREE, Member(name, content=b"evil")]).seal(), "name")


def test_symlink_then_write_through_it(place: Path) -> None:
    """A symlink followed by a member below it is refused."""
    members = [TREE, symlink(b"tree/door", b"../../victim"), Member(b"tree/door/secret", content=b"evil")]
    refuse(place, entry_of(members).seal(), "below something that is no directory")


def test_symlink_in_place_of_the_target_then_write_through_it(place: Path) -> None:
    """A target that is a symlink has no members below it."""
    members = [symlink(b"tree", b"../victim"), Member(b"tree/secret", content=b"evil")]
    refuse(place, entry_of(members).seal(), "below something that is no directory")


def test_a_symlink_and_a_directory_of_one_name(place: Path) -> None:
    """A symlink whose name a directory then takes, to be written through, is refused as a duplicate."""
    members = [TREE, symlink(b"tree/a", b"../../victim"), directory(b"tree/a"), Member(b"tree/a/secret")]
    refuse(place, entry_of(members).seal(), "same name")


@pytest.mark.parametrize("mode", ["merge", "replace", "in-place"])
def test_a_symlink_that_is_already_in_the_target(place: Path, mode: str) -> None:
    """Where the target has a symlink and the entry a directory, the link is taken away, never followed."""
    make_tree(
        place / "root" / "tree", {"door": Symlink("../../victim"), "file": Symlink("../../victim/secret")}
    )
    members = [TREE, HONEST, directory(b"tree/door"), Member(b"tree/door/secret", content=b"new")]
    file_entry(place / "store", entry_of(members).seal())
    with unchanged(place / "victim"):
        assert restore_tree(place / "store", place / "root", mode=mode).status == "exact"
    assert not (place / "root" / "tree" / "door").is_symlink()
    assert (place / "root" / "tree" / "door" / "secret").read_bytes() == b"new"
    assert (place / "root" / "tree" / "file").read_bytes() == b"honest"


@pytest.mark.parametrize(
    "source", [b"../victim/secret", b"/etc/passwd", b"victim/secret", b"tree/../x", b"tree/old"]
)
def test_hard_link_to_an_outside_file(place: Path, source: bytes) -> None:
    """A hard link to anything but a file of the entry is refused, also to what lies in the target already."""
    refuse(
        place,
        entry_of([TREE, HONEST, hard_link(b"tree/name", source)]).seal(),
        "earlier file of its own target",
    )


def test_hard_link_to_a_later_file(place: Path) -> None:
    """A hard link to a member that comes after it is refused."""
    refuse(place, entry_of([TREE, hard_link(b"tree/name", b"tree/file"), HONEST]).seal(), "earlier file")


@pytest.mark.parametrize("source", [b"tree", b"tree/link", b"tree/name"])
def test_hard_link_to_what_is_no_file(place: Path, source: bytes) -> None:
    """A hard link to a directory, a symlink or itself is refused."""
    members = [TREE, symlink(b"tree/link", b"../../victim/secret"), hard_link(b"tree/name", source)]
    refuse(place, entry_of(members).seal(), "earlier file")


def test_hard_link_into_another_target(place: Path) -> None:
    """A hard link to a file of another target, which may not be restored at all, is refused."""
    members = [TREE, HONEST, directory(b"two"), hard_link(b"two/name", b"tree/file")]
    refuse(place, entry_of(members, [b"tree", b"two"]).seal(), "of its own target")


@pytest.mark.parametrize("kind", [4, 5, 6, 255])
def test_device_node(place: Path, kind: int) -> None:
    """A member of a kind that the format does not have (devices, fifos) is refused."""
    entry = entry_of([TREE, Member(b"tree/null")])
    entry.index.kinds[1] = kind
    entry.index.contents.clear()
    refuse(place, entry.seal(), f"member kind {kind}", Damaged)


@pytest.mark.parametrize(
    ("mode", "kept"), [(0o4755, 0o755), (0o2755, 0o755), (0o6711, 0o711), (0o1755, 0o1755)]
)
def test_setuid(place: Path, mode: int, kept: int) -> None:
    """A setuid or setgid bit of a file goes, with a warning; --keep-setuid keeps it."""
    members = [TREE, Member(b"tree/sh", content=b"sh", mode=mode), directory(b"tree/sub")]
    store, restored = place / "store", place / "root" / "tree" / "sh"
    file_entry(store, entry_of(members).seal())
    for how in ("merge", "replace", "in-place"):
        report = restore_tree(store, place / "root", mode=how)
        assert restored.stat().st_mode & 0o7777 == kept, how
        assert bool(report.warnings) == (mode & 0o6000 != 0)
        assert not restore_tree(store, place / "root", mode=how, keep_setuid=True).warnings
        assert restored.stat().st_mode & 0o7777 == mode, how


@pytest.mark.parametrize("again", [Member(b"tree/file", content=b"evil"), directory(b"tree/file"), TREE])
def test_duplicate_member(place: Path, again: Member) -> None:
    """A name that comes twice is refused."""
    refuse(place, entry_of([TREE, HONEST, again]).seal(), "same name")


def test_a_file_where_a_directory_must_be(place: Path) -> None:
    """A member below a file is refused."""
    members = [TREE, HONEST, Member(b"tree/file/below", content=b"x")]
    refuse(place, entry_of(members).seal(), "below something that is no directory")


@pytest.mark.parametrize("late", [False, True])
def test_a_member_without_its_directory(place: Path, late: bool) -> None:
    """A member whose directory is missing, or comes later, is refused."""
    members = [TREE, Member(b"tree/sub/file", content=b"x"), *([directory(b"tree/sub")] if late else [])]
    refuse(place, entry_of(members).seal(), "before its directory, or without one")


def test_names_that_are_too_long(place: Path) -> None:
    """A name longer than the format allows is refused."""
    refuse(place, entry_of([TREE, Member(b"tree/" + b"n" * 60_000)]).seal(), "too long")


@pytest.mark.parametrize("at", [b"tree/", b"tree/sub/", b""])
def test_planting_the_journal_of_an_unfinished_restore(place: Path, at: bytes) -> None:
    """A journal in what looks like staging, which the next command would finish, is refused."""
    staging = at + b".cachekit-0123456789abcdef"
    members = [
        TREE,
        directory(b"tree/sub"),
        directory(staging),
        Member(staging + b"/journal.json", content=b"{}"),
    ]
    targets = [b"tree"] if at else [b"tree", staging]
    refuse(place, entry_of(members, targets).seal(), "journal")


def test_names_that_only_resemble_a_staging_directory(tmp_path: Path) -> None:
    """Files and directories named nearly as staging is are kept by a save and a restore like any others."""
    spec: dict[Any, Any] = {
        ".cachekit-": "x",
        ".cachekit-0123456789abcdef": {"y": "y"},
        ".cachekit-homes": {"z": "z"},
        "journal.json": "j",
    }
    tree = make_tree(tmp_path / "tree", {"tree": spec})
    save_tree(tmp_path / "store", tree, "tree")
    restore_tree(tmp_path / "store", tmp_path / "out")
    assert_same_tree(tree, tmp_path / "out", ignore={"root"})
