"""Removing an entry beside everybody else: killed at any step, beside a save, a pin, a reader."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cachekit.cache.prune import PruneReport, PruneRequest, prune
from cachekit.cache.restore import RestoreRequest, restore
from cachekit.retention.budget import Budget
from cachekit.store import removal
from cachekit.store.removal import FileIdentity
from cachekit.system import steps
from tests.crash.busy import Busy, Sources, in_the_middle
from tests.crash.scene import die_at
from tests.support.capabilities import requires
from tests.support.cli import Cli
from tests.support.flaky import flaky
from tests.support.samples import MIB
from tests.support.shelf import Shelf
from tests.support.snapshots import assert_same_tree

PRUNE = [step for step in steps.STEPS if step.startswith("prune.")]
PIN = [step for step in steps.STEPS if step.startswith("pin.")]


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """A store of its own."""
    return Shelf(tmp_path / "store")


def pruned(shelf: Shelf, **limits: int) -> PruneReport:
    """Prune all namespaces."""
    return prune(PruneRequest(str(shelf.root), Budget(**limits)))


def identity(path: Path) -> FileIdentity:
    """Which file it is now."""
    return FileIdentity.of(path.lstat())


def planned(shelf: Shelf, key: str) -> Callable[[], removal.Outcome]:
    """Plan the removal of an entry as it is now; return what carries it out, whether it was used since or not."""
    known = identity(shelf.path(key))
    return lambda: shelf.store.remove(shelf.name(key), known)


def assert_whole(shelf: Shelf, *keys: str) -> None:
    """Exactly these entries are there, every one whole to its last byte, and nothing is left in tmp."""
    assert shelf.keys() == sorted(keys)
    for key in keys:
        assert shelf.content(key)
    assert shelf.names("tmp") == []


def during(step: str, action: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `action` done once, at a step of the removal."""

    def reached(name: str) -> None:
        if name == step:
            monkeypatch.setattr(removal, "step", lambda _: None)
            action()

    monkeypatch.setattr(removal, "step", reached)


@pytest.mark.parametrize("step", [step for step in PRUNE if step != "prune.put-back"])
def test_a_killed_prune_is_finished_by_the_next(shelf: Shelf, step: str) -> None:
    """Killed at any step, the store serves whole entries only; the next prune removes the rest and its traces."""
    for number in range(4):
        shelf.put(f"k-{number}", used_days=number + 1)
    assert die_at(step, lambda: pruned(shelf, max_entries=2)) == -9
    assert all(map(shelf.content, shelf.keys()))
    assert {"k-0", "k-1"} <= set(shelf.keys())
    assert not pruned(shelf, max_entries=2).short
    assert_whole(shelf, "k-0", "k-1")
    assert shelf.names("used") == sorted(shelf.name(key) for key in ("k-0", "k-1"))


def test_the_next_save_ends_a_killed_prune_too(shelf: Shelf) -> None:
    """What a killed prune left aside is gone after whatever sweeps the store, as a save does."""
    shelf.put("k-1", used_days=5)
    assert die_at("prune.aside", lambda: pruned(shelf, max_entries=0)) == -9
    assert len(shelf.names("tmp")) == 1
    shelf.put("k-2")
    assert_whole(shelf, "k-2")


def test_a_replaced_entry_that_was_aside_comes_back(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that replaces the entry just before it is moved aside is not lost, also if the prune is killed then."""
    shelf.put("k-1", b"old", used_days=5)
    remove = planned(shelf, "k-1")
    lstat = os.lstat

    def replaced_after(path: str, *, dir_fd: int | None = None) -> os.stat_result:
        info = lstat(path, dir_fd=dir_fd)
        if path == shelf.name("k-1") and shelf.content("k-1") == b"old":
            shelf.put("k-1", b"new", force=True)
        return info

    monkeypatch.setattr(os, "lstat", replaced_after)
    assert die_at("prune.aside", remove) == -9
    monkeypatch.undo()
    assert shelf.keys() == []
    shelf.store.sweep()
    assert_whole(shelf, "k-1")
    assert shelf.content("k-1") == b"new"
    # And without a kill.
    shelf.put("k-1", b"old", force=True)
    remove = planned(shelf, "k-1")
    monkeypatch.setattr(os, "lstat", replaced_after)
    assert remove() == "replaced"
    monkeypatch.undo()
    assert_whole(shelf, "k-1")
    assert shelf.content("k-1") == b"new"


def test_killed_while_it_is_put_back(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pin set while the entry is aside wins; killed half way of putting it back, the next sweep cleans up."""
    shelf.put("k-1", used_days=5)
    pin = shelf.folder("pinned") / shelf.name("k-1")
    remove = planned(shelf, "k-1")

    def killed() -> None:
        monkeypatch.setattr(removal, "step", lambda name: pin.touch() if name == "prune.aside" else None)
        remove()

    assert die_at("prune.put-back", killed) == -9
    monkeypatch.undo()
    assert len(shelf.names("tmp")) == 1
    shelf.store.sweep()
    assert_whole(shelf, "k-1")


def test_a_pin_that_was_set_in_time_wins(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinned before the removal or while the entry is aside, it stays; a pin that comes too late says so."""
    name = shelf.name("k-1")
    shelf.put("k-1", used_days=5)
    remove = planned(shelf, "k-1")
    assert shelf.store.pin(name)
    assert remove() == "spared"
    shelf.store.unpin(name)
    answers: list[bool] = []
    during("prune.aside", lambda: answers.append(shelf.store.pin(name)), monkeypatch)
    remove()
    # Asked while the entry was aside: whichever way it went, the answer is true.
    assert answers == [name in shelf.names("entries")]
    monkeypatch.undo()
    shelf.put("k-1", used_days=5)
    remove = planned(shelf, "k-1")
    during("prune.removed", lambda: answers.append(shelf.store.pin(name)), monkeypatch)
    assert remove() == "removed"
    assert answers[1:] == [False]
    assert shelf.names("pinned") == []


def test_a_sweeper_respects_a_pin(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who sweeps while an entry is aside puts a pinned one back, as its remover would."""
    shelf.put("k-1", used_days=5)
    remove = planned(shelf, "k-1")

    def pinned_and_swept() -> None:
        (shelf.folder("pinned") / shelf.name("k-1")).touch()
        shelf.store.sweep()

    during("prune.aside", pinned_and_swept, monkeypatch)
    assert remove() == "spared"
    assert_whole(shelf, "k-1")


def test_used_since_the_plan(shelf: Shelf) -> None:
    """An entry that a restore used after the plan was made stays."""
    shelf.put("k-1", used_days=5)
    known = identity(shelf.path("k-1"))
    mark = (shelf.folder("used") / shelf.name("k-1")).stat().st_mtime_ns
    shelf.store.mark_used(shelf.name("k-1"))
    assert shelf.store.remove(shelf.name("k-1"), known, unused_since=mark) == "spared"
    assert_whole(shelf, "k-1")


def test_an_inode_that_is_used_again_is_another_file(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with the planned one's number but another time or size is not it, and is not even moved."""
    shelf.put("k-1", used_days=5)
    known = identity(shelf.path("k-1"))
    during("prune.aside", lambda: pytest.fail("it was moved"), monkeypatch)
    os.utime(shelf.path("k-1"), ns=(1, known.mtime_ns + 1))
    assert shelf.store.remove(shelf.name("k-1"), known) == "replaced"
    assert_whole(shelf, "k-1")


def test_removing_twice(shelf: Shelf) -> None:
    """Two removers of one entry: one removes it, the other finds it gone."""
    shelf.put("k-1", used_days=5)
    known = identity(shelf.path("k-1"))
    assert shelf.store.remove(shelf.name("k-1"), known) == "removed"
    assert shelf.store.remove(shelf.name("k-1"), known) == "gone"


@requires("fuse")
def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no hard links an entry goes just so, and one that may not go comes back by renaming."""
    import errno

    with flaky(tmp_path / "backing") as disk:
        disk.set_fault("link", errno=errno.EPERM)
        shelf = Shelf(disk.mount / "store")
        for number in range(3):
            shelf.put(f"k-{number}", used_days=number + 1)
        assert pruned(shelf, max_entries=2).removed == 1
        assert_whole(shelf, "k-0", "k-1")
        remove = planned(shelf, "k-1")
        during("prune.aside", (shelf.folder("pinned") / shelf.name("k-1")).touch, monkeypatch)
        assert remove() == "spared"
        assert_whole(shelf, "k-0", "k-1")


@pytest.mark.parametrize("step", PIN)
def test_a_killed_pin_is_a_pin_or_none(shelf: Shelf, step: str) -> None:
    """Killed at any step of pinning or unpinning, the store works on, and the same command then ends it."""
    shelf.put("k-1", used_days=5)
    name = shelf.name("k-1")
    if step == "pin.removed":
        assert shelf.store.pin(name)
        assert die_at(step, lambda: shelf.store.unpin(name)) == -9
        assert shelf.store.unpin(name) is False
        assert not pruned(shelf, max_entries=0).short
        assert_whole(shelf)
        return
    assert die_at(step, lambda: shelf.store.pin(name)) == -9
    assert shelf.store.pin(name)
    assert pruned(shelf, max_entries=0).short
    assert_whole(shelf, "k-1")


def test_every_step_is_killed_somewhere() -> None:
    """The steps of a prune and of pins are these; each is in a test above."""
    assert set(PRUNE) == {
        "prune.aside",
        "prune.put-back",
        "prune.removed",
        "prune.unmarked",
        "prune.marks-swept",
    }
    assert set(PIN) == {"pin.created", "pin.durable", "pin.removed"}


# A reader


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Trees large enough to be caught in the middle of a restore."""
    base = tmp_path_factory.mktemp("sources")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(base / "home"))
        return Sources.make(base, files=1000, large=16 * MIB)


def test_a_restore_goes_on_when_its_entry_is_pruned(cli: Cli, tmp_path: Path, sources: Sources) -> None:
    """A restore that has the entry open ends with the whole tree, although the entry is gone in the middle of it."""
    busy = Busy.make(cli, tmp_path, sources, saved=True)
    with busy.start_restore("one", "--replace") as running:
        in_the_middle(running, busy.unpacking)
        report = prune(PruneRequest(str(busy.store), Budget(max_entries=0)))
        assert running.alive
        assert report.removed == 2
        assert os.listdir(busy.store / "v1/default/entries") == []
        running.wait().expect()
    assert_same_tree(busy.trees["one"], busy.target)
    missed = restore(RestoreRequest("one", str(busy.store), root=str(busy.root)))
    assert missed.status == "miss"
