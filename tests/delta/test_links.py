"""Hard links whose other names come and go without a trace on the file itself: directories are renamed."""

from __future__ import annotations

import shutil

import pytest

from tests.delta.scene import Scene
from tests.support.trees import HardLink, make_tree


@pytest.fixture
def linked(scene: Scene) -> Scene:
    """The file ``p1/f0`` has a second name ``p2/sub/linked``."""
    (scene.tree / "p2/sub/linked").hardlink_to(scene.tree / "p1/f0")
    return scene


def test_a_first_name_that_was_unlinked(linked: Scene) -> None:
    """The second name becomes the file itself."""
    linked.save("k-1")
    (linked.tree / "p1/f0").unlink()
    report = linked.proved("k-2")
    assert report.copied_bytes
    linked.listed(report)


@pytest.mark.parametrize("to", ["tree/p4", "tree/a", "elsewhere"])
def test_a_first_name_that_went_with_its_directory(linked: Scene, to: str) -> None:
    """The directory of the first name is renamed, which no stat value of the second name shows."""
    linked.save("k-1")
    (linked.tree / "p1").rename(linked.root / to)
    report = linked.proved("k-2")
    assert report.copied_bytes
    linked.listed(report)


def test_a_name_that_comes_from_outside_with_its_directory(scene: Scene) -> None:
    """A file with a name outside gets a first name in the target when that directory is moved into it."""
    outside = scene.root / "outside"
    outside.mkdir()
    (outside / "first").hardlink_to(scene.tree / "p2/sub/g0")
    scene.save("k-1")
    outside.rename(scene.tree / "a")
    report = scene.proved("k-2")
    assert report.copied_bytes
    scene.listed(report)


def test_a_later_name_that_comes_from_outside(scene: Scene) -> None:
    """What comes later in the walk is a link to the name that was taken over."""
    outside = scene.root / "outside"
    outside.mkdir()
    (outside / "first").hardlink_to(scene.tree / "p2/sub/g0")
    scene.save("k-1")
    outside.rename(scene.tree / "p9")
    report = scene.proved("k-2")
    assert report.copied_bytes
    scene.listed(report)


def test_unchanged_links_are_taken_over(linked: Scene) -> None:
    """Links of which nothing changed cost nothing."""
    linked.save("k-1")
    report = linked.proved("k-2")
    assert report.unchanged
    linked.listed(report)


def test_links_in_place_after_their_directory_was_replaced(linked: Scene) -> None:
    """A copy in the place of the first name has the right content, and is another file: linked anew."""
    linked.save("k-1")
    before = linked.tree / "p1"
    before.rename(linked.root / "old")
    shutil.copytree(linked.root / "old", before, symlinks=True)
    linked.in_place("k-1")
    assert (before / "f0").samefile(linked.tree / "p2/sub/linked")


def test_the_left_out_are_counted_once(scene: Scene) -> None:
    """Of a root without files of its own, what is left out is counted as a full save counts it."""
    (scene.root / "junk").mkdir()
    (scene.root / "a").mkdir()
    (scene.root / "a/file").write_bytes(b"x")
    more = {"paths": ["."], "excludes": ["junk"]}
    scene.save("k-1", **more)
    (scene.tree / "p3/f0").write_bytes(b"other")
    report = scene.proved("k-2", **more)
    assert report.copied_bytes
    assert report.skipped == {"excluded": 1}


def test_further_names(scene: Scene) -> None:
    """Many names of one file in several packages."""
    make_tree(scene.tree / "more", {"x": b"x", "y": HardLink("x"), "sub": {"z": HardLink("x")}})
    scene.save("k-1")
    (scene.tree / "more/sub").rename(scene.tree / "more/tub")
    scene.listed(scene.proved("k-2"))
