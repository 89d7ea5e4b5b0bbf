"""Any edits between two saves: the second is byte for byte a full save."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachekit.archive import record
from cachekit.archive.pack import Packer
from cachekit.cache.save import save
from tests.delta.scene import MIB, Scene, packages, prepared, rewrite
from tests.support.capabilities import requires
from tests.support.trees import Symlink, make_tree

Edit = Callable[[random.Random, Path, list[Path], list[Path]], None]


def _files(tree: Path) -> list[Path]:
    return sorted(path for path in tree.rglob("*") if path.is_symlink() or not path.is_dir())


def _directories(tree: Path) -> list[Path]:
    return sorted(path for path in tree.rglob("*") if path.is_dir() and not path.is_symlink())


def _regular(dice: random.Random, files: list[Path]) -> Path | None:
    chosen = [path for path in files if path.is_file() and not path.is_symlink()]
    return dice.choice(chosen) if chosen else None


def write(dice: random.Random, tree: Path, files: list[Path], directories: list[Path]) -> None:
    """Write another content."""
    if path := _regular(dice, files):
        path.write_bytes(dice.randbytes(dice.choice([0, 1, 511, 512, 513, 5000])))


def same_size(dice: random.Random, tree: Path, files: list[Path], directories: list[Path]) -> None:
    """Write another content of the same size, with the old time."""
    if path := _regular(dice, files):
        rewrite(path, dice.randbytes(min(path.stat().st_size, 2 * MIB)))


def append(dice: random.Random, tree: Path, files: list[Path], directories: list[Path]) -> None:
    """Make a file longer."""
    if path := _regular(dice, files):
        with path.open("ab") as file:
            file.write(b"+" * dice.choice([1, 600, 300_000]))


def truncate(dice: random.Random, tree: Path, files: list[Path], directories: list[Path]) -> None:
    """Make a file shorter, or longer by a hole."""
    if path := _regular(dice, files):
        os.truncate(path, path.stat().st_size * dice.choice([0, 1, 4]) // 2)


def chmod(dice: random.Random, tree: Path, files: list[Path], directories: list[Path]) -> None:
    """Give another mode."""
    if path := _regular(dice, [*files]):
        path.chmod(dice.choice([0o600, 0o644, 0o755, 0o4755]))
    if directories:
        dice.choice(directories).chmod(dice.choice([0o700, 0o755, 0o1777]))


def chown(dice: random.Random, tree: Path, files: list[Path], directories: list[Path]) -> None:
    """Give another owner, where that is allowed."""
    if os.geteuid() == 0 and files:
        os.chown(dice.choice(files), dice.choice([0, 7]), 7, follow_symlinks=False)


def touch(dice: random.Random, tree: Path, files: list[Path], directories: list[Path]) -> None:
    """Give another time, sometimes within the same second."""
    path = dice.choice([*files, *directories, tree])
    mtime = path.lstat().st_mtime_ns
    new = dice.choice([mtime ^ 1, mtime + 5_000_000_000])
    os.utime(path, ns=(new, new), follow_symlinks=False)


def rename_file(dice: random.Random, tree: Path, files: list[Path], directories: list[Path]) -> None:
    """Move a file, perhaps over another."""
    if files and directories:
        target = dice.choice(directories) / dice.choice(["f0", "aa", "zz", "g1"])
        if not target.is_dir():
            dice.choice(files).replace(target)


def rename_directory(dice: random.Random, tree: Path, files: list[Path], directories: list[Path]) -> None:
    """Move a directory within the tree, or away and another one in its place."""
    if directories:
        path = dice.choice(directories)
        target = tree / dice.choice(["a", "p1", "zz", path.name])
        if not target.exists() and not target.is_relative_to(path):
            path.rename(target)


def add(dice: random.Random, tree: Path, files: list[Path], directories: list[Path]) -> None:
    """Add a file or a directory with one."""
    place = dice.choice([tree, *directories])
    name = os.fsdecode(dice.choice([b"new", b"\xff\xfe", "ä".encode(), b"n" * 120, b"a new"]))
    if not os.path.lexists(place / name):
        if dice.random() < 0.5:
            (place / name).write_bytes(dice.randbytes(300))
        else:
            make_tree(place / name, {"inside": b"inside", "empty": {}, "link": Symlink("inside")})


def remove(dice: random.Random, tree: Path, files: list[Path], directories: list[Path]) -> None:
    """Remove a file or a directory."""
    path = dice.choice([*files, *directories, *files])
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def change_kind(dice: random.Random, tree: Path, files: list[Path], directories: list[Path]) -> None:
    """Make a file a symlink or a directory, and back."""
    path = dice.choice(files)
    was_link = path.is_symlink()
    path.unlink()
    if was_link:
        path.write_bytes(b"a file again")
    elif dice.random() < 0.5:
        path.symlink_to("f1")
    else:
        path.mkdir()


def hard_link(dice: random.Random, tree: Path, files: list[Path], directories: list[Path]) -> None:
    """Give a file a further name, which may come first."""
    if (path := _regular(dice, files)) and directories:
        name = dice.choice(directories) / dice.choice(["0link", "zlink"])
        if not os.path.lexists(name):
            name.hardlink_to(path)


def sparse(dice: random.Random, tree: Path, files: list[Path], directories: list[Path]) -> None:
    """Write one block into a file that is else a hole."""
    path = tree / dice.choice(["0hole", "zhole"])
    if not path.is_dir():
        with path.open("wb") as file:
            file.truncate(500_000)
            os.pwrite(file.fileno(), b"data", dice.randrange(400_000))


EDITS: list[Edit] = [
    write,
    same_size,
    append,
    truncate,
    chmod,
    chown,
    touch,
    rename_file,
    rename_directory,
    add,
    remove,
    change_kind,
    hard_link,
    sparse,
]
PATTERNS = [[], ["f1"], ["sub"], ["tree/p1"], ["*.x", "g0"]]


@settings(max_examples=8)
@given(
    seed=st.integers(0, 1 << 30),
    before=st.lists(st.sampled_from(EDITS), max_size=4),
    rounds=st.lists(st.lists(st.sampled_from(EDITS), max_size=4), min_size=1, max_size=2),
    excludes=st.tuples(*[st.sampled_from(PATTERNS)] * 2),
    paths=st.sampled_from([["tree"], ["tree/p2", "tree/p0", "tree/p1"], ["."], ["tree", "other"]]),
)
def test_any_edits(
    seed: int,
    before: list[Edit],
    rounds: list[list[Edit]],
    excludes: tuple[list[str], ...],
    paths: list[str],
) -> None:
    """After any edits, with any patterns and targets, the entry is the one that a full save writes."""
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as base, prepared(Path(base, "state")):
        scene = Scene(Path(base)).made(packages(3))
        make_tree(scene.root / "other", {"file": b"beside it"})
        kept = scene.root / "kept"
        for number, edits in enumerate([before, *rounds]):
            for edit in edits:
                if _files(scene.tree):
                    edit(dice, scene.tree, _files(scene.tree), _directories(scene.tree))
            for path in paths:
                (scene.root / path).mkdir(exist_ok=True)
            kept.mkdir(exist_ok=True)
            patterns = excludes[min(number, 1)]
            report = scene.proved(f"k-{number}", paths=paths, excludes=patterns, allow_empty=True)
            if number and not edits and excludes[0] == excludes[1]:
                assert report.unchanged
                assert report.copied_bytes
            if not patterns and paths == ["tree"]:
                scene.listed(report)


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_each_edit_leaves_frames_to_copy(scene: Scene, edit: Edit) -> None:
    """A single edit is seen, and most of the rest is copied all the same."""
    first = scene.save("k-1")
    edit(random.Random(1), scene.tree, _files(scene.tree), _directories(scene.tree))
    report = scene.proved("k-2")
    assert report.base == "k-1"
    assert report.copied_bytes > first.archive_bytes // 8
    scene.listed(report)


def test_a_record_spares_reading(scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the record shows unchanged is not opened; without it everything is, and copied all the same."""
    log = tmp_path / "log"
    frame = Packer._frame

    def logged(self: Packer, *args: Any) -> tuple[Any, ...]:
        with log.open("ab") as file:
            file.write(b".")
        return frame(self, *args)

    monkeypatch.setattr(Packer, "_frame", logged)
    scene.save("k-1")
    assert log.exists()
    log.unlink()
    report = scene.save("k-2")
    assert report.unchanged
    assert not log.exists()
    for path in scene.records.iterdir():
        path.unlink()
    report = scene.save("k-3")
    assert report.unchanged
    assert log.exists()


def test_what_was_just_changed_is_not_recorded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that may change further without another ctime is hashed by the next save."""
    monkeypatch.setattr(record, "_TICK_NS", 600_000_000_000)
    save(scene.request("k-1"))
    known = record.load(bytes(scene.tree))
    assert known is not None
    assert set(known.ctimes) == {record.UNKNOWN}
    rewrite(scene.tree / "p0/f0", b"1" * 200)
    report = scene.proved("k-2")
    assert report.copied_bytes
    assert not report.unchanged
    scene.listed(report)


@pytest.mark.parametrize("ctime", [5_000_000_000, 5_000_000_001])
def test_settled(ctime: int) -> None:
    """A ctime in whole seconds is of a filesystem with such a clock, and settles after two of them."""
    tick = 2_000_000_000 if ctime % 1_000_000_000 == 0 else record._TICK_NS
    assert not record.settled(ctime, ctime + tick)
    assert record.settled(ctime, ctime + tick + 1)
    assert not record.settled(ctime, ctime - 1_000_000_000)


@requires("root")
def test_chown_of_a_directory(scene: Scene) -> None:
    """The owner of a directory is in its header."""
    scene.save("k-1")
    info = (scene.tree / "p1/sub").stat()
    os.chown(scene.tree / "p1/sub", 7, 7)
    os.utime(scene.tree / "p1/sub", ns=(info.st_atime_ns, info.st_mtime_ns))
    report = scene.proved("k-2")
    assert report.copied_bytes
    assert not report.unchanged
    scene.listed(report)


def test_an_attribute_changes_only_the_ctime(scene: Scene) -> None:
    """A file with another extended attribute is hashed, and found to be the same."""
    scene.save("k-1")
    try:
        os.setxattr(scene.tree / "p1/f1", "user.x", b"1")
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error}")
    report = scene.proved("k-2")
    assert report.unchanged
    assert report.copied_bytes
    scene.listed(report)


@pytest.mark.parametrize("how", ["added", "removed"])
def test_a_directory_that_got_its_time_back(scene: Scene, how: str) -> None:
    """A name more or less is seen though the directory has its old time."""
    place = scene.tree / "p1/sub"
    scene.save("k-1")
    info = place.stat()
    if how == "added":
        (place / "new").write_bytes(b"new")
    else:
        (place / "g1").unlink()
    os.utime(place, ns=(1, info.st_mtime_ns))
    report = scene.proved("k-2")
    assert report.copied_bytes
    assert not report.unchanged
    scene.listed(report)
