"""Records that must not be believed: then files are hashed, and the entry is what a full save writes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from xxhash import xxh3_128_digest

from cachekit.archive import record
from cachekit.archive.reuse import Reuse
from tests.delta.scene import Scene, cutter, other_state, rewrite
from tests.support.capabilities import requires
from tests.support.filesystems import tmpfs
from tests.support.ordinary_user import NOBODY


def the_record(scene: Scene) -> Path:
    """Find the one record."""
    (path,) = scene.records.iterdir()
    return path


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def other_version(path: Path) -> None:
    body = path.read_bytes()[:-16].replace(b"CKRECORD1", b"CKRECORD9")
    path.write_bytes(body + xxh3_128_digest(body))


@pytest.mark.parametrize(
    "spoil", [cut, cut_in_half, empty, flip, other_version], ids=lambda one: one.__name__
)
def test_a_spoiled_record(scene: Scene, spoil: Callable[[Path], None]) -> None:
    """A record that does not parse to its last byte is none."""
    scene.save("k-1")
    assert record.load(bytes(scene.tree)) is not None
    spoil(the_record(scene))
    assert record.load(bytes(scene.tree)) is None
    report = scene.proved("k-2")
    assert report.unchanged
    scene.listed(report)
    assert record.load(bytes(scene.tree)) is not None


def test_a_record_of_other_fields(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record of another version of the program, whole but with other facts, is none."""
    with monkeypatch.context() as patch:
        patch.setattr(record, "_FACTS", record._FACTS[1:])
        scene.save("k-1")
    assert record.load(bytes(scene.tree)) is None
    assert scene.proved("k-2").unchanged


def test_another_boot(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record does not outlive a restart of the machine: device numbers may be others' then."""
    scene.save("k-1")
    monkeypatch.setattr(record, "boot_id", lambda: "another")
    assert record.load(bytes(scene.tree)) is None
    report = scene.proved("k-2")
    assert report.unchanged
    scene.listed(report)


@requires("root")
def test_a_record_of_another_user(scene: Scene) -> None:
    """A record that somebody else may write is none."""
    scene.save("k-1")
    os.chown(the_record(scene), NOBODY, NOBODY)
    assert record.load(bytes(scene.tree)) is None
    assert scene.proved("k-2").unchanged


def test_a_target_on_a_remote_filesystem(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what another host may change no record is believed, and none is kept."""
    scene.save("k-1")
    monkeypatch.setattr(record, "is_local", lambda _: False)
    assert record.load(bytes(scene.tree)) is None
    assert scene.proved("k-2").unchanged
    assert list(scene.records.iterdir()) == []


@requires("tmpfs")
def test_a_full_state_directory(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state directory without room costs the record, not the save."""
    with tmpfs(1 << 20) as disk:
        monkeypatch.setenv("CACHEKIT_STATE_DIR", str(disk.path))
        scene.save("k-1")
        rewrite(scene.tree / "p0/f0", b"!" * 200)
        disk.fill(0)
        report = scene.proved("k-2")
        assert report.copied_bytes
        scene.listed(report)
        assert scene.proved("k-3").unchanged


@requires("tmpfs")
def test_a_read_only_state_directory(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state directory that cannot be written costs the record, not the save; an old record stays harmless."""
    with tmpfs(1 << 20) as disk:
        monkeypatch.setenv("CACHEKIT_STATE_DIR", str(disk.path))
        scene.save("k-1")
        rewrite(scene.tree / "p0/f0", b"!" * 200)
        monkeypatch.setattr(record, "put_in_place", _refuse)
        monkeypatch.setattr(record, "make_private_directory", _refuse)
        report = scene.proved("k-2")
        scene.listed(report)
        assert scene.proved("k-3").unchanged


def _refuse(*_: object) -> None:
    raise PermissionError(30, "Read-only file system")


def test_a_copied_target(scene: Scene) -> None:
    """A copy in the target's place has other inodes: it is hashed, and nothing of it is believed."""
    scene.save("k-1")
    scene.tree.rename(scene.root / "old")
    shutil.copytree(scene.root / "old", scene.tree, symlinks=True)
    rewrite(scene.tree / "p1/f0", b"!" * 200)
    report = scene.proved("k-2")
    assert report.copied_bytes
    assert not report.unchanged
    scene.listed(report)


def test_another_directory_with_the_same_names(scene: Scene) -> None:
    """Files that were moved into the target with their old times are others than the record's."""
    scene.save("k-1")
    other = scene.root / "other"
    shutil.copytree(scene.tree, other)
    for path in other.rglob("*"):
        if path.is_file():
            os.utime(path, ns=(1, (scene.tree / path.relative_to(other)).stat().st_mtime_ns))
    rewrite(other / "p2/sub/g0", b"xyz")
    for path in [*sorted(other.rglob("*"), reverse=True), other]:
        if path.is_dir():
            info = (scene.tree / path.relative_to(other)).stat()
            os.utime(path, ns=(1, info.st_mtime_ns))
    scene.tree.rename(scene.root / "old")
    other.rename(scene.tree)
    report = scene.proved("k-2")
    assert report.copied_bytes
    assert not report.unchanged
    scene.listed(report)


def test_a_link_in_the_middle_to_the_moved_directory(scene: Scene) -> None:
    """What is reached through a link is not in the target, though every stat value below it is as it was."""
    scene.save("k-1")
    (scene.tree / "p1").rename(scene.root / "moved")
    info = scene.tree.stat()
    (scene.tree / "p1").symlink_to(scene.root / "moved")
    os.utime(scene.tree, ns=(1, info.st_mtime_ns))
    report = scene.proved("k-2")
    assert report.copied_bytes
    scene.listed(report)


def test_a_record_of_another_entry_under_the_same_name(scene: Scene) -> None:
    """A record tells nothing of an entry that took the place of its own, though all stat values are the same."""
    scene.save("k-1")
    info = scene.tree.stat()
    (scene.tree / "p0").rename(scene.root / "aside")
    shutil.copytree(scene.root / "aside", scene.tree / "p0")
    rewrite(scene.tree / "p0/f0", b"!" * 200)
    os.utime(scene.tree, ns=(1, info.st_mtime_ns))
    with other_state():
        scene.save("k-1", force=True)
    shutil.rmtree(scene.tree / "p0")
    (scene.root / "aside").rename(scene.tree / "p0")
    os.utime(scene.tree, ns=(1, info.st_mtime_ns))
    assert record.load(bytes(scene.tree)) is not None
    report = scene.proved("k-2")
    assert report.base == "k-1"
    assert not report.unchanged
    scene.listed(report)


def test_trusted_times(scene: Scene) -> None:
    """With --trust-mtime the same size and time are enough without a record; a new time still counts."""
    scene.save("k-1")
    (scene.tree / "p0/f0").write_bytes(b"0" * 200)
    for path in scene.records.iterdir():
        path.unlink()
    report = scene.proved("k-2", trust_mtime=True)
    assert report.copied_bytes
    scene.listed(report)


def stale(scene: Scene, column: str) -> None:
    """Write a record in which one value of a file is another, and all else right."""
    known = record.load(bytes(scene.tree))
    assert known is not None
    index = known.index()
    assert index is not None
    if column == "device":
        known.device += 1
    else:
        values = getattr(known, column)
        values[index.paths.index(b"tree/p1/f0") - known.first] += 1
    assert record.store(bytes(scene.tree), known)


@pytest.mark.parametrize("column", ["device", "inodes", "ctimes"])
def test_each_value_counts(scene: Scene, column: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of which one recorded value differs is read: its frame is not copied unseen."""
    scene.save("k-1")
    rewrite(scene.tree / "p1/f0", b"!" * 200)  # would be found by its ctime: so that is recorded as it is now
    known = record.load(bytes(scene.tree))
    assert known is not None
    index = known.index()
    assert index is not None
    at = index.paths.index(b"tree/p1/f0") - known.first
    info = (scene.tree / "p1/f0").stat()
    known.inodes[at], known.ctimes[at] = info.st_ino, info.st_ctime_ns
    assert record.store(bytes(scene.tree), known)
    stale(scene, column)
    report = scene.proved("k-2")
    assert report.copied_bytes
    assert not report.unchanged
    scene.listed(report)


def test_frames_that_are_shared_are_filled_as_by_a_walk(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file that shrinks moves what follows into its frame, up to where one of the base's begins that does not fit."""
    for number in range(30):
        (scene.tree / f"p1/m{number:02}").write_bytes(bytes([number]) * 700_000)
    scene.save("k-1")
    (scene.tree / "p0/sub" / cutter("tree/p0/sub")).write_bytes(b"ends no frame any more")
    log = tmp_path / "log"
    fits = Reuse._fits

    def logged(self: Reuse, row: int) -> bool:
        answer = fits(self, row)
        with log.open("a") as file:
            file.write(f"{answer} ")
        return answer

    monkeypatch.setattr(Reuse, "_fits", logged)
    report = scene.proved("k-2")
    assert "False" in log.read_text().split()
    assert report.copied_bytes
    scene.listed(report)
