"""Names that are left out now and were saved before, or the other way round."""

from __future__ import annotations

import os

import pytest

from cachekit.archive.names import compile_patterns, find_roots, targets_of
from cachekit.archive.walk import Walk
from cachekit.cache.delta import opened_base
from cachekit.model import EntryIdentity, Key
from cachekit.store.directory import DirectoryStore
from cachekit.system.clock import this_platform
from tests.delta.scene import Scene


@pytest.fixture
def scene(scene: Scene) -> Scene:
    """Packages of which each has a log."""
    for number in range(4):
        (scene.tree / f"p{number}" / "build.log").write_bytes(b"log %d" % number)
    return scene


def test_a_pattern_that_is_new(scene: Scene) -> None:
    """Logs that the entry before has are not in the next one, and what is unchanged is still copied."""
    scene.save("k-1")
    report = scene.proved("k-2", excludes=["*.log"])
    assert report.skipped == {"excluded": 4}
    assert not report.unchanged


def test_a_pattern_that_is_gone(scene: Scene) -> None:
    """Logs that were left out are in the next entry."""
    scene.save("k-1", excludes=["*.log"])
    report = scene.proved("k-2")
    assert report.skipped == {}
    assert not report.unchanged


def test_the_same_pattern(scene: Scene) -> None:
    """What is left out in both counts as unchanged, and is counted as left out."""
    scene.save("k-1", excludes=["*.log"])
    report = scene.proved("k-2", excludes=["*.log"])
    assert report.skipped == {"excluded": 4}
    assert report.unchanged
    assert report.copied_bytes


def test_a_file_that_an_earlier_attempt_left_out(scene: Scene) -> None:
    """A file that kept changing is left out although its directory is as the record has it."""
    scene.save("k-1")
    roots = find_roots(str(scene.root))
    targets = targets_of(["tree"], roots)
    places = {target: roots.path_of(target) for target in targets}
    identity = EntryIdentity(Key("k-2"), this_platform())
    store = DirectoryStore(str(scene.store))
    with opened_base(
        store, identity, "k", "k", places, 3, [], compile_patterns([]), trust_mtime=False
    ) as base:
        assert base is not None
        assert base.known
        walk = Walk(targets, roots, None, frozenset(), frozenset({b"tree/p0/f0"}), base)
        assert list(walk.jobs())
    assert b"tree/p0/f1" in walk.index.paths
    assert b"tree/p0/f0" not in walk.index.paths
    assert os.path.exists(scene.tree / "p0/f0")
