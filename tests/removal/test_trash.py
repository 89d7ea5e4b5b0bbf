"""A path is free before its tree goes; what stays is found where it was; what a kill leaves is finished later."""

from __future__ import annotations

import errno
import os
import random
import sys
from pathlib import Path

import pytest

from cachekit.system import native
from cachekit.system.holders import Holders
from cachekit.system.removal import trash
from cachekit.system.removal.trash import discard, finish, is_trash, leftovers
from tests.removal.conftest import as_nobody, give, no_descriptor_lost
from tests.removal.test_removal import left, wide
from tests.support import filesystems
from tests.support.capabilities import requires
from tests.support.ordinary_user import NOBODY
from tests.support.processes import clean_environment, run, start
from tests.support.snapshots import assert_same_tree, snapshot, unchanged
from tests.support.trees import Device, Symlink, make_tree

NAME = ".cachekit-trash-0123456789abcdef"
DISCARD = (
    "import os, sys; from cachekit.system.removal.trash import discard; "
    "discard(os.fsencode(sys.argv[1]), workers=2)"
)
STEPS = ["clean.renamed", "clean.looked-again", "clean.half-removed", "clean.removed"]


@pytest.fixture(autouse=True)
def notes(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory of the test's own; returns where the notes are."""
    state = tmp_path_factory.mktemp("state")
    state.chmod(0o777)
    monkeypatch.setenv("CACHEKIT_STATE_DIR", str(state))
    return state / "trash"


def names(folder: Path) -> list[str]:
    """What is in a directory, which need not exist."""
    return sorted(os.listdir(folder)) if folder.exists() else []


def test_the_path_is_free_before_a_file_goes(tmp_path: Path, notes: Path) -> None:
    """When it is looked at again, the tree is whole beside its old path, noted, and everything goes then."""
    tree = make_tree(tmp_path / "tree", wide())
    before = snapshot(tree)
    seen: list[bytes] = []

    def look(path: bytes) -> None:
        seen.append(path)
        assert not tree.exists()
        assert os.path.dirname(path) == os.fsencode(tmp_path)
        assert is_trash(os.path.basename(path))
        assert_same_tree(before, Path(os.fsdecode(path)))
        assert len(os.listdir(notes)) == 1
        assert leftovers([os.fsencode(tmp_path)]) == []  # it is locked

    with no_descriptor_lost():
        removed = discard(os.fsencode(tree), look_again=look)
    assert (removed.items, removed.left_count, len(seen)) == (1321, 0, 1)
    assert names(tmp_path) == names(notes) == []


def test_put_back_if_somebody_came_in_between(tmp_path: Path, notes: Path) -> None:
    """A process that entered it: the tree is where it was, untouched, and the reason is told."""
    tree = make_tree(tmp_path / "tree", wide(3))

    def look(path: bytes) -> str | None:
        with start(["sleep", "60"], cwd=Path(os.fsdecode(path)) / "d1"):
            holder = Holders.scan().of(path)
            return str(holder) if holder else None

    inside = snapshot(tree)
    removed = discard(os.fsencode(tree), look_again=look)
    assert list(left(removed, tmp_path)) == ["tree"]
    assert "current directory in sleep" in removed.left[0][1]
    assert_same_tree(inside, tree)
    assert names(notes) == []


def test_a_name_taken_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    """What could not be removed, or was to stay, is told by its new path then."""
    tree = make_tree(tmp_path / "tree", wide(3))

    def look(path: bytes) -> str:
        make_tree(tree, {"new": b"n"})
        return "busy"

    removed = discard(os.fsencode(tree), look_again=look)
    assert names(tree) == ["new"]
    (path, why), *_ = removed.left
    assert is_trash(os.path.basename(path))
    assert len(os.listdir(path)) == 3
    assert "busy" in why
    assert leftovers([os.fsencode(tmp_path)]) == [path]


@requires("root")
def test_what_cannot_go_is_found_where_it_was(tmp_path: Path, notes: Path) -> None:
    """A device node keeps its path."""
    tree = make_tree(tmp_path / "tree", {**wide(), "dev": {"null": Device()}})
    assert left(discard(os.fsencode(tree)), tree) == {"dev/null": "a device"}
    assert (names(tmp_path), names(tree), names(notes)) == (["tree"], ["dev"], [])


@requires("root")
def test_what_cannot_go_back_is_told_where_it_is(tmp_path: Path, notes: Path) -> None:
    """Somebody took the old path meanwhile: theirs stays, ours is named."""
    tree = make_tree(tmp_path / "tree", {**wide(), "dev": {"null": Device()}})

    def look(_: bytes) -> None:
        make_tree(tree, {"new": b""})

    found = left(discard(os.fsencode(tree), look_again=look), tmp_path)
    rest = next(name for name in names(tmp_path) if name != "tree")
    assert found[f"{rest}/dev/null"] == "a device"
    assert rest in found["tree"]
    assert (names(tree), names(notes)) == (["new"], [])


def test_another_directory_of_that_name_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody swaps the directory right before the rename: theirs comes back untouched."""
    tree = make_tree(tmp_path / "tree", wide(2))
    other = make_tree(tmp_path / "other", {"precious": b"p"})
    real = native.rename_noreplace

    def rename(source: bytes, target: bytes, *, source_fd: int, target_fd: int) -> None:
        if source == b"tree" and other.exists():
            tree.rename(tmp_path / "old")
            other.rename(tree)
        real(source, target, source_fd=source_fd, target_fd=target_fd)

    monkeypatch.setattr(trash, "rename_noreplace", rename)
    removed = discard(os.fsencode(tree))
    assert left(removed, tmp_path) == {"tree": "was replaced by somebody else"}
    assert (names(tree), names(tmp_path / "old")) == (["precious"], ["d0", "d1"])


def test_without_a_rename_that_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem or kernel without RENAME_NOREPLACE: a plain rename, and a taken name is still respected."""

    def missing(*_: object, **__: object) -> None:
        raise OSError(errno.EINVAL, "no such flag")

    monkeypatch.setattr(trash, "rename_noreplace", missing)
    tree = make_tree(tmp_path / "tree", wide(3))
    assert discard(os.fsencode(tree)).left_count == 0
    make_tree(tree, wide(3))
    discard(os.fsencode(tree), look_again=lambda _: str(make_tree(tree, {})) and "busy")
    assert (names(tree), len(names(tmp_path))) == ([], 2)


@requires("bind")
def test_a_tree_with_a_mount_is_removed_where_it_is(tmp_path: Path) -> None:
    """Around the mount, whose content stays; the tree is never renamed."""
    tree = make_tree(tmp_path / "tree", {**wide(), "m": {"point": {}, "x": b"x"}})
    outside = make_tree(tmp_path / "outside", {"p": b"p"})
    looked: list[bytes] = []
    with filesystems.bind(outside, tree / "m" / "point"), unchanged(outside):
        removed = discard(os.fsencode(tree), look_again=looked.append)
        assert list(left(removed, tree)) == ["m/point"]
        assert looked == [os.fsencode(tree)]
    assert (names(tree), names(tree / "m")) == (["m"], ["point"])


@requires("overlay")
def test_where_renaming_is_refused_it_goes_in_place(tmp_path: Path) -> None:
    """A directory of an overlay's lower layer cannot be renamed (EXDEV)."""
    lower = make_tree(tmp_path / "lower", {"tree": wide()})
    with filesystems.overlay(lower) as mounted:
        tree = mounted.path / "tree"
        with pytest.raises(OSError, match="cross-device"):
            tree.rename(mounted.path / "other")
        looked: list[bytes] = []
        removed = discard(os.fsencode(tree), look_again=looked.append)
        assert (removed.items, removed.left_count, names(mounted.path)) == (1321, 0, [])
        assert looked == [os.fsencode(tree)]


@requires("btrfs", "xfs", "ext4", "tmpfs")
@pytest.mark.parametrize("kind", ["btrfs", "xfs", "ext4", "tmpfs"])
def test_on_a_full_filesystem(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 0 bytes free, with the notes on the same filesystem, a tree goes, renamed or not."""
    with filesystems.of_kind(kind) as mounted:
        tree = make_tree(mounted.path / "tree", wide(20))
        monkeypatch.setenv("CACHEKIT_STATE_DIR", str(mounted.path / "state"))
        mounted.fill(0)
        removed = discard(os.fsencode(tree))
        assert (removed.items, removed.left_count) == (441, 0)
        assert set(names(mounted.path)) <= {".filler", "state", "lost+found"}


@requires("unprivileged")
def test_in_a_directory_that_is_not_ours(open_path: Path) -> None:
    """As an ordinary user, who may not rename the tree but empty it: what is in it goes, the directory is told."""
    tree = make_tree(open_path / "in" / "tree", wide())
    give(tree)
    os.chown(tree.parent, 0, 0)

    def work() -> bool:
        removed = discard(os.fsencode(tree))
        return (list(left(removed, tree)), removed.items) == (["."], 1320)

    as_nobody(work)
    assert names(tree) == []


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_each_step(tmp_path: Path, notes: Path, step: str) -> None:
    """The old path is free, the rest is found, by its name and by its note, and goes; nothing is left over."""
    tree = make_tree(tmp_path / "in" / "tree", wide())
    env = {**clean_environment(), "CACHEKIT_STATE_DIR": str(notes.parent), "CACHEKIT_KILL_AT": step}
    with start([sys.executable, "-c", DISCARD, tree], env=env) as running:
        assert running.wait().code == -9
        running.kill()  # and its workers
    assert not tree.exists()
    rest = [os.fsencode(path) for path in (tmp_path / "in").iterdir()]
    assert len(rest) == (step != "clean.removed")
    assert leftovers([]) == leftovers([os.fsencode(tmp_path / "in")]) == rest
    for path in rest:
        removed = finish(path, look_again=lambda _: "busy")
        assert list(left(removed, tmp_path / "in")) == [os.fsdecode(os.path.basename(path))]
        with no_descriptor_lost():
            assert finish(path).left_count == 0
    assert names(tmp_path / "in") == names(notes) == []


@pytest.mark.parametrize("seed", range(6))
def test_killed_at_any_moment(tmp_path: Path, notes: Path, seed: int) -> None:
    """Once the path is free: whatever is left is found and goes."""
    tree = make_tree(tmp_path / "in" / "tree", wide(150))
    env = {**clean_environment(), "CACHEKIT_STATE_DIR": str(notes.parent)}
    waits = iter(range(random.Random(seed).randint(0, 40)))
    with start([sys.executable, "-c", DISCARD, tree], env=env) as running:
        running.kill_when(lambda: not tree.exists() and next(waits, None) is None)
    assert not tree.exists()
    for path in leftovers([os.fsencode(tmp_path / "in")]):
        assert finish(path).left_count == 0
    assert names(tmp_path / "in") == []
    leftovers([])  # drops notes of what is gone
    assert names(notes) == []


@requires("root")
def test_the_rest_of_a_killed_run_gets_its_name_back(tmp_path: Path, notes: Path) -> None:
    """A device in a tree whose removal was killed is found at its old path after the next run."""
    tree = make_tree(tmp_path / "tree", {**wide(), "dev": {"null": Device()}})
    env = {**clean_environment(), "CACHEKIT_STATE_DIR": str(notes.parent), "CACHEKIT_KILL_AT": STEPS[1]}
    assert run([sys.executable, "-c", DISCARD, tree], env=env).code == -9
    (path,) = leftovers([])
    assert left(finish(path), tree) == {"dev/null": "a device"}
    assert names(tmp_path) == ["tree"]


def test_a_name_alone_is_no_trash(tmp_path: Path) -> None:
    """Links, files and other names are not taken, whoever made them."""
    outside = make_tree(tmp_path / "outside", {"p": b"p"})
    here = make_tree(tmp_path / "here", {NAME: Symlink(str(outside)), NAME[:-1] + "0": b"", NAME + "0": {}})
    with unchanged(outside, here):
        assert leftovers([os.fsencode(here)]) == []
        for name in names(here):
            assert finish(os.fsencode(here / name)).left_count == 1


@requires("unprivileged")
@pytest.mark.parametrize(
    ("parent", "mode", "owner", "taken"),
    [
        (0, 0o755, 0, True),
        (0, 0o755, NOBODY, True),
        (0, 0o1777, 0, True),
        (0, 0o1777, NOBODY, False),
        (0, 0o777, 0, False),
        (NOBODY, 0o755, 0, False),
        (NOBODY, 0o755, NOBODY, False),
    ],
)
def test_root_takes_only_what_nobody_else_can_have_named(
    open_path: Path, parent: int, mode: int, owner: int, taken: bool
) -> None:
    """Who may rename in a directory could call another's tree trash: without a note that is left alone."""
    here = make_tree(open_path / "here", {NAME: {"x": b"x"}})
    os.chown(here / NAME, owner, owner)
    os.chown(here, parent, parent)
    here.chmod(mode)
    path = os.fsencode(here / NAME)
    assert leftovers([os.fsencode(here)]) == ([path] if taken else [])
    assert finish(path).left_count == (not taken)
    assert (here / NAME).exists() == (not taken)


def test_a_forged_or_torn_note_names_nothing(tmp_path: Path, notes: Path) -> None:
    """A note that was cut, or that tells of another directory, is not believed."""
    here = make_tree(tmp_path / "here", {NAME: {"x": b"x"}})
    here.chmod(0o777)
    path = os.fsencode(here / NAME)
    info = os.lstat(path)
    notes.mkdir()
    note = notes / NAME[-16:]
    for text in (
        b"",
        b"%d %d" % (info.st_dev, info.st_ino),
        b"%d %d\0tree\0%s" % (info.st_dev, info.st_ino + 1, path),
        b"%d %d\0../tree\0%s" % (info.st_dev, info.st_ino, path),
        b"%d %d\0tree\0%s" % (info.st_dev, info.st_ino, os.fsencode(here)),
    ):
        note.write_bytes(text)
        assert leftovers([]) == []
        assert finish(path).left_count == 1
    note.write_bytes(b"%d %d\0tree\0%s" % (info.st_dev, info.st_ino, path))
    assert leftovers([]) == [path]
    assert finish(path).left_count == 0
