"""The entry that a save starts from: rotten, evicted, replaced, or made otherwise. It never costs the save."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cachekit.archive.base import Base
from cachekit.archive.read import Archive
from cachekit.cache import delta
from cachekit.cache import save as saving
from cachekit.errors import Unreadable
from cachekit.store.directory import DirectoryStore
from tests.delta.scene import MIB, Scene, flip_frame, rewrite, settle
from tests.support.trees import File, make_tree


def forget(scene: Scene) -> None:
    """Lose the records, so that the next save hashes."""
    for path in scene.records.iterdir():
        path.unlink()


@pytest.mark.parametrize("recorded", [True, False], ids=["copied", "hashed"])
def test_a_rotten_frame(scene: Scene, recorded: bool) -> None:
    """A damaged frame of the base is made anew from the source, and the base is set aside with a warning."""
    first = scene.save("k-1")
    flip_frame(scene.entry(first), 2)
    if not recorded:
        forget(scene)
        settle()
    report = scene.proved("k-2")
    scene.listed(report)
    assert not report.copied_bytes
    assert len(scene.quarantine()) == 1
    assert not scene.entry(first).exists()
    assert any("k-1" in warning and "set aside" in warning for warning in report.warnings)


def test_a_rotten_part_of_a_large_file(scene: Scene) -> None:
    """Parts of large files that are hashed are looked at like any other frame."""
    make_tree(scene.tree / "big", {"large": File(b"x" * (9 * MIB))})
    first = scene.save("k-1")
    frames = _frames_of(scene.entry(first), b"tree/big/large")
    assert len(frames) == 2
    flip_frame(scene.entry(first), frames[1])
    forget(scene)
    report = scene.proved("k-2")
    scene.listed(report)
    assert len(scene.quarantine()) == 1


def test_parts_of_a_large_file_are_copied(scene: Scene) -> None:
    """An edit in one part of a large file leaves the others to be copied."""
    content = bytes(range(256)) * (9 * MIB // 256)
    make_tree(scene.tree / "big", {"large": File(content)})
    scene.save("k-1")
    rewrite(scene.tree / "big/large", content[:-1] + b"!")
    report = scene.proved("k-2")
    scene.listed(report)
    assert report.copied_bytes
    assert not report.unchanged
    forget(scene)
    again = scene.proved("k-3")
    assert again.unchanged
    scene.listed(again)


def _frames_of(entry: Path, name: bytes) -> range:
    from cachekit.archive.format import parts
    from cachekit.archive.read import open_archive
    from cachekit.trust import ANYONE

    with open_archive(bytes(entry), ANYONE) as archive:
        row = archive.index.paths.index(name)
        first = archive.index.frames[row]
        return range(first, first + parts(archive.index.sizes[row]))


@pytest.mark.parametrize("recorded", [True, False], ids=["copied", "hashed"])
def test_a_base_that_cannot_be_read(scene: Scene, recorded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the disk under the base costs the save only what it would have saved; nothing is set aside."""
    first = scene.save("k-1")
    if not recorded:
        forget(scene)

    def fails(*_: object) -> bytes:
        raise Unreadable("cannot read the archive: Input/output error")

    real = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(scene.entry(first).name):
            raise OSError(5, "Input/output error")
        return real(fd, buffers, offset)

    monkeypatch.setattr(Archive, "frame", fails)
    monkeypatch.setattr(os, "preadv", preadv)
    report = scene.proved("k-2")
    monkeypatch.undo()
    assert not report.copied_bytes
    assert any("k-1" in warning and "could not be read" in warning for warning in report.warnings)
    assert scene.quarantine() == []
    assert scene.entry(first).exists()


def test_a_base_that_reads_differently_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bit that was wrong only once costs no good entry: it is looked at again before it is set aside."""
    first = scene.save("k-1")
    monkeypatch.setattr(Base, "read_frames", lambda *_: False)
    report = scene.proved("k-2")
    assert not report.copied_bytes
    assert scene.quarantine() == []
    assert scene.entry(first).exists()


def test_another_level(scene: Scene) -> None:
    """Frames of another compression level are not copied."""
    scene.save("k-1", level=1)
    report = scene.proved("k-2", level=3)
    assert (report.base, report.copied_bytes) == (None, 0)


def test_another_zstd(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of another version of zstd are not copied."""
    with monkeypatch.context() as patch:
        patch.setattr("cachekit.cache.saving.zstd_version", lambda: "1.5.0")
        scene.save("k-1")
    report = scene.proved("k-2")
    assert (report.base, report.copied_bytes) == (None, 0)


def test_another_platform(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry of another platform is no base, even if a record names it."""
    import dataclasses

    from cachekit.system.clock import this_platform

    with monkeypatch.context() as patch:
        patch.setattr(saving, "this_platform", lambda: dataclasses.replace(this_platform(), arch="other"))
        scene.save("k-1")
    report = scene.proved("k-2")
    assert (report.base, report.copied_bytes) == (None, 0)


def test_a_denied_base(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that was refused before is no base."""
    scene.save("k-1")
    monkeypatch.setattr(DirectoryStore, "denied", lambda *_: True)
    report = scene.proved("k-2")
    assert (report.base, report.copied_bytes) == (None, 0)


def test_a_misfiled_base(scene: Scene) -> None:
    """An entry that lies under the name of another key is no base."""
    first, second = scene.save("k-1"), scene.save("k-2")
    os.replace(scene.entry(first), scene.entry(second))
    report = scene.proved("k-3")
    assert (report.base, report.copied_bytes) == (None, 0)
    scene.listed(report)


def test_a_base_that_is_evicted_meanwhile(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base is read by its descriptor: that its name goes between opening and copying does not matter."""
    first = scene.save("k-1")
    surveyed = delta._surveyed

    def evict(*args: object) -> object:
        scene.entry(first).unlink(missing_ok=True)
        return surveyed(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(delta, "_surveyed", evict)
    report = scene.proved("k-2")
    assert report.copied_bytes
    scene.listed(report)


def test_a_base_that_was_replaced(scene: Scene) -> None:
    """After --force of the base's key by somebody else the record is of another entry: files are hashed."""
    scene.save("k-1")
    kept = {path: path.read_bytes() for path in scene.records.iterdir()}
    rewrite(scene.tree / "p0/f0", b"-" * 200)
    scene.save("k-1", force=True)
    for path, data in kept.items():
        path.write_bytes(data)
    report = scene.proved("k-2")
    assert report.base == "k-1"
    assert report.unchanged
    scene.listed(report)


def test_a_cut_base(scene: Scene) -> None:
    """An entry that was cut is no base, and does not cost the save."""
    first = scene.save("k-1")
    os.truncate(scene.entry(first), scene.entry(first).stat().st_size // 2)
    report = scene.proved("k-2")
    assert (report.base, report.copied_bytes) == (None, 0)
    scene.listed(report)


def test_nothing_changed_over_itself(scene: Scene) -> None:
    """A save with --force starts from the very entry that it replaces."""
    scene.save("k-1")
    report = scene.proved("k-1", force=True)
    assert report.unchanged
    scene.listed(report)
